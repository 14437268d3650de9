"""The prompt: an instruction, the passages with their ids, the question, in the model's own chat template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ragbench.collection.schema import Passage

REFUSAL = "The documents do not say. [none]"
INSTRUCTION = (
    "Use the passages to answer the question in one or two short sentences. End with the passage's id in brackets. "
    f"If the passages do not tell, say: {REFUSAL}"
)

CLOSED_BOOK = "Answer the question in one or two short sentences."
"""The instruction where no passages are shown: to see what the generator knows by itself."""

MIN_CUT_CHARACTERS = 40

Order = Literal["instruction_first", "instruction_last"]
"""Whether the instruction comes first, as the system message, or last, after the question."""
Message = dict[str, str]
TokenCount = Callable[[str], int]


@dataclass(frozen=True)
class Prompt:
    """What the generator is shown for one query.

    Attributes:
        query_id: the query.
        messages: system and user message.
        context_ids: the passages shown, whole or in part, best first.
        cut_ids: the passages that the length limit shortened or left out.
    """

    query_id: str
    messages: tuple[Message, ...]
    context_ids: tuple[str, ...]
    cut_ids: tuple[str, ...]


def build_prompt(
    query_id: str,
    question: str,
    passages: Sequence[Passage],
    *,
    count_tokens: TokenCount,
    max_context_tokens: int,
    instruction: str = INSTRUCTION,
    order: Order = "instruction_first",
) -> Prompt:
    """Number the passages, name each by its id, and cut from the last one what exceeds `max_context_tokens`.

    The first passages are shown whole as long as they fit; the one that does not fit is cut at a word and those after
    it are left out. A passage of which fewer than `MIN_CUT_CHARACTERS` would remain is left out whole.
    """
    shown: list[str] = []
    used = whole = 0
    for number, passage in enumerate(passages, start=1):
        head = f"{number}. [{passage.id}] "
        block = head + passage.full_text
        tokens = count_tokens(block + "\n\n")
        if used + tokens > max_context_tokens:
            words = _words_that_fit(head, passage.full_text, max_context_tokens - used, count_tokens)
            if words:
                shown.append(head + words)
            break
        shown.append(block)
        used += tokens
        whole += 1
    context = "\n\n".join(shown)
    user = f"{context}\n\n{question}" if shown else question
    if order == "instruction_last":
        messages: tuple[Message, ...] = ({"role": "user", "content": f"{user}\n\n{instruction}"},)
    else:
        messages = ({"role": "system", "content": instruction}, {"role": "user", "content": user})
    ids = [passage.id for passage in passages]
    return Prompt(query_id, messages, tuple(ids[: len(shown)]), tuple(ids[whole:]))


def _words_that_fit(head: str, text: str, budget: int, count_tokens: TokenCount) -> str:
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(f"{head}{text[:middle]} …\n\n") <= budget:
            low = middle
        else:
            high = middle - 1
    # Back to the last whole word; text that is written without spaces is cut where it is.
    cut = text[:low].rpartition(" ")[0] or text[:low]
    return f"{cut} …" if len(cut) >= MIN_CUT_CHARACTERS else ""
