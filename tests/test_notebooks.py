"""The real notebooks with the real models: by themselves under papermill, and as a chain."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ragbench.models import resolve_model

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(1500)  # one of them waits for the whole chain
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def command(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def call(*arguments: str, cache: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAGBENCH_CACHE": str(cache)}
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, real_cache: Path) -> Path:
    """Run the chain once with params/smoke.yaml; return the folder of results."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = call(command("ragbench"), "run", "params/smoke.yaml", "--out", str(folder), cache=real_cache)
    assert done.returncode == 0, done.stderr
    assert "Could not find a config file" not in done.stderr, "PEFT asked the hub for the base model"
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_clean_and_only_calls(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "parameters" in code[0].metadata.get("tags", [])
    assert not any(re.search(r"^\s*(def|class|for|if|while) ", cell.source, re.M) for cell in code)
    assert len(code) <= 18
    assert max(cell.source.count("\n") for cell in code[1:]) < 20


def test_the_chain_leaves_every_promised_file(smoke):
    promised = {
        "meta.json",
        "metrics.json",
        "scores.parquet",
        "base.trec",
        "base.answers.jsonl",
        "report.ipynb",
        "report.html",
    }
    assert {"findings.json", "evidence.parquet", "settings.yaml", "base.oracle.answers.jsonl"} <= {
        path.name for path in (smoke / "01_audit").iterdir()
    }
    for stage in ("01_audit", "06_evaluation"):
        assert promised <= {path.name for path in (smoke / stage).iterdir()}
    for stage in ("04_generator", "05_end_to_end"):
        assert {"decision.json", "metrics.json", "scores.parquet", "training_log.csv", "report.html"} <= {
            path.name for path in (smoke / stage).iterdir()
        }
    assert (smoke / "index.html").is_file()
    assert not list(smoke.glob("*.partial")) + list(smoke.glob("*.running.ipynb"))


def test_data_preparation_leaves_data_that_the_libraries_read(smoke):
    folder = smoke / "02_data_prep"
    rows = pq.read_table(folder / "retriever.parquet")
    assert rows.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    pairs = pq.read_table(folder / "pairs.parquet").to_pylist()
    assert len(pairs) == rows.num_rows > 300
    assert {"labelled", "sentence"} <= {pair["source"] for pair in pairs}
    assert not any(pair["passage_id"] in pair["negative_ids"] for pair in pairs)
    examples = pq.read_table(folder / "generator.parquet").to_pylist()
    assert {message["role"] for message in examples[0]["prompt"]} == {"system", "user"}
    assert examples[0]["completion"][0]["role"] == "assistant"
    card = json.loads((folder / "data_card.json").read_text())
    assert card["pairs"]["labelled"] == sum(pair["source"] == "labelled" for pair in pairs)
    assert set(card["files"]) == {path.name for path in folder.iterdir()} - {
        "data_card.json", "data_card.md", "meta.json", "report.html", "report.ipynb"
    }  # fmt: skip
    assert card["generator examples rejected"] == dict(
        Counter(pq.read_table(folder / "generator_rejected.parquet").column("reason").to_pylist())
    )


def test_the_tuned_retriever_is_a_plain_model_and_has_moved(smoke):
    from sentence_transformers import SentenceTransformer

    folder = smoke / "03_retriever"
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["kept"] == ("tuned" if all(guard["holds"] for guard in decision["guards"]) else "base")
    assert {"base.trec", "retriever.trec", "training_log.csv"} <= {path.name for path in folder.iterdir()}
    model = SentenceTransformer(str(folder / "model"), device="cpu", local_files_only=True)
    base = SentenceTransformer(str(resolve_model("all-MiniLM-L6-v2")), device="cpu", local_files_only=True)
    same = (model.encode("a question") == base.encode("a question")).all()
    assert same == (decision["kept"] == "base")
    assert "nDCG@10 on dev" in (folder / "model" / "README.md").read_text()


def test_the_tuned_generator_is_an_adapter_that_opens_or_the_report_says_why_there_is_none(smoke):
    folder = smoke / "04_generator"
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["kept"] == ("tuned" if all(guard["holds"] for guard in decision["guards"]) else "base")
    assert next(guard for guard in decision["guards"] if guard["name"] == "parameters moved")["holds"]
    if decision["kept"] == "tuned":
        config = json.loads((folder / "model" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "SmolLM2-135M-Instruct"
    else:
        assert "The base model is kept" in (folder / "README.md").read_text()
    assert decision["reason"] in (folder / "report.html").read_text()


def test_joint_training_took_its_steps_and_tells_what_it_did(smoke):
    folder = smoke / "05_end_to_end"
    assert len(pd.read_csv(folder / "training_log.csv")) == 2
    looks = pd.read_csv(folder / "looks.csv")
    assert looks["step"].tolist() == [0, 2]
    decision = json.loads((folder / "decision.json").read_text())
    assert (folder / "retriever").is_dir() is (decision["kept"] == "tuned")
    assert "what is retrieved now" in (folder / "report.html").read_text()


def test_all_systems_are_compared_question_by_question(smoke):
    metrics = json.loads((smoke / "06_evaluation" / "metrics.json").read_text())
    assert list(metrics["systems"]) == ["base", "retriever", "generator", "both", "end_to_end"]
    compared = {(entry["system"], entry["split"], entry["metric"]) for entry in metrics["comparisons"]}
    kept = json.loads((smoke / "03_retriever" / "decision.json").read_text())["kept"] == "tuned"
    assert ("generator", "test", "answer_f1") in compared
    # What is retrieved is compared where it can differ.
    assert (("retriever", "test", "ndcg@10") in compared) is (("both", "ood", "ndcg@10") in compared) is kept
    assert ("end_to_end", "both") in {(entry["system"], entry["baseline"]) for entry in metrics["comparisons"]}
    for entry in metrics["comparisons"]:
        if entry["n"] == metrics["systems"]["base"][entry["split"]][entry["metric"]]["scored"]:
            before, after = (
                metrics["systems"][entry[role]][entry["split"]][entry["metric"]]["mean"]
                for role in ("baseline", "system")
            )
            assert entry["difference"] == pytest.approx(after - before, abs=1e-9)


def test_the_evaluation_tells_what_became_of_the_signs_and_names_a_system(smoke):
    verdict = json.loads((smoke / "06_evaluation" / "verdict.json").read_text())
    assert verdict["use"] in ("base", "retriever", "generator", "both", "end_to_end")
    assert list(verdict["sections"]) == ["retriever", "generator", "both", "end_to_end"]
    page = (smoke / "06_evaluation" / "report.html").read_text()
    assert "What became of the signs" in page and "training seconds" in page


def test_the_metrics_are_those_of_real_models_on_real_questions(smoke):
    metrics = json.loads((smoke / "06_evaluation" / "metrics.json").read_text())
    values = metrics["systems"]["base"]
    assert set(values) == {"test", "ood"}
    assert sum(values[split]["refusal"]["n"] for split in values) == 4
    assert all(0 <= entry["mean"] <= 1 for split in values.values() for entry in split.values())
    answers = [json.loads(line) for line in (smoke / "06_evaluation" / "base.answers.jsonl").read_text().splitlines()]
    assert len({answer["answer"] for answer in answers}) > 1
    assert all(1 <= len(answer["context_ids"]) <= 2 for answer in answers)


def test_a_second_run_does_nothing_and_says_so(smoke, real_cache):
    before = {path: path.stat().st_mtime_ns for path in smoke.glob("*/*")}
    done = call(command("ragbench"), "run", "params/smoke.yaml", "--out", str(smoke), cache=real_cache)
    assert done.returncode == 0
    assert "Nothing to do" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in smoke.glob("*/*")}


def test_the_audit_runs_alone_under_papermill_and_gives_the_chains_metrics(smoke, tmp_path, real_cache):
    out = tmp_path / "out.ipynb"
    arguments = ["notebooks/01_audit.ipynb", str(out), "-f", "params/smoke.yaml", "-p", "run", str(tmp_path / "run")]
    done = call(command("papermill"), *arguments, cache=real_cache)
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "run" / "01_audit" / "metrics.json").read_text())
    assert alone == json.loads((smoke / "01_audit" / "metrics.json").read_text())


def test_a_notebook_runs_from_its_own_folder_as_in_jupyterlab(tmp_path, real_cache, smoke):
    out = tmp_path / "out.ipynb"
    arguments = ["02_data_prep.ipynb", str(out), "-f", "../params/smoke.yaml", "-p", "run", str(tmp_path / "run")]
    done = call(command("papermill"), *arguments, cache=real_cache, cwd=ROOT / "notebooks")
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "run" / "02_data_prep" / "data_card.json").read_text())
    assert alone == json.loads((smoke / "02_data_prep" / "data_card.json").read_text())


def test_a_notebook_whose_inputs_are_missing_says_what_to_run_first(tmp_path, real_cache):
    out = tmp_path / "out.ipynb"
    arguments = [
        "notebooks/03_retriever.ipynb",
        str(out),
        "-f",
        "params/smoke.yaml",
        "-p",
        "run",
        str(tmp_path / "run"),
    ]
    done = call(command("papermill"), *arguments, cache=real_cache)
    assert done.returncode != 0
    assert "Run notebooks/02_data_prep.ipynb first" in done.stderr


def test_the_reports_show_nothing_of_this_machine(smoke, real_cache):
    for path in [*smoke.glob("*/report.*"), smoke / "index.html"]:
        text = path.read_text()
        for secret in (str(ROOT), str(real_cache), str(Path.home()) + "/", sys.prefix):
            assert secret not in text, f"{path.name} holds {secret}"


def test_the_report_shows_the_questions_and_needs_no_network(smoke):
    page = (smoke / "01_audit" / "report.html").read_text()
    signs, worst = page.split("The worst questions")
    assert signs.count('<details class="case">') == 12
    assert worst.count('<details class="case">') == 3
    assert page.count("data:image/png;base64,") >= 4
    assert not re.search(r'(src|href)="https?://', page.split("</style>")[-1])
    assert "<script" not in page
