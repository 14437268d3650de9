"""With the real small models: passages that labels cannot tell apart, of which only one lets answer the question."""

import numpy as np
import pytest

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.generation.generate import Generator
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.training import joint_session
from ragbench.training.end_to_end import train_jointly
from ragbench.training.joint_session import Joint

# Each place has a passage of every kind, and all of them are gold: which one tells is not in the labels.
KINDS = {
    "ledger": "Ledger of goods. The store at {} keeps {}.",
    "rumour": "Rumour of the day. The store at {} is said to be old.",
    "advert": "Advert of the week. The store at {} is open to all.",
    "weather": "Weather of the month. The store at {} saw rain.",
}
GOODS = ["copper", "wheat", "salt", "linen", "amber", "honey", "coal", "silk", "tin", "barley"]


def place(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(3)).capitalize()


@pytest.fixture(scope="module")
def planted() -> Collection:
    rng = np.random.default_rng(3)
    rows, queries = [], {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "dev": {}, "test": {}}
    for number in range(64):
        name, goods = place(rng), GOODS[number % len(GOODS)]
        kinds = list(KINDS)
        rng.shuffle(kinds)
        rows += [(f"{number}{kind}", "", KINDS[kind].format(name, goods), f"d{number}") for kind in kinds]
        queries[f"q{number}"] = Query(f"q{number}", f"What about the store at {name}?", f"It keeps {goods}.")
        split = "train" if number < 32 else "dev" if number < 40 else "test"
        qrels[split][f"q{number}"] = {f"{number}{kind}": 1 for kind in kinds}
    return Collection("planted", corpus_from_rows(rows), queries, qrels)


def first_tells(collection: Collection, retriever: Retriever) -> float:
    """Return the share of test questions whose first passage is the one that tells."""
    run = retrieve(collection, [collection.queries[name] for name in collection.qrels["test"]], retriever)
    return float(np.mean([next(iter(found)) == f"{name[1:]}ledger" for name, found in run.items()]))


RETRIEVER = Retriever(max_tokens=32, depth=8, device="cpu")
GENERATOR = Generator(contexts=1, max_context_tokens=64, max_new_tokens=8, instruction="Answer.", device="cpu")
JOINT = Joint(
    train_generator=False, passages=4, contrastive=0.2, retriever_learning_rate=1e-4, steps=40, look_every=10,
    dev_questions=0,
)  # fmt: skip


def tuned(planted: Collection) -> float:
    found = train_jointly(planted, RETRIEVER, GENERATOR, JOINT, seed=1)
    return first_tells(planted, Retriever(model=str(found.retriever), max_tokens=32, depth=8, device="cpu"))


def test_the_helpful_passage_comes_first_and_only_by_the_generators_feedback(planted, real_cache, monkeypatch):
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    before = first_tells(planted, RETRIEVER)
    assert before < 0.6
    assert tuned(planted) > 0.9
    # The same with each question's feedback handed to other passages: nothing is to be learned from it.
    told = joint_session._likelihoods
    rng = np.random.default_rng(0)
    monkeypatch.setattr(
        joint_session, "_likelihoods", lambda *asked: told(*asked)[:, rng.permutation(asked[2].shape[1])]
    )
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache / "shuffled"))
    assert tuned(planted) < 0.7
