from html.parser import HTMLParser

import numpy as np
import pandas as pd

from ragbench.collection.schema import Passage, Query
from ragbench.evaluation.cases import Case
from ragbench.generation.answers import Answer
from ragbench.workbench.tables import bullet_list, case_list, metrics_rows, metrics_table, plain_table, tidy_metrics

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
        self.in_cell = tag in ("td", "th")
        self.is_number = ("class", "number") in attrs
        if tag == "tr":
            self.rows.append([])
        if self.in_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
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
