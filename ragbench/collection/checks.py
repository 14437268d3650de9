"""What is wrong with a collection, before it costs a day of training."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import py3langid
import pyarrow.compute as pc
from datasketch import MinHash, MinHashLSH
from tqdm import tqdm

from ragbench.collection.schema import Collection, corpus_ids, passage_texts

OVERSIZED_CHARACTERS = 8000
NEAR = 0.85
_HASHES = 64
_LANGUAGE_SAMPLE = 1000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: its name, how many were found, and some of them."""

    name: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class CollectionReport:
    """Counts and findings of `check_collection`."""

    counts: dict[str, str]
    findings: tuple[Finding, ...]

    def lines(self) -> list[str]:
        """Return the report as lines for a terminal."""
        lines = [f"{name:28} {value}" for name, value in self.counts.items()]
        for finding in self.findings:
            examples = f"  e.g. {'; '.join(finding.examples)}" if finding.examples else ""
            lines.append(f"{finding.name:28} {finding.count}{examples}")
        return lines


def check_collection(collection: Collection) -> CollectionReport:
    """Count, measure and look for what spoils training or evaluation.

    Finds empty and oversized passages (over 8,000 characters), exact and near duplicates (Jaccard similarity of word
    3-grams of at least .85, by MinHash: Broder 1997), questions and gold passages and documents that two splits share,
    and queries that belong to no split. Broken files never get here: reading refuses them.
    """
    texts = passage_texts(collection)
    lengths = pc.utf8_length(texts).to_numpy()
    ids = corpus_ids(collection)
    duplicates, near = _duplicates(collection)
    findings = (
        _listed("empty passages", [ids[int(row)].as_py() for row in np.flatnonzero(lengths == 0)]),
        _listed(
            "oversized passages", [ids[int(row)].as_py() for row in np.flatnonzero(lengths > OVERSIZED_CHARACTERS)]
        ),
        _listed("duplicate passages", duplicates),
        _listed("near-duplicate passages", near),
        _listed("questions in two splits", _shared_questions(collection)),
        _listed("gold passages in two splits", _shared_gold(collection)),
        _listed("gold documents in two splits", _shared_documents(collection)),
        _listed("queries in no split", _unplaced(collection)),
    )
    return CollectionReport(_counts(collection, lengths), findings)


def _listed(name: str, found: list[str]) -> Finding:
    return Finding(name, len(found), tuple(found[:3]))


def _counts(collection: Collection, lengths: np.ndarray) -> dict[str, str]:
    counts = {"passages": f"{len(lengths):,}", "queries": f"{len(collection.queries):,}"}
    for split, qrels in collection.qrels.items():
        unanswerable = sum(not collection.queries[query_id].answerable for query_id in qrels)
        answers = sum(collection.queries[query_id].answer is not None for query_id in qrels)
        gold = sum(map(len, qrels.values()))
        counts[f"split {split}"] = (
            f"{len(qrels)} questions ({answers} with answer, {unanswerable} unanswerable), {gold} qrels"
        )
    spread = np.percentile(lengths, [0, 50, 95, 100]).astype(int)
    counts["characters in a passage"] = "min {}, median {}, 95 % {}, max {}".format(*spread)
    counts["languages (passages)"] = _languages(passage_texts(collection).to_pylist())
    counts["languages (queries)"] = _languages([query.text for query in collection.queries.values()])
    return counts


def _languages(texts: list[str]) -> str:
    chosen = np.linspace(0, len(texts) - 1, min(len(texts), _LANGUAGE_SAMPLE)).astype(int)
    found = Counter(py3langid.classify(texts[row])[0] for row in chosen if texts[row].strip())
    total = sum(found.values())
    return ", ".join(f"{name} {count / total:.0%}" for name, count in found.most_common(3)) or "none"


def _duplicates(collection: Collection) -> tuple[list[str], list[str]]:
    """Return exact and near duplicates, each as "later id = earlier id"."""
    # 16 bands of 4 hashes propose nearly every pair above NEAR, and some below; the exact similarity decides.
    lsh = MinHashLSH(num_perm=_HASHES, params=(16, 4))
    first: dict[str, int] = {}
    exact: list[str] = []
    near: list[str] = []
    ids = corpus_ids(collection)
    texts = collection.corpus["text"]  # not the titles: a title often is the very name that tells twins apart
    for row, text in enumerate(tqdm(texts, desc="comparing passages", unit="passage")):
        grams = _word_grams(text)
        if not grams:
            continue
        earlier = first.setdefault(" ".join(text.lower().split()), row)
        if earlier != row:
            exact.append(f"{ids[row]} = {ids[earlier]}")
            continue
        sketch = MinHash(num_perm=_HASHES)
        sketch.update_batch([gram.encode() for gram in sorted(grams)])
        similar = [other for other in lsh.query(sketch) if _jaccard(grams, _word_grams(texts[other])) >= NEAR]
        if similar:
            near.append(f"{ids[row]} ~ {ids[min(similar)]}")
        lsh.insert(row, sketch)
    return exact, near


def _word_grams(text: str) -> set[str]:
    words = text.lower().split()
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))} if words else set()


def _jaccard(one: set[str], two: set[str]) -> float:
    return len(one & two) / len(one | two)


def _shared_questions(collection: Collection) -> list[str]:
    places: dict[str, set[str]] = {}
    for split, qrels in collection.qrels.items():
        for query_id in qrels:
            places.setdefault(" ".join(collection.queries[query_id].text.lower().split()), set()).add(split)
    return [f"{text[:60]} ({', '.join(sorted(splits))})" for text, splits in places.items() if len(splits) > 1]


def _gold(collection: Collection) -> dict[str, set[str]]:
    return {split: {name for gold in qrels.values() for name in gold} for split, qrels in collection.qrels.items()}


def _shared(sets: dict[str, set[str]]) -> list[str]:
    return [f"{name} ({one}, {two})" for one, two in combinations(sets, 2) for name in sorted(sets[one] & sets[two])]


def _shared_gold(collection: Collection) -> list[str]:
    return _shared(_gold(collection))


def _shared_documents(collection: Collection) -> list[str]:
    documents = dict(zip(corpus_ids(collection).to_pylist(), collection.corpus["document_id"], strict=True))
    return _shared({split: {documents[name] for name in names} for split, names in _gold(collection).items()})


def _unplaced(collection: Collection) -> list[str]:
    placed = {query_id for qrels in collection.qrels.values() for query_id in qrels}
    return [query_id for query_id in collection.queries if query_id not in placed]
