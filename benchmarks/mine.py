"""Mining hard negatives: ragbench against the library's own `mine_hard_negatives`, and its memory on a large corpus.

The same questions of the train split over the same corpus, the same number of negatives for each pair, the same rule
for what scores like a positive. A negative is valid if it is no labelled answer of its question and has not the text of
one. `cold` starts from nothing, `warm` with the embeddings cached (the library's in its own cache folder). Both
compute as they do by default: ragbench in bfloat16 where that is faster, the library in float32.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from harness import arguments, finish, median_of, result
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from ragbench.collection.load import load_collection
from ragbench.collection.schema import Collection, Query, corpus_from_rows, passage_texts
from ragbench.models import resolve_model
from ragbench.retrieval.encoder import open_encoder
from ragbench.training.candidates import Mining
from ragbench.training.negatives import mine
from ragbench.training.pairs import Pair, labelled_pairs

MODEL = "all-MiniLM-L6-v2"
WANTED, SHARE = 4, 0.95
LARGE = 100_000


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("collection", nargs="?", default="pydocs", help="a collection folder, or pydocs")
    parser.add_argument("--memory", action="store_true", help="also mine over 100,000 made-up passages")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)


def ours(data: Collection, pairs: list[Pair]) -> set[tuple[str, str]]:
    mined = mine(data, pairs, open_encoder(MODEL), Mining(per_positive=WANTED, share=SHARE))
    texts = passage_texts(data)
    return {
        (pair.question, texts[int(row)].as_py())
        for pair, rows in zip(pairs, mined.rows, strict=True)
        for row in rows
        if row >= 0
    }


def theirs(data: Collection, pairs: list[Pair], cache: str) -> set[tuple[str, str]]:
    mined = mine_hard_negatives(
        Dataset.from_dict({"anchor": [p.question for p in pairs], "positive": [p.positive for p in pairs]}),
        SentenceTransformer(str(resolve_model(MODEL)), device="cpu"),
        corpus=passage_texts(data).to_pylist(),
        num_negatives=WANTED,
        relative_margin=1 - SHARE,
        cache_folder=cache,
        verbose=False,
    )
    return set(zip(mined["anchor"], mined["negative"], strict=True))


def valid(found: set[tuple[str, str]], pairs: list[Pair]) -> int:
    answers: dict[str, set[str]] = {}
    for pair in pairs:
        answers.setdefault(pair.question, set()).add(" ".join(pair.positive.lower().split()))
    return sum(" ".join(text.lower().split()) not in answers[question] for question, text in found)


def timed(data: Collection, pairs: list[Pair], repetition: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as library:
        os.environ["RAGBENCH_CACHE"] = cache
        for state in ("cold", "warm"):
            for name in ("library", "ragbench"):
                started = time.perf_counter()
                found = ours(data, pairs) if name == "ragbench" else theirs(data, pairs, library)
                seconds = time.perf_counter() - started
                row = {"variant": f"{name}, {state}", "repetition": repetition, "seconds": seconds}
                rows.append({**row, "valid": valid(found, pairs)})
                print(rows[-1], flush=True)
    return rows


def peak_of_a_large_corpus() -> None:
    """Mine over a large made-up corpus in a process of its own; print its peak in GiB."""
    words = ["".join(part) for part in zip("bdgklmnprst" * 40, "aeiou" * 88, "klmnprstbdg" * 40, strict=True)]
    rows = (
        (f"p{n}", "", " ".join(words[(n * k) % len(words)] for k in range(1, 4 + n % 9)), f"d{n}") for n in range(LARGE)
    )
    queries = {
        f"q{n}": Query(f"q{n}", " ".join(words[(n * 37 * k) % len(words)] for k in (1, 2, 3))) for n in range(200)
    }
    qrels = {"train": {name: {f"p{number}": 1} for number, name in enumerate(queries)}}
    data = Collection("large", corpus_from_rows(rows), queries, qrels)
    mine(data, labelled_pairs(data), open_encoder(MODEL), Mining(per_positive=WANTED))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    if chosen.peak:
        peak_of_a_large_corpus()
        return
    data = load_collection(chosen.collection)
    pairs = labelled_pairs(data)[: 40 if chosen.quick else None]
    rows = [row for repetition in range(1 if chosen.quick else 3) for row in timed(data, pairs, repetition)]
    more = median_of(rows, "ragbench, cold", "valid") / median_of(rows, "library, cold", "valid")
    results = [
        result("valid negatives over the library's", more, 1.0, float.__ge__),
        result(
            "cold wall time over the library's",
            median_of(rows, "ragbench, cold", "seconds") / median_of(rows, "library, cold", "seconds"),
            0.5,
            float.__le__,
        ),
        result(
            "warm wall time over the library's cold",
            median_of(rows, "ragbench, warm", "seconds") / median_of(rows, "library, cold", "seconds"),
            0.1,
            float.__le__,
        ),
    ]
    if chosen.memory:
        with tempfile.TemporaryDirectory() as cache:
            done = subprocess.run(
                [sys.executable, __file__, "--peak"],
                env={**os.environ, "RAGBENCH_CACHE": cache},
                capture_output=True,
                text=True,
                check=True,
            )
        peak = float(done.stdout.split()[-1])
        rows.append({"variant": f"{LARGE} passages", "peak_gib": peak})
        results.append(result(f"peak over {LARGE} passages in GiB", peak, 4.0, float.__lt__))
    finish(Path(__file__).stem, chosen, rows, results)


if __name__ == "__main__":
    main()
