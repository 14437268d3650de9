"""The service under load: many clients at once against one request at a time, the same questions.

The bundle is packed from the base system (all-MiniLM-L6-v2, SmolLM2-135M-Instruct) over the embedded collection. The
clients are OpenAI's, in threads of this process; the service runs in a process of its own.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from harness import arguments, finish, result

from ragbench.collection.load import fingerprint, load_collection
from ragbench.deployment.bundle import Contents, pack
from ragbench.deployment.query_log import read_log
from ragbench.evaluation.evaluate import System, choose_questions
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever
from ragbench.workbench.stages import library_versions


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--questions", type=int, default=200, help="asked under load; a tenth of them one at a time")


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    clients, count = (8, 16) if chosen.quick else (chosen.clients, chosen.questions)
    data = load_collection("pydocs")
    questions = [query.text for query in choose_questions(data, ["train"], count, seed=13)["train"]]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base" / "0001"
        generator = Generator(max_context_tokens=512, max_new_tokens=48)
        pack(
            Contents(
                System("base", Retriever(), generator), False, False, data, fingerprint(data), {}, [], "benchmark",
                library_versions(),
            ),
            folder,
        )  # fmt: skip
        log = Path(scratch) / "queries.sqlite"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        ragbench = str(Path(sys.executable).with_name("ragbench"))
        program = [ragbench, "serve", str(folder), "--port", str(port), "--log", str(log)]
        process = subprocess.Popen([*program, "--no-grounding", "--waiting", "64"], env={**os.environ})
        try:
            _wait(port, process)
            rows = _measure(port, process, questions, clients)
        finally:
            process.terminate()
            process.wait(timeout=60)
        logged = Counter(entry.question for entry in read_log(log))
    answered = rows[0]["answered"] + rows[1]["answered"]
    ratio = rows[1]["questions a second"] / rows[0]["questions a second"]
    finish(
        Path(__file__).stem,
        chosen,
        rows,
        [
            result("times as many answers a second as one at a time", ratio, 2.0, float.__ge__),
            result("answers in the log over answers told", sum(logged.values()) / answered, 1.0, float.__eq__),
            result("statuses other than 200 and 429", float(rows[1]["other"]), 0.0, float.__eq__),
            result("growth of memory under load (GiB)", rows[1]["growth GiB"], 1.0, float.__le__),
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


def _measure(port: int, process: subprocess.Popen[bytes], questions: list[str], clients: int) -> list[dict[str, Any]]:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)
    refused: Counter[int] = Counter()

    def ask(question: str) -> None:
        while True:
            try:
                reply = client.chat.completions.create(model="", messages=[{"role": "user", "content": question}])
                assert re.match(r"base/", reply.model)
                return
            except openai.APIStatusError as error:
                refused[error.status_code] += 1
                if error.status_code != 429:
                    return
                time.sleep(0.5)

    ask(questions[0])  # warms up
    memory = psutil.Process(process.pid)
    rows = []
    alone = questions[: max(4, len(questions) // 10)]
    for variant, width, asked in (("one at a time", 1, alone), ("load", clients, questions)):
        refused.clear()
        before, started = memory.memory_info().rss, time.perf_counter()
        with ThreadPoolExecutor(width) as pool:
            list(pool.map(ask, asked))
        seconds = time.perf_counter() - started
        other = sum(count for status, count in refused.items() if status != 429)
        rows.append(
            {
                "variant": variant, "clients": width, "answered": len(asked) - other, "seconds": seconds,
                "questions a second": len(asked) / seconds, "refused with 429": refused[429], "other": other,
                "growth GiB": (memory.memory_info().rss - before) / 2**30,
            }
        )  # fmt: skip
    rows[0]["answered"] += 1  # the one that warmed up
    return rows


if __name__ == "__main__":
    main()
