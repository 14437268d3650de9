"""A whole run killed with SIGKILL, twice, then run again: the same metrics as a run that nobody disturbed."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[1]
SYLLABLES = ["ba", "de", "gi", "ko", "lu", "ma", "ne", "pi", "ro", "su"]


@pytest.fixture
def experiment(tmp_path: Path, tiny_encoder: Path, tiny_generator: Path) -> Path:
    """Write a collection of 400 passages and 160 questions, and a params file with the tiny models."""
    draw = random.Random(3)
    texts = [" ".join("".join(draw.choices(SYLLABLES, k=3)) for _ in range(draw.randint(5, 40))) for _ in range(400)]
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"p{n}", "title": "", "text": text} for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    queries = [{"_id": f"q{n}", "text": " ".join(texts[n].split()[:4]), "answer": f"It is. [p{n}]"} for n in range(160)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    for split, numbers in {"train": range(0, 80), "test": range(80, 160)}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\tp{n}\t1" for n in numbers)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    values = {
        "collection": str(folder), "retriever_model": str(tiny_encoder), "judge_encoder": str(tiny_encoder),
        "generator_model": str(tiny_generator), "generator_max_new_tokens": 24, "audit_splits": ["train"],
        "audit_questions": 0, "dtype": "float32", "prep_sources": ["labelled"], "retriever_epochs": [1.0],
    }  # fmt: skip
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def start(experiment: Path, name: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RAGBENCH_CACHE": str(experiment / f"cache-{name}")}
    ragbench = str(Path(sys.executable).parent / "ragbench")
    arguments = [ragbench, "run", str(experiment / "experiment.yaml"), "--out", str(experiment / name)]
    with (experiment / f"{name}.log").open("ab") as log:
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log)


def cached(experiment: Path, name: str, part: str) -> int:
    path = experiment / f"cache-{name}" / f"{part}.sqlite"
    if not path.exists():
        return 0
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])
    except sqlite3.OperationalError:  # the table is not there yet
        return 0
    finally:
        connection.close()


def kill_when(process: subprocess.Popen[bytes], reached) -> None:
    while not reached():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.wait()


def metrics(experiment: Path, name: str) -> list:
    return [
        json.loads((experiment / name / stage / "metrics.json").read_text())
        for stage in ("01_audit", "03_retriever", "06_evaluation")
    ]


def test_a_run_killed_in_encoding_and_in_answering_ends_with_the_metrics_of_an_undisturbed_one(experiment):
    kill_when(start(experiment, "killed"), lambda: cached(experiment, "killed", "embeddings") > 0)
    encoded = cached(experiment, "killed", "embeddings")
    assert not (experiment / "killed" / "01_audit").exists()
    kill_when(start(experiment, "killed"), lambda: cached(experiment, "killed", "answers") > 0)
    assert cached(experiment, "killed", "embeddings") > encoded
    assert start(experiment, "killed").wait() == 0, (experiment / "killed.log").read_text()
    assert start(experiment, "calm").wait() == 0, (experiment / "calm.log").read_text()
    assert metrics(experiment, "killed") == metrics(experiment, "calm")
    assert cached(experiment, "killed", "answers") == cached(experiment, "calm", "answers")
