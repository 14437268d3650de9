"""What support looks like in this collection: the estimate of grounding, held against answers known to be supported.

How high the estimate comes out depends on how passages and answers are written, so a fixed bar would call the terse
paraphrases of one collection invented and let the inventions of another pass. The references are known to be supported
by their gold passages, and not by those of other questions: the bar lies half-way between the two, in log-odds.
"""

import numpy as np
from scipy.special import expit, logit

from ragbench.collection.schema import Collection, passages
from ragbench.diagnosis.counterfactual import Trial, each_question, oracle_run
from ragbench.evaluation.grounding import AnswerWithContexts, grounding
from ragbench.retrieval.encoder import Encoder

FEWEST = 10


def grounding_bar(collection: Collection, trial: Trial, encoder: Encoder, model: str | None) -> float | None:
    """Return from which estimate on an answer counts as supported; None with fewer than `FEWEST` references.

    Half-way between the median log-odds of the references under their own gold passages and under those of the next
    question. Only the questions that were answered are used, so that no more is computed than the audit needs.
    """
    gold = oracle_run(collection, trial.questions)
    answered = trial.answers.get("retrieved", {})
    asked = [q for _, q in each_question(trial.questions) if q.id in gold and q.answer is not None and q.id in answered]
    if len(asked) < FEWEST:
        return None
    known = passages(collection, (name for query in asked for name in gold[query.id]))
    shown = [tuple(known[name].full_text for name in gold[query.id]) for query in asked]
    middles = []
    for contexts in (shown, shown[1:] + shown[:1]):
        items = [
            AnswerWithContexts(query.text, query.answer or "", texts)
            for query, texts in zip(asked, contexts, strict=True)
        ]
        scores = [found.score for found in grounding(items, encoder, model=model) if found.score is not None]
        middles.append(float(np.median(logit(np.clip(scores, 1e-6, 1 - 1e-6)))))
    return float(expit(np.mean(middles)))
