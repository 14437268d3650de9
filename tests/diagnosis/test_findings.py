import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis.audit import diagnose
from ragbench.diagnosis.conclusion import Conclusion, conclude
from ragbench.diagnosis.cost import Assumptions, Bill, Workload, query_costs, training_table
from ragbench.diagnosis.counterfactual import CONDITIONS, Trial
from ragbench.diagnosis.findings import all_scores, write_findings
from ragbench.diagnosis.fixes import Fixes, cheap_settings
from ragbench.diagnosis.measures import COLUMNS, Measured
from ragbench.diagnosis.rule import Criteria
from ragbench.evaluation.evaluate import Outcome, System
from ragbench.evaluation.scores import COLUMNS as SCORES
from ragbench.generation.answers import Answer, read_answers
from ragbench.generation.generate import Generator
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever
from ragbench.retrieval.runs import read_run
from ragbench.workbench.params import declared_in, read_params_file
from ragbench.workbench.project import notebook_path

PROJECT = Path(__file__).parents[2]
FILES = {
    "base.trec",
    "base.answers.jsonl",
    "base.oracle.answers.jsonl",
    "base.none.answers.jsonl",
    "scores.parquet",
    "metrics.json",
    "evidence.parquet",
    "findings.json",
    "settings.yaml",
}
GOLD = {"q1": {"p1": 1}, "q2": {"p2": 1}}
WHOLE = Collection(
    "hand-made",
    corpus_from_rows((f"p{n}", "", "bab bed.", "d") for n in range(1, 4)),
    {name: Query(name, f"What of {name}, then?", "The reference.") for name in GOLD},
    {"dev": {"q1": GOLD["q1"]}, "test": {"q2": GOLD["q2"]}},
)
QUESTIONS = {"dev": [WHOLE.queries["q1"]], "test": [WHOLE.queries["q2"]]}
RUN = {"q1": {"p1": 2.0, "p3": 1.0}, "q2": {"p3": 2.0, "p1": 1.0}}
METRICS = {"systems": {}, "comparisons": []}
NO_FIX = Fixes(pd.DataFrame(), None)
WORK = Workload(0, 10.0, 5.0, 4.0, 0.1, 1000, 100.0)
BILL = Bill(
    training_table(WORK, None, Assumptions()), query_costs(WORK, Assumptions()), pd.DataFrame(), 0, 0.0, 0.0, 0.0
)


def answers(condition, *query_ids):
    return {name: Answer(name, f"{condition} “{name}”", ("p1",), (), 10, 5, 0.1, "stop") for name in query_ids}


TRIAL = Trial(QUESTIONS, RUN, 1, {condition: answers(condition, *GOLD) for condition in CONDITIONS})
ROWS = [
    (condition, name, measure, value)
    for condition, value in (("retrieved", 0.0), ("oracle", 1.0), ("none", 0.0))
    for name in GOLD
    for measure in ("correctness", "refused", "format", "grounding")
]
MEASURED = Measured(pd.DataFrame(ROWS, columns=COLUMNS), 0.5, 0.8, pd.DataFrame(), "")
SCORED = pd.DataFrame(
    [("base", "dev", "answer_f1", "q1", 0.5), ("base", "test", "answer_f1", "q2", np.nan)], columns=SCORES
)
OUTCOME = Outcome("base", QUESTIONS, RUN, TRIAL.answers["retrieved"], SCORED)


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


@pytest.fixture
def written(encoder, tmp_path):
    def write(trial=TRIAL, outcome=OUTCOME, fixes=NO_FIX, measures=MEASURED.table):
        diagnosis = diagnose(WHOLE, trial, measures, encoder)
        verdict = conclude(diagnosis, fixes, Criteria(domain="measured"), BILL)
        scores = all_scores(outcome, replace(MEASURED, table=measures), "offline")
        write_findings(tmp_path / "01_audit", outcome, trial, scores, diagnosis, fixes, verdict, METRICS)
        return tmp_path / "01_audit", diagnosis, verdict, scores

    return write


def without_answers(write):
    return write(replace(TRIAL, answers={}), replace(OUTCOME, answers={}), measures=pd.DataFrame(columns=COLUMNS))


def findings(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "findings.json").read_text(encoding="utf-8"), parse_constant=refuse)


def as_json(value):
    return json.loads(json.dumps(value))


def test_every_file_is_there_and_no_other(written):
    folder, *_ = written()
    assert {path.name for path in folder.iterdir()} == FILES


def test_run_and_answers_read_back_as_they_were(written):
    folder, *_ = written()
    assert read_run(folder / "base.trec") == RUN
    for name, condition in (("base", "retrieved"), ("base.oracle", "oracle"), ("base.none", "none")):
        assert read_answers(folder / f"{name}.answers.jsonl") == list(TRIAL.answers[condition].values())


def test_scores_evidence_and_metrics_read_back_as_they_were(written):
    folder, diagnosis, _, scores = written()
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "scores.parquet"), scores, check_dtype=False)
    evidence = pd.read_parquet(folder / "evidence.parquet")
    assert list(evidence.columns) == list(diagnosis.evidence.columns)
    pd.testing.assert_frame_equal(evidence, diagnosis.evidence, check_dtype=False)
    assert json.loads((folder / "metrics.json").read_text()) == METRICS


def test_the_findings_hold_the_verdict_and_what_it_rests_on(written):
    folder, diagnosis, verdict, _ = written()
    found = findings(folder)
    assert found["decision"]["choice"] == verdict.decision.choice
    assert (found["headline"], found["certainty"]) == (verdict.headline, verdict.certainty)
    assert found["sections"] == as_json(verdict.sections) and list(found["sections"]) == list(verdict.sections)
    assert found["attribution"]["scored"] == 2 and len(found["attribution"]["cells"]) == 6
    assert [sign["name"] for sign in found["signs"]] == [sign.name for sign in diagnosis.signs]
    assert found["special_words"] == diagnosis.special
    assert found["faults"] == [sign.name for sign in diagnosis.faults]


def test_what_is_missing_is_null(written):
    folder, diagnosis, *_ = written()
    rates = {sign["name"]: sign["rate"] for sign in findings(folder)["signs"]}
    assert any(np.isnan(sign.rate) for sign in diagnosis.signs)
    for sign in diagnosis.signs:
        assert rates[sign.name] is None if np.isnan(sign.rate) else rates[sign.name] == sign.rate


def test_without_answers_the_files_are_there_and_the_answers_empty(written):
    folder, *_ = without_answers(written)
    assert {path.name for path in folder.iterdir()} == FILES
    for name in ("base", "base.oracle", "base.none"):
        assert read_answers(folder / f"{name}.answers.jsonl") == []
    found = findings(folder)
    assert found["attribution"] is None and found["decision"]["projection"] is None
    assert found["decision"]["confidence"] is None and "Retrieval only" in found["headline"]
    assert len(pd.read_parquet(folder / "evidence.parquet")) == 2


def test_writing_again_replaces_what_was_there(written):
    written()
    folder, *_ = without_answers(written)
    assert findings(folder)["attribution"] is None and {path.name for path in folder.iterdir()} == FILES


@pytest.mark.parametrize("setting", cheap_settings(System("base", Retriever(), Generator())), ids=lambda s: s.name)
def test_the_settings_are_a_params_file_that_the_audit_reads(written, setting):
    folder, *_ = written(fixes=Fixes(pd.DataFrame(), setting, 0.2, 0.1, 0.3, 50, 50))
    known = declared_in(notebook_path(PROJECT, "01_audit"))
    assert read_params_file(folder / "settings.yaml", known) == setting.changes
    assert findings(folder)["settings"] == setting.changes


@pytest.mark.parametrize("gain", [None, -0.1, 0.0, float("nan")])
def test_without_a_setting_that_gained_the_params_file_sets_nothing(written, gain):
    best = cheap_settings(System("base", Retriever(), Generator()))[0]
    fixes = NO_FIX if gain is None else Fixes(pd.DataFrame(), best, gain, gain, gain, 50, 50)
    folder, *_ = written(fixes=fixes)
    assert yaml.safe_load((folder / "settings.yaml").read_text()) == {}
    assert read_params_file(folder / "settings.yaml", declared_in(notebook_path(PROJECT, "01_audit"))) == {}


# All scores


def test_the_measures_of_the_retrieved_answers_join_the_scores():
    table = all_scores(OUTCOME, MEASURED, "offline")
    assert list(table.columns) == SCORES and set(table["system"]) == {"base"}
    counts = table["metric"].value_counts().to_dict()
    assert counts == {"answer_f1": 2, "correctness": 2, "grounding": 2}
    added = table[table["metric"] == "correctness"]
    assert dict(zip(added["query_id"], added["split"], strict=True)) == {"q1": "dev", "q2": "test"}
    assert (added["value"] == 0).all(), "the others are of the answers from gold passages, or from none"


def test_a_judges_scores_have_the_names_of_ragas():
    names = set(all_scores(OUTCOME, MEASURED, "endpoint")["metric"])
    assert names == {"answer_f1", "answer_correctness", "faithfulness"}


def test_without_measures_the_scores_are_the_outcomes():
    nothing = replace(MEASURED, table=pd.DataFrame(columns=COLUMNS))
    pd.testing.assert_frame_equal(all_scores(OUTCOME, nothing, "offline"), SCORED, check_dtype=False)


def test_a_verdict_is_written_with_every_character_it_has(written, tmp_path, encoder):
    diagnosis = diagnose(WHOLE, TRIAL, MEASURED.table, encoder)
    *_, verdict, scores = written()
    odd = Conclusion(verdict.decision, "Größe “x” <b> & ☃.", verdict.certainty, verdict.sections)
    write_findings(tmp_path / "odd", OUTCOME, TRIAL, scores, diagnosis, NO_FIX, odd, METRICS)
    assert findings(tmp_path / "odd")["headline"] == "Größe “x” <b> & ☃."
