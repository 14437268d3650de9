from dataclasses import replace

import pytest

from ragbench.collection.schema import Collection, corpus_from_rows
from ragbench.deployment import bundle as bundles
from ragbench.deployment import gate as gates
from ragbench.deployment import retuning
from ragbench.deployment.bundle import pack, read_manifest, verify
from ragbench.deployment.drift import KnowledgeDrift, Signal
from ragbench.deployment.gate import Gate
from ragbench.deployment.packing import with_passages
from ragbench.deployment.query_log import Entry, make_entry
from ragbench.deployment.retuning import Plan, carry_out, look, plan
from ragbench.deployment.store import add, current, promote
from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import System
from ragbench.retrieval import encoder as encoders
from ragbench.retrieval.encoder import open_encoder
from ragbench.workbench.execution import Experiment

SAME = KnowledgeDrift((), (), (), 0.0, None, 0.0)
R, G, J = "03_retriever", "04_generator", "05_end_to_end"


def alarm(name, effect):
    return Signal(name, 0.5, 0.5 + effect, effect, (effect - 0.1, effect + 0.1), 0.001, 0.005, True)


@pytest.mark.parametrize(
    ("signals", "knowledge", "failed", "stages", "update"),
    [
        ([], None, 3, (), False),
        ([], SAME, 0, (), False),
        ([replace(alarm("questions", 0.3), alarm=False)], None, 0, (), False),
        ([alarm("questions", 0.3)], None, 0, (R,), False),
        ([alarm("unknown words", 0.3)], None, 0, (R,), False),
        ([alarm("first score", -0.3)], None, 0, (R,), False),
        ([alarm("first score", 0.3)], None, 0, (), False),
        ([alarm("grounding", -0.3)], None, 0, (G,), False),
        ([alarm("grounding", 0.3)], None, 0, (), False),
        ([alarm("refusals", 0.3)], None, 0, (G,), False),
        ([alarm("questions", 0.3), alarm("refusals", 0.3)], None, 0, (R,), False),
        ([alarm("canary answers", 0.5)], None, 0, (), False),
        ([], None, 60, (R, G, J), False),
        ([], KnowledgeDrift(("a",), (), (), 0.02, None, 0.01), 0, (), True),
        ([], KnowledgeDrift(("a",), (), (), 0.5, None, 0.01), 0, (R,), True),
    ],
)
def test_what_is_run_again_follows_from_what_drifted(signals, knowledge, failed, stages, update):
    found = plan(signals, knowledge, failed, 100)
    expected = ("02_data_prep", *stages, "06_evaluation") if stages else ()
    assert (found.stages, found.update, found.nothing) == (expected, update, not stages and not update)
    assert found.reasons


def test_the_reasons_name_the_signal_and_its_numbers():
    [reason] = plan([alarm("grounding", -0.25)], None, 0, 100).reasons
    assert "grounding: 0.500 → 0.250, -0.250" in reason


def test_canaries_that_changed_are_a_reason_to_look_around_and_are_corrected_with_the_rest(bundle, tiny_encoder):
    said = " ".join(plan([alarm("canary answers", 0.5)], None, 0, 100).reasons)
    assert "canary answers: 0.500 → 1.000" in said and "tuning does not mend it" in said
    raw = replace(alarm("canary answers", 0.5), p_value=0.02, alarm=False)
    encoder = open_encoder(str(tiny_encoder), device="cpu")
    [alone] = look([], [], bundle, None, encoder, canaries=[raw])[1]
    among = look(entries(40), entries(40), bundle, None, encoder, canaries=[raw])[1][-1]
    assert alone.alarm and not among.alarm and among.p_holm > alone.p_holm == 0.02


def entries(n, **changes):
    made = [
        make_entry(str(k), f"kak gag {k}", "x", [("p1", 0.5 + k % 7 / 20)], False, seconds=0.1, bundle="g/1",
                   finish_reason="stop") for k in range(n)
    ]  # fmt: skip
    return [Entry(**{**vars(entry), "grounding": 0.5 + k % 9 / 20, **changes}) for k, entry in enumerate(made)]


def test_a_quiet_log_and_the_same_passages_leave_all_as_it_is(bundle, garden, tiny_encoder):
    encoder = open_encoder(str(tiny_encoder), device="cpu")
    found, signals = look(entries(40), entries(40), bundle, garden, encoder)
    assert found.nothing and len(signals) == 5
    assert look(entries(5), entries(5), bundle, None, encoder)[1] == []  # too few to tell
    assert len(look(entries(40, question=None), entries(40), bundle, None, encoder)[1]) == 3


def grown(garden):
    rows = [(r["_id"], r["title"], r["text"], r["document_id"]) for r in garden.corpus]
    rows = [*rows[1:], ("p99", "t99", "bab kak bab", "d99")]
    return Collection("garden", corpus_from_rows(rows), garden.queries, garden.qrels)


@pytest.fixture
def store(contents, tmp_path, garden, tiny_encoder, monkeypatch):
    add(tmp_path / "bundles", "garden", lambda folder: pack(contents, folder))
    promote(tmp_path / "bundles", "garden", "0001", "first")
    for module in (gates, retuning):
        monkeypatch.setattr(module, "load_collection", lambda *_: grown(garden))
    monkeypatch.setattr(gates, "JUDGE", str(tiny_encoder))
    return tmp_path / "bundles"


def test_other_passages_are_encoded_alone_and_the_bundle_is_whole(store, garden, tmp_path, monkeypatch):
    read = []
    whole = encoders._forward
    monkeypatch.setattr(encoders, "_forward", lambda e, texts, kind: read.extend(texts) or whole(e, texts, kind))
    monkeypatch.setenv("RAGBENCH_CACHE", str(tmp_path / "another cache"))
    monkeypatch.setattr(bundles, "PROBED", 2)
    pack(with_passages(store / "garden" / "0001", grown(garden)), tmp_path / "next")
    assert "t99 bab kak bab" in read and not any(text.startswith("t3 ") for text in read)
    assert verify(tmp_path / "next").passages == len(garden.corpus)


def test_passages_alone_make_a_new_version_that_passes_the_gate(store, tmp_path):
    experiment = Experiment(tmp_path, tmp_path / "runs" / "x", {}, {}, {})
    change, said = carry_out(Plan(True, (), ("Passages: 1 added.",)), store, "garden", experiment, "garden", Gate())
    assert (change.before, change.after, change.why) == ("0001", "0002", "Passages: 1 added.")
    assert current(store, "garden") == "0002" and said


@pytest.fixture
def ran(contents, monkeypatch):
    """What was run, in place of running it: the result has one new part, and the other as the parameters say."""
    ran = []

    def result(run, system):
        values = ran[-1][0].values
        retriever = replace(
            contents.system.retriever, model=values.get("retriever_model", contents.system.retriever.model)
        )
        generator = replace(
            contents.system.generator, model=values.get("generator_model", contents.system.generator.model)
        )
        ran[-1] += (system,)
        return replace(
            contents, system=System(system, retriever, generator), tuned_retriever=system in ("", "retriever"),
            tuned_generator=system in ("", "generator"),
        )  # fmt: skip

    monkeypatch.setattr(retuning, "run_experiment", lambda e, stages: ran.append((e, tuple(stages))))
    monkeypatch.setattr(retuning, "contents_of", result)
    return ran


@pytest.mark.parametrize(
    ("signal", "stage", "tuned", "other"),
    [
        (alarm("questions", 0.4), R, "retriever", "generator"),
        (alarm("grounding", -0.4), G, "generator", "retriever"),
    ],
)
def test_the_part_that_is_not_tuned_again_stays_the_bundles_own(store, tmp_path, ran, signal, stage, tuned, other):
    experiment = Experiment(tmp_path, tmp_path / "runs" / "x", {}, {"seed": 3}, {})
    decided = plan([signal], None, 0, 100)
    assert carry_out(decided, store, "garden", experiment, "new", Gate())[0].after == "0002"
    [(again, stages, system)] = ran
    assert (stages, system) == (("02_data_prep", stage, "06_evaluation"), tuned)
    own = str((store / "garden" / "0001" / other).resolve())
    assert again.values == {
        "seed": 3, "collection": "new", "evaluation_systems": ["base", tuned], f"{other}_model": own,
        f"{other}_revision": "",
    }  # fmt: skip
    assert again.run.parent == tmp_path / "runs" and again.run.name.startswith("garden-after-0001-")
    before, after = (getattr(read_manifest(store / "garden" / version), other) for version in ("0001", "0002"))
    assert after.inside and after.sha256 == before.sha256  # a copy: the old version may be deleted


def test_all_is_tuned_again_from_the_experiments_models_and_the_verdict_chooses(store, tmp_path, ran):
    experiment = Experiment(tmp_path, tmp_path / "runs" / "x", {}, {}, {})
    carry_out(plan([], None, 60, 100), store, "garden", experiment, "new", Gate())
    [(again, stages, system)] = ran
    assert stages == ("02_data_prep", R, G, J, "06_evaluation") and system == ""
    assert set(again.values) == {"collection", "evaluation_systems"}


def test_a_refusal_leaves_the_old_version_in_use(store, tmp_path, ran, monkeypatch):
    experiment = Experiment(tmp_path, tmp_path / "runs" / "x", {}, {}, {})
    decided = plan([alarm("questions", 0.4)], None, 0, 100)

    def refuse(*_):
        raise RagbenchError("0002 is not put into use")

    monkeypatch.setattr(retuning, "admit", refuse)
    with pytest.raises(RagbenchError, match="not put into use"):
        carry_out(decided, store, "garden", experiment, "new", Gate())
    assert current(store, "garden") == "0001"
