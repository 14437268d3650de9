import importlib.metadata
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from typer.testing import CliRunner

from ragbench import cache, cli
from ragbench.collection.load import fingerprint, load_collection
from ragbench.workbench.project import STAGES, notebook_path

PROJECT = Path(__file__).parents[1]
FIRST, LAST = STAGES[0], "06_evaluation"
ALL = ", ".join(STAGES)
PARAMETERS = 'run: str = "runs/x"  # folder\ncollection: str = "toy"  # collection\nhow: str = "well"  # how it ends'
CELLS = {
    FIRST: ["if how == 'badly':\n    raise ValueError('no good')", "(stage.folder / 'a.txt').write_text('a')"],
    **{stage: ["print(1)"] for stage in STAGES if stage not in (FIRST, LAST)},
    LAST: [
        "from ragbench.files import write_json",
        "write_json(stage.folder / 'metrics.json', {'systems': {}, 'comparisons': []})",
        "write_json(stage.folder / 'verdict.json', {'headline': 'It works.', 'sections': {}})",
        "(stage.folder / 'metrics.png').write_bytes(b'picture')",
    ],
}


def write_project(root: Path) -> None:
    for stage, cells in CELLS.items():
        begin = f"from ragbench.workbench.stages import begin_stage\nstage = begin_stage('{stage}', run, globals())"
        written = [nbformat.v4.new_code_cell(cell) for cell in (PARAMETERS, begin, *cells, "stage.finish();")]
        written[0].metadata["tags"] = ["parameters"]
        notebook = nbformat.v4.new_notebook(cells=written, metadata={"language_info": {"name": "python"}})
        path = notebook_path(root, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)


@pytest.fixture
def project(toy_folder, monkeypatch) -> Path:
    """A project folder of small notebooks, with a collection, as the working directory."""
    write_project(toy_folder.parent)
    monkeypatch.chdir(toy_folder.parent)
    return toy_folder.parent


@pytest.fixture
def ragbench(monkeypatch, capsys):
    """Call the command line as the installed script does; return exit status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ragbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            sys.exit(0)
        return (ended.value.code or 0, *capsys.readouterr())

    return call


def params_file(text: str) -> Path:
    Path("trial.yaml").write_text(text)
    return Path("trial.yaml")


def statuses(common: str, **others: str) -> str:
    return "".join(f"{stage:16} {others.get(stage, common)}\n" for stage in STAGES)


def test_help_lists_every_command():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for command in ("run", "status", "params", "compare", "report", "doctor", "collection", "cache", "bundle", "serve"):
        assert command in result.output
    for words in (["run"], ["collection", "check"], ["collection", "export"], ["cache", "clear"]):
        assert CliRunner().invoke(cli.app, [*words, "--help"]).exit_code == 0


def test_the_installed_script_prints_an_error_without_a_traceback(tmp_path):
    script = Path(sys.executable).parent / "ragbench"
    done = subprocess.run([script, "params"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "not in a ragbench project" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_does_not_wait_for_heavy_libraries():
    heavy = {"torch", "transformers", "datasets", "papermill", "pandas"}
    code = f"import sys, ragbench.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_run_then_status_then_nothing_to_do_then_report(project, ragbench):
    path = params_file("how: very well\n")
    assert ragbench("status", path) == (0, statuses("not run yet"), "")
    status, out, _ = ragbench("run", path)
    assert (status, out) == (0, f"Ran {ALL}. Read runs/trial/index.html\n")
    assert ragbench("status", path)[1] == statuses("complete")
    assert ragbench("run", path)[1] == "Nothing to do: every stage is complete. Read runs/trial/index.html\n"
    page, index = Path("runs/trial") / FIRST / "report.html", Path("runs/trial/index.html")
    before = page.read_text(), index.read_text()
    page.unlink()
    index.unlink()
    assert ragbench("report", "runs/trial") == (0, "Read runs/trial/index.html\n", "")
    assert (page.read_text(), index.read_text()) == before
    assert "It works." in before[1]


def test_a_run_of_some_stages_runs_only_these(project, ragbench):
    path = params_file("how: very well\n")
    some = "03_retriever, 02_data_prep"
    assert ragbench("run", path, "--stages", some)[:2] == (
        0, "Ran 02_data_prep, 03_retriever. Read runs/trial/index.html\n"
    )  # fmt: skip
    assert ragbench("status", path)[1] == statuses("not run yet", **dict.fromkeys(some.split(", "), "complete"))
    assert ragbench("run", path, "--stages", some)[1].startswith(f"Nothing to do: {some} is complete")


def test_a_run_with_several_seeds_repeats_training_and_evaluation_and_shows_the_spread(project, ragbench):
    path = params_file("how: very well\n")
    assert ragbench("run", path, "--seeds", "1,2", "--stages", f"{FIRST},{LAST}")[:2] == (
        0, "Read runs/trial/seeds.html\n"
    )  # fmt: skip
    for seed in (1, 2):
        assert (Path("runs/trial") / f"seed-{seed}" / LAST / "meta.json").is_file()
        assert not (Path("runs/trial") / f"seed-{seed}" / FIRST).exists()
    assert "seed-2/index.html" in Path("runs/trial/seeds.html").read_text()
    status, _, err = ragbench("run", path, "--seeds", "1,one")
    assert status == 1 and "--seeds takes at least two different whole numbers" in err


@pytest.mark.parametrize("stages", ["03_retreiver", f"{FIRST},", "all"])
def test_an_unknown_stage_ends_with_status_1_and_lists_the_stages(project, ragbench, stages):
    status, out, err = ragbench("run", params_file(""), "--stages", stages)
    assert (status, out) == (1, "")
    assert err.startswith("error: There is no stage '") and f"there are: {ALL}." in err
    assert not (project / "runs").exists()


def test_a_failing_cell_ends_the_run_with_status_1_and_a_few_lines(project, ragbench):
    status, out, err = ragbench("run", params_file("how: badly\n"), "--out", "elsewhere")
    message = err[err.index("error: ") :]
    assert status == 1
    assert f"notebooks/{FIRST}.ipynb" in message
    assert "ValueError: no good" in message
    assert f"elsewhere/{FIRST}.failed.ipynb" in message
    assert len(message.splitlines()) <= 4
    assert "Traceback" not in err
    assert out == ""
    assert not (project / "elsewhere" / "index.html").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hwo: well\n", "trial.yaml, line 1: no notebook declares 'hwo'. Did you mean 'how'?"),
        ("how: 3\n", "trial.yaml, line 1: 'how' must be str, found 3"),
        ("collection: gone\n", "Collection 'gone': there is no folder"),
    ],
)
@pytest.mark.parametrize("command", ["run", "status"])
def test_a_wrong_params_file_ends_with_status_1_before_anything_runs(project, ragbench, command, text, message):
    status, _, err = ragbench(command, params_file(text))
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert not (project / "runs").exists()


@pytest.mark.parametrize("path", ["gone.yaml", "toy"])
def test_a_params_file_that_is_missing_or_a_folder_ends_with_status_1(project, ragbench, path):
    status, _, err = ragbench("run", path)
    assert status == 1
    assert err.startswith("error: ")
    assert path in err


def test_params_lists_every_parameter_of_the_notebooks(monkeypatch, ragbench):
    monkeypatch.chdir(PROJECT / "notebooks")
    status, out, _ = ragbench("params")
    assert status == 0
    for stage in STAGES:
        for name, parameter in papermill.inspect_notebook(str(notebook_path(PROJECT, stage))).items():
            assert f"{name}: {parameter['inferred_type_name']} = " in out
            assert parameter["help"] in out
    assert f"({ALL})" in out


def test_status_of_a_committed_params_file_runs_and_writes_nothing(ragbench, monkeypatch, tmp_path):
    monkeypatch.chdir(PROJECT)
    status, out, _ = ragbench("status", "params/smoke.yaml", "--out", tmp_path / "empty")
    assert (status, out) == (0, statuses("not run yet"))
    assert not (tmp_path / "empty").exists()


def test_report_refuses_a_folder_that_is_no_run(tmp_path, ragbench):
    status, _, err = ragbench("report", tmp_path / "gone")
    assert (status, "gone" in err) == (1, True)
    (tmp_path / "website").mkdir()
    (tmp_path / "website" / "index.html").write_text("mine")
    status, _, err = ragbench("report", tmp_path / "website")
    assert status == 1
    assert (tmp_path / "website" / "index.html").read_text() == "mine"


def test_doctor_names_versions_models_and_caches(ragbench, own_cache):
    cache.put("answers", {"00" * 32: b"x" * 3_000_000})
    status, out, _ = ragbench("doctor")
    found = {line[:24].strip(): line[25:] for line in out.splitlines()}
    assert status == 0
    assert found["version python"] == platform.python_version()
    assert found["version torch"] == importlib.metadata.version("torch")
    assert found["cache"] == str(own_cache)
    assert 2.8 < float(found["cache answers"].removesuffix(" MiB")) < 8
    assert found["GPU"]
    assert "bfloat16" in found["processor"]
    assert any(name.startswith("model all-MiniLM-L6-v2") for name in found)


def test_collection_check_counts_and_names_what_is_wrong(toy_folder, ragbench):
    with (toy_folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "p5", "title": "Cats", "text": "Cats sleep all day."}\n')
    status, out, _ = ragbench("collection", "check", toy_folder)
    lines = {line[:28].strip(): line[29:] for line in out.splitlines()}
    assert status == 0
    assert lines["passages"].startswith("5")
    assert lines["empty passages"] == "0"
    assert any("p1" in text and "p5" in text for text in lines.values())


def test_collection_check_of_a_corpus_alone_counts_its_passages(toy_folder, ragbench):
    shutil.rmtree(toy_folder / "qrels")
    (toy_folder / "queries.jsonl").unlink()
    status, out, _ = ragbench("collection", "check", toy_folder)
    lines = {line[:28].strip(): line[29:] for line in out.splitlines()}
    assert (status, lines["passages"], lines["queries"], lines["queries in no split"]) == (0, "4", "0", "0")


def test_collection_check_of_broken_files_ends_with_file_and_line(toy_folder, ragbench):
    with (toy_folder / "corpus.jsonl").open("a") as file:
        file.write("{broken\n")
    status, out, err = ragbench("collection", "check", toy_folder)
    assert (status, out) == (1, "")
    assert "corpus.jsonl" in err
    assert "5" in err.split("corpus.jsonl")[1].split(":")[0]


def test_an_exported_collection_is_the_same_collection(toy_folder, tmp_path, ragbench):
    assert ragbench("collection", "export", toy_folder, tmp_path / "copy")[0] == 0
    assert fingerprint(load_collection(str(tmp_path / "copy"))) == fingerprint(load_collection(str(toy_folder)))
    assert (tmp_path / "copy" / "qrels" / "test.tsv").is_file()


def test_export_overwrites_nothing(toy_folder, tmp_path, ragbench):
    before = (toy_folder / "corpus.jsonl").read_bytes()
    status, _, err = ragbench("collection", "export", toy_folder, toy_folder)
    assert (status, "not empty" in err) == (1, True)
    assert (toy_folder / "corpus.jsonl").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    status, _, err = ragbench("collection", "export", toy_folder, tmp_path / "file")
    assert status == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_cache_clear_empties_one_part_or_all(ragbench, own_cache):
    for name in ("answers", "embeddings"):
        cache.put(name, {"00" * 32: b"x" * 3_000_000})
    status, out, _ = ragbench("cache", "clear", "answers")
    assert status == 0
    assert 2.8 < float(out.removeprefix("Freed ").removesuffix(" MiB\n")) < 8
    assert set(cache.sizes()) == {"embeddings"}
    assert ragbench("cache", "clear")[0] == 0
    assert cache.sizes() == {}


def test_cache_clear_of_an_unknown_part_lists_those_that_are_there(ragbench):
    cache.put("embeddings", {"00" * 32: b"x"})
    status, _, err = ragbench("cache", "clear", "embedings")
    assert status == 1
    assert "there are: embeddings" in err
    assert set(cache.sizes()) == {"embeddings"}


@pytest.mark.parametrize("words", [["rnu"], ["run"], ["collection", "chekc"], ["run", "a.yaml", "--fast"]])
def test_a_wrong_call_is_explained_with_status_2(ragbench, words):
    status, _, err = ragbench(*words)
    assert status == 2
    assert "Usage: " in err
    assert "Traceback" not in err
