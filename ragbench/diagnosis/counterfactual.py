"""Each question answered three times: from what was retrieved, from the gold passages, from nothing.

The difference between the answers tells what better retrieval could give, what it could not, and what the generator
knew anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ragbench.collection.schema import Collection, Query, needed_groups
from ragbench.evaluation.evaluate import Questions
from ragbench.generation.answers import Answer
from ragbench.generation.generate import Generator, answer_run, room_for_context
from ragbench.generation.prompts import CLOSED_BOOK
from ragbench.retrieval.runs import Run

Condition = Literal["retrieved", "oracle", "none"]
CONDITIONS: tuple[Condition, ...] = ("retrieved", "oracle", "none")


@dataclass(frozen=True)
class Trial:
    """All that the audit sees of a system: what it was asked, what it found, and what it answered.

    Attributes:
        questions: those for which passages were retrieved; only some of them need have answers.
        run: the ranked passages of every question.
        contexts: passages that the system shows its generator.
        answers: condition → query id → answer. A system that was not asked under a condition has none there.
    """

    questions: Questions
    run: Run
    contexts: int
    answers: dict[Condition, dict[str, Answer]]


def each_question(questions: Questions) -> Iterator[tuple[str, Query]]:
    """Yield (split, query), a question that stands in several splits only for the first."""
    seen: set[str] = set()
    for split, queries in questions.items():
        for query in queries:
            if query.id not in seen:
                seen.add(query.id)
                yield split, query


def gold_of(collection: Collection, split: str, query: Query) -> dict[str, int]:
    """Return the gold passages of a query, passage id → relevance above 0."""
    return {passage_id: score for passage_id, score in collection.qrels[split][query.id].items() if score > 0}


def oracle_run(collection: Collection, questions: Questions) -> Run:
    """Return what a perfect retriever would find: one gold passage for each need, and nothing else.

    Where several passages meet a need, the most relevant one is taken, of equal ones the first in the qrels. Questions
    without gold passages are left out.
    """
    run: Run = {}
    for split, query in each_question(questions):
        gold = gold_of(collection, split, query)
        order = sorted(gold, key=lambda passage_id: -gold[passage_id])
        meeting = [[name for name in order if name in group] for group in needed_groups(query, gold)]
        if meeting and all(meeting):
            run[query.id] = {
                name: -float(rank) for rank, name in enumerate(dict.fromkeys(found[0] for found in meeting))
            }
    return run


def answer_counterfactually(
    collection: Collection, questions: Questions, run: Run, answered: dict[str, Answer], generator: Generator
) -> Trial:
    """Answer again what was answered from retrieved passages: from the gold passages, and from nothing.

    The gold passages are shown whole, as far as the generator can read them. Without passages the generator is told to
    answer from what it knows, not to use passages that are not there. Unanswerable questions are not asked again.

    Args:
        questions, run: all questions for which passages were retrieved, and the passages.
        answered: the answers to all or some of them, by query id.

    Raises:
        RagbenchError: see `answer_run`.
    """
    perfect = oracle_run(collection, questions)
    queries = [query for _, query in each_question(questions) if query.id in perfect and query.id in answered]
    most = max((len(perfect[query.id]) for query in queries), default=0)
    room = max(room_for_context(generator, [query.text for query in queries]), generator.max_context_tokens)
    oracle = replace(generator, contexts=most, max_context_tokens=room)
    closed = replace(generator, contexts=0, instruction=CLOSED_BOOK)
    answers: dict[Condition, dict[str, Answer]] = {
        "retrieved": answered,
        "oracle": {answer.query_id: answer for answer in answer_run(collection, queries, perfect, oracle)},
        "none": {answer.query_id: answer for answer in answer_run(collection, queries, {}, closed)},
    }
    return Trial(questions, run, generator.contexts, answers)
