import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.evaluation.comparison import (
    as_records,
    changed_most,
    compare,
    compare_each,
    corrected,
    holm,
    paired,
    paired_ranks,
    randomization_test,
)
from ragbench.evaluation.evaluate import Outcome
from ragbench.evaluation.scores import COLUMNS, bootstrap_interval
from ragbench.generation.answers import Answer
from ragbench.retrieval.retrieve import Retriever

P_VALUES = st.lists(st.floats(0, 1), max_size=20)


def rows(system, values, split="test", metric="ndcg@10"):
    return [(system, split, metric, name, value) for name, value in values.items()]


def table(*parts):
    return pd.DataFrame([row for part in parts for row in part], columns=COLUMNS)


def two(before, after, **where):
    return table(rows("base", before, **where), rows("retriever", after, **where))


def numbered(values):
    return {f"q{number:03d}": value for number, value in enumerate(values)}


def test_a_difference_is_the_mean_of_system_minus_baseline_over_the_pairs():
    [found] = compare(two({"a": 0.2, "b": 0.5, "c": 0.0}, {"c": 0.6, "a": 0.4, "b": 0.4}), "base", "retriever")
    assert (found.split, found.metric, found.baseline, found.system) == ("test", "ndcg@10", "base", "retriever")
    assert found.difference == pytest.approx((0.2 - 0.1 + 0.6) / 3)
    assert found.n == 3


def test_the_interval_is_the_bootstrap_of_the_differences_and_not_of_the_scores():
    random = np.random.default_rng(0)
    before = random.random(60)
    after = before + random.normal(0.02, 0.01, 60)
    [found] = compare(two(numbered(before), numbered(after)), "base", "retriever", seed=5)
    assert found.ci == bootstrap_interval(np.array(list(after - before)), seed=5)
    assert 0 < found.ci[0] < found.difference < found.ci[1] < 0.03


def test_a_value_missing_for_either_system_leaves_its_pair_out():
    before = {"a": 0.0, "b": None, "c": 0.5, "d": np.nan, "e": 0.1}
    after = {"a": 0.4, "b": 1.0, "c": None, "d": np.nan, "e": 0.3}
    [found] = compare(two(before, after), "base", "retriever")
    assert (found.n, found.difference) == (2, pytest.approx(0.3))


def test_splits_and_metrics_are_compared_apart_in_the_order_of_the_table():
    scores = pd.concat(
        [
            two({"a": 0.0}, {"a": 0.5}, split=split, metric=metric)
            for split, metric in (("test", "recall@5"), ("test", "answer_f1"), ("ood", "recall@5"))
        ]
    )
    found = compare(scores, "base", "retriever")
    assert [(c.split, c.metric) for c in found] == [("test", "recall@5"), ("test", "answer_f1"), ("ood", "recall@5")]
    assert [(c.difference, c.n) for c in found] == [(0.5, 1)] * 3


def test_one_pair_has_neither_interval_nor_p_and_none_has_no_difference():
    [one] = compare(two({"a": 0.0}, {"a": 0.5}), "base", "retriever")
    assert (one.difference, one.ci, one.p_value, one.p_holm, one.n) == (0.5, None, None, None, 1)
    [none] = compare(two({"a": 0.0}, {"b": 0.5}), "base", "retriever")
    assert (none.difference, none.ci, none.p_value, none.p_holm, none.n) == (None, None, None, None, 0)


def test_other_systems_in_the_table_change_nothing():
    scores = two(numbered([0.1, 0.2, 0.3]), numbered([0.2, 0.2, 0.7]))
    more = pd.concat([table(rows("generator", numbered([1.0, 1.0, 1.0]), split="dev")), scores])
    assert compare(more, "base", "retriever") == compare(scores, "base", "retriever")


def test_a_system_without_scores_is_an_error_that_names_those_there_are():
    with pytest.raises(RagbenchError, match=r"no scores of the system 'tuned'; there are scores of: base, retriever"):
        compare(two({"a": 0.0}, {"a": 0.5}), "base", "tuned")


def test_a_question_scored_twice_is_an_error():
    scores = two({"a": 0.0}, {"a": 0.5})
    with pytest.raises(ValueError, match="duplicate"):
        compare(pd.concat([scores, scores]), "base", "retriever")


def test_pairs_hold_both_values_and_keep_what_is_missing():
    pairs = paired(two({"b": 0.1, "a": 0.2}, {"a": 0.3, "c": 0.4}), "base", "retriever")
    assert list(pairs.columns) == ["split", "metric", "query_id", "before", "after"]
    assert pairs["query_id"].tolist() == ["a", "b", "c"]
    assert pairs["before"].fillna(-1).tolist() == [0.2, 0.1, -1]
    assert pairs["after"].fillna(-1).tolist() == [0.3, -1, 0.4]


VALUES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1, width=16) | st.none(), min_size=1)


@settings(max_examples=25, deadline=None)
@given(before=VALUES, after=VALUES, data=st.data())
def test_neither_the_order_of_rows_nor_a_question_of_one_system_changes_a_comparison(before, after, data):
    scores = two(before, after)
    expected = compare(scores, "base", "retriever", seed=3)
    order = data.draw(st.permutations(range(len(scores))))
    assert compare(scores.iloc[order], "base", "retriever", seed=3) == expected
    system = data.draw(st.sampled_from(["base", "retriever"]))
    lonely = pd.concat([table(rows(system, {"0": 0.5})), scores])
    assert compare(lonely, "base", "retriever", seed=3) == expected


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.tuples(st.floats(0, 1, width=16), st.floats(0, 1, width=16)), min_size=2, max_size=8))
def test_comparing_the_other_way_round_turns_the_signs(values):
    before, after = (numbered(side) for side in zip(*values, strict=True))
    [there] = compare(two(before, after), "base", "retriever")
    [back] = compare(two(before, after), "retriever", "base")
    assert back.difference == pytest.approx(-there.difference)
    assert back.p_value == pytest.approx(there.p_value)


# The randomization test


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.1, 0.2, 0.3], 2 / 8),  # only all plus and all minus are as far from 0
        ([0.1, -0.2, 0.4], 6 / 8),  # only .4 - .2 - .1 and its mirror are nearer
        ([0.5] * 6, 2 / 64),
        ([0.5, -0.5], 1.0),
        ([0.3], 1.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([], 1.0),
    ],
)
def test_the_exact_p_is_the_share_of_signs_that_give_a_mean_as_far_from_0(differences, expected):
    assert randomization_test(np.array(differences)) == pytest.approx(expected)


def test_questions_that_did_not_change_do_not_change_p():
    moved = np.array([0.1, 0.3, 0.2, -0.1, 0.4])
    assert randomization_test(np.concatenate([moved, np.zeros(200)])) == randomization_test(moved)


def test_a_large_sample_agrees_with_the_t_test_and_the_same_seed_gives_the_same_p():
    from scipy.stats import ttest_1samp

    differences = np.random.default_rng(4).normal(0.05, 0.2, 80)
    p_value = randomization_test(differences, seed=1)
    assert p_value == pytest.approx(ttest_1samp(differences, 0).pvalue, abs=0.01)
    assert p_value == randomization_test(differences, seed=1) != randomization_test(differences, seed=2)


def test_without_a_true_difference_about_5_of_100_tests_are_below_05():
    random = np.random.default_rng(6)
    p_values = [randomization_test(random.choice([-1.0, 1.0], 10) * random.random(10)) for _ in range(200)]
    assert 2 <= sum(p <= 0.05 for p in p_values) <= 20


def test_systems_that_are_the_same_differ_by_nothing_with_p_1():
    values = numbered(np.random.default_rng(7).random(30))
    [found] = compare(two(values, values), "base", "retriever")
    assert (found.difference, found.ci, found.p_value, found.p_holm) == (0.0, (0.0, 0.0), 1.0, 1.0)


# Holm's correction


def test_holm_multiplies_the_smallest_p_by_the_number_of_tests_and_so_on_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_1_and_takes_nothing():
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(P_VALUES)
def test_holm_only_raises_p_and_keeps_it_a_probability_and_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    for (p, q), (other_p, other_q) in itertools.pairwise(sorted(zip(p_values, adjusted, strict=True))):
        assert q <= other_q
        assert p != other_p or q == other_q


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_the_order_of_the_tests(p_values, random):
    places = list(range(len(p_values)))
    random.shuffle(places)
    shuffled = holm([p_values[place] for place in places])
    assert shuffled == [holm(p_values)[place] for place in places]


@given(P_VALUES.filter(bool))
def test_holm_is_bonferroni_for_the_smallest_p_and_nothing_for_a_single_one(p_values):
    assert min(holm(p_values)) == pytest.approx(min(1, min(p_values) * len(p_values)))
    assert holm(p_values[:1]) == p_values[:1]


def test_all_tested_comparisons_are_one_family_and_untested_ones_do_not_count():
    strong, weak = numbered([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]), numbered([0.1, 0.2, -0.3, 0.1, 0.2, 0.3])
    nothing = numbered([0.0] * 6)
    scores = pd.concat(
        [two(nothing, strong, metric="a"), two(nothing, weak, metric="b"), two({"x": 0.0}, {"y": 0.0}, metric="c")]
    )
    first, second, untested = compare(scores, "base", "retriever")
    assert first.p_holm == pytest.approx(2 * first.p_value) and first.p_value == 2 / 64
    assert second.p_holm == second.p_value
    assert untested.p_holm is None


def test_joined_lists_are_corrected_as_one_family():
    [found] = compare(two(numbered([0.0] * 6), numbered([0.5] * 6)), "base", "retriever")
    assert found.p_holm == found.p_value
    assert [c.p_holm for c in corrected([found, found, found])] == pytest.approx([3 * found.p_value] * 3)


def test_of_systems_that_retrieve_alike_only_the_answers_are_compared_and_corrected_for():
    half = {name: value / 2 for name, value in numbered(range(6)).items()}
    scores = pd.concat([
        table(rows(system, values, metric=metric))
        for metric in ("ndcg@10", "llm_context_precision", "answer_f1")
        for system, values in (("base", numbered(range(6))), ("generator", half), ("both", half))
    ])  # fmt: skip
    pairs = [("base", "generator"), ("base", "both")]
    retrievers = {"base": Retriever(), "generator": Retriever(), "both": Retriever(model="tuned")}
    found = compare_each(scores, pairs, retrievers=retrievers)
    assert [each.metric for each in found if each.system == "generator"] == ["answer_f1"]
    assert [each.metric for each in found if each.system == "both"] == ["ndcg@10", "llm_context_precision", "answer_f1"]
    assert found[0].p_holm == pytest.approx(min(1, 4 * found[0].p_value))
    assert len(compare_each(scores, pairs)) == 6


def test_records_are_the_contracts_and_plain_json():
    scores = pd.concat([two({"a": 0.0, "b": 0.5}, {"a": 0.5, "b": 0.5}), two({"a": 0.1}, {"b": 0.1}, split="ood")])
    records = json.loads(json.dumps(as_records(compare(scores, "base", "retriever")), allow_nan=False))
    assert records[0] == {
        "split": "test",
        "metric": "ndcg@10",
        "baseline": "base",
        "system": "retriever",
        "difference": 0.25,
        "ci": [0.0, 0.5],
        "p_value": 1.0,
        "p_holm": 1.0,
        "n": 2,
    }
    assert [records[1][name] for name in ("difference", "ci", "p_value", "p_holm", "n")] == [None] * 4 + [0]


# Single questions

NAMES = ("up", "upper", "down", "same")


def in_order(*names):
    return {name: float(10 - place) for place, name in enumerate(names)}


@pytest.fixture
def whole():
    corpus = corpus_from_rows((f"p{number}", f"Title {number}", "Text.", "d") for number in range(1, 6))
    queries = {name: Query(name, f"{name}?") for name in (*NAMES, "far")}
    qrels = {"test": {name: {"p1": 1, "p5": 1, "p4": 0} for name in NAMES}, "ood": {"far": {"p1": 1}}}
    return Collection("hand-made", corpus, queries, qrels)


def outcome(whole, system, runs, values, answers=()):
    questions = {split: [whole.queries[name] for name in gold] for split, gold in whole.qrels.items()}
    scores = table(rows(system, {name: values[name] for name in NAMES}), rows(system, {"far": values["far"]}, "ood"))
    run = dict.fromkeys((*NAMES, "far"), in_order("p2", "p3", "p1")) | runs
    said = {name: Answer(name, text, (), (), 1, 1, 0.1, "stop") for name, text in answers}
    return Outcome(system, questions, run, said, scores)


@pytest.fixture
def pair(whole):
    values = {"up": 0.2, "upper": 0.0, "down": 0.9, "same": 0.4, "far": 1.0}
    before = outcome(whole, "base", {"down": in_order("p1", "p2")}, values, [("up", "Old."), ("down", "Fine.")])
    after = outcome(
        whole,
        "retriever",
        {"up": in_order("p1", "p2"), "down": in_order("p3", "p2"), "upper": {}},
        values | {"up": 0.5, "upper": 1.0, "down": 0.1, "far": 0.5},
        [("up", "New.")],
    )
    return before, after


def test_the_largest_changes_come_first_in_either_direction_and_the_unchanged_never(whole, pair):
    gained, lost = changed_most(whole, *pair, "ndcg@10")
    assert [change.query.id for change in gained] == ["upper", "up"]
    assert [(change.query.id, change.split) for change in lost] == [("down", "test"), ("far", "ood")]
    assert [change.values for change in gained] == [(0.0, 1.0), (0.2, 0.5)]
    one, other = changed_most(whole, *pair, "ndcg@10", limit=1)
    assert [change.query.id for change in (*one, *other)] == ["upper", "down"]
    back, forth = changed_most(whole, pair[1], pair[0], "ndcg@10")
    assert [c.query.id for c in back] == ["down", "far"] and [c.query.id for c in forth] == ["upper", "up"]


def test_equal_changes_stand_in_the_order_of_split_and_id(whole):
    low, high = dict.fromkeys((*NAMES, "far"), 0.0), dict.fromkeys((*NAMES, "far"), 0.5)
    gained, lost = changed_most(whole, outcome(whole, "a", {}, low), outcome(whole, "b", {}, high), "ndcg@10")
    assert [change.query.id for change in gained] == ["far", "down", "same", "up", "upper"]
    assert lost == []


def test_a_change_tells_ranks_first_passages_and_answers_before_and_after(whole, pair):
    (upper, up), (down, _) = changed_most(whole, *pair, "ndcg@10")
    assert up.query == whole.queries["up"]
    assert [(passage.id, old, new) for passage, old, new in up.gold] == [("p1", 3, 1), ("p5", None, None)]
    assert tuple(passage.id for passage in up.first) == ("p2", "p1")
    assert up.answers == ("Old.", "New.")
    assert [(passage.id, old, new) for passage, old, new in down.gold] == [("p1", 1, None), ("p5", None, None)]
    assert down.answers == ("Fine.", None)
    assert (upper.first[0].id, upper.first[1]) == ("p2", None)


def test_a_metric_that_nobody_has_gives_no_changes(whole, pair):
    assert changed_most(whole, *pair, "faithfulness") == ([], [])


def test_ranks_are_paired_by_question_and_missing_where_nothing_was_found(whole, pair):
    ranks = paired_ranks(whole, *pair)
    assert list(ranks.columns) == ["split", "query_id", "before", "after"]
    found = {row.query_id: (row.before, row.after) for row in ranks.fillna(0).itertuples()}
    assert found == {"up": (3, 1), "upper": (3, 0), "down": (1, 0), "same": (3, 3), "far": (3, 3)}
