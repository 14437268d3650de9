"""The service under load: many clients at once against one request at a time, the same questions.

The bundle is packed from the base system (all-MiniLM-L6-v2, SmolLM2-135M-Instruct) over the embedded collection, twice,
as two versions. The clients are OpenAI's, in threads of this process; the service runs in a process of its own. The
load comes several times, to see whether memory goes on growing. In the last the version in use is rolled back, and the
seconds count until the earlier one answers.
"""

import argparse
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from harness import arguments, finish, result

from ragbench.collection.load import fingerprint, load_collection
from ragbench.deployment.bundle import Contents, pack
from ragbench.deployment.query_log import read_log
from ragbench.deployment.store import add, promote, roll_back
from ragbench.evaluation.evaluate import System, choose_questions
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever
from ragbench.workbench.stages import library_versions


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--questions", type=int, default=200, help="asked under load; a tenth of them one at a time")
    parser.add_argument("--loads", type=int, default=4, help="how often; the last is with a rollback")


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    if chosen.loads < 2:
        raise SystemExit("--loads must be at least 2: the last is with a rollback, and memory is compared before it")
    clients, count = (8, 16) if chosen.quick else (chosen.clients, chosen.questions)
    data = load_collection("pydocs")
    questions = [query.text for query in choose_questions(data, ["train"], count, seed=13)["train"]]
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "bundles"
        contents = Contents(
            System("base", Retriever(), Generator(max_context_tokens=512, max_new_tokens=48)), False, False, data,
            fingerprint(data), {}, [], "benchmark", library_versions(),
        )  # fmt: skip
        for _ in range(2):
            version, _ = add(store, "base", lambda folder: pack(contents, folder))
            promote(store, "base", version, "benchmark")
        log = Path(scratch) / "queries.sqlite"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        ragbench = str(Path(sys.executable).with_name("ragbench"))
        program = [ragbench, "serve", "base", "--store", str(store), "--port", str(port), "--log", str(log)]
        process = subprocess.Popen([*program, "--no-grounding", "--waiting", "64"], env={**os.environ})
        try:
            _wait(port, process)
            rows, seconds = _measure(port, process, questions, clients, chosen.loads, store)
        finally:
            process.terminate()
            process.wait(timeout=60)
        logged = Counter(entry.question for entry in read_log(log))
    answered = sum(row["answered"] for row in rows)
    ratio = rows[1]["questions a second"] / rows[0]["questions a second"]
    finish(
        Path(__file__).stem,
        chosen,
        rows,
        [
            result("times as many answers a second as one at a time", ratio, 2.0, float.__ge__),
            result("answers in the log over answers told", sum(logged.values()) / answered, 1.0, float.__eq__),
            result("statuses other than 200 and 429", float(sum(row["other"] for row in rows)), 0.0, float.__eq__),
            result("growth of memory in the last load but one (GiB)", rows[-2]["growth GiB"], 0.1, float.__le__),
            result("seconds of a rollback under load", seconds, 5.0, float.__lt__),
        ],
    )


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    while True:
        if process.poll() is not None:
            raise SystemExit("the service did not start")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)


def _measure(
    port: int, process: subprocess.Popen[bytes], questions: list[str], clients: int, loads: int, store: Path
) -> tuple[list[dict[str, Any]], float]:
    """Return a row a way of asking, and the seconds of a rollback."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)
    refused: Counter[int] = Counter()
    models: set[str] = set()

    def ask(question: str) -> None:
        while True:
            try:
                reply = client.chat.completions.create(model="", messages=[{"role": "user", "content": question}])
                models.add(reply.model)
                return
            except openai.APIStatusError as error:
                refused[error.status_code] += 1
                if error.status_code != 429:
                    return
                time.sleep(0.5)

    ask(questions[0])  # warms up
    memory = psutil.Process(process.pid)
    rows, seconds = [], math.inf
    alone = questions[: max(4, len(questions) // 10)]
    for load in range(loads + 1):
        variant, width = ("one at a time", 1) if load == 0 else (f"load {load}", clients)
        asked = questions if load else alone
        refused.clear()
        before, started = memory.memory_info().rss / 2**30, time.perf_counter()
        with ThreadPoolExecutor(width) as pool:
            told = [pool.submit(ask, question) for question in asked]
            if load == loads:
                wait(told[: len(told) // 4])
                decided = time.perf_counter()
                roll_back(store, "base")
                while httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60).json()["bundle"] != "base/0001":
                    time.sleep(0.05)
                seconds = time.perf_counter() - decided
        if missing := [each for each in told if each.exception()]:
            raise SystemExit(f"{len(missing)} questions failed: {missing[0].exception()}")
        spent = time.perf_counter() - started
        other = sum(count for status, count in refused.items() if status != 429)
        held = memory.memory_info().rss / 2**30
        rows.append(
            {
                "variant": variant, "clients": width, "answered": len(asked) - other, "seconds": spent,
                "questions a second": len(asked) / spent, "refused with 429": refused[429], "other": other,
                "memory GiB": held, "growth GiB": held - before,
            }
        )  # fmt: skip
    rows[0]["answered"] += 1  # the one that warmed up
    if models != {"base/0001", "base/0002"}:
        raise SystemExit(f"answers came from {sorted(models)}, not from both versions")
    return rows, seconds


if __name__ == "__main__":
    main()
