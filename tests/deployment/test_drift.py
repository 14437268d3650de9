import numpy as np
import pytest

from ragbench.collection.schema import Collection, corpus_from_rows
from ragbench.deployment import drift
from ragbench.deployment.drift import ALPHA, FEWEST, Signal, knowledge_drift, query_drift, score_drift
from ragbench.deployment.query_log import Entry, make_entry
from ragbench.errors import RagbenchError
from ragbench.retrieval.encoder import open_encoder

COOKING = [
    "How long does rice cook?",
    "Which oil for frying potatoes?",
    "How do I keep basil fresh?",
    "Why is my bread flat?",
]
TRAVEL = [
    "When does the night train leave?",
    "Do I need a visa for Peru?",
    "Where is the lost luggage desk?",
    "Is the ferry late?",
]


def entries(texts, *, scores=0.6, grounding=0.8, refused=0.1, seed=0, n=60) -> list[Entry]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(n):
        text = f"{texts[number % len(texts)]} Please tell me, number {rng.integers(1000)}."
        found, refuses = [("p", float(rng.normal(scores, 0.1)))], bool(rng.random() < refused)
        known = {"seconds": 0.1, "bundle": "docs/0001", "finish_reason": "stop"}
        entry = make_entry(str(number), text, "x", found, refuses, **known)
        made.append(Entry(**{**vars(entry), "grounding": float(np.clip(rng.normal(grounding, 0.1), 0, 1))}))
    return made


@pytest.fixture
def encoder(real_cache, monkeypatch):
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    return open_encoder("all-MiniLM-L6-v2", device="cpu")


@pytest.fixture(scope="module")
def kitchen():
    rows = [(f"p{n}", "", f"{text} Please tell me, number.", "d") for n, text in enumerate(COOKING)]
    return Collection("kitchen", corpus_from_rows(rows), {}, {})


def by_name(signals: list[Signal]) -> dict[str, Signal]:
    return {signal.name: signal for signal in signals}


def test_other_questions_are_an_alarm_and_the_same_kind_is_not(kitchen, encoder):
    quiet = query_drift(entries(COOKING), entries(COOKING, seed=1), kitchen, encoder)
    assert [signal.name for signal in quiet] == ["questions", "unknown words", "first score", "grounding", "refusals"]
    assert not any(signal.alarm for signal in quiet)
    loud = by_name(query_drift(entries(COOKING), entries(TRAVEL, seed=1), kitchen, encoder))
    assert loud["questions"].alarm and loud["unknown words"].alarm
    assert loud["questions"].after > 0.9 and loud["questions"].interval[0] > 0.3
    low, high = by_name(quiet)["questions"].interval
    assert low < 0.1 and high > -0.1  # the periods cannot be told apart
    assert loud["unknown words"].interval[0] > 0
    assert not loud["grounding"].alarm


def test_the_order_in_which_questions_were_answered_changes_nothing(kitchen, encoder):
    one, other = entries(COOKING, n=24), entries(COOKING[:2] + TRAVEL[:1], seed=1, n=24)
    turned = one[::-1], other[::-1]
    for found, again in (
        (query_drift(one, other, kitchen, encoder), query_drift(*turned, kitchen, encoder)),
        (score_drift(one, other), score_drift(*turned)),
    ):
        for before, after in zip(found, again, strict=True):
            assert (after.p_value, after.interval) == (before.p_value, pytest.approx(before.interval, abs=1e-6))
            assert after.effect == pytest.approx(before.effect, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "changed", "falls"),
    [
        ("first score", {"scores": 0.4}, True),
        ("grounding", {"grounding": 0.6}, True),
        ("refusals", {"refused": 0.6}, False),
    ],
)
def test_each_signal_of_the_answers_tells_its_own_change(name, changed, falls):
    found = by_name(score_drift(entries(COOKING), entries(COOKING, seed=1, **changed)))
    assert {each for each, signal in found.items() if signal.alarm} == {name}
    assert (found[name].effect < 0) is falls
    low, high = found[name].interval
    assert low <= found[name].effect <= high and not low <= 0 <= high


def test_alarms_without_drift_are_as_rare_as_promised():
    alarms = sum(
        any(signal.alarm for signal in score_drift(entries(COOKING, seed=2 * n), entries(COOKING, seed=2 * n + 1)))
        for n in range(60)
    )
    assert alarms <= 9  # of 60 at most 3 are expected; more than 9 are as unlikely as 1 in 1,000


def test_holm_is_applied_over_the_signals():
    plain = Signal("x", 0, 0, 0, (0, 0), 0.02, 0.02, False)
    assert [signal.alarm for signal in drift.corrected([plain])] == [True]
    three = drift.corrected([plain, plain, plain])
    assert [signal.p_holm for signal in three] == pytest.approx([0.06] * 3) and not any(s.alarm for s in three)
    assert ALPHA == 0.05


def test_too_few_questions_and_missing_text_are_errors(kitchen, encoder):
    few, many = entries(COOKING, n=FEWEST - 1), entries(COOKING)
    for use in (lambda: query_drift(few, many, kitchen, encoder), lambda: score_drift(many, few)):
        with pytest.raises(RagbenchError, match=str(FEWEST)):
            use()
    hashed = [Entry(**{**vars(entry), "question": None}) for entry in many]
    with pytest.raises(RagbenchError, match="kept no text"):
        query_drift(many, hashed, kitchen, encoder)


def test_passages_that_were_added_changed_or_removed_are_told_apart(encoder):
    def base(rows):
        return Collection("x", corpus_from_rows((name, "", text, "d") for name, text in rows.items()), {}, {})

    before = base({"a": "rice cooks slowly", "b": "basil likes water", "c": "bread needs yeast"})
    after = base({"a": "rice cooks slowly", "b": "basil likes submarines", "d": "quantum chromodynamics"})
    found = knowledge_drift(before, after, encoder)
    assert (found.added, found.changed, found.removed) == (("d",), ("b",), ("c",))
    assert found.unknown_words == pytest.approx(3 / 5) and found.share == pytest.approx(3 / 4)
    assert 0.2 < found.moved < 0.95
    same = knowledge_drift(before, before, encoder)
    assert (same.share, same.moved, same.unknown_words) == (0.0, None, 0.0)
    assert knowledge_drift(before, after, None).moved is None
