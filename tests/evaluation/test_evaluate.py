import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.beir import read_collection
from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import citation_precision, citation_recall, conforms, refusal, token_f1
from ragbench.evaluation.evaluate import (
    System,
    answer_table,
    choose_questions,
    compare_retrieval,
    context_table,
    evaluate,
    retrieval_of_others,
    retrieval_scores,
)
from ragbench.evaluation.ragas_offline import answer_similarities
from ragbench.evaluation.scores import COLUMNS, summarise
from ragbench.generation.answers import Answer
from ragbench.generation.generate import Generator
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever

RANKING = {"ndcg@10", "recall@5", "recall@100", "mrr@10", "precision@5"}
WITH_REFERENCE = {"answer_em", "answer_f1", "answer_similarity"}
CITED = {"citation_precision", "citation_recall"}
CONTEXT = {"context_precision", "context_recall"}
ALWAYS = {"format", "refusal"}


@pytest.fixture
def toy(toy_folder):
    return read_collection(toy_folder)


@pytest.fixture
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


@pytest.fixture
def base(tiny_encoder, tiny_generator):
    return System(
        "base",
        Retriever(model=str(tiny_encoder), device="cpu", dtype="float32"),
        Generator(model=str(tiny_generator), contexts=2, max_new_tokens=6, device="cpu", dtype="float32"),
    )


def answered(query_id, text, context_ids=(), reason="stop"):
    return Answer(query_id, text, tuple(context_ids), (), 10, 5, 0.1, reason)


def values_of(table, query_id):
    rows = table[table["query_id"] == query_id]
    assert not rows.duplicated("metric").any()
    return dict(zip(rows["metric"], rows["value"], strict=True))


def many_questions(train=30, test=20):
    qrels = {"train": {f"a{i}": {"p": 1} for i in range(train)}, "test": {f"b{i}": {"p": 1} for i in range(test)}}
    queries = {name: Query(name, "?") for split in qrels.values() for name in split}
    return Collection("many", corpus_from_rows([("p", "t", "x", "d")]), queries, qrels)


def test_evaluate_runs_the_whole_chain(toy, base, encoder):
    questions = choose_questions(toy, ["train", "test"])
    outcome = evaluate(base, toy, questions, encoder=encoder)
    assert outcome.system == "base" and set(outcome.run) == set(outcome.answers) == {"q1", "q2", "q3"}
    assert list(outcome.scores.columns) == COLUMNS and set(outcome.scores["system"]) == {"base"}
    for query_id, found in outcome.run.items():
        assert outcome.answers[query_id].context_ids == tuple(found)[:2]
    places = {(row.query_id, row.split) for row in outcome.scores.itertuples()}
    assert places == {("q1", "train"), ("q2", "test"), ("q3", "test")}


def test_what_was_not_asked_is_still_scored_on_its_retrieval(toy, base, encoder):
    outcome = evaluate(base, toy, {"test": [toy.queries["q3"]]}, encoder=encoder)
    others = retrieval_of_others(toy, outcome, base.retriever)
    assert set(others["query_id"]) == {"q2"} and set(others["system"]) == {"base"}
    whole = evaluate(base, toy, choose_questions(toy, ["test"]), encoder=encoder)
    expected = values_of(whole.scores, "q2")
    assert values_of(others, "q2") == {name: expected[name] for name in RANKING}


def test_each_question_has_the_metrics_that_apply_to_it(toy, base, encoder):
    scores = evaluate(base, toy, choose_questions(toy, ["train", "test"]), encoder=encoder).scores
    everything = RANKING | WITH_REFERENCE | CITED | CONTEXT | ALWAYS
    metrics = {query_id: set(values_of(scores, query_id)) for query_id in ("q1", "q2", "q3")}
    assert metrics == {"q1": everything, "q2": everything, "q3": ALWAYS}
    assert scores["value"].notna().all() and scores["value"].between(-1, 1).all()


def test_the_values_follow_from_the_run_and_the_answers(toy, base, encoder):
    outcome = evaluate(base, toy, choose_questions(toy, ["test"]), encoder=encoder)
    answer, reference = outcome.answers["q2"], toy.queries["q2"].answer
    values = values_of(outcome.scores, "q2")
    ranks = [list(outcome.run["q2"]).index(name) + 1 for name in ("p2", "p3")]
    assert values["mrr@10"] == pytest.approx(1 / min(ranks))
    assert values["context_recall"] == len({"p2", "p3"} & set(answer.context_ids)) / 2
    assert values["answer_f1"] == token_f1(answer.answer, reference)
    assert values["answer_similarity"] == pytest.approx(answer_similarities(encoder, [answer.answer], [reference])[0])
    assert values["refusal"] == refusal(answer.answer, answerable=True)


def test_evaluating_twice_gives_the_same_scores(toy, base, encoder, monkeypatch, tmp_path):
    questions = choose_questions(toy, ["train", "test"])
    first = evaluate(base, toy, questions, encoder=encoder)
    monkeypatch.setenv("RAGBENCH_CACHE", str(tmp_path / "another"))
    second = evaluate(base, toy, questions, encoder=encoder)
    pd.testing.assert_frame_equal(first.scores, second.scores)
    assert summarise(first.scores) == summarise(second.scores)


def test_answers_are_scored_as_the_metrics_say(toy, encoder):
    text = "Dogs bark. [p2] [p9]"
    queries = [toy.queries["q2"]]
    values = values_of(answer_table(toy, "test", queries, {"q2": answered("q2", text)}, encoder, r".*\]"), "q2")
    groups = (frozenset({"p2"}), frozenset({"p3"}))
    assert values["answer_f1"] == pytest.approx(2 * 2 / (2 + 4)) and values["answer_em"] == 0
    assert values["citation_precision"] == citation_precision(text, {"p2", "p3"}) == 0.5
    assert values["citation_recall"] == citation_recall(text, groups) == 0.5
    assert values["format"] == conforms(text, r".*\]") == 1


def test_a_failed_answer_is_missing_never_zero_and_still_counts(toy, encoder):
    queries = [toy.queries["q2"], toy.queries["q3"]]
    answers = {"q2": answered("q2", "", reason="error"), "q3": answered("q3", "The documents do not say. [none]")}
    table = answer_table(toy, "test", queries, answers, encoder, ".*")
    failed = values_of(table, "q2")
    assert set(failed) == WITH_REFERENCE | CITED | ALWAYS and all(np.isnan(list(failed.values())))
    summary = summarise(table.assign(system="base", split="test")[COLUMNS])["base"]["test"]
    assert summary["refusal"] == {"mean": 1.0, "ci": None, "n": 2, "scored": 1}
    assert summary["answer_f1"] == {"mean": None, "ci": None, "n": 1, "scored": 0}


def test_an_empty_answer_that_did_not_fail_scores_zero(toy, encoder):
    values = values_of(answer_table(toy, "train", [toy.queries["q1"]], {"q1": answered("q1", "")}, encoder, ".+"), "q1")
    assert values == dict.fromkeys(WITH_REFERENCE | CITED | {"format"}, 0.0) | {"refusal": 1.0}


def test_an_unanswerable_question_is_judged_by_refusal_alone(toy, encoder):
    for text, right in (("The documents do not say. [none]", 1.0), ("Thirty years. [p1]", 0.0)):
        table = answer_table(toy, "test", [toy.queries["q3"]], {"q3": answered("q3", text)}, encoder, ".*")
        assert values_of(table, "q3") == {"format": 1.0, "refusal": right}


def test_a_question_without_a_reference_is_not_compared_with_one(toy, encoder):
    query = Query("q1", "What do cats do all day?")
    table = answer_table(toy, "train", [query], {"q1": answered("q1", "They sleep. [p1]")}, encoder, ".*")
    assert set(values_of(table, "q1")) == CITED | ALWAYS


def test_context_scores_count_what_was_shown(toy):
    answers = {"q2": answered("q2", "x", ["p3", "p1"]), "q3": answered("q3", "x", ["p1"])}
    table = context_table(toy, "test", [toy.queries["q2"], toy.queries["q3"]], answers)
    assert values_of(table, "q2") == {"context_precision": 0.5, "context_recall": 0.5}
    assert values_of(table, "q3") == {}


def test_retrieval_methods_are_compared_on_the_same_questions(toy, tiny_encoder):
    questions = choose_questions(toy, ["train", "test"])
    retriever = Retriever(model=str(tiny_encoder), device="cpu", dtype="float32", depth=3)
    table = compare_retrieval(toy, questions, retriever)
    assert table.groupby("system").size().to_dict() == {"dense": 10, "bm25": 10, "fusion": 10}
    _, dense = retrieval_scores("dense", toy, questions, retriever)
    pd.testing.assert_frame_equal(table[table["system"] == "dense"].reset_index(drop=True), dense)
    bm25 = table[(table["system"] == "bm25") & (table["metric"] == "mrr@10")]
    assert dict(zip(bm25["query_id"], bm25["value"], strict=True))["q1"] == 1


def test_all_questions_are_chosen_without_a_limit():
    chosen = choose_questions(many_questions(), ["test", "train"])
    assert list(chosen) == ["test", "train"] and [len(queries) for queries in chosen.values()] == [20, 30]
    assert choose_questions(many_questions(), ["test"], limit=99) == choose_questions(many_questions(), ["test"])


def test_a_limit_draws_over_all_splits_by_seed():
    collection = many_questions()
    drawn = [choose_questions(collection, ["train", "test"], limit=12, seed=seed) for seed in (1, 1, 2)]
    names = [[query.id for queries in chosen.values() for query in queries] for chosen in drawn]
    assert [len(set(chosen)) for chosen in names] == [12, 12, 12]
    assert names[0] == names[1] != names[2]
    assert all(query.id in collection.qrels[split] for split, queries in drawn[0].items() for query in queries)


def sizes(train, test, limit, order=("train", "test")):
    chosen = choose_questions(many_questions(train, test), list(order), limit=limit)
    return {split: len(queries) for split, queries in chosen.items()}


@pytest.mark.parametrize("order", [("train", "test"), ("test", "train")])
def test_a_limit_is_shared_evenly_among_the_splits_whatever_their_size(order):
    assert sizes(400, 20, 30, order) == {"train": 15, "test": 15}


def test_a_split_that_has_too_few_gives_all_and_the_others_make_up_for_it():
    assert sizes(400, 5, 30) == {"train": 25, "test": 5}
    assert sizes(30, 20, 49) == {"train": 29, "test": 20}


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_a_limit_that_does_not_divide_is_met_all_the_same(limit):
    counts = sizes(30, 20, limit)
    assert sum(counts.values()) == limit and (limit < 2 or max(counts.values()) - min(counts.values()) <= 1)


def test_a_split_without_questions_is_left_out_and_takes_no_share():
    assert sizes(30, 0, 10) == {"train": 10}
    assert sizes(30, 0, 0) == {"train": 30}


def test_drawn_questions_keep_the_order_of_splits_and_of_their_own():
    collection = many_questions()
    chosen = choose_questions(collection, ["test", "train"], limit=12)
    assert list(chosen) == ["test", "train"]
    for split, queries in chosen.items():
        places = [list(collection.qrels[split]).index(query.id) for query in queries]
        assert places == sorted(places)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=4), limit=st.integers(1, 40), seed=st.integers(0, 3))
def test_splits_differ_by_more_than_one_question_only_where_one_has_no_more(counts, limit, seed):
    qrels = {f"s{place}": {f"q{place}-{i}": {"p": 1} for i in range(count)} for place, count in enumerate(counts)}
    queries = {name: Query(name, "?") for split in qrels.values() for name in split}
    collection = Collection("many", corpus_from_rows([("p", "t", "x", "d")]), queries, qrels)
    chosen = choose_questions(collection, list(qrels), limit=limit, seed=seed)
    drawn = [len(chosen.get(f"s{place}", [])) for place in range(len(counts))]
    assert sum(drawn) == min(limit, sum(counts)) and all(chosen.values())
    short = [got for got, there in zip(drawn, counts, strict=True) if got < there]
    assert not short or max(drawn) - min(short) <= 1
    assert len({query.id for found in chosen.values() for query in found}) == sum(drawn)


def test_a_missing_split_names_those_there_are():
    with pytest.raises(RagbenchError, match=r"'dev'.*train, test"):
        choose_questions(many_questions(), ["train", "dev"])
