"""A run's index.html: the one page to send to a colleague."""

import base64
import json
from pathlib import Path
from typing import Any

import yaml

from ragbench.files import write_text
from ragbench.workbench.project import STAGES
from ragbench.workbench.reports import TEMPLATES, shortened
from ragbench.workbench.stages import META, read_meta
from ragbench.workbench.tables import against_base, comparison_rows, fill, metrics_rows

AUDIT, EVALUATION, FINDINGS = "01_audit", "06_evaluation", "findings.json"
PLOTS = ("differences", "metrics")
"""Images of the evaluation, of which an older run may lack the first."""


def write_index(run: Path) -> Path:
    """Write index.html from the stages that are complete; return its path.

    Shows the verdict, the paired comparisons, what the audit advises, the metrics of every system, links to the stage
    reports, and what is needed to get the same results again: parameters, versions, hashes.
    """
    metas = {stage: read_meta(run / stage) for stage in STAGES if (run / stage / META).is_file()}
    verdict: dict[str, Any] = {"headline": "The evaluation has not run yet."}
    columns: list[tuple[str, str]] = []
    rows: list[tuple[str, list[str]]] = []
    comparisons: list[list[str]] = []
    changes: list[tuple[str, str]] = []
    plots: dict[str, str] = {}
    if EVALUATION in metas:
        folder = run / EVALUATION
        verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        columns, rows = metrics_rows(metrics["systems"])
        comparisons = comparison_rows(metrics)
        splits = dict.fromkeys(entry["split"] for entry in metrics.get("comparisons", []))
        changes = [(split, against_base(metrics, split).data) for split in splits]
        plots = {
            name: base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
            for name in PLOTS
            if (folder / f"{name}.png").is_file()
        }
    audit: dict[str, Any] = {}
    if AUDIT in metas and FINDINGS in metas[AUDIT]["outputs"]:
        audit = json.loads((run / AUDIT / FINDINGS).read_text(encoding="utf-8"))
    last = list(metas.values())[-1] if metas else {}
    page = fill(
        "index.html.j2",
        css=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        run=run.name,
        verdict=verdict,
        audit=audit,
        columns=columns,
        rows=rows,
        comparisons=comparisons,
        changes=changes,
        plots=plots,
        stages=[(stage, metas.get(stage), (run / stage / "report.html").is_file()) for stage in STAGES],
        parameters=yaml.safe_dump(
            {key: shortened(value) for meta in metas.values() for key, value in meta["parameters"].items()},
            sort_keys=False,
            allow_unicode=True,
            width=10_000,
        ),
        versions=last.get("versions", {}),
        commit=last.get("git_commit"),
        hashes=[
            (f"{stage}/{name}", digest) for stage, meta in metas.items() for name, digest in meta["outputs"].items()
        ],
        inputs=[(stage, name, digest) for stage, meta in metas.items() for name, digest in meta["inputs"].items()],
    )
    write_text(run / "index.html", page)
    return run / "index.html"
