"""How likely a language model finds given sentences after a prompt, token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragbench import cache
from ragbench.devices import choose_device, choose_dtype
from ragbench.files import sha256_text
from ragbench.generation.local import load_model, load_tokenizer
from ragbench.models import model_hash, resolve_model

CACHE = "likelihoods"
MAX_TOKENS, MAX_CONTINUATION = 2048, 512
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 1024, 16_384


@dataclass(frozen=True)
class Continuation:
    """A prompt, and the sentences whose likelihood after it is asked for; each is given those before it."""

    prompt: str
    sentences: tuple[str, ...]


def log_probs(
    continuations: Sequence[Continuation],
    *,
    model: str,
    revision: str = "",
    device: str = "auto",
    dtype: str = "auto",
) -> list[list[np.ndarray]]:
    """Return, for each continuation and each of its sentences, the tokens' log-probabilities (float32, natural log).

    All sentences of a continuation share one forward pass, and logits are computed at their tokens only. Prompts are
    cut at the front to fit `MAX_TOKENS` or what the model reads, and sentences at `MAX_CONTINUATION` tokens in all: a
    sentence beyond that has an empty array. Every finished batch goes into the cache at once.

    Raises:
        RagbenchError: the model or the device is not to be had.
    """
    folder = resolve_model(model, revision)
    where = choose_device(device)
    precision = choose_dtype(where, dtype)
    version = model_hash(folder)
    base = sha256_text(version, str(precision), where.split(":")[0], f"{MAX_TOKENS} {MAX_CONTINUATION}")
    keys = [sha256_text(base, each.prompt, *each.sentences) for each in continuations]
    done = dict(cache.get(CACHE, keys))
    waiting = {key: each for key, each in zip(keys, continuations, strict=True) if key not in done}
    if waiting:
        network = load_model(folder, version, where, precision)
        tokenizer = load_tokenizer(folder, version)
        limit = min(MAX_TOKENS, getattr(network.config, "max_position_embeddings", None) or MAX_TOKENS)
        rows = {key: _Row.of(each, tokenizer, limit) for key, each in waiting.items()}
        budget = _CPU_BATCH_TOKENS if where == "cpu" else _GPU_BATCH_TOKENS
        with tqdm(total=len(rows), desc="likelihoods", unit="text") as bar:
            for batch in _batches(rows, budget):
                values = _forward(network, [rows[key] for key in batch])
                fresh = {key: rows[key].pack(value) for key, value in zip(batch, values, strict=True)}
                cache.put(CACHE, fresh)
                done |= fresh
                bar.update(len(batch))
    return [_unpack(done[key], len(each.sentences)) for key, each in zip(keys, continuations, strict=True)]


@dataclass(frozen=True)
class _Row:
    """Token ids of a prompt and of its sentences, and the number of the sentence that each of the latter is in."""

    prompt: list[int]
    tokens: list[int]
    numbers: list[int]

    @classmethod
    def of(cls, continuation: Continuation, tokenizer: PreTrainedTokenizerBase, limit: int) -> "_Row":
        """Tokenize; a prompt that is too long loses its beginning, a continuation its end."""
        pieces = [tokenizer(f" {text}", add_special_tokens=False)["input_ids"] for text in continuation.sentences]
        tokens = [token for piece in pieces for token in piece][: min(MAX_CONTINUATION, limit // 2)]
        numbers = [number for number, piece in enumerate(pieces) for _ in piece][: len(tokens)]
        prompt = tokenizer(continuation.prompt)["input_ids"][-(limit - len(tokens)) :]
        return cls(prompt, tokens, numbers)

    def pack(self, values: np.ndarray) -> bytes:
        return np.stack([np.array(self.numbers, dtype=np.float32), values]).tobytes()


def _unpack(value: bytes, sentences: int) -> list[np.ndarray]:
    numbers, values = np.frombuffer(value, dtype=np.float32).reshape(2, -1)
    return [values[numbers == number] for number in range(sentences)]


def _batches(rows: dict[str, _Row], tokens: int) -> Iterator[list[str]]:
    lengths = {key: len(row.prompt) + len(row.tokens) for key, row in rows.items()}
    order = sorted(rows, key=lambda key: (-lengths[key], key))
    while order:
        size = max(1, tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


@torch.inference_mode()
def _forward(network: PreTrainedModel, rows: Sequence[_Row]) -> list[np.ndarray]:
    """Return the tokens' log-probabilities of each row; the rows end together, so that few logits are computed."""
    whole = [row.prompt + row.tokens for row in rows]
    width, kept = max(map(len, whole)), max(len(row.tokens) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in whole], device=network.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in whole], device=network.device)
    logits = network(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=kept + 1,
    ).logits[:, :-1]
    values: list[np.ndarray] = []
    for row, line in zip(rows, logits, strict=True):
        count = len(row.tokens)
        log_softmax = torch.log_softmax(line[kept - count :].float(), dim=-1)
        targets = torch.tensor(row.tokens, device=network.device, dtype=torch.long)
        values.append(log_softmax.gather(1, targets[:, None])[:, 0].cpu().numpy())
    return values
