import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ragbench.collection.beir import read_collection
from ragbench.collection.schema import Query
from ragbench.errors import RagbenchError
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.retrieval.runs import reciprocal_rank_fusion

PASSAGES = {
    "p1": "Cats Cats sleep all day.",
    "p2": "Dogs Dogs bark at night.",
    "p3": "Fish Fish swim in water.",
    "p4": "Birds Birds fly south.",
}


def retriever(tiny_encoder, **settings):
    return Retriever(**{"model": str(tiny_encoder), "device": "cpu", "dtype": "float32", **settings})


@pytest.fixture
def toy(toy_folder):
    return read_collection(toy_folder)


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_dense_ranks_title_and_text_by_cosine(toy, tiny_encoder, index):
    run = retrieve(toy, list(toy.queries.values()), retriever(tiny_encoder, index=index))
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    passages = model.encode(list(PASSAGES.values()), normalize_embeddings=True)
    for query in toy.queries.values():
        cosines = passages @ model.encode(query.text, normalize_embeddings=True)
        assert run[query.id] == pytest.approx(dict(zip(PASSAGES, cosines.tolist(), strict=True)), abs=1e-5)
        assert list(run[query.id]) == [list(PASSAGES)[row] for row in np.argsort(-cosines)]


def test_dense_finds_a_passage_by_its_own_text_first(toy, tiny_encoder):
    queries = [Query(name, text) for name, text in PASSAGES.items()]
    for index in ("flat", "hnsw", "ivf"):
        run = retrieve(toy, queries, retriever(tiny_encoder, index=index))
        assert {name: next(iter(found)) for name, found in run.items()} == {name: name for name in PASSAGES}


def test_bm25_needs_no_model(toy):
    run = retrieve(toy, list(toy.queries.values()), Retriever(method="bm25", model="./no-such-model"))
    assert next(iter(run["q1"])) == "p1"
    assert run["q3"] == {}


def test_fusion_is_reciprocal_rank_fusion_of_dense_and_bm25(toy, tiny_encoder):
    queries = list(toy.queries.values())
    parts = [retrieve(toy, queries, retriever(tiny_encoder, method=method)) for method in ("dense", "bm25")]
    fused = retrieve(toy, queries, retriever(tiny_encoder, method="fusion"))
    assert fused == reciprocal_rank_fusion(parts, 100)
    ranks = [list(part["q1"]).index("p1") + 1 for part in parts]
    assert fused["q1"]["p1"] == pytest.approx(sum(1 / (60 + rank) for rank in ranks))


@pytest.mark.parametrize("method", ["dense", "bm25", "fusion"])
def test_depth_limits_every_method(toy, tiny_encoder, method):
    queries = [Query("q", "cats cats cats dogs dogs fish birds")]
    run = retrieve(toy, queries, retriever(tiny_encoder, method=method, depth=2))
    whole = retrieve(toy, queries, retriever(tiny_encoder, method=method))
    assert len(run["q"]) == 2 and len(whole["q"]) == 4
    if method != "fusion":
        assert list(run["q"]) == list(whole["q"])[:2]


@pytest.mark.parametrize("method", ["dense", "bm25", "fusion"])
def test_no_queries_give_an_empty_run(toy, tiny_encoder, method):
    assert retrieve(toy, [], retriever(tiny_encoder, method=method)) == {}


def test_bm25_parameters_reach_bm25(toy):
    query = [Query("q", "cats")]
    mild = retrieve(toy, query, Retriever(method="bm25", bm25_k1=0.9))["q"]["p1"]
    strong = retrieve(toy, query, Retriever(method="bm25", bm25_k1=0.1))["q"]["p1"]
    assert strong > mild > 0


def test_unknown_method_and_index_name_the_known_ones(toy, tiny_encoder):
    with pytest.raises(RagbenchError, match=r"'magic'.*dense, bm25 or fusion"):
        retrieve(toy, [Query("q", "cats")], retriever(tiny_encoder, method="magic"))
    with pytest.raises(RagbenchError, match=r"'tree'.*flat, hnsw or ivf"):
        retrieve(toy, [Query("q", "cats")], retriever(tiny_encoder, index="tree"))
