"""A folder with nothing but a corpus: a retriever is tuned on what it gives itself, and the report says so."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SYLLABLES = ["ba", "de", "gi", "ko", "lu", "ma", "ne", "pi", "ro", "su"]


@pytest.fixture
def experiment(tmp_path: Path, tiny_encoder: Path) -> Path:
    """Write 120 passages of two sentences about the same made-up words, and a params file with the tiny encoder."""
    draw = random.Random(5)
    rows = []
    for number in range(120):
        words = ["".join(draw.choices(SYLLABLES, k=2)) for _ in range(6)]
        first, second = " ".join(words), " ".join(draw.sample(words, 6))
        text = f"{first.capitalize()}. {second.capitalize()}."
        rows.append({"_id": f"p{number}", "text": text, "metadata": {"document_id": f"d{number % 30}"}})
    folder = tmp_path / "corpus-only"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "collection": str(folder), "retriever_model": str(tiny_encoder), "judge_encoder": str(tiny_encoder),
        "generator_backend": "none", "prep_sources": ["labelled", "sentence"], "prep_negatives": 1, "dtype": "float32",
        "retriever_epochs": [4.0], "retriever_learning_rates": [3.0e-3], "retriever_batch": 24,
    }  # fmt: skip
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def run(experiment: Path, *more: str) -> subprocess.CompletedProcess[str]:
    ragbench = str(Path(sys.executable).parent / "ragbench")
    arguments = [ragbench, "run", str(experiment / "experiment.yaml"), "--out", str(experiment / "run"), *more]
    environment = {**os.environ, "RAGBENCH_CACHE": str(experiment / "cache")}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


def test_a_retriever_is_tuned_on_the_corpus_alone_and_judged_by_pairs_held_back(experiment):
    done = run(experiment, "--stages", "02_data_prep,03_retriever")
    assert done.returncode == 0, done.stderr
    dev = json.loads((experiment / "run" / "02_data_prep" / "dev.json").read_text())
    card = json.loads((experiment / "run" / "02_data_prep" / "data_card.json").read_text())
    assert dev["kind"] == "held out"
    assert card["pairs"] == {"sentence": 120 - len(dev["questions"])}
    decision = json.loads((experiment / "run" / "03_retriever" / "decision.json").read_text())
    assert any("No labelled question chose" in note for note in decision["notes"])
    assert (experiment / "run" / "03_retriever" / "model" / "modules.json").is_file()
    assert "No labelled question chose" in (experiment / "run" / "03_retriever" / "report.html").read_text()


def test_what_needs_labels_says_so(experiment):
    done = run(experiment, "--stages", "01_audit")
    assert done.returncode == 1
    assert "has no labelled questions" in done.stderr
    assert "--stages 02_data_prep,03_retriever" in done.stderr.replace("\n", " ")
