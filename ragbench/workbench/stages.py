"""Stage folders: what a notebook writes, whole or not at all, with a meta.json that accounts for it.

A stage is written to ``STAGE.partial/`` and renamed when it is complete. `meta.json` is written last; it names the
parameters, versions and seed, and the SHA-256 of everything read and written.
"""

import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragbench.errors import RagbenchError
from ragbench.files import sha256_file, sha256_folder, sha256_text, write_json
from ragbench.workbench.params import declared_in
from ragbench.workbench.project import notebook_path, project_root

META = "meta.json"
REPORTS = ("report.ipynb", "report.html")
"""Written by the runner after the notebook has ended; everything else in a stage folder is hashed in meta.json."""
_LIBRARIES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "datasets",
    "ragas",
    "ir-measures",
    "bm25s",
    "faiss-cpu",
    "faiss-gpu",
    "peft",
    "trl",
    "papermill",
    "numpy",
)


@dataclass
class Stage:
    """A stage that is being written; made by `begin_stage`, ended by `finish`.

    Attributes:
        name: the notebook's name, e.g. ``01_audit``.
        root: the project folder, where relative paths start.
        run: the folder of the experiment.
        parameters: the notebook's parameters with their values.
        inputs: name → SHA-256 of what was read.
    """

    name: str
    root: Path
    run: Path
    parameters: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        """Where this stage's files go until it is complete."""
        return self.run / f"{self.name}.partial"

    def uses(self, name: str, sha256: str) -> None:
        """Note an input from outside the run, such as the collection."""
        self.inputs[name] = sha256

    def read(self, stage: str, filename: str) -> Path:
        """Return the path of an earlier stage's file, after checking its hash; the file becomes an input.

        Raises:
            RagbenchError: the stage has not run, ran with other values of shared parameters, or the file has changed.
        """
        meta = read_meta(self.run / stage)
        for key, value in meta["parameters"].items():
            if key in self.parameters and self.parameters[key] != value:
                raise RagbenchError(
                    f"{self.name} has {key} = {self.parameters[key]!r}, but {stage} in {self.run} ran with {value!r}. "
                    f"Run notebooks/{stage}.ipynb again with the same parameters."
                )
        path = self.run / stage / filename
        if filename not in meta["outputs"]:
            raise RagbenchError(f"{path} is no output of {stage}. Run notebooks/{stage}.ipynb again.")
        check_file(path, meta["outputs"][filename])
        self.inputs[f"{stage}/{filename}"] = meta["outputs"][filename]
        return path

    def read_folder(self, stage: str, folder: str) -> Path:
        """Return the path of a folder that an earlier stage wrote, such as a model; every file in it becomes an input.

        Raises:
            RagbenchError: as `read`, or the stage wrote nothing there.
        """
        place = self.run / stage / folder
        names = [name for name in read_meta(self.run / stage)["outputs"] if name.startswith(f"{folder}/")]
        if not names:
            raise RagbenchError(f"{place} is no folder that {stage} wrote. Run notebooks/{stage}.ipynb again.")
        for name in names:
            self.read(stage, name)
        return place

    def written(self) -> dict[str, str]:
        """Return the SHA-256 of every file that the stage has written so far, by its name within the folder."""
        return {
            path.relative_to(self.folder).as_posix(): sha256_file(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != META
        }

    def finish(self) -> Path:
        """Write meta.json and put the folder in its place; return it."""
        outputs = self.written()
        meta = {
            "stage": self.name,
            "parameters": self.parameters,
            "seed": self.parameters.get("seed"),
            "code": code_hash(self.root, self.name),
            "versions": library_versions(),
            "git_commit": git_commit(self.root),
            "wall_seconds": round(time.time() - self.started, 1),
            "inputs": self.inputs,
            "outputs": outputs,
        }
        write_json(self.folder / META, meta)
        final = self.run / self.name
        shutil.rmtree(final, ignore_errors=True)
        self.folder.rename(final)
        return final


def begin_stage(name: str, run: str, namespace: Mapping[str, Any]) -> Stage:
    """Open a stage for writing.

    Args:
        name: the notebook's name without ``.ipynb``.
        run: the experiment's folder; a relative path starts at the project folder.
        namespace: the notebook's ``globals()``, from which the values of its declared parameters are read.
    """
    root = project_root()
    names = declared_in(notebook_path(root, name))
    stage = Stage(name, root, root / Path(run).expanduser(), {key: namespace[key] for key in names if key != "run"})
    shutil.rmtree(stage.folder, ignore_errors=True)
    stage.folder.mkdir(parents=True)
    return stage


def read_meta(folder: Path) -> dict[str, Any]:
    """Return a complete stage's meta.json.

    Raises:
        RagbenchError: the stage has not run to its end, or meta.json is damaged.
    """
    path = folder / META
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RagbenchError(
            f"The stage {folder.name} is not there ({folder}). Run notebooks/{folder.name}.ipynb first."
        ) from error
    except json.JSONDecodeError as error:
        raise RagbenchError(
            f"{path} is damaged. Delete {folder} and run notebooks/{folder.name}.ipynb again."
        ) from error


def check_file(path: Path, sha256: str) -> None:
    """Check that a file is there and unchanged.

    Raises:
        RagbenchError: it is not; the message names it.
    """
    if not path.is_file():
        raise RagbenchError(f"{path} is missing. Delete the folder of its stage and run that again.")
    if sha256_file(path) != sha256:
        raise RagbenchError(
            f"{path} has changed since its stage wrote it. Delete the folder of its stage and run that again."
        )


def check_outputs(folder: Path) -> dict[str, Any]:
    """Check every output of a complete stage against meta.json, and return that.

    Raises:
        RagbenchError: a file is missing or has changed.
    """
    meta = read_meta(folder)
    for name, sha256 in meta["outputs"].items():
        check_file(folder / name, sha256)
    return meta


def code_hash(root: Path, stage: str) -> str:
    """Return a SHA-256 over a notebook's cells, whatever their outputs, and ragbench's source.

    A stage whose notebook or package was edited has to run again; what the edit does not touch comes from the caches.
    """
    notebook = json.loads(notebook_path(root, stage).read_text(encoding="utf-8"))
    source = sha256_folder(Path(__file__).parents[1], ("**/*.py", "**/*.jsonl"))
    return sha256_text(source, *("".join(cell["source"]) for cell in notebook["cells"]))


def library_versions() -> dict[str, str]:
    """Return the versions of Python, ragbench and the libraries that results depend on."""
    versions = {"python": platform.python_version(), "ragbench": importlib.metadata.version("ragbench")}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(root: Path) -> str | None:
    """Return the commit of the project folder, with ``+`` for uncommitted changes; None outside a repository."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()
