import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ragbench import cache
from ragbench.errors import RagbenchError
from ragbench.evaluation.judge import JUDGE_METRICS, Judge, Judgement, Sample, combined, coverage_table, judge
from ragbench.files import sha256_text
from ragbench.retrieval.encoder import Encoder, encode, open_encoder

SECRET = "sk-very-secret-0123456789"
Reply = Callable[[BaseHTTPRequestHandler, int, dict], None]
"""What a server does with a request: the handler, how many requests came before, the request's JSON."""

CATS = Sample(
    "cats",
    "What do cats do?",
    "Cats sleep. Cats fly.",
    ("Fish swim.", "Cats sleep. Cats eat."),
    "Cats sleep. Cats purr.",
)
BIRDS = Sample("birds", "What do birds do?", "Birds fly.", ("Birds fly.",), "Birds fly.")
BAD = Sample("bad", "What do horses do?", "Horses run.", ("Horses run.",), "Horses run.")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAGBENCH_JUDGE_API_KEY", "RAGBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


def send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, *headers: tuple[str, str], missing: int = 0
) -> None:
    """Send a JSON reply that announces `missing` bytes more than it has."""
    handler.send_response(status)
    for name, value in (*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body) + missing))):
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def chat(text: str | None, **choice) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def sentences(text: str) -> list[str]:
    return re.findall(r"[^.]+\.", text)


def form_of(body: dict) -> str:
    """Return the name of RAGAS's form that a request asks for."""
    return re.findall(r'"title": "(\w+)", "type": "object"\}Do not use', body["messages"][0]["content"])[0]


def filled(body: dict) -> dict:
    """Judge as a perfect judge would whose world is made of sentences that are equal or not."""
    prompt = body["messages"][0]["content"]
    given = json.loads(prompt.rpartition("\ninput: ")[2].removesuffix("\nOutput: "))
    form = form_of(body)
    if form == "StatementGeneratorOutput":
        return {"statements": [part.strip() for part in sentences(given["answer"])]}
    if form == "NLIStatementOutput":
        found = {part: int(part in given["context"]) for part in given["statements"]}
        return {"statements": [{"statement": part, "reason": "", "verdict": found[part]} for part in found]}
    if form == "AnswerRelevanceOutput":
        evasive = "not say" in given["response"]
        return {"question": "" if evasive else given["response"], "noncommittal": int(evasive)}
    if form == "ContextPrecisionOutput":
        useful = any(part.strip() in given["context"] for part in sentences(given["answer"]))
        return {"reason": "", "verdict": int(useful)}
    if form == "ContextRecallOutput":
        found = {part.strip(): int(part.strip() in given["context"]) for part in sentences(given["answer"])}
        return {"classifications": [{"statement": s, "reason": "", "attributed": v} for s, v in found.items()]}
    ours, theirs = given["answer"], given["ground_truth"]
    kinds = {"TP": [s for s in ours if s in theirs], "FP": [s for s in ours if s not in theirs]}
    kinds["FN"] = [s for s in theirs if s not in ours]
    return {kind: [{"statement": s, "reason": ""} for s in found] for kind, found in kinds.items()}


def ok(handler: BaseHTTPRequestHandler, number: int, body: dict) -> None:
    send(handler, 200, chat(json.dumps(filled(body))))


def says(text: str | None, **choice) -> Reply:
    return lambda handler, number, body: send(handler, 200, chat(text, **choice))


def refuse(status: int, message: str = "no", *headers: tuple[str, str], **error) -> Reply:
    refusal = json.dumps({"error": {"message": message, **error}}).encode()
    return lambda handler, number, body: send(handler, status, refusal, *headers)


def truncated(handler: BaseHTTPRequestHandler, number: int, body: dict) -> None:
    send(handler, 200, chat(json.dumps(filled(body)))[:50], missing=200)
    handler.close_connection = True


def hang(handler: BaseHTTPRequestHandler, number: int, body: dict) -> None:
    time.sleep(1)


def hang_up(handler: BaseHTTPRequestHandler, number: int, body: dict) -> None:
    handler.connection.close()


def first(then: Reply, otherwise: Reply = ok, times: int = 1) -> Reply:
    return lambda handler, number, body: (then if number < times else otherwise)(handler, number, body)


def about_horses(then: Reply, otherwise: Reply = ok) -> Reply:
    def reply(handler: BaseHTTPRequestHandler, number: int, body: dict) -> None:
        (then if "horses" in body["messages"][0]["content"] else otherwise)(handler, number, body)

    return reply


def form(name: str, then: Reply, otherwise: Reply = ok) -> Reply:
    return lambda handler, number, body: (then if form_of(body) == name else otherwise)(handler, number, body)


def ask(url: str, encoder: Encoder, *samples: Sample, metrics=("faithfulness",), **settings) -> Judgement:
    settings = {"model": "some-model", "max_retries": 0, "timeout": 10.0, **settings}
    return judge(samples or (CATS,), Judge(endpoint=url, **settings), encoder, metrics)


def birds(number: int) -> list[Sample]:
    names = [f"Bird {i}" for i in range(number)]
    return [Sample(name[5:], f"What does {name} do?", f"{name} flies.", (f"{name} flies.",), None) for name in names]


def values(judgement: Judgement) -> dict:
    scores = judgement.scores
    return {
        query: None if pd.isna(value) else value for query, value in zip(scores.query_id, scores.value, strict=True)
    }


def reasons(judgement: Judgement) -> list[str]:
    return judgement.scores["reason"].tolist()


def coverage(judgement: Judgement) -> tuple[int, int]:
    [row] = coverage_table(judgement).itertuples()
    return row.scored, row.n


def cosine(encoder: Encoder, one: str, other: str, kind) -> float:
    a, b = encode(encoder, [one, other], kind)
    return float(a @ b)


def test_the_five_metrics_have_the_values_that_the_judges_verdicts_give(serve, encoder):
    judged = ask(serve(ok)[0], encoder, metrics=JUDGE_METRICS)
    found = dict(zip(judged.scores.metric, judged.scores.value, strict=True))
    similarity = cosine(encoder, CATS.answer, CATS.reference, "passage")
    assert found == pytest.approx(
        {
            "faithfulness": 1 / 2,
            "answer_relevancy": cosine(encoder, CATS.question, CATS.answer, "query"),
            "llm_context_precision": 1 / 2,  # the second of two passages is useful
            "llm_context_recall": 1 / 2,
            "answer_correctness": 0.75 * 1 / 2 + 0.25 * similarity,
        }
    )
    assert list(judged.scores.columns) == ["query_id", "metric", "repeat", "value", "reason"]
    assert reasons(judged) == [""] * 5


def test_the_request_holds_model_limit_schema_and_no_randomness(serve, encoder):
    url, requests = serve(ok)
    ask(url, encoder, model="org/name", max_tokens=77)
    assert {(r["path"], r["model"], r["max_tokens"], r["temperature"]) for r in requests} == {
        ("/v1/chat/completions", "org/name", 77, 0)
    }
    forms = [request["response_format"]["json_schema"] for request in requests]
    assert [form["name"] for form in forms] == ["StatementGeneratorOutput", "NLIStatementOutput"]
    assert "statements" in forms[0]["schema"]["properties"]


def test_a_sample_without_a_reference_has_no_row_where_one_is_needed(serve, encoder):
    bare = Sample("q", "What do birds do?", "Birds fly.", ("Birds fly.",), None)
    judged = ask(serve(ok)[0], encoder, bare, BIRDS, metrics=JUDGE_METRICS)
    assert set(judged.scores.metric[judged.scores.query_id == "q"]) == {"faithfulness", "answer_relevancy"}
    table = coverage_table(judged).set_index("metric")
    assert table["n"].to_dict() == dict(zip(JUDGE_METRICS, (2, 2, 1, 1, 1), strict=True))


def test_an_empty_answer_or_no_passages_leave_missing_what_needs_them_and_cost_nothing(serve, encoder):
    url, requests = serve(ok)
    silent = Sample("silent", "What do birds do?", " ", ("Birds fly.",), "Birds fly.")
    blind = Sample("blind", "What do birds do?", "Birds fly.", (), "Birds fly.")
    judged = ask(url, encoder, silent, blind, metrics=JUDGE_METRICS).scores.set_index(["query_id", "metric"])
    missing = {key: reason for key, reason in judged.reason.items() if reason}
    assert missing == {
        ("silent", "faithfulness"): "no answer",
        ("silent", "answer_relevancy"): "no answer",
        ("silent", "answer_correctness"): "no answer",
        ("blind", "faithfulness"): "no passages",
        ("blind", "llm_context_precision"): "no passages",
        ("blind", "llm_context_recall"): "no passages",
    }
    assert set(judged.index[judged.value.isna()]) == set(missing)
    assert len(requests) == 2 + 3 + 3
    assert judged.value["blind", "answer_correctness"] == pytest.approx(1)


def test_an_evasive_answer_has_relevancy_zero_as_in_ragas(serve, encoder):
    evasive = Sample("q", "What do birds do?", "The documents do not say.", ("Fish swim.",), None)
    judged = ask(serve(ok)[0], encoder, evasive, metrics=("answer_relevancy",))
    assert (values(judged), reasons(judged)) == ({"q": 0.0}, [""])


def test_samples_may_be_none(serve, encoder):
    judged = judge([], Judge("m", serve(ok)[0]), encoder)
    assert (len(judged.scores), len(combined(judged)), len(coverage_table(judged)), judged.cost) == (0, 0, 0, 0)


FAILURES = {
    "429": (refuse(429), "failed call"),
    "500": (refuse(500), "failed call"),
    "503": (refuse(503), "failed call"),
    "hanging": (hang, "failed call"),
    "a body cut off": (truncated, "failed call"),
    "a connection cut off": (hang_up, "failed call"),
    "a body that is no JSON": (lambda h, n, b: send(h, 200, b"{not json"), "failed call"),
    "an empty body": (lambda h, n, b: send(h, 200, b""), "failed call"),
    "an error with status 200": (lambda h, n, b: send(h, 200, b'{"error": {"message": "busy"}}'), "failed call"),
    "no choices": (lambda h, n, b: send(h, 200, b'{"id": "1", "choices": []}'), "failed call"),
    "choices null": (lambda h, n, b: send(h, 200, b'{"id": "1", "choices": null}'), "failed call"),
    "no message": (lambda h, n, b: send(h, 200, b'{"choices": [{"index": 0, "message": null}]}'), "failed call"),
    "refused": (refuse(400, "maximum context length is 8 tokens"), "refused call"),
    "JSON cut at the limit": (says('{"statements": ["Horses r', finish_reason="length"), "cut answer"),
    "JSON cut without a word": (says('{"statements": ["Horses r'), "malformed answer"),
    "no JSON": (says("The horses are running."), "malformed answer"),
    "nothing said": (says(None), "malformed answer"),
    "bad JSON": (says("{'statements': [Horses]}"), "malformed answer"),
    "JSON without end": (says('{"a":' * 100_000), "malformed answer"),
    "another form": (says('{"verdict": 1}'), "malformed answer"),
    "another type": (says('{"statements": "Horses run."}'), "malformed answer"),
    "half a character": (says('{"statements": ["\\ud83d"]}'), "malformed answer"),
    "no statements": (says('{"statements": []}'), "no statements"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failed_judgement_is_missing_and_counted_and_leaves_the_others_alone(serve, encoder, name: str):
    failure, reason = FAILURES[name]
    judged = ask(serve(about_horses(failure))[0], encoder, CATS, BAD, BIRDS, timeout=0.5)
    assert values(judged) == {"cats": 0.5, "bad": None, "birds": 1.0}
    assert reasons(judged) == ["", reason, ""]
    [row] = coverage_table(judged).to_dict("records")
    assert row == {
        "metric": "faithfulness", "mean": 0.75, "scored": 2, "n": 3, "spread": pytest.approx(np.nan, nan_ok=True),
        "reasons": f"{reason} 1",
    }  # fmt: skip


PASSING = {
    "429 with Retry-After": refuse(429, "slow down", ("Retry-After", "0.05")),
    "500": refuse(500, "no", ("retry-after-ms", "10")),
    "503": refuse(503, "no", ("retry-after-ms", "10")),
    "hanging": hang,
    "a body cut off": truncated,
    "a connection cut off": hang_up,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(serve, encoder, name: str):
    url, requests = serve(first(PASSING[name], times=2))
    judged = ask(url, encoder, max_retries=2, timeout=0.5)
    assert (values(judged), judged.calls, len(requests)) == ({"cats": 0.5}, 2, 4)


@pytest.mark.parametrize("name", [name for name, (_, reason) in FAILURES.items() if reason.endswith("call")])
def test_what_may_pass_is_not_cached_and_the_next_run_asks_only_for_what_is_missing(serve, encoder, name: str):
    state = {"failing": True}

    def reply(handler, number, body):
        (FAILURES[name][0] if state["failing"] else ok)(handler, number, body)

    url, requests = serve(about_horses(reply))
    assert coverage(ask(url, encoder, CATS, BAD, timeout=0.5)) == (1, 2)
    state["failing"] = False
    before = len(requests)
    again = ask(url, encoder, CATS, BAD, timeout=0.5)
    assert values(again) == {"cats": 0.5, "bad": 1.0}
    assert (len(requests) - before, again.calls, again.cached_calls) == (2, 2, 2)


def test_a_reply_that_came_is_kept_though_it_cannot_be_used(serve, encoder):
    url, requests = serve(about_horses(says("no JSON")))
    before = ask(url, encoder, CATS, BAD)
    again = ask(url, encoder, CATS, BAD)
    pd.testing.assert_frame_equal(before.scores, again.scores)
    assert (len(requests), again.calls, again.cached_calls, again.cost) == (4, 0, 4, 0)


def test_a_malformed_answer_is_sent_back_once_with_what_is_wrong_and_both_are_paid_for(serve, encoder):
    url, requests = serve(first(says('{"statements": 7}')))
    judged = ask(url, encoder, price_input=2.0)
    assert values(judged) == {"cats": 0.5}
    prompt, reply, complaint = requests[1]["messages"]
    assert (prompt, reply["content"]) == (requests[0]["messages"][0], '{"statements": 7}')
    assert "statements: Input should be a valid list" in complaint["content"]
    assert (judged.calls, judged.input_tokens, judged.output_tokens) == (3, 3000, 300)
    assert judged.cost == pytest.approx(0.006)


def statement(verdict) -> str:
    return json.dumps({"statements": [{"statement": "s", "reason": "r", "verdict": verdict}]})


def attribution(verdict) -> str:
    return json.dumps({"classifications": [{"statement": "s", "reason": "r", "attributed": verdict}]})


@pytest.mark.parametrize(
    ("metric", "name", "text", "reason"),
    [
        (
            "answer_correctness",
            "StatementGeneratorOutput",
            '{"statements": []}',
            "no statements",
        ),  # RAGAS: .75
        ("answer_correctness", "ClassificationWithReason", '{"TP": [], "FP": [], "FN": []}', "no statements"),  # .75
        ("faithfulness", "NLIStatementOutput", '{"statements": []}', "no statements"),
        ("faithfulness", "NLIStatementOutput", statement(-1), "malformed answer"),  # RAGAS: 1
        ("llm_context_recall", "ContextRecallOutput", '{"classifications": []}', "no statements"),
        ("llm_context_recall", "ContextRecallOutput", attribution(5), "malformed answer"),  # RAGAS: 5
        ("llm_context_precision", "ContextPrecisionOutput", '{"reason": "", "verdict": 9}', "malformed answer"),
        ("answer_relevancy", "AnswerRelevanceOutput", '{"question": "", "noncommittal": 0}', "malformed answer"),  # 0
        ("answer_relevancy", "AnswerRelevanceOutput", '{"question": "?", "noncommittal": 3}', "malformed answer"),
    ],
)
def test_a_reply_that_says_nothing_is_no_score(serve, encoder, metric: str, name: str, text: str, reason: str):
    judged = ask(serve(form(name, says(text)))[0], encoder, metrics=(metric,))
    assert (values(judged), reasons(judged)) == ({"cats": None}, [reason])


def test_a_blank_question_for_an_evasive_answer_does_not_break_ragas(serve, encoder):
    judged = ask(serve(says('{"question": " ", "noncommittal": 1}'))[0], encoder, metrics=("answer_relevancy",))
    assert values(judged) == {"cats": 0.0}


def test_a_score_that_is_no_number_is_missing(serve, encoder):
    overflown = np.full(32, np.nan, dtype=np.float32).tobytes()
    cache.put("embeddings", {sha256_text(encoder.key, "query", CATS.question): overflown})
    judged = ask(serve(ok)[0], encoder, CATS, BIRDS, metrics=("answer_relevancy",))
    assert (values(judged)["cats"], reasons(judged), coverage(judged)) == (None, ["not a number", ""], (1, 2))


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "Here it is: {} I hope it helps.", "<think>{{</think>{}"])
def test_text_around_the_json_is_left_out(serve, encoder, around: str):
    url, requests = serve(lambda h, n, body: send(h, 200, chat(around.format(json.dumps(filled(body))))))
    assert values(ask(url, encoder)) == {"cats": 0.5}
    assert len(requests) == 2


def test_a_second_judging_sends_no_request_and_costs_nothing(serve, encoder):
    url, requests = serve(ok)
    before = ask(url, encoder, CATS, BIRDS, metrics=JUDGE_METRICS, price_input=1.0)
    asked = len(requests)
    again = ask(url, encoder, CATS, BIRDS, metrics=JUDGE_METRICS, price_input=1.0)
    pd.testing.assert_frame_equal(before.scores, again.scores)
    assert (before.calls, before.cost) == (asked, pytest.approx(asked / 1000))
    assert len(requests) == asked
    assert (again.calls, again.input_tokens, again.output_tokens, again.cost) == (0, 0, 0, 0)
    assert again.cached_calls == before.calls + before.cached_calls


@pytest.mark.parametrize("change", [{"model": "other"}, {"max_tokens": 5}])
def test_another_model_or_limit_is_asked_anew(serve, encoder, change: dict):
    url, requests = serve(ok)
    ask(url, encoder)
    ask(url, encoder, **change)
    assert len(requests) == 4


def test_two_metrics_that_ask_the_same_pay_once(serve, encoder):
    url, requests = serve(ok)
    ask(url, encoder, metrics=("faithfulness", "answer_correctness"), concurrency=8)
    forms = sorted(form_of(request) for request in requests)
    expected = ["ClassificationWithReason", "NLIStatementOutput", *["StatementGeneratorOutput"] * 2]
    assert forms == expected  # statements of the answer, and of the reference


def strict_then_harsh(handler, number, body):
    """Find all statements unsupported unless asked without randomness."""
    if body["temperature"] == 0 or form_of(body) != "NLIStatementOutput":
        ok(handler, number, body)
    else:
        statements = [{**one, "verdict": 0} for one in filled(body)["statements"]]
        send(handler, 200, chat(json.dumps({"statements": statements})))


def test_repeats_are_asked_apart_and_their_spread_is_that_between_them(serve, encoder):
    url, requests = serve(strict_then_harsh)
    judged = ask(url, encoder, CATS, BIRDS, repeats=2)
    assert judged.scores[["query_id", "repeat", "value"]].values.tolist() == [
        ["cats", 0, 0.5], ["birds", 0, 1.0], ["cats", 1, 0.0], ["birds", 1, 0.0],
    ]  # fmt: skip
    assert combined(judged).values.tolist() == [["faithfulness", "cats", 0.25], ["faithfulness", "birds", 0.5]]
    [row] = coverage_table(judged).itertuples()
    assert (row.mean, row.scored, row.n) == (0.375, 2, 2)
    assert row.spread == pytest.approx((np.std([0.5, 0], ddof=1) + np.std([1, 0], ddof=1)) / 2)
    assert sorted(request["temperature"] for request in requests) == [0] * 4 + [0.3] * 4


def test_more_repeats_pay_only_for_the_new_ones(serve, encoder):
    url, requests = serve(ok)
    ask(url, encoder)
    assert ask(url, encoder, repeats=3).calls == 4
    assert len(requests) == 6


def test_a_repeat_that_failed_is_left_out_of_the_mean_and_counted(serve, encoder):
    def second_fails(handler, number, body):
        (ok if body["temperature"] == 0 else refuse(500))(handler, number, body)

    judged = ask(serve(second_fails)[0], encoder, repeats=3)
    assert combined(judged).values.tolist() == [["faithfulness", "cats", 0.5]]
    [row] = coverage_table(judged).itertuples()
    assert (row.scored, row.n, row.reasons) == (1, 1, "failed call 2")
    assert np.isnan(row.spread)


def test_answer_relevancy_asks_for_three_questions(serve, encoder):
    url, requests = serve(ok)
    ask(url, encoder, metrics=("answer_relevancy",))
    assert [request["temperature"] for request in requests] == [0, 0.3, 0.3]
    assert len({request["messages"][0]["content"] for request in requests}) == 1


def test_at_the_cap_nothing_more_is_asked_and_a_later_run_pays_the_rest(serve, encoder):
    samples = [
        Sample(str(i), f"What does bird {i} do?", f"Bird {i} flies.", (f"Bird {i} flies.",), None) for i in range(5)
    ]
    url, requests = serve(ok)
    prices = {"price_input": 1.0, "price_output": 10.0, "concurrency": 1}  # 0.002 a call, two calls a sample
    capped = ask(url, encoder, *samples, max_cost=0.009, **prices)
    assert values(capped) == {"0": 1, "1": 1, "2": None, "3": None, "4": None}
    assert reasons(capped) == ["", "", *["spending cap"] * 3]
    assert (len(requests), capped.calls) == (5, 5)
    assert capped.cost == pytest.approx(0.01)
    rest = ask(url, encoder, *samples, **prices)
    assert set(values(rest).values()) == {1}
    assert (len(requests), rest.calls, rest.cached_calls) == (10, 5, 5)


def test_a_cap_leaves_every_question_judged_once_before_any_is_judged_twice(serve, encoder):
    prices = {"price_input": 1.0, "concurrency": 1}  # 0.001 a call, two calls a judgement
    judged = ask(serve(ok)[0], encoder, *birds(3), repeats=2, max_cost=0.006, **prices)
    assert judged.scores.groupby("repeat")["value"].count().to_dict() == {0: 3, 1: 0}
    assert coverage(judged) == (3, 3)


def test_beyond_the_cap_go_only_the_calls_that_were_on_their_way(serve, encoder):
    samples = [
        Sample(str(i), f"What does bird {i} do?", f"Bird {i} flies.", (f"Bird {i} flies.",), None) for i in range(9)
    ]
    url, requests = serve(ok)
    ask(url, encoder, *samples, max_cost=0.0001, price_input=1.0, concurrency=3)
    assert 1 <= len(requests) <= 3


def test_a_server_that_counts_no_tokens_is_charged_by_an_estimate(serve, encoder):
    def uncounted(handler, number, body):
        reply = json.loads(chat(json.dumps(filled(body))))
        send(handler, 200, json.dumps({name: part for name, part in reply.items() if name != "usage"}).encode())

    url, requests = serve(uncounted)
    judged = ask(url, encoder)
    characters = sum(len(request["messages"][0]["content"]) for request in requests)
    assert judged.input_tokens == pytest.approx(characters / 3, rel=0.01)
    assert judged.output_tokens > 10


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_cost": 1.0}, "judge_price_input"),
        ({"model": ""}, "judge_model"),
        ({"repeats": 0}, "judge_repeats"),
        ({"concurrency": 0}, "judge_concurrency"),
    ],
)
def test_a_setting_without_sense_is_an_error_that_names_it(serve, encoder, settings: dict, named: str):
    url, requests = serve(ok)
    with pytest.raises(RagbenchError, match=named):
        ask(url, encoder, **settings)
    assert requests == []


def test_an_unknown_metric_is_an_error_that_names_the_known(serve, encoder):
    with pytest.raises(RagbenchError, match=r"'context_precision'.*llm_context_precision"):
        ask(serve(ok)[0], encoder, metrics=("context_precision",))


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422])
def test_a_server_that_refuses_everything_is_an_error_without_the_key(serve, encoder, monkeypatch, status: int):
    monkeypatch.setenv("RAGBENCH_JUDGE_API_KEY", SECRET)
    url, _ = serve(refuse(status, f"the server's own words about {SECRET}"))
    with pytest.raises(RagbenchError, match="the server's own words") as caught:
        ask(url, encoder, CATS, BIRDS, max_retries=2)
    assert all(part in str(caught.value) for part in (url, str(status), "RAGBENCH_JUDGE_API_KEY"))
    assert SECRET not in "".join(traceback.format_exception(caught.value))  # a notebook shows causes, too


def test_an_empty_account_is_an_error_and_not_a_call_that_failed(serve, encoder):
    url, _ = serve(refuse(429, "You exceeded your current quota", code="insufficient_quota"))
    with pytest.raises(RagbenchError, match="current quota"):
        ask(url, encoder)


def test_replies_on_their_way_when_another_call_is_refused_are_kept(serve, encoder):
    refused = threading.Event()

    def one_refused(handler, number, body):
        refuse(401)(handler, number, body)
        refused.set()

    def slow(handler, number, body):
        refused.wait(10)
        time.sleep(0.2)
        ok(handler, number, body)

    url, requests = serve(about_horses(one_refused, slow))
    with pytest.raises(RagbenchError, match="401"):
        ask(url, encoder, CATS, BAD)
    assert len(requests) == 2
    ask(url, encoder, CATS)
    assert len(requests) == 3  # the verdicts; the statements were there


def test_a_server_that_is_not_there_is_an_error_that_names_the_parameter(encoder, free_port: int):
    with pytest.raises(RagbenchError, match=rf"127\.0\.0\.1:{free_port}.*judge_endpoint"):
        ask(f"http://127.0.0.1:{free_port}/v1", encoder)


@pytest.mark.parametrize("url", ["", "127.0.0.1:1/v1", "no-scheme/v1", "http://", "ftp://127.0.0.1/v1"])
def test_an_address_that_is_none_is_an_error_that_names_the_parameter(encoder, url: str):
    with pytest.raises(RagbenchError, match="judge_endpoint"):
        ask(url, encoder)


@pytest.mark.parametrize(
    ("unknown", "words"),
    [
        (["response_format"], "Unsupported parameter: '{}'."),
        (["response_format"], "json_schema is not available."),
        (["max_tokens", "temperature"], "Unsupported parameter: '{}'."),
    ],
)
def test_a_server_that_does_not_know_a_setting_is_asked_without_it(serve, encoder, unknown: list[str], words: str):
    def picky(handler, number, body):
        known = next((name for name in unknown if name in body), None)
        (refuse(400, words.format(known)) if known else ok)(handler, number, body)

    url, requests = serve(picky)
    judged = ask(url, encoder, CATS, BIRDS, concurrency=1)
    assert values(judged) == {"cats": 0.5, "birds": 1.0}
    assert len(requests) == 4 + len(unknown)  # found out once
    assert requests[-1].get("max_completion_tokens") == (2048 if "max_tokens" in unknown else None)
    assert ask(url + "/", encoder, CATS, BIRDS).calls == 0


def test_open_calls_are_as_many_as_allowed_and_no_more(serve, encoder):
    together, lock, state = threading.Barrier(3), threading.Lock(), {"open": 0, "peak": 0}

    def counted(handler, number, body):
        with lock:
            state["open"] += 1
            state["peak"] = max(state["peak"], state["open"])
        together.wait(10)  # three must be open before any is answered
        time.sleep(0.05)
        with lock:
            state["open"] -= 1
        ok(handler, number, body)

    url, requests = serve(counted)
    samples = [
        Sample(str(i), f"What does bird {i} do?", f"Bird {i} flies.", (f"Bird {i} flies.",), None) for i in range(6)
    ]
    judged = ask(url, encoder, *samples, concurrency=3)
    assert (state["peak"], len(requests), coverage(judged)) == (3, 12, (6, 6))


@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        ({"RAGBENCH_JUDGE_API_KEY": SECRET, "RAGBENCH_API_KEY": "b", "OPENAI_API_KEY": "c"}, SECRET),
        ({"RAGBENCH_API_KEY": SECRET, "OPENAI_API_KEY": "other"}, SECRET),
        ({"RAGBENCH_JUDGE_API_KEY": "", "OPENAI_API_KEY": SECRET}, SECRET),
        ({}, "none"),
    ],
)
def test_the_key_of_the_environment_is_sent_and_kept_nowhere(
    serve, encoder, own_cache, monkeypatch, capfd, keys: dict[str, str], sent: str
):
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    url, requests = serve(ok)
    judged = ask(url, encoder)
    assert {request["key"] for request in requests} == {f"Bearer {sent}"}
    written = b"".join(path.read_bytes() for path in own_cache.rglob("*") if path.is_file())
    assert b"Cats sleep" in written and SECRET.encode() not in written
    assert SECRET not in repr(judged) + "".join(capfd.readouterr())


def test_it_runs_where_an_event_loop_is_running_as_in_a_notebook(serve, encoder):
    async def cell() -> Judgement:
        return ask(url, encoder)

    url, _ = serve(ok)
    assert values(asyncio.run(cell())) == {"cats": 0.5}


PROGRAM = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
from ragbench.evaluation.judge import Judge, Sample, judge
url, samples = json.loads(sys.argv[1])
judge([Sample(*sample) for sample in samples], Judge("some-model", url, concurrency=2), None, ("faithfulness",))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_judging_that_is_ended_in_the_middle_resumes_without_paying_twice(serve, encoder, end: signal.Signals):
    samples = birds(8)
    resumed, held = threading.Event(), threading.Semaphore(0)

    def seven_then_silence(handler, number, body):
        if number >= 7 and not resumed.is_set():
            held.release()
            resumed.wait(60)
            handler.connection.close()
        else:
            ok(handler, number, body)

    url, requests = serve(seven_then_silence)
    given = [[s.query_id, s.question, s.answer, s.contexts, s.reference] for s in samples]
    command = [sys.executable, "-c", PROGRAM, json.dumps([url, given])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ}) as process:
        try:
            # Both places wait for a call, so that all seven replies have been taken in.
            assert held.acquire(timeout=90) and held.acquire(timeout=90)
            process.send_signal(end)
            process.communicate(timeout=90)
        finally:
            process.kill()
    assert process.returncode != 0
    resumed.set()
    judged = ask(url, encoder, *samples)
    assert coverage(judged) == (8, 8)
    assert (judged.calls, judged.cached_calls) == (9, 7)
    paid = [request["messages"][0]["content"] for request in [*requests[:7], *requests[9:]]]
    assert len(paid) == len(set(paid)) == 16
