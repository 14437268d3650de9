"""Synthetic questions: a generator asks what passages answer; filters remove what would teach nothing, or cheat."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, Passage, Query, passage_texts, passages, split_queries
from ragbench.evaluation.answer_metrics import words
from ragbench.evaluation.grounding_features import content_stems, stem
from ragbench.evaluation.sentences import sentences
from ragbench.generation.generate import Generator, complete, token_counter
from ragbench.generation.prompts import Message, TokenCount
from ragbench.retrieval.retrieve import Retriever, retrieve
from ragbench.retrieval.runs import top
from ragbench.training.leakage import held_out_questions, near_copies, repeats
from ragbench.training.pairs import MIN_WORDS, TRAIN, Pair

REASONS = ("malformed", "names nothing", "gives the answer away", "duplicate", "leak", "round trip")
"""The filters of `sift`, in their order."""
MAX_WORDS = 40
COMMON, COMMON_PASSAGES = 0.05, 10
"""A word is common if more than this share of the passages has it, and more than this number."""
COPIED = 0.75
"""Share of a question's words in one verbatim span of its passage from which it is a copy."""
QUESTION_TOKENS = 40
_SAMPLE = 5000
_GENERIC = frozenset(
    stem(word)
    for word in re.findall(
        r"\w+",
        "answer article author ca call describe detail document documentation example explain following get give "
        "happen idea information know main make mean mention need one paragraph passage provide purpose question role "
        "say section statement summary tell text thing topic try use used user using want way wo work",
    )
)
"""Stems that name no subject even where the corpus rarely has them; ``ca`` and ``wo`` are left of can't and won't."""
_CONTRACTED = re.compile(r"(?:n['’]t|['’](?:s|re|ve|ll|d|m))\b", re.IGNORECASE)
_MARK = re.compile(r"\?(?=\s|$)")  # not the one in report_??.csv
_BULLET = re.compile(r"^(?:[\s*•#>]|[-–—](?=\s)|\(?\d{1,2}[.):](?!\d))+")
_LABEL = re.compile(r"^[^?]{0,200}?\b(?:questions?|q) ?\d{0,2}(?:[.)]|\b[^?:]{0,60}:)", re.IGNORECASE)
_QUOTES = "\"'`“”‘’«»"

_EXAMPLE = (
    "Paper jams Open the rear cover, pull the sheet out slowly and close the cover. The printer then prints that page "
    "again; what waits in the queue is kept."
)
_EXAMPLE_QUESTIONS = (
    "How do I get a stuck page out of my printer?",
    "Is my document lost when the printer blocks halfway?",
    "What happens to the jobs that I sent after it?",
    "Which part of the printer do I open to reach the paper?",
)
_INSTRUCTION = "Write what users would type who need what the passage says but do not know its words."


@dataclass(frozen=True)
class Candidate:
    """A question as the generator wrote it: the `number`-th, from 1, about a passage."""

    passage_id: str
    number: int
    text: str


@dataclass(frozen=True)
class Removed:
    """A question that a filter took out: which filter, and what it found."""

    text: str
    passage_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Filtered:
    """What became of the questions.

    Attributes:
        kept: as training pairs, in the order in which they were written.
        removed: in the order of the filters.
        silent: ids of the passages about which no question was written: no reply, or none in it.
    """

    kept: list[Pair]
    removed: list[Removed]
    silent: tuple[str, ...] = ()


def synthetic_pairs(
    collection: Collection,
    found: Sequence[Passage],
    generator: Generator,
    retriever: Retriever,
    *,
    per_passage: int = 2,
    round_trip_depth: int = 5,
) -> Filtered:
    """Have questions written about passages (see `pairs.uncovered` for which may be used), and keep the good ones.

    Args:
        retriever: the base retriever, for the round trip (see `sift`).
        per_passage: questions to ask for; fewer come back where the reply holds fewer.

    Raises:
        RagbenchError: the generator or retriever cannot be had.
    """
    candidates = write_questions(found, generator, per_passage)
    asked = {candidate.passage_id for candidate in candidates}
    silent = tuple(passage.id for passage in found if passage.id not in asked)
    return replace(sift(collection, candidates, retriever, round_trip_depth), silent=silent)


def write_questions(found: Sequence[Passage], generator: Generator, per_passage: int) -> list[Candidate]:
    """Ask the generator for questions that the passages answer; the backend ``none`` writes none.

    All questions about a passage come from one greedy reply, which the answer cache keeps. A passage is cut at the
    generator's `max_context_tokens`; its instruction and length limit do not apply.

    Raises:
        RagbenchError: the generator cannot be had.
    """
    if generator.backend == "none" or per_passage < 1:
        return []
    count_tokens = token_counter(generator)
    asked = [_conversation(_cut(p.full_text, count_tokens, generator.max_context_tokens), per_passage) for p in found]
    replies = complete(asked, replace(generator, max_new_tokens=QUESTION_TOKENS * per_passage))
    return [
        Candidate(passage.id, number, text)
        for passage, reply in zip(found, replies, strict=True)
        for number, text in enumerate(parse_questions(reply.text)[:per_passage], start=1)
    ]


def _conversation(text: str, count: int) -> list[Message]:
    shown = _EXAMPLE_QUESTIONS[:count]
    reply = "\n".join(f"{number}. {question}" for number, question in enumerate(shown, start=1))
    return [
        {"role": "system", "content": _INSTRUCTION},
        {"role": "user", "content": _request(_EXAMPLE, len(shown))},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": _request(text, count)},
    ]


def _request(text: str, count: int) -> str:
    return f"Passage: {text}\n\nWrite {count} question{'s' if count > 1 else ''} that this passage answers."


def _cut(text: str, count_tokens: TokenCount, budget: int) -> str:
    while text and (tokens := count_tokens(text)) > budget:
        text = text[: len(text) * budget // tokens]
    return text


def parse_questions(reply: str) -> list[str]:
    """Return the distinct questions of a reply, without numbers, labels and quotation marks; each ends with "?".

    A line that ends with its only question mark is one question, whatever statements lead up to it; of any other line
    the sentences that end with one. What the length limit cut has none and is left out.
    """
    questions: list[str] = []
    for line in map(_bare, reply.replace("？", "?").splitlines()):
        whole = line.endswith("?") and len(_MARK.findall(line)) == 1
        questions += [line] if whole else map(_bare, sentences(line))
    return list(dict.fromkeys(text for text in questions if text.endswith("?") and re.search(r"\w", text)))


def _bare(piece: str) -> str:
    piece = _BULLET.sub("", _LABEL.sub("", _BULLET.sub("", piece)))
    text = re.sub(r"(?<=\?)[^\w?]+$", "", piece.strip())
    quoted = text != piece and any(mark in piece[len(text) :] for mark in _QUOTES)
    return text.lstrip(_QUOTES) if quoted else text


def sift(
    collection: Collection, candidates: Sequence[Candidate], retriever: Retriever, round_trip_depth: int = 5
) -> Filtered:
    """Apply the filters, each to what the one before it left.

    ``malformed``: not exactly one question, fewer than `MIN_WORDS` or more than `MAX_WORDS` words, or about "the
    passage", which its users do not see.
    ``names nothing``: no specific word. A word is specific unless it is a function word, one that names no subject
    anywhere (``purpose``, ``passage``, …), or common in this corpus, as ``function`` and ``return`` are in Python's.
    ``gives the answer away``: copies the passage (`COPIED`), or its only specific words are of the passage's title or
    id: the title is part of what is encoded, so any retriever finds it. A title beside other specific words may stay.
    ``duplicate``, ``leak``: a near-copy of an earlier one or of a labelled question; of a held-out question.
    ``round trip``: the retriever does not find the passage among its first `round_trip_depth` (Promptagator, Dai et
    al. 2022): most likely the question is about something else, or about too much. But a weak retriever also loses good
    ones, and those are the hard ones: of 167 questions of people that pass the other filters, BM25 finds 35 within 5.

    Raises:
        RagbenchError: a candidate's passage is not in the corpus, or the retriever cannot be had.
    """
    if not candidates:
        return Filtered([], [])
    known = passages(collection, (candidate.passage_id for candidate in candidates))
    common = _common_stems(collection)
    filters: tuple[Callable[[Sequence[Candidate]], list[str]], ...] = (
        _malformed,
        partial(_names_nothing, common),
        partial(_gives_away, common, known),
        partial(_duplicates, collection),
        partial(_leaks, collection),
        partial(_not_found, collection, retriever, round_trip_depth),
    )
    left, removed = list(candidates), list[Removed]()
    for reason, look in zip(REASONS, filters, strict=True):
        looked = list(zip(left, look(left), strict=True))
        removed += [Removed(each.text, each.passage_id, reason, detail) for each, detail in looked if detail]
        left = [each for each, detail in looked if not detail]
    return Filtered([_pair(each, known[each.passage_id]) for each in left], removed)


def funnel(filtered: Filtered) -> pd.DataFrame:
    """Return columns step, left: how many questions were written, and how many each filter left."""
    counts = Counter(each.reason for each in filtered.removed)
    steps = {"written": 0} | {reason: counts[reason] for reason in REASONS}
    left = len(filtered.kept) + len(filtered.removed) - np.cumsum(list(steps.values()))
    return pd.DataFrame({"step": list(steps), "left": left})


def _pair(candidate: Candidate, passage: Passage) -> Pair:
    query_id = f"synthetic:{passage.id}:{candidate.number}"
    return Pair(query_id, candidate.text, passage.id, passage.full_text, "synthetic")


def _common_stems(collection: Collection) -> frozenset[str]:
    """Return the stems of the words that are common in the corpus, counted in evenly spaced passages."""
    rows = np.unique(np.linspace(0, len(collection.corpus) - 1, _SAMPLE).astype(int))
    texts = passage_texts(collection, rows).to_pylist()
    counts = Counter(found for text in texts for found in set(content_stems(text)))
    limit = max(COMMON * len(texts), COMMON_PASSAGES)
    return frozenset(found for found, count in counts.items() if count > limit)


def _specific(text: str, common: frozenset[str]) -> set[str]:
    return set(content_stems(_CONTRACTED.sub(" ", text))) - _GENERIC - common


def _malformed(candidates: Sequence[Candidate]) -> list[str]:
    def detail(text: str) -> str:
        """Say what keeps a text from being one question; nothing if it is one."""
        marks, length = len(_MARK.findall(text)), len(text.split())
        if marks != 1:
            return f"{marks} questions"
        if not text.endswith("?"):
            return "does not end as a question"
        if not MIN_WORDS <= length <= MAX_WORDS:
            return f"{length} words"
        return "speaks of the passage" if re.search(r"\b(the|this) passage\b", text, re.IGNORECASE) else ""

    return [detail(candidate.text) for candidate in candidates]


def _names_nothing(common: frozenset[str], candidates: Sequence[Candidate]) -> list[str]:
    return ["" if _specific(each.text, common) else "only words that are common here" for each in candidates]


def _gives_away(common: frozenset[str], known: dict[str, Passage], candidates: Sequence[Candidate]) -> list[str]:
    def detail(candidate: Candidate) -> str:
        """Say what a question gives away of its passage; nothing if it is fair."""
        passage = known[candidate.passage_id]
        asked, told = words(candidate.text), words(passage.full_text)
        match = difflib.SequenceMatcher(None, asked, told, autojunk=False).find_longest_match()
        if match.size >= COPIED * len(asked):
            return f"copies '{' '.join(told[match.b : match.b + match.size])}'"
        named = set(content_stems(f"{passage.title} {passage.id}"))
        return "asks for the title only" if _specific(candidate.text, common) <= named else ""

    return [detail(candidate) for candidate in candidates]


def _duplicates(collection: Collection, candidates: Sequence[Candidate]) -> list[str]:
    labelled = split_queries(collection, TRAIN) if TRAIN in collection.qrels else []
    texts = [query.text for query in labelled] + [candidate.text for candidate in candidates]
    return ["" if copied is None else f"copies '{texts[copied]}'" for copied in repeats(texts)[len(labelled) :]]


def _leaks(collection: Collection, candidates: Sequence[Candidate]) -> list[str]:
    held_out = list(held_out_questions(collection).items())
    copied = near_copies([candidate.text for candidate in candidates], [text for _, text in held_out])
    return ["" if place is None else "copies {}: '{}'".format(*held_out[place]) for place in copied]


def _not_found(collection: Collection, retriever: Retriever, depth: int, candidates: Sequence[Candidate]) -> list[str]:
    queries = [Query(str(place), candidate.text) for place, candidate in enumerate(candidates)]
    run = retrieve(collection, queries, replace(retriever, depth=max(depth, retriever.depth)))
    first = [top(run, query.id, depth) for query in queries]
    return [
        "" if each.passage_id in ids else f"found {', '.join(ids[:3]) or 'nothing'}"
        for each, ids in zip(candidates, first, strict=True)
    ]
