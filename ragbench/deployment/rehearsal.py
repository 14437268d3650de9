"""A service to try things with: in this process, on a free port of this machine, asked by clients as in earnest."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import openai
import uvicorn

from ragbench.collection.schema import Collection, corpus_from_rows
from ragbench.deployment.answerer import Answerer
from ragbench.deployment.drift import FEWEST
from ragbench.deployment.service import make_app
from ragbench.errors import RagbenchError

_PATIENCE = 30.0


@contextmanager
def serving(answerer: Answerer) -> Iterator[str]:
    """Serve in a thread; yield the base URL for OpenAI's client. The log is closed at the end.

    Raises:
        RagbenchError: the service did not start.
    """
    server = uvicorn.Server(
        uvicorn.Config(make_app(answerer, None), host="127.0.0.1", port=0, log_level="warning", lifespan="on")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + _PATIENCE
    while not server.started:
        if not thread.is_alive() or time.monotonic() > until:
            raise RagbenchError("The service did not start; see the messages above.")
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
        while answerer.unestimated and thread.is_alive():
            time.sleep(0.1)
    finally:
        server.should_exit = True
        thread.join()


def replay(url: str, questions: Sequence[str], clients: int = 8) -> list[str]:
    """Ask all questions through OpenAI's client, so many at a time; return the answers."""
    with openai.OpenAI(base_url=url, api_key="none") as client, ThreadPoolExecutor(clients) as pool:

        def ask(question: str) -> str:
            reply = client.chat.completions.create(model="", messages=[{"role": "user", "content": question}])
            return reply.choices[0].message.content or ""

        return list(pool.map(ask, questions))


def day(collection: Collection, size: int, seed: int) -> dict[str, list[str]]:
    """Return the questions of three periods, none twice: two of the usual kind, and one of the out-of-domain split.

    Where that split is missing or too small, the third is of the usual kind too.

    Raises:
        RagbenchError: the collection has too few questions, or `size` is below what a comparison needs.
    """
    if size < FEWEST:
        raise RagbenchError(f"deployment_questions must be at least {FEWEST}, found {size}.")
    rng = np.random.default_rng(seed)
    splits = {name: [collection.queries[each].text for each in qrels] for name, qrels in collection.qrels.items()}
    other = splits.pop("ood", [])
    usual = [text for split in ("test", "dev", "train") for text in rng.permutation(splits.get(split, [])).tolist()]
    usual = usual[: max(3 * size, len(splits.get("test", [])))]
    rng.shuffle(usual)
    third = rng.permutation(other).tolist()[:size] if len(other) >= size else usual[2 * size : 3 * size]
    if len(usual) < 2 * size or len(third) < size:
        raise RagbenchError(
            f"The collection '{collection.name}' has {len(usual)} usual questions and {len(other)} out of domain: too "
            f"few for three periods of {size}. Lower deployment_questions (to {FEWEST} at least)."
        )
    return {"usual": usual[:size], "more of the same": usual[size : 2 * size], "other": third}


def edited(collection: Collection, share: float) -> Collection:
    """Return a collection in which a share of the passages, evenly spaced, is as after a new release.

    In turn one is gone, one has a new text, and one is there under another name too.
    """
    step = max(1, round(1 / share))
    rows: list[tuple[str, str, str, str]] = []
    for place, row in enumerate(collection.corpus):
        name, title, text, document = row["_id"], row["title"], row["text"], row["document_id"]
        kind = (place // step) % 3 if place % step == 0 else None
        if kind == 0:
            continue
        rows.append((name, title, f"Deprecated since version 4.0; superseded. {text}" if kind == 1 else text, document))
        if kind == 2:
            rows.append((f"{name}@4.0", f"{title} (version 4.0)", f"Rewritten in release 4.0. {text}", document))
    return Collection(f"{collection.name}, edited", corpus_from_rows(rows), {}, {})
