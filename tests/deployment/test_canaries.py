from dataclasses import replace

import pytest
from scipy.stats import binom
from typer.testing import CliRunner

from ragbench.cli_deployment import bundle_app
from ragbench.deployment.answering import open_bundle
from ragbench.deployment.bundle import pack
from ragbench.deployment.canaries import (
    TOLERATED,
    Canary,
    ask_again,
    canaries_table,
    canary_signals,
    choose,
)
from ragbench.deployment.drift import ALPHA
from ragbench.generation.generate import Generator


@pytest.fixture
def records(contents, garden):
    return choose(garden, contents.system, seed=13)


def packed(contents, folder, records):
    pack(replace(contents, canaries=records), folder)
    return open_bundle(folder, "cpu")


def test_a_bundle_finds_and_answers_as_when_it_was_packed(contents, records, tmp_path):
    asked = ask_again(packed(contents, tmp_path / "b", records))
    assert [canary.question for canary in asked] == [record["question"] for record in records]
    assert len(asked) == 4 and all(canary.found and canary.answered for canary in asked)
    assert not len(canaries_table(asked))
    assert [(s.name, s.effect, s.alarm) for s in canary_signals(asked)] == [
        ("canary passages", 0.0, False), ("canary answers", 0.0, False),
    ]  # fmt: skip


def test_other_passages_and_other_answers_are_told_apart_and_shown(contents, records, tmp_path):
    records[0]["passage_ids"] = ["p9", *records[0]["passage_ids"][1:]]
    records[1]["passage_ids"].reverse()  # the order of near ties
    records[2]["answer"] = "something else"
    asked = ask_again(packed(contents, tmp_path / "b", records))
    assert [canary.found for canary in asked] == [False, True, True, True]
    assert [canary.answered for canary in asked] == [True, True, False, True]
    table = canaries_table(asked)
    assert list(table["question"]) == [records[0]["question"], records[2]["question"]]
    assert table["now"].iloc[1] == "the same" and table["answer now"].iloc[0] == "alike"


def test_the_command_tells_what_changed_by_its_exit_status(contents, records, tmp_path):
    packed(contents, tmp_path / "same", records)
    packed(contents, tmp_path / "other", [record | {"passage_ids": ["p9", "p8"]} for record in records])
    same, other = (
        CliRunner().invoke(bundle_app, ["verify", str(tmp_path / name), "--ask"]) for name in ("same", "other")
    )
    assert same.exit_code == 0 and "canary answers" in same.output and "alarm" not in same.output, same.output
    assert other.exit_code == 1 and "passages then: p9, p8; now:" in other.output and "alarm" in other.output


def test_without_a_generator_only_what_is_found_is_compared(contents, records, tmp_path):
    system = replace(contents.system, generator=Generator(backend="none", contexts=2))
    asked = ask_again(packed(replace(contents, system=system, tuned_generator=False), tmp_path / "b", records))
    assert [signal.name for signal in canary_signals(asked)] == ["canary passages"]


def changed(count, of):
    return [Canary("q", ("a",), ("b" if number < count else "a",), "x", None) for number in range(of)]


@pytest.mark.parametrize(("count", "of", "alarm"), [(0, 12, False), (3, 12, False), (5, 12, True), (12, 12, True)])
def test_an_alarm_needs_more_changes_than_rounding_makes(count, of, alarm):
    [signal] = canary_signals(changed(count, of))
    assert signal.alarm is alarm
    assert signal.effect == pytest.approx(count / of)
    assert signal.interval[0] <= signal.effect <= signal.interval[1]


@pytest.mark.parametrize("of", [4, 12, 40])
def test_false_alarms_are_as_rare_as_is_stated(of):
    alarms = [count for count in range(of + 1) if canary_signals(changed(count, of))[0].alarm]
    assert 0 < sum(binom.pmf(count, of, TOLERATED) for count in alarms) <= ALPHA
