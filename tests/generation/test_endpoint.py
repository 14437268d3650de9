import json
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragbench.collection.beir import read_collection
from ragbench.errors import RagbenchError
from ragbench.generation.endpoint import complete, count_tokens
from ragbench.generation.generate import Generator, answer_run

SECRET = "sk-very-secret-0123456789"
Reply = Callable[[BaseHTTPRequestHandler, int, dict], None]
"""What a server does with a request: the handler, how many requests came before, the request's JSON."""


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAGBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, *headers: tuple[str, str], missing: int = 0
) -> None:
    """Send a JSON reply that announces `missing` bytes more than it has."""
    handler.send_response(status)
    for name, value in (*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body) + missing))):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def chat(body: dict, **choice) -> bytes:
    text = f"Answer to {body['messages'][-1]['content']}"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def ok(handler: BaseHTTPRequestHandler, number: int, body: dict) -> None:
    send(handler, 200, chat(body))


def refuse(status: int, message: str = "no") -> Reply:
    return lambda handler, number, body: send(handler, status, json.dumps({"error": {"message": message}}).encode())


def first(then: Reply, otherwise: Reply = ok, times: int = 1) -> Reply:
    return lambda handler, number, body: (then if number < times else otherwise)(handler, number, body)


def talk(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]


def asked(requests: list[dict]) -> list[str]:
    return [request["messages"][-1]["content"] for request in requests]


def ask(url: str, *questions: str, **settings) -> list:
    settings = {"model": "some-model", "max_retries": 0, "timeout": 10.0, **settings}
    return complete([talk(question) for question in questions], base_url=url, **settings)


def test_an_answer_comes_with_its_counts_and_reason(serve):
    url, _ = serve(ok)
    [answer] = ask(url, "one")
    assert answer.text == "Answer to one"
    assert (answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) == (7, 3, "stop")


def test_the_request_holds_model_messages_limit_and_no_randomness(serve):
    url, [*_] = served = serve(ok)
    ask(url, "one", model="org/name", max_new_tokens=17)
    [request] = served[1]
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("org/name", 17, 0)
    assert request["messages"] == talk("one")


def test_answers_keep_the_order_of_the_questions_though_they_come_in_another(serve):
    def last_first(handler, number, body):
        time.sleep(0.4 - 0.1 * int(body["messages"][-1]["content"]))
        ok(handler, number, body)

    url, _ = serve(last_first)
    assert [answer.text for answer in ask(url, "0", "1", "2", "3")] == [f"Answer to {i}" for i in range(4)]


def test_an_answer_cut_at_the_limit_says_length(serve):
    url, _ = serve(lambda handler, number, body: send(handler, 200, chat(body, finish_reason="length")))
    assert ask(url, "one")[0].finish_reason == "length"


def test_a_server_that_counts_no_tokens_is_understood(serve):
    def uncounted(handler, number, body):
        send(handler, 200, json.dumps({k: v for k, v in json.loads(chat(body)).items() if k != "usage"}).encode())

    url, _ = serve(uncounted)
    assert ask(url, "one")[0].text == "Answer to one"


def test_the_second_call_sends_no_request(serve):
    url, requests = serve(ok)
    before = ask(url, "one", "two", "one")
    assert sorted(asked(requests)) == ["one", "two"]
    assert ask(url, "two", "one") == [before[1], before[0]]
    assert len(requests) == 2


@pytest.mark.parametrize("change", [{"model": "other"}, {"max_new_tokens": 5}])
def test_another_model_or_limit_is_asked_anew(serve, change: dict):
    url, requests = serve(ok)
    ask(url, "one")
    ask(url, "one", **change)
    assert len(requests) == 2


def test_another_instruction_or_server_is_asked_anew(serve):
    (url, requests), (other, other_requests) = serve(ok), serve(ok)
    ask(url, "one")
    complete([talk("one")[1:]], base_url=url, model="some-model")
    ask(other, "one")
    assert (len(requests), len(other_requests)) == (2, 1)


def test_429_with_retry_after_is_asked_again(serve):
    url, requests = serve(first(lambda h, n, b: send(h, 429, b"{}", ("Retry-After", "0.05")), times=2))
    assert ask(url, "one", max_retries=2)[0].text == "Answer to one"
    assert len(requests) == 3


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_error_is_asked_again(serve, status: int):
    url, requests = serve(first(refuse(status)))
    assert ask(url, "one", max_retries=1)[0].text == "Answer to one"
    assert len(requests) == 2


def test_a_truncated_answer_is_asked_again(serve):
    def truncated(handler, number, body):
        send(handler, 200, chat(body)[:40], missing=200)

    url, requests = serve(first(truncated))
    assert ask(url, "one", max_retries=1)[0].text == "Answer to one"
    assert len(requests) == 2


def test_a_connection_that_breaks_is_asked_again(serve):
    url, requests = serve(first(lambda handler, number, body: handler.connection.close()))
    assert ask(url, "one", max_retries=1)[0].text == "Answer to one"
    assert len(requests) == 2


def test_a_question_that_takes_too_long_is_asked_again_and_at_last_an_error(serve):
    hang = threading.Event()
    url, requests = serve(lambda handler, number, body: hang.wait(20))
    [answer] = ask(url, "one", timeout=0.2, max_retries=1)
    hang.set()
    assert (answer.finish_reason, answer.text, len(requests)) == ("error", "", 2)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_stays_is_an_error_and_is_asked_again_by_the_next_run(serve, status: int):
    url, requests = serve(first(refuse(status), times=2))
    [answer] = ask(url, "one", max_retries=1)
    assert (answer.finish_reason, answer.text, len(requests)) == ("error", "", 2)
    assert ask(url, "one", max_retries=1)[0].text == "Answer to one"
    assert len(requests) == 3


def test_one_failing_question_does_not_cost_the_others_their_answers(serve):
    def sometimes(handler, number, body):
        (refuse(500) if body["messages"][-1]["content"] == "bad" else ok)(handler, number, body)

    url, requests = serve(sometimes)
    assert [a.finish_reason for a in ask(url, "one", "bad", "two")] == ["stop", "error", "stop"]
    ask(url, "one", "bad", "two")
    assert sorted(asked(requests)) == ["bad", "bad", "one", "two"]


NO_ANSWERS = {
    "not JSON": b"{not json",
    "half of JSON": chat({"messages": [{"content": "x"}]})[:60],
    "an empty body": b"",
    "no choices": b'{"id": "1"}',
    "choices null": b'{"choices": null}',
    "choices empty": b'{"choices": []}',
    "a choice without a message": b'{"choices": [{"index": 0}]}',
    "message null": b'{"choices": [{"index": 0, "message": null}]}',
    "an error with status 200": b'{"error": {"message": "overloaded"}}',
    "a list": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_a_reply_that_is_no_answer_is_an_error_and_not_cached(serve, name: str):
    url, _ = serve(first(lambda handler, number, body: send(handler, 200, NO_ANSWERS[name])))
    [answer] = ask(url, "one")
    assert (answer.finish_reason, answer.text) == ("error", "")
    assert ask(url, "one")[0].text == "Answer to one"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refused_request_is_an_error_at_once_that_says_what_to_check(serve, status: int):
    url, requests = serve(refuse(status, "the server's own words"))
    with pytest.raises(RagbenchError, match="the server's own words") as caught:
        ask(url, "one", max_retries=2)
    assert all(part in str(caught.value) for part in (url, str(status), "RAGBENCH_API_KEY"))
    assert len(requests) == 1


@pytest.mark.parametrize("status", [401, 404])
def test_the_key_is_not_in_the_error_even_if_the_server_repeats_it(serve, monkeypatch, status: int):
    monkeypatch.setenv("RAGBENCH_API_KEY", SECRET)
    url, _ = serve(refuse(status, f"Incorrect API key provided: {SECRET}."))
    with pytest.raises(RagbenchError) as caught:
        ask(url, "one")
    assert str(status) in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))  # a notebook shows causes, too


def test_a_server_that_is_not_there_is_an_error_that_names_the_parameter(free_port: int):
    with pytest.raises(RagbenchError, match=rf"127\.0\.0\.1:{free_port}.*generator_endpoint"):
        ask(f"http://127.0.0.1:{free_port}/v1", "one")


@pytest.mark.parametrize("url", ["", "127.0.0.1:1/v1", "no-scheme/v1", "http://", "ftp://127.0.0.1/v1"])
def test_an_address_that_is_none_is_an_error_that_names_the_parameter(url: str):
    with pytest.raises(RagbenchError, match="generator_endpoint"):
        ask(url, "one")


def test_open_requests_are_as_many_as_allowed_and_no_more(serve):
    together, lock, state = threading.Barrier(3), threading.Lock(), {"open": 0, "peak": 0}

    def counted(handler, number, body):
        with lock:
            state["open"] += 1
            state["peak"] = max(state["peak"], state["open"])
        together.wait(10)  # three must be open before any is answered
        time.sleep(0.1)
        with lock:
            state["open"] -= 1
        ok(handler, number, body)

    url, requests = serve(counted)
    answers = ask(url, *map(str, range(9)), concurrency=3)
    assert (state["peak"], len(requests), {a.finish_reason for a in answers}) == (3, 9, {"stop"})


def test_an_answer_is_cached_while_others_are_still_being_waited_for(serve, own_cache: Path):
    seen = []

    def kept() -> bool:
        try:
            with sqlite3.connect(own_cache / "answers.sqlite") as connection:
                return bool(connection.execute("select count(*) from entries").fetchone()[0])
        except sqlite3.Error:
            return False

    def slow_second(handler, number, body):
        if body["messages"][-1]["content"] == "slow":
            deadline = time.monotonic() + 8
            while time.monotonic() < deadline and not kept():
                time.sleep(0.02)
            seen.append(kept())
        ok(handler, number, body)

    ask(serve(slow_second)[0], "quick", "slow", concurrency=2)
    assert seen == [True]


def test_answers_from_before_a_refusal_are_not_asked_again(serve):
    url, requests = serve(lambda h, n, b: (refuse(401) if n == 1 else ok)(h, n, b))
    with pytest.raises(RagbenchError):
        ask(url, "one", "two", concurrency=1)
    assert [answer.text for answer in ask(url, "one", "two")] == ["Answer to one", "Answer to two"]
    assert asked(requests) == ["one", "two", "two"]


def test_answers_on_their_way_when_another_is_refused_are_not_asked_again(serve):
    refused = threading.Event()

    def one_refused(handler, number, body):
        if body["messages"][-1]["content"] == "bad":
            refuse(401)(handler, number, body)
            refused.set()
        else:
            refused.wait(10)
            time.sleep(0.3)
            ok(handler, number, body)

    url, requests = serve(one_refused)
    with pytest.raises(RagbenchError):
        ask(url, "slow", "bad", concurrency=2)
    ask(url, "slow")
    assert sorted(asked(requests)) == ["bad", "slow"]


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ({"RAGBENCH_API_KEY": SECRET}, SECRET),
        ({"OPENAI_API_KEY": SECRET}, SECRET),
        ({"RAGBENCH_API_KEY": SECRET, "OPENAI_API_KEY": "other"}, SECRET),
        ({"RAGBENCH_API_KEY": "", "OPENAI_API_KEY": SECRET}, SECRET),
    ],
)
def test_the_key_of_the_environment_is_sent_as_bearer(serve, monkeypatch, keys: dict[str, str], sent: str):
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    url, requests = serve(ok)
    ask(url, "one")
    assert requests[0]["key"] == f"Bearer {sent}"


def test_a_server_without_keys_needs_none(serve):
    url, _ = serve(ok)
    assert ask(url, "one")[0].finish_reason == "stop"


def test_the_key_is_neither_in_answers_nor_in_the_cache_nor_on_the_screen(serve, own_cache, monkeypatch, capfd):
    monkeypatch.setenv("RAGBENCH_API_KEY", SECRET)
    url, requests = serve(ok)
    answers = ask(url, "one", "two")
    assert SECRET in requests[0]["key"]
    written = b"".join(path.read_bytes() for path in own_cache.rglob("*") if path.is_file())
    assert b"Answer to" in written and SECRET.encode() not in written
    assert SECRET not in repr(answers) + "".join(capfd.readouterr())


@given(st.text(max_size=300), st.text(alphabet="猫犬魚", max_size=50))
def test_tokens_are_estimated_from_above(text: str, unspaced: str):
    assert count_tokens(text) * 3 >= len(text)
    assert count_tokens(unspaced) == len(unspaced) + 1
    assert count_tokens("x" * len(text)) == len(text) // 3 + 1


def test_a_run_is_answered_through_the_endpoint(serve, toy_folder: Path):
    toy = read_collection(toy_folder)
    url, requests = serve(ok)
    generator = Generator(backend="endpoint", model="m", endpoint=url, contexts=2, instruction="Be brief.")
    run = {"q1": {"p1": 2.0, "p4": 1.0, "p2": 0.5}}
    [answer] = answer_run(toy, [toy.queries["q1"]], run, generator)
    shown = "1. [p1] Cats Cats sleep all day.\n\n2. [p4] Birds Birds fly south.\n\nWhat do cats do all day?"
    assert requests[0]["messages"] == talk(shown)
    assert (answer.query_id, answer.answer, answer.context_ids) == ("q1", f"Answer to {shown}", ("p1", "p4"))
