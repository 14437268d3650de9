"""Dense encoding: any Sentence-Transformers model, sorted batches, and a cache that outlives crashes.

An embedding is cached under a hash of the model's weights, the settings and the text, so a fine-tuned checkpoint can
never read the base model's vectors, and only new passages are ever encoded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from ragbench import cache
from ragbench.devices import choose_device, choose_dtype
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.models import model_hash, resolve_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CACHE = "embeddings"
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 65_536
NOUNS = {"query": "queries", "passage": "passages"}
_LOOKUP = 8192


@dataclass(frozen=True)
class Encoder:
    """A bi-encoder that is ready to use; its weights are loaded only when something is not in the cache.

    Attributes:
        folder: the verified local model.
        max_tokens: longer texts are cut here.
        device, dtype: where and in which precision to compute.
        batch_tokens: padded tokens a forward pass.
        key: hash of everything but the text that an embedding depends on.
    """

    folder: Path
    max_tokens: int
    device: str
    dtype: torch.dtype
    batch_tokens: int
    key: str


def open_encoder(
    model: str,
    *,
    revision: str = "",
    max_tokens: int = 256,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
) -> Encoder:
    """Resolve a model name (see `ragbench.models`) to an `Encoder`.

    `batch_tokens` defaults to `CPU_BATCH_TOKENS` or `GPU_BATCH_TOKENS`.

    Raises:
        RagbenchError: the model or the device is not to be had.
    """
    folder = resolve_model(model, revision)
    where = choose_device(device)
    precision = choose_dtype(where, dtype)
    key = sha256_text(model_hash(folder), str(max_tokens), str(precision), where.split(":")[0])
    budget = batch_tokens or (CPU_BATCH_TOKENS if where == "cpu" else GPU_BATCH_TOKENS)
    return Encoder(folder, max_tokens, where, precision, budget, key)


def encode(
    encoder: Encoder, texts: Sequence[str] | pa.ChunkedArray, kind: Literal["query", "passage"], *, keep: bool = True
) -> np.ndarray:
    """Return unit-length embeddings, float32 of shape (texts, dimensions).

    Each finished batch goes into the cache at once. A killed run therefore repeats at most one batch, and because the
    batches are taken in order, those that were left are the same as in an undisturbed run.

    Args:
        keep: whether the cache is used; without it everything is computed, and nothing is left behind.
    """
    texts = texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([pa.array(texts, type=pa.string())])
    distinct = pc.dictionary_encode(texts).combine_chunks()
    rows = distinct.indices.to_numpy()
    if not keep:
        return _computed(encoder, distinct.dictionary, kind)[rows]
    keys = _keys(encoder, distinct.dictionary, kind)
    missing = np.flatnonzero(~_present(keys))
    with tqdm(total=len(missing), desc=f"encoding {NOUNS[kind]}", unit="text", disable=not len(missing)) as bar:
        for batch in _batches(encoder, distinct.dictionary, missing):
            places = pa.array(batch)
            vectors = _forward(encoder, distinct.dictionary.take(places).to_pylist(), kind)
            batch_keys = keys.take(places).to_pylist()
            cache.put(CACHE, {key: vector.tobytes() for key, vector in zip(batch_keys, vectors, strict=True)})
            bar.update(len(places))
    vectors = _read(keys)
    return vectors if len(rows) == len(vectors) else vectors[rows]


def _computed(encoder: Encoder, texts: pa.StringArray, kind: str) -> np.ndarray:
    found: dict[int, np.ndarray] = {}
    for batch in _batches(encoder, texts, np.arange(len(texts))):
        vectors = _forward(encoder, texts.take(pa.array(batch)).to_pylist(), kind)
        found |= dict(zip(batch.tolist(), vectors, strict=True))
    return np.stack([found[place] for place in range(len(texts))]) if found else np.empty((0, 0), dtype=np.float32)


def share(giver: Encoder, taker: Encoder, texts: pa.ChunkedArray, kind: Literal["query", "passage"]) -> None:
    """Put one encoder's embeddings into the cache for another one that is known to give the same."""
    remember(taker, texts, encode(giver, texts, kind), kind)


def remember(encoder: Encoder, texts: pa.ChunkedArray, vectors: np.ndarray, kind: Literal["query", "passage"]) -> None:
    """Put embeddings into the cache that this encoder is known to have given."""
    keys = _keys(encoder, texts.combine_chunks(), kind).to_pylist()
    for start in range(0, len(keys), _LOOKUP):
        part = slice(start, start + _LOOKUP)
        cache.put(CACHE, {key: vector.tobytes() for key, vector in zip(keys[part], vectors[part], strict=True)})


def pieces(encoder: Encoder, words: Sequence[str]) -> list[int]:
    """Return into how many pieces the encoder's tokenizer spells each word; one it cannot spell counts by letters."""
    tokenizer = _sentence_transformer(encoder).tokenizer
    found = tokenizer(list(words), add_special_tokens=False)["input_ids"] if words else []
    return [len(word) if tokenizer.unk_token_id in ids else len(ids) for word, ids in zip(words, found, strict=True)]


def parameter_count(encoder: Encoder) -> int:
    """Return how many parameters the encoder has."""
    return sum(weight.numel() for weight in _sentence_transformer(encoder).parameters())


def token_counts(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """Return the length of each text as the encoder reads it, in tokens, cut at `max_tokens`."""
    return _token_counts(encoder, pa.array(list(texts), type=pa.string()), np.arange(len(texts)))


def _batches(encoder: Encoder, texts: pa.StringArray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Cut `rows` into batches of about `batch_tokens` padded tokens, those with the longest texts first.

    Sorting by tokens rather than characters leaves hardly any padding, and batches of about two thousand tokens keep
    the activations in the processor's cache.
    """
    lengths = _token_counts(encoder, texts, rows)
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        size = max(1, encoder.batch_tokens // int(lengths[order[0]]))
        yield rows[order[:size]]
        order = order[size:]


def _token_counts(encoder: Encoder, texts: pa.StringArray, rows: np.ndarray) -> np.ndarray:
    counts = np.ones(len(rows), dtype=np.int64)
    for start in range(0, len(rows), _LOOKUP):
        part = texts.take(pa.array(rows[start : start + _LOOKUP])).to_pylist()
        tokenizer = _sentence_transformer(encoder).tokenizer
        tokens = tokenizer(part, truncation=True, max_length=encoder.max_tokens)["input_ids"]
        counts[start : start + len(part)] = [max(1, len(ids)) for ids in tokens]
    return counts


def _keys(encoder: Encoder, texts: pa.StringArray, kind: str) -> pa.StringArray:
    def chunks() -> Iterator[pa.Array]:
        for start in range(0, len(texts), _LOOKUP):
            part = texts.slice(start, _LOOKUP).to_pylist()
            yield pa.array([sha256_text(encoder.key, kind, text) for text in part], type=pa.string())

    return pa.chunked_array(chunks(), type=pa.string()).combine_chunks()


def _present(keys: pa.StringArray) -> np.ndarray:
    present = np.zeros(len(keys), dtype=bool)
    for start in range(0, len(keys), _LOOKUP):
        part = keys.slice(start, _LOOKUP).to_pylist()
        there = cache.contains(CACHE, part)
        present[start : start + len(part)] = [key in there for key in part]
    return present


def _read(keys: pa.StringArray) -> np.ndarray:
    vectors = np.empty((0, 0), dtype=np.float32)
    found = 0
    for start in range(0, len(keys), _LOOKUP):
        part = keys.slice(start, _LOOKUP).to_pylist()
        rows = {key: start + offset for offset, key in enumerate(part)}
        for key, value in cache.get(CACHE, part):
            vector = np.frombuffer(value, dtype=np.float32)
            if not vectors.size:
                vectors = np.empty((len(keys), len(vector)), dtype=np.float32)
            vectors[rows[key]] = vector
            found += 1
    if found < len(keys):
        raise RagbenchError("Embeddings vanished from the cache while they were used. Run the same command again.")
    return vectors


def _forward(encoder: Encoder, texts: list[str], kind: str) -> np.ndarray:
    model = _sentence_transformer(encoder)
    forward = model.encode_query if kind == "query" else model.encode_document
    with torch.inference_mode():
        vectors = forward(texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False)
    # Normalised in float32: a bfloat16 norm is off by up to half a percent.
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def _sentence_transformer(encoder: Encoder) -> "SentenceTransformer":
    return load_sentence_transformer(encoder.folder, encoder.key, encoder.max_tokens, encoder.device, encoder.dtype)


@lru_cache(maxsize=2)
def load_sentence_transformer(
    folder: Path, version: str, max_tokens: int, device: str, dtype: torch.dtype
) -> "SentenceTransformer":
    """Load a bi-encoder for inference; the last two stay in memory.

    `version` is a hash of the model: a folder whose files were replaced is loaded anew.
    """
    # Importing takes seconds, which a run that finds everything in the cache need not spend.
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder), device=device, model_kwargs={"dtype": dtype, "use_safetensors": True}, local_files_only=True
    )
    model.max_seq_length = max_tokens
    return model.eval()
