"""Training files for OpenAI's fine-tuning API: chat JSONL, checked before anything is paid for.

The format and its limits are those of OpenAI's supervised fine-tuning guide (https://developers.openai.com/api/docs):
one object a line with ``messages``, the last of them the assistant's, and at least ten examples.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ragbench.errors import RagbenchError
from ragbench.files import sha256_file, write_json, write_text
from ragbench.generation.endpoint import count_tokens

TRAIN, VALIDATION, SUMMARY = "train.jsonl", "validation.jsonl", "summary.json"
_SPLITS = {TRAIN: "train", VALIDATION: "dev"}
MIN_EXAMPLES = 10
MAX_EXAMPLE_TOKENS = 65_536
MAX_FILE_BYTES = 512 * 2**20
_ROLES = ("system", "user", "assistant")
_TOKENS_PER_MESSAGE = 4
"""What a chat format adds to each message, from above."""


@dataclass(frozen=True)
class Summary:
    """What an export holds and what training on it costs.

    Attributes:
        model: the served model to fine-tune.
        epochs: passes over the training file; they are paid for each.
        examples, tokens, sha256: of each file, by its name; tokens are estimated from above.
        price: US dollars for a million training tokens, as the user gave it.
        cost: US dollars, from above.
    """

    model: str
    epochs: int
    examples: dict[str, int]
    tokens: dict[str, int]
    sha256: dict[str, str]
    price: float
    cost: float

    def in_words(self) -> str:
        """Return the summary as one sentence."""
        held = f"; {self.examples[VALIDATION]} examples to validate with" if VALIDATION in self.examples else ""
        return (
            f"{self.examples[TRAIN]} examples, at most {self.tokens[TRAIN]:,} tokens, {self.epochs} epochs of "
            f"{self.model}: at most ${self.cost:.2f} at ${self.price:g} for a million tokens{held}."
        )


def export(examples: Path, folder: Path, *, model: str, epochs: int, price: float) -> Summary:
    """Write the generator's examples as train.jsonl and validation.jsonl, with summary.json.

    Args:
        examples: the generator.parquet of 02_data_prep; its train examples are trained on, those of dev validate.
        folder: where to write; it must be new or empty.
        price: US dollars for a million training tokens.

    Raises:
        RagbenchError: the file is not there or no such file, the folder is in use, or an example breaks the format's
            rules; then nothing is written.
    """
    if epochs < 1 or price < 0:
        raise RagbenchError("An export needs at least one epoch, and a price of at least 0.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RagbenchError(f"{folder} is a file, or not empty; give a new folder.")
    rows = _read(examples)
    files = {name: [_line(row) for row in rows if row["split"] == split] for name, split in _SPLITS.items()}
    files = {name: lines for name, lines in files.items() if lines or name == TRAIN}
    tokens = {name: _checked(name, lines) for name, lines in files.items()}
    _check_apart(files)
    for name, lines in files.items():
        write_text(folder / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    summary = Summary(
        model,
        epochs,
        {name: len(lines) for name, lines in files.items()},
        tokens,
        {name: sha256_file(folder / name) for name in files},
        price,
        round(tokens[TRAIN] * epochs * price / 1e6, 4),
    )
    write_json(folder / SUMMARY, asdict(summary))
    return summary


def read_summary(folder: Path) -> Summary:
    """Read the summary of an export whose files are as they were written.

    Raises:
        RagbenchError: there is none, or a file was changed since.
    """
    path = folder / SUMMARY
    try:
        summary = Summary(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RagbenchError(
            f"{path} is no summary of an export ({type(error).__name__}). Run `ragbench openai export`."
        ) from error
    for name, expected in summary.sha256.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != expected:
            raise RagbenchError(f"{folder / name} is not what was exported. Export again, into a new folder.")
    return summary


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise RagbenchError(f"There is no {path}. Run 02_data_prep first: it writes the generator's examples.")
    try:
        return list(pq.read_table(path, columns=["prompt", "completion", "query_id", "split"]).to_pylist())
    except (OSError, ValueError) as error:
        raise RagbenchError(f"{path} holds no examples for a generator ({error}).") from error


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": [*row["prompt"], *row["completion"]]}


def _checked(name: str, lines: Sequence[Mapping[str, Any]]) -> int:
    """Return the tokens of a file, from above; raise for the first line that breaks a rule."""
    if name == TRAIN and len(lines) < MIN_EXAMPLES:
        raise RagbenchError(f"There are {len(lines)} train examples; the API wants at least {MIN_EXAMPLES}.")
    seen: dict[str, int] = {}
    total = size = 0
    for number, line in enumerate(lines, start=1):
        messages = line["messages"]
        fault = _fault(messages)
        asked = json.dumps(messages[:-1])
        if asked in seen:
            fault = f"the same prompt as in line {seen[asked]}"
        seen[asked] = number
        tokens = sum(count_tokens(message["content"]) + _TOKENS_PER_MESSAGE for message in messages)
        if tokens > MAX_EXAMPLE_TOKENS:
            fault = f"about {tokens} tokens, more than {MAX_EXAMPLE_TOKENS}"
        if fault:
            raise RagbenchError(
                f"{name}, line {number} would have {fault}. See what 02_data_prep made of that question."
            )
        total += tokens
        size += len(json.dumps(line, ensure_ascii=False).encode()) + 1
    if size > MAX_FILE_BYTES:
        raise RagbenchError(f"{name} would have {size / 2**20:.0f} MiB; the API takes {MAX_FILE_BYTES >> 20}.")
    return total


def _fault(messages: Sequence[Mapping[str, str]]) -> str:
    roles = [message["role"] for message in messages]
    unknown = [role for role in roles if role not in _ROLES]
    if unknown:
        return f"the role '{unknown[0]}'"
    if roles.count("assistant") != 1 or roles[-1] != "assistant" or "user" not in roles:
        return f"the roles {', '.join(roles)} in place of a user's message and then the assistant's"
    empty = [message["role"] for message in messages if not message["content"].strip()]
    return f"an empty message of the {empty[0]}" if empty else ""


def _check_apart(files: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    trained = {json.dumps(line["messages"][:-1]): number for number, line in enumerate(files[TRAIN], start=1)}
    for number, line in enumerate(files.get(VALIDATION, ()), start=1):
        if (same := trained.get(json.dumps(line["messages"][:-1]))) is not None:
            raise RagbenchError(f"{VALIDATION}, line {number} would have the prompt of {TRAIN}, line {same}.")
