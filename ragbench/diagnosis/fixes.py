"""Cheaper fixes: settings that cost nothing, tried before training is advised.

Every setting is first held against the system as it is without answering anything: for how many questions would all
that is needed be shown whole? Those that show more, and those that act on the generator alone, are then answered on the
first of the audited splits (dev), the best is chosen there, and its gain is reported on the other questions, which had
no part in the choice.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from ragbench.collection.schema import Collection, needed_groups
from ragbench.diagnosis.counterfactual import Trial, each_question, gold_of
from ragbench.diagnosis.intervals import rate_interval
from ragbench.diagnosis.measures import correctness_of, given_answers
from ragbench.evaluation.answer_metrics import HOUSE_STYLE, conforms
from ragbench.evaluation.evaluate import Questions, System
from ragbench.evaluation.scores import bootstrap_interval
from ragbench.generation.generate import answer_run, prompts_for, room_for_context, token_counter
from ragbench.generation.prompts import TokenCount
from ragbench.retrieval.encoder import Encoder
from ragbench.retrieval.retrieve import retrieve
from ragbench.retrieval.runs import Run


@dataclass(frozen=True)
class Setting:
    """A system that differs from the audited one in some parameters, which cost nothing to change.

    Attributes:
        name: for people.
        changes: parameter → value, as in a params file.
        system: the system with these changes.
        finds: whether it changes what is shown, rather than how the generator is asked.
    """

    name: str
    changes: dict[str, Any]
    system: System
    finds: bool


@dataclass(frozen=True)
class Fixes:
    """What was tried.

    Attributes:
        table: a row for each setting: setting, changes; shown (share of the choosing questions for which all that is
            needed is shown whole); shown_gain on the other questions with low and high; right, correctness and format
            (share of right answers, mean estimate, and share in the house style on the choosing questions; missing if
            it was not answered).
        best: the setting that did best on the choosing questions, or None if none beat the system as it is.
        gain, low, high: what it gains on the questions that did not choose it: in the share of right answers if it was
            answered, else in the share of questions for which all that is needed is shown; missing if there are none.
        n: those questions.
        chosen_on: how many questions chose.
    """

    table: pd.DataFrame
    best: Setting | None
    gain: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    chosen_on: int = 0


def cheap_settings(base: System) -> list[Setting]:
    """Return the settings to try: the other retrieval methods, one passage, twice the passages, twice the length, and
    the instruction at the other end of the prompt."""
    found = []
    for method in ("dense", "bm25", "fusion"):
        if method != base.retriever.method:
            changed = replace(base, retriever=replace(base.retriever, method=method))
            found.append(Setting(method, {"retriever_method": method}, changed, True))
    k, tokens = base.generator.contexts, base.generator.max_context_tokens
    more = {"generator_contexts": 2 * k, "generator_max_context_tokens": 2 * tokens}
    found.append(
        Setting(f"{2 * k} passages", more, _generator(base, contexts=2 * k, max_context_tokens=2 * tokens), True)
    )
    longer = _generator(base, max_context_tokens=2 * tokens)
    found.append(Setting("twice the length", {"generator_max_context_tokens": 2 * tokens}, longer, True))
    if k > 1:
        found.append(Setting("one passage", {"generator_contexts": 1}, _generator(base, contexts=1), False))
    order = "instruction_first" if base.generator.order == "instruction_last" else "instruction_last"
    name = order.replace("_", " ")
    found.append(Setting(name, {"generator_prompt": order}, _generator(base, order=order), False))
    return found


def _generator(base: System, **changes: Any) -> System:
    return replace(base, generator=replace(base.generator, **changes))


def try_fixes(
    collection: Collection,
    base: System,
    trial: Trial,
    evidence: pd.DataFrame,
    encoder: Encoder,
    *,
    answered: int = 3,
    answer_format: str = HOUSE_STYLE,
    right_from: float = 0.5,
    seed: int = 0,
) -> Fixes:
    """Try the cheap settings on the questions of a trial.

    The choosing questions are those of the trial's first split; if the others, or it, have none, every second question.
    Correctness is estimated in the same way for all, also where a judge scored the system as it is.

    Args:
        evidence: see `evidence.gather`.
        answered: at most so many settings are answered, in the order of what they promise.
    """
    base_trial = replace(trial, answers={"retrieved": trial.answers.get("retrieved", {})})
    base_right = _correctness(collection, base_trial, encoder)
    rows = evidence[evidence["stage"].notna()]
    choosing, judging = _halves(rows, base_right)
    settings = cheap_settings(base)
    # The settings show much the same passages, so most of their lengths are known after the first.
    count_tokens = cache(token_counter(base.generator))
    runs = {"as it is": trial.run} | {s.name: _run(collection, trial, base, s) for s in settings}
    whole = {"as it is": _shown_whole(collection, trial.questions, runs["as it is"], base, count_tokens)}
    whole |= {s.name: _shown_whole(collection, trial.questions, runs[s.name], s.system, count_tokens) for s in settings}
    gains = {s.name: _mean(whole[s.name], choosing) - _mean(whole["as it is"], choosing) for s in settings}
    right = {"as it is": base_right}
    form = {"as it is": _in_format(base_trial, answer_format)}
    texts = [query.text for _, query in each_question(trial.questions)]
    worth = sorted((s for s in settings if gains[s.name] > 0 or not s.finds), key=lambda s: -gains[s.name])
    for setting in [s for s in worth if base_right and _readable(s, texts)][:answered]:
        ids = choosing & base_right.keys()
        tried = _try(collection, trial, runs[setting.name], setting, ids)
        right[setting.name] = _correctness(collection, tried, encoder)
        form[setting.name] = _in_format(tried, answer_format)
    best = _best(settings, right, gains, choosing, right_from)
    table = pd.DataFrame(
        [_row(name, settings, whole, right, choosing, judging, form, right_from, seed) for name in ["as it is", *gains]]
    )
    chosen_on = len(choosing & base_right.keys()) if base_right else len(choosing)
    if best is None:
        return Fixes(table, None, chosen_on=chosen_on)
    if best.name not in right:
        difference = _difference(whole[best.name], whole["as it is"], judging)
    else:
        rest = judging & base_right.keys()
        confirmed = _correctness(collection, _try(collection, trial, runs[best.name], best, rest), encoder)
        difference = _difference(_as_right(confirmed, right_from), _as_right(base_right, right_from), rest)
    return Fixes(table, best, *_interval(difference, seed), n=len(difference), chosen_on=chosen_on)


def _halves(rows: pd.DataFrame, answered: dict[str, float]) -> tuple[set[str], set[str]]:
    """Return the questions that choose and those that confirm; both have answered ones if there are two."""
    first = rows["split"] == rows["split"].iloc[0] if len(rows) else pd.Series(dtype=bool)
    counted = rows["query_id"].isin(answered) if answered else pd.Series(True, rows.index)
    if not (counted & first).any() or not (counted & ~first).any():
        first = counted.astype(int).cumsum() % 2 == 1
    return set(rows["query_id"][first]), set(rows["query_id"][~first])


def _readable(setting: Setting, texts: list[str]) -> bool:
    """Whether the generator is known to read as much as the setting would show it."""
    generator = setting.system.generator
    return generator.backend != "local" or generator.max_context_tokens <= room_for_context(generator, texts)


def _as_right(values: dict[str, float], right_from: float) -> dict[str, float]:
    return {name: float(value >= right_from) for name, value in values.items()}


def _run(collection: Collection, trial: Trial, base: System, setting: Setting) -> Run:
    if setting.system.retriever == base.retriever:
        return trial.run
    return retrieve(collection, [query for _, query in each_question(trial.questions)], setting.system.retriever)


def _shown_whole(
    collection: Collection, questions: Questions, run: Run, system: System, count_tokens: TokenCount
) -> dict[str, float]:
    """Whether all that each question needs would be shown whole, 0 or 1."""
    asked = list(each_question(questions))
    prompts = prompts_for(collection, [query for _, query in asked], run, system.generator, count_tokens)
    found: dict[str, float] = {}
    for (split, query), prompt in zip(asked, prompts, strict=True):
        groups = needed_groups(query, gold_of(collection, split, query))
        shown = set(prompt.context_ids) - set(prompt.cut_ids)
        if groups:
            found[query.id] = float(all(group & shown for group in groups))
    return found


def _try(collection: Collection, trial: Trial, run: Run, setting: Setting, ids: set[str]) -> Trial:
    """Answer some questions under a setting."""
    asked = {split: [query for query in queries if query.id in ids] for split, queries in trial.questions.items()}
    queries = [query for _, query in each_question(asked)]
    answers = {answer.query_id: answer for answer in answer_run(collection, queries, run, setting.system.generator)}
    return Trial(asked, run, setting.system.generator.contexts, {"retrieved": answers})


def _correctness(collection: Collection, trial: Trial, encoder: Encoder) -> dict[str, float]:
    scores = correctness_of(collection, trial, encoder)
    return _by_query(scores["query_id"], scores["value"])


def _in_format(trial: Trial, answer_format: str) -> dict[str, float]:
    return {a.query.id: conforms(a.answer.answer, answer_format) for a in given_answers(trial)}


def _by_query(ids: pd.Series, values: pd.Series) -> dict[str, float]:
    return {str(name): float(value) for name, value in zip(ids, values, strict=True) if not np.isnan(value)}


def _best(
    settings: list[Setting],
    right: dict[str, dict[str, float]],
    gains: dict[str, float],
    choosing: set[str],
    right_from: float,
) -> Setting | None:
    """The setting with the most right answers on the choosing questions, of equals that with the best estimates; where
    nothing was answered, the one that shows most. None if that is no more than as it is."""
    base = right["as it is"]
    if not base:
        best = max(settings, key=lambda s: gains[s.name])
        return best if gains[best.name] > 0 else None
    value = {}
    for setting in settings:
        values = right.get(setting.name, {})
        shared = choosing & values.keys() & base.keys()
        # A setting under which answers fail must not win by what it leaves out.
        if len(shared) > len(choosing & base.keys()) / 2:
            counted = _difference(_as_right(values, right_from), _as_right(base, right_from), shared).mean()
            value[setting.name] = (float(counted), float(_difference(values, base, shared).mean()))
    name = max(value, key=lambda name: value[name], default=None)
    return next((s for s in settings if s.name == name), None) if name and value[name] > (0.0, 0.0) else None


def _row(
    name: str,
    settings: list[Setting],
    whole: dict[str, dict[str, float]],
    right: dict[str, dict[str, float]],
    choosing: set[str],
    judging: set[str],
    form: dict[str, dict[str, float]],
    right_from: float,
    seed: int,
) -> dict[str, Any]:
    changes = next((s.changes for s in settings if s.name == name), {})
    gain = low = high = float("nan")
    if changes:
        gain, low, high = _interval(_difference(whole[name], whole["as it is"], judging), seed)
    values = right.get(name, {})
    return {
        "setting": name,
        "changes": ", ".join(f"{key}: {value}" for key, value in changes.items()) or "–",
        "shown": _mean(whole[name], choosing),
        "shown_gain": gain,
        "low": low,
        "high": high,
        "right": _mean(_as_right(values, right_from), choosing),
        "correctness": _mean(values, choosing),
        "format": _mean(form.get(name, {}), choosing & values.keys()),
    }


def _mean(values: dict[str, float], ids: set[str]) -> float:
    kept = [value for query_id, value in values.items() if query_id in ids]
    return float(np.mean(kept)) if kept else float("nan")


def _difference(values: dict[str, float], base: dict[str, float], ids: set[str]) -> np.ndarray:
    return np.array([values[name] - base[name] for name in sorted(ids & values.keys() & base.keys())])


def _interval(difference: np.ndarray, seed: int) -> tuple[float, float, float]:
    if not len(difference):
        return float("nan"), float("nan"), float("nan")
    low, high = bootstrap_interval(difference, seed) or (float("nan"), float("nan"))
    if len(difference) > 1 and len(set(difference)) == 1:
        # All alike: resampling sees no spread, but so many questions do not rule out that one in a few differs.
        slack = rate_interval(0, len(difference))[1]
        low, high = max(-1.0, low - slack), min(1.0, high + slack)
    return float(difference.mean()), low, high
