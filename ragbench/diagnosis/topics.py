"""What the questions are about: clusters of their gold passages, named by the words that set them apart."""

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from ragbench.collection.schema import Collection, passages
from ragbench.diagnosis.counterfactual import Trial, each_question, gold_of
from ragbench.retrieval.encoder import Encoder, encode

QUESTIONS_PER_TOPIC = (15, 40)
"""Two grains: a topic of some dozens of questions is seen surely only when it is not split."""


def topics_of(collection: Collection, trial: Trial, encoder: Encoder, seed: int = 0) -> pd.DataFrame:
    """Return the topics of each question of a trial, in the order of `evidence.gather`: a column for each grain.

    k-means over the mean embedding of each question's gold passages. A topic's name is its three words of the highest
    TF-IDF, each cluster taken as one text (Grootendorst 2022). Missing for a question without gold passages.
    """
    asked = list(each_question(trial.questions))
    texts = [
        [p.full_text for p in passages(collection, gold_of(collection, split, query)).values()]
        for split, query in asked
    ]
    places = [place for place, found in enumerate(texts) if found]
    topics = pd.DataFrame(index=range(len(asked)), columns=list(QUESTIONS_PER_TOPIC), dtype=object)
    if not places:
        return topics
    vectors = encode(encoder, [text for place in places for text in texts[place]], "passage")
    ends = np.cumsum([len(texts[place]) for place in places])
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends[:-1])])
    for size in QUESTIONS_PER_TOPIC:
        count = max(1, min(len(places) // size, len(np.unique(means, axis=0))))
        labels = KMeans(count, n_init=5, random_state=seed).fit_predict(means)
        parts = [np.flatnonzero(labels == label) for label in range(count)]
        names = _names([" ".join(" ".join(texts[places[i]]) for i in part) for part in parts])
        topics.loc[places, size] = [names[label] for label in labels]
    return topics


def _names(texts: list[str]) -> list[str]:
    counter = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
    try:
        weights = TfidfTransformer(sublinear_tf=True).fit_transform(counter.fit_transform(texts)).toarray()
    except ValueError:  # not one word in any of them
        return [f"topic {number}" for number in range(1, len(texts) + 1)]
    vocabulary = counter.get_feature_names_out()
    found = []
    for number, row in enumerate(weights, start=1):
        first = [place for place in np.argsort(-row, kind="stable")[:3] if row[place] > 0]
        found.append(", ".join(vocabulary[first]) if first else f"topic {number}")
    return [name if found.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(found, start=1)]
