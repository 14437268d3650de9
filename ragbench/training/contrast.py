"""Contrastive training that encodes every passage once a batch.

With the usual loss a batch of 32 rows encodes 32 positives, although several questions often share a passage, and all
32 go through the model in one pass, padded to the longest. Here the rows of one passage come into one batch, each
distinct passage is encoded once and is a candidate for every question, and texts of like length pass through the model
a few at a time, so that they stay in a processor's cache. A step then takes a fraction of the time, and batches of
neighbouring passages make it teach more.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch import Tensor, nn

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 1024, 65_536
"""Padded tokens of one forward pass. Larger ones are slower on a CPU: their activations leave its cache."""
ROW = "label"
"""The column with each row's number: Sentence Transformers passes it to the loss as the labels."""


class SharedPassagesLoss(nn.Module):
    """InfoNCE (van den Oord et al. 2018) of every question over all distinct passages of the batch.

    Each positive of a question is contrasted with all passages of the batch that are not known to answer it: those of
    other rows, and the mined negatives of all rows. Passages that several rows share are encoded once. It is
    `MultipleNegativesRankingLoss` without its false negatives, on the same embeddings.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, scale: float = 20.0) -> None:
        """Prepare to train `model` on `dataset`.

        Args:
            model: a `SentenceTransformer`.
            dataset: columns anchor, positive, any number of negatives, and `ROW`.
            scale: one over the temperature of the softmax over cosines.
        """
        super().__init__()
        self.model = model
        self.scale = scale
        names = [name for name in dataset.column_names if name != ROW]
        self._questions = _numbered(dataset[names[0]])
        numbers = _numbered([text for name in names[1:] for text in dataset[name]])
        # Shape (rows, columns): the number of the text in each passage column.
        self._passages = numbers.reshape(len(names) - 1, len(dataset)).T
        self._answers = set(zip(self._questions.tolist(), self._passages[:, 0].tolist(), strict=True))

    def forward(self, sentence_features: Sequence[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the mean loss over the questions of a batch; `labels` are the row numbers."""
        rows = labels.cpu().numpy()
        questions, first_row = np.unique(self._questions[rows], return_index=True)
        asked = embed(self.model, _take(sentence_features[0], first_row))
        flat = self._passages[rows].T.ravel()
        passages, first_place = np.unique(flat, return_index=True)
        candidates = embed(self.model, _take(_stacked(sentence_features[1:]), first_place))
        answers = torch.tensor(
            [[(q, p) in self._answers for p in passages.tolist()] for q in questions.tolist()],
            device=asked.device,
        )
        return contrast(self.scale * asked @ candidates.T, answers)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"scale": self.scale}


def contrast(scores: Tensor, answers: Tensor) -> Tensor:
    """Return InfoNCE with several positives: each one against all that are no answer, averaged question by question.

    Args:
        scores: similarity over temperature, of shape (questions, passages).
        answers: bool of the same shape; at least one true in every row.
    """
    negatives = torch.logsumexp(scores.masked_fill(answers, -torch.inf), dim=1, keepdim=True)
    log_share = scores - torch.logaddexp(scores, negatives)
    # Zeros in place of what is no answer before the sum: its log share may be -inf, and 0 · inf is no number.
    return -(log_share.masked_fill(~answers, 0.0).sum(dim=1) / answers.sum(dim=1)).mean()


def embed(model: nn.Module, features: dict[str, Tensor]) -> Tensor:
    """Return unit-length embeddings of tokenized texts, with gradients, in the texts' order.

    Texts of like length pass together, some `CPU_BATCH_TOKENS` or `GPU_BATCH_TOKENS` padded tokens at a time.
    """
    lengths = features["attention_mask"].sum(dim=1).cpu()
    budget = CPU_BATCH_TOKENS if features["attention_mask"].device.type == "cpu" else GPU_BATCH_TOKENS
    order = torch.argsort(lengths, descending=True, stable=True)
    done: list[Tensor] = []
    start = 0
    padded_left = _padded_left(features)
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = order[start : start + max(1, budget // longest)].to(features["attention_mask"].device)
        kept = slice(-longest, None) if padded_left else slice(0, longest)
        part = {name: value[rows][:, kept] for name, value in features.items()}
        done.append(nn.functional.normalize(model(part)["sentence_embedding"].float(), dim=-1))
        start += len(rows)
    return torch.cat(done)[torch.argsort(order).to(done[0].device)]


class NeighbourhoodSampler(DefaultBatchSampler):
    """Batches in which the rows of one passage stand together, and passages beside others that resemble them.

    A batch is made of groups: a passage drawn at random and its nearest neighbours among those not drawn yet. What is
    alike has to be told apart, so the other positives of a batch are hard negatives that cost nothing (topic-aware
    sampling, Hofstätter et al. 2021). Every epoch draws other groups; the seed and the epoch decide which.
    """

    def __init__(self, dataset: Dataset, vectors: np.ndarray, group: int, **arguments: Any) -> None:
        """Take the trainer's `arguments` for a batch sampler.

        Args:
            dataset: has a column positive.
            vectors: the unit-length embedding of each row's positive, of shape (rows, dimensions).
            group: how many passages come together; with 1 batches are drawn at random.
        """
        super().__init__(dataset, **arguments)
        passages = _numbered(dataset["positive"])
        first = np.unique(passages, return_index=True)[1]
        self._rows: list[list[int]] = [[] for _ in first]
        for row, passage in enumerate(passages.tolist()):
            self._rows[passage].append(row)
        self._vectors = vectors[first]
        self._group = group

    def __iter__(self) -> Iterator[list[int]]:
        rows = [row for passage in self._order() for row in self._rows[passage]]
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def _order(self) -> list[int]:
        draw = np.random.default_rng([self.seed, self.epoch])
        left = np.ones(len(self._rows), dtype=bool)
        groups: list[list[int]] = []
        for passage in draw.permutation(len(self._rows)):
            if left[passage]:
                nearness = np.where(left, self._vectors @ self._vectors[passage], -np.inf)
                nearness[passage] = np.inf
                size = min(self._group, int(left.sum()))
                nearest = np.argpartition(-nearness, size - 1)[:size]
                left[nearest] = False
                groups.append(nearest.tolist())
        # The last groups were made of what was left over: they must not always come at the end, at the lowest rate.
        return [passage for number in draw.permutation(len(groups)) for passage in groups[number]]

    def __len__(self) -> int:
        return -(-sum(map(len, self._rows)) // self.batch_size)


def _numbered(texts: Sequence[str]) -> np.ndarray:
    """Return for each text a number, equal for equal texts."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(text, len(first)) for text in texts], dtype=np.int64)


def _stacked(columns: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the texts of all columns below one another, padded to the widest."""
    width = max(column["attention_mask"].shape[1] for column in columns)
    left = any(_padded_left(column) for column in columns)

    def padded(value: Tensor) -> Tensor:
        missing = width - value.shape[1]
        return nn.functional.pad(value, (missing, 0) if left else (0, missing))

    return {
        name: torch.cat([padded(column[name]) for column in columns])
        for name, value in columns[0].items()
        if isinstance(value, Tensor)
    }


def _take(features: dict[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
    place = torch.tensor(rows)
    return {name: value[place] for name, value in features.items() if isinstance(value, Tensor)}


def _padded_left(features: dict[str, Tensor]) -> bool:
    mask = features["attention_mask"]
    return bool((mask[:, 0] < mask[:, -1]).any())
