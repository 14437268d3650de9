"""The losses that a retriever can be tuned with, by name."""

from collections.abc import Callable, Sequence

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import pairwise_cos_sim
from torch import nn

from ragbench.errors import RagbenchError
from ragbench.training.contrast import SharedPassagesLoss

FROM_TEACHER = ("margin_mse", "kl")
"""Losses that learn from a teacher's scores, one for each passage of a row, in the rows' column ``label``."""
_MINI_BATCH = 8


def build_loss(
    name: str,
    model: SentenceTransformer,
    dataset: Dataset,
    *,
    scale: float = 20.0,
    guide: SentenceTransformer | None = None,
    matryoshka: Sequence[int] = (),
) -> nn.Module:
    """Return a loss for `model` on `dataset`.

    Args:
        name: ``shared`` (`contrast.SharedPassagesLoss`), ``mnr`` (MultipleNegativesRanking), ``cached_mnr`` (the same
            for large batches, GradCache), ``gist`` (in-batch negatives that the guide takes for answers are left out),
            ``margin_mse`` or ``kl`` (the order of the passages is learned from a teacher).
        dataset: the rows; `shared` numbers their texts.
        scale: one over the temperature.
        guide: for ``gist`` the model that judges, as a rule the base model.
        matryoshka: dimensions at which the embedding should work too, cut to its first numbers; empty for none.

    Raises:
        RagbenchError: the name is unknown, the rows lack a teacher's scores, have too few or too many negatives for
            it, or the model has fewer dimensions.
    """
    known: dict[str, Callable[[], nn.Module]] = {
        "shared": lambda: SharedPassagesLoss(model, dataset, scale),
        "mnr": lambda: losses.MultipleNegativesRankingLoss(model, scale=scale),
        "cached_mnr": lambda: losses.CachedMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_size=_MINI_BATCH
        ),
        "gist": lambda: losses.GISTEmbedLoss(model, guide or model, temperature=1 / scale),
        "margin_mse": lambda: losses.MarginMSELoss(model, pairwise_cos_sim),
        "kl": lambda: losses.DistillKLDivLoss(model, pairwise_cos_sim, temperature=1 / scale),
    }
    if name not in known:
        raise RagbenchError(f"retriever_loss '{name}' is unknown; use {', '.join(known)}.")
    negatives = len(set(dataset.column_names) - {"anchor", "positive", "label"})
    if name in FROM_TEACHER and "label" not in dataset.column_names:
        raise RagbenchError(
            f"retriever_loss '{name}' learns from a teacher, and the pairs have no teacher's scores. Run 02_data_prep "
            "with prep_teacher set."
        )
    if name in FROM_TEACHER and not negatives:
        raise RagbenchError(f"retriever_loss '{name}' learns an order of passages: set retriever_negatives above 0.")
    if name == "gist" and negatives > 1:
        raise RagbenchError(f"retriever_loss 'gist' takes 1 negative at most; retriever_negatives is {negatives}.")
    loss = known[name]()
    if not matryoshka:
        return loss
    full = model.get_embedding_dimension() or 0
    if not all(0 < size <= full for size in matryoshka):
        raise RagbenchError(f"retriever_matryoshka {list(matryoshka)}: the model has {full} dimensions.")
    return losses.MatryoshkaLoss(model, loss, sorted({full, *matryoshka}, reverse=True))
