"""What the benchmarks share: the machine, medians, the table, the file."""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ragbench.workbench.stages import git_commit, library_versions


def arguments(description: str, more: Callable[[argparse.ArgumentParser], object] | None = None) -> argparse.Namespace:
    """Parse what every benchmark takes; `more` adds arguments of its own."""
    parser = argparse.ArgumentParser(description=description)
    if more is not None:
        more(parser)
    parser.add_argument("--quick", action="store_true", help="less work, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    return parser.parse_args()


def median_of(rows: list[dict[str, Any]], variant: str, key: str) -> float:
    return statistics.median(row[key] for row in rows if row["variant"] == variant)


def result(name: str, value: float, bound: float, holds: Callable[[float, float], bool]) -> dict[str, Any]:
    return {"name": name, "value": round(value, 4), "bound": bound, "holds": holds(value, bound)}


def finish(
    benchmark: str, options: argparse.Namespace, rows: list[dict[str, Any]], results: list[dict[str, Any]]
) -> None:
    """Print rows and results as tables, and write the file that DESIGN describes."""
    for row in rows:
        print("  ".join(f"{key} {_short(value)}" for key, value in row.items()))
    print()
    for entry in results:
        print(f"{'holds' if entry['holds'] else 'FAILS':6} {entry['name']}: {entry['value']} (bound {entry['bound']})")
    if options.out:
        import torch

        machine = {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "libraries": library_versions(),
        }
        commit = git_commit(Path(__file__).resolve().parents[1])
        record = {"benchmark": benchmark, "commit": commit, "machine": machine, "rows": rows, "results": results}
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if cpuinfo.exists()
        else []
    )
    return names[0] if names else platform.processor()
