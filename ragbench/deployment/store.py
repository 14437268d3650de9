"""Where bundles live: `STORE/NAME/VERSION`, and beside the versions `history.jsonl`, whose last line names the current.

Versions count up and are never changed. The history is replaced in one step, so what is current and how to go back can
never disagree.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from ragbench.deployment.bundle import MANIFEST, Manifest, read_manifest
from ragbench.errors import RagbenchError
from ragbench.files import write_text

HISTORY, LOCK = "history.jsonl", ".lock"


@dataclass(frozen=True)
class Change:
    """One change of the version in use: when (UTC), from which version (empty for none) to which, why, whether back."""

    time: str
    before: str
    after: str
    why: str
    rollback: bool


def add(store: Path, name: str, pack: Callable[[Path], Manifest]) -> tuple[str, Manifest]:
    """Add a version of a bundle; return it with its manifest.

    Args:
        pack: writes the bundle into the folder that it is given.

    Raises:
        RagbenchError: the name cannot be one, or what `pack` raises.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise RagbenchError(f"'{name}' cannot be the name of a bundle: use letters, digits, - and _.")
    folder = store / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        version = f"{max((int(each) for each in versions(store, name)), default=0) + 1:04d}"
        return version, pack(folder / version)


def names(store: Path) -> list[str]:
    """Return the names of the bundles that have a version."""
    return sorted(path.name for path in store.glob("*") if versions(store, path.name)) if store.is_dir() else []


def versions(store: Path, name: str) -> list[str]:
    """Return the versions of a bundle, oldest first."""
    folder = store / name
    return sorted(path.name for path in folder.glob("[0-9]*") if (path / MANIFEST).is_file())


def current(store: Path, name: str) -> str:
    """Return the version in use; empty where none was promoted."""
    changes = history(store, name)
    return changes[-1].after if changes else ""


def find_bundle(store: Path, reference: str) -> Path:
    """Return the folder of ``NAME`` (the version in use), ``NAME/VERSION``, or of a bundle given by its path.

    Raises:
        RagbenchError: there is no such bundle, or no version of it is in use.
    """
    if (Path(reference) / MANIFEST).is_file():
        return Path(reference)
    name, _, version = reference.partition("/")
    there = versions(store, name)
    if not there:
        known = ", ".join(names(store)) or "none"
        raise RagbenchError(f"{store} has no bundle '{name}'; it has: {known}. Make one: ragbench bundle create.")
    if not version:
        version = current(store, name)
        if not version:
            raise RagbenchError(
                f"No version of '{name}' is in use. Promote one: ragbench bundle promote {name} {there[-1]}."
            )
    if version not in there:
        raise RagbenchError(f"'{name}' has no version '{version}'; it has: {', '.join(there)}.")
    return store / name / version


def promote(store: Path, name: str, version: str, why: str) -> Change:
    """Put a version into use.

    Raises:
        RagbenchError: there is no such version, or its manifest is damaged.
    """
    read_manifest(find_bundle(store, f"{name}/{version}"))
    with FileLock(store / name / LOCK):
        return _put(store, name, version, why, rollback=False)


def roll_back(store: Path, name: str) -> Change:
    """Put the version into use again that was in use before the present one was promoted.

    Raises:
        RagbenchError: there was none, or its manifest is damaged.
    """
    with FileLock(store / name / LOCK):
        in_use: list[str] = []
        for change in history(store, name):
            if change.rollback:
                in_use.pop()
            else:
                in_use.append(change.after)
        if len(in_use) < 2:
            raise RagbenchError(f"There is no earlier version of '{name}' to go back to.")
        before = in_use[-2]
        read_manifest(store / name / before)
        return _put(store, name, before, f"rolled back from {in_use[-1]}", rollback=True)


def _put(store: Path, name: str, version: str, why: str, *, rollback: bool) -> Change:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    change = Change(now, current(store, name), version, why, rollback)
    lines = "".join(json.dumps(asdict(each)) + "\n" for each in [*history(store, name), change])
    write_text(store / name / HISTORY, lines)
    return change


def history(store: Path, name: str) -> list[Change]:
    """Return every change of the version in use, oldest first."""
    path = store / name / HISTORY
    if not path.is_file():
        return []
    return [Change(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
