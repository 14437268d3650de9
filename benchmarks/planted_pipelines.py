"""RAG pipelines over the embedded collection with one known fault each, and healthy ones.

A pipeline is a run and answers under the three conditions of the audit, nothing else. Its generator speaks with answers
that were written for this purpose (planted_answers.jsonl): a right one in words of its own, one that invents, and for
questions that need two passages one that uses only the first. The retriever is the real dense one, with the gold
passages lifted to the top for most questions, so that the passages beside them are the real distractors.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ragbench.collection.schema import Collection, Query, needed_groups, passages
from ragbench.diagnosis.counterfactual import Condition, Trial, each_question, gold_of, oracle_run
from ragbench.evaluation.answer_metrics import CITATION
from ragbench.evaluation.evaluate import Questions
from ragbench.generation.answers import Answer
from ragbench.generation.prompts import REFUSAL
from ragbench.retrieval.encoder import Encoder, encode
from ragbench.retrieval.runs import Run

CONTEXTS = 3
FAMILIES = {
    "files": ("os", "pathlib", "zipfile", "io", "gzip", "bz2", "fileinput", "filecmp", "fnmatch", "glob", "shutil"),
    "network": ("socket", "socketserver", "http", "ssl", "urllib", "ipaddress"),
    "concurrency": ("asyncio", "threading", "queue", "subprocess", "multiprocessing", "sched"),
}
"""Modules that make a topic, for the retriever that is blind to one."""


@dataclass(frozen=True)
class World:
    """What all pipelines share: the collection, its questions, the real run, the written answers, what is special."""

    collection: Collection
    questions: Questions
    dense: Run
    written: dict[str, dict[str, str | None]]
    nearest: dict[str, str]
    special: frozenset[str]


@dataclass(frozen=True)
class Fault:
    """A fault: the sign that should name it, its two strengths, and the parts of a pipeline that it changes."""

    name: str
    sign: str
    strengths: tuple[float, float]
    retrieve: "Callable[[World, Pipeline, Run], Run] | None" = None
    answer: "Callable[[World, Pipeline, Query, Condition, str], str] | None" = None
    budget: Callable[[float], float] = field(default=lambda _: np.inf)


@dataclass(frozen=True)
class Pipeline:
    """A pipeline with its fault, the strength of that, and its own source of chance."""

    fault: Fault
    strength: float
    rng: np.random.Generator

    def hit(self) -> bool:
        """Whether the fault strikes this time."""
        return bool(self.rng.random() < self.strength)


def build_world(
    collection: Collection, questions: Questions, dense: Run, encoder: Encoder, spelled: Callable[[str], float]
) -> World:
    """Prepare what the pipelines share; of questions that have an answer, those that answers were planted for.

    Args:
        spelled: how special a text's words are, by another measure than the audit's: else the audit would be asked to
            find its own definition again.
    """
    lines = (Path(__file__).parent / "planted_answers.jsonl").read_text(encoding="utf-8").splitlines()
    written = {record["query_id"]: record for record in map(json.loads, lines)}
    questions = {
        split: [query for query in queries if query.id in written or not query.answerable]
        for split, queries in questions.items()
    }
    asked = [(split, query) for split, query in each_question(questions) if query.id in written]
    vectors = encode(encoder, [query.text for _, query in asked], "query")
    near = np.argmax(vectors @ vectors.T - 2 * np.eye(len(asked)), axis=1)
    nearest = {query.id: asked[place][1].id for (_, query), place in zip(asked, near, strict=True)}
    shares: dict[str, float] = {}
    for split, query in asked:
        gold = " ".join(p.full_text for p in passages(collection, gold_of(collection, split, query)).values())
        shares[query.id] = spelled(query.text) + spelled(gold)
    bound = np.quantile(list(shares.values()), 0.6)
    special = frozenset(query_id for query_id, share in shares.items() if share > bound)
    return World(collection, questions, dense, written, nearest, special)


def observe(world: World, fault: Fault, strength: float, answered: int, seed: int) -> Trial:
    """Let a pipeline retrieve for all questions and answer some of them, under every condition."""
    pipeline = Pipeline(fault, strength, np.random.default_rng([seed, *fault.name.encode(), int(100 * strength)]))
    run = _healthy_run(world, pipeline)
    if fault.retrieve:
        run = fault.retrieve(world, pipeline, run)
    asked = [query for _, query in each_question(world.questions)]
    drawn = sorted(pipeline.rng.choice(len(asked), size=min(answered, len(asked)), replace=False))
    perfect = oracle_run(world.collection, world.questions)
    answers: dict[Condition, dict[str, Answer]] = {"retrieved": {}, "oracle": {}, "none": {}}
    for place in drawn:
        query = asked[place]
        answers["retrieved"][query.id] = _reply(world, pipeline, query, "retrieved", list(run[query.id])[:CONTEXTS])
        if query.id in perfect:
            answers["oracle"][query.id] = _reply(world, pipeline, query, "oracle", list(perfect[query.id]))
            answers["none"][query.id] = _reply(world, pipeline, query, "none", [])
    return Trial(world.questions, run, CONTEXTS, answers)


def _healthy_run(world: World, pipeline: Pipeline) -> Run:
    """Lift the gold passages of nine questions in ten to the top; leave the rest to the real retriever."""
    perfect = oracle_run(world.collection, world.questions)
    run: Run = {}
    for _, query in each_question(world.questions):
        order = list(world.dense[query.id])
        if query.id in perfect and pipeline.rng.random() < 0.9:
            order = list(dict.fromkeys([*perfect[query.id], *order]))
        run[query.id] = _scored(order)
    return run


def _scored(order: list[str]) -> dict[str, float]:
    return {name: -float(rank) for rank, name in enumerate(order)}


def _reply(world: World, pipeline: Pipeline, query: Query, condition: Condition, shown: list[str]) -> Answer:
    whole = _fitting(world, shown, pipeline) if condition == "retrieved" else shown
    text = _healthy_answer(world, pipeline, query, condition, whole)
    if pipeline.fault.answer:
        text = pipeline.fault.answer(world, pipeline, query, condition, text)
    cut = tuple(name for name in shown if name not in whole)
    return Answer(query.id, text, tuple(shown), cut, 300, 30, 0.1, "stop")


def _fitting(world: World, shown: list[str], pipeline: Pipeline) -> list[str]:
    budget = pipeline.fault.budget(pipeline.strength)
    known = passages(world.collection, shown)
    whole: list[str] = []
    for name in shown:
        budget -= len(known[name].full_text)
        if budget < 0:
            break
        whole.append(name)
    return whole


def _healthy_answer(world: World, pipeline: Pipeline, query: Query, condition: Condition, whole: list[str]) -> str:
    """Right in 93 % with all it needs, half with half of it; without what it needs it mostly refuses."""
    written = world.written.get(query.id)
    chance = pipeline.rng.random()
    if written is None:  # unanswerable
        return REFUSAL if chance < 0.92 else _other(world, pipeline)
    if condition == "none":
        return _text(written, "right") if chance < 0.15 else _text(written, "invented") if chance < 0.4 else REFUSAL
    groups = needed_groups(query, _gold(world, query))
    met = [bool(group.intersection(whole)) for group in groups]
    if all(met):
        slips = [(0.93, "right"), (0.96, "misread"), (0.98, "invented")]
        return next((_text(written, kind) for bound, kind in slips if chance < bound), REFUSAL)
    if any(met) and written["half"]:
        return _text(written, "half")
    return REFUSAL if chance < 0.75 else _text(written, "invented")


def _gold(world: World, query: Query) -> dict[str, int]:
    split = next(split for split, queries in world.questions.items() if query in queries)
    return gold_of(world.collection, split, query)


def _text(written: dict[str, str | None], kind: str) -> str:
    return written[kind] or written["right"] or ""


def _other(world: World, pipeline: Pipeline) -> str:
    """A right answer to a question drawn at random: to another one, that is."""
    return _text(world.written[str(pipeline.rng.choice(sorted(world.written)))], "right")


def _shuffled(world: World, pipeline: Pipeline, run: Run) -> Run:
    ids = world.collection.corpus["_id"]
    return {
        query_id: _scored([ids[int(row)] for row in pipeline.rng.choice(len(ids), size=len(found), replace=False)])
        if pipeline.hit()
        else found
        for query_id, found in run.items()
    }


def _ranked_low(_: World, pipeline: Pipeline, run: Run) -> Run:
    return {
        query_id: _scored([*list(found)[10:20], *list(found)[:10], *list(found)[20:]]) if pipeline.hit() else found
        for query_id, found in run.items()
    }


def _blind(world: World, pipeline: Pipeline, run: Run) -> Run:
    family = FAMILIES[str(pipeline.rng.choice(sorted(FAMILIES)))]
    ids = [name for found in run.values() for name in found]
    of = {name: passage.document_id for name, passage in passages(world.collection, ids).items()}
    inside = sorted(name for name in of if of[name].startswith(family) and of[name].split(".")[0] in family)
    gone = {name for name in inside if pipeline.hit()}
    return {query_id: _scored([name for name in found if name not in gone]) for query_id, found in run.items()}


def _instead(kind: str) -> Callable[[World, Pipeline, Query, Condition, str], str]:
    """A generator that gives another of the written answers where it would have given the right one."""

    def answer(world: World, pipeline: Pipeline, query: Query, condition: Condition, text: str) -> str:
        written = world.written.get(query.id)
        wanted = written is not None and written[kind] and text == written["right"] and condition != "none"
        return _text(written, kind) if wanted and written and pipeline.hit() else text

    return answer


def _ignoring(world: World, pipeline: Pipeline, query: Query, condition: Condition, text: str) -> str:
    """Always what it would say without passages, which is the same every time it is asked."""
    written = world.written.get(query.id)
    if written is None or (condition != "none" and not pipeline.hit()):
        return text
    return _text(written, "invented")


def _formless(_: World, pipeline: Pipeline, __: Query, ___: Condition, text: str) -> str:
    if not pipeline.hit():
        return text
    plain = CITATION.sub("", text).strip()
    return (
        f"Sure! Here is what I found:\n- {plain}\n- Let me know if you need more."
        if pipeline.rng.random() < 0.5
        else plain
    )


def _off_topic(world: World, pipeline: Pipeline, query: Query, condition: Condition, text: str) -> str:
    answers = query.id in world.written and condition != "none"
    return _other(world, pipeline) if answers and pipeline.hit() else text


def _misreading(world: World, pipeline: Pipeline, query: Query, condition: Condition, text: str) -> str:
    """Takes the term of a question with special vocabulary for that of the nearest other question."""
    written = world.written.get(query.id)
    if written is None or query.id not in world.special or condition == "none" or text != written["right"]:
        return text
    return _text(world.written[world.nearest[query.id]], "right") if pipeline.hit() else text


def _refusing(_: World, pipeline: Pipeline, __: Query, ___: Condition, text: str) -> str:
    return REFUSAL if pipeline.hit() else text


def _never_refusing(world: World, pipeline: Pipeline, query: Query, condition: Condition, text: str) -> str:
    unanswerable = query.id not in world.written
    return _other(world, pipeline) if unanswerable and pipeline.hit() else text


HEALTHY = Fault("healthy", "none", (0.0, 0.0))
FAULTS = (
    Fault("retriever shuffled", "missed", (0.5, 1.0), retrieve=_shuffled),
    Fault("gold ranked below what is shown", "missed", (0.5, 1.0), retrieve=_ranked_low),
    Fault("retriever blind to one topic", "blind_topic", (0.85, 1.0), retrieve=_blind),
    Fault("gold cut off by a small context", "cut_off", (900, 500), budget=lambda characters: characters),
    Fault("generator ignores the passages", "ignores_passages", (0.5, 0.9), answer=_ignoring),
    Fault("generator invents numbers and names", "hallucination", (0.4, 0.8), answer=_instead("invented")),
    Fault("wrong format", "format", (0.4, 0.8), answer=_formless),
    Fault("off-topic answers", "off_topic", (0.4, 0.8), answer=_off_topic),
    Fault("uses one passage only", "synthesis", (0.8, 1.0), answer=_instead("half")),
    Fault("jargon misread", "domain_terms", (0.8, 1.0), answer=_misreading),
    Fault("refuses too much", "over_refusal", (0.3, 0.7), answer=_refusing),
    Fault("never refuses", "answers_anyway", (0.7, 1.0), answer=_never_refusing),
)
