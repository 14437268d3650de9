"""A bundle that answers: models and indices opened once, nothing of what is asked left in the caches."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragbench.collection.schema import Collection, Query, passages
from ragbench.deployment.bundle import INDEX, Manifest, passages_of, system_of, verify
from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import System
from ragbench.generation import local
from ragbench.generation.answers import Completion
from ragbench.generation.generate import complete, prompts_for, token_counter
from ragbench.generation.prompts import Prompt
from ragbench.retrieval.index import read_index
from ragbench.retrieval.retrieve import Searcher, find, open_searcher
from ragbench.retrieval.runs import Run


@dataclass(frozen=True)
class Source:
    """A passage that was found, with the retriever's score."""

    id: str
    title: str
    text: str
    score: float


@dataclass(frozen=True)
class Reply:
    """What was answered, and from which passages.

    Attributes:
        sources: the passages that the generator was shown, in the order of the prompt, best first.
        seconds: from the question to the answer; of questions that are answered together, the same for all.
        finish_reason: ``stop``, ``length`` or ``error``.
    """

    question: str
    answer: str
    sources: tuple[Source, ...]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reason: str


@dataclass(frozen=True)
class Deployed:
    """An opened bundle.

    Attributes:
        folder, manifest: of the bundle.
        system: with models where they are.
        collection: its passages, without questions.
        searcher: the retriever with its indices.
        model: the generator; None for a served one, or where there is none.
        turn: held while something is computed: one question, or batch of them, at a time.
    """

    folder: Path
    manifest: Manifest
    system: System
    collection: Collection
    searcher: Searcher
    model: local.Opened | None
    turn: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)


def open_bundle(folder: Path, device: str = "auto") -> Deployed:
    """Verify a bundle and load what it needs to answer.

    Raises:
        RagbenchError: a part is damaged or swapped, or a model that is not inside cannot be had.
    """
    manifest = verify(folder)
    system = system_of(folder, manifest)
    system = replace(
        system,
        retriever=replace(system.retriever, device=device),
        generator=replace(system.generator, device=device),
    )
    collection = passages_of(folder)
    index = read_index(folder / INDEX) if manifest.built_with else None
    generator = system.generator
    model = (
        local.open_model(generator.model, generator.revision, generator.device, generator.dtype)
        if generator.backend == "local"
        else None
    )
    return Deployed(folder, manifest, system, collection, open_searcher(collection, system.retriever, index), model)


def search_all(deployed: Deployed, questions: Sequence[str], depth: int = 10) -> list[list[Source]]:
    """Return the best passages of each question, best first."""
    queries = [Query(str(place), text) for place, text in enumerate(questions)]
    with deployed.turn:
        run = find(deployed.searcher, queries, keep=False) if queries else {}
    return [_sources(deployed, run, query.id, list(run[query.id])[:depth]) for query in queries]


def answer_all(deployed: Deployed, questions: Sequence[str]) -> list[Reply]:
    """Answer questions together, as the system was evaluated.

    Raises:
        RagbenchError: the bundle has no generator, a question does not fit it, or its server refuses.
    """
    if deployed.system.generator.backend == "none":
        raise RagbenchError(f"{deployed.folder} has no generator: it was evaluated with generator_backend 'none'.")
    if not questions:
        return []
    started = time.perf_counter()
    queries = [Query(str(place), text) for place, text in enumerate(questions)]
    count = deployed.model.count_tokens if deployed.model else token_counter(deployed.system.generator)
    with deployed.turn:
        run = find(deployed.searcher, queries, keep=False)
        prompts = prompts_for(deployed.collection, queries, run, deployed.system.generator, count)
        completions = _complete(deployed, prompts)
    seconds = time.perf_counter() - started
    return [
        Reply(
            query.text,
            completion.text,
            tuple(_sources(deployed, run, query.id, prompt.context_ids)),
            completion.prompt_tokens,
            completion.completion_tokens,
            seconds,
            completion.finish_reason,
        )
        for query, prompt, completion in zip(queries, prompts, completions, strict=True)
    ]


def _complete(deployed: Deployed, prompts: Sequence[Prompt]) -> list[Completion]:
    generator, conversations = deployed.system.generator, [prompt.messages for prompt in prompts]
    if deployed.model is not None:
        return local.reply(deployed.model, conversations, max_new_tokens=generator.max_new_tokens)
    return complete(conversations, generator, keep=False)


def _sources(deployed: Deployed, run: Run, query_id: str, ids: Sequence[str]) -> list[Source]:
    known = passages(deployed.collection, ids)
    return [Source(name, known[name].title, known[name].text, run[query_id][name]) for name in ids]
