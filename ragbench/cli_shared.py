"""What the command lines share."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragbench.workbench.execution import Experiment


def experiment_of(params: Path, out: Path | None) -> "Experiment":
    """Read a params file and the collection it names; its results go to `out`, or to the folder it names."""
    from ragbench.collection.load import fingerprint, load_collection
    from ragbench.workbench.execution import Experiment
    from ragbench.workbench.params import declared, read_params_file
    from ragbench.workbench.project import project_root

    root = project_root()
    known = declared(root)
    values = read_params_file(params, known)
    folder = out.resolve() if out else root / Path(values.get("run", f"runs/{params.stem}")).expanduser()
    collection = load_collection(values.get("collection", known["collection"].default), root)
    return Experiment(root, folder, known, values, {"collection": fingerprint(collection)})


def shown(path: Path) -> str:
    """Return a path as people read it from where they are."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
