import pandas as pd
import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.evaluation.cases import first_gold_ranks, funnel, named_cases, worst_cases
from ragbench.evaluation.evaluate import Outcome
from ragbench.evaluation.scores import COLUMNS
from ragbench.generation.answers import Answer


def collection(queries, qrels):
    corpus = corpus_from_rows((f"p{number}", f"Title {number}", "Text.", "d") for number in range(1, 8))
    return Collection("hand-made", corpus, {query.id: query for query in queries}, qrels)


def outcome(whole, run, answers, scores=()):
    questions = {split: [whole.queries[name] for name in rows] for split, rows in whole.qrels.items()}
    return Outcome("base", questions, run, answers, pd.DataFrame(scores, columns=COLUMNS))


def in_order(*names):
    return {name: float(10 - place) for place, name in enumerate(names)}


def answer(query_id, text, shown=(), cut=()):
    return Answer(query_id, text, tuple(shown), tuple(cut), 1, 1, 0.1, "stop")


@pytest.fixture
def five():
    """One question that stops at each step of the funnel, and one that cannot be answered."""
    names = ["lost", "unseen", "cut", "uncited", "whole"]
    queries = [*(Query(name, f"{name}?") for name in names), Query("none", "?", tags=("unanswerable",))]
    whole = collection(queries, {"test": {**{name: {"p1": 1} for name in names}, "none": {}}})
    run = {name: in_order("p2", "p3", "p1") for name in [*names, "none"]} | {"lost": in_order("p2", "p3")}
    answers = {
        "lost": answer("lost", "Text. [p1]", ["p2"]),
        "unseen": answer("unseen", "Text. [p1]", ["p2", "p3"], ["p1"]),
        "cut": answer("cut", "Text. [p1]", ["p2", "p3", "p1"], ["p1"]),
        "uncited": answer("uncited", "Text. [p2] p1", ["p2", "p3", "p1"]),
        "whole": answer("whole", "Text. [p1]", ["p2", "p3", "p1"]),
        "none": answer("none", "[none]", ["p2"]),
    }
    return whole, outcome(whole, run, answers)


def steps(table):
    assert set(table["n"]) == {table["n"].iloc[0]}
    return dict(zip(table["step"], table["questions"], strict=True)), int(table["n"].iloc[0])


def test_the_funnel_counts_how_far_the_gold_passages_came(five):
    assert steps(funnel(*five)) == ({"found": 4, "shown": 3, "shown whole": 2, "cited": 1}, 5)


def test_the_funnel_needs_one_passage_of_every_group():
    both = Query("both", "?", needs=(("p1", "p2"), ("p3",)))
    half = Query("half", "?", needs=(("p1", "p2"), ("p3",)))
    whole = collection([both, half], {"test": {name: {"p1": 1, "p2": 1, "p3": 1} for name in ("both", "half")}})
    run = {name: in_order("p2", "p3", "p4") for name in ("both", "half")}
    answers = {
        "both": answer("both", "Text. [p2] [p3]", ["p2", "p3"]),
        "half": answer("half", "Text. [p2]", ["p2", "p3"]),
    }
    assert steps(funnel(whole, outcome(whole, run, answers))) == (
        {"found": 2, "shown": 2, "shown whole": 2, "cited": 1},
        2,
    )


def test_a_cut_passage_does_no_harm_where_an_alternative_is_whole():
    whole = collection([Query("q", "?")], {"test": {"q": {"p1": 1, "p2": 1}}})
    done = outcome(whole, {"q": in_order("p1", "p2")}, {"q": answer("q", "Text. [p1]", ["p1", "p2"], ["p2"])})
    assert steps(funnel(whole, done)) == ({"found": 1, "shown": 1, "shown whole": 1, "cited": 1}, 1)


def test_a_funnel_of_unanswerable_questions_is_all_zero():
    whole = collection([Query("q", "?", tags=("unanswerable",))], {"test": {"q": {}}})
    done = outcome(whole, {"q": in_order("p1")}, {"q": answer("q", "[none]", ["p1"])})
    assert steps(funnel(whole, done)) == (dict.fromkeys(["found", "shown", "shown whole", "cited"], 0), 0)


def test_first_gold_ranks_are_those_of_the_best_gold_passage():
    queries = [Query(name, "?") for name in ("first", "later", "never", "none")]
    qrels = {
        "dev": {"first": {"p2": 1, "p3": 1}},
        "test": {"later": {"p1": 0, "p3": 2}, "never": {"p7": 1}, "none": {}},
    }
    whole = collection(queries, qrels)
    run = {name: in_order("p1", "p2", "p3") for name in ("first", "later", "never", "none")}
    table = first_gold_ranks(whole, run, outcome(whole, run, {}).questions)
    assert table[["split", "query_id"]].values.tolist() == [["dev", "first"], ["test", "later"], ["test", "never"]]
    assert table["rank"].tolist()[:2] == [2, 3] and table["rank"].isna().tolist() == [False, False, True]


def scored(*rows, metric="answer_f1"):
    return [("base", split, metric, query_id, value) for split, query_id, value in rows]


def test_a_case_tells_what_was_shown_cut_and_missed():
    whole = collection([Query("q", "Which?", "That. [p1]")], {"test": {"q": {"p1": 1, "p3": 1, "p6": 1, "p7": 0}}})
    run = {"q": in_order("p2", "p1", "p4", "p3")}
    rows = [*scored(("test", "q", 0.25)), ("base", "test", "format", "q", 1.0), ("base", "test", "refusal", "q", None)]
    done = outcome(whole, run, {"q": answer("q", "This. [p2]", ["p2", "p1"], ["p1", "p4"])}, rows)
    [case] = worst_cases(whole, done, "answer_f1")
    assert (case.query, case.split, case.answer) == (whole.queries["q"], "test", done.answers["q"])
    assert case.scores == {"answer_f1": 0.25, "format": 1.0}
    assert [(p.id, gold, cut) for p, gold, cut in case.shown] == [("p2", False, False), ("p1", True, True)]
    assert [(p.id, rank) for p, rank in case.missed] == [("p3", 4), ("p6", None)]
    assert case.shown[0][0].full_text == "Title 2 Text."


def test_the_worst_questions_come_first_equal_ones_by_id_unscored_ones_never():
    names = ["e", "d", "c", "b", "a"]
    whole = collection([Query(name, "?") for name in names], {"test": {name: {"p1": 1} for name in names}})
    values = {"e": 0.0, "d": 0.5, "c": 0.1, "b": 0.5, "a": None}
    done = outcome(
        whole,
        {name: in_order("p1") for name in names},
        {name: answer(name, "x", ["p1"]) for name in names},
        scored(*(("test", name, value) for name, value in values.items())),
    )
    assert [case.query.id for case in worst_cases(whole, done, "answer_f1")] == ["e", "c", "b", "d"]
    assert [case.query.id for case in worst_cases(whole, done, "answer_f1", limit=2)] == ["e", "c"]


def test_cases_of_several_splits_keep_their_own_gold_passages():
    whole = collection([Query("q", "?"), Query("r", "?")], {"dev": {"q": {"p1": 1}}, "test": {"r": {"p2": 1}}})
    run = {"q": in_order("p1", "p2"), "r": in_order("p1", "p2")}
    answers = {name: answer(name, "x", ["p1", "p2"]) for name in ("q", "r")}
    done = outcome(whole, run, answers, scored(("dev", "q", 0.9), ("test", "r", 0.1)))
    first, second = worst_cases(whole, done, "answer_f1")
    assert (first.split, [gold for _, gold, _ in first.shown]) == ("test", [False, True])
    assert (second.split, [gold for _, gold, _ in second.shown]) == ("dev", [True, False])


def test_a_metric_that_nobody_has_gives_no_cases():
    whole = collection([Query("q", "?")], {"test": {"q": {"p1": 1}}})
    rows = scored(("test", "q", 0.5))
    done = outcome(whole, {"q": in_order("p1")}, {"q": answer("q", "x", ["p1"])}, rows)
    assert worst_cases(whole, done, "faithfulness") == []
    unscored = outcome(whole, done.run, done.answers, scored(("test", "q", None)))
    assert worst_cases(whole, unscored, "answer_f1") == []


def test_named_questions_come_in_the_order_named_without_scores_and_only_if_answered():
    names = ["a", "b", "c"]
    whole = collection(
        [Query(name, f"{name}?") for name in [*names, "d"]],
        {"dev": {"a": {"p1": 1}, "b": {"p2": 1}}, "test": {"c": {"p3": 1}, "d": {}}},
    )
    run = {name: in_order("p1", "p2", "p3") for name in [*names, "d"]}
    answers = {name: answer(name, "x", ["p1", "p2"], ["p2"]) for name in ("a", "c", "d")}
    cases = named_cases(whole, outcome(whole, run, answers, scored(("dev", "a", 0.5))), ["c", "d", "b", "a"])
    assert [(case.query.id, case.split) for case in cases] == [("c", "test"), ("d", "test"), ("a", "dev")]
    assert all(case.scores == {} and case.answer == answers[case.query.id] for case in cases)
    last, none, first = cases
    assert [(p.id, gold, cut) for p, gold, cut in last.shown] == [("p1", False, False), ("p2", False, True)]
    assert [(p.id, rank) for p, rank in last.missed] == [("p3", 3)]
    assert none.missed == () and [gold for _, gold, _ in first.shown] == [True, False]


def test_nothing_named_and_names_that_nobody_asked_give_no_cases(five):
    assert named_cases(*five, []) == []
    assert named_cases(*five, ["never asked"]) == []
