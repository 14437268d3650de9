import json

import pytest

from ragbench.collection.beir import read_collection
from ragbench.deployment.failures import export, failures_in, groups
from ragbench.deployment.query_log import Entry, make_entry
from ragbench.errors import RagbenchError
from ragbench.retrieval.encoder import open_encoder


def entry(name, question="How long does rice cook?", **changes):
    made = make_entry(name, question, "Ten minutes. [p1]", [("p1", 0.6), ("p2", 0.5)], False,
                      seconds=0.1, bundle="docs/0001", finish_reason="stop")  # fmt: skip
    return Entry(**{**vars(made), "grounding": 0.9, **changes})


def test_each_kind_of_failure_is_told_and_good_answers_are_none():
    entries = [
        entry("good"),
        entry("liked", refused=True, feedback=1),
        entry("down", feedback=-1),
        entry("refused", refused=True),
        entry("error", finish_reason="error"),
        entry("invented", grounding=0.01),
        entry("far", scores=(0.1,)),
        entry("both", grounding=0.01, feedback=-1),
        entry("unjudged", grounding=None),
    ]
    found = {failure.entry.id: failure.reasons for failure in failures_in(entries, lowest_score=0.3)}
    assert found == {
        "down": ("thumb down",), "refused": ("refused",), "error": ("error",), "invented": ("low grounding",),
        "far": ("low score",), "both": ("thumb down", "low grounding"),
    }  # fmt: skip
    assert "far" not in {failure.entry.id for failure in failures_in(entries)}


@pytest.fixture
def gathered(real_cache, monkeypatch):
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    asked = [
        "How long does rice cook?",
        "How many minutes must rice cook?",
        "Do I need a visa for Peru?",
        "How long does rice cook?",
    ]
    entries = [entry(str(n), question, feedback=-1) for n, question in enumerate(asked)]
    return groups(failures_in(entries), open_encoder("all-MiniLM-L6-v2", device="cpu"))


def test_alike_questions_are_together_and_each_stands_once(gathered):
    assert [[failure.entry.question for failure in group] for group in gathered] == [
        ["How long does rice cook?", "How many minutes must rice cook?"], ["Do I need a visa for Peru?"],
    ]  # fmt: skip


def test_a_log_without_text_cannot_be_grouped(gathered):
    hashed = failures_in([Entry(**{**vars(entry("x", feedback=-1)), "question": None})])
    with pytest.raises(RagbenchError, match="kept no text"):
        groups(hashed, None)
    assert groups([], None) == []


def test_what_is_written_is_a_collection_once_it_is_labelled(gathered, tmp_path):
    assert export(gathered, tmp_path / "out") == 3
    with pytest.raises(RagbenchError, match="is there already"):
        export(gathered, tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "queries.jsonl").read_text().splitlines()]
    assert {record["metadata"]["given"] for record in records} == {"Ten minutes. [p1]"}
    rows = [{"_id": name, "title": "", "text": f"text of {name}"} for name in ("p1", "p2")]
    (tmp_path / "out" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = tmp_path / "out" / "qrels" / "train.tsv"
    labels.write_text(labels.read_text().replace("\tp1\t0", "\tp1\t1"))
    labelled = read_collection(tmp_path / "out")
    assert len(labelled.queries) == 3
    assert all(gold["p1"] == 1 for gold in labelled.qrels["train"].values())
