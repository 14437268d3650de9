"""Running the notebooks of an experiment with papermill: in order, skipping what is current, resuming after a crash."""

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from ragbench.errors import RagbenchError
from ragbench.workbench.params import Parameter, stage_values
from ragbench.workbench.project import STAGES, USUAL_SECONDS, notebook_path
from ragbench.workbench.reports import save_report, scrub_file, scrub_text
from ragbench.workbench.stages import META, REPORTS, check_outputs, code_hash, read_meta

KERNEL = "python3"
_CAUSE_LINES = 6


@dataclass(frozen=True)
class Experiment:
    """What `ragbench run` was asked for.

    Attributes:
        root: the project folder.
        run: the folder of results.
        known: the declared parameters.
        values: those that the params file sets.
        outside: name → SHA-256 of inputs from outside the run, such as the collection.
    """

    root: Path
    run: Path
    known: Mapping[str, Parameter]
    values: Mapping[str, Any]
    outside: Mapping[str, str]

    def parameters(self, stage: str) -> dict[str, Any]:
        """Return a stage's parameters as its meta.json records them (without the folder of the run)."""
        return {key: value for key, value in stage_values(self.known, self.values, stage).items() if key != "run"}


class StageFailed(RagbenchError):
    """A notebook stopped with an error; the message names notebook, cell and cause."""


def why_left_out(experiment: Experiment, stage: str) -> str | None:
    """Return why a stage is not for this experiment, or None if it is.

    A notebook's metadata may say ``{"ragbench": {"only_with": {"generator_backend": "local"}}}``: there is nothing for
    it to do with another value of that parameter.
    """
    notebook = json.loads(notebook_path(experiment.root, stage).read_text(encoding="utf-8"))
    for name, value in notebook["metadata"].get("ragbench", {}).get("only_with", {}).items():
        found = experiment.parameters(stage)[name]
        if found != value:
            return f"left out, as {name} is {found!r} and not {value!r}"
    return None


def why_stale(experiment: Experiment, stage: str) -> str | None:
    """Return why a stage has to run, or None if it is complete for the same parameters, code and inputs.

    Raises:
        RagbenchError: an output of the stage was changed after it was written.
    """
    folder = experiment.run / stage
    if not (folder / META).is_file():
        return "interrupted" if folder.with_name(f"{stage}.partial").exists() else "not run yet"
    meta = check_outputs(folder)
    wanted = experiment.parameters(stage)
    changed = [key for key in wanted if key not in meta["parameters"] or meta["parameters"][key] != wanted[key]]
    if changed or set(meta["parameters"]) != set(wanted):
        return f"other parameters ({', '.join(changed) or 'names'})"
    if meta["code"] != code_hash(experiment.root, stage):
        return "the notebook or the package was edited"
    for name, sha256 in meta["inputs"].items():
        if _current_hash(experiment, name) != sha256:
            return f"another {name}"
    if not all((folder / report).is_file() for report in REPORTS):
        return "no report"
    return None


def _current_hash(experiment: Experiment, name: str) -> str | None:
    if name in experiment.outside:
        return experiment.outside[name]
    stage, _, filename = name.partition("/")
    return (
        read_meta(experiment.run / stage)["outputs"].get(filename)
        if (experiment.run / stage / META).is_file()
        else None
    )


def run_experiment(experiment: Experiment, stages: Sequence[str] = STAGES) -> list[str]:
    """Run every stage that is not current, or those of the named `stages`; return the names of those that ran.

    Raises:
        StageFailed: a notebook stopped with an error. Its executed copy is kept; running again resumes there.
        RagbenchError: another process works on the same folder, a result was changed by hand, or there is no such
            stage.
    """
    unknown = sorted(set(stages) - set(STAGES))
    if unknown:
        raise RagbenchError(f"There is no stage '{unknown[0]}'; there are: {', '.join(STAGES)}.")
    experiment.run.mkdir(parents=True, exist_ok=True)
    took: dict[str, float] = {}
    wanted = [name for name in STAGES if name in stages]
    with _only_one(experiment.run):
        for number, stage in enumerate(wanted, start=1):
            left_out = why_left_out(experiment, stage)
            reason = None if left_out else why_stale(experiment, stage)
            print(f"{stage} ({number} of {len(wanted)}): {left_out or reason or 'complete'}", file=sys.stderr)
            if reason is None:
                continue
            started = time.monotonic()
            _execute(experiment, stage)
            took[stage] = time.monotonic() - started
            print(f"{stage}: done in {_minutes(took[stage])}{_to_go(took, wanted[number:])}", file=sys.stderr)
    return list(took)


def _to_go(took: Mapping[str, float], left: Sequence[str]) -> str:
    """Return about how long the stages that are left will take, by what the others took of their usual time."""
    if not left:
        return ""
    pace = sum(took.values()) / sum(USUAL_SECONDS[stage] for stage in took)
    return f"; about {_minutes(pace * sum(USUAL_SECONDS[stage] for stage in left))} to go"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextmanager
def _only_one(run: Path) -> Iterator[None]:
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RagbenchError(f"Another `ragbench run` is working on {run}. Wait for it, or stop it.") from error
    try:
        yield
    finally:
        lock.release()


def _execute(experiment: Experiment, stage: str) -> None:
    source = notebook_path(experiment.root, stage)
    executed = experiment.run / f"{stage}.running.ipynb"
    failed = experiment.run / f"{stage}.failed.ipynb"
    failed.unlink(missing_ok=True)
    parameters = {**experiment.parameters(stage), "run": _relative(experiment.run, experiment.root)}
    try:
        papermill.execute_notebook(
            str(source),
            str(executed),
            parameters=parameters,
            kernel_name=KERNEL,
            cwd=str(experiment.root),
            progress_bar={"desc": stage, "file": sys.stderr},
            # The bars of long cells are the kernel's stderr; without this a headless run would look stuck.
            stderr_file=sys.stderr,
            log_output=False,
        )
    except PapermillExecutionError as error:
        _keep_failed(executed, failed, experiment.root, parameters)
        # papermill counts from 0, and puts one cell of its own after the parameters.
        cause = scrub_text(_plain(f"{error.ename}: {error.evalue}"), experiment.root, parameters)
        raise StageFailed(
            f"{_relative(source, experiment.root)} failed in cell {error.cell_index} (In [{error.exec_count}]): "
            f"{cause}\n"
            f"The executed notebook is kept: {_relative(failed, experiment.root)}. Run the command again to resume."
        ) from error
    except DeadKernelError as error:
        _keep_failed(executed, failed, experiment.root, parameters)
        raise StageFailed(
            f"{_relative(source, experiment.root)}: its Python process died, most often for want of memory. The "
            f"executed notebook is kept: {_relative(failed, experiment.root)}. Run the command again to resume."
        ) from error
    save_report(executed, experiment.run / stage, experiment.root, parameters)
    executed.unlink()


def _keep_failed(executed: Path, failed: Path, root: Path, parameters: Mapping[str, Any]) -> None:
    if executed.is_file():
        executed.replace(failed)
        scrub_file(failed, root, parameters)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _plain(text: str) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines()
    return "\n".join([*lines[:_CAUSE_LINES], "…"] if len(lines) > _CAUSE_LINES else lines)
