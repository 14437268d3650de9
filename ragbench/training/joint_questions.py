"""The questions of joint training, and the prompts that it shows the generator."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ragbench.collection.schema import Collection, Passage, Query, needed_groups, rows_of, split_queries
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.generation.generate import Generator
from ragbench.generation.prompts import Message, TokenCount, build_prompt
from ragbench.training.answer_likelihood import Row
from ragbench.training.answer_rows import answer_tokens


@dataclass(frozen=True)
class Asked:
    """A question that has an answer, and the corpus rows of its gold passages.

    Attributes:
        needs: groups of rows, of each of which one has to be shown for the answer (`schema.needed_groups`).
    """

    query: Query
    gold: tuple[int, ...]
    needs: tuple[frozenset[int], ...]


def asked_of(collection: Collection, split: str, limit: int = 0) -> list[Asked]:
    """Return the questions of a split that have an answer and gold passages; at most `limit`, evenly spaced.

    Raises:
        RagbenchError: there is none, or no such split.
    """
    judged = collection.qrels[split]
    gold = {
        query.id: {name: score for name, score in judged[query.id].items() if score > 0}
        for query in split_queries(collection, split)
        if query.answer and query.answerable
    }
    names = list(dict.fromkeys(name for scores in gold.values() for name in scores))
    row = dict(zip(names, rows_of(collection, names).tolist(), strict=True))
    found = []
    for query_id, scores in gold.items():
        if scores:
            query = collection.queries[query_id]
            needs = tuple(frozenset(row[name] for name in group) for group in needed_groups(query, scores))
            found.append(Asked(query, tuple(row[name] for name in scores), needs))
    if not found:
        raise RagbenchError(
            f"Joint training needs questions of the split '{split}' that have both an answer and gold passages; there "
            "is none. Add answers to queries.jsonl, or leave 05_end_to_end out (`ragbench run --stages`)."
        )
    return found if not 0 < limit < len(found) else [found[n * len(found) // limit] for n in range(limit)]


@dataclass(frozen=True)
class Prompter:
    """Builds the prompts as the generator will get them, and their tokens with those of the answer.

    Attributes:
        count_tokens: the generator's; opening it for every prompt would verify its weights each time.
        ends, longest: see `answer_rows.answer_tokens`.
    """

    collection: Collection
    generator: Generator
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    longest: int | None
    count_tokens: TokenCount

    def alone(self, asked: Asked, rows: Sequence[int]) -> list[Row]:
        """Return the question with each of some passages alone before it, and its answer."""
        return [self._row(asked, [row]) for row in rows]

    def together(self, asked: Asked, rows: Sequence[int]) -> Row:
        """Return the question with its best passages together before it, as when answering, and its answer.

        What the answer needs and is not among them takes the place of the lowest ranked, as in `training.examples`:
        taught to refuse wherever retrieval failed, a small generator learns to refuse always. The order is random, but
        for a question always the same.
        """
        shown = [int(row) for row in rows[: self.generator.contexts]]
        missing = [min(group) for group in asked.needs if not group & set(shown)]
        needed = frozenset().union(*asked.needs)
        others = [row for row in shown if row not in needed]
        kept = [row for row in shown if row in needed] + missing
        chosen = [*kept, *others][: self.generator.contexts]
        order = np.random.default_rng(int(sha256_text(asked.query.id), 16)).permutation(len(chosen))
        return self._row(asked, [chosen[place] for place in order])

    def _prompt(self, asked: Asked, rows: Sequence[int]) -> tuple[Message, ...]:
        found = [self.collection.corpus[int(row)] for row in rows]
        return build_prompt(
            asked.query.id,
            asked.query.text,
            [Passage(row["_id"], row["title"], row["text"], row["document_id"]) for row in found],
            count_tokens=self.count_tokens,
            max_context_tokens=self.generator.max_context_tokens,
            instruction=self.generator.instruction,
            order=self.generator.order,
        ).messages

    def _row(self, asked: Asked, rows: Sequence[int]) -> Row:
        answer = [{"role": "assistant", "content": asked.query.answer or ""}]
        example = {"prompt": self._prompt(asked, rows), "completion": answer, "query_id": asked.query.id}
        prompt, expected = answer_tokens(example, self.tokenizer, self.ends, self.longest)
        return Row(tuple(prompt), tuple(expected))
