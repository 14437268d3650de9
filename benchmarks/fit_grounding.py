"""Fit the grounding scores to labelled answers and write ``ragbench/evaluation/grounding.json``.

`python benchmarks/fit_grounding.py FOLDER`, then `python benchmarks/grounding.py FOLDER --write` for the agreement.

FOLDER holds ``claims.jsonl`` and ``answers.jsonl``, whose rows have ``question, contexts, answer, supported, split``.
All splits but test are fitted to; each file and either label has the same weight. People's labels have few answers that
are wrong in a number, a name or a negation only, so a third source is made from the contexts: a sentence word for word
(supported), and with one such change (not supported).

The ridge is strong, so that the features, which overlap much, share the weight instead of one taking it all: that costs
nothing in cross-validation and leans less on this very data. The logit is scaled back to a probability (Platt 1999) on
out-of-fold predictions for people's labels.
"""

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from ragbench.evaluation.grounding import AnswerWithContexts, measure
from ragbench.evaluation.grounding_features import names, negates, numbers
from ragbench.evaluation.grounding_model import PATH
from ragbench.evaluation.sentences import sentences
from ragbench.files import write_json
from ragbench.retrieval.encoder import open_encoder

FILES = ("claims", "answers")
LIGHT = ("coverage", "pairs", "similarity", "topic", "foreign_names", "foreign_numbers", "negation")
FULL = (*LIGHT, "likelier")
SUPPORTED_SHARE = {"claims": 0.45, "answers": 0.33}
"""The supported answers that the full score is fitted to: likelihoods are dear, and the unsupported are scarce."""
CHANGED, CHANGED_FULL = 120, 60
CHANGED_WEIGHT = 0.2
"""The changed sentences' weight beside a file's; at .4 people's labels are matched worse, in cross-validation."""
RIDGE = 0.003
FOLDS, REPETITIONS = 8, 5
THRESHOLD = 0.5


@dataclass(frozen=True)
class Example:
    source: str
    id: str
    item: AnswerWithContexts
    supported: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where claims.jsonl and answers.jsonl are")
    folder = parser.parse_args().folder
    labelled = [example for name in FILES for example in read(folder / f"{name}.jsonl", test=False)]
    changed = changed_sentences(labelled, random.Random(13))
    fewer = [each for each in labelled if not each.supported or kept(each)] + changed[: 2 * CHANGED_FULL]
    record = {}
    for kind, features, examples, model in (
        ("light", LIGHT, labelled + changed, None),
        ("full", FULL, fewer, "SmolLM2-135M-Instruct"),
    ):
        measured = measure([example.item for example in examples], open_encoder("all-MiniLM-L6-v2"), model=model)
        values = np.array([each.weights @ [[f[name] for name in features] for f in each.features] for each in measured])
        record[kind] = fit(examples, values, features) | {"threshold": THRESHOLD, "agreement": []}
        print(kind, {name: term["weight"] for name, term in record[kind]["terms"].items()})
    write_json(PATH, record)


def kept(example: Example) -> bool:
    return random.Random(example.id).random() < SUPPORTED_SHARE[example.source]


def read(path: Path, *, test: bool) -> list[Example]:
    """Return the examples of the test split, or all others."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Example(
            path.stem,
            row["id"],
            AnswerWithContexts(row["question"], row["answer"], tuple(row["contexts"])),
            row["supported"],
        )
        for row in rows
        if (row["split"] == "test") == test
    ]


def changed_sentences(labelled: list[Example], rng: random.Random) -> list[Example]:
    """Return sentences of the contexts as they stand and with one number, name or negation changed, in pairs."""
    made: list[Example] = []
    changes = (change_number, change_name, change_negation)
    for example in rng.sample(labelled, len(labelled)):
        if len(made) >= 2 * CHANGED:
            break
        candidates = [
            text for context in example.item.contexts for text in sentences(context) if 8 <= len(text.split()) <= 40
        ]
        if not candidates:
            continue
        sentence = rng.choice(candidates)
        changed = changes[len(made) // 2 % 3](sentence, example, labelled, rng)
        if changed is not None:
            for text, supported in ((sentence, True), (changed, False)):
                item = AnswerWithContexts(example.item.question, text, example.item.contexts)
                made.append(Example("changed", example.id, item, supported))
    return made


def change_number(sentence: str, example: Example, labelled: list[Example], rng: random.Random) -> str | None:
    found = list(re.finditer(r"\d+", sentence))
    if not found:
        return None
    match = rng.choice(found)
    known = set(numbers(" ".join(example.item.contexts)))
    length = len(match.group())
    others = [str(n) for n in (rng.randrange(10 ** (length - 1), 10**length) for _ in range(20)) if str(n) not in known]
    return sentence[: match.start()] + others[0] + sentence[match.end() :] if others else None


def change_name(sentence: str, example: Example, labelled: list[Example], rng: random.Random) -> str | None:
    pattern = r"(?<=[\w,;)] )[A-Z][a-z]+"
    found = list(re.finditer(pattern, sentence))
    others = re.findall(pattern, " ".join(rng.choice(labelled).item.contexts))
    known = " ".join(example.item.contexts).lower()
    others = [other for other in others if other.lower() not in known and names(f"a {other}")]
    if not found or not others:
        return None
    match = rng.choice(found)
    return sentence[: match.start()] + rng.choice(others) + sentence[match.end() :]


def change_negation(sentence: str, example: Example, labelled: list[Example], rng: random.Random) -> str | None:
    if negates(sentence):
        return None
    changed = re.sub(r"\b(is|are|was|were|can|will|should|may|must|has|have|had)\b", r"\1 not", sentence, count=1)
    return changed if changed != sentence else None


def fit(examples: list[Example], values: np.ndarray, features: tuple[str, ...]) -> dict[str, Any]:
    """Return intercept and terms: a ridge-penalised logistic regression, its logit scaled to people's labels."""
    labels = np.array([example.supported for example in examples])
    sources = np.array([example.source for example in examples])
    questions = np.array([example.item.question for example in examples])
    mean, scale = values.mean(axis=0), values.std(axis=0)
    standard = (values - mean) / scale
    left_out = np.zeros((REPETITIONS, len(labels)))
    for repetition, row in enumerate(left_out):
        folds = GroupKFold(FOLDS, shuffle=True, random_state=repetition)
        for train, test in folds.split(standard, labels, questions):
            row[test] = ridge(standard[train], labels[train], sources[train]).decision_function(standard[test])
    print(f"{len(labels)} examples; out of fold, mean of {REPETITIONS} repetitions:")
    human = np.isin(sources, FILES)
    logit = left_out.mean(axis=0)
    platt = LogisticRegression(C=1e6).fit(
        logit[human, None], labels[human], sample_weight=balance(labels[human], sources[human])
    )
    for name in (*FILES, "changed"):
        own = sources == name
        auroc = np.mean([roc_auc_score(labels[own], row[own]) for row in left_out])
        accuracy = balanced_accuracy_score(labels[own], platt.predict(logit[own, None]))
        print(f"  {name}: AUROC {auroc:.3f}, balanced accuracy {accuracy:.3f}, n {own.sum()}")
    model = ridge(standard, labels, sources)
    slope = float(platt.coef_[0, 0])
    intercept = slope * float(model.intercept_[0]) + float(platt.intercept_[0])
    terms = {
        name: {"mean": round(float(m), 5), "scale": round(float(s), 5), "weight": round(slope * float(w), 4)}
        for name, m, s, w in zip(features, mean, scale, model.coef_[0], strict=True)
    }
    return {"intercept": round(intercept, 4), "terms": terms}


def ridge(standard: np.ndarray, labels: np.ndarray, sources: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=RIDGE).fit(standard, labels, sample_weight=balance(labels, sources))


def balance(labels: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """Return weights that add up to the same for each label, and for each file."""
    weights = np.zeros(len(labels))
    for source in np.unique(sources):
        for label in (False, True):
            own = (sources == source) & (labels == label)
            weights[own] = (CHANGED_WEIGHT if source == "changed" else 1) / max(1, own.sum())
    return weights * len(labels) / weights.sum()


if __name__ == "__main__":
    main()
