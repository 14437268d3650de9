"""What RAGAS's metrics are given to work with: a judge that fills their forms, and the fixed encoder's embeddings."""

import contextlib
import io
import json
import os
from collections import Counter
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from ragbench.evaluation.judge_calls import Calls, UnscoredError
from ragbench.generation.prompts import Message
from ragbench.retrieval.encoder import Encoder, encode

# RAGAS reports usage to its makers by default, and reads this when it is imported.
os.environ["RAGAS_DO_NOT_TRACK"] = "true"

from ragas.embeddings.base import BaseRagasEmbedding
from ragas.llms.base import InstructorBaseRagasLLM
from ragas.metrics.collections import (
    AnswerCorrectness,
    AnswerRelevancy,
    ContextPrecisionWithReference,
    ContextRecall,
    Faithfulness,
)

Form = TypeVar("Form", bound=BaseModel)
_BINARY = {"verdict", "attributed", "noncommittal"}


class JudgeLLM(InstructorBaseRagasLLM):
    """The judge during one judgement: RAGAS's prompts go out, filled forms come back.

    A reply that does not fit the form is sent back once with what is wrong about it. Forms that RAGAS would take for
    a perfect or a zero score though they say nothing are not let through.
    """

    def __init__(self, calls: Calls, repeat: int) -> None:
        self._calls = calls
        self._repeat = repeat
        self._sent: Counter[str] = Counter()

    def generate(self, prompt: str, response_model: type[Form]) -> Form:
        """Refuse: RAGAS's class demands this method, but the metrics used here only call `agenerate`."""
        raise NotImplementedError("The judge answers RAGAS asynchronously only: call agenerate.")

    async def agenerate(self, prompt: str, response_model: type[Form]) -> Form:
        """Return the model's reply to a prompt as the form that RAGAS wants.

        Raises:
            UnscoredError: there is no reply, or none that can be used.
        """
        occurrence = self._sent[prompt]
        self._sent[prompt] += 1
        schema = response_model.model_json_schema()
        messages: list[Message] = [{"role": "user", "content": prompt}]
        for tries_left in (1, 0):
            reply = await self._calls.ask(messages, schema, self._repeat, occurrence)
            try:
                form = parse(reply.text, response_model)
            except ValueError as error:
                if reply.finish_reason == "length":
                    raise UnscoredError("cut answer") from None  # and would be cut again
                if not tries_left:
                    raise UnscoredError("malformed answer") from None
                complaint = f"{_explain(error)}\nAnswer again, with nothing but JSON that complies with the schema."
                messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": complaint}]
            else:
                break
        lists = [value for value in form.model_dump().values() if isinstance(value, list)]
        if lists and not any(lists):
            # RAGAS gives 1 for the correctness of an answer without statements.
            raise UnscoredError("no statements")
        return form


def parse(text: str, form: type[Form]) -> Form:
    """Return the JSON object in a reply as `form`; text around it, code fences and thoughts before it are left out.

    Raises:
        ValueError: there is none, it does not fit, or a verdict is neither 0 nor 1.
    """
    answer = text.rpartition("</think>")[2]
    start = answer.find("{")
    if start < 0:
        raise ValueError("There is no JSON object in this answer.")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(answer, start)
    except RecursionError:
        raise ValueError("The JSON is nested too deeply.") from None
    if isinstance(value.get("question"), str):
        value["question"] = value["question"].strip()  # RAGAS leaves out an empty question, but fails at a blank one
    filled = form.model_validate(value)
    _check(json.loads(filled.model_dump_json()))  # RAGAS sends it on as JSON, which half a character breaks
    return filled


def _check(value: Any) -> None:
    """Refuse what fits RAGAS's form but not its formulas."""
    if isinstance(value, list):
        for part in value:
            _check(part)
    elif isinstance(value, dict):
        for name in _BINARY & value.keys():
            if value[name] not in (0, 1):
                raise ValueError(f"{name}: must be 0 or 1, not {value[name]}.")
        if value.get("noncommittal") == 0 and not value["question"]:
            raise ValueError("question: must not be empty.")  # RAGAS scores it 0
        for part in value.values():
            _check(part)


def _explain(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    # Not str(error): it names pydantic's version, which would become part of the cache's key.
    return "\n".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()[:5])


class EncoderEmbeddings(BaseRagasEmbedding):
    """The fixed encoder in RAGAS's shape; embeddings come from the cache where it has them."""

    def __init__(self, encoder: Encoder, kind: Literal["query", "passage"]) -> None:
        super().__init__()
        self._encoder = encoder
        self._kind: Literal["query", "passage"] = kind

    def embed_text(self, text: str, **_: Any) -> list[float]:
        """Return the embedding of a text."""
        with contextlib.redirect_stderr(io.StringIO()):  # no progress bar for each text
            return encode(self._encoder, [text], self._kind)[0].tolist()

    async def aembed_text(self, text: str, **_: Any) -> list[float]:
        """Return the embedding of a text."""
        return self.embed_text(text)


def ragas_metric(name: str, llm: JudgeLLM, encoder: Encoder) -> Any:
    """Return RAGAS's metric of a name in `ragbench.evaluation.judge.JUDGE_METRICS`."""
    match name:
        case "faithfulness":
            return Faithfulness(llm=llm)
        case "answer_relevancy":
            return AnswerRelevancy(llm=llm, embeddings=EncoderEmbeddings(encoder, "query"))
        case "llm_context_precision":
            return ContextPrecisionWithReference(llm=llm)
        case "llm_context_recall":
            return ContextRecall(llm=llm)
        case _:
            return AnswerCorrectness(llm=llm, embeddings=EncoderEmbeddings(encoder, "passage"))
