"""Rendered reports: an executed notebook made safe to share, and its self-contained HTML.

Nothing of the machine goes into a report: absolute paths are shortened and keys blanked, in notebook and page.
"""

import os
import re
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from ragbench.cache import cache_folder
from ragbench.errors import RagbenchError
from ragbench.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
_SECRET_ENDINGS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
_SHORTEST_SECRET = 6


def save_report(executed: Path, folder: Path, root: Path, parameters: Mapping[str, Any]) -> None:
    """Put report.ipynb and report.html into a stage's folder."""
    notebook = scrubbed(nbformat.read(executed, as_version=4), root, parameters)
    write_text(folder / "report.ipynb", nbformat.writes(notebook))
    write_text(folder / "report.html", render(notebook, folder.name, folder.parent.name))


def scrub_file(path: Path, root: Path, parameters: Mapping[str, Any]) -> None:
    """Make a notebook file safe to share, in place."""
    write_text(path, nbformat.writes(scrubbed(nbformat.read(path, as_version=4), root, parameters)))


def scrubbed(notebook: NotebookNode, root: Path, parameters: Mapping[str, Any]) -> NotebookNode:
    """Return a copy without absolute paths of this machine and without the values of secret environment variables.

    A parameter that is an absolute path keeps its last part.
    """
    replacements = _replacements(root, parameters)

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return _replaced(value, replacements)
        if isinstance(value, dict):
            return {clean(key): clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return nbformat.from_dict(clean(notebook))


def scrub_text(text: str, root: Path, parameters: Mapping[str, Any]) -> str:
    """Do to a text what `scrubbed` does to a notebook."""
    return _replaced(text, _replacements(root, parameters))


def shortened(value: Any) -> Any:
    """Return a parameter's value as others may see it: of an absolute path only the last part."""
    if isinstance(value, list):
        return [shortened(item) for item in value]
    is_absolute = isinstance(value, str) and value.startswith(("/", "~"))
    return f"…/{Path(value).name}" if is_absolute else value


def _replaced(text: str, replacements: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in replacements:
        text = pattern.sub(new.replace("\\", r"\\"), text)
    return text


def _replacements(root: Path, parameters: Mapping[str, Any]) -> list[tuple[re.Pattern[str], str]]:
    secrets = {
        value
        for name, value in os.environ.items()
        if name.upper().endswith(_SECRET_ENDINGS) and len(value) >= _SHORTEST_SECRET
    }
    values = [item for value in parameters.values() for item in (value if isinstance(value, list) else [value])]
    paths = {value: shortened(value) for value in values if isinstance(value, str) and shortened(value) != value}
    places = {
        f"{root}/": "",
        str(root): ".",
        str(cache_folder()): "$RAGBENCH_CACHE",
        sysconfig.get_path("purelib"): "site-packages",
        str(Path.home()): "~",
    }
    # Longest first, so that a folder inside another is not cut in half; whole names only, so that with a project in
    # /app nothing becomes of /applet. In a container the home may be "/", which stands for nothing.
    ordered = sorted([*places.items(), *paths.items()], key=lambda item: -len(item[0]))
    whole = [
        (re.compile(re.escape(old) + ("" if old.endswith("/") else r"(?![\w-])")), new)
        for old, new in ordered
        if len(old) > 1
    ]
    kernel = (re.compile(re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/\d+\.py"), "cell")
    return [(re.compile(re.escape(secret)), "***") for secret in sorted(secrets, key=len, reverse=True)] + [
        kernel,
        *whole,
    ]


def render(notebook: NotebookNode, stage: str, run: str) -> str:
    """Return a notebook as one HTML page that needs no network: code folded, progress bars and warnings left out.

    They stay in report.ipynb.
    """
    shown = nbformat.from_dict(notebook)
    for cell in shown.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    exporter = HTMLExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])
    title = next(
        (line.lstrip("# ") for cell in shown.cells for line in cell.source.splitlines() if line.startswith("# ")), stage
    )
    look = {
        "title": f"{title} · {run}",
        "css": (TEMPLATES / "style.css").read_text(encoding="utf-8"),
        "highlight": HtmlFormatter(style="default").get_style_defs(".highlight"),
        "stage": stage,
        "run": run,
    }
    page, _ = exporter.from_notebook_node(shown, resources={"report": look})
    return page


def _is_noise(output: NotebookNode) -> bool:
    is_stderr = output.output_type == "stream" and output.get("name") == "stderr"
    return is_stderr or "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def render_again(run: Path) -> None:
    """Render report.html of every stage of a run from its report.ipynb.

    Raises:
        RagbenchError: the folder holds no report of a stage.
    """
    reports = sorted(run.glob("*/report.ipynb"))
    if not reports:
        raise RagbenchError(f"{run} is no folder of results: it holds no STAGE/report.ipynb.")
    for path in reports:
        write_text(path.with_suffix(".html"), render(nbformat.read(path, as_version=4), path.parent.name, run.name))
