import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.errors import RagbenchError
from ragbench.retrieval.runs import ranked, read_run, reciprocal_rank_fusion, top, write_run

IDS = st.text(st.characters(exclude_categories=["Cs"]).filter(lambda c: not c.isspace()), min_size=1, max_size=6)
SCORES = st.floats(allow_nan=False, allow_infinity=False)
RUNS = st.dictionaries(IDS, st.dictionaries(IDS, SCORES, min_size=1, max_size=6), max_size=4)


@settings(max_examples=60, deadline=None)
@given(run=RUNS)
def test_a_written_run_reads_back_equal_and_best_first(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    write_run({name: ranked(found.items()) for name, found in run.items()}, path, "base")
    again = read_run(path)
    assert again == run
    for name, found in again.items():
        assert list(found) == [p for p, _ in sorted(run[name].items(), key=lambda item: (-item[1], item[0]))]


def test_a_run_file_has_trecs_six_columns(tmp_path):
    write_run({"q1": {"p2": 0.5, "p1": 0.25}, "q2": {"p1": 3.0}}, tmp_path / "deep" / "run.trec", "bm25")
    lines = (tmp_path / "deep" / "run.trec").read_text().splitlines()
    assert lines == ["q1 Q0 p2 1 0.5 bm25", "q1 Q0 p1 2 0.25 bm25", "q2 Q0 p1 1 3.0 bm25"]


def test_other_tools_can_read_the_run(tmp_path):
    import ir_measures

    write_run({"q1": {"p2": 0.5, "p1": 0.25}}, tmp_path / "run.trec", "x")
    rows = [tuple(row)[:3] for row in ir_measures.read_trec_run(str(tmp_path / "run.trec"))]
    assert rows == [("q1", "p2", 0.5), ("q1", "p1", 0.25)]


def test_lines_in_any_order_and_tabs_are_read_by_score(tmp_path):
    (tmp_path / "run").write_text("q Q0 low 1 1.5 x\nq\tQ0\thigh\t2\t9e1\tx\nr Q0 z 1 1 x\nq Q0 mid 3 2 x\n")
    assert read_run(tmp_path / "run") == {"q": {"high": 90.0, "mid": 2.0, "low": 1.5}, "r": {"z": 1.0}}
    assert list(read_run(tmp_path / "run")["q"]) == ["high", "mid", "low"]


@pytest.mark.parametrize("bad", [b"q Q0 p 1 0.5", b"q Q0 p 1 high x", b"q Q0 p 1 0.5 x y", b"", b"q Q0 p 1 nan x"])
def test_a_bad_line_is_named_by_file_and_number(tmp_path, bad):
    (tmp_path / "broken.trec").write_bytes(b"q Q0 p1 1 2.0 x\n" + bad + b"\nq Q0 p2 3 1.0 x\n")
    with pytest.raises(RagbenchError, match=r"broken\.trec, line 2"):
        read_run(tmp_path / "broken.trec")


def test_a_run_that_is_not_utf8_is_an_error_of_ours(tmp_path):
    (tmp_path / "broken.trec").write_bytes(b"q Q0 p\xff 1 2.0 x\n")
    with pytest.raises(RagbenchError, match=r"broken\.trec"):
        read_run(tmp_path / "broken.trec")


def test_a_missing_run_is_an_error_of_ours(tmp_path):
    with pytest.raises(RagbenchError, match=r"absent\.trec"):
        read_run(tmp_path / "absent.trec")


def test_fusion_by_hand():
    first = {"q": {"a": 9.0, "b": 8.0, "c": 7.0}}
    second = {"q": {"c": 0.3, "d": 0.2, "a": 0.1}}
    expected = {"a": 1 / 61 + 1 / 63, "c": 1 / 63 + 1 / 61, "b": 1 / 62, "d": 1 / 62}
    fused = reciprocal_rank_fusion([first, second], depth=10)["q"]
    assert fused == pytest.approx(expected)
    assert list(fused) == ["a", "c", "b", "d"]  # equal sums by id


def test_fusion_keeps_the_depth_best_and_takes_another_constant():
    runs = [{"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 5.0, "c": 4.0}}]
    fused = reciprocal_rank_fusion(runs, depth=2, constant=1)["q"]
    assert fused == pytest.approx({"b": 1 / 3 + 1 / 2, "a": 1 / 2})


def test_fusion_keeps_queries_that_only_one_run_has():
    fused = reciprocal_rank_fusion([{"q": {"a": 1.0}, "none": {}}, {"r": {"b": 1.0}}], depth=5)
    assert fused == {"q": {"a": 1 / 61}, "none": {}, "r": {"b": 1 / 61}}


@settings(max_examples=50, deadline=None)
@given(run=RUNS)
def test_fusing_a_run_with_itself_keeps_its_order(run):
    ordered = {name: ranked(found.items()) for name, found in run.items()}
    fused = reciprocal_rank_fusion([ordered, ordered], depth=100)
    assert {name: list(found) for name, found in fused.items()} == {n: list(found) for n, found in ordered.items()}


def test_top_is_the_first_k_and_empty_for_an_unknown_query():
    run = {"q": {"b": 3.0, "a": 2.0, "c": 1.0}}
    assert (top(run, "q", 2), top(run, "q", 9), top(run, "other", 2)) == (["b", "a"], ["b", "a", "c"], [])
