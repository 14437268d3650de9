"""Answers: one a query, kept as JSON lines and cached under everything they depend on."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ragbench import cache
from ragbench.errors import RagbenchError
from ragbench.files import write_text
from ragbench.generation.prompts import Prompt

CACHE = "answers"


@dataclass(frozen=True)
class Completion:
    """What a backend made of one prompt.

    Attributes:
        text: the answer without special tokens.
        prompt_tokens, completion_tokens: as the backend counts them.
        seconds: wall time; in a batch, the batch's time over its rows.
        finish_reason: ``stop``, ``length`` (cut at the limit) or ``error`` (no answer could be had).
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reason: str


@dataclass(frozen=True)
class Answer:
    """One line of answers.jsonl: a completion with the passages it was given and those the length limit cut."""

    query_id: str
    answer: str
    context_ids: tuple[str, ...]
    cut_ids: tuple[str, ...]
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    finish_reason: str


def make_answer(prompt: Prompt, completion: Completion) -> Answer:
    """Join a prompt and its completion."""
    return Answer(
        prompt.query_id,
        completion.text,
        prompt.context_ids,
        prompt.cut_ids,
        completion.prompt_tokens,
        completion.completion_tokens,
        round(completion.seconds, 4),
        completion.finish_reason,
    )


def cached_completions(keys: Iterable[str]) -> dict[str, Completion]:
    """Return the completions that the answer cache holds, by key."""
    return {key: Completion(**json.loads(value)) for key, value in cache.get(CACHE, keys)}


def cache_completions(completions: dict[str, Completion]) -> None:
    """Put completions into the answer cache; failures are not kept, so that the next run tries them again."""
    good = {key: completion for key, completion in completions.items() if completion.finish_reason != "error"}
    cache.put(CACHE, {key: json.dumps(asdict(completion)).encode() for key, completion in good.items()})


def write_answers(answers: Iterable[Answer], path: Path) -> None:
    """Write answers.jsonl."""
    write_text(path, "".join(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers))


def read_answers(path: Path) -> list[Answer]:
    """Read answers.jsonl.

    Raises:
        RagbenchError: the file cannot be read, or a line is no JSON object or lacks a field.
    """
    answers: list[Answer] = []
    try:
        # Not splitlines(): an answer may hold characters that it takes for line ends.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RagbenchError(f"{path} cannot be read as answers: {error}.") from error
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            record = json.loads(line)
            values = {field.name: record[field.name] for field in fields(Answer)}
            for name in ("context_ids", "cut_ids"):
                if not isinstance(values[name], list):
                    raise TypeError(f"'{name}' must be a list")
                values[name] = tuple(values[name])
        except (ValueError, KeyError, TypeError) as error:
            raise RagbenchError(f"{path}, line {number}: not an answer ({type(error).__name__}: {error}).") from error
        answers.append(Answer(**values))
    return answers
