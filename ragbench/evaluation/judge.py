"""RAGAS's LLM-judged metrics (Es et al. 2023) through any OpenAI-compatible endpoint, with what could not be judged.

The metrics are RAGAS's own classes with its own prompts. A judgement that fails is missing and says why; it is never
0, and it stays in the count.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pandas as pd
from tqdm import tqdm

from ragbench.errors import RagbenchError
from ragbench.evaluation.judge_calls import Calls, Judge, UnscoredError, open_calls
from ragbench.evaluation.judge_llm import JudgeLLM, ragas_metric
from ragbench.retrieval.encoder import Encoder, encode

__all__ = ["JUDGE_METRICS", "Judge", "Judgement", "Sample", "combined", "coverage_table", "judge"]

_INPUTS = {
    "faithfulness": ("user_input", "response", "retrieved_contexts"),
    "answer_relevancy": ("user_input", "response"),
    "llm_context_precision": ("user_input", "reference", "retrieved_contexts"),
    "llm_context_recall": ("user_input", "reference", "retrieved_contexts"),
    "answer_correctness": ("user_input", "response", "reference"),
}
JUDGE_METRICS = tuple(_INPUTS)
COLUMNS = ["query_id", "metric", "repeat", "value", "reason"]
_ABSENT = {"user_input": "no question", "response": "no answer", "retrieved_contexts": "no passages"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """A question with the answer that a system gave, the passages it was shown, and the reference if there is one."""

    query_id: str
    question: str
    answer: str
    contexts: tuple[str, ...]
    reference: str | None


@dataclass(frozen=True)
class Judgement:
    """The scores and what they took.

    Attributes:
        scores: a row for each question, metric and repeat: query_id, metric, repeat, value (missing where it could
            not be had), reason (empty, or why the value is missing).
        calls, cached_calls: answered by the server, and found in the cache, where they cost nothing.
        input_tokens, output_tokens, cost: of `calls`, in the currency of the judge's prices.
    """

    scores: pd.DataFrame
    calls: int
    cached_calls: int
    input_tokens: int
    output_tokens: int
    cost: float


@dataclass(frozen=True)
class _Job:
    repeat: int
    sample: Sample
    metric: str


def judge(
    samples: Sequence[Sample], judge: Judge, encoder: Encoder, metrics: Sequence[str] = JUDGE_METRICS
) -> Judgement:
    """Judge answers and passages; go on where an earlier judging was cut off.

    Metrics that compare with a reference have no row for a sample without one. The first repeat asks at temperature 0,
    the others at 0.3. The reasons of a missing value are ``failed call`` (429, 5xx, time-out, broken connection, no
    answer in the reply), ``refused call`` (mostly a prompt too long for the model), ``malformed answer``, ``cut
    answer``, ``no statements``, ``no answer``, ``no passages``, ``no question``, ``spending cap`` and ``not a number``.

    Args:
        samples: what to judge.
        judge: whom to ask.
        encoder: the fixed encoder of answer relevancy and answer correctness.
        metrics: some of `JUDGE_METRICS`.

    Raises:
        RagbenchError: a setting makes no sense, the server cannot be reached, or it refuses all that it is asked.
    """
    _check(judge, metrics)
    jobs = [
        _Job(repeat, sample, metric)
        for repeat in range(judge.repeats)  # outermost: a cap leaves every question judged once before any is twice
        for sample in samples
        for metric in metrics
        if (sample.reference or "").strip() or "reference" not in _INPUTS[metric]
    ]
    _encode_known(jobs, encoder)
    rows, calls = _in_thread(_judge_all(jobs, judge, encoder))
    scores = pd.DataFrame(rows, columns=COLUMNS).astype({"repeat": "int64", "value": "float64"})
    return Judgement(scores, calls.asked, calls.cached, calls.input_tokens, calls.output_tokens, calls.cost)


def combined(judgement: Judgement) -> pd.DataFrame:
    """Return metric, query_id and value: the mean over the repeats that were scored, missing if none was."""
    means = judgement.scores.groupby(["metric", "query_id"], sort=False)["value"].mean()
    return means.reset_index()[["metric", "query_id", "value"]]


def coverage_table(judgement: Judgement) -> pd.DataFrame:
    """Return a row for each metric: metric, mean, scored, n, spread, reasons.

    `mean` is over the questions of which a repeat was scored: `scored` of `n`. `spread` is the standard deviation
    between the repeats of a question, averaged over questions, and missing without repeats. `reasons` counts the
    judgements that are missing, repeats counted singly.
    """
    rows = []
    for metric, group in judgement.scores.groupby("metric", sort=False):
        questions = group.groupby("query_id", sort=False)["value"]
        means = questions.mean()
        counts = group.loc[group["value"].isna(), "reason"].value_counts(sort=False)
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        rows.append((metric, means.mean(), int(means.count()), len(means), questions.std(ddof=1).mean(), reasons))
    return pd.DataFrame(rows, columns=["metric", "mean", "scored", "n", "spread", "reasons"])


def _check(judge: Judge, metrics: Sequence[str]) -> None:
    unknown = sorted(set(metrics) - set(JUDGE_METRICS))
    if unknown:
        raise RagbenchError(f"The judge knows no metric '{unknown[0]}'; it knows: {', '.join(JUDGE_METRICS)}.")
    if not judge.endpoint:
        raise RagbenchError("judge 'endpoint' needs judge_endpoint, e.g. http://127.0.0.1:8000/v1.")
    if not judge.model:
        raise RagbenchError("judge 'endpoint' needs judge_model, the name that the server knows its model by.")
    for name in ("repeats", "concurrency"):
        if getattr(judge, name) < 1:
            raise RagbenchError(f"judge_{name} is {getattr(judge, name)}; it must be at least 1.")
    if judge.max_cost > 0 and judge.price_input <= 0 and judge.price_output <= 0:
        raise RagbenchError(
            "judge_max_cost needs prices to count with: set judge_price_input and judge_price_output (for a million "
            "tokens), or judge_max_cost to 0."
        )


def _encode_known(jobs: Sequence[_Job], encoder: Encoder) -> None:
    """Bring the texts that are known beforehand into the cache, in batches."""
    relevancy = [job.sample for job in jobs if job.metric == "answer_relevancy"]
    correctness = [job.sample for job in jobs if job.metric == "answer_correctness"]
    if relevancy:
        encode(encoder, [sample.question for sample in relevancy], "query")
    if correctness:
        encode(encoder, [text for s in correctness for text in (s.answer, s.reference or "")], "passage")


async def _judge_all(jobs: Sequence[_Job], judge: Judge, encoder: Encoder) -> tuple[list[tuple[Any, ...]], Calls]:
    # A judgement's calls come one after another, so this bounds the open calls, and judgements that were begun are
    # finished before others are begun.
    places = asyncio.Semaphore(judge.concurrency)
    async with open_calls(judge) as calls:
        with tqdm(total=len(jobs), desc="judging", unit="score") as bar:

            async def scored(job: _Job) -> tuple[Any, ...]:
                async with places:
                    value, reason = await _score(job, calls, encoder)
                bar.update()
                return job.sample.query_id, job.metric, job.repeat, value, reason

            # Calls on their way are waited for and cached even if another one stops the judging.
            rows = await asyncio.gather(*map(scored, jobs), return_exceptions=True)
    if calls.stopped is None and calls.refusal and not calls.asked + calls.cached:
        calls.stopped = RagbenchError(calls.refusal)
    if calls.stopped is not None:
        raise calls.stopped
    return cast(list[tuple[Any, ...]], rows), calls


async def _score(job: _Job, calls: Calls, encoder: Encoder) -> tuple[float | None, str]:
    sample = job.sample
    given: dict[str, Any] = {
        "user_input": sample.question,
        "response": sample.answer,
        "retrieved_contexts": list(sample.contexts),
        "reference": sample.reference,
    }
    inputs = {name: given[name] for name in _INPUTS[job.metric]}
    for name, value in inputs.items():
        if not "".join(value).strip():  # RAGAS raises, or calls an empty answer correct
            return None, _ABSENT[name]
    try:
        result = await ragas_metric(job.metric, JudgeLLM(calls, job.repeat), encoder).ascore(**inputs)
    except UnscoredError as reason:
        return None, str(reason)
    except Exception as error:
        calls.stopped = calls.stopped or error
        raise
    value = float(result.value)
    return (None, "not a number") if value != value else (value, "")


def _in_thread(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in an event loop of another thread: in a notebook, this one's is running already.

    An interruption of this thread (Ctrl-C, a notebook's stop button) cancels the coroutine and waits for its end.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    task = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return task.result()
    finally:
        task.cancel()
        asyncio.run_coroutine_threadsafe(_others_ended(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _others_ended() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)
