"""Quality checks of the generator's examples: what would teach it something wrong is rejected, with the reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from datasets import Dataset, Value

from ragbench.collection.schema import Collection, passages
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import HOUSE_STYLE, citations, conforms, refuses, words
from ragbench.evaluation.grounding import AnswerWithContexts, Grounding, grounding
from ragbench.evaluation.grounding_model import fitted
from ragbench.generation.generate import Generator, token_counter
from ragbench.retrieval.encoder import Encoder
from ragbench.training.examples import KINDS, Example, to_dataset
from ragbench.training.leakage import leaking_queries

CHECKS = ("leak", "length", "house style", "cites what is not shown", "unsupported", "duplicate")
"""Every check, in the order in which they are made: an example is rejected for the first one that it fails."""

_Check = Callable[[Sequence[Example]], list[str]]
"""Returns for every example what is wrong with it, an empty text if nothing is."""


@dataclass(frozen=True)
class Rejected:
    """An example that is not to be trained on, the check that it failed, and what was found."""

    example: Example
    reason: str
    detail: str


@dataclass(frozen=True)
class Checked:
    """The examples that passed, in their order, and those that did not, check by check."""

    kept: tuple[Example, ...]
    rejected: tuple[Rejected, ...]


def check_examples(
    examples: Sequence[Example],
    collection: Collection,
    encoder: Encoder,
    generator: Generator,
    *,
    answer_format: str = HOUSE_STYLE,
    checks: Sequence[str] = CHECKS,
) -> Checked:
    """Sort out the examples that would teach the generator something wrong.

    - ``leak``: the question copies one of another split than train and its own.
    - ``length``: the answer and its end token exceed `max_new_tokens`, or a passage that it needs is not shown whole.
    - ``house style``: the answer does not match `answer_format`.
    - ``cites what is not shown``: the answer cites a passage that is not in the prompt.
    - ``unsupported``: by the offline estimate (`grounding` without a language model, at its fitted threshold) the
      passages shown do not support the answer. Refusals are exempt.
    - ``duplicate``: question and answer have the same words as those of an earlier example that passed.

    Args:
        encoder: the fixed encoder of the grounding estimate; never one that is tuned.
        generator: whose tokens are counted and whose limits hold.
        checks: those to make, in any order.

    Raises:
        RagbenchError: a check is unknown, or the generator cannot be had.
    """
    unknown = [name for name in checks if name not in CHECKS]
    if unknown:
        raise RagbenchError(f"prep_example_checks has '{unknown[0]}'; the checks are: {', '.join(CHECKS)}.")
    faults: dict[str, _Check] = {
        "leak": partial(_leaks, collection),
        "length": partial(_too_long, generator),
        "house style": partial(_other_style, answer_format),
        "cites what is not shown": _foreign_citations,
        "unsupported": partial(_unsupported, collection, encoder),
        "duplicate": partial(_duplicates, collection),
    }
    kept, rejected = list(examples), list[Rejected]()
    for name in CHECKS:
        if name in checks:
            found = list(zip(kept, faults[name](kept), strict=True))
            rejected += [Rejected(example, name, detail) for example, detail in found if detail]
            kept = [example for example, detail in found if not detail]
    return Checked(tuple(kept), tuple(rejected))


def rejected_dataset(rejected: Sequence[Rejected]) -> Dataset:
    """Return the rejected examples with the columns of `examples.FEATURES`, reason and detail."""
    examples = to_dataset(each.example for each in rejected)
    with_reason = examples.add_column("reason", [each.reason for each in rejected], feature=Value("string"))
    return with_reason.add_column("detail", [each.detail for each in rejected], feature=Value("string"))


def overview(checked: Checked) -> pd.DataFrame:
    """Count the examples: a row for each kind, columns kind, examples, kept, and one for each check."""
    outcomes = [(example.kind, "kept") for example in checked.kept]
    outcomes += [(each.example.kind, each.reason) for each in checked.rejected]
    table = pd.DataFrame(
        [[outcomes.count((kind, outcome)) for outcome in ("kept", *CHECKS)] for kind in KINDS],
        columns=["kept", *CHECKS],
    )
    table.insert(0, "examples", table.sum(axis=1))
    table.insert(0, "kind", list(KINDS))
    return table


def _leaks(collection: Collection, examples: Sequence[Example]) -> list[str]:
    leaking = leaking_queries(collection, sorted({example.split for example in examples}))
    return ["another split has nearly the same question" if each.query_id in leaking else "" for each in examples]


def _too_long(generator: Generator, examples: Sequence[Example]) -> list[str]:
    count_tokens = token_counter(generator)

    def fault(example: Example) -> str:
        """Say what is too long for the generator; nothing if all fits."""
        tokens = count_tokens(example.completion) + 1
        if tokens > generator.max_new_tokens:
            return f"answer and end take {tokens} tokens; generator_max_new_tokens is {generator.max_new_tokens}"
        if example.missing_ids:
            missing = ", ".join(example.missing_ids)
            return f"generator_contexts or generator_max_context_tokens leave no room for {missing}"
        return ""

    return [fault(example) for example in examples]


def _other_style(answer_format: str, examples: Sequence[Example]) -> list[str]:
    return ["" if conforms(each.completion, answer_format) else "does not match answer_format" for each in examples]


def _foreign_citations(examples: Sequence[Example]) -> list[str]:
    return [", ".join(name for name in citations(each.completion) if name not in each.context_ids) for each in examples]


def _unsupported(collection: Collection, encoder: Encoder, examples: Sequence[Example]) -> list[str]:
    held = [place for place, example in enumerate(examples) if not refuses(example.completion)]
    known = passages(collection, (name for place in held for name in examples[place].context_ids))
    items = [
        AnswerWithContexts(
            collection.queries[examples[place].query_id].text,
            examples[place].completion,
            tuple(known[name].full_text for name in examples[place].context_ids),
        )
        for place in held
    ]
    details = [""] * len(examples)
    for place, found in zip(held, grounding(items, encoder, model=None), strict=True):
        details[place] = _weakness(found, fitted("light").threshold)
    return details


def _weakness(found: Grounding, threshold: float) -> str:
    if found.score is None:
        return "says nothing but citations"
    if found.score >= threshold:
        return ""
    weakest, _ = min(found.sentences, key=lambda each: each[1])
    return f"grounding {found.score:.2f}, {threshold:g} needed; least supported: {weakest}"


def _duplicates(collection: Collection, examples: Sequence[Example]) -> list[str]:
    first: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    details: list[str] = []
    for example in examples:
        key = tuple(words(collection.queries[example.query_id].text)), tuple(words(example.completion))
        details.append(f"like '{first[key]}'" if key in first else "")
        first.setdefault(key, example.query_id)
    return details
