"""Nearest passages by inner product, with FAISS (Johnson et al. 2017, https://github.com/facebookresearch/faiss)."""

from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from ragbench.errors import RagbenchError
from ragbench.files import atomic_path

IndexKind = Literal["flat", "hnsw", "ivf"]


def build_index(vectors: np.ndarray, kind: IndexKind = "flat", seed: int = 0) -> faiss.Index:
    """Index unit-length vectors, float32 of shape (passages, dimensions).

    `flat` is exact; `hnsw` (32 links a node) and `ivf` (4·√n cells, a sixteenth of them probed) trade recall for speed
    on large corpora. The index moves to the GPUs where FAISS has some.

    Raises:
        RagbenchError: the kind is unknown, or there is nothing to index.
    """
    if not len(vectors):
        raise RagbenchError("There are no passages to index.")
    index = _empty(kind, vectors.shape[0], vectors.shape[1], seed)
    if faiss.get_num_gpus() and kind != "hnsw":  # FAISS has no HNSW on the GPU
        index = faiss.index_cpu_to_all_gpus(index)
    index.train(vectors)
    index.add(vectors)
    return index


def _empty(kind: str, n: int, dimensions: int, seed: int) -> faiss.Index:
    if kind == "flat":
        return faiss.IndexFlatIP(dimensions)
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dimensions, 32, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 200
        graph.hnsw.efSearch = 128
        return graph
    if kind == "ivf":
        cells = min(n, max(1, round(4 * n**0.5)))
        inverted = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimensions), dimensions, cells, faiss.METRIC_INNER_PRODUCT)
        inverted.nprobe = max(1, cells // 16)
        inverted.cp.seed = seed
        return inverted
    raise RagbenchError(f"retriever_index '{kind}' is unknown; use flat, hnsw or ivf.")


def search(index: faiss.Index, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (scores, rows), each of shape (queries, min(depth, passages)), best first; row -1 where none was found."""
    return index.search(queries, min(depth, index.ntotal))


def write_index(index: faiss.Index, path: Path) -> None:
    """Write an index to a file, from wherever it is."""
    on_cpu = faiss.index_gpu_to_cpu(index) if faiss.get_num_gpus() and hasattr(index, "getDevice") else index
    with atomic_path(path) as temporary:
        faiss.write_index(on_cpu, str(temporary))


def read_index(path: Path) -> faiss.Index:
    """Read what `write_index` wrote.

    Raises:
        RagbenchError: the file is no index.
    """
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise RagbenchError(f"{path} is no index of FAISS ({str(error).splitlines()[0]}).") from error


def vectors_of(index: faiss.Index, rows: np.ndarray) -> np.ndarray:
    """Return the vectors of some rows of an index on the CPU, float32 of shape (rows, dimensions)."""
    if hasattr(index, "make_direct_map"):  # an inverted file finds a vector by its number only with one
        index.make_direct_map()
    return np.stack([index.reconstruct(int(row)) for row in rows])
