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

CHARACTERS_PER_TOKEN = 3


def count_tokens(text: str) -> int:
    """Estimate a text's tokens from above: a served model does not tell its tokenizer.

    Three ASCII characters count as a token, and every other character as one.
    """
    ascii_characters = sum(character.isascii() for character in text)
    return ascii_characters // CHARACTERS_PER_TOKEN + len(text) - ascii_characters + 1


def complete(
    conversations: Sequence[Sequence[Message]],
    *,
    model: str,
    base_url: str,
    max_new_tokens: int = 64,
    concurrency: int = 8,
    timeout: float = 60.0,
    max_retries: int = 6,
    keep: bool = True,
) -> list[Completion]:
    """Answer each conversation at temperature 0; what the answer cache holds is not asked again.

    429, 5xx, time-outs and broken connections are tried again with exponential back-off (by the `openai` client, which
    heeds Retry-After). A question that still gets no answer has finish_reason ``error``. Every answer is cached as soon
    as it is there, so an interrupted run pays for nothing twice.

    Args:
        keep: whether the answer cache is used; what users ask should leave nothing there.

    Raises:
        RagbenchError: the server cannot be reached, or refuses the request itself (key, model, parameters).
    """
    if not base_url:
        raise RagbenchError("generator_backend 'endpoint' needs generator_endpoint, e.g. http://127.0.0.1:8000/v1.")
    keys = [_key(base_url, model, max_new_tokens, messages) for messages in conversations]
    done = cached_completions(keys) if keep else {}
    waiting = {key: messages for key, messages in zip(keys, conversations, strict=True) if key not in done}
    if waiting:
        key = os.environ.get("RAGBENCH_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=max_retries)
        done |= _ask_all(client, model, waiting, max_new_tokens, concurrency, keep)
    return [done[key] for key in keys]


def _key(base_url: str, model: str, max_new_tokens: int, messages: Sequence[Message]) -> str:
    parts = [part for message in messages for part in (message["role"], message["content"])]
    return sha256_text(base_url, model, f"greedy {max_new_tokens}", *parts)


def _ask_all(
    client: openai.OpenAI,
    model: str,
    waiting: dict[str, Sequence[Message]],
    max_new_tokens: int,
    concurrency: int,
    keep: bool,
) -> dict[str, Completion]:
    def ask(key: str) -> Completion:
        completion = _ask(client, model, waiting[key], max_new_tokens)
        if keep:  # in the worker, so that answers on their way are kept when another question ends the run
            cache_completions({key: completion})
        return completion

    pool = ThreadPoolExecutor(concurrency)
    try:
        asked = {pool.submit(ask, key): key for key in waiting}
        finished = tqdm(as_completed(asked), total=len(asked), desc="answering", unit="question")
        return {asked[future]: future.result() for future in finished}
    finally:
        pool.shutdown(cancel_futures=True)


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
        reason = reply.choices[0].finish_reason
        counts = (reply.usage.prompt_tokens, reply.usage.completion_tokens) if reply.usage else (0, 0)
    except openai.APITimeoutError:
        return _failed(started)
    except openai.APIConnectionError as error:
        raise RagbenchError(
            f"{client.base_url} cannot be reached ({error.__cause__ or error}). Start the server or correct "
            "generator_endpoint; the answers so far are cached, so running again goes on from here."
        ) from None
    except (openai.RateLimitError, openai.InternalServerError):
        return _failed(started)
    except openai.APIStatusError as error:
        # Servers have been seen to repeat the key in their refusal; a traceback would show it in the notebook.
        message = error.message.replace(client.api_key, "***")
        raise RagbenchError(
            f"{client.base_url} refuses the request with status {error.status_code}: {message} Check the model's "
            "name and, in the environment, RAGBENCH_API_KEY or OPENAI_API_KEY."
        ) from None
    except (openai.APIResponseValidationError, ValueError, TypeError, IndexError, AttributeError):
        return _failed(started)  # status 200, but no answer in it
    return Completion(text, *counts, time.perf_counter() - started, "length" if reason == "length" else "stop")


def _failed(started: float) -> Completion:
    return Completion("", 0, 0, time.perf_counter() - started, "error")
