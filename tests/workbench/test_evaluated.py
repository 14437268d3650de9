from dataclasses import replace

import pandas as pd
import pytest
from typer.testing import CliRunner

from ragbench.cli import app
from ragbench.errors import RagbenchError
from ragbench.files import sha256_file, write_json
from ragbench.workbench.evaluated import check_comparable, differing, joined, read_evaluated

EVIL = "<script>alert(1)</script>"


def evaluated(folder, gain=0.0, collection="c0ffee", questions=12, use="both", **parameters):
    """Write what 06_evaluation leaves of a base and a tuned system."""
    place = folder / "06_evaluation"
    place.mkdir(parents=True)
    rows = [
        (system, "test", metric, f"q{n}", 0.1 + 0.01 * n + (gain if system == "both" else 0))
        for system in ("base", "both") for metric in ("answer_f1", EVIL) for n in range(questions)
    ]  # fmt: skip
    pd.DataFrame(rows, columns=["system", "split", "metric", "query_id", "value"]).to_parquet(place / "scores.parquet")
    write_json(place / "verdict.json", {"use": use})
    outputs = {name: sha256_file(place / name) for name in ("scores.parquet", "verdict.json")}
    write_json(place / "meta.json", {
        "outputs": outputs, "inputs": {"collection": collection}, "parameters": {"seed": 1, **parameters}
    })  # fmt: skip
    return folder


def test_a_run_gives_the_system_of_its_verdict_or_the_one_that_is_asked_for(tmp_path):
    run = evaluated(tmp_path / "mine", gain=0.2)
    assert read_evaluated(run).name == "mine: both" and read_evaluated(run, "base").name == "mine: base"
    assert read_evaluated(run).scores["value"].min() == pytest.approx(0.3)
    with pytest.raises(RagbenchError, match="no system 'retriever'; it has: base, both"):
        read_evaluated(run, "retriever")


def test_a_run_without_evaluation_or_with_changed_scores_is_refused(tmp_path):
    with pytest.raises(RagbenchError, match="06_evaluation"):
        read_evaluated(tmp_path)
    run = evaluated(tmp_path / "mine")
    (run / "06_evaluation" / "verdict.json").write_text("{}")
    with pytest.raises(RagbenchError, match=r"verdict\.json has changed"):
        read_evaluated(run)


def test_runs_that_were_asked_something_else_are_refused_with_what_differs(tmp_path):
    first = read_evaluated(evaluated(tmp_path / "a"))
    check_comparable([first, read_evaluated(evaluated(tmp_path / "b"))])
    for other, said in (
        (read_evaluated(evaluated(tmp_path / "c", collection="other")), "another collection than a: both"),
        (read_evaluated(evaluated(tmp_path / "d", questions=13)), "1 are in one only, such as 'q12'"),
        (first, "'a: both' stands twice"),
    ):
        with pytest.raises(RagbenchError, match=said):
            check_comparable([first, other])
    with pytest.raises(RagbenchError, match="at least two"):
        check_comparable([first])


def test_parameters_that_differ_are_told_with_the_value_in_each(tmp_path):
    runs = [read_evaluated(evaluated(tmp_path / name, depth=depth)) for name, depth in (("a", 5), ("b", 9))]
    assert differing(runs) == [["depth", "5", "9"]]
    assert differing([runs[0], replace(runs[0], name="copy")]) == []
    assert set(joined(runs)["system"]) == {"a: both", "b: both"}


def test_the_command_prints_and_writes_the_paired_comparison(tmp_path):
    runs = [str(evaluated(tmp_path / name, gain)) for name, gain in (("old", 0.0), ("new", 0.25))]
    done = CliRunner().invoke(app, ["compare", *runs, "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "old: both 0.155  new: both 0.405  +0.250 [+0.250, +0.250]" in done.output and "better" in done.output
    page = (tmp_path / "page.html").read_text()
    assert "new: both against old: both" in page and "+0.250" in page and "<script" not in page
