"""The judge against a real small model behind HTTP: poor verdicts, but nothing breaks and the coverage says so."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

from ragbench.evaluation.judge import Judge, Sample, combined, coverage_table, judge
from ragbench.generation.local import complete
from ragbench.retrieval.encoder import open_encoder

MODEL = "SmolLM2-135M-Instruct"
METRICS = ("answer_relevancy",)  # the shortest prompts
REASONS = {"malformed answer", "cut answer", "no statements"}
SAMPLES = [
    Sample("cats", "What do cats do all day?", "Cats sleep all day.", ("Cats sleep all day.",), "They sleep."),
    Sample("dogs", "When do dogs bark?", "Dogs bark at night.", ("Fish swim.",), None),
]


@pytest.fixture
def served(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[dict]]]:
    """Serve the packaged model as OpenAI's servers do; give the base URL and the requests that came."""
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    requests: list[dict] = []
    one_at_a_time = threading.Lock()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with one_at_a_time:
            requests.append(body)
            settings = {"model": MODEL, "max_new_tokens": body["max_tokens"], "device": "cpu", "dtype": "float32"}
            [made] = complete([body["messages"]], **settings)
        message = {"role": "assistant", "content": made.text}
        reply = {
            "id": "1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": made.finish_reason}],
            "usage": {"prompt_tokens": made.prompt_tokens, "completion_tokens": made.completion_tokens},
        }
        data = json.dumps(reply).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    handler = type("Handler", (BaseHTTPRequestHandler,), {"do_POST": answer, "log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", requests
    server.shutdown()
    server.server_close()


def test_a_real_small_model_breaks_nothing_and_the_coverage_says_what_it_could_not_judge(served, tiny_encoder):
    url, requests = served
    encoder = open_encoder(str(tiny_encoder), device="cpu", dtype="float32")
    small = Judge(MODEL, url, concurrency=2, timeout=300, max_retries=0, max_tokens=40, price_input=1.0)
    judged = judge(SAMPLES, small, encoder, METRICS)
    assert list(zip(judged.scores["query_id"], judged.scores["metric"], strict=True)) == [
        (sample.query_id, metric) for sample in SAMPLES for metric in METRICS
    ]
    scored = judged.scores["value"].notna()
    assert set(judged.scores["reason"][~scored]) <= REASONS
    assert set(judged.scores["reason"][scored]) <= {""}
    assert judged.scores["value"][scored].between(-1, 1).all()
    table = coverage_table(judged).set_index("metric")
    assert table["n"].tolist() == [2]
    assert table["scored"].to_dict() == combined(judged).groupby("metric")["value"].count().to_dict()
    assert table["reasons"].str.len().gt(0).tolist() == (table["scored"] < table["n"]).tolist()
    assert (judged.calls, judged.cost) == (len(requests), pytest.approx(judged.input_tokens / 1e6))
    assert judged.input_tokens > 100 * judged.calls

    before = len(requests)
    again = judge(SAMPLES, small, encoder, METRICS)
    pd.testing.assert_frame_equal(again.scores, judged.scores)
    assert (len(requests), again.calls, again.cost) == (before, 0, 0)
