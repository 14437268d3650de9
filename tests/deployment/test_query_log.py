import sqlite3
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.deployment.query_log import DAY, Entry, QueryLog, make_entry, read_log
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PASSAGES = st.lists(st.tuples(TEXT, st.floats(-1, 1, width=16)), max_size=4)


def entry(name, question="how?", answer="so [p1]", when=None, **known):
    made = make_entry(name, question, answer, [("p1", 0.5), ("p2", 0.25)], False,
                      **{"seconds": 0.1, "bundle": "docs/0001", "finish_reason": "stop", **known})  # fmt: skip
    return made if when is None else Entry(**{**vars(made), "time": when})


@given(st.lists(st.tuples(TEXT, TEXT, PASSAGES, st.booleans()), max_size=5))
def test_what_is_added_is_read(tmp_path_factory, answered):
    path = tmp_path_factory.mktemp("log") / "queries.sqlite"
    known = {"seconds": 0.5, "bundle": "docs/0001", "finish_reason": "stop"}
    entries = [make_entry(str(n), q, a, found, refused, **known) for n, (q, a, found, refused) in enumerate(answered)]
    log = QueryLog(path)
    log.add(entries)
    log.close()
    assert sorted(read_log(path), key=lambda each: int(each.id)) == entries


def test_without_text_there_are_hashes_and_scores_only(tmp_path):
    log = QueryLog(tmp_path / "q.sqlite", keep_text=False)
    log.add([entry("a", "my secret question", "the secret answer")])
    log.add_feedback("a", -1, "a secret comment")
    log.close()
    [found] = read_log(tmp_path / "q.sqlite")
    assert (found.question, found.answer, found.comment, found.feedback) == (None, None, None, -1)
    assert found.question_hash == sha256_text("my secret question") and found.scores == (0.5, 0.25)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"secret" not in stored


def test_what_is_too_old_is_deleted(tmp_path):
    log = QueryLog(tmp_path / "q.sqlite", days=2)
    log.add([entry("old", when=time.time() - 3 * DAY), entry("new", when=time.time() - DAY)])
    log.add([entry("newest")])
    assert [each.id for each in read_log(tmp_path / "q.sqlite")] == ["new", "newest"]


def test_a_span_of_time_is_read_whatever_the_folder_is_called(tmp_path):
    path = tmp_path / "what? #1 100%" / "q.sqlite"
    QueryLog(path).add([entry(str(n), when=float(n)) for n in range(5)])
    assert [each.id for each in read_log(path, since=1, until=4)] == ["1", "2", "3"]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_log(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RagbenchError, match=r"file/q\.sqlite cannot be used as a query log"):
        QueryLog(tmp_path / "file" / "q.sqlite")


def test_feedback_and_grounding_are_added_to_an_answer(tmp_path):
    log = QueryLog(tmp_path / "q.sqlite")
    log.add([entry("a"), entry("b")])
    assert log.add_feedback("a", 1, "thanks") and not log.add_feedback("z", -1)
    log.set_grounding([("b", 0.75)])
    first, second = read_log(tmp_path / "q.sqlite")
    assert (first.feedback, first.comment, first.grounding) == (1, "thanks", None)
    assert (second.feedback, second.grounding) == (None, 0.75)


def test_an_answer_is_logged_once_and_a_failed_batch_not_at_all(tmp_path):
    log = QueryLog(tmp_path / "q.sqlite")
    log.add([entry("a")])
    with pytest.raises(sqlite3.IntegrityError):
        log.add([entry("b"), entry("a")])
    assert [each.id for each in read_log(tmp_path / "q.sqlite")] == ["a"]


def test_what_is_no_log_says_so(tmp_path):
    (tmp_path / "q.sqlite").write_bytes(b"this is something else entirely " * 40)
    for use in (QueryLog, read_log):
        with pytest.raises(RagbenchError, match=r"q\.sqlite"):
            use(tmp_path / "q.sqlite")
    with pytest.raises(RagbenchError, match="ragbench serve"):
        read_log(tmp_path / "none.sqlite")
