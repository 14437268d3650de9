from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_vocabulary import planted_collection
from sentence_transformers import SentenceTransformer

from ragbench.collection.schema import Collection, Query, corpus_from_rows, split_queries
from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import choose_questions, retrieval_scores
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.training.dev import HELD_OUT, LABELLED, DevSet, choose_dev, dev_evaluator, read_dev, write_dev
from ragbench.training.pairs import Pair, labelled_pairs

NOBODY = DevSet(HELD_OUT, {}, {})


def collection(documents: list[str]) -> Collection:
    rows = ((f"p{n}", "", f"text {n}", document) for n, document in enumerate(documents))
    return Collection("c", corpus_from_rows(rows), {}, {})


def pair(number: int, query: int, source: str = "labelled") -> Pair:
    return Pair(f"{source} q{query}", f"{source} {query}?", f"p{number}", f"text {number}", source)


@pytest.fixture
def base(tiny_encoder) -> Retriever:
    return Retriever(model=str(tiny_encoder), device="cpu", dtype="float32")


def test_a_dev_split_chooses_and_all_pairs_train():
    queries = {name: Query(name, f"{name}?") for name in ("q1", "q2", "q3", "q4")}
    dev = {"q2": {"p1": 1, "p2": 2, "p3": 0}, "q3": {}, "q4": {"p0": 0}}
    data = Collection("c", collection(["d"] * 4).corpus, queries, {"train": {"q1": {"p0": 1}}, "dev": dev})
    pairs = labelled_pairs(data)
    chosen, left = choose_dev(data, pairs, seed=0)
    assert chosen == DevSet(LABELLED, {"q2": "q2?"}, {"q2": ["p1", "p2"]})
    assert chosen.qrels == {"q2": {"p1": 1, "p2": 1}} and chosen.queries == [Query("q2", "q2?")]
    assert left == pairs


def test_without_a_dev_split_a_tenth_of_the_labelled_documents_is_held_out():
    data = collection([f"d{n}" for n in range(60)])
    pairs = [pair(n, n) for n in range(40)] + [pair(n, n, "title") for n in range(60)]
    dev, left = choose_dev(data, pairs, seed=0)
    assert dev.kind == HELD_OUT and len(dev.questions) == 4
    closed = {name for ids in dev.gold.values() for name in ids}
    assert all(text.startswith("labelled ") for text in dev.questions.values())
    assert [kept for kept in pairs if kept.passage_id not in closed] == left and len(left) == 92


def test_without_labels_pairs_made_from_the_corpus_are_held_out_by_document():
    data = collection([f"d{n // 3}" for n in range(60)])
    dev, left = choose_dev(data, [pair(n, n, "title") for n in range(60)], seed=0)
    assert (len(dev.questions), len(left)) == (6, 54)


def test_where_one_document_is_labelled_pairs_made_from_the_others_choose():
    data = collection(["labelled"] * 2 + [f"d{n}" for n in range(30)])
    pairs = [pair(0, 0), pair(1, 1)] + [pair(n, n, "title") for n in range(2, 32)]
    dev, left = choose_dev(data, pairs, seed=0)
    assert dev.questions and left and len(dev.questions) + len(left) == len(pairs)


def test_the_drawing_is_reproducible_and_depends_on_the_seed():
    data = collection([f"d{n}" for n in range(60)])
    pairs = [pair(n, n) for n in range(60)]
    drawn = [choose_dev(data, pairs, seed)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@given(
    st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 4), st.sampled_from(["labelled", "title"])), max_size=12),
    st.integers(0, 3),
)
@settings(deadline=None)
def test_no_document_and_no_question_is_on_both_sides(documents, made, seed):
    pairs = [pair(number % len(documents), query, source) for number, query, source in made]
    dev, left = choose_dev(collection(documents), pairs, seed)
    held_out = {documents[int(name[1:])] for ids in dev.gold.values() for name in ids}
    assert not held_out & {documents[int(each.passage_id[1:])] for each in left}
    assert not set(dev.questions.values()) & {each.question for each in left}
    assert set(left) <= set(pairs) and dev.gold.keys() == dev.questions.keys()
    assert bool(dev.questions) == (len({documents[int(each.passage_id[1:])] for each in pairs}) > 1)


@given(st.dictionaries(st.text(max_size=5), st.tuples(st.text(max_size=9), st.lists(st.text(max_size=4)))))
@settings(deadline=None)
def test_what_is_written_is_read_back_the_same(tmp_path_factory, questions):
    path = tmp_path_factory.getbasetemp() / "dev.json"
    gold = {name: ids for name, (_, ids) in questions.items()}
    dev = DevSet(HELD_OUT, {name: text for name, (text, _) in questions.items()}, gold)
    write_dev(dev, path)
    assert read_dev(path) == dev


@pytest.mark.parametrize(("limit", "questions", "passages"), [(10, 5, 10), (1, 1, 1), (40, 11, 40)])
def test_the_evaluator_holds_the_gold_of_its_questions_and_keeps_to_the_limit(base, limit, questions, passages):
    data = planted_collection(concepts=12)
    dev, _ = choose_dev(data, [], seed=0)
    first = dict(list(dev.questions.items())[:11])
    small = DevSet(LABELLED, first, {name: dev.gold[name] for name in first})
    evaluator = dev_evaluator(data, small, base, limit, seed=0)
    assert (len(evaluator.queries), len(evaluator.corpus)) == (questions, passages)
    assert {dev.questions[name] for name in evaluator.queries_ids} == set(evaluator.queries)
    assert all(evaluator.relevant_docs[name] == set(dev.gold[name]) for name in evaluator.queries_ids)
    assert {name for ids in evaluator.relevant_docs.values() for name in ids} <= set(evaluator.corpus_ids)


def test_a_question_with_more_gold_passages_than_the_limit_keeps_them_all(base):
    data = planted_collection(concepts=6)
    dev = DevSet(HELD_OUT, {"q": "What?"}, {"q": [f"p{n}" for n in range(8)]})
    assert set(dev_evaluator(data, dev, base, limit=4, seed=0).corpus_ids) == set(dev.gold["q"])


def test_the_hardest_passages_of_both_retrievers_are_in(base):
    corpus = corpus_from_rows([(f"p{n}", "", f"bab dad {'gag ' * n}", f"d{n}") for n in range(60)])
    data = Collection("c", corpus, {}, {})
    dev = DevSet(HELD_OUT, {"q": "gag kak"}, {"q": ["p0"]})
    evaluator = dev_evaluator(data, dev, base, limit=7, seed=0)
    for method in ("dense", "bm25"):
        run = retrieve(data, dev.queries, replace(base, method=method))
        assert set(list(run["q"])[:3]) <= set(evaluator.corpus_ids)
    assert len(evaluator.corpus_ids) == 7


def test_the_evaluator_is_deterministic_and_draws_questions_by_the_seed(base):
    data = planted_collection(concepts=12)
    dev, _ = choose_dev(data, [], seed=0)
    drawn = [dev_evaluator(data, dev, base, 12, seed) for seed in (1, 1, 2)]
    assert [each.queries_ids for each in drawn[:2]] == [drawn[0].queries_ids] * 2
    assert [each.corpus_ids for each in drawn[:2]] == [drawn[0].corpus_ids] * 2
    assert drawn[0].queries_ids != drawn[2].queries_ids


def test_on_the_whole_corpus_it_measures_what_the_evaluation_measures(base, tiny_encoder):
    data = planted_collection(concepts=10)
    dev, _ = choose_dev(data, [], seed=0)
    evaluator = dev_evaluator(data, dev, base, limit=1000, seed=0)
    assert len(evaluator.corpus_ids) == len(data.corpus) and len(dev.questions) == len(split_queries(data, "dev"))
    found = evaluator(SentenceTransformer(str(tiny_encoder), device="cpu"))["dev_cosine_ndcg@10"]
    _, scores = retrieval_scores("x", data, choose_questions(data, ["dev"]), base)
    assert found == pytest.approx(np.mean(scores.loc[scores["metric"] == "ndcg@10", "value"]), abs=1e-6)


def test_without_questions_there_is_nothing_to_choose_by(base):
    data = collection(["only one"] * 3)
    dev, left = choose_dev(data, [pair(0, 0), pair(1, 1)], seed=0)
    assert (dev, len(left)) == (NOBODY, 2)
    with pytest.raises(RagbenchError, match="no question to choose a checkpoint by: add a dev split"):
        dev_evaluator(data, dev, base, limit=10, seed=0)
