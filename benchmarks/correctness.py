"""How well does the offline estimate of correctness tell right answers from wrong ones?

Answers over the embedded collection: those written for the planted faults, and answers of SmolLM2-135M-Instruct that
were labelled right, partly or wrong (labelled_answers.jsonl; by a language model reading question, reference and gold
passages, not by people). The weights are fitted on the questions of one half and judged on the other, both ways round;
those that the package uses are fitted on all of them, and printed beside.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, finish, result
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ragbench.collection.load import load_collection
from ragbench.collection.schema import Collection, passages
from ragbench.evaluation.correctness import WEIGHTS, Compared, features
from ragbench.evaluation.ragas_offline import answer_similarities
from ragbench.retrieval.encoder import open_encoder

HERE = Path(__file__).parent
WEIGHT = {"misread": 0.5}
"""Errors made of the right words are out of reach: fitting to them would blur what can be told."""


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def examples(collection: Collection) -> list[tuple[str, str, Compared]]:
    """Return (query id, kind of answer, answer with its reference)."""
    written = read("planted_answers.jsonl")
    answers = [
        (row["query_id"], kind, row[kind]) for row in written for kind in ("right", "misread", "invented", "half")
    ]
    answers += [
        (row["query_id"], "another question's", other["right"])
        for row, other in zip(written, written[7:] + written[:7], strict=True)
    ]
    answers += [(row["query_id"], f"SmolLM2, {row['label']}", row["answer"]) for row in read("labelled_answers.jsonl")]
    found = []
    for query_id, kind, answer in answers:
        if answer:
            query = collection.queries[query_id]
            split = next(split for split, qrels in collection.qrels.items() if query_id in qrels)
            gold = passages(collection, collection.qrels[split][query_id]).values()
            texts = tuple(passage.full_text for passage in gold)
            found.append((query_id, kind, Compared(query.text, answer, query.answer or "", texts)))
    return found


def main() -> None:
    options = arguments(__doc__ or "")
    rows = examples(load_collection("pydocs"))
    encoder = open_encoder("all-MiniLM-L6-v2")
    similar = answer_similarities(encoder, [r.answer for *_, r in rows], [r.reference for *_, r in rows])
    x = np.array([(*features(item), cosine or 0.0) for (*_, item), cosine in zip(rows, similar, strict=True)])
    kinds = np.array([kind for _, kind, _ in rows])
    right = np.isin(kinds, ["right", "SmolLM2, right"])
    weight = np.array([0.0 if "partly" in kind else WEIGHT.get(kind, 1.0) for kind in kinds])
    half = np.array([int(query_id.rpartition("-")[2]) % 2 for query_id, *_ in rows])
    estimate = np.empty(len(rows))
    for fitted_on in (0, 1):
        chosen = half == fitted_on
        model = fit(x[chosen], right[chosen], weight[chosen])
        estimate[~chosen] = model.predict_proba(x[~chosen])[:, 1]
    raw = [
        {
            "kind": str(kind),
            "answers": int((kinds == kind).sum()),
            "counted as right": float((estimate[kinds == kind] >= 0.5).mean()),
            "auroc against right": auroc(estimate[kinds == "right"], estimate[kinds == kind]),
        }
        for kind in dict.fromkeys(kinds)
    ]
    whole = fit(x, right, weight)
    print("fitted on all:", dict(zip(["overlap", "novelty", "similarity"], whole.coef_[0].round(2), strict=True)))
    print("constant:", whole.intercept_.round(2), "in use:", WEIGHTS)
    wrong = np.isin(kinds, ["invented", "another question's", "SmolLM2, wrong"])
    finish(
        "correctness",
        options,
        raw,
        [result("AUROC, right against plainly wrong", auroc(estimate[right], estimate[wrong]), 0.9, at_least)],
    )


def fit(x: np.ndarray, right: np.ndarray, weight: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=10, class_weight="balanced").fit(x, right, sample_weight=weight)


def auroc(right: np.ndarray, other: np.ndarray) -> float:
    return float(roc_auc_score([1] * len(right) + [0] * len(other), [*right, *other]))


def at_least(value: float, bound: float) -> bool:
    return value >= bound


if __name__ == "__main__":
    main()
