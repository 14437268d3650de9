from dataclasses import replace

import pandas as pd

from ragbench.evaluation.evaluate import Outcome, System
from ragbench.evaluation.scores import COLUMNS
from ragbench.evaluation.systems import cost_table, over_splits, systems_table, write_outcomes
from ragbench.generation.answers import Answer, read_answers
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever
from ragbench.retrieval.runs import read_run

ANSWER = Answer("q1", "It is.", ("p1",), (), 100, 10, 2.0, "stop")
OUTCOME = Outcome(
    "both",
    {},
    {"q1": {"p1": 0.5}},
    {"q1": ANSWER, "q2": replace(ANSWER, query_id="q2", prompt_tokens=200, seconds=4.0)},
    pd.DataFrame([("both", "test", "answer_f1", "q1", 1.0)], columns=COLUMNS),
)


def test_the_table_of_systems_tells_what_differs():
    systems = [System("base", Retriever(), Generator()), System("retriever", Retriever(model="/m"), Generator("none"))]
    shown = systems_table(systems)
    assert shown["system"].tolist() == ["base", "retriever"]
    assert shown["retriever"].tolist() == ["all-MiniLM-L6-v2", "/m"]
    assert shown["generator"].tolist() == ["SmolLM2-135M-Instruct", "none"]


def test_costs_are_means_over_what_was_answered():
    failed = replace(ANSWER, query_id="q3", prompt_tokens=0, seconds=90.0, finish_reason="error")
    outcome = replace(OUTCOME, answers=OUTCOME.answers | {"q3": failed})
    [row] = cost_table([outcome], {"both": 12.5}).to_dict("records")
    assert row == {
        "system": "both", "training seconds": 12.5, "tokens read": 150, "tokens written": 10, "seconds an answer": 3
    }  # fmt: skip


def test_a_system_without_answers_has_no_cost_of_them():
    [row] = cost_table([replace(OUTCOME, answers={})], {"both": 0.0}).to_dict("records")
    assert row["training seconds"] == 0 and row["seconds an answer"] != row["seconds an answer"]


def test_an_evaluation_leaves_run_answers_and_scores_of_every_system(tmp_path):
    write_outcomes(tmp_path, [OUTCOME, replace(OUTCOME, system="base")], OUTCOME.scores)
    assert {path.name for path in tmp_path.iterdir()} == {
        "base.trec", "base.answers.jsonl", "both.trec", "both.answers.jsonl", "scores.parquet"
    }  # fmt: skip
    assert read_run(tmp_path / "both.trec") == OUTCOME.run
    assert read_answers(tmp_path / "base.answers.jsonl") == list(OUTCOME.answers.values())
    assert pd.read_parquet(tmp_path / "scores.parquet")["value"].tolist() == [1.0]


def test_means_stand_split_by_split_with_their_number_of_questions():
    rows = [
        (system, split, "answer_f1", f"q{n}", value)
        for system, values in {"base": (0.2, 0.4), "both": (0.6, None)}.items()
        for split in ("train", "test") for n, value in enumerate(values)
    ]  # fmt: skip
    table = over_splits(pd.DataFrame(rows, columns=COLUMNS), ("base", "both"))
    assert table.to_dict("records") == [
        {"metric": "answer_f1", "system": "base", "train": "0.300 (n = 2)", "test": "0.300 (n = 2)"},
        {"metric": "answer_f1", "system": "both", "train": "0.600 (n = 1)", "test": "0.600 (n = 1)"},
    ]
