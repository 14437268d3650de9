"""A tiny system to deploy: models of random weights, a corpus of a few lines."""

import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.deployment.bundle import Contents, pack
from ragbench.evaluation.evaluate import System
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever

WORDS = ["bab", "dad", "gag", "kak", "lal", "mam", "nan", "pap", "rar", "sas", "tat", "bib", "did", "gig", "kik", "lil"]
N = len(WORDS)


@pytest.fixture(scope="session")
def garden() -> Collection:
    rows = [(f"p{n}", f"t{n}", f"{word} {WORDS[n - 1]} lol {word}", f"d{n}") for n, word in enumerate(WORDS)]
    queries = {f"q{n}": Query(f"q{n}", f"{word} {WORDS[n - 1]}", f"{word} lol [p{n}]") for n, word in enumerate(WORDS)}
    qrels = {
        split: {f"q{n}": {f"p{n}": 1} for n in range(*span)}
        for split, span in (("dev", (0, 4)), ("test", (4, 12)), ("ood", (12, N)))
    }
    return Collection("garden", corpus_from_rows(rows), queries, qrels)


@pytest.fixture(scope="session")
def contents(garden, tiny_encoder, tiny_generator) -> Contents:
    retriever = Retriever(model=str(tiny_encoder), max_tokens=32, depth=10, device="cpu", dtype="float32")
    generator = Generator(
        model=str(tiny_generator), contexts=2, max_context_tokens=80, max_new_tokens=6, device="cpu", dtype="float32"
    )
    canaries = [{"query_id": "q1", "split": "dev", "question": "dad bab", "passage_ids": ["p1", "p0"], "answer": "dad"}]
    return Contents(
        System("both", retriever, generator), True, True, garden, "f" * 64, {"run": "garden"}, canaries, "runs/garden",
        {"python": "3"},
    )  # fmt: skip


@pytest.fixture
def bundle(contents, tmp_path):
    folder = tmp_path / "bundles" / "garden" / "0001"
    pack(contents, folder)
    return folder
