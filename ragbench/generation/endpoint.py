"""The endpoint backend: any server that speaks OpenAI's chat completions (OpenAI, vLLM, Ollama, llama.cpp, …).

The key comes from the environment (``RAGBENCH_API_KEY``, else ``OPENAI_API_KEY``) and goes nowhere else.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import openai
from tqdm import tqdm

from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.generation.answers import Completion, cache_completions, cached_completions
from ragbench.generation.prompts import Message

CHARACTERS_PER_TOKEN = 3.0


def count_tokens(text: str) -> int:
    """Estimate a text's tokens from above, at three characters each: a served model does not tell its tokenizer."""
    return int(len(text) / CHARACTERS_PER_TOKEN) + 1


def complete(
    conversations: Sequence[Sequence[Message]],
    *,
    model: str,
    base_url: str,
    max_new_tokens: int = 64,
    concurrency: int = 8,
    timeout: float = 60.0,
    max_retries: int = 6,
) -> list[Completion]:
    """Answer each conversation at temperature 0; what the answer cache holds is not asked again.

    429, 5xx, time-outs and broken connections are tried again with exponential back-off (by the `openai` client, which
    heeds Retry-After). A question that still gets no answer has finish_reason ``error``. Every answer is cached as soon
    as it is there, so an interrupted run pays for nothing twice.

    Raises:
        RagbenchError: the server cannot be reached, or refuses the request itself (key, model, parameters).
    """
    if not base_url:
        raise RagbenchError("generator_backend 'endpoint' needs generator_endpoint, e.g. http://127.0.0.1:8000/v1.")
    keys = [_key(base_url, model, max_new_tokens, messages) for messages in conversations]
    done = cached_completions(keys)
    waiting = {key: messages for key, messages in zip(keys, conversations, strict=True) if key not in done}
    if waiting:
        key = os.environ.get("RAGBENCH_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=max_retries)
        done |= _ask_all(client, model, waiting, max_new_tokens, concurrency)
    return [done[key] for key in keys]


def _key(base_url: str, model: str, max_new_tokens: int, messages: Sequence[Message]) -> str:
    parts = [part for message in messages for part in (message["role"], message["content"])]
    return sha256_text(base_url, model, f"greedy {max_new_tokens}", *parts)


def _ask_all(
    client: openai.OpenAI, model: str, waiting: dict[str, Sequence[Message]], max_new_tokens: int, concurrency: int
) -> dict[str, Completion]:
    done: dict[str, Completion] = {}
    pool = ThreadPoolExecutor(concurrency)
    try:
        asked = {pool.submit(_ask, client, model, messages, max_new_tokens): key for key, messages in waiting.items()}
        for future in tqdm(as_completed(asked), total=len(asked), desc="answering", unit="question"):
            done[asked[future]] = future.result()
            cache_completions({asked[future]: done[asked[future]]})
    finally:
        pool.shutdown(cancel_futures=True)
    return done


def _ask(client: openai.OpenAI, model: str, messages: Sequence[Message], max_new_tokens: int) -> Completion:
    started = time.perf_counter()
    try:
        reply = client.chat.completions.create(
            model=model,
            messages=[dict(message) for message in messages],  # type: ignore[misc]
            max_tokens=max_new_tokens,
            temperature=0,
        )
        text = (reply.choices[0].message.content or "").strip()
        reason = reply.choices[0].finish_reason or "stop"
        usage = reply.usage
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    except openai.APIConnectionError as error:
        if isinstance(error, openai.APITimeoutError):
            return Completion("", 0, 0, time.perf_counter() - started, "error")
        raise RagbenchError(
            f"{client.base_url} cannot be reached ({error}). Start the server or correct generator_endpoint; the "
            "answers so far are cached, so running again goes on from here."
        ) from error
    except (
        openai.RateLimitError,
        openai.InternalServerError,
        openai.APIResponseValidationError,
        IndexError,
        AttributeError,
    ):
        return Completion("", 0, 0, time.perf_counter() - started, "error")
    except openai.APIStatusError as error:
        raise RagbenchError(
            f"{client.base_url} refuses the request with status {error.status_code}: {error.message} Check the model's "
            "name and, in the environment, RAGBENCH_API_KEY or OPENAI_API_KEY."
        ) from error
    return Completion(text, *counts, time.perf_counter() - started, "length" if reason == "length" else "stop")
