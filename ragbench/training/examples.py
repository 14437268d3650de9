"""The generator's training examples: prompts as it gets them when it answers, and the answers that it should give.

The contexts are what the retriever really surfaces, so that the generator learns to tell the gold passages from this
retriever's own distractors. As in RAFT (Zhang et al. 2024, arXiv 2403.10131), positions are shuffled, and a share of
the examples is shown distractors only. Their target is the refusal, not the reference answer as in RAFT: a deployed
generator must say so when the passages do not tell, rather than answer from memory.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from ragbench.collection.schema import Collection, Query, corpus_ids, needed_groups, rows_of, split_queries
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import citations
from ragbench.files import sha256_text
from ragbench.generation.generate import Generator, prompts_for
from ragbench.generation.prompts import REFUSAL, Message, Prompt
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.retrieval.runs import Run, top

Kind = Literal["gold retrieved", "gold added", "gold left out", "unanswerable", "gold unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_MESSAGES = List({"role": Value("string"), "content": Value("string")})
FEATURES = Features(
    {
        "prompt": _MESSAGES,
        "completion": _MESSAGES,
        "query_id": Value("string"),
        "split": Value("string"),
        "kind": Value("string"),
        "context_ids": List(Value("string")),
        "gold_ids": List(Value("string")),
    }
)
"""The columns of a data set of examples; `prompt` and `completion` are TRL's, in its conversational form."""


@dataclass(frozen=True)
class Mix:
    """How the contexts of the examples are made.

    Attributes:
        contexts: passages shown; the same number as when answering.
        without_gold: share of the answerable examples whose gold passages are left out.
        shuffle: whether the passages stand in random order rather than best first.
        seed: of the order, and of which examples lose their gold passages.
    """

    contexts: int = 3
    without_gold: float = 0.0
    shuffle: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """One prompt with the answer that is expected.

    Attributes:
        query_id, split: the question.
        kind: ``gold retrieved`` (all that the answer needs was retrieved), ``gold added`` (some of it took the place of
            the lowest ranked passages), ``gold left out`` (distractors only), ``unanswerable``, or ``gold unknown``
            (there is an answer, but no label that says which passages hold it).
        messages: the prompt, as `generation.prompts.build_prompt` makes it.
        completion: the reference answer, or the refusal.
        context_ids: the passages shown, in their order.
        gold_ids: those of them that are gold.
        missing_ids: passages that the answer needs and the prompt does not show whole, because there are too many of
            them or they are too long.
    """

    query_id: str
    split: str
    kind: Kind
    messages: tuple[Message, ...]
    completion: str
    context_ids: tuple[str, ...]
    gold_ids: tuple[str, ...]
    missing_ids: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What an example is to show: `order` is the passages in the order of the prompt, `needed` what must be whole."""

    query: Query
    kind: Kind
    completion: str
    needed: tuple[str, ...]
    order: tuple[str, ...]


def generator_examples(collection: Collection, split: str, run: Run, generator: Generator, mix: Mix) -> list[Example]:
    """Return an example for every question of a split that has a reference answer or cannot be answered.

    Of each group of gold passages that an answer needs, those that the reference cites are shown, else the best
    retrieved one, else the most relevant one. Those that were retrieved keep their places before the shuffling; the
    others replace the lowest ranked passages that are not needed. A needed passage that would be cut at
    `max_context_tokens` stands as far ahead as it must to be shown whole.

    Nothing depends on the order of the questions; which of them lose their gold passages depends on all of them.

    Args:
        run: what the retriever found for the questions, deeper than `mix.contexts` so that distractors are left.
        generator: its prompt and limits; `mix.contexts` stands in for its `contexts`.

    Raises:
        RagbenchError: an impossible mix, a split that is not there, a question that is not in the run, or a generator
            that cannot be had.
    """
    _check(mix)
    queries = [query for query in split_queries(collection, split) if query.answer or not query.answerable]
    unseen = [query.id for query in queries if query.id not in run]
    if unseen:
        raise RagbenchError(
            f"The run has no passages for {len(unseen)} of {len(queries)} questions of the split '{split}', the first "
            f"being '{unseen[0]}'. Retrieve for all questions of this split."
        )
    gold = {query.id: _gold(query, collection.qrels[split][query.id]) for query in queries}
    hidden = _hidden(collection, {query.id: gold[query.id] for query in queries if query.answerable}, mix)
    plans = [_plan(query, collection.qrels[split][query.id], run, hidden.get(query.id), mix) for query in queries]
    prompts = _prompts(collection, plans, replace(generator, contexts=mix.contexts))
    return [_example(split, plan, prompts[plan.query.id], gold[plan.query.id]) for plan in plans]


def split_examples(
    collection: Collection, splits: Sequence[str], retriever: Retriever, generator: Generator, mix: Mix
) -> list[Example]:
    """Return the examples of those `splits` that the collection has, with passages as `retriever` finds them."""
    found: list[Example] = []
    for split in (name for name in splits if name in collection.qrels):
        run = retrieve(collection, split_queries(collection, split), retriever)
        found += generator_examples(collection, split, run, generator, mix)
    return found


def rows(examples: Iterable[Example]) -> list[dict[str, Any]]:
    """Return one row an example, with the columns of `FEATURES`."""
    return [
        {
            "prompt": [dict(message) for message in example.messages],
            "completion": [{"role": "assistant", "content": example.completion}],
            "query_id": example.query_id,
            "split": example.split,
            "kind": example.kind,
            "context_ids": list(example.context_ids),
            "gold_ids": list(example.gold_ids),
        }
        for example in examples
    ]


def to_dataset(examples: Iterable[Example]) -> Dataset:
    """Return the examples as TRL's `SFTTrainer` reads them, with the columns of `FEATURES`."""
    records = rows(examples)
    return Dataset.from_dict({name: [row[name] for row in records] for name in FEATURES}, features=FEATURES)


def _check(mix: Mix) -> None:
    if not 0 <= mix.without_gold <= 1:
        raise RagbenchError(f"prep_without_gold is a share from 0 to 1, not {mix.without_gold:g}.")
    if mix.contexts < 1:
        raise RagbenchError(f"generator_contexts is {mix.contexts}; an example needs at least one passage.")


def _gold(query: Query, gold: dict[str, int]) -> frozenset[str]:
    """Return every passage that is known to tell something of the answer."""
    return frozenset(name for name, score in gold.items() if score > 0).union(*needed_groups(query, gold))


def _hidden(collection: Collection, gold: dict[str, frozenset[str]], mix: Mix) -> dict[str, frozenset[str]]:
    """Draw the questions that lose their gold passages; return for each what it must not be shown."""
    able = [query_id for query_id, ids in gold.items() if ids]
    # Ranked by a hash, so that neither the order of the questions nor that of a random generator's calls matters.
    able.sort(key=lambda query_id: sha256_text(str(mix.seed), "gold left out", query_id))
    drawn = able[: round(mix.without_gold * len(able))]
    copies = _copies(collection, sorted(frozenset().union(*(gold[query_id] for query_id in drawn))))
    return {query_id: frozenset().union(*(copies[name] for name in gold[query_id])) for query_id in drawn}


def _copies(collection: Collection, ids: Sequence[str]) -> dict[str, set[str]]:
    """Return for each passage those with the very same text, whatever their titles, itself among them."""
    texts = collection.corpus.data.column("text")
    own = texts.take(pa.array(rows_of(collection, ids)))
    places = np.flatnonzero(pc.is_in(texts, value_set=own))
    same: defaultdict[str, set[str]] = defaultdict(set)
    for name, text in zip(corpus_ids(collection).take(places).to_pylist(), texts.take(places).to_pylist(), strict=True):
        same[text].add(name)
    return {name: same[text] if text else {name} for name, text in zip(ids, own.to_pylist(), strict=True)}


def _plan(query: Query, gold: dict[str, int], run: Run, hidden: frozenset[str] | None, mix: Mix) -> _Plan:
    if hidden is not None:
        distractors = [name for name in run[query.id] if name not in hidden][: mix.contexts]
        return _Plan(query, "gold left out", REFUSAL, (), _arranged(distractors, query.id, mix))
    retrieved = top(run, query.id, mix.contexts)
    completion = query.answer or REFUSAL
    needed = _needed(query, gold, retrieved, completion)
    shown = _with_needed(retrieved, needed, mix.contexts)
    return _Plan(query, _kind(query, needed, retrieved), completion, needed, _arranged(shown, query.id, mix))


def _needed(query: Query, gold: dict[str, int], retrieved: Sequence[str], answer: str) -> tuple[str, ...]:
    """Return what must be shown: of each group the passages that the answer cites, else the best that there is."""
    cited = citations(answer)
    needed: dict[str, None] = {}
    for group in needed_groups(query, gold) if query.answerable else ():
        best_first = [*retrieved, *sorted(group, key=lambda name: (-gold.get(name, 0), name))]
        needed |= dict.fromkeys(
            [name for name in cited if name in group] or [name for name in best_first if name in group][:1]
        )
    return tuple(needed)


def _with_needed(retrieved: Sequence[str], needed: Sequence[str], size: int) -> list[str]:
    """Return at most `size` passages: the retrieved ones, the last of them giving way to what is needed."""
    others = [name for name in retrieved if name not in needed][: max(0, size - len(needed))]
    kept = [name for name in retrieved if name in needed or name in others]
    return [*kept, *(name for name in needed if name not in retrieved)][:size]


def _kind(query: Query, needed: Sequence[str], retrieved: Sequence[str]) -> Kind:
    if not query.answerable:
        return "unanswerable"
    if not needed:
        return "gold unknown"
    return "gold retrieved" if set(needed) <= set(retrieved) else "gold added"


def _arranged(names: Sequence[str], query_id: str, mix: Mix) -> tuple[str, ...]:
    if not mix.shuffle:
        return tuple(names)
    rng = np.random.default_rng(int(sha256_text(str(mix.seed), "order", query_id), 16))
    return tuple(names[place] for place in rng.permutation(len(names)))


def _prompts(collection: Collection, plans: Sequence[_Plan], generator: Generator) -> dict[str, Prompt]:
    """Build the prompts as for answering; where a needed passage is cut, again with one distractor fewer before it."""
    prompts: dict[str, Prompt] = {}
    waiting = list(plans)
    while waiting:
        run = {plan.query.id: {name: -float(rank) for rank, name in enumerate(plan.order)} for plan in waiting}
        built = prompts_for(collection, [plan.query for plan in waiting], run, generator)
        prompts |= {prompt.query_id: prompt for prompt in built}
        moved = [_moved_ahead(plan, prompt.cut_ids) for plan, prompt in zip(waiting, built, strict=True)]
        waiting = [after for before, after in zip(waiting, moved, strict=True) if after != before]
    return prompts


def _moved_ahead(plan: _Plan, cut_ids: Sequence[str]) -> _Plan:
    """Move one distractor behind the last needed passage that is cut; return the plan as it is if that cannot help."""
    order = list(plan.order)
    cut = [place for place, name in enumerate(order) if name in plan.needed and name in cut_ids]
    before = [place for place in range(max(cut, default=0)) if order[place] not in plan.needed]
    if before:
        order.insert(cut[-1], order.pop(before[-1]))
    return replace(plan, order=tuple(order))


def _example(split: str, plan: _Plan, prompt: Prompt, gold: frozenset[str]) -> Example:
    whole = set(prompt.context_ids) - set(prompt.cut_ids)
    return Example(
        query_id=plan.query.id,
        split=split,
        kind=plan.kind,
        messages=prompt.messages,
        completion=plan.completion,
        context_ids=prompt.context_ids,
        gold_ids=tuple(name for name in prompt.context_ids if name in gold),
        missing_ids=tuple(name for name in plan.needed if name not in whole),
    )
