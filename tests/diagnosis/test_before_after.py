from dataclasses import replace

import pandas as pd
import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.diagnosis import before_after
from ragbench.diagnosis.attribution import CELLS, Attribution, Share
from ragbench.diagnosis.audit import Diagnosis
from ragbench.diagnosis.before_after import Examined, attribution_table, examine, signs_table, what_became
from ragbench.diagnosis.measures import COLUMNS as MEASURES
from ragbench.diagnosis.measures import Measured
from ragbench.diagnosis.sign import Sign
from ragbench.evaluation.evaluate import Outcome, System, evaluate
from ragbench.evaluation.judge import Judge
from ragbench.evaluation.scores import COLUMNS
from ragbench.generation.generate import Generator
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever

N = 12
NOTHING = pd.DataFrame(columns=COLUMNS)


def sign(name, state, rate=0.5, n=20):
    return Sign(name, "generator", name.capitalize(), "", rate, rate - 0.1, rate + 0.1, n, 0.2, state=state)


def examined(name, *signs, attribution=None):
    diagnosis = Diagnosis(NOTHING, attribution, signs, (), {}, 0.0)
    return Examined(System(name, Retriever(), Generator()), Outcome(name, {}, {}, {}, NOTHING), NOTHING, diagnosis, "")


BASE = examined("base", sign("lies", "present"), sign("rambles", "absent", 0.1), sign("dodges", "possible", 0.3))
AFTER = [
    examined("generator", sign("lies", "absent", 0.1), sign("rambles", "absent", 0.1), sign("dodges", "present")),
    examined("both", sign("lies", "absent", 0.1), sign("rambles", "present"), sign("dodges", "absent", 0.0)),
]


def test_every_sign_that_the_base_shows_is_followed_into_the_other_systems():
    lies, dodges, new = what_became([BASE, *AFTER])
    assert lies == "Lies: present with base; absent with generator, both."
    assert dodges == "Dodges: possible with base; present with generator; absent with both."
    assert new == "Rambles is new with both: present: 0.50 [0.40, 0.60], n = 20."


def test_nothing_to_see_before_or_after_is_said():
    healthy = examined("base", sign("lies", "absent", 0.0))
    assert what_became([healthy, healthy]) == ["base shows no sign, and none appeared."]


@pytest.mark.parametrize("n", [0, 5])
def test_the_table_has_a_row_a_sign_and_a_column_a_system(n):
    unseen = examined("both", sign("lies", "unknown", float("nan"), n), *BASE.diagnosis.signs[1:])
    table = signs_table([BASE, unseen])
    assert table["sign"].tolist() == ["Lies", "Rambles", "Dodges"]
    assert table["base"][0] == "present: 0.50 [0.40, 0.60], n = 20"
    assert table["both"][0] == f"unknown: too few questions, n = {n}"


def test_the_error_of_each_system_stands_in_its_column():
    cells = tuple(Share(name, text, 0.5, 0.25, 0.75, ()) for name, text in CELLS.items())
    found = Attribution(4, 4, cells, (), (), ())
    table = attribution_table([examined("base", attribution=found), examined("silent")])
    assert list(table.columns) == ["share of questions", "base"]
    assert table["base"].tolist() == ["0.50 [0.25, 0.75]"] * len(CELLS)
    assert attribution_table([examined("silent")]).empty


@pytest.fixture
def whole():
    corpus = corpus_from_rows((f"p{n}", "", f"bab bed {'big ' * (n % 3)}bod.", "d") for n in range(N))
    queries = {f"q{n}": Query(f"q{n}", f"bab bed {'big ' * (n % 3)}", "bab bod.") for n in range(N)}
    return Collection("hand-made", corpus, queries, {"test": {f"q{n}": {f"p{n}": 1} for n in range(N)}})


def test_systems_are_examined_on_their_own_answers_by_one_bar(whole, tiny_encoder, tiny_generator, own_cache):
    encoder = open_encoder(str(tiny_encoder), device="cpu", dtype="float32")
    retriever = Retriever(model=str(tiny_encoder), depth=5, device="cpu", dtype="float32")
    generator = Generator(
        model=str(tiny_generator), contexts=2, max_context_tokens=40, max_new_tokens=4, device="cpu", dtype="float32"
    )
    systems = [System("base", retriever, generator), System("generator", retriever, replace(generator, contexts=1))]
    questions = {"test": list(whole.queries.values())}
    outcomes = [evaluate(system, whole, questions, encoder=encoder) for system in systems]
    found = examine(
        whole, systems, outcomes, encoder, kind="offline", llm=Judge(model="", endpoint=""), thresholds={"format": 0.99}
    )
    assert [each.outcome for each in found] == outcomes
    for each in found:
        rows = each.scores[each.scores["metric"] == "grounding"]
        assert set(rows["system"]) == {each.system.name} and len(rows) == N
        assert len(each.diagnosis.evidence) == N
        assert each.diagnosis.attribution.scored == N
    some = examine(whole, systems, outcomes, encoder, kind="offline", llm=Judge(model="", endpoint=""), again=5)
    for each, other in zip(some, found, strict=True):
        assert each.diagnosis.attribution.scored == 5
        assert each.scores.equals(other.scores)  # all answers are scored all the same
    # A threshold that the caller sets holds for every system.
    assert {s.threshold for each in found for s in each.diagnosis.signs if s.name == "format"} == {0.99}


def test_a_judge_has_one_cap_for_all_systems(whole, monkeypatch, tiny_encoder):
    spent = []

    def measured(*_, llm, **__):
        spent.append(llm.spent)
        return Measured(pd.DataFrame(columns=MEASURES), 0.5, 0.5, pd.DataFrame(), "3 calls", 1.5)

    monkeypatch.setattr(before_after, "measure_answers", measured)
    encoder = open_encoder(str(tiny_encoder), device="cpu", dtype="float32")
    systems = [System(name, Retriever(), Generator(backend="none")) for name in ("base", "retriever", "both")]
    questions = {"test": list(whole.queries.values())}
    run = {name: {f"p{n}": -float(n) for n in range(3)} for name in whole.queries}
    outcomes = [Outcome(each.name, questions, run, {}, NOTHING) for each in systems]
    found = examine(whole, systems, outcomes, encoder, kind="endpoint", llm=Judge(model="m", endpoint="e", spent=1.0))
    assert spent == [1.0, 2.5, 4.0]
    assert [each.spent for each in found] == ["3 calls"] * 3
