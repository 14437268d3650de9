import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.diagnosis.attribution import (
    CELLS,
    HEADROOM,
    Attribution,
    attribute,
    cells_of,
    reached,
    scored_rows,
    shares_table,
)
from ragbench.diagnosis.evidence import STAGES
from ragbench.diagnosis.intervals import rate_interval

NAN = float("nan")
Row = tuple[str | None, float, float, float]
"""A question: its stage, and its correctness under retrieved contexts, under the gold passages, and without any."""

KNOWN: Row = ("shown", 1, 1, 1)
HELPED: Row = ("shown", 1, 1, 0)
RETRIEVER: Row = ("not found", 0, 1, 0)
GENERATOR: Row = ("shown", 0, 0, 0)
BOTH: Row = ("not shown", 0, 0, 0)
SPOILT: Row = ("shown", 0, 0, 1)


def evidence(*rows: Row, asked: bool = True, answered: bool = True) -> pd.DataFrame:
    columns = ["stage", "correctness_retrieved", "correctness_oracle", "correctness_none"]
    table = pd.DataFrame(list(rows), columns=columns).astype(dict.fromkeys(columns[1:], float))
    return table.assign(query_id=[f"q{i}" for i in range(len(rows))], asked=asked, answered=answered)


def split(*rows: Row, **settings) -> Attribution:
    found = attribute(evidence(*rows), **settings)
    assert found is not None
    return found


def values(shares) -> dict[str, float]:
    return {share.name: share.value for share in shares}


@pytest.mark.parametrize(
    ("row", "cell"),
    [
        (KNOWN, "known"),
        (("not found", 1, 0, 1), "known"),  # whatever the gold passages do to it
        (HELPED, "helped"),
        (("not found", 1, 0, 0), "helped"),
        (RETRIEVER, "retriever"),
        (("cut off", 0, 1, 1), "retriever"),
        (("shown", 0, 1, 0), "retriever"),
        (GENERATOR, "generator"),
        (BOTH, "both"),
        (("not found", 0, 0, 0), "both"),
        (("cut off", 0, 0, 0), "both"),
        (SPOILT, "spoilt"),
        (("not found", 0, 0, 1), "spoilt"),
    ],
)
def test_an_answer_falls_into_the_cell_that_its_three_answers_say(row, cell):
    found = split(row)
    assert values(found.cells) == {name: float(name == cell) for name in CELLS}
    assert found.cell(cell).query_ids == ("q0",)


def test_the_bar_for_right_is_inclusive_and_a_parameter():
    rows = [("shown", 0.5, 0.5, 0.0), ("shown", 0.49, 0.5, 0.0)]
    assert values(split(*rows).headroom)["now"] == 0.5
    assert values(split(*rows, right_from=0.4).headroom)["now"] == 1
    assert values(split(*rows, right_from=0.6).headroom)["now"] == 0


def test_the_headroom_says_how_good_it_would_be_if_one_part_were_perfect():
    found = split(KNOWN, HELPED, RETRIEVER, GENERATOR, BOTH, SPOILT, ("shown", 0, 1, 0), ("cut off", 0, 0, 0))
    assert values(found.headroom) == {"now": 2 / 8, "retriever": 4 / 8, "generator": 5 / 8, "both": 1}
    assert values(found.gains) == {"retriever": 2 / 8, "generator": 3 / 8, "both": 6 / 8}
    assert found.reachable("retriever").query_ids == ("q0", "q1", "q2", "q6")
    assert next(gain for gain in found.gains if gain.name == "generator").query_ids == ("q3", "q5", "q6")


def test_a_perfect_retriever_may_lose_what_other_passages_gave():
    found = split(("not found", 1, 0, 0), ("not found", 1, 0, 0), HELPED, HELPED)
    assert values(found.gains)["retriever"] == -0.5
    assert next(gain for gain in found.gains if gain.name == "retriever").query_ids == ()


def test_a_perfect_generator_cannot_answer_from_what_is_cut_off():
    assert values(split(("cut off", 0, 0, 0), GENERATOR).headroom)["generator"] == 0.5


def test_losses_say_where_the_passages_of_the_retrievers_errors_went():
    found = split(RETRIEVER, RETRIEVER, BOTH, ("cut off", 0, 1, 0), ("shown", 0, 1, 0), GENERATOR, SPOILT, HELPED)
    assert values(found.losses) == {"not found": 2 / 8, "not shown": 1 / 8, "cut off": 1 / 8, "shown": 1 / 8}
    assert {share.name: share.query_ids for share in found.losses}["not shown"] == ("q2",)


@pytest.mark.parametrize(("row", "right"), [(KNOWN, 1.0), (HELPED, 1.0), (GENERATOR, 0.0), (RETRIEVER, 0.0)])
def test_all_right_or_all_wrong_is_one_cell(row, right):
    found = split(*[row] * 20)
    assert values(found.headroom)["now"] == right
    assert sorted(values(found.cells).values()) == [0] * 5 + [1]
    assert sum(values(found.losses).values()) == (row is RETRIEVER)


def test_all_right_leaves_nothing_to_gain():
    assert set(values(split(*[KNOWN] * 5).gains).values()) == {0}


def test_what_lacks_a_score_under_any_condition_is_counted_but_not_scored():
    rows = [KNOWN, ("shown", NAN, 1, 1), ("shown", 1, NAN, 1), ("not found", 0, 1, NAN)]
    found = split(*rows)
    assert (found.n, found.scored) == (4, 1)
    assert values(found.cells)["known"] == 1


def test_questions_without_gold_or_that_were_not_asked_have_no_part():
    table = pd.concat(
        [
            evidence(KNOWN),
            evidence((None, 0, 0, 0)).assign(query_id="unanswerable"),
            evidence(GENERATOR, asked=False, answered=False).assign(query_id="not asked"),
        ],
        ignore_index=True,
    )
    found = attribute(table)
    assert (found.n, found.scored, values(found.cells)["known"]) == (1, 1, 1)


def test_a_failed_answer_is_counted_as_asked_and_not_as_wrong():
    table = pd.concat([evidence(KNOWN, KNOWN), evidence(GENERATOR, answered=False)], ignore_index=True)
    found = attribute(table)
    assert (found.n, found.scored, values(found.cells)["known"]) == (3, 2, 1)


@pytest.mark.parametrize(
    "table",
    [
        evidence(),
        evidence((None, 1, 1, 1), (None, 0, 0, 0)),  # unanswerable only
        evidence(KNOWN, HELPED, asked=False, answered=False),  # zero answers
        evidence(KNOWN, HELPED, answered=False),  # all of them failed
        evidence(("shown", NAN, NAN, NAN)),  # no references, or every answer failed
    ],
)
def test_without_scored_answers_there_is_no_split(table):
    assert attribute(table) is None


def test_a_single_question_leaves_nearly_everything_open():
    found = split(RETRIEVER)
    assert found.cell("retriever").value == 1
    for share in (*found.cells, *found.losses, found.reachable("now"), found.reachable("retriever")):
        assert (share.low, share.high) == pytest.approx(rate_interval(int(share.value), 1)), share.name
    assert all(np.isnan([gain.low, gain.high]).all() for gain in found.gains)


@pytest.mark.parametrize("n", [1, 8])
def test_what_both_perfect_would_give_is_certain_by_definition_and_not_by_measurement(n):
    both = split(*[HELPED] * n).reachable("both")
    assert (both.value, both.low, both.high) == (1, 1, 1)


def test_the_names_of_rows_do_not_matter():
    table = evidence(KNOWN, RETRIEVER, GENERATOR, BOTH).set_axis([7, 3, 11, 2])
    assert attribute(table) == attribute(table.reset_index(drop=True))


def test_the_same_seed_gives_the_same_intervals():
    rows = [KNOWN, HELPED, RETRIEVER, GENERATOR, BOTH] * 60
    assert split(*rows, seed=3) == split(*rows, seed=3)
    one, other = split(*rows, seed=3), split(*rows, seed=4)
    assert values(one.cells) == values(other.cells)
    assert [(s.low, s.high) for s in one.cells] != [(s.low, s.high) for s in other.cells]


def test_all_shares_are_resampled_with_the_same_draws():
    """Two cells that share all questions must mirror each other in every draw, and so at both ends."""
    found = split(*[HELPED] * 13, *[GENERATOR] * 24)
    right, wrong = found.cell("helped"), found.cell("generator")
    assert (right.low, right.high) == pytest.approx((1 - wrong.high, 1 - wrong.low))
    gain = next(gain for gain in found.gains if gain.name == "generator")
    assert (gain.low, gain.high) == pytest.approx((wrong.low, wrong.high))


def test_a_gain_is_paired_and_so_surer_than_two_shares_apart():
    found = split(*[HELPED] * 20, *[RETRIEVER] * 5, *[GENERATOR] * 20)
    gain = next(gain for gain in found.gains if gain.name == "retriever")
    now, then = found.reachable("now"), found.reachable("retriever")
    assert gain.value == pytest.approx(then.value - now.value)
    assert gain.low > 0 > then.low - now.high  # each by itself would leave it open


def test_intervals_shrink_with_the_root_of_the_questions():
    rows = [HELPED, GENERATOR, GENERATOR]
    few, many = split(*rows * 10).cell("helped"), split(*rows * 160).cell("helped")
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.15)
    error = (1 / 3 * 2 / 3 / 480) ** 0.5
    assert (many.low, many.high) == pytest.approx((1 / 3 - 1.96 * error, 1 / 3 + 1.96 * error), abs=0.006)


def test_what_was_not_seen_in_a_few_questions_is_not_ruled_out():
    """None of eight: Wilson's upper bound is 32 %; a bootstrap of eight zeros says 0 % to 0 %."""
    found = split(*[HELPED] * 8)
    assert found.cell("retriever").high > 0.2
    assert found.cell("helped").low < 0.8


@pytest.mark.parametrize("row", [KNOWN, HELPED, RETRIEVER, GENERATOR, BOTH, SPOILT])
@pytest.mark.parametrize("n", [2, 8, 30])
def test_a_share_without_variance_has_wilsons_interval(row, n):
    found = split(*[row] * n)
    for share in found.cells:
        assert (share.low, share.high) == pytest.approx(rate_interval(round(share.value * n), n)), share.name
    now = found.reachable("now")
    assert (now.low, now.high) == pytest.approx(rate_interval(round(now.value * n), n))


ROWS = st.lists(
    st.tuples(
        st.sampled_from([*STAGES, None]),
        st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0, NAN]),
        st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
        st.sampled_from([0.0, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
def test_the_cells_partition_the_scored_questions(rows):
    table = evidence(*rows)
    scored = set(scored_rows(table)["query_id"])
    found = attribute(table)
    assert (found is None) == (not scored)
    if found is None:
        return
    named = [name for share in found.cells for name in share.query_ids]
    assert sorted(named) == sorted(scored)
    assert sum(values(found.cells).values()) == pytest.approx(1)
    right = values(found.cells)["known"] + values(found.cells)["helped"]
    assert right == pytest.approx(values(found.headroom)["now"])
    lost = values(found.cells)["retriever"] + values(found.cells)["both"]
    assert sum(values(found.losses).values()) == pytest.approx(lost)
    assert found.scored == len(scored) <= found.n
    for share in (*found.cells, *found.headroom, *found.losses):
        known = not np.isnan([share.low, share.high]).any()
        assert not known or 0 <= share.low <= share.value + 1e-9 <= share.high + 2e-9 <= 1 + 3e-9


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, low=st.floats(0.05, 1), high=st.floats(0.05, 1))
def test_a_higher_bar_never_makes_an_answer_right(rows, low, high):
    low, high = sorted((low, high))
    table = scored_rows(evidence(*rows))
    lenient, strict = reached(table, low), reached(table, high)
    for name in HEADROOM:
        assert (lenient[name] >= strict[name]).all()


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, bar=st.floats(0.05, 1))
def test_a_perfect_generator_and_both_perfect_never_lose_an_answer(rows, bar):
    table = scored_rows(evidence(*rows))
    would = reached(table, bar)
    assert (would["generator"] >= would["now"]).all()
    assert all((would["both"] >= would[name]).all() for name in HEADROOM)
    cells = cells_of(table, bar)
    assert would["retriever"][cells == "retriever"].all() and not would["now"][cells == "retriever"].any()
    assert would["generator"][cells == "generator"].all() and not would["retriever"][cells == "generator"].any()
    assert not (would["retriever"] | would["generator"])[cells == "both"].any()


def test_the_table_of_shares_counts_their_questions():
    found = split(KNOWN, RETRIEVER, RETRIEVER)
    table = shares_table(found.cells).set_index("name")
    assert list(table.columns) == ["text", "value", "low", "high", "questions"]
    assert table["questions"].to_dict() == {name: {"known": 1, "retriever": 2}.get(name, 0) for name in CELLS}
    assert table.loc["retriever", "text"] == CELLS["retriever"]
    assert shares_table(()).empty
