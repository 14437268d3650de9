import hashlib
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

from ragbench.errors import RagbenchError
from ragbench.workbench.project import STAGES, notebook_path, project_root
from ragbench.workbench.stages import Stage, begin_stage, check_outputs, code_hash, library_versions, read_meta

FIRST, SECOND = STAGES[0], STAGES[-1]
REAL_PROJECT = Path(__file__).parents[2]
RUN = 'run: str = "runs/x"  # folder of the experiment\n'


def write_notebook(path: Path, parameters: str, code: str = "print(1)") -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# A stage"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    root = (tmp_path / "project").resolve()
    write_notebook(root / "notebooks" / f"{FIRST}.ipynb", RUN + "seed: int = 1  # seed\ndepth: int = 5  # depth")
    write_notebook(root / "notebooks" / f"{SECOND}.ipynb", RUN + "seed: int = 1  # seed\nwidth: int = 7  # width")
    monkeypatch.chdir(root)
    return root


def first(seed: int = 1, depth: int = 5) -> Stage:
    return begin_stage(FIRST, "runs/x", {"run": "runs/x", "seed": seed, "depth": depth, "unrelated": object()})


def second(seed: int = 1, width: int = 7) -> Stage:
    return begin_stage(SECOND, "runs/x", {"run": "runs/x", "seed": seed, "width": width})


def finished_first(text: str = "hello") -> Path:
    stage = first()
    (stage.folder / "a.txt").write_text(text)
    return stage.finish()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_stage_is_written_beside_its_place_and_renamed_when_complete(project):
    stage = first()
    (stage.folder / "a.txt").write_text("hello")
    assert [path.name for path in (project / "runs/x").iterdir()] == [f"{FIRST}.partial"]
    assert stage.finish() == project / "runs/x" / FIRST
    assert [path.name for path in (project / "runs/x").iterdir()] == [FIRST]
    assert (project / "runs/x" / FIRST / "a.txt").read_text() == "hello"


def test_meta_accounts_for_parameters_inputs_outputs_and_versions(project):
    stage = first(seed=3)
    (stage.folder / "plots").mkdir()
    (stage.folder / "plots" / "p.png").write_bytes(b"\x89PNG")
    (stage.folder / "a.txt").write_text("hello")
    stage.uses("collection", "abc")
    meta = json.loads((stage.finish() / "meta.json").read_text())
    assert meta["stage"] == FIRST
    assert meta["parameters"] == {"seed": 3, "depth": 5}
    assert meta["seed"] == 3
    assert meta["inputs"] == {"collection": "abc"}
    assert meta["outputs"] == {"a.txt": sha256(b"hello"), "plots/p.png": sha256(b"\x89PNG")}
    assert meta["versions"]["torch"] == version("torch")
    assert meta["wall_seconds"] >= 0
    assert meta["code"] == code_hash(project, FIRST)


def test_versions_name_python_and_what_is_installed():
    versions = library_versions()
    assert versions["python"] == platform.python_version()
    assert versions["ragbench"] == version("ragbench")
    assert versions["transformers"] == version("transformers")


def test_the_commit_is_noted_with_a_mark_for_uncommitted_changes(project):
    assert read_meta(finished_first())["git_commit"] is None
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "notebooks"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *command], cwd=project, check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True).stdout.strip()
    assert read_meta(finished_first())["git_commit"] == head
    with notebook_path(project, FIRST).open("a") as file:
        file.write("\n")
    assert read_meta(finished_first())["git_commit"] == head + "+"


def test_a_later_stage_reads_a_file_and_notes_its_hash(project):
    finished_first("hello")
    stage = second()
    assert stage.read(FIRST, "a.txt").read_text() == "hello"
    assert read_meta(stage.finish())["inputs"] == {f"{FIRST}/a.txt": sha256(b"hello")}


def test_beginning_again_removes_what_a_crash_left_but_keeps_the_complete_stage(project):
    finished_first("old")
    (first().folder / "half.txt").write_text("half")
    stage = first()
    assert list(stage.folder.iterdir()) == []
    assert (project / "runs/x" / FIRST / "a.txt").read_text() == "old"
    (stage.folder / "b.txt").write_text("new")
    assert sorted(path.name for path in stage.finish().iterdir()) == ["b.txt", "meta.json"]


def test_a_changed_output_is_an_error_that_names_the_file(project):
    folder = finished_first()
    assert check_outputs(folder)["stage"] == FIRST
    (folder / "a.txt").write_text("hellO")
    with pytest.raises(RagbenchError, match=rf"{FIRST}/a\.txt has changed"):
        check_outputs(folder)
    with pytest.raises(RagbenchError, match=rf"{FIRST}/a\.txt has changed"):
        second().read(FIRST, "a.txt")


def test_a_missing_output_is_an_error_that_names_the_file(project):
    folder = finished_first()
    (folder / "a.txt").unlink()
    with pytest.raises(RagbenchError, match=rf"{FIRST}/a\.txt is missing"):
        check_outputs(folder)
    with pytest.raises(RagbenchError, match=rf"{FIRST}/a\.txt is missing"):
        second().read(FIRST, "a.txt")


def test_a_missing_stage_names_the_notebook_to_run_first(project):
    with pytest.raises(RagbenchError, match=rf"Run notebooks/{FIRST}\.ipynb first"):
        second().read(FIRST, "a.txt")


def test_a_stage_that_did_not_finish_counts_as_missing(project):
    (first().folder / "a.txt").write_text("half")
    with pytest.raises(RagbenchError, match=rf"Run notebooks/{FIRST}\.ipynb first"):
        second().read(FIRST, "a.txt")


def test_a_file_that_the_stage_never_wrote_is_an_error(project):
    finished_first()
    with pytest.raises(RagbenchError, match=rf"b\.txt is no output of {FIRST}"):
        second().read(FIRST, "b.txt")


def finished_model() -> Path:
    stage = first()
    for name in ("model/config.json", "model/1_Pooling/config.json", "model.txt", "other/model/x", "decision.json"):
        (stage.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (stage.folder / name).write_text(name)
    return stage.finish()


def test_a_later_stage_reads_a_folder_and_notes_the_hash_of_every_file_below_it(project):
    place = finished_model()
    stage = second()
    assert stage.read_folder(FIRST, "model") == place / "model"
    names = ("model/config.json", "model/1_Pooling/config.json")
    assert stage.inputs == {f"{FIRST}/{name}": sha256(name.encode()) for name in names}


def test_a_changed_or_missing_file_of_a_folder_is_an_error_that_names_it(project):
    place = finished_model()
    (place / "model" / "1_Pooling" / "config.json").write_text("other")
    with pytest.raises(RagbenchError, match=rf"{FIRST}/model/1_Pooling/config\.json has changed"):
        second().read_folder(FIRST, "model")
    (place / "model" / "1_Pooling" / "config.json").unlink()
    with pytest.raises(RagbenchError, match=rf"{FIRST}/model/1_Pooling/config\.json is missing"):
        second().read_folder(FIRST, "model")


@pytest.mark.parametrize("folder", ["mod", "decision.json", "model/con", "elsewhere"])
def test_a_folder_that_the_stage_never_wrote_names_the_notebook_to_run(project, folder):
    finished_model()
    with pytest.raises(RagbenchError, match=rf"{folder} is no folder that {FIRST} wrote.*notebooks/{FIRST}\.ipynb"):
        second().read_folder(FIRST, folder)


def test_a_folder_of_a_stage_that_has_not_run_or_ran_otherwise_names_the_notebook(project):
    with pytest.raises(RagbenchError, match=rf"Run notebooks/{FIRST}\.ipynb first"):
        second().read_folder(FIRST, "model")
    finished_model()
    with pytest.raises(RagbenchError, match=rf"seed = 2, but {FIRST} .*ran with 1"):
        second(seed=2).read_folder(FIRST, "model")


@pytest.mark.parametrize("text", ["", '{"stage": "01_audit"'])
def test_a_damaged_meta_says_what_to_do(project, text):
    folder = finished_first()
    (folder / "meta.json").write_text(text)
    with pytest.raises(RagbenchError, match=rf"meta\.json is damaged.*notebooks/{FIRST}\.ipynb"):
        read_meta(folder)


def test_a_shared_parameter_with_another_value_is_an_error(project):
    finished_first()
    with pytest.raises(RagbenchError, match=rf"seed = 2, but {FIRST} .*ran with 1.*notebooks/{FIRST}\.ipynb"):
        second(seed=2).read(FIRST, "a.txt")


def test_a_parameter_that_the_other_notebook_lacks_may_have_any_value(project):
    finished_first()
    assert second(width=99).read(FIRST, "a.txt").is_file()


@pytest.mark.parametrize("where", [".", "notebooks"])
def test_the_run_folder_is_the_same_from_the_project_folder_and_from_notebooks(project, monkeypatch, where):
    monkeypatch.chdir(project / where)
    assert project_root() == project
    assert finished_first() == project / "runs/x" / FIRST


def test_outside_a_project_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RagbenchError, match=r"not in a ragbench project: .*notebooks/01_audit\.ipynb"):
        begin_stage(FIRST, "runs/x", {})


def test_a_run_folder_may_stand_outside_the_project(project, tmp_path):
    stage = begin_stage(FIRST, str(tmp_path / "elsewhere"), {"run": "", "seed": 1, "depth": 5})
    assert stage.finish() == tmp_path / "elsewhere" / FIRST


@pytest.mark.parametrize("name", STAGES)
def test_the_last_line_of_a_notebook_works_for_a_run_folder_outside_the_project(tmp_path, monkeypatch, name):
    monkeypatch.chdir(REAL_PROJECT)
    last_cell = nbformat.read(notebook_path(REAL_PROJECT, name), as_version=4).cells[-1].source
    stage = Stage(name, REAL_PROJECT, tmp_path / "elsewhere", {})
    stage.folder.mkdir(parents=True)
    exec(last_cell.splitlines()[-1], {"stage": stage})
    assert (tmp_path / "elsewhere" / name / "meta.json").is_file()


def test_the_code_hash_ignores_outputs_and_notices_edits(project):
    path = notebook_path(project, FIRST)
    before = code_hash(project, FIRST)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
    notebook.cells[2].execution_count = 3
    nbformat.write(notebook, path)
    assert code_hash(project, FIRST) == before
    notebook.cells[2].source = "print(2)"
    nbformat.write(notebook, path)
    assert code_hash(project, FIRST) != before
    assert code_hash(project, SECOND) != code_hash(project, FIRST)
