"""What support looks like in this collection: the estimate of grounding, held against answers known to be supported.

How high the estimate comes out depends on how passages and answers are written, so a fixed bar would call the terse
paraphrases of one collection invented and let the inventions of another pass. The references are known to be supported
by their gold passages, and not by those of other questions: the bar lies half-way between the two, in log-odds.
"""

import numpy as np
from scipy.special import expit, logit

from ragbench.collection.schema import Collection, Query, passages
from ragbench.diagnosis.counterfactual import Trial, each_question, oracle_run
from ragbench.evaluation.grounding import AnswerWithContexts, grounding
from ragbench.retrieval.encoder import Encoder
from ragbench.retrieval.runs import Run

FEWEST = 10
CLEAR = 0.75
"""Share of the references that must look better supported by their own passages than by others."""


def grounding_bar(collection: Collection, trial: Trial, encoder: Encoder, model: str | None) -> float | None:
    """Return from which estimate on an answer counts as supported; None where the references cannot tell.

    Half-way between the median log-odds of the references under their own gold passages and under those of the next
    question that has others. It takes `FEWEST` references for which both are known, of which `CLEAR` are better
    supported by their own: else the qrels or references are not what they should be, or the estimate fails on them.
    Only questions that were answered are used, so that no more is computed than the audit needs.
    """
    gold = oracle_run(collection, trial.questions)
    answered = trial.answers.get("retrieved", {})
    asked = [q for _, q in each_question(trial.questions) if q.id in gold and q.answer is not None and q.id in answered]
    pairs = [(query, other) for query in asked for other in [_next_apart(query, asked, gold)] if other]
    known = passages(collection, (name for query in asked for name in gold[query.id]))

    def scores(shown: list[Query]) -> list[float | None]:
        items = [
            AnswerWithContexts(query.text, query.answer or "", tuple(known[name].full_text for name in gold[from_.id]))
            for (query, _), from_ in zip(pairs, shown, strict=True)
        ]
        return [found.score for found in grounding(items, encoder, model=model)]

    both = list(zip(scores([q for q, _ in pairs]), scores([other for _, other in pairs]), strict=True))
    table = np.array([(own, others) for own, others in both if own is not None and others is not None], dtype=float)
    if len(table) < FEWEST or (table[:, 0] > table[:, 1]).mean() < CLEAR:
        return None
    return float(expit(np.median(logit(np.clip(table, 1e-6, 1 - 1e-6)), axis=0).mean()))


def _next_apart(query: Query, asked: list[Query], gold: Run) -> Query | None:
    """The next question, in a circle, that shares no gold passage."""
    place = asked.index(query)
    circle = asked[place + 1 :] + asked[:place]
    return next((other for other in circle if not gold[query.id].keys() & gold[other.id].keys()), None)
