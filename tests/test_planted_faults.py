"""The audit on pipelines with one known fault each, and on healthy ones, with the real encoder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ragbench.diagnosis.signs import OTHERS, SIX

ROOT = Path(__file__).parents[1]
SIGNS = {measure.__name__.replace("house_style", "format") for measure in (*SIX, *OTHERS)} | {"blind_topic"}
OF_ANSWERS = SIGNS - {"missed", "cut_off", "blind_topic", "wrong_despite_retrieval"}

# The first run of a session unpacks the model and encodes 10 000 passages.
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, real_cache: Path) -> dict[str, Any]:
    """Run the quick benchmark once; return its record."""
    path = tmp_path_factory.mktemp("planted") / "planted_faults.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/planted_faults.py", "--quick", "--out", str(path)],
        cwd=ROOT,
        env={**os.environ, "RAGBENCH_CACHE": str(real_cache)},
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def strong(quick: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows by fault; the quick benchmark plants the strong versions only."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in quick["rows"]:
        rows.setdefault(row["planted"], []).append(row)
    del rows["healthy"]
    return {fault: found[-1] for fault, found in rows.items()}


def test_the_bounds_hold(quick):
    results = {result["name"]: result for result in quick["results"]}
    assert len(results) == 2
    for name, result in results.items():
        assert result["holds"] is True, f"{name}: {result['value']} (bound {result['bound']})"


def test_every_fault_is_named_in_its_strong_version(strong):
    assert {fault: row["named"] for fault, row in strong.items()} == {
        fault: row["expected"] for fault, row in strong.items()
    }


def test_every_sign_that_can_be_a_fault_by_itself_is_planted(strong):
    assert {row["expected"] for row in strong.values()} == SIGNS - {"wrong_despite_retrieval"}


def test_a_healthy_pipeline_shows_no_sign(quick):
    healthy = [row for row in quick["rows"] if row["planted"] == "healthy"]
    assert len(healthy) >= 4
    assert [row["present"] for row in healthy] == [[]] * len(healthy)


def test_a_failing_retriever_is_not_mistaken_for_a_failing_generator(strong):
    for row in strong.values():
        if row["expected"] in ("missed", "cut_off", "blind_topic"):
            assert not OF_ANSWERS & set(row["present"]), row["planted"]
        else:
            assert not {"missed", "cut_off", "blind_topic"} & set(row["present"]), row["planted"]
