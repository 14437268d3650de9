"""The audit's evidence: one row a question, with all that is known of it; every finding is a count over these rows."""

from collections import Counter

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, Passage, Query, needed_groups, passages
from ragbench.diagnosis.counterfactual import CONDITIONS, Condition, Trial, each_question, gold_of
from ragbench.diagnosis.vocabulary import special_share, vocabulary_gap
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import citation_recall, form, token_f1
from ragbench.generation.answers import Answer
from ragbench.retrieval.encoder import Encoder, encode

STAGES = ("not found", "not shown", "cut off", "shown")
"""How far the last of a question's needed passages came: not among the ranked ones; ranked, but too low to be shown;
shown, but shortened or left out by the length limit; shown whole."""
NEIGHBOURS = 5
HOUSE = "house style"


def gather(collection: Collection, trial: Trial, measures: pd.DataFrame, encoder: Encoder) -> pd.DataFrame:
    """Return one row for every question of a trial.

    Columns:
        split, query_id, text, answerable, needs (how many passages an answer needs).
        stage: one of `STAGES`; missing for a question without gold passages. `first_gold`: the best passage is gold.
        words (in the question), special (share of special words in question and gold passages), gap (vocabulary gap).
        asked, answered: the system was to answer it; it did (finish_reason other than ``error``).
        MEASURE_CONDITION: the measures under each condition (see `measures`); missing where they do not apply.
        MEASURE_given: under the retrieved contexts if everything needed was shown whole, else under the gold passages:
            how the generator does when it has what it needs.
        oracle_cut: the gold passages did not fit whole, so that nothing can be said with all that is needed.
        cited_given: share of the needs that the answer cites. unchanged_given: token F1 of that answer with the one
            given without passages.
        form, usual_form: of the answer, and of most answers to the `NEIGHBOURS` most similar questions (see
            `answer_metrics.form`); `HOUSE` for one in the house style.

    Args:
        measures: columns condition, query_id, measure, value.
        encoder: the fixed encoder, whose tokenizer tells special words.

    Raises:
        RagbenchError: there are no questions.
    """
    asked = list(each_question(trial.questions))
    if not asked:
        raise RagbenchError("There are no questions to audit: the splits in audit_splits are empty.")
    known = passages(collection, (name for split, query in asked for name in gold_of(collection, split, query)))
    table = pd.DataFrame([_row(collection, trial, split, query, known) for split, query in asked])
    table["special"] = _special(collection, trial, known, encoder)
    if len(measures):
        wide = measures.assign(column=measures["measure"] + "_" + measures["condition"]).pivot(
            index="query_id", columns="column", values="value"
        )
        table = table.join(wide, on="query_id")
    for measure in ("correctness", "grounding", "relevance", "format", "refused"):
        for condition in CONDITIONS:
            if f"{measure}_{condition}" not in table:
                table[f"{measure}_{condition}"] = np.nan
        whole = table["stage"] == "shown"
        table[f"{measure}_given"] = table[f"{measure}_retrieved"].where(
            whole, table[f"{measure}_oracle"].mask(table["oracle_cut"])
        )
    return table.join(_forms(trial, measures, encoder), on="query_id")


def _row(
    collection: Collection, trial: Trial, split: str, query: Query, known: dict[str, Passage]
) -> dict[str, object]:
    gold = gold_of(collection, split, query)
    groups = needed_groups(query, gold)
    ranks = {passage_id: rank for rank, passage_id in enumerate(trial.run.get(query.id, {}), start=1)}
    stage = _stage(trial, query.id, groups, ranks) if groups else None
    return {
        "split": split,
        "query_id": query.id,
        "text": query.text,
        "answerable": query.answerable,
        "needs": len(groups),
        "stage": stage,
        "first_gold": bool(groups) and next(iter(ranks), None) in gold,
        "words": len(query.text.split()),
        "gap": vocabulary_gap(query.text, [known[name].full_text for name in gold]) if groups else np.nan,
        "asked": query.id in trial.answers.get("retrieved", {}),
        "answered": _answer(trial, "retrieved", query.id) is not None,
        **_given(trial, query.id, groups, stage),
    }


def _answer(trial: Trial, condition: Condition, query_id: str) -> Answer | None:
    answer = trial.answers.get(condition, {}).get(query_id)
    return None if answer is None or answer.finish_reason == "error" else answer


def _stage(trial: Trial, query_id: str, groups: tuple[frozenset[str], ...], ranks: dict[str, int]) -> str:
    answer = trial.answers.get("retrieved", {}).get(query_id)
    if not all(group & ranks.keys() for group in groups):
        return "not found"
    if any(min(ranks[name] for name in group if name in ranks) > trial.contexts for group in groups):
        return "not shown"
    if answer is None:
        return "shown"
    whole = set(answer.context_ids) - set(answer.cut_ids)
    return "shown" if all(group & whole for group in groups) else "cut off"


def _given(
    trial: Trial, query_id: str, groups: tuple[frozenset[str], ...], stage: str | None
) -> dict[str, float | bool | None]:
    oracle = _answer(trial, "oracle", query_id)
    cut = oracle is not None and bool(oracle.cut_ids)
    answer = _answer(trial, "retrieved", query_id) if stage == "shown" else None if cut else oracle
    without = _answer(trial, "none", query_id)
    return {
        "oracle_cut": cut,
        "cited_given": citation_recall(answer.answer, groups) if answer else None,
        "unchanged_given": token_f1(answer.answer, without.answer) if answer and without else None,
    }


def _special(collection: Collection, trial: Trial, known: dict[str, Passage], encoder: Encoder) -> np.ndarray:
    """Mean of the question's own share and that of its gold passages taken together."""
    asked = list(each_question(trial.questions))
    gold = [" ".join(known[name].full_text for name in gold_of(collection, split, query)) for split, query in asked]
    questions = special_share([query.text for _, query in asked], encoder)
    return np.where([bool(text) for text in gold], (questions + special_share(gold, encoder)) / 2, questions)


def _forms(trial: Trial, measures: pd.DataFrame, encoder: Encoder) -> pd.DataFrame:
    answers = trial.answers.get("retrieved", {})
    kept = measures[(measures["condition"] == "retrieved") & (measures["measure"] == "format")]
    forms = {
        query_id: HOUSE if value else form(answers[query_id].answer)
        for query_id, value in zip(kept["query_id"], kept["value"], strict=True)
        if not np.isnan(value)
    }
    texts = {query.id: query.text for _, query in each_question(trial.questions)}
    if len(forms) < 2:
        return pd.DataFrame({"form": pd.Series(forms, dtype=object), "usual_form": pd.Series(forms, dtype=object)})
    vectors = encode(encoder, [texts[query_id] for query_id in forms], "query")
    near = np.argsort(-(vectors @ vectors.T - 2 * np.eye(len(forms))), axis=1, kind="stable")[:, :NEIGHBOURS]
    kinds = np.array(list(forms.values()), dtype=object)
    usual = [
        Counter(kinds[[other for other in row if other != own]]).most_common(1)[0][0] for own, row in enumerate(near)
    ]
    return pd.DataFrame({"form": kinds, "usual_form": usual}, index=list(forms))
