"""The questions that choose: the dev split, or where nobody labelled one, pairs that training does not see."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from ragbench.collection.schema import Collection, Query, passages
from ragbench.devices import choose_device
from ragbench.errors import RagbenchError
from ragbench.files import write_json
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.training.pairs import Pair

DEV, LABELLED, HELD_OUT = "dev", "labelled", "held out"
HELD_OUT_SHARE = 0.1
_CPU_BATCH, _GPU_BATCH = 8, 128  # texts of one forward pass: on a CPU larger ones are slower


@dataclass(frozen=True)
class DevSet:
    """Questions with their gold passages.

    Attributes:
        kind: ``labelled`` (the collection's dev split) or ``held out`` (pairs kept back from training: these tell
            whether the retriever learned what it was shown, not how it does on questions of people).
        questions: query id → text.
        gold: query id → passage ids.
    """

    kind: str
    questions: dict[str, str]
    gold: dict[str, list[str]]

    @property
    def qrels(self) -> dict[str, dict[str, int]]:
        """The gold passages as qrels."""
        return {query_id: dict.fromkeys(ids, 1) for query_id, ids in self.gold.items()}

    @property
    def queries(self) -> list[Query]:
        """The questions as queries."""
        return [Query(query_id, text) for query_id, text in self.questions.items()]


def choose_dev(collection: Collection, pairs: Sequence[Pair], seed: int) -> tuple[DevSet, list[Pair]]:
    """Return the questions to choose by, and the pairs that are left to train with.

    Without a dev split, the pairs of a tenth of the documents are held out: the labelled ones if they are of several
    documents, else those made from the corpus too.
    """
    if DEV in collection.qrels:
        gold = {
            query_id: [passage_id for passage_id, score in judged.items() if score > 0]
            for query_id, judged in collection.qrels[DEV].items()
        }
        gold = {query_id: ids for query_id, ids in gold.items() if ids}
        return DevSet(LABELLED, {name: collection.queries[name].text for name in gold}, gold), list(pairs)
    known = passages(collection, (pair.passage_id for pair in pairs))
    documents = {name: passage.document_id for name, passage in known.items()}
    labelled = [pair for pair in pairs if pair.source == "labelled"]
    basis = labelled if len({documents[pair.passage_id] for pair in labelled}) > 1 else pairs
    names = sorted({documents[pair.passage_id] for pair in basis})
    drawn = np.random.default_rng(seed).permutation(len(names))[: max(1, round(HELD_OUT_SHARE * len(names)))]
    closed = {names[place] for place in drawn} if len(names) > 1 else set()
    held_out = [pair for pair in basis if documents[pair.passage_id] in closed]
    gold = {}
    for pair in held_out:
        gold.setdefault(pair.query_id, []).append(pair.passage_id)
    asked = {pair.question for pair in held_out}  # with another gold passage it may be about an open document too
    left = [pair for pair in pairs if documents[pair.passage_id] not in closed and pair.question not in asked]
    return DevSet(HELD_OUT, {pair.query_id: pair.question for pair in held_out}, gold), left


def write_dev(dev: DevSet, path: Path) -> None:
    """Write a dev set as JSON."""
    write_json(path, asdict(dev))


def read_dev(path: Path) -> DevSet:
    """Read a dev set that `write_dev` wrote."""
    return DevSet(**json.loads(path.read_text(encoding="utf-8")))


def dev_evaluator(
    collection: Collection, dev: DevSet, retriever: Retriever, limit: int, seed: int
) -> InformationRetrievalEvaluator:
    """Return what measures nDCG@10 during training, on the hardest passages instead of the whole corpus.

    Encoding a corpus at every evaluation would cost more than training. So there are at most about `limit` passages:
    the gold passages, and in turn what dense retrieval and BM25 rank highest for each question. Where the gold
    passages alone are more than half of that, questions are drawn at random.

    Raises:
        RagbenchError: there is no question to choose by.
    """
    if not dev.questions:
        raise RagbenchError("There is no question to choose a checkpoint by: add a dev split, or more documents.")
    chosen: list[str] = []
    pool: dict[str, None] = {}
    names = list(dev.questions)
    for place in np.random.default_rng(seed).permutation(len(names)):
        ids = dev.gold[names[place]]
        if len(pool.keys() | set(ids)) <= max(limit // 2, len(ids)):
            chosen.append(names[place])
            pool |= dict.fromkeys(ids)
    chosen.sort()
    asked = [Query(name, dev.questions[name]) for name in chosen]
    runs = [retrieve(collection, asked, retriever) for retriever in _both(retriever)]
    ranked = [list(run[query.id]) for query in asked for run in runs]
    for rank in range(max(map(len, ranked))):
        for ids in ranked:
            if len(pool) < limit and rank < len(ids):
                pool[ids[rank]] = None
    known = passages(collection, pool)
    return InformationRetrievalEvaluator(
        queries={query.id: query.text for query in asked},
        corpus={name: passage.full_text for name, passage in known.items()},
        relevant_docs={query.id: set(dev.gold[query.id]) for query in asked},
        ndcg_at_k=[10], mrr_at_k=[10], accuracy_at_k=[1], precision_recall_at_k=[10], map_at_k=[10],
        batch_size=_CPU_BATCH if choose_device(retriever.device) == "cpu" else _GPU_BATCH, name=DEV, write_csv=False,
    )  # fmt: skip


def _both(retriever: Retriever) -> tuple[Retriever, Retriever]:
    return replace(retriever, method="dense"), replace(retriever, method="bm25")
