import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from ragbench.errors import RagbenchError
from ragbench.files import sha256_file
from ragbench.workbench.execution import (
    Experiment,
    StageFailed,
    _to_go,
    run_experiment,
    why_left_out,
    why_stale,
)
from ragbench.workbench.params import declared
from ragbench.workbench.project import STAGES, USUAL_SECONDS, notebook_path
from ragbench.workbench.stages import read_meta

FIRST, SECOND = BOTH = STAGES[0], STAGES[-1]
SECRET = "sk-verysecret-1234567"
SHARED = 'run: str = "runs/x"  # folder of the experiment\nseed: int = 1  # seed\n'
FIRST_CELLS = [
    SHARED + "size: int = 3  # letters to write",
    "import os, sys, warnings\nfrom pathlib import Path\n"
    "from ragbench.files import sha256_file\nfrom ragbench.workbench.stages import begin_stage",
    f"stage = begin_stage('{FIRST}', run, globals())\nstage.uses('collection', sha256_file(stage.root / 'data.txt'))",
    "print(os.getcwd(), Path.home() / 'notes', os.environ['RAGBENCH_CACHE'], os.environ['MY_API_KEY'])\n"
    "print(f'{5 * 10}%|#####     | encoding', file=sys.stderr)\nwarnings.warn('a warning of a library')",
    "(stage.folder / 'a.txt').write_text('x' * size)",
    "stage.finish();",
]
SECOND_CELLS = [
    SHARED + 'extra: int = 1  # a number\nhow: str = "well"  # how it ends: well, badly or dead',
    "import os, signal\nfrom ragbench.workbench.stages import begin_stage",
    f"stage = begin_stage('{SECOND}', run, globals())",
    "text = stage.read('01_audit', 'a.txt').read_text()",
    "if how == 'dead':\n    os.kill(os.getpid(), 9)",
    "if how == 'badly':\n    raise ValueError(f\"no good: {stage.run} {os.environ['MY_API_KEY']}\")",
    "(stage.folder / 'b.txt').write_text(f'{text} {extra}')\nstage.finish();",
]


def write_notebook(path: Path, cells: list[str]) -> None:
    written = [nbformat.v4.new_code_cell(cell) for cell in cells]
    written[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=written, metadata={"language_info": {"name": "python"}}), path)


def edit(root: Path, stage: str, cell: int, source: str) -> None:
    notebook = nbformat.read(notebook_path(root, stage), as_version=4)
    notebook.cells[cell].source = source
    nbformat.write(notebook, notebook_path(root, stage))


def experiment(root: Path, **values) -> Experiment:
    return Experiment(
        root, root / "runs/x", declared(root, BOTH), values, {"collection": sha256_file(root / "data.txt")}
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


@pytest.fixture(scope="module")
def once_run(tmp_path_factory):
    """A project of two notebooks, run once with real kernels, and the names of the stages that ran."""
    root = tmp_path_factory.mktemp("once") / "project"
    write_notebook(root / "notebooks" / f"{FIRST}.ipynb", FIRST_CELLS)
    write_notebook(root / "notebooks" / f"{SECOND}.ipynb", SECOND_CELLS)
    (root / "data.txt").write_text("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_API_KEY", SECRET)
        patch.setenv("RAGBENCH_CACHE", str(root.parent / "the-cache"))
        ran = run_experiment(experiment(root), BOTH)
    return root, ran


@pytest.fixture
def project(once_run, tmp_path, monkeypatch) -> Path:
    """A copy of the project that has run, to be changed."""
    monkeypatch.setenv("MY_API_KEY", SECRET)
    return Path(shutil.copytree(once_run[0], tmp_path / "project"))


def test_a_first_run_executes_every_stage_and_leaves_only_their_folders(once_run):
    root, ran = once_run
    assert ran == [FIRST, SECOND]
    assert names(root / "runs/x") == {FIRST, SECOND}
    assert names(root / "runs/x" / SECOND) == {"b.txt", "meta.json", "report.html", "report.ipynb"}
    assert (root / "runs/x" / SECOND / "b.txt").read_text() == "xxx 1"


def test_a_stage_records_its_parameters_without_the_folder_of_the_run(once_run):
    meta = read_meta(once_run[0] / "runs/x" / FIRST)
    assert meta["parameters"] == {"seed": 1, "size": 3}
    assert set(meta["outputs"]) == {"a.txt"}


def test_the_notebooks_themselves_stay_as_they_were(once_run):
    notebook = nbformat.read(notebook_path(once_run[0], FIRST), as_version=4)
    assert [cell.source for cell in notebook.cells] == FIRST_CELLS
    assert not any(cell.outputs for cell in notebook.cells)


@pytest.mark.parametrize("report", ["report.ipynb", "report.html"])
def test_a_report_of_a_real_run_holds_no_path_and_no_key(once_run, report):
    root = once_run[0]
    text = (root / "runs/x" / FIRST / report).read_text()
    assert "notes" in text
    for private in (str(root.parent), str(Path.home() / "notes"), SECRET, f"{tempfile.gettempdir()}/ipykernel"):
        assert private not in text


def test_progress_and_warnings_stay_in_the_notebook_and_out_of_the_page(once_run):
    folder = once_run[0] / "runs/x" / FIRST
    for noise in ("encoding", "a warning of a library"):
        outputs = [cell.outputs for cell in nbformat.read(folder / "report.ipynb", as_version=4).cells if cell.outputs]
        assert any(noise in output.get("text", "") for cell in outputs for output in cell)
    page = (folder / "report.html").read_text()
    assert "50%|" not in page
    assert "UserWarning" not in page


def test_a_second_run_executes_nothing(project):
    before = {path: path.stat().st_mtime_ns for path in (project / "runs/x").rglob("*.*") if path.name != ".lock"}
    assert run_experiment(experiment(project), BOTH) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_changed_parameter_runs_again_only_the_stage_that_uses_it(project):
    assert run_experiment(experiment(project, extra=2), BOTH) == [SECOND]
    assert (project / "runs/x" / SECOND / "b.txt").read_text() == "xxx 2"
    assert why_stale(experiment(project), SECOND) == "other parameters (extra)"


def test_a_changed_result_runs_the_stages_again_that_read_it(project):
    assert run_experiment(experiment(project, size=4), BOTH) == [FIRST, SECOND]
    assert (project / "runs/x" / SECOND / "b.txt").read_text() == "xxxx 1"


def test_an_edited_notebook_runs_again(project):
    edit(project, SECOND, -1, "(stage.folder / 'b.txt').write_text('edited')\nstage.finish();")
    assert why_stale(experiment(project), FIRST) is None
    assert run_experiment(experiment(project), BOTH) == [SECOND]
    assert (project / "runs/x" / SECOND / "b.txt").read_text() == "edited"


def test_a_changed_input_from_outside_runs_again_only_what_it_changes(project):
    (project / "data.txt").write_text("other data")
    assert why_stale(experiment(project), FIRST) == "another collection"
    assert run_experiment(experiment(project), BOTH) == [FIRST]
    assert run_experiment(experiment(project), BOTH) == []


def test_a_failing_cell_stops_the_run_and_running_again_resumes_there(project):
    run = project / "runs/x"
    with pytest.raises(StageFailed) as error:
        run_experiment(experiment(project, how="badly"), BOTH)
    message = str(error.value)
    assert f"notebooks/{SECOND}.ipynb failed in cell 6 " in message  # as counted in that file
    assert "ValueError: no good" in message
    assert f"runs/x/{SECOND}.failed.ipynb" in message
    assert SECRET not in message
    assert len(message.splitlines()) <= 4
    failed = nbformat.read(run / f"{SECOND}.failed.ipynb", as_version=4)
    assert any(output.get("ename") == "ValueError" for cell in failed.cells for output in cell.get("outputs", []))
    assert SECRET not in (run / f"{SECOND}.failed.ipynb").read_text()
    assert run_experiment(experiment(project, how="well at last"), BOTH) == [SECOND]
    assert names(run) == {FIRST, SECOND}


def test_stages_after_a_failing_one_do_not_run_and_its_copy_names_no_folder_outside(project, tmp_path):
    edit(project, FIRST, -2, "1 / 0")
    elsewhere = replace(experiment(project), run=tmp_path / "elsewhere" / "deep")
    with pytest.raises(StageFailed, match=rf"{FIRST}\.ipynb failed in cell 5 .*ZeroDivisionError: division by zero"):
        run_experiment(elsewhere, BOTH)
    assert names(elsewhere.run) == {f"{FIRST}.partial", f"{FIRST}.failed.ipynb"}
    assert why_stale(elsewhere, FIRST) == "interrupted"
    assert why_stale(elsewhere, SECOND) == "not run yet"
    assert str(tmp_path) not in (elsewhere.run / f"{FIRST}.failed.ipynb").read_text()


def test_a_process_that_dies_is_reported_and_what_it_showed_is_kept(project):
    with pytest.raises(StageFailed, match=rf"{SECOND}\.ipynb.*process died.*memory.*{SECOND}\.failed\.ipynb"):
        run_experiment(experiment(project, how="dead"), BOTH)
    failed = nbformat.read(project / "runs/x" / f"{SECOND}.failed.ipynb", as_version=4)
    assert failed.cells[0].source == SECOND_CELLS[0]
    assert f"{SECOND}.running.ipynb" not in names(project / "runs/x")
    assert why_stale(experiment(project), FIRST) is None


def test_a_second_run_at_the_same_time_is_refused(project):
    second_run = (
        "from ragbench.errors import RagbenchError\n"
        "from ragbench.workbench.execution import Experiment, run_experiment\n"
        "try:\n    run_experiment(Experiment(stage.folder, stage.run, {}, {}, {}))\n    said = 'no error'\n"
        "except RagbenchError as error:\n    said = str(error)\n"
        "(stage.folder / 'b.txt').write_text(said)\nstage.finish();"
    )
    edit(project, SECOND, -1, second_run)
    assert run_experiment(experiment(project), BOTH) == [SECOND]
    said = (project / "runs/x" / SECOND / "b.txt").read_text()
    assert said == f"Another `ragbench run` is working on {project / 'runs/x'}. Wait for it, or stop it."


def test_a_result_changed_by_hand_is_an_error_that_names_it(project):
    (project / "runs/x" / FIRST / "a.txt").write_text("yyy")
    with pytest.raises(RagbenchError, match=rf"{FIRST}/a\.txt has changed"):
        run_experiment(experiment(project), BOTH)


@pytest.mark.parametrize("report", ["report.ipynb", "report.html"])
def test_a_stage_without_its_report_is_not_complete(project, report):
    (project / "runs/x" / SECOND / report).unlink()
    assert why_stale(experiment(project), SECOND) == "no report"


def test_a_stage_whose_earlier_stage_is_gone_is_not_complete(project):
    shutil.rmtree(project / "runs/x" / FIRST)
    assert why_stale(experiment(project), FIRST) == "not run yet"
    assert why_stale(experiment(project), SECOND) == f"another {FIRST}/a.txt"


def test_a_notebook_that_gained_a_parameter_is_not_complete(project):
    edit(project, FIRST, 0, FIRST_CELLS[0] + '\nname: str = "n"  # a name')
    assert why_stale(experiment(project), FIRST) == "other parameters (name)"


def test_only_the_named_stages_run_in_the_order_of_the_chain(project):
    assert run_experiment(experiment(project, size=4), [FIRST]) == [FIRST]
    assert why_stale(experiment(project, size=4), SECOND) == f"another {FIRST}/a.txt"
    assert run_experiment(experiment(project, size=5), [SECOND, FIRST]) == [FIRST, SECOND]
    assert (project / "runs/x" / SECOND / "b.txt").read_text() == "xxxxx 1"


def test_all_stages_run_if_none_is_named(project):
    edit(project, FIRST, -1, "raise SystemError('the first')")
    with pytest.raises(StageFailed, match="the first"):
        run_experiment(experiment(project))


def test_a_stage_alone_whose_earlier_stage_is_missing_names_the_notebook_to_run(project):
    shutil.rmtree(project / "runs/x" / FIRST)
    with pytest.raises(StageFailed, match=rf"{SECOND}\.ipynb failed .*notebooks/{FIRST}\.ipynb"):
        run_experiment(experiment(project), [SECOND])


def test_an_unknown_stage_is_an_error_that_lists_them_before_anything_runs(project, tmp_path):
    elsewhere = replace(experiment(project), run=tmp_path / "elsewhere")
    with pytest.raises(RagbenchError, match=f"no stage '04_typo'; there are: {', '.join(STAGES)}"):
        run_experiment(elsewhere, [FIRST, "04_typo"])
    assert not elsewhere.run.exists()


def test_the_line_of_a_stage_says_how_far_the_run_is_and_about_how_long_it_takes(project, capsys):
    run_experiment(experiment(project, size=4), BOTH)
    told = capsys.readouterr().err
    assert f"{FIRST} (1 of 2): other parameters" in told and f"{SECOND} (2 of 2): another" in told
    assert re.search(rf"{FIRST}: done in \d+ s; about \d+ (s|min) to go", told)
    assert re.search(rf"{SECOND}: done in \d+ s\n", told)


def test_what_is_left_is_estimated_by_the_pace_so_far():
    half = {stage: USUAL_SECONDS[stage] / 2 for stage in ("01_audit", "02_data_prep")}
    assert _to_go(half, ["04_generator", "06_evaluation"]) == "; about 4 min to go"
    assert _to_go(half, ["02_data_prep"]) == "; about 14 s to go"
    assert _to_go(half, []) == ""


def test_a_stage_that_is_for_another_value_of_a_parameter_is_left_out_and_says_why(project, capsys):
    notebook = nbformat.read(notebook_path(project, SECOND), as_version=4)
    notebook.metadata["ragbench"] = {"only_with": {"how": "well"}}
    nbformat.write(notebook, notebook_path(project, SECOND))
    other = experiment(project, how="badly")
    assert why_left_out(other, SECOND) == "left out, as how is 'badly' and not 'well'"
    assert why_left_out(experiment(project), SECOND) is why_left_out(other, FIRST) is None
    assert SECOND not in run_experiment(other, BOTH)
    assert f"{SECOND} (2 of 2): left out, as how is 'badly'" in capsys.readouterr().err
