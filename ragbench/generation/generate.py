"""One call from a run to answers, whatever the generator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ragbench.collection.schema import Collection, Query, passages
from ragbench.errors import RagbenchError
from ragbench.generation import endpoint
from ragbench.generation.answers import Answer, Completion, make_answer
from ragbench.generation.prompts import INSTRUCTION, Message, Order, Prompt, TokenCount, build_prompt
from ragbench.retrieval.runs import Run, top

TEMPLATE_TOKENS = 64
"""Room that is kept for what a chat template puts around the messages."""


@dataclass(frozen=True)
class Generator:
    """Everything that decides how a question is answered from its passages.

    Attributes:
        backend: ``local`` (transformers on this machine), ``endpoint`` (an OpenAI-compatible server), or ``none``
            (nothing is answered: only the retrieval is looked at).
        model, revision: see `ragbench.models`; for an endpoint the name that the server knows.
        endpoint: base URL of the server.
        contexts: passages shown for a question.
        max_context_tokens: what exceeds it is cut from the last passage.
        max_new_tokens: length limit of an answer.
        instruction, order: what the generator is told, and whether before the passages or after the question.
        device, dtype: for the local backend.
        concurrency: open requests to the server.
    """

    backend: Literal["local", "endpoint", "none"] = "local"
    model: str = "SmolLM2-135M-Instruct"
    revision: str = ""
    endpoint: str = ""
    contexts: int = 3
    max_context_tokens: int = 768
    max_new_tokens: int = 64
    instruction: str = INSTRUCTION
    order: Order = "instruction_first"
    device: str = "auto"
    dtype: str = "auto"
    concurrency: int = 8


def token_counter(generator: Generator) -> TokenCount:
    """Return a function that counts a text's tokens as the generator does, or for a served one estimates them.

    Raises:
        RagbenchError: the generator cannot be had, or its backend is unknown.
    """
    if generator.backend == "local":
        # Importing transformers takes seconds, which an endpoint's user need not spend.
        from ragbench.generation import local

        return local.token_counter(generator.model, generator.revision)
    if generator.backend in ("endpoint", "none"):
        return endpoint.count_tokens
    raise _unknown_backend(generator)


def prompts_for(
    collection: Collection,
    queries: list[Query],
    run: Run,
    generator: Generator,
    count_tokens: TokenCount | None = None,
) -> list[Prompt]:
    """Build the prompt of every query from the best passages that `run` has for it, without answering it.

    Args:
        count_tokens: the generator's own, see `token_counter`, where that is at hand.

    Raises:
        RagbenchError: the generator cannot be had, or its backend or prompt order is unknown.
    """
    if generator.order not in get_args(Order):
        raise RagbenchError(f"generator_prompt '{generator.order}' is unknown; use {' or '.join(get_args(Order))}.")
    count_tokens = count_tokens or token_counter(generator)
    shown = {query.id: top(run, query.id, generator.contexts) for query in queries}
    known = passages(collection, (passage_id for ids in shown.values() for passage_id in ids))
    return [
        build_prompt(
            query.id,
            query.text,
            [known[passage_id] for passage_id in shown[query.id]],
            count_tokens=count_tokens,
            max_context_tokens=generator.max_context_tokens,
            instruction=generator.instruction,
            order=generator.order,
        )
        for query in queries
    ]


def answer_run(collection: Collection, queries: list[Query], run: Run, generator: Generator) -> list[Answer]:
    """Answer every query from the best passages that `run` has for it; the backend ``none`` gives no answers.

    Raises:
        RagbenchError: the generator cannot be had, or the prompts do not fit it.
    """
    if generator.backend == "none":
        return []
    prompts = prompts_for(collection, queries, run, generator)
    completions = complete([prompt.messages for prompt in prompts], generator)
    return [make_answer(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def complete(
    conversations: Sequence[Sequence[Message]], generator: Generator, *, keep: bool = True
) -> list[Completion]:
    """Return the generator's reply to each conversation, in their order; the backend ``none`` replies to nothing.

    Args:
        keep: whether a served generator's answers are looked up in and put into the cache; a local one's always are
            (`local.reply` does without).

    Raises:
        RagbenchError: the generator cannot be had, its backend is unknown, or a conversation does not fit it.
    """
    if generator.backend == "none":
        return []
    if generator.backend == "local":
        from ragbench.generation import local

        return local.complete(
            conversations,
            model=generator.model,
            revision=generator.revision,
            max_new_tokens=generator.max_new_tokens,
            device=generator.device,
            dtype=generator.dtype,
        )
    if generator.backend == "endpoint":
        return endpoint.complete(
            conversations,
            model=generator.model,
            base_url=generator.endpoint,
            max_new_tokens=generator.max_new_tokens,
            concurrency=generator.concurrency,
            keep=keep,
        )
    raise _unknown_backend(generator)


def _unknown_backend(generator: Generator) -> RagbenchError:
    return RagbenchError(f"generator_backend '{generator.backend}' is unknown; use local, endpoint or none.")


def room_for_context(generator: Generator, questions: Sequence[str]) -> int:
    """Return how many tokens of passages the generator can read beside any of the questions and its answer.

    A served model does not tell its limit: what it is given now is all that it is known to read.
    """
    if generator.backend == "local":
        from ragbench.generation import local

        limit = local.longest_input(generator.model, generator.revision)
        if limit is not None:
            count = local.token_counter(generator.model, generator.revision)
            longest = max((count(text) for text in questions), default=0)
            return limit - generator.max_new_tokens - longest - count(generator.instruction) - TEMPLATE_TOKENS
    return generator.max_context_tokens
