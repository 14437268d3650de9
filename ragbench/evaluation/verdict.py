"""What the numbers say, in words."""

from typing import Any


def baseline_verdict(metrics: dict[str, Any], system: str = "base") -> dict[str, Any]:
    """Return {"headline", "reasons"} for an experiment that has only a baseline.

    Each reason states one measurement with its interval and how many questions it rests on.
    """
    reasons: list[str] = []
    for split, values in metrics["systems"][system].items():
        for metric, sentence in _SENTENCES.items():
            entry = values.get(metric)
            if entry is not None and entry["mean"] is not None:
                reasons.append(f"{split}: {sentence.format(value=entry['mean'])} {_evidence(entry)}.")
    return {
        "headline": "This is the baseline: measured, nothing tuned yet.",
        "reasons": reasons,
    }


_SENTENCES = {
    "recall@5": "the five best passages hold {value:.0%} of the gold passages",
    "context_recall": "the generator is shown {value:.0%} of what an answer needs",
    "answer_f1": "answers share {value:.2f} of their words with the references (token F1)",
    "refusal": "the choice to answer or to refuse is right for {value:.0%} of the questions",
    "format": "{value:.0%} of the answers keep the house style",
}


def _evidence(entry: dict[str, Any]) -> str:
    interval = f"95 % interval {entry['ci'][0]:.2f} to {entry['ci'][1]:.2f}, " if entry["ci"] else ""
    return f"({interval}{entry['scored']} of {entry['n']} questions scored)"
