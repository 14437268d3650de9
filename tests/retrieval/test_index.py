import numpy as np
import pytest

from ragbench.errors import RagbenchError
from ragbench.retrieval.index import build_index, search


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(n=3000, dimensions=24, seed=0):
    """Return passages around 60 centres, and queries close to some of them."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(60, dimensions))
    passages = centres[random.integers(60, size=n)] + 0.3 * random.normal(size=(n, dimensions))
    return unit(passages), unit(passages[:40] + 0.1 * random.normal(size=(40, dimensions)))


def brute_force(passages, queries, depth):
    products = queries @ passages.T
    return np.argsort(-products, axis=1, kind="stable")[:, :depth], products


def test_flat_equals_brute_force():
    passages, queries = clustered()
    scores, rows = search(build_index(passages), queries, 20)
    expected, products = brute_force(passages, queries, 20)
    assert np.array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, axis=1), atol=1e-5)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_approximate_indexes_find_most_of_it_best_first(kind):
    passages, queries = clustered()
    scores, rows = search(build_index(passages, kind), queries, 10)
    expected, products = brute_force(passages, queries, 10)
    shared = [len(set(ours) & set(exact)) / 10 for ours, exact in zip(rows, expected, strict=True)]
    assert np.mean(shared) > 0.9
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(scores, np.take_along_axis(products, rows, axis=1), atol=1e-5)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_the_same_seed_finds_the_same(kind):
    passages, queries = clustered()
    first = search(build_index(passages, kind, seed=5), queries, 30)
    second = search(build_index(passages, kind, seed=5), queries, 30)
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


def test_the_seed_decides_the_cells_of_ivf():
    passages, queries = clustered()
    first = search(build_index(passages, "ivf", seed=1), queries, 200)[1]
    second = search(build_index(passages, "ivf", seed=2), queries, 200)[1]
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_depth_beyond_the_corpus_gives_every_passage_at_most_once(kind):
    passages = unit(np.eye(5) + 0.1)
    scores, rows = search(build_index(passages, kind), passages, 100)
    assert rows.shape == scores.shape == (5, 5)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    for found in rows:
        there = [row for row in found if row >= 0]
        assert len(set(there)) == len(there)


def test_ivf_and_hnsw_work_with_a_single_passage():
    for kind in ("hnsw", "ivf"):
        assert search(build_index(unit(np.ones((1, 4))), kind), unit(np.ones((1, 4))), 3)[1].tolist() == [[0]]


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(RagbenchError, match=r"'tree'.*flat.*hnsw.*ivf"):
        build_index(unit(np.eye(3)), "tree")


def test_no_passages_are_an_error_of_ours():
    with pytest.raises(RagbenchError, match="no passages"):
        build_index(np.empty((0, 0), dtype=np.float32))
