from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from ragbench.collection.schema import Passage, Query
from ragbench.diagnosis.sign import Sign
from ragbench.evaluation.cases import Case
from ragbench.evaluation.comparison import Change
from ragbench.generation.answers import Answer
from ragbench.workbench.tables import (
    against_base,
    bullet_list,
    case_list,
    change_list,
    comparison_rows,
    comparison_table,
    metrics_rows,
    metrics_table,
    plain_table,
    sign_list,
    tidy_comparisons,
    tidy_metrics,
    verdict_box,
)

EVIL = "<script>alert('&')</script>"
FULL = {"mean": 0.5, "ci": [0.4, 0.61234], "n": 20, "scored": 20}
PART = {"mean": 0.25, "ci": [0.1, 0.4], "n": 20, "scored": 18}
NONE = {"mean": None, "ci": None, "n": 20, "scored": 0}
ONE = {"mean": 1.0, "ci": None, "n": 1, "scored": 1}


class Page(HTMLParser):
    """Reads tables and text as a browser would."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.numbers: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.in_cell = self.is_number = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.in_cell = True
            self.is_number = ("class", "number") in attrs
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data
            self.numbers += [data] * self.is_number


def evil_case() -> Case:
    query = Query(EVIL + "1", EVIL + "2", answer=EVIL + "3", tags=(EVIL + "4",))
    answer = Answer(query.id, EVIL + "5", (), (), 1, 1, 0.1, EVIL + "6")
    shown, missed = (Passage(EVIL + mark, EVIL + mark, EVIL + mark, "d") for mark in "78")
    return Case(query, EVIL + "9", answer, {"answer_f1": 0.126}, ((shown, True, True),), ((missed, 12), (missed, None)))


def test_a_table_shows_missing_values_as_a_dash():
    table = pd.DataFrame(
        {
            "a": [None, "x"],
            "b": [np.nan, 0.25],
            "c": pd.array([pd.NA, 3], dtype="Int64"),
        }
    )
    assert Page(plain_table(table).data).rows == [["a", "b", "c"], ["–", "–", "–"], ["x", "0.250", "3"]]


def test_a_table_rounds_floats_keeps_integers_and_puts_numbers_to_the_right():
    table = pd.DataFrame({"name": ["x"], "f": [0.123456], "i": [1234567], "f32": np.array([0.5], dtype=np.float32)})
    page = Page(plain_table(table, decimals=2).data)
    assert page.rows[1] == ["x", "0.12", "1234567", "0.50"]
    assert [text for text in page.numbers if text.strip()] == ["f", "i", "f32", "0.12", "1234567", "0.50"]


def test_a_table_escapes_cells_and_headings():
    page = Page(plain_table(pd.DataFrame({EVIL: [EVIL, "ok"]})).data)
    assert page.rows == [[EVIL], [EVIL], ["ok"]]
    assert "script" not in page.tags


def test_a_list_escapes_headline_and_items():
    page = Page(bullet_list(EVIL + "0", [EVIL + "1", "plain"]).data)
    assert page.tags == ["p", "ul", "li", "li"]
    assert EVIL + "0" in page.text
    assert EVIL + "1" in page.text


def test_a_case_shows_everything_of_the_question_as_text():
    page = Page(case_list([evil_case()], "answer_f1").data)
    assert "script" not in page.tags
    assert all(EVIL + mark in page.text for mark in "123456789")


def test_a_case_tells_score_gold_cut_and_where_missed_passages_stood():
    words = Page(case_list([evil_case()], "answer_f1").data).text
    assert "answer_f1 0.13" in words
    assert words.count("gold") == words.count("gold not shown") + words.count("gold passages") + 1
    assert "cut" in words
    assert "rank 12" in words
    assert "not found" in words


def test_a_case_without_answer_reference_or_passages_is_shown():
    answer = Answer("q", "", (), (), 1, 0, 0.1, "stop")
    case = Case(Query("q", "Why?"), "dev", answer, {"answer_f1": 0.0}, (), ())
    words = Page(case_list([case], "answer_f1").data).text
    assert "(nothing)" in words
    assert "None" not in words


def test_metrics_say_how_many_of_n_questions_were_scored():
    columns, rows = metrics_rows(
        {"base": {"dev": {"ndcg@10": FULL, "faithfulness": PART}, "test": {"faithfulness": NONE, "format": ONE}}}
    )
    assert columns == [("base", "dev"), ("base", "test")]
    assert rows == [
        ("ndcg@10", ["0.500 [0.400, 0.612] n = 20", "–"]),
        ("faithfulness", ["0.250 [0.100, 0.400] n = 18 of 20", "not scored (0 of 20)"]),
        ("format", ["–", "1.000 n = 1"]),
    ]


def test_the_metrics_table_has_a_row_a_metric_and_a_column_a_system_and_split():
    html = metrics_table({"base": {"dev": {"ndcg@10": FULL}}, "<b>": {"dev": {"ndcg@10": NONE}}}).data
    assert Page(html).rows == [
        ["metric", "base on dev", "<b> on dev"],
        ["ndcg@10", "0.500 [0.400, 0.612] n = 20", "not scored (0 of 20)"],
    ]


def test_tidy_metrics_keeps_every_number_and_leaves_missing_ones_missing():
    tidy = tidy_metrics({"base": {"dev": {"ndcg@10": PART, "answer_f1": NONE}}})
    assert list(tidy.columns) == ["system", "split", "metric", "mean", "low", "high", "n", "scored"]
    assert tidy.iloc[0].tolist() == ["base", "dev", "ndcg@10", 0.25, 0.1, 0.4, 20, 18]
    assert tidy.iloc[1][["mean", "low", "high"]].isna().all()
    assert tidy.iloc[1][["n", "scored"]].tolist() == [20, 0]


# Before and after


def entry(difference=0.08, ci=(0.03, 0.13), p_value=0.004, p_holm=0.06, n=78, split="test", metric="ndcg@10"):
    return {
        "split": split, "metric": metric, "baseline": "base", "system": "retriever", "difference": difference,
        "ci": ci and list(ci), "p_value": p_value, "p_holm": p_holm, "n": n,
    }  # fmt: skip


def compared(*entries):
    systems = {
        name: {"test": {"ndcg@10": FULL | {"mean": mean}}} for name, mean in (("base", 0.41), ("retriever", 0.49))
    }
    return {"systems": systems, "comparisons": list(entries)}


def test_a_comparison_tells_both_means_the_difference_both_p_values_and_the_pairs():
    assert comparison_rows(compared(entry())) == [
        [
            "test",
            "ndcg@10",
            "base 0.410",
            "retriever 0.490",
            "+0.080 [+0.030, +0.130]",
            "0.004",
            "0.060",
            "78",
            "better",
        ]
    ]
    assert comparison_rows(compared(entry(p_value=0.0002, p_holm=0.00099)))[0][5:7] == ["< 0.001", "< 0.001"]


@pytest.mark.parametrize(
    ("ci", "p_value", "reading"),
    [
        ((0.001, 0.1), 0.04, "better"),
        ((-0.1, -0.001), 0.04, "worse"),
        ((0.0, 0.1), 0.04, "–"),
        ((-0.1, 0.0), 0.04, "–"),
        ((0.001, 0.1), 0.05, "–"),
        ((-0.1, 0.1), 0.9, "–"),
        (None, None, "–"),
    ],
)
def test_a_difference_is_better_or_worse_only_if_interval_and_test_agree(ci, p_value, reading):
    assert comparison_rows(compared(entry(ci=ci, p_value=p_value)))[0][-1] == reading


def test_what_could_not_be_compared_is_a_dash():
    unscored = entry(None, None, None, None, 0, "ood", "faithfulness")
    assert comparison_rows(compared(unscored))[0][2:] == ["base –", "retriever –", "–", "–", "–", "0", "–"]
    single = entry(0.5, None, None, None, 1)
    assert comparison_rows(compared(single))[0][4] == "+0.500"
    assert comparison_rows(compared(entry(-0.0001, (-0.0004, 0.0))))[0][4] == "+0.000 [+0.000, +0.000]"


def test_a_run_without_comparisons_has_no_rows():
    assert comparison_rows({"systems": {}}) == comparison_rows({"systems": {}, "comparisons": []}) == []


def test_the_table_of_comparisons_marks_a_difference_in_words_and_escapes():
    page = Page(comparison_table(compared(entry(), entry(ci=(-0.2, -0.1)), entry(metric=EVIL, p_value=0.5))).data)
    assert [row[-1] for row in page.rows[1:]] == ["better", "worse", "–"]
    assert page.rows[0][:4] == ["split", "metric", "before", "after"]
    assert page.rows[3][1] == EVIL
    assert "script" not in page.tags


def test_systems_stand_beside_the_base_metric_by_metric_with_what_is_clear():
    other = entry(-0.2, (-0.3, -0.1), metric="format") | {"system": EVIL}
    page = Page(against_base(compared(entry(), other, entry(split="ood")), "test").data)
    assert page.rows[0] == ["metric on test", "base", "retriever", EVIL]
    assert page.rows[1] == ["ndcg@10", "0.410", "0.490 +0.080 [+0.030, +0.130] better", "–"]
    assert page.rows[2] == ["format", "–", "–", "– -0.200 [-0.300, -0.100] worse"]
    assert len(page.rows) == 3 and "script" not in page.tags


def test_tidy_comparisons_are_numbers_with_missing_ones_missing():
    tidy = tidy_comparisons([entry(), entry(None, None, None, None, 0, "ood")])
    assert tidy.iloc[0].tolist() == ["base", "retriever", "test", "ndcg@10", 0.08, 0.03, 0.13, 78]
    assert tidy.iloc[1][["difference", "low", "high"]].isna().all()
    assert all(tidy[column].dtype == float for column in ("difference", "low", "high"))
    assert list(tidy_comparisons([]).columns) == [
        "baseline", "system", "split", "metric", "difference", "low", "high", "n"
    ]  # fmt: skip


def evil_change(values=(0.126, 1.0)) -> Change:
    query = Query(EVIL + "1", EVIL + "2", answer=EVIL + "3", tags=(EVIL + "4",))
    gold, old, new = (Passage(EVIL + mark, EVIL, EVIL + mark, "d") for mark in "567")
    return Change(query, EVIL + "8", values, ((gold, 12, None),), (old, new), (EVIL + "9", EVIL + "0"))


def test_a_change_shows_everything_of_the_question_as_text():
    page = Page(change_list([evil_change()], "ndcg@10", (EVIL + "a", EVIL + "b")).data)
    assert "script" not in page.tags
    assert all(EVIL + mark in page.text for mark in "1234567890ab")


def test_a_change_tells_values_ranks_and_which_system_said_and_found_what():
    text = words(change_list([evil_change()], "ndcg@10", ("base", "retriever")).data)
    assert "ndcg@10 0.13 → 1.00" in text
    assert "rank 12 → not found" in text
    for system, said, found in (("base", "9", "6"), ("retriever", "0", "7")):
        assert f"{system} answered{EVIL}{said} best passage of {system}{EVIL}{found}" in text


def test_a_change_without_answers_reference_or_passages_is_shown():
    change = Change(Query("q", "Why?"), "test", (1.0, 0.0), (), (None, None), (None, None))
    text = words(change_list([change], "ndcg@10", ("base", "retriever")).data)
    assert text.count("(nothing)") == 2 and "(no reference)" in text
    assert "None" not in text and "best passage" not in text


def test_a_loss_stands_out_and_no_changes_are_said_to_be_none():
    assert "tag bad" in change_list([evil_change((1.0, 0.0))], "m", ("a", "b")).data
    assert "tag bad" not in change_list([evil_change()], "m", ("a", "b")).data
    assert words(change_list([], "m", ("a", "b")).data) == "None."


# The audit's verdict and signs


def sign(name="missed", state="present", rate=0.6, low=0.5, high=0.7, n=50, title="", definition="A share.", detail=""):
    title = title or f"The sign {name}"
    return Sign(name, "retriever", title, definition, rate, low, high, n, 0.3, ("q",), detail, state)


def words(html: str) -> str:
    return " ".join(Page(html).text.split())


def test_a_verdict_shows_headline_certainty_and_every_sentence_under_its_heading_in_order():
    page = Page(verdict_box("Do it.", "Firm: sure.", {"Why": ("Reason one.", "Reason two.")}).data)
    assert " ".join(page.text.split()) == "Do it. Firm: sure. Why Reason one.Reason two."
    assert (page.tags.count("h3"), page.tags.count("li")) == (1, 2)


def test_a_verdict_leaves_out_a_heading_under_which_there_is_nothing():
    page = Page(verdict_box("Do it.", "Sure.", {"What fails": (), "Why": ("A reason.",), "Else": []}).data)
    assert page.tags.count("h3") == page.tags.count("ul") == 1
    assert "What fails" not in page.text
    assert "h3" not in Page(verdict_box("Do it.", "Sure.", {}).data).tags


def test_a_verdict_escapes_whatever_it_says():
    page = Page(verdict_box(EVIL + "1", EVIL + "2", {EVIL + "3": (EVIL + "4", EVIL + "5")}).data)
    assert "script" not in page.tags
    assert all(EVIL + mark in page.text for mark in "12345")


def test_a_sign_is_shown_with_rate_interval_threshold_and_number_of_questions():
    text = words(sign_list([sign(detail="they lack words")], {}, {}).data)
    assert "The sign missed present 60 % [50, 70]" in text
    assert "above 30 % counts" in text
    assert "n = 50" in text
    assert "A share. Here: they lack words." in text


def test_a_sign_that_could_not_be_seen_says_so_and_prints_no_number():
    nan = float("nan")
    text = words(sign_list([sign(state="unknown", rate=nan, low=nan, high=nan, n=4)], {}, {}).data)
    assert "too few questions to see it on (n = 4)" in text
    assert "nan" not in text
    assert "Here:" not in text


def test_signs_are_listed_in_their_order_one_to_open_each():
    page = Page(sign_list([sign("b"), sign("a", "absent"), sign("c", "possible")], {}, {}).data)
    assert page.tags.count("details") == page.tags.count("summary") == 3
    assert page.text.index("sign b") < page.text.index("sign a") < page.text.index("sign c")
    assert Page(sign_list([], {}, {}).data).tags == []


def test_a_present_sign_stands_out_and_no_other_does():
    assert "tag bad" in sign_list([sign(state="present")], {}, {}).data
    for state in ("absent", "possible", "unknown"):
        assert "tag bad" not in sign_list([sign(state=state)], {}, {}).data


def test_a_consequence_names_the_title_of_its_cause():
    found = [sign("missed"), sign("blind_topic", title="A blind topic")]
    html = sign_list(found, {}, {"missed": "blind_topic"}).data
    assert words(html).count("a consequence of: A blind topic") == 1


def test_a_sign_shows_its_own_examples_with_what_was_expected_answered_and_missed():
    case = Case(
        Query("q7", "Why?", "Because."),
        "dev",
        Answer("q7", "No idea.", (), (), 1, 1, 0.1, "stop"),
        {},
        (),
        ((Passage("p1", "", "x", "d"), 12), (Passage("p2", "", "x", "d"), None)),
    )
    text = words(sign_list([sign("missed"), sign("other")], {"missed": [case], "third": [case]}, {}).data)
    assert text.count("Why?") == 1
    assert text.index("Why?") < text.index("The sign other")
    for told in ("q7", "expected: Because.", "answered: No idea.", "not shown: p1 (rank 12), p2 (not found)"):
        assert told in text


def test_an_example_without_reference_answer_or_missed_passages_is_shown():
    case = Case(Query("q", "Why?"), "dev", Answer("q", "", (), (), 1, 0, 0.1, "stop"), {}, (), ())
    text = words(sign_list([sign()], {"missed": [case]}, {}).data)
    assert "(no reference)" in text
    assert "(nothing)" in text
    assert "not shown" not in text
    assert "None" not in text


def test_signs_and_their_examples_escape_whatever_comes_from_a_collection_or_a_model():
    evil = sign(title=EVIL + "a", definition=EVIL + "b", detail=EVIL + "c")
    page = Page(sign_list([evil, sign("other")], {"missed": [evil_case()]}, {"other": "missed"}).data)
    assert "script" not in page.tags
    assert all(EVIL + mark in page.text for mark in "abc12358")
    assert f"a consequence of: {EVIL}a" in page.text
