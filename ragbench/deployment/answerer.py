"""The heart of the service: questions wait in a bounded queue, and are answered and logged in batches.

While one batch is computed, the next gathers. A batch is in the log before anybody is told its answers. A version that
is put into use takes over between two batches, so no question is lost.
"""

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ragbench.deployment.answering import Deployed, Reply, Source, answer_all, open_bundle, search_all
from ragbench.deployment.query_log import Entry, QueryLog, make_entry
from ragbench.deployment.store import current
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import refuses
from ragbench.evaluation.grounding import AnswerWithContexts, grounding
from ragbench.retrieval.encoder import Encoder

LOOK_EVERY = 1.0
"""Seconds between two looks at which version is in use."""
BACKLOG = 256
"""Answers that wait for their grounding estimate; older ones go without."""


_ANSWERS, _SEARCHES = ThreadPoolExecutor(1, "answer"), ThreadPoolExecutor(1, "search")
"""Answers are made in one thread: each thread that makes some keeps memory of its own for it. Searches wait for each
other, not for answers."""


class BusyError(Exception):
    """So many questions are waiting that no more are taken."""


@dataclass(frozen=True)
class Limits:
    """What the service takes.

    Attributes:
        body_bytes: of a request.
        question_characters: of a question.
        waiting: questions in the queue; one more is refused.
        batch: questions that are answered together.
        seconds: until a request is given up.
    """

    body_bytes: int = 65_536
    question_characters: int = 4_000
    waiting: int = 64
    batch: int = 16
    seconds: float = 120.0


@dataclass(frozen=True)
class Answered:
    """A reply with its id in the log, and the version that gave it."""

    id: str
    reply: Reply
    bundle: str


@dataclass
class _Waiting:
    question: str
    answered: asyncio.Future[Answered]


@dataclass
class Answerer:
    """What answers, and what waits to be answered.

    Attributes:
        deployed: the bundle in use.
        name: of the bundle in its store; empty where it is served by its folder and never changes.
        log: where every answer goes first.
        limits: what is taken.
        judge: the fixed encoder of the grounding estimate; None for no estimates.
        trouble: why the version that was last put into use is not the one that answers; empty if it is.
    """

    deployed: Deployed
    name: str
    log: QueryLog
    limits: Limits
    judge: Encoder | None = None
    trouble: str = ""
    _queue: deque[_Waiting] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _backlog: deque[tuple[Entry, Reply]] = field(default_factory=lambda: deque(maxlen=BACKLOG))
    _refused_version: str = ""
    _searching: int = 0

    @property
    def bundle(self) -> str:
        """NAME/VERSION of what answers."""
        return f"{self.deployed.folder.parent.name}/{self.deployed.folder.name}"

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._queue)

    @property
    def unestimated(self) -> int:
        """How many logged answers wait for their grounding estimate."""
        return len(self._backlog)

    async def ask(self, question: str) -> Answered:
        """Wait for a question's turn and answer it.

        Raises:
            BusyError: too many questions are waiting.
            TimeoutError: it took longer than `Limits.seconds`.
            RagbenchError: it cannot be answered.
        """
        if len(self._queue) >= self.limits.waiting:
            raise BusyError
        mine = _Waiting(question, asyncio.get_running_loop().create_future())
        self._queue.append(mine)
        self._arrived.set()
        try:
            return await asyncio.wait_for(mine.answered, self.limits.seconds)
        finally:
            with contextlib.suppress(ValueError):  # given up before its turn
                self._queue.remove(mine)

    async def search(self, question: str, depth: int) -> list[Source]:
        """Find the best passages of a question.

        Raises:
            BusyError: too many searches are waiting.
            TimeoutError: it took longer than `Limits.seconds`.
        """
        if self._searching >= self.limits.waiting:
            raise BusyError
        self._searching += 1
        try:
            found = asyncio.get_running_loop().run_in_executor(_SEARCHES, search_all, self.deployed, [question], depth)
            return (await asyncio.wait_for(found, self.limits.seconds))[0]
        finally:
            self._searching -= 1

    async def work(self) -> None:
        """Answer what is asked, batch by batch, until cancelled."""
        while True:
            self._arrived.clear()
            if not self._queue:
                await self._arrived.wait()
            batch = [self._queue.popleft() for _ in range(min(self.limits.batch, len(self._queue)))]
            if not batch:
                continue
            questions = [each.question for each in batch]
            found = await asyncio.get_running_loop().run_in_executor(_ANSWERS, self._answer, self.deployed, questions)
            for each, answered in zip(batch, found, strict=True):
                if each.answered.done():
                    continue
                if isinstance(answered, Exception):
                    each.answered.set_exception(answered)
                else:
                    each.answered.set_result(answered)

    async def watch(self, store: Path) -> None:
        """Open the version that is put into use, and let it take over, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            version = current(store, self.name)
            if version in ("", self.deployed.folder.name, self._refused_version):
                continue
            try:
                self.deployed = await asyncio.to_thread(open_bundle, store / self.name / version)
                self.trouble = self._refused_version = ""
            except (RagbenchError, OSError) as error:
                self.trouble, self._refused_version = str(error), version

    async def estimate(self) -> None:
        """Estimate the grounding of logged answers whenever no question waits, until cancelled.

        Where that fails, `trouble` says so, and the answers go without.
        """
        while self.judge is not None:
            if self._queue or not self._backlog:
                await asyncio.sleep(0.1)
                continue
            entry, reply = self._backlog.popleft()
            try:
                await asyncio.to_thread(self._ground, entry, reply)
            except Exception as error:
                self.trouble = f"Grounding cannot be estimated: {error}"

    def _answer(self, deployed: Deployed, questions: Sequence[str]) -> list[Answered | Exception]:
        found: list[Answered | Exception] = []
        bundle = f"{deployed.folder.parent.name}/{deployed.folder.name}"
        entries: list[Entry] = []
        for reply in _replies(deployed, questions):
            if isinstance(reply, Exception):
                found.append(reply)
                continue
            answered = Answered(f"chatcmpl-{uuid.uuid4().hex}", reply, bundle)
            entry = make_entry(
                answered.id,
                reply.question,
                reply.answer,
                [(source.id, source.score) for source in reply.sources],
                refuses(reply.answer),
                seconds=round(reply.seconds, 4),
                bundle=bundle,
                finish_reason=reply.finish_reason,
            )
            entries.append(entry)
            if not entry.refused and self.judge is not None:
                self._backlog.append((entry, reply))
            found.append(answered)
        try:
            self.log.add(entries)
        except Exception as error:  # an answer that is not in the log is not given
            return [error for _ in found]
        return found

    def _ground(self, entry: Entry, reply: Reply) -> None:
        assert self.judge is not None
        texts = tuple(f"{source.title} {source.text}".strip() for source in reply.sources)
        item = AnswerWithContexts(reply.question, reply.answer, texts)
        [found] = grounding([item], self.judge, model=None, keep=False)
        self.log.set_grounding([(entry.id, found.score)])


def _replies(deployed: Deployed, questions: Sequence[str]) -> list[Reply | Exception]:
    """Return the replies; where a question breaks the batch, each is asked alone, and the error is that one's own."""
    try:
        return list(answer_all(deployed, questions))
    except Exception as error:
        if len(questions) == 1:
            return [error]
    return [reply for question in questions for reply in _replies(deployed, [question])]
