"""Calls to a judge behind an OpenAI-compatible endpoint: cached one by one, counted, capped, refusals told apart.

A reply is cached as soon as it is there, so that a killed judging pays for no finished call twice. What may pass (429,
5xx, time-outs, broken connections, replies without an answer in them) is never cached. The key comes from the
environment (``RAGBENCH_JUDGE_API_KEY``, else ``RAGBENCH_API_KEY``, else ``OPENAI_API_KEY``) and goes nowhere else.
"""

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import openai

from ragbench import cache
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.generation.endpoint import count_tokens
from ragbench.generation.prompts import Message

CACHE = "judgements"
KEYS = ("RAGBENCH_JUDGE_API_KEY", "RAGBENCH_API_KEY", "OPENAI_API_KEY")
AGAIN_TEMPERATURE = 0.3  # what RAGAS takes where it wants several completions
_PASSING = {408, 409, 429}
_ABOUT_THIS_PROMPT = {400, 413, 422}
_COMPLAINTS = {
    "response_format": ("response_format", "schema"),
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens",),
}
# By name, for the openai client has changed its HTTP library. Any other connection error is a server that is not there.
_BROKEN = {"ReadTimeout", "WriteTimeout", "PoolTimeout", "ReadError", "WriteError", "CloseError", "RemoteProtocolError"}


@dataclass(frozen=True)
class Judge:
    """A model behind an OpenAI-compatible endpoint, and how it is asked.

    Attributes:
        model: the name that the server knows it by.
        endpoint: base URL, e.g. ``http://127.0.0.1:8000/v1``.
        repeats: how often everything is judged; RAGAS's maintainers advise to average three.
        concurrency: open calls at most.
        timeout: seconds a call may be silent.
        max_retries: further tries after 429, 5xx, a time-out or a broken connection.
        price_input, price_output: in any currency, for a million tokens.
        max_cost: nothing more is asked once so much is spent; 0 for no cap.
        spent: what was paid before this judging and counts towards `max_cost`.
        max_tokens: longest reply. Models that think before they answer need more.
    """

    model: str
    endpoint: str
    repeats: int = 1
    concurrency: int = 8
    timeout: float = 60.0
    max_retries: int = 6
    price_input: float = 0.0
    price_output: float = 0.0
    max_cost: float = 0.0
    spent: float = 0.0
    max_tokens: int = 2048


@dataclass(frozen=True)
class Reply:
    """What the model wrote, the tokens it is charged for, and ``stop`` or ``length`` (cut at the limit)."""

    text: str
    input_tokens: int
    output_tokens: int
    finish_reason: str


class UnscoredError(Exception):
    """A judgement cannot be had; the message is the reason that the scores give."""


class Calls:
    """The calls of one judging: the client, and what has been asked and paid so far."""

    def __init__(self, judge: Judge, client: openai.AsyncOpenAI) -> None:
        self.asked = self.cached = self.input_tokens = self.output_tokens = 0
        self.refusal = ""
        self.stopped: Exception | None = None
        self._judge = judge
        self._client = client
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._unsupported: set[str] = set()

    @property
    def cost(self) -> float:
        """What the calls so far have cost."""
        judge = self._judge
        return (self.input_tokens * judge.price_input + self.output_tokens * judge.price_output) / 1e6

    async def ask(self, messages: Sequence[Message], schema: dict[str, Any], repeat: int, occurrence: int) -> Reply:
        """Return the cached reply to a conversation, or ask for it.

        Args:
            messages: the conversation.
            schema: JSON schema of the wanted reply, for servers that can hold the model to it.
            repeat: number of the repeated judging.
            occurrence: how often one judgement has sent the same prompt before: such repetitions are meant to differ.

        Raises:
            UnscoredError: no reply was to be had, or the cap is reached.
            RagbenchError: the server cannot be reached, or refuses whatever it is asked.
        """
        temperature = AGAIN_TEMPERATURE if repeat or occurrence else 0.0
        sampling = f"temperature {temperature} max_tokens {self._judge.max_tokens} {repeat} {occurrence}"
        said = [part for message in messages for part in (message["role"], message["content"])]
        key = sha256_text("judge", self._judge.endpoint.rstrip("/"), self._judge.model, sampling, *said)
        async with self._locks[key]:  # two metrics may want the same call at the same time
            for _, value in cache.get(CACHE, [key]):
                self.cached += 1
                return Reply(**json.loads(value))
            if self.stopped is not None:
                raise self.stopped
            if 0 < self._judge.max_cost <= self._judge.spent + self.cost:
                raise UnscoredError("spending cap")
            reply = await self._request(messages, schema, temperature)
            cache.put(CACHE, {key: json.dumps(asdict(reply)).encode()})
        self.asked += 1
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens
        return reply

    async def _request(self, messages: Sequence[Message], schema: dict[str, Any], temperature: float) -> Reply:
        while True:
            settings = self._settings(schema, temperature)
            try:
                reply = await self._client.chat.completions.create(
                    model=self._judge.model,
                    messages=[dict(message) for message in messages],  # type: ignore[misc]
                    **settings,
                )
                return _read(reply, messages)
            except openai.APIConnectionError as error:
                if type(error.__cause__).__name__ in _BROKEN:
                    raise UnscoredError("failed call") from None
                raise self._unreachable(error) from None
            except openai.APIStatusError as error:
                if not self._learn(error, settings):
                    raise self._refused(error) from None
            except (openai.APIResponseValidationError, ValueError, TypeError, IndexError, AttributeError):
                raise UnscoredError("failed call") from None  # status 200, but no answer in it

    def _settings(self, schema: dict[str, Any], temperature: float) -> dict[str, Any]:
        form = {"type": "json_schema", "json_schema": {"name": schema["title"], "schema": schema}}
        limit = "max_completion_tokens" if "max_tokens" in self._unsupported else "max_tokens"
        settings = {limit: self._judge.max_tokens, "temperature": temperature, "response_format": form}
        return {name: value for name, value in settings.items() if name not in self._unsupported}

    def _learn(self, error: openai.APIStatusError, settings: dict[str, Any]) -> bool:
        """Leave out from now on what a refusal complains of, since servers differ in what they know.

        OpenAI's reasoning models want another name for the limit and no temperature, and some servers no schema.
        """
        blamed = [
            name
            for name, words in _COMPLAINTS.items()
            if name in settings and any(word in error.message for word in words)
        ]
        if error.status_code not in _ABOUT_THIS_PROMPT or not blamed:
            return False
        self._unsupported.add(blamed[0])
        return True

    def _refused(self, error: openai.APIStatusError) -> Exception:
        """Tell a failure of one call (to be counted) from a refusal of all (to be mended before going on)."""
        # Servers have been seen to repeat the key in their refusal; a traceback would show it in the notebook.
        message = error.message.replace(self._client.api_key, "***")
        self.refusal = (
            f"{self._judge.endpoint} refuses the request with status {error.status_code}: {message} Check judge_model "
            f"and, in the environment, {' or '.join(KEYS)}. The replies so far are cached."
        )
        if error.status_code in _ABOUT_THIS_PROMPT:
            return UnscoredError("refused call")
        passing = error.status_code in _PASSING or error.status_code >= 500
        if passing and error.code != "insufficient_quota":  # OpenAI's 429 for an empty account
            return UnscoredError("failed call")
        self.stopped = RagbenchError(self.refusal)
        return self.stopped

    def _unreachable(self, error: openai.APIConnectionError) -> Exception:
        cause = str(error.__cause__ or error).replace(self._client.api_key, "***")
        self.stopped = RagbenchError(
            f"{self._judge.endpoint} cannot be reached ({cause}). Start the server or correct judge_endpoint; the "
            "replies so far are cached, so running again goes on from here."
        )
        return self.stopped


@asynccontextmanager
async def open_calls(judge: Judge) -> AsyncIterator[Calls]:
    """Open the client of a judging."""
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "none")
    async with openai.AsyncOpenAI(
        base_url=judge.endpoint, api_key=key, timeout=judge.timeout, max_retries=judge.max_retries
    ) as client:
        yield Calls(judge, client)


def _read(reply: Any, messages: Sequence[Message]) -> Reply:
    choice = reply.choices[0]
    text = choice.message.content or ""
    if reply.usage:
        counts = (reply.usage.prompt_tokens, reply.usage.completion_tokens)
    else:
        counts = (sum(count_tokens(message["content"]) for message in messages), count_tokens(text))
    return Reply(text, *counts, "length" if choice.finish_reason == "length" else "stop")
