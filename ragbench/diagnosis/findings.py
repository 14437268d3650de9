"""What the audit leaves on disk."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ragbench.diagnosis.audit import Diagnosis
from ragbench.diagnosis.conclusion import Conclusion
from ragbench.diagnosis.counterfactual import Trial
from ragbench.diagnosis.fixes import Fixes
from ragbench.diagnosis.measures import JUDGED, Measured
from ragbench.evaluation.evaluate import Outcome
from ragbench.evaluation.scores import COLUMNS, write_scores
from ragbench.files import atomic_path, write_json, write_text
from ragbench.generation.answers import write_answers
from ragbench.retrieval.runs import write_run


def all_scores(outcome: Outcome, measured: Measured, judge: str) -> pd.DataFrame:
    """Return the outcome's scores with the measures of the answers from retrieved passages.

    The estimates are called ``correctness``, ``grounding`` and ``relevance``; a judge's scores have RAGAS's names.
    """
    names = {name: metric for metric, name in JUDGED.items()} if judge == "endpoint" else {}
    table = measured.table[
        (measured.table["condition"] == "retrieved") & measured.table["measure"].isin(JUDGED.values())
    ]
    splits = {query.id: split for split, queries in outcome.questions.items() for query in queries}
    added = table.assign(
        system=outcome.system, metric=table["measure"].replace(names), split=table["query_id"].map(splits)
    )
    return pd.concat([outcome.scores, added[COLUMNS]], ignore_index=True)


def write_findings(
    folder: Path,
    outcome: Outcome,
    trial: Trial,
    scores: pd.DataFrame,
    diagnosis: Diagnosis,
    fixes: Fixes,
    conclusion: Conclusion,
    metrics: dict[str, Any],
) -> None:
    """Write the audit's files.

    base.trec (all questions), base.answers.jsonl and base.{oracle,none}.answers.jsonl, scores.parquet, metrics.json,
    evidence.parquet, findings.json (decision, attribution, signs), and settings.yaml: the cheap setting that
    fine-tuning has to beat, as a params file; empty if none gained anything.
    """
    write_run(trial.run, folder / "base.trec", "base")
    write_answers(outcome.answers.values(), folder / "base.answers.jsonl")
    for condition in ("oracle", "none"):
        write_answers(trial.answers.get(condition, {}).values(), folder / f"base.{condition}.answers.jsonl")
    write_scores(scores, folder / "scores.parquet")
    write_json(folder / "metrics.json", metrics)
    with atomic_path(folder / "evidence.parquet") as temporary:
        diagnosis.evidence.to_parquet(temporary, index=False)
    found = {
        "decision": asdict(conclusion.decision),
        "headline": conclusion.headline,
        "certainty": conclusion.certainty,
        "sections": conclusion.sections,
        "faults": [sign.name for sign in diagnosis.faults],
        "consequences": diagnosis.consequences,
        "special_words": diagnosis.special,
        "attribution": asdict(diagnosis.attribution) if diagnosis.attribution else None,
        "signs": [asdict(sign) for sign in diagnosis.signs],
        "settings": fixes.best.changes if fixes.best and fixes.gain > 0 else {},
    }
    write_json(folder / "findings.json", _without_nan(found))
    write_text(folder / "settings.yaml", yaml.safe_dump(found["settings"], sort_keys=False))


def _without_nan(value: Any) -> Any:
    """Replace NaN, which is no JSON, by null."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value
