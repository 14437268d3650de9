"""The service: OpenAI's chat completions over a bundle, with search, feedback, health and Prometheus metrics.

Routes find what they need in the application's state.
"""

import asyncio
import ipaddress
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ragbench.deployment.answerer import Answered, Answerer, BusyError
from ragbench.errors import RagbenchError

TOKEN = "RAGBENCH_SERVE_TOKEN"
"""The environment's variable with the bearer token."""
OPEN = ("/healthz",)
"""Answered without a token."""
_Form = TypeVar("_Form", bound=BaseModel)
_T = TypeVar("_T")


class _Error(Exception):
    """An answer in OpenAI's form for errors."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class _Part(BaseModel):
    type: str
    text: str = ""


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        """The words of the message."""
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content if part.type == "text").strip()
        return (self.content or "").strip()


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Chat(BaseModel):
    """What of OpenAI's request matters here; sampling settings are the bundle's and are passed over."""

    model_config = ConfigDict(extra="ignore")
    messages: list[_Message] = Field(min_length=1)
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _SearchForm(BaseModel):
    query: str = Field(min_length=1)
    k: int = Field(default=10, ge=1, le=100)


class _FeedbackForm(BaseModel):
    id: str = Field(max_length=100)
    feedback: Literal[1, -1]
    comment: str = Field(default="", max_length=2_000)


class _Numbers:
    """What /metrics shows."""

    def __init__(self, answerer: Answerer) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("ragbench_requests", "Requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("ragbench_answer_seconds", "Question to answer", registry=self.registry)
        self.answers = Counter("ragbench_answers", "Answers", ["bundle", "finish_reason"], registry=self.registry)
        self.tokens = Counter("ragbench_tokens", "Tokens", ["kind"], registry=self.registry)
        waiting = Gauge("ragbench_questions_waiting", "Questions in the queue", registry=self.registry)
        waiting.set_function(lambda: answerer.waiting)


def check_exposure(host: str, token: str) -> None:
    """Refuse to serve others than this machine without a token.

    Raises:
        RagbenchError: `host` is not loopback and there is no token.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not token:
        raise RagbenchError(
            f"Serving on {host} lets others ask: set {TOKEN} in the environment to a token that they must send, or "
            "serve on 127.0.0.1."
        )


def make_app(answerer: Answerer, store: Path | None, token: str = "") -> FastAPI:
    """Return the service's application.

    Args:
        store: whose version in use is followed; None to stay with the bundle that is open.
        token: that requests must bear; empty for none.
    """
    app = FastAPI(title="ragbench", lifespan=_at_work, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.answerer, app.state.store, app.state.token = answerer, store, token
    app.state.numbers = _Numbers(answerer)
    for path, route in _POSTS.items():
        app.post(path)(route)
    for path, route in _GETS.items():
        app.get(path)(route)
    app.middleware("http")(_guard)
    app.exception_handler(_Error)(_refuse)
    return app


@asynccontextmanager
async def _at_work(app: FastAPI) -> AsyncIterator[None]:
    """Answer, estimate and watch the store while the application runs; then close the log."""
    answerer, store = app.state.answerer, app.state.store
    tasks = [asyncio.create_task(answerer.work()), asyncio.create_task(answerer.estimate())]
    if store is not None:
        tasks.append(asyncio.create_task(answerer.watch(store)))
    yield
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    answerer.log.close()


async def _guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    """Ask for the token, and count what is answered."""
    state, path = request.app.state, request.url.path
    if state.token and path not in OPEN and not _bears(request, state.token):
        refusal = _Error(401, "A valid bearer token is needed.", **{"WWW-Authenticate": "Bearer"})
        response: Response = await _refuse(request, refusal)
    else:
        response = await go_on(request)
    state.numbers.requests.labels(path if path in {*_POSTS, *_GETS} else "other", response.status_code).inc()
    return response


async def _chat(request: Request) -> Response:
    answerer, numbers = request.app.state.answerer, request.app.state.numbers
    asked = await _read(request, _Chat)
    question = next((message.text for message in reversed(asked.messages) if message.role == "user"), "")
    if not question:
        raise _Error(400, "There is no question: the last message of the role 'user' is empty or missing.")
    answered = await _answered(answerer, question, answerer.ask(question))
    reply = answered.reply
    numbers.seconds.observe(reply.seconds)
    numbers.answers.labels(answered.bundle, reply.finish_reason).inc()
    numbers.tokens.labels("prompt").inc(reply.prompt_tokens)
    numbers.tokens.labels("completion").inc(reply.completion_tokens)
    if asked.stream:
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return StreamingResponse(_stream(answered, usage), media_type="text/event-stream")
    message = {"role": "assistant", "content": reply.answer}
    choice = {"index": 0, "message": message, "finish_reason": _reason(answered), "logprobs": None}
    return JSONResponse({**_head(answered, "chat.completion"), "choices": [choice], "usage": _usage(answered)})


async def _search(request: Request) -> Response:
    answerer = request.app.state.answerer
    asked = await _read(request, _SearchForm)
    found = await _answered(answerer, asked.query, answerer.search(asked.query, asked.k))
    return JSONResponse({"bundle": answerer.bundle, "results": [vars(source) for source in found]})


async def _feedback(request: Request) -> Response:
    said = await _read(request, _FeedbackForm)
    log = request.app.state.answerer.log
    if not await asyncio.to_thread(log.add_feedback, said.id, said.feedback, said.comment):
        raise _Error(404, f"The log has no answer '{said.id}'.")
    return JSONResponse({"id": said.id, "feedback": said.feedback})


async def _models(request: Request) -> Response:
    entry = {"id": request.app.state.answerer.bundle, "object": "model", "created": 0, "owned_by": "ragbench"}
    return JSONResponse({"object": "list", "data": [entry]})


async def _health(request: Request) -> Response:
    answerer = request.app.state.answerer
    state = {"status": "ok" if not answerer.trouble else "degraded", "bundle": answerer.bundle}
    return JSONResponse(state | ({"trouble": answerer.trouble} if answerer.trouble else {}))


async def _metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.numbers.registry), media_type=CONTENT_TYPE_LATEST)


_POSTS = {"/v1/chat/completions": _chat, "/v1/search": _search, "/v1/feedback": _feedback}
_GETS = {"/v1/models": _models, "/healthz": _health, "/metrics": _metrics}


def token_from_environment() -> str:
    """Return the bearer token that requests must bear; empty where none is set."""
    return os.environ.get(TOKEN, "")


def _bears(request: Request, token: str) -> bool:
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    return kind.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), token.encode())


async def _read(request: Request, form: type[_Form]) -> _Form:
    limits = request.app.state.answerer.limits
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _Error(413, f"The request is larger than {limits.body_bytes:,} bytes.")
    except TimeoutError:
        raise _Error(408, f"The request did not arrive within {limits.seconds:g} seconds.") from None
    try:
        return form.model_validate(json.loads(bytes(body)))
    except RecursionError:
        raise _Error(400, "The request's JSON is nested too deeply.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the request"
        raise _Error(400, f"{place}: {first['msg']}.") from None
    except ValueError:
        raise _Error(400, "The request is not JSON.") from None


async def _answered(answerer: Answerer, question: str, answer: Coroutine[Any, Any, _T]) -> _T:
    """Wait for what a question is answered with; what goes wrong becomes an error in OpenAI's form."""
    limit = answerer.limits.question_characters
    if len(question) > limit:
        answer.close()
        raise _Error(400, f"The question has {len(question):,} characters; up to {limit:,} are taken.")
    try:
        return await answer
    except BusyError:
        raise _Error(429, "Too many questions are waiting. Try again soon.", **{"Retry-After": "1"}) from None
    except TimeoutError:
        raise _Error(504, f"No answer within {answerer.limits.seconds:g} seconds.") from None
    except RagbenchError as error:
        raise _Error(422, str(error)) from None


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, _Error), "it handles no other"
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    body = {"error": {"message": error.message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def _head(answered: Answered, kind: str) -> dict[str, Any]:
    sources = [{"id": s.id, "title": s.title, "score": s.score} for s in answered.reply.sources]
    return {
        "id": answered.id,
        "object": kind,
        "created": int(time.time()),
        "model": answered.bundle,
        "sources": sources,
    }


def _usage(answered: Answered) -> dict[str, int]:
    read, written = answered.reply.prompt_tokens, answered.reply.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _reason(answered: Answered) -> str:
    return "length" if answered.reply.finish_reason == "length" else "stop"


async def _stream(answered: Answered, usage: bool) -> AsyncIterator[str]:
    """The answer word by word, once it is there: it is decoded in a batch, and logged before it is told."""
    head = _head(answered, "chat.completion.chunk")

    def event(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps({**head, 'choices': [choice]}, ensure_ascii=False)}\n\n"

    yield event({"role": "assistant", "content": ""})
    words = answered.reply.answer.split(" ")
    for place, word in enumerate(words):
        yield event({"content": word if place == len(words) - 1 else word + " "})
    yield event({}, _reason(answered))
    if usage:
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(answered)})}\n\n"
    yield "data: [DONE]\n\n"
