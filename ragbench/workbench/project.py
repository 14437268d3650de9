"""Where things are: the project folder, its notebooks, and the order of the stages."""

from pathlib import Path

from ragbench.errors import RagbenchError

STAGES = ("01_audit", "02_data_prep", "03_retriever", "04_generator", "05_end_to_end", "06_evaluation", "07_deployment")
"""The stages in the order in which they run; each is ``notebooks/STAGE.ipynb``."""
USUAL_SECONDS = dict(zip(STAGES, (105, 29, 198, 225, 60, 210, 105), strict=True))
"""Of the default experiment on two cores: in what proportion the stages take their time."""


def project_root(start: Path | None = None) -> Path:
    """Return the nearest folder at or above `start` (the working directory) that holds ``notebooks/01_audit.ipynb``.

    Notebooks run from the project folder under papermill and from ``notebooks/`` under JupyterLab; relative paths in
    parameters mean the same in both because they start here.

    Raises:
        RagbenchError: there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks" / "01_audit.ipynb").is_file():
            return folder
    raise RagbenchError(f"{here} is not in a ragbench project: no folder above it holds notebooks/01_audit.ipynb.")


def notebook_path(root: Path, stage: str) -> Path:
    """Return the path of a stage's notebook."""
    return root / "notebooks" / f"{stage}.ipynb"
