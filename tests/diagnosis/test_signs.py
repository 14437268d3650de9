from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragbench.diagnosis.evidence import HOUSE
from ragbench.diagnosis.generator_signs import domain_terms
from ragbench.diagnosis.intervals import rate_difference, rate_interval
from ragbench.diagnosis.retriever_signs import blind_topic
from ragbench.diagnosis.sign import Thresholds
from ragbench.diagnosis.signs import OTHERS, SIX, all_signs

N = 40
STATES = ("unknown", "absent", "possible", "present")


def evidence(n=N, **columns):
    """Return the evidence of a healthy system, of which some columns are replaced."""
    healthy = {
        "split": "test",
        "query_id": [f"q{number}" for number in range(n)],
        "text": "Who did what and where?",
        "answerable": True,
        "needs": [1, 1, 1, 2] * (n // 4) + [1] * (n % 4),
        "stage": pd.Series("shown", range(n), dtype=object),
        "first_gold": True,
        "words": 8,
        "special": np.linspace(0, 0.4, n)[np.random.default_rng(0).permutation(n)],
        "gap": 0.2,
        "answered": True,
        "cited_given": 1.0,
        "unchanged_given": 0.1,
        "form": pd.Series(HOUSE, range(n), dtype=object),
        "usual_form": pd.Series(HOUSE, range(n), dtype=object),
    }
    measures = {"correctness": 0.9, "grounding": 0.9, "relevance": 1.0, "format": 1.0, "refused": 0.0}
    healthy |= {f"{measure}_{when}": value for measure, value in measures.items() for when in ("given", "retrieved")}
    return pd.DataFrame(healthy | columns, index=range(n))


def one_topic(table, name="all"):
    return pd.DataFrame({15: name, 40: name}, index=table.index, dtype=object)


def measured(table, topics=None, thresholds=None):
    signs = all_signs(table, one_topic(table) if topics is None else topics, thresholds)
    return {sign.name: sign for sign in signs}


def first(k, yes, no, n=N):
    """Return `yes` for the first `k` of `n` questions and `no` for the others."""
    return [yes] * k + [no] * (n - k)


def ids(*places):
    return tuple(f"q{place}" for place in places)


def test_the_six_come_first_and_each_has_its_own_name_and_a_definition_of_one_sentence():
    signs = list(all_signs(evidence(), one_topic(evidence())))
    assert [sign.name for sign in signs][:6] == [
        "wrong_despite_retrieval",
        "domain_terms",
        "hallucination",
        "format",
        "off_topic",
        "synthesis",
    ]
    assert len({sign.name for sign in signs}) == len({sign.title for sign in signs}) == len(SIX) + len(OTHERS) + 1
    for sign in signs:
        assert sign.definition.endswith(".") and sign.definition.count(". ") == 0
        assert sign.component in ("retriever", "settings", "generator")


def test_each_sign_has_its_threshold_as_a_parameter():
    marked = Thresholds(**{field.name: 0.123 for field in fields(Thresholds) if field.name not in ("fewest",)})
    defaults = {field.name: field.default for field in fields(Thresholds)}
    for name, sign in measured(evidence()).items():
        assert sign.threshold == defaults[name]
    assert {sign.threshold for sign in measured(evidence(), thresholds=marked).values()} == {0.123}


def test_a_healthy_system_shows_no_sign():
    signs = measured(evidence())
    assert {name for name, sign in signs.items() if sign.state == "unknown"} == {"answers_anyway", "blind_topic"}
    assert all(sign.state in ("absent", "unknown") for sign in signs.values())
    assert all(sign.rate == pytest.approx(0) for sign in signs.values() if sign.state == "absent")


PLANTED = {
    "wrong_despite_retrieval": {"correctness_given": first(24, 0.49, 0.5)},
    "hallucination": {"grounding_given": first(24, 0.49, 0.5)},
    "format": {"form": first(24, "plain", HOUSE)},
    "off_topic": {"relevance_given": first(24, 0.79, 0.8)},
    "missed": {"stage": first(24, "not shown", "shown")},
    "cut_off": {"stage": first(24, "cut off", "shown")},
    "over_refusal": {"refused_given": first(24, 1.0, 0.0)},
    "answers_anyway": {"answerable": False, "stage": None, "refused_retrieved": first(24, 0.0, 1.0)},
    "ignores_passages": {
        "correctness_given": first(24, 0.1, 0.9),
        "unchanged_given": first(24, 0.7, 0.1),
    },
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_is_counted_with_the_questions_that_show_it(name):
    sign = measured(evidence(**PLANTED[name]))[name]
    assert (sign.rate, sign.n, sign.state) == (0.6, N, "present")
    assert (sign.low, sign.high) == rate_interval(24, N)
    assert sign.query_ids == ids(*range(24))


@pytest.mark.parametrize("name", PLANTED)
def test_a_higher_threshold_makes_the_same_rate_possible_and_then_absent(name):
    table = evidence(**PLANTED[name])
    for threshold, state in ((0.4, "present"), (0.5, "possible"), (0.6, "absent")):
        assert measured(table, thresholds=Thresholds(**{name: threshold}))[name].state == state


@pytest.mark.parametrize("name", PLANTED)
def test_on_fewer_questions_than_a_statement_needs_a_sign_is_unknown(name):
    table = evidence(**PLANTED[name])
    assert measured(table.head(10))[name].state == "present"
    few = measured(table.head(9))[name]
    assert (few.state, few.n, few.rate) == ("unknown", 9, 1.0)
    assert measured(table.head(9), thresholds=Thresholds(fewest=9))[name].state == "present"
    assert measured(table, thresholds=Thresholds(fewest=N + 1))[name].state == "unknown"


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), share=st.floats(0, 1), threshold=st.floats(0.01, 0.99))
def test_more_events_never_make_a_sign_less_present(n, share, threshold):
    k = int(share * (n - 1))
    limits = Thresholds(hallucination=threshold)
    signs = [
        measured(evidence(n, grounding_given=first(events, 0.1, 0.9, n)), thresholds=limits)["hallucination"]
        for events in (k, k + 1)
    ]
    assert STATES.index(signs[0].state) <= STATES.index(signs[1].state)
    for sign in signs:
        assert (sign.state == "unknown") == (n < limits.fewest)
        assert sign.low <= sign.rate <= sign.high and len(sign.query_ids) == round(sign.rate * sign.n)
        if sign.state == "present":
            assert sign.low > threshold
        if sign.state == "absent":
            assert sign.rate <= threshold


@pytest.mark.parametrize("bar", ["right", "grounded", "relevant"])
def test_from_where_on_an_answer_counts_is_a_parameter(bar):
    name, measure = {
        "right": ("wrong_despite_retrieval", "correctness_given"),
        "grounded": ("hallucination", "grounding_given"),
        "relevant": ("off_topic", "relevance_given"),
    }[bar]
    table = evidence(**{measure: 0.85})
    assert measured(table)[name].rate == 0
    assert measured(table, thresholds=Thresholds(**{bar: 0.85}))[name].rate == 0
    assert measured(table, thresholds=Thresholds(**{bar: 0.86}))[name].rate == 1


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("wrong_despite_retrieval", "correctness_given"),
        ("hallucination", "grounding_given"),
        ("off_topic", "relevance_given"),
        ("over_refusal", "refused_given"),
        ("format", "form"),
        ("ignores_passages", "unchanged_given"),
        ("domain_terms", "correctness_given"),
    ],
)
def test_what_could_not_be_measured_is_left_out_and_counts_neither_way(name, column):
    table = evidence(needs=1, **PLANTED.get(name, {}))
    half = table.copy()
    half.loc[half.index % 2 == 1, column] = np.nan
    assert measured(half)[name].n == N / 2
    assert measured(half)[name].rate == pytest.approx(measured(table)[name].rate, abs=1e-9)
    assert set(measured(half)[name].query_ids) <= set(table["query_id"][::2])


def test_an_answer_of_unknown_relevance_is_judged_by_its_correctness():
    signs = measured(evidence(relevance_given=np.nan, correctness_given=first(10, 0.1, 0.9)))
    assert (signs["wrong_despite_retrieval"].rate, signs["wrong_despite_retrieval"].n) == (0.25, N)


def test_off_topic_answers_are_wrong_ones():
    signs = measured(evidence(relevance_given=first(10, 0.2, 1.0), correctness_given=[0.9] * 30 + [0.1] * 10))
    assert signs["wrong_despite_retrieval"].rate == 0.5


def without_answers(n=N):
    missing = [column for column in evidence(1) if column.endswith(("_given", "_retrieved", "form"))]
    return evidence(n, answered=False, **dict.fromkeys(missing, np.nan))


@pytest.mark.parametrize("kind", [float, object])
def test_without_answers_only_the_retriever_is_looked_at(kind):
    table = without_answers().assign(stage=first(24, "not found", "shown"))
    for column in ("cited_given", "unchanged_given", "form", "usual_form"):
        table[column] = table[column].astype(kind)
    signs = measured(table)
    assert signs["missed"].state == "present"
    assert {name for name, sign in signs.items() if sign.state != "unknown"} == {"missed"}


def test_unanswerable_questions_alone_tell_whether_they_are_refused_and_in_which_form():
    missing = [column for column in evidence(1) if column.endswith("_given")]
    table = evidence(
        answerable=False, stage=None, needs=0, gap=np.nan, refused_retrieved=1.0, **dict.fromkeys(missing, np.nan)
    )
    signs = measured(table, pd.DataFrame(index=table.index, columns=[15, 40], dtype=object))
    assert {name for name, sign in signs.items() if sign.state != "unknown"} == {"answers_anyway", "format"}
    assert signs["answers_anyway"].rate == 0


@pytest.mark.parametrize("n", [0, 1])
def test_with_no_or_one_question_every_sign_is_unknown(n):
    assert {sign.state for sign in measured(evidence(n)).values()} == {"unknown"}


def test_where_there_is_nothing_to_see_a_sign_on_rate_and_interval_are_missing():
    for table in (evidence(0), without_answers().assign(stage=None)):
        for sign in measured(table).values():
            assert sign.n == 0 and np.isnan([sign.rate, sign.low, sign.high]).all(), sign.name
            assert sign.query_ids == ()


def test_a_question_without_gold_passages_is_none_that_was_given_all():
    table = evidence(stage=first(20, None, "shown"), correctness_given=0.1, grounding_given=0.1, refused_given=0.0)
    signs = measured(table)
    assert signs["wrong_despite_retrieval"].n == signs["hallucination"].n == signs["over_refusal"].n == 20


def test_refusals_are_not_told_as_other_faults():
    refused = {"refused_given": 1.0, "grounding_given": 0.1, "relevance_given": 0.1, "unchanged_given": 1.0}
    signs = measured(evidence(correctness_given=0.0, cited_given=0.5, **refused))
    assert signs["over_refusal"].state == signs["wrong_despite_retrieval"].state == "present"
    for name in ("hallucination", "off_topic", "ignores_passages", "synthesis", "domain_terms"):
        assert (signs[name].state, signs[name].n) == ("unknown", 0)


def test_a_generator_that_is_right_with_the_gold_passages_is_not_blamed_for_the_retriever():
    signs = measured(evidence(stage="not found", correctness_retrieved=0.0, grounding_retrieved=0.0))
    assert {name for name, sign in signs.items() if sign.state == "present"} == {"missed"}


def test_only_clear_questions_count_as_missed():
    words = first(20, 4, 5)
    sign = measured(evidence(words=words, stage=first(30, "not found", "shown")))["missed"]
    assert (sign.n, sign.rate, sign.query_ids) == (20, 0.5, ids(*range(20, 30)))


def test_passages_that_were_cut_off_are_not_missed():
    signs = measured(evidence(stage="cut off"))
    assert signs["missed"].rate == 0 and signs["cut_off"].rate == 1


def test_the_vocabulary_gap_is_told_of_missed_and_found_questions():
    gap = first(10, 0.75, 0.25)
    assert "75%" in measured(evidence(stage=first(10, "not shown", "shown"), gap=gap))["missed"].detail
    assert "25%" in measured(evidence(stage=first(10, "not shown", "shown"), gap=gap))["missed"].detail
    assert "38%" in measured(evidence(gap=first(10, 0.75, 0.25)))["missed"].detail


def test_only_passages_that_were_retrieved_high_enough_can_be_cut_off():
    stage = first(20, "not found", "shown")
    stage[20:30] = ["cut off"] * 10
    sign = measured(evidence(stage=stage, answered=first(35, True, False)))["cut_off"]
    assert (sign.n, sign.query_ids) == (15, ids(*range(20, 30)))


def test_a_form_unlike_that_of_similar_questions_breaks_consistency():
    sign = measured(evidence(usual_form=first(10, "list", HOUSE), form=[HOUSE] * 35 + ["list"] * 5))["format"]
    assert sign.query_ids == ids(*range(10), *range(35, 40))
    assert "12%" in sign.detail and "38%" in sign.detail


def test_unanswerable_questions_whose_answers_failed_are_not_taken_for_answered():
    table = evidence(answerable=first(20, False, True), refused_retrieved=first(8, 0.0, 1.0))
    table.loc[12:, "refused_retrieved"] = np.nan
    sign = measured(table)["answers_anyway"]
    assert (sign.n, sign.query_ids) == (12, ids(*range(8)))


def test_what_the_generator_knew_anyway_is_no_ignoring_of_passages():
    sign = measured(evidence(unchanged_given=1.0, correctness_given=first(10, 0.4, 0.9)))["ignores_passages"]
    assert sign.query_ids == ids(*range(10))


# Domain terms


def falling(special, correct, **columns):
    table = evidence(len(special), special=special, correctness_given=correct, needs=1, **columns)
    return measured(table)["domain_terms"]


def test_correctness_that_falls_with_special_words_is_a_sign():
    random = np.random.default_rng(1)
    special = random.random(60)
    correct = 0.9 - 0.6 * special + random.normal(0, 0.05, 60)
    sign = falling(special, correct)
    assert sign.state == "present" and sign.rate == pytest.approx(0.6, abs=0.08) and sign.n == 60
    most = set(np.argsort(special)[40:])
    assert sign.query_ids == ids(*[place for place in range(60) if place in most and correct[place] < 0.5])
    rises = falling(1 - special, correct)
    assert rises.state == "absent" and rises.rate == pytest.approx(-sign.rate, abs=1e-6)


def test_only_the_order_of_special_words_counts():
    random = np.random.default_rng(2)
    special, correct = random.random(30), random.random(30)
    sign, same = falling(special, correct), falling(special**4 / 10, correct)
    assert (sign.rate, sign.low, sign.high) == pytest.approx((same.rate, same.low, same.high))


def test_correctness_that_has_nothing_to_do_with_special_words_is_seldom_taken_for_a_sign():
    random = np.random.default_rng(3)
    tables = [
        evidence(special=random.random(N), correctness_given=random.choice([0.05, 0.95], N, p=[0.2, 0.8]), needs=1)
        for _ in range(200)
    ]
    signs = [domain_terms(table, Thresholds()) for table in tables]
    assert sum(sign.low > sign.threshold for sign in signs) <= 10  # 5 are expected, more than 10 in one of 80 draws


def test_the_fall_between_two_kinds_of_questions_is_the_difference_between_them():
    random = np.random.default_rng(4)
    correct = np.r_[np.full(20, 0.9), np.full(20, 0.3)] + random.normal(0, 0.01, 40)
    sign = falling(np.repeat([0.0, 0.3], 20), correct)
    assert sign.rate == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("special", [np.arange(40.0), np.repeat([0.0, 1.0], 20), np.r_[np.zeros(39), 1.0]])
def test_correctness_cannot_fall_by_more_than_all_of_it(special):
    sign = falling(special, (special <= np.median(special)).astype(float))
    assert sign.rate <= 1


@pytest.mark.parametrize("level", [0.0, 0.1, 0.9, 1.0])
def test_where_all_answers_are_equally_good_nothing_falls(level):
    sign = falling(np.arange(40.0), np.full(40, level))
    assert sign.rate == pytest.approx(0) and sign.low <= 0 <= sign.high and sign.state == "absent"


def test_without_differences_in_vocabulary_nothing_can_be_said_of_domain_terms():
    sign = falling(np.full(40, 0.2), np.random.default_rng(5).random(40))
    assert (sign.state, sign.n) == ("unknown", 40) and np.isnan([sign.rate, sign.low, sign.high]).all()


def test_what_is_told_of_domain_terms_are_numbers_even_if_most_questions_are_as_special_as_any():
    sign = falling(first(10, 0.0, 0.3), np.linspace(0.9, 0.1, 40))
    assert "nan" not in sign.detail


def test_questions_that_need_several_passages_tell_nothing_of_domain_terms():
    special = np.linspace(0, 1, N)
    table = evidence(special=special, correctness_given=1 - special, needs=first(20, 1, 2))
    assert measured(table)["domain_terms"].n == 20


# Synthesis


def several(n_several, wrong_several, n_one, wrong_one, **columns):
    n = n_several + n_one
    correct = first(wrong_several, 0.1, 0.9, n_several) + first(wrong_one, 0.1, 0.9, n_one)
    table = evidence(n, needs=first(n_several, 2, 1, n), **({"correctness_given": correct} | columns))
    return measured(table)["synthesis"]


def test_questions_that_need_several_passages_are_set_against_those_that_need_one():
    sign = several(20, 15, 30, 6)
    assert (sign.rate, sign.low, sign.high) == pytest.approx(rate_difference(15, 20, 6, 30))
    assert (sign.state, sign.n, sign.query_ids) == ("present", 50, ids(*range(15)))
    assert "75% of 20" in sign.detail and "20% of 30" in sign.detail


def test_a_generator_that_is_as_bad_with_one_passage_does_not_fail_at_synthesis():
    assert several(20, 14, 30, 21).state == "absent"


@pytest.mark.parametrize(("many", "single"), [(9, 30), (30, 9), (0, 30), (30, 0)])
def test_synthesis_is_unknown_with_too_few_questions_of_either_kind(many, single):
    sign = several(many, many, single, 0)
    assert (sign.state, sign.n) == ("unknown", min(many, single)) and np.isnan(sign.rate)


@pytest.mark.parametrize(("cited", "rate"), [(0.5, 1.0), (0.0, 0.0), (1.0, 0.0), (np.nan, 0.0)])
def test_citing_part_of_what_is_needed_is_incomplete_and_citing_nothing_is_judged_by_the_answer(cited, rate):
    assert several(20, 0, 20, 0, cited_given=first(20, cited, 1.0)).rate == rate


# Blind topic


def topical(missed, sizes, grain=15):
    """Return evidence and topics: of each topic so many questions, of which so many are missed."""
    stage = [
        "not found" if place < lost else "shown"
        for lost, size in zip(missed, sizes, strict=True)
        for place in range(size)
    ]
    table = evidence(len(stage), stage=stage)
    topics = one_topic(table)
    topics[grain] = [f"topic {place}" for place, size in enumerate(sizes) for _ in range(size)]
    return table, topics


def test_the_topic_that_is_missed_most_is_named_with_its_missed_questions():
    sign = measured(*topical([1, 14, 1, 1], [15, 15, 15, 15]))["blind_topic"]
    assert sign.state == "present" and sign.rate == pytest.approx(14 / 15 - 3 / 45) and sign.n == 60
    assert "topic 1" in sign.detail and "15 questions" in sign.detail and "93%" in sign.detail
    assert sign.query_ids == ids(*range(15, 29))


def test_either_grain_can_show_the_blind_topic():
    assert measured(*topical([1, 30, 1], [40, 40, 40], grain=40))["blind_topic"].state == "present"


def test_the_interval_of_the_worst_topic_allows_for_its_having_been_picked_out():
    sign = measured(*topical([1, 9, 1, 1], [15, 15, 15, 15]))["blind_topic"]
    _, low, high = rate_difference(9, 15, 3, 45)
    assert sign.low < low < sign.rate < high < sign.high


@pytest.mark.parametrize("missed", [0, 7, 15])
def test_a_retriever_that_is_as_bad_everywhere_is_not_blind_to_a_topic(missed):
    sign = measured(*topical([missed] * 4, [15] * 4))["blind_topic"]
    assert sign.state == "absent" and sign.rate == 0


def test_misses_that_have_nothing_to_do_with_topics_do_not_make_a_blind_one():
    random = np.random.default_rng(6)
    signs = [blind_topic(*topical(random.binomial(15, 0.3, 8), [15] * 8), Thresholds()) for _ in range(60)]
    assert not [sign for sign in signs if sign.low > sign.threshold]


def test_with_one_topic_or_none_there_is_no_rest_to_compare_with():
    table = evidence(stage=first(24, "not found", "shown"))
    for topics in (one_topic(table), one_topic(table, None)):
        sign = measured(table, topics)["blind_topic"]
        assert sign.state == "unknown" and np.isnan(sign.rate)


def test_a_topic_of_two_questions_is_too_small_to_be_called_blind():
    assert measured(*topical([2, 0], [2, 38]))["blind_topic"].query_ids != ids(0, 1)


def test_questions_without_gold_passages_are_of_no_topic():
    table, topics = topical([14, 1, 1], [15, 15, 15])
    both = pd.concat([evidence(20, stage=None), table], ignore_index=True)
    labels = pd.concat([one_topic(evidence(20), None), topics], ignore_index=True)
    sign, alone = measured(both, labels)["blind_topic"], measured(table, topics)["blind_topic"]
    assert (sign.n, sign.rate, sign.state) == (45, alone.rate, "present")


@settings(max_examples=20, deadline=None)
@given(data=st.data(), n=st.integers(0, 30))
def test_whatever_the_evidence_no_sign_fails_or_tells_nonsense(data, n):
    def column(*values):
        return data.draw(st.lists(st.sampled_from(values), min_size=n, max_size=n))

    graded = (0.0, 0.3, 0.5, 0.9, 1.0, np.nan)
    table = evidence(
        n,
        answerable=column(True, False),
        answered=column(True, False),
        needs=column(1, 2),
        stage=pd.Series(column("not found", "not shown", "cut off", "shown", None), range(n), dtype=object),
        words=column(3, 8),
        special=np.array(column(0.0, 0.1, 0.5), dtype=float),
        form=pd.Series(column(HOUSE, "plain", None), range(n), dtype=object),
        **{f"{name}_given": np.array(column(*graded), dtype=float) for name in ("correctness", "grounding", "cited")},
        **{f"{name}_given": np.array(column(0.0, 1.0, np.nan), dtype=float) for name in ("refused", "unchanged")},
    )
    topics = pd.DataFrame({15: column("a", "b"), 40: column("a", "c")}, index=range(n), dtype=object)
    for sign in measured(table, topics, Thresholds(fewest=3)).values():
        assert set(sign.query_ids) <= set(table["query_id"]) and sign.n <= n
        assert sign.state in STATES and (sign.state == "unknown") == (sign.n < 3 or np.isnan(sign.rate))
        if sign.state == "present":
            assert sign.query_ids and sign.low > sign.threshold
