"""Whether to tune again, and which parts: decided from drift, failures and what became of the passages.

`look` decides, `carry_out` runs what was decided and offers the result to the gate.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragbench.collection.load import fingerprint, load_collection
from ragbench.collection.schema import Collection
from ragbench.deployment.bundle import Contents, pack, passages_of, read_manifest, system_of
from ragbench.deployment.drift import (
    FEWEST,
    KnowledgeDrift,
    Signal,
    corrected,
    knowledge_drift,
    query_drift,
    score_drift,
)
from ragbench.deployment.failures import failures_in
from ragbench.deployment.gate import Gate, admit
from ragbench.deployment.packing import contents_of, with_passages
from ragbench.deployment.query_log import Entry
from ragbench.deployment.store import Change, add, find_bundle, promote
from ragbench.retrieval.encoder import Encoder
from ragbench.retrieval.retrieve import encoder_of
from ragbench.workbench.execution import Experiment, run_experiment

DATA, RETRIEVER, GENERATOR, JOINT, EVALUATION = (
    "02_data_prep", "03_retriever", "04_generator", "05_end_to_end", "06_evaluation"
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """From where on something has to be done.

    Attributes:
        failed: share of answers that failed.
        changed: share of passages that were added, changed or removed.
        unknown_words: share of words in new and changed passages that no passage had.
    """

    failed: float = 0.2
    changed: float = 0.0
    unknown_words: float = 0.1


@dataclass(frozen=True)
class Plan:
    """What to do, and why.

    Attributes:
        update: whether the index has to be brought up to the passages.
        stages: to run again, in their order; none if nothing has to be tuned.
        reasons: sentences.
    """

    update: bool
    stages: tuple[str, ...] = ()
    reasons: tuple[str, ...] = field(default=())

    @property
    def todo(self) -> str:
        """What to do, in words."""
        steps = ["bring the index up to the passages"] if self.update else []
        return ", ".join([*steps, *self.stages]) or "nothing"

    @property
    def nothing(self) -> bool:
        """Whether all may stay as it is."""
        return not self.update and not self.stages


def plan(
    signals: Sequence[Signal],
    knowledge: KnowledgeDrift | None,
    failed: int,
    answered: int,
    limits: Limits | None = None,
) -> Plan:
    """Decide what to run again.

    Questions, words or first scores that drifted, or passages with many new words, speak for the retriever; answers
    that lost grounding, or refuse more, while what is found did not change, speak for the generator; a high share of
    failures for both. Canaries that changed are a reason to look, not to tune.

    Args:
        signals: from `drift` and `canaries`.
        knowledge: how the passages changed; None if they were not compared.
        failed, answered: answers that failed (see `failures.failures_in`), of how many.
    """
    limits = limits or Limits()
    alarms = {signal.name: signal for signal in signals if signal.alarm}
    reasons = [
        f"{signal.name}: {signal.before:.3f} → {signal.after:.3f}, {signal.effect:+.3f} [{signal.interval[0]:+.3f}, "
        f"{signal.interval[1]:+.3f}], p {signal.p_holm:.3f} after Holm."
        for signal in alarms.values()
    ]
    found = {"questions", "unknown words"} & alarms.keys()
    if "first score" in alarms and alarms["first score"].effect < 0:
        found |= {"first score"}
    answers = {name for name in ("grounding",) if name in alarms and alarms[name].effect < 0}
    if "refusals" in alarms and alarms["refusals"].effect > 0:
        answers |= {"refusals"}
    if any(name.startswith("canary") for name in alarms):
        reasons.append(
            "The bundle is the same as when it was packed: a library, the processor or a served model is another one. "
            "Look at these first; tuning does not mend it."
        )
    update = knowledge is not None and knowledge.share > limits.changed
    if knowledge is not None and update:
        counts = {name: len(getattr(knowledge, name)) for name in ("added", "changed", "removed")}
        reasons.append("Passages: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + ".")
        if knowledge.unknown_words > limits.unknown_words:
            found |= {"new words"}
            reasons.append(f"{knowledge.unknown_words:.0%} of the words in new and changed passages are new.")
    many = answered > 0 and failed / answered > limits.failed
    if many:
        reasons.append(f"{failed} of {answered} answers failed.")
    retriever, generator = bool(found) or many, (bool(answers) and not found) or many
    stages = [DATA] if retriever or generator else []
    stages += [RETRIEVER] if retriever else []
    stages += [GENERATOR] if generator else []
    stages += [JOINT] if retriever and generator else []
    stages += [EVALUATION] if stages else []
    return Plan(update, tuple(stages), tuple(reasons) or ("Nothing drifted, and few answers failed.",))


def look(
    before: Sequence[Entry],
    after: Sequence[Entry],
    bundle: Path,
    collection: Collection | None,
    encoder: Encoder,
    limits: Limits | None = None,
    canaries: Sequence[Signal] = (),
) -> tuple[Plan, list[Signal]]:
    """Compare two periods of the log, and the bundle's passages with those of now; decide what to do.

    Periods with fewer than `drift.FEWEST` questions, or without text, are compared by what they have.

    Args:
        before: of a period that was good.
        bundle: in use.
        collection: with the passages as they are now; None if they did not change.
        encoder: the fixed encoder of the evaluation.
        canaries: from `canaries.canary_signals`; corrected together with the others.
    """
    manifest, passages = read_manifest(bundle), passages_of(bundle)
    signals: list[Signal] = []
    if min(len(before), len(after)) >= FEWEST:
        told = all(entry.question is not None for entry in (*before, *after))
        signals = query_drift(before, after, passages, encoder) if told else score_drift(before, after)
    signals = corrected([*signals, *canaries])
    retriever = encoder_of(system_of(bundle, manifest).retriever) if manifest.built_with else None
    knowledge = knowledge_drift(passages, collection, retriever) if collection is not None else None
    return plan(signals, knowledge, len(failures_in(after)), len(after), limits), signals


def carry_out(
    decided: Plan, store: Path, name: str, experiment: Experiment, collection: str, gate: Gate
) -> tuple[Change, list[str]]:
    """Run what was decided, pack the result as the next version, and put it into use if the gate lets it pass.

    Args:
        experiment: whose parameters hold; its collection and folder are replaced.
        collection: with the questions and passages of now.

    Returns:
        The change of version, and the gate's comparisons in words.

    Raises:
        RagbenchError: a stage failed, or the gate refused: the version is packed, but not in use.
    """
    present = find_bundle(store, name)
    contents = (
        _tuned_again(decided, name, present, experiment, collection)
        if decided.stages
        else with_passages(present, load_collection(collection, experiment.root))
    )
    version, _ = add(store, name, lambda folder: pack(contents, folder))
    said = admit(present, store / name / version, collection, gate)
    return promote(store, name, version, " ".join(decided.reasons)), said


def _tuned_again(decided: Plan, name: str, present: Path, experiment: Experiment, collection: str) -> Contents:
    """Run the stages, and return the system with the part that was tuned again; the other stays the bundle's own."""
    tuned = tuple(stage for stage in decided.stages if stage not in (DATA, EVALUATION))
    systems = {
        (RETRIEVER,): ["base", "retriever"],
        (GENERATOR,): ["base", "generator"],
        (RETRIEVER, GENERATOR, JOINT): ["base", "retriever", "generator", "both", "end_to_end"],
    }[tuned]
    manifest = read_manifest(present)
    system = system_of(present.resolve(), manifest)
    keeps_retriever, keeps_generator = RETRIEVER not in tuned, GENERATOR not in tuned
    kept: dict[str, str] = {}
    if keeps_retriever:
        kept |= {"retriever_model": system.retriever.model, "retriever_revision": system.retriever.revision}
    if keeps_generator:
        kept |= {"generator_model": system.generator.model, "generator_revision": system.generator.revision}
    folder = experiment.run.parent / f"{name}-after-{present.name}-{time.strftime('%Y%m%d')}"
    again = replace(
        experiment,
        run=folder,
        values={**experiment.values, **kept, "collection": collection, "evaluation_systems": systems},
        outside={"collection": fingerprint(load_collection(collection, experiment.root))},
    )
    run_experiment(again, decided.stages)
    # One part that was tuned again goes to the gate whatever the verdict, which compares it with the untuned one.
    contents = contents_of(folder, systems[-1] if len(tuned) == 1 else "")
    copies_retriever = keeps_retriever and manifest.retriever is not None and manifest.retriever.inside
    return replace(
        contents,
        tuned_retriever=contents.tuned_retriever or copies_retriever,
        tuned_generator=contents.tuned_generator or (keeps_generator and manifest.generator.inside),
    )
