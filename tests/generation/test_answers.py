import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.generation.answers import (
    Answer,
    Completion,
    cache_completions,
    cached_completions,
    make_answer,
    read_answers,
    write_answers,
)
from ragbench.generation.prompts import Prompt

ONE = Answer("q1", "They sleep. [p1]", ("p1", "p2"), ("p2",), 40, 6, 0.25, "stop")
ids = st.lists(st.text(min_size=1), max_size=4).map(tuple)
seconds = st.floats(0, 1e6)
answers = st.builds(Answer, st.text(), st.text(), ids, ids, st.integers(0), st.integers(0), seconds, st.text())


@given(st.lists(answers, max_size=5))
@example([Answer("q", "one line separator \u2028 and next line \x85", ("a\u2029b",), (), 1, 1, 0.0, "stop")])
@settings(max_examples=60, deadline=None)
def test_answers_come_back_as_they_were_written(written: list[Answer]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        write_answers(written, path)
        assert read_answers(path) == written


def test_each_line_is_one_object_with_the_fields_of_the_contract(tmp_path: Path):
    write_answers([ONE, ONE], tmp_path / "answers.jsonl")
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0]) == {
        "query_id": "q1", "answer": "They sleep. [p1]", "context_ids": ["p1", "p2"], "cut_ids": ["p2"],
        "prompt_tokens": 40, "completion_tokens": 6, "seconds": 0.25, "finish_reason": "stop",
    }  # fmt: skip


@pytest.mark.parametrize("bad", ["{", "", "[1, 2]", "7", '"text"', '{"query_id": "q1"}', "null"])
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, bad: str):
    path = tmp_path / "answers.jsonl"
    write_answers([ONE, ONE], path)
    path.write_text(path.read_text() + bad + "\n" + path.read_text())
    with pytest.raises(RagbenchError, match=r"answers\.jsonl, line 3: "):
        read_answers(path)


@pytest.mark.parametrize("field", ["query_id", "answer", "context_ids", "cut_ids", "finish_reason"])
def test_a_missing_field_is_named(tmp_path: Path, field: str):
    path = tmp_path / "answers.jsonl"
    write_answers([ONE], path)
    record = json.loads(path.read_text())
    del record[field]
    path.write_text(path.read_text() + json.dumps(record) + "\n")
    with pytest.raises(RagbenchError, match=rf"line 2: .*{field}"):
        read_answers(path)


@pytest.mark.parametrize("value", [None, 3, "p1"])
def test_context_ids_that_are_no_list_are_an_error_with_the_line(tmp_path: Path, value: object):
    path = tmp_path / "answers.jsonl"
    write_answers([ONE], path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"context_ids": value}) + "\n")
    with pytest.raises(RagbenchError, match=r"answers\.jsonl, line 1: "):
        read_answers(path)


def test_a_file_that_is_not_utf8_is_an_error_that_names_it(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"query_id": "\xff\xfe"}\n')
    with pytest.raises(RagbenchError, match=r"answers\.jsonl"):
        read_answers(path)


def test_an_answer_joins_the_prompt_and_its_completion():
    prompt = Prompt("q9", (), ("p1", "p2"), ("p2", "p3"))
    answer = make_answer(prompt, Completion("Yes. [p1]", 50, 4, 0.123456, "length"))
    assert answer == Answer("q9", "Yes. [p1]", ("p1", "p2"), ("p2", "p3"), 50, 4, 0.1235, "length")


def test_cached_completions_come_back_and_unknown_keys_do_not():
    keys = [sha256_text(str(number)) for number in range(3)]
    kept = {keys[0]: Completion("ä\n\u2028", 3, 2, 1 / 3, "stop"), keys[1]: Completion("", 1, 0, 0.0, "length")}
    cache_completions(kept)
    assert cached_completions(keys) == kept


def test_failures_are_not_cached():
    good, bad = sha256_text("good"), sha256_text("bad")
    answered = Completion("yes", 1, 1, 0.1, "stop")
    cache_completions({good: answered, bad: Completion("", 0, 0, 0.1, "error")})
    assert cached_completions([good, bad]) == {good: answered}
