"""How special a text's words are, and how far a question's words lie from those of its passage.

A word is taken to be special when the tokenizer of a general encoder has no unit for it and spells it in pieces: its
vocabulary holds the most frequent words of general text (WordPiece, Wu et al. 2016), so what it has to spell is rare
there. This needs no list of terms and works for any domain; for another language it means a tokenizer of that language.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from ragbench.collection.schema import Collection, passages
from ragbench.evaluation.evaluate import Questions
from ragbench.retrieval.encoder import Encoder, pieces

_WORD = re.compile(r"[^\W\d_]{3,}")
_FUNCTION_WORDS = ENGLISH_STOP_WORDS - {"bill", "call", "cry", "empty", "fill", "find", "fire", "name", "re", "system"}
"""scikit-learn's list, without the words on it that carry a meaning of their own."""
LEVELS = {"low": 0.0, "medium": 0.1, "high": 0.15}
"""Share of special words from which a collection's vocabulary counts as medium or highly domain-specific.

For comparison, means over every fifth passage with all-MiniLM-L6-v2's tokenizer: .09 for Wikipedia (MuSiQue), .17 for
clinical articles (COVID-QA), .19 for Python's documentation.
"""


def special_share(texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    """Return the share of special words among each text's distinct words of three letters or more; 0 without words."""
    distinct = [sorted(set(_WORD.findall(text.lower()))) for text in texts]
    vocabulary = sorted({word for found in distinct for word in found})
    special = {word for word, count in zip(vocabulary, pieces(encoder, vocabulary), strict=True) if count > 1}
    return np.array([len(special.intersection(found)) / len(found) if found else 0.0 for found in distinct])


def level(share: float) -> str:
    """Name a mean share of special words: ``low``, ``medium`` or ``high``."""
    return [name for name, bound in LEVELS.items() if share >= bound][-1]


def gap_table(collection: Collection, questions: Questions, pairs: pd.DataFrame) -> pd.DataFrame:
    """Tell whether questions in other words than their passages are found now: scores by vocabulary gap.

    Args:
        pairs: columns split, query_id, before, after, of one metric (`evaluation.comparison.paired`).

    Returns a row a split and third of its questions, by their gap: split, gap (its range), before, after, n.
    """
    rows = []
    for split, queries in questions.items():
        gold = {
            query.id: [name for name, score in collection.qrels[split][query.id].items() if score > 0]
            for query in queries
        }
        known = passages(collection, (name for names in gold.values() for name in names))
        gaps = {
            query.id: vocabulary_gap(query.text, [known[name].full_text for name in gold[query.id]])
            for query in queries
            if gold[query.id]
        }
        part = pairs[(pairs["split"] == split) & pairs["query_id"].isin(list(gaps))].dropna(subset=["before", "after"])
        part = part.assign(gap=part["query_id"].map(gaps)).sort_values(["gap", "query_id"])
        for third in (part.iloc[rows_of_third] for rows_of_third in np.array_split(np.arange(len(part)), 3)):
            if len(third):
                span = f"{third['gap'].min():.0%} to {third['gap'].max():.0%}"
                rows.append((split, span, third["before"].mean(), third["after"].mean(), len(third)))
    return pd.DataFrame(rows, columns=["split", "words not in the passage", "before", "after", "questions"])


def vocabulary_gap(question: str, passages: Sequence[str]) -> float:
    """Return the share of a question's distinct words that no passage has; 0 to 1, English function words aside."""
    asked = _content_words(question)
    there = {word for passage in passages for word in _content_words(passage)}
    return len(asked - there) / len(asked) if asked else 0.0


def _content_words(text: str) -> set[str]:
    return set(re.findall(r"\w{2,}", text.lower())) - _FUNCTION_WORDS
