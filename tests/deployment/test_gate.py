from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ragbench.deployment import gate as gates
from ragbench.deployment.bundle import pack, read_manifest, system_of
from ragbench.deployment.gate import (
    NEW,
    PRESENT,
    TOLERATED,
    Gate,
    admit,
    gate_questions,
    judged,
    parse_tolerated,
    pass_gate,
)
from ragbench.errors import RagbenchError
from ragbench.evaluation.scores import COLUMNS
from ragbench.retrieval.encoder import open_encoder

TEXTS = {f"q{n}": f"question {n}?" for n in range(60)}


def scores(change, metric="answer_f1", split="test", noise=0.1, n=60):
    rng = np.random.default_rng(0)
    before = rng.uniform(0.3, 0.7, n)
    after = before + change + rng.normal(0, noise, n)
    rows = [(PRESENT, split, metric, f"q{k}", value) for k, value in enumerate(before)]
    return pd.DataFrame(rows + [(NEW, split, metric, f"q{k}", value) for k, value in enumerate(after)], columns=COLUMNS)


@pytest.mark.parametrize(
    ("change", "noise", "refused"), [(0.1, 0.1, 0), (0.0, 0.1, 0), (-0.015, 0.01, 0), (-0.05, 0.9, 0), (-0.08, 0.1, 1)]
)
def test_only_a_loss_that_is_large_and_clear_is_refused(change, noise, refused):
    assert len(judged(scores(change, noise=noise), TEXTS, Gate()).refused) == refused


def test_a_refusal_names_metric_split_and_the_questions_that_lost_most():
    table = scores(-0.08)
    table.loc[(table["system"] == NEW) & (table["query_id"] == "q7"), "value"] = -3.0
    [said] = judged(table, TEXTS, Gate()).refused
    assert "answer_f1 on test: -0." in said and "most of all q7 (question 7?)" in said and "n = 60" in said


def test_a_metric_without_a_tolerance_is_not_looked_at():
    found = judged(scores(-0.5, metric="answer_similarity"), TEXTS, Gate())
    assert found == gates.Judged((), ())


def test_tolerances_are_read_and_what_is_none_is_refused():
    assert parse_tolerated([]) == TOLERATED
    assert parse_tolerated(["answer_f1=0.1"]) == TOLERATED | {"answer_f1": 0.1}
    for text in ("answer_f1", "f1=0.1", "answer_f1=-1", "answer_f1=x", "answer_f1=nan"):
        with pytest.raises(RagbenchError, match="--tolerate"):
            parse_tolerated([text])


def test_canaries_are_asked_beside_the_held_out_questions(bundle, garden):
    asked = gate_questions(garden, bundle, Gate())
    assert {split: len(queries) for split, queries in asked.items()} == {"test": 8, "ood": 4, "dev": 1}
    fewer = gate_questions(garden, bundle, Gate(questions=4))
    assert {split: len(queries) for split, queries in fewer.items()} == {"test": 2, "ood": 2, "dev": 1}
    with pytest.raises(RagbenchError, match="nothing to compare the versions on"):
        gate_questions(replace(garden, qrels={}), bundle, Gate())


def test_a_version_is_compared_with_itself_and_passes(bundle, garden, tiny_encoder):
    system = system_of(bundle, read_manifest(bundle))
    found = pass_gate(system, system, bundle, garden, open_encoder(str(tiny_encoder), device="cpu"), Gate())
    assert not found.refused
    assert {"ndcg@10", "answer_f1", "refusal"} <= {each.metric for each in found.comparisons}
    assert {each.difference for each in found.comparisons} == {0.0}


def test_a_worse_version_is_not_admitted(bundle, contents, garden, tmp_path, tiny_encoder, monkeypatch):
    worse = replace(contents.system, retriever=replace(contents.system.retriever, method="bm25", bm25_b=0.0, depth=1))
    good = replace(contents.system, retriever=replace(contents.system.retriever, method="bm25"))
    for name, system in (("good", good), ("worse", worse)):
        pack(replace(contents, system=system), tmp_path / name)
    monkeypatch.setattr(gates, "load_collection", lambda _: garden)
    monkeypatch.setattr(gates, "JUDGE", str(tiny_encoder))
    # A retriever that finds the gold passage second at best, for every question.
    whole = gates.evaluate

    def spoilt(system, *rest, **named):
        outcome = whole(system, *rest, **named)
        if system.name == NEW:
            lost = outcome.scores["metric"] == "ndcg@10"
            outcome.scores.loc[lost, "value"] = outcome.scores.loc[lost, "value"] / 2 - 0.1
        return outcome

    assert admit(tmp_path / "good", tmp_path / "good", "garden", Gate())
    monkeypatch.setattr(gates, "evaluate", spoilt)
    with pytest.raises(RagbenchError, match=r"worse is not put into use.*ndcg@10 on test"):
        admit(tmp_path / "good", tmp_path / "worse", "garden", Gate())
