import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.collection.schema import Query
from ragbench.evaluation.ranking import RANKING_METRICS, ranking_scores
from ragbench.retrieval.runs import ranked

PASSAGES = [f"p{number:03}" for number in range(130)]


def scores(qrels, run, queries=None):
    table = ranking_scores([Query(name, "?") for name in queries or qrels], qrels, run)
    return {(row.query_id, row.metric): row.value for row in table.itertuples()}


def expected(gold, order):
    """Compute the five metrics from their textbook formulas for passages in the order of the run."""
    gains = [gold.get(name, 0) for name in order]
    relevant = sum(grade > 0 for grade in gold.values())
    hits = [gain > 0 for gain in gains]

    def dcg(values):
        return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(values[:10], start=1))

    return {
        "ndcg@10": dcg(gains) / dcg(sorted(gold.values(), reverse=True)),
        "recall@5": sum(hits[:5]) / relevant,
        "recall@100": sum(hits[:100]) / relevant,
        "mrr@10": next((1 / rank for rank, hit in enumerate(hits[:10], start=1) if hit), 0.0),
        "precision@5": sum(hits[:5]) / 5,
    }


def run_in_order(names):
    return {"q": {name: float(len(names) - place) for place, name in enumerate(names)}}


def assert_metrics(gold, order):
    found = scores({"q": gold}, run_in_order(order))
    assert found == pytest.approx({("q", name): value for name, value in expected(gold, order).items()})


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_all_metrics_equal_their_formulas(data):
    order = data.draw(st.permutations(PASSAGES))[: data.draw(st.integers(1, 130))]
    names = st.sampled_from([*order[:12], *PASSAGES, "never-found"])
    gold = data.draw(st.dictionaries(names, st.integers(0, 3), min_size=1, max_size=8))
    gold[data.draw(names)] = data.draw(st.integers(1, 3))
    assert_metrics(gold, order)


@pytest.mark.parametrize("rank", [1, 5, 6, 10, 11, 100, 101])
def test_a_single_gold_passage_at_each_cut_off(rank):
    found = scores({"q": {PASSAGES[rank - 1]: 1}}, run_in_order(PASSAGES))
    assert found["q", "mrr@10"] == pytest.approx(1 / rank if rank <= 10 else 0)
    assert found["q", "ndcg@10"] == pytest.approx(1 / math.log2(rank + 1) if rank <= 10 else 0)
    assert found["q", "recall@5"] == (rank <= 5)
    assert found["q", "recall@100"] == (rank <= 100)
    assert found["q", "precision@5"] == (0.2 if rank <= 5 else 0)


def test_mrr_at_10_of_a_gold_passage_only_below_ten_is_zero_even_with_others():
    found = scores({"q": {"p010": 1, "p050": 1}}, run_in_order(PASSAGES))
    assert found["q", "mrr@10"] == 0 and found["q", "recall@100"] == 1


def test_graded_relevance_by_hand():
    found = scores({"q": {"a": 3, "b": 1, "c": 2}}, {"q": {"b": 3.0, "x": 2.0, "a": 1.0}})
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert found["q", "ndcg@10"] == pytest.approx((1 + 3 / 2) / ideal)
    assert found["q", "recall@5"] == pytest.approx(2 / 3)
    assert found["q", "precision@5"] == pytest.approx(2 / 5)


def test_a_judged_zero_is_not_gold():
    found = scores({"q": {"a": 0, "b": 1}}, {"q": {"a": 2.0, "b": 1.0}})
    assert found["q", "mrr@10"] == 0.5 and found["q", "recall@5"] == 1 and found["q", "precision@5"] == 0.2


@pytest.mark.parametrize("run", [{}, {"q": {}}, {"other": {"a": 1.0}}])
def test_a_query_missing_from_the_run_scores_zero(run):
    assert scores({"q": {"a": 1}}, run) == {("q", name): 0.0 for name in RANKING_METRICS}


def test_a_missing_query_does_not_disturb_the_others():
    found = scores({"q": {"a": 1}, "r": {"b": 1}}, {"q": {"a": 1.0}})
    assert found["q", "ndcg@10"] == 1 and found["r", "ndcg@10"] == 0


def test_unanswerable_queries_are_left_out():
    found = scores({"q": {"a": 1}, "none": {}, "zero": {"a": 0}}, {"q": {"a": 1.0}, "none": {"a": 1.0}})
    assert {name for name, _ in found} == {"q"}
    only = ranking_scores([Query("none", "?")], {"none": {}}, {"none": {"a": 1.0}})
    assert len(only) == 0 and list(only.columns) == ["metric", "query_id", "value"]


def test_only_the_asked_queries_are_scored():
    found = scores({"q": {"a": 1}, "r": {"a": 1}}, {"q": {"a": 1.0}, "r": {"a": 1.0}}, queries=["r"])
    assert {name for name, _ in found} == {"r"}


def test_every_query_has_one_row_for_each_metric():
    table = ranking_scores([Query("q", "?"), Query("r", "?")], {"q": {"a": 1}, "r": {"a": 1}}, {"q": {"a": 1.0}})
    assert len(table) == 10 and not table.duplicated(["metric", "query_id"]).any()
    assert set(table["metric"]) == {"ndcg@10", "recall@5", "recall@100", "mrr@10", "precision@5"}


# The generator is shown the run's first passages, so a tie must not be ordered otherwise by the metrics.
def test_equal_scores_rank_as_the_run_lists_them():
    for gold, rank in (("a", 1), ("b", 2), ("c", 3)):
        found = scores({"q": {gold: 1}}, {"q": ranked([("c", 0.5), ("a", 0.5), ("b", 0.5)])})
        assert found["q", "mrr@10"] == pytest.approx(1 / rank)
        assert found["q", "ndcg@10"] == pytest.approx(1 / math.log2(rank + 1))


def test_scores_that_differ_only_in_double_precision_rank_as_the_run_lists_them():
    found = scores({"q": {"b": 1}}, {"q": {"a": 1 / 61 + 1e-12, "b": 1 / 61}})
    assert found["q", "mrr@10"] == 0.5
    assert found["q", "ndcg@10"] == pytest.approx(1 / math.log2(3))
