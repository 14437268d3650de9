"""What is measured of every answer of a trial, without a language model or by one.

Columns condition, query_id, measure, value; the measures, each 0 to 1, are ``correctness`` (against the reference),
``grounding`` (support by the passages shown), ``relevance`` (speaks to its question), ``format`` and ``refused``. A
value that could not be had is missing; a measure that does not apply to an answer has no row.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, Query, passages
from ragbench.diagnosis.anchors import grounding_bar
from ragbench.diagnosis.counterfactual import CONDITIONS, Condition, Trial, each_question, gold_of
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import CITATION, HOUSE_STYLE, conforms, refuses
from ragbench.evaluation.correctness import Compared, correctness
from ragbench.evaluation.grounding import AnswerWithContexts, grounding
from ragbench.evaluation.grounding_model import fitted
from ragbench.evaluation.judge import Judge, Judgement, Sample, combined, coverage_table, judge
from ragbench.evaluation.relevance import relevance
from ragbench.generation.answers import Answer
from ragbench.retrieval.encoder import Encoder

COLUMNS = ["condition", "query_id", "measure", "value"]
RELEVANT_SHARE = 0.8
"""Offline, an answer must be nearer to its own question than to this share of the others."""
RELEVANT_COSINE = 0.5
"""RAGAS's answer relevancy is a mean cosine of questions, mostly .6 to .9 for answers to the point."""
JUDGED = {"answer_correctness": "correctness", "faithfulness": "grounding", "answer_relevancy": "relevance"}
"""What each of RAGAS's metrics stands for among the measures."""


@dataclass(frozen=True)
class Measured:
    """The measures, and what is known of how far they can be trusted.

    Attributes:
        table: columns condition, query_id, measure, value.
        supported_from, relevant_from: from where on an answer counts as supported, and as speaking to its question.
        reliability: of the offline estimate, its agreement with people on held-out labels; of a judge, how many of n
            it scored, why not the others, and the spread between repeats.
        spent: what a judge cost, in words.
        paid: the same as a number, in the currency of its prices.
    """

    table: pd.DataFrame
    supported_from: float
    relevant_from: float
    reliability: pd.DataFrame
    spent: str
    paid: float = 0.0


@dataclass(frozen=True)
class Asked:
    """One answer under one condition, with its question."""

    condition: Condition
    split: str
    query: Query
    answer: Answer


def given_answers(trial: Trial) -> Iterator[Asked]:
    """Yield every answer that could be had; failed ones (finish_reason ``error``) are left out."""
    for condition in CONDITIONS:
        answers = trial.answers.get(condition, {})
        for split, query in each_question(trial.questions):
            answer = answers.get(query.id)
            if answer is not None and answer.finish_reason != "error":
                yield Asked(condition, split, query, answer)


def measure_answers(
    collection: Collection,
    trial: Trial,
    encoder: Encoder,
    *,
    kind: str,
    llm: Judge,
    likelihood_model: str = "",
    answer_format: str = HOUSE_STYLE,
) -> Measured:
    """Measure all answers of a trial.

    Args:
        encoder: the fixed encoder.
        kind: ``offline``, or ``endpoint`` for `llm` in the place of the estimates of correctness, grounding and
            relevance.
        likelihood_model: a language model whose likelihoods help to tell support; empty for none.

    Raises:
        RagbenchError: an unknown kind, a model that cannot be had, or a judge that refuses.
    """
    model = likelihood_model or None
    if kind == "offline":
        fit = fitted("full" if model else "light")
        return Measured(
            offline_measures(collection, trial, encoder, model, answer_format),
            grounding_bar(collection, trial, encoder, model) or fit.threshold,
            RELEVANT_SHARE,
            pd.DataFrame([asdict(agreement) for agreement in fit.agreement]),
            "No judge was asked, so nothing was spent.",
        )
    if kind != "endpoint":
        raise RagbenchError(f"judge '{kind}' is unknown; use offline or endpoint.")
    estimated = offline_measures(collection, trial, encoder, None, answer_format)
    table, judgements = judged_measures(collection, trial, estimated, llm, encoder)
    coverage = [coverage_table(found).assign(condition=condition) for condition, found in judgements.items()]
    calls, kept, paid = (
        sum(getattr(found, name) for found in judgements.values()) for name in ("calls", "cached_calls", "cost")
    )
    spent = f"{calls} calls to {llm.model} for {paid:.2f}; {kept} more were in the cache."
    return Measured(table, 0.5, RELEVANT_COSINE, pd.concat(coverage, ignore_index=True), spent, paid)


def offline_measures(
    collection: Collection,
    trial: Trial,
    encoder: Encoder,
    likelihood_model: str | None,
    answer_format: str = HOUSE_STYLE,
) -> pd.DataFrame:
    """Measure with the fixed encoder, and for grounding with a language model's likelihoods if one is named.

    A passage that was cut counts whole for grounding.
    """
    given = list(given_answers(trial))
    rows: list[_Row] = [(a.condition, a.query.id, "format", conforms(a.answer.answer, answer_format)) for a in given]
    rows += [(a.condition, a.query.id, "refused", float(refuses(a.answer.answer))) for a in given]
    rows += _relevance(trial, given, encoder)
    rows += _grounding(collection, given, encoder, likelihood_model)
    return pd.concat(
        [pd.DataFrame(rows, columns=COLUMNS).astype({"value": float}), correctness_of(collection, trial, encoder)],
        ignore_index=True,
    )


def correctness_of(collection: Collection, trial: Trial, encoder: Encoder) -> pd.DataFrame:
    """Estimate the correctness of every answer whose question has a reference and can be answered."""
    rows = _correctness(collection, list(given_answers(trial)), encoder)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def comparable(query: Query) -> bool:
    """Whether a question can be answered and has a reference that says something."""
    return query.answerable and re.search(r"\w", CITATION.sub(" ", query.answer or "")) is not None


_Row = tuple[str, str, str, float]


def _correctness(collection: Collection, given: list[Asked], encoder: Encoder) -> list[_Row]:
    compared = [a for a in given if comparable(a.query)]
    items = []
    for a in compared:
        gold = passages(collection, gold_of(collection, a.split, a.query))
        texts = tuple(passage.full_text for passage in gold.values())
        items.append(Compared(a.query.text, a.answer.answer, a.query.answer or "", texts))
    values = correctness(items, encoder)
    # A refusal of a question that has an answer is wrong, however near its words come.
    return [
        (a.condition, a.query.id, "correctness", 0.0 if refuses(a.answer.answer) else value)
        for a, value in zip(compared, values, strict=True)
    ]


def _relevance(trial: Trial, given: list[Asked], encoder: Encoder) -> list[_Row]:
    others = [query.text for _, query in each_question(trial.questions)]
    values = relevance([a.query.text for a in given], [a.answer.answer for a in given], others, encoder)
    return [
        (a.condition, a.query.id, "relevance", np.nan if value is None else value)
        for a, value in zip(given, values, strict=True)
    ]


def _grounding(collection: Collection, given: list[Asked], encoder: Encoder, model: str | None) -> list[_Row]:
    rest = [a for a in given if a.answer.context_ids and not refuses(a.answer.answer)]
    known = passages(collection, (name for a in rest for name in a.answer.context_ids))
    items = [
        AnswerWithContexts(a.query.text, a.answer.answer, tuple(known[name].full_text for name in a.answer.context_ids))
        for a in rest
    ]
    return [
        (a.condition, a.query.id, "grounding", np.nan if found.score is None else found.score)
        for a, found in zip(rest, grounding(items, encoder, model=model), strict=True)
    ]


def judged_measures(
    collection: Collection, trial: Trial, estimated: pd.DataFrame, llm: Judge, encoder: Encoder
) -> tuple[pd.DataFrame, dict[Condition, Judgement]]:
    """Replace the estimates of correctness, grounding and relevance by a judge's; return them and what was judged.

    What the judge could not score is missing; no estimate takes its place. Empty answers and refusals are not judged:
    where there is an answer they are wrong, and they claim nothing that could be supported.

    Raises:
        RagbenchError: see `judge.judge`.
    """
    given = list(given_answers(trial))
    silent = [a for a in given if not re.search(r"\w", a.answer.answer) or refuses(a.answer.answer)]
    wrong = [(a.condition, a.query.id, "correctness", 0.0) for a in silent if comparable(a.query)]
    judgements: dict[Condition, Judgement] = {}
    parts = [estimated[~estimated["measure"].isin(JUDGED.values())], pd.DataFrame(wrong, columns=COLUMNS)]
    for condition in CONDITIONS:
        asked = [a for a in given if a.condition == condition and a not in silent]
        metrics = [name for name in JUDGED if condition != "none" or name == "answer_correctness"]
        if condition == "retrieved":
            metrics += ["llm_context_precision", "llm_context_recall"]
        judgements[condition] = judge(_samples(collection, asked), llm, encoder, metrics)
        llm = replace(llm, spent=llm.spent + judgements[condition].cost)  # one cap for all conditions
        scores = combined(judgements[condition])
        scores = scores[scores["metric"].isin(JUDGED)]
        parts.append(scores.assign(condition=condition, measure=scores["metric"].map(JUDGED))[COLUMNS])
    return pd.concat(parts, ignore_index=True), judgements


def _samples(collection: Collection, asked: list[Asked]) -> list[Sample]:
    known = passages(collection, (name for a in asked for name in a.answer.context_ids))
    return [
        Sample(
            a.query.id,
            a.query.text,
            a.answer.answer,
            tuple(known[name].full_text for name in a.answer.context_ids),
            a.query.answer if comparable(a.query) else None,
        )
        for a in asked
    ]
