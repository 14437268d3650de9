import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from generator_examples import dataset, example
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ragbench import cli
from ragbench.errors import RagbenchError
from ragbench.generation.endpoint import count_tokens
from ragbench.generation.generate import Generator
from ragbench.training import openai_files
from ragbench.training.openai_files import export, read_summary
from ragbench.training.openai_jobs import connect, fetch, status, submit
from ragbench.training.rows import write_parquet

TRAIN = [example(number, f"dad {number} [p{number}]") for number in range(12)]
DEV = [example(number, split="dev") for number in range(20, 23)]
SETTINGS = {"model": "gpt-x", "epochs": 3, "price": 2.0}


class Server:
    """The routes of OpenAI's fine-tuning API. `faults` are what the next requests of a route get before their turn."""

    def __init__(self):
        self.files, self.jobs, self.faults, self.requests = {}, [], {}, []
        self.state = {"status": "validating_files"}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.route(lambda: server.post(self.path, body, self.headers["Content-Type"]))

            def do_GET(self):
                self.route(lambda: server.get(self.path))

            def route(self, reply):
                key = f"{self.command} {self.path.split('?')[0]}"
                server.requests.append(key)
                server.key = self.headers["Authorization"]
                waiting = server.faults.get(key, [])
                fault = waiting.pop(0) if waiting else None
                if fault == "lost":  # the server does what it is asked, and its answer never arrives
                    reply()
                if fault in ("lost", "broken"):
                    self.connection.close()
                    return
                status, answer = (fault, {"error": {"message": f"fault {fault}"}}) if fault else (200, reply())
                if isinstance(fault, tuple):
                    status, answer = fault
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def post(self, path, body, content_type):
        if path == "/v1/files":
            boundary = re.search("boundary=(.*)", content_type)[1]
            parts = body.split(f"--{boundary}".encode())
            [content] = [part.split(b"\r\n\r\n", 1)[1] for part in parts if b"filename=" in part]
            name = f"file-{len(self.files) + 1}"
            self.files[name] = content.removesuffix(b"\r\n")
            return {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "fine-tune",
                    "status": "processed"}  # fmt: skip
        assert path == "/v1/fine_tuning/jobs"
        self.jobs.append({"id": f"ftjob-{len(self.jobs) + 1}", **json.loads(body)})
        return self.shown(self.jobs[-1])

    def get(self, path):
        path = path.split("?")[0]
        if path == "/v1/fine_tuning/jobs":
            return {"object": "list", "data": [self.shown(job) for job in self.jobs], "has_more": False}
        if path.endswith("/events"):
            event = {"object": "fine_tuning.job.event", "created_at": 1, "level": "info"}
            data = [{**event, "id": str(n), "message": text} for n, text in enumerate(["second", "first"])]
            return {"object": "list", "data": data, "has_more": False}
        return self.shown(next(job for job in self.jobs if job["id"] == path.rpartition("/")[2]))

    def shown(self, job):
        filled = {
            "object": "fine_tuning.job", "created_at": 1, "error": None, "fine_tuned_model": None, "finished_at": None,
            "hyperparameters": {"n_epochs": 3}, "organization_id": "o", "result_files": [], "seed": 1,
            "trained_tokens": None, "validation_file": None,
        }  # fmt: skip
        return {**filled, **job, **self.state}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-tests")
    monkeypatch.delenv("RAGBENCH_API_KEY", raising=False)
    running = Server()
    yield running
    running.close()


@pytest.fixture
def run_folder(tmp_path):
    write_parquet(dataset(TRAIN + DEV), tmp_path / "run" / "02_data_prep" / "generator.parquet")
    return tmp_path / "run"


@pytest.fixture
def examples(run_folder):
    return run_folder / "02_data_prep" / "generator.parquet"


@pytest.fixture
def exported(examples, tmp_path):
    export(examples, tmp_path / "out", **SETTINGS)
    return tmp_path / "out"


def write(folder, rows):
    write_parquet(dataset(rows), folder / "generator.parquet")
    return folder / "generator.parquet"


def creations(server):
    return server.requests.count("POST /v1/fine_tuning/jobs")


# Export


def test_the_files_hold_the_examples_as_chats_and_dev_validates(exported):
    lines = {name: (exported / name).read_text().splitlines() for name in ("train.jsonl", "validation.jsonl")}
    assert [json.loads(line) for line in lines["train.jsonl"]] == [
        {"messages": row["prompt"] + row["completion"]} for row in TRAIN
    ]
    assert [json.loads(line) for line in lines["validation.jsonl"]] == [
        {"messages": row["prompt"] + row["completion"]} for row in DEV
    ]


def test_the_cost_is_of_all_tokens_in_every_epoch_from_above(exported):
    summary = read_summary(exported)
    texts = [message["content"] for row in TRAIN for message in row["prompt"] + row["completion"]]
    assert summary.examples == {"train.jsonl": 12, "validation.jsonl": 3}
    assert summary.tokens["train.jsonl"] == sum(count_tokens(text) + 4 for text in texts)
    assert summary.cost == pytest.approx(summary.tokens["train.jsonl"] * 3 * 2 / 1e6, abs=1e-4)
    assert "12 examples" in summary.in_words() and "3 epochs of gpt-x" in summary.in_words()


def test_without_dev_there_is_no_validation_file(tmp_path):
    summary = export(write(tmp_path, TRAIN), tmp_path / "out", **SETTINGS)
    assert list(summary.examples) == ["train.jsonl"] and not (tmp_path / "out" / "validation.jsonl").exists()


MESSAGES = TRAIN[0]["prompt"]
FAULTS = [
    (TRAIN[:9], "9 train examples; the API wants at least 10"),
    ([*TRAIN, TRAIN[3]], "train.jsonl, line 13 would have the same prompt as in line 4"),
    ([*TRAIN, example(0, " ")], "line 13 would have the same prompt|an empty message of the assistant"),
    ([*TRAIN, example(30, " ")], "line 13 would have an empty message of the assistant"),
    ([*TRAIN, example(30, prompt=[{"role": "tool", "content": "x"}])], "line 13 would have the role 'tool'"),
    ([*TRAIN, example(30, prompt=[{"role": "system", "content": "x"}])], "the roles system, assistant in place of"),
    ([*TRAIN, example(30, prompt=[*MESSAGES, {"role": "assistant", "content": "x"}])], "the roles .* in place of"),
    ([*TRAIN, example(2, split="dev")], "validation.jsonl, line 1 would have the prompt of train.jsonl, line 3"),
    ([*TRAIN, example(30, "a" * 200_000)], "about 66689 tokens, more than 65536"),
]


@pytest.mark.parametrize(("rows", "message"), FAULTS)
def test_what_the_api_would_refuse_is_refused_before_anything_is_written(tmp_path, rows, message):
    with pytest.raises(RagbenchError, match=message):
        export(write(tmp_path, rows), tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_file_above_the_limit_is_refused(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(openai_files, "MAX_FILE_BYTES", 1000)
    with pytest.raises(RagbenchError, match=r"train.jsonl would have 0 MiB"):
        export(examples, tmp_path / "out", **SETTINGS)


def test_missing_examples_and_a_used_folder_are_errors(examples, tmp_path):
    with pytest.raises(RagbenchError, match="Run 02_data_prep first"):
        export(tmp_path / "no.parquet", tmp_path / "out", **SETTINGS)
    (tmp_path / "broken.parquet").write_text("no parquet")
    with pytest.raises(RagbenchError, match=r"broken.parquet holds no examples"):
        export(tmp_path / "broken.parquet", tmp_path / "out", **SETTINGS)
    with pytest.raises(RagbenchError, match="not empty; give a new folder"):
        export(examples, tmp_path / "run", **SETTINGS)
    with pytest.raises(RagbenchError, match="at least one epoch"):
        export(examples, tmp_path / "out", model="m", epochs=0, price=1.0)


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1).filter(str.strip))
def test_any_text_comes_back_as_it_was(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    export(write(folder, [*TRAIN, example(30, text)]), folder / "out", **SETTINGS)
    with (folder / "out" / "train.jsonl").open(encoding="utf-8", newline="\n") as file:
        assert json.loads(list(file)[-1])["messages"][-1]["content"] == text


# Jobs


def test_from_export_to_a_params_file(server, exported):
    connection = connect(server.url, wait=0.01)
    state = submit(exported, connection)
    assert server.files == {
        "file-1": (exported / "train.jsonl").read_bytes(), "file-2": (exported / "validation.jsonl").read_bytes()
    }  # fmt: skip
    [job] = server.jobs
    assert (job["training_file"], job["validation_file"], job["model"]) == ("file-1", "file-2", "gpt-x")
    assert job["method"] == {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
    assert state["job"] == "ftjob-1" and server.key == "Bearer sk-of-the-tests"
    with pytest.raises(RagbenchError, match="ftjob-1 is not ready: validating_files"):
        fetch(exported, connection)
    server.state = {"status": "succeeded", "fine_tuned_model": "ft:gpt-x:me", "trained_tokens": 77}
    assert status(exported, connection)["events"] == ["first", "second"]
    params = yaml.safe_load(fetch(exported, connection).read_text())
    assert params == {
        "generator_backend": "endpoint", "generator_endpoint": server.url, "generator_model": "ft:gpt-x:me"
    }  # fmt: skip
    assert Generator(**{name.removeprefix("generator_"): value for name, value in params.items()}).model
    assert not any("sk-of-the-tests" in path.read_text() for path in exported.iterdir())


def test_a_job_is_never_started_twice(server, exported):
    connection = connect(server.url, wait=0.01)
    submit(exported, connection)
    with pytest.raises(RagbenchError, match="job ftjob-1 was started for these files"):
        submit(exported, connection)
    assert creations(server) == 1


@pytest.mark.parametrize("fault", ["lost", 500])
def test_a_job_whose_creation_was_not_confirmed_is_not_created_again_but_found(server, exported, fault):
    connection = connect(server.url, wait=0.01)
    server.faults = {"POST /v1/fine_tuning/jobs": [fault]}
    with pytest.raises(RagbenchError, match="creating the job"):
        submit(exported, connection)
    assert creations(server) == 1
    submit(exported, connection)
    assert len(server.jobs) == 1 and len(server.files) == 2
    assert creations(server) == (1 if fault == "lost" else 2)


def test_too_many_requests_and_broken_connections_are_waited_out(server, exported):
    server.faults = {
        "POST /v1/files": [429, "broken", 503],
        "GET /v1/fine_tuning/jobs": [429, "broken"],
        "POST /v1/fine_tuning/jobs": [429, 429],
    }
    assert submit(exported, connect(server.url, wait=0.01))["job"] == "ftjob-1"
    assert len(server.jobs) == 1


def test_an_interrupted_upload_goes_on_with_what_is_missing(server, exported):
    connection = connect(server.url, wait=0.001)
    server.faults = {"POST /v1/files": [None, *["broken"] * 7]}
    with pytest.raises(RagbenchError, match=r"uploading validation.jsonl"):
        submit(exported, connection)
    submit(exported, connection)
    assert list(server.files) == ["file-1", "file-2"] and len(server.jobs) == 1


def test_an_account_without_money_is_not_asked_again(server, exported):
    empty = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    server.faults = {"POST /v1/files": [(429, empty)]}
    with pytest.raises(RagbenchError, match=r"uploading train.jsonl: HTTP 429.*quota"):
        submit(exported, connect(server.url, wait=0.01))
    assert server.requests == ["POST /v1/files"]


def test_a_refused_request_is_an_error_with_the_servers_words(server, exported):
    server.faults = {"POST /v1/fine_tuning/jobs": [400]}
    with pytest.raises(RagbenchError, match=r"creating the job: HTTP 400: .*fault 400"):
        submit(exported, connect(server.url, wait=0.01))


@pytest.mark.parametrize(("state", "said"), [("failed", "has failed: bad data"), ("cancelled", "was cancelled")])
def test_a_job_that_failed_says_why_and_leaves_no_params_file(server, exported, state, said):
    connection = connect(server.url, wait=0.01)
    submit(exported, connection)
    error = {"code": "x", "message": "bad data", "param": None} if state == "failed" else None
    server.state = {"status": state, "error": error}
    with pytest.raises(RagbenchError, match=f"ftjob-1 {said}"):
        fetch(exported, connection)
    assert not (exported / "params.yaml").exists()
    assert json.loads((exported / "job.json").read_text())["status"] == state


def test_changed_files_are_not_sent(server, exported):
    with (exported / "train.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(RagbenchError, match=r"train.jsonl is not what was exported"):
        submit(exported, connect(server.url))
    assert not server.requests


def test_a_damaged_record_of_a_job_is_an_error_and_not_a_new_job(server, exported):
    (exported / "job.json").write_text("{")
    with pytest.raises(RagbenchError, match=r"job.json cannot be read.*mend it"):
        submit(exported, connect(server.url))
    assert not server.requests


def test_a_folder_without_an_export_or_a_job_is_an_error(server, exported, tmp_path):
    with pytest.raises(RagbenchError, match="no summary of an export"):
        submit(tmp_path, connect(server.url))
    with pytest.raises(RagbenchError, match=r"No job was started.*submit"):
        status(exported, connect(server.url))


def test_without_a_key_nothing_is_asked(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RagbenchError, match="Set OPENAI_API_KEY"):
        connect(server.url)


# The command line


def call(*words):
    return CliRunner().invoke(cli.app, ["openai", *map(str, words)])


def test_the_commands_from_export_to_fetch(server, run_folder, tmp_path):
    out = tmp_path / "out"
    made = call("export", run_folder, out, "--model", "gpt-x", "--price", "2")
    assert made.exit_code == 0 and "12 examples" in made.output and "$" in made.output
    asked = call("submit", out, "--base-url", server.url)
    assert isinstance(asked.exception, RagbenchError) and "at most $" in asked.output and not server.requests
    assert "ftjob-1" in call("submit", out, "--base-url", server.url, "--yes").output
    shown = call("status", out).output
    assert "ftjob-1: validating_files" in shown and shown.index("first") < shown.index("second")
    server.state = {"status": "succeeded", "fine_tuned_model": "ft:1", "trained_tokens": 1234}
    assert "1,234 tokens trained" in call("status", out).output
    assert "params.yaml" in call("fetch", out).output
    assert yaml.safe_load((out / "params.yaml").read_text())["generator_model"] == "ft:1"
