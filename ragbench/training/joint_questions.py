"""The questions of joint training, and the prompts that it shows the generator."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from ragbench.collection.schema import Collection, Query, needed_groups, passages, rows_of, split_queries
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.generation.generate import Generator
from ragbench.generation.prompts import Message, TokenCount, build_prompt
from ragbench.training.answer_likelihood import Row
from ragbench.training.answer_rows import IGNORED, answer_rows


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
    found: list[Asked] = []
    for query in split_queries(collection, split):
        gold = {name: score for name, score in collection.qrels[split][query.id].items() if score > 0}
        if query.answer and query.answerable and gold:
            row = dict(zip(gold, rows_of(collection, list(gold)).tolist(), strict=True))
            needs = tuple(frozenset(row[name] for name in group) for group in needed_groups(query, gold))
            found.append(Asked(query, tuple(row.values()), needs))
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
        ends, longest: see `answer_rows`.
    """

    collection: Collection
    generator: Generator
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...]
    longest: int | None
    count_tokens: TokenCount

    def alone(self, asked: Asked, rows: Sequence[int]) -> list[Row]:
        """Return the question with each of some passages alone before it, and its answer."""
        return self._tokens([(asked, self._prompt(asked, [row]), asked.query.answer or "") for row in rows])

    def together(self, asked: Asked, rows: Sequence[int]) -> Row:
        """Return the question with its best passages together before it, as when answering, and its answer.

        What the answer needs and is not among them takes the place of the lowest ranked, as in `training.examples`:
        taught to refuse wherever retrieval failed, a small generator learns to refuse always. The order is random, but
        for a question always the same.
        """
        shown = [int(row) for row in rows[: self.generator.contexts]]
        missing = [min(group) for group in asked.needs if not group & set(shown)]
        needed = {row for group in asked.needs for row in group} | set(missing)
        others = [row for row in shown if row not in needed]
        kept = [row for row in shown if row in needed] + missing
        chosen = [*kept, *others[: max(0, self.generator.contexts - len(kept))]]
        order = np.random.default_rng(int(sha256_text(asked.query.id), 16)).permutation(len(chosen))
        return self._tokens([(asked, self._prompt(asked, [chosen[n] for n in order]), asked.query.answer or "")])[0]

    def _prompt(self, asked: Asked, rows: Sequence[int]) -> tuple[Message, ...]:
        ids = [self.collection.corpus[int(row)]["_id"] for row in rows]
        known = passages(self.collection, ids)
        return build_prompt(
            asked.query.id,
            asked.query.text,
            [known[name] for name in ids],
            count_tokens=self.count_tokens,
            max_context_tokens=self.generator.max_context_tokens,
            instruction=self.generator.instruction,
            order=self.generator.order,
        ).messages

    def _tokens(self, parts: Sequence[tuple[Asked, tuple[Message, ...], str]]) -> list[Row]:
        examples = [
            {"prompt": list(prompt), "completion": [{"role": "assistant", "content": answer}],
             "query_id": asked.query.id}
            for asked, prompt, answer in parts
        ]  # fmt: skip
        rows = answer_rows(examples, self.tokenizer, self.ends, self.longest)
        found: list[Row] = []
        for row in rows:
            start = row["labels"].count(IGNORED)
            found.append(Row(tuple(row["input_ids"][:start]), tuple(row["input_ids"][start:])))
        return found
