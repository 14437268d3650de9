"""What the comparison of tuned systems with their baseline says, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

SIGNIFICANT = 0.05
RANKING, ANSWERS = "ndcg@10", "answer_f1"
MEASURE = {"retriever": RANKING, "generator": ANSWERS, "both": ANSWERS, "end_to_end": ANSWERS}
"""The measure by which each tuned system is judged, fixed before anything was measured."""
_TRAINING = {
    "retriever": "fine-tuning the retriever",
    "generator": "fine-tuning the generator",
    "both": "fine-tuning each part",
    "end_to_end": "training both parts together",
}
STARTS = {"end_to_end": "both"}
"""The system that a training goes on from, where that is not the baseline."""
_OF_ANSWERS = {
    "citation_precision": "how much of what is cited is right (citation_precision)",
    "format": "answers in the house style (format)",
    "refusal": "refusing just where the documents do not tell (refusal)",
    "grounding": "how far answers are supported by what is shown (grounding)",
    "faithfulness": "how far answers are supported by what is shown (faithfulness)",
}
_ELSEWHERE: dict[str, dict[str, str]] = {
    RANKING: {
        "context_recall": "what the generator is shown of all that an answer needs (context_recall)",
        ANSWERS: "what answers share with the references, in words (answer_f1)",
    },
    ANSWERS: _OF_ANSWERS,
}
"""What else is told of a system on test, by the measure that it is judged by."""
_NAMES = {RANKING: "nDCG@10"}
_Entry = Mapping[str, Any]


def verdict(
    metrics: Mapping[str, Any], decisions: Mapping[str, Mapping[str, Any]], *, tolerance: float = 0.01
) -> dict[str, Any]:
    """Return {"headline", "certainty", "use", "sections"}: which system to use, and what each tuning did.

    To be used is the system with the largest gain in answer F1 on test among those whose own measure (`MEASURE`)
    clearly rose; without one it is the base.

    Args:
        metrics: of metrics.json, with the comparisons of every system with ``base``.
        decisions: tuned system → what its training decided on dev, see `tuning_verdict`.
        tolerance: mean loss on ood that is taken into account without warning.
    """
    told = {
        system: tuning_verdict(metrics, decision, system=system, tolerance=tolerance)
        for system, decision in decisions.items()
    }
    winners = [system for system in told if told[system]["gain"]]
    use = max(winners, key=lambda system: _difference(metrics, system, ANSWERS), default="base")
    sections = {system: [f"{each['headline']} {each['certainty']}", *each["reasons"]] for system, each in told.items()}
    if "end_to_end" in sections:
        sections["end_to_end"] += _added(metrics, "both", "end_to_end")
    if len(told) == 1:
        [only] = told.values()
        return {key: only[key] for key in ("headline", "certainty")} | {"use": use, "sections": {"": only["reasons"]}}
    if not winners:
        headline, certainty = "Keep the base: no tuned system is clearly better on test.", "See each below."
    else:
        headline = f"Use '{use}'. {told[use]['headline']}"
        certainty = told[use]["certainty"] + (
            f" It was picked by its answers on test among the {len(winners)} systems with a clear gain, so its gain "
            "flatters a little."
            if len(winners) > 1
            else ""
        )
    return {"headline": headline, "certainty": certainty, "use": use, "sections": sections}


def tuning_verdict(
    metrics: Mapping[str, Any],
    decision: Mapping[str, Any],
    *,
    system: str = "retriever",
    baseline: str = "base",
    tolerance: float = 0.01,
) -> dict[str, Any]:
    """Return {"headline", "certainty", "reasons", "gain"}: whether a tuning helped, and what it did elsewhere.

    Args:
        metrics: of metrics.json, with the comparisons of `system` with `baseline`.
        decision: what the training stage decided on dev: ``kept`` (``tuned`` or ``base``) and ``reason``. Where it kept
            the base, the two systems are the same, and there is nothing to tell of them.
        system: one of `MEASURE`.
        tolerance: mean loss on ood that is taken into account without warning.
    """
    found: dict[tuple[str, str], _Entry] = {
        (entry["split"], entry["metric"]): entry
        for entry in metrics["comparisons"]
        if (entry["baseline"], entry["system"]) == (baseline, system) and entry["ci"] is not None
    }
    chosen = f"Decided on dev: {decision['reason'].rstrip('.')}."
    if decision["kept"] == "base":
        start = STARTS.get(system, baseline)
        return _not_kept(system, start if start in metrics["systems"] else baseline, chosen)
    metric = MEASURE[system]
    name = _NAMES.get(metric, metric)
    main, ood = found.get(("test", metric)), found.get(("ood", metric))
    headline = _headline(main, name, system)
    if ood and _lost_too_much(ood, tolerance):
        headline += f"; on ood it lost {_amount(ood)}, more than the {tolerance:.3f} that is tolerated"
    elsewhere = [(words, found.get(("test", measure))) for measure, words in _ELSEWHERE[metric].items()]
    return {
        "headline": f"{headline}.",
        "certainty": _certainty(main, list(found.values()), metrics["comparisons"]),
        "gain": main is not None and _direction(main) > 0,
        "reasons": [
            chosen,
            f"On test, {_went(main, name, metrics)}.",
            f"On ood, {_went(ood, name, metrics)}{_within(ood, tolerance)}.",
            *(f"Elsewhere, on test, {_went(entry, words, metrics)}." for words, entry in elsewhere if entry),
        ],
    }


def _added(metrics: Mapping[str, Any], baseline: str, system: str) -> list[str]:
    """Tell whether going on from `baseline` added anything; nothing where they were not compared."""
    wanted = (baseline, system, "test", MEASURE[system])
    for entry in metrics["comparisons"]:
        if (entry["baseline"], entry["system"], entry["split"], entry["metric"]) == wanted and entry["ci"]:
            told = {
                1: "Joint training added to",
                0: "Joint training added nothing clear to",
                -1: "Joint training spoilt",
            }
            return [f"{told[_direction(entry)]} '{baseline}': {_went(entry, MEASURE[system], metrics)}."]
    return []


def _difference(metrics: Mapping[str, Any], system: str, metric: str) -> float:
    return next(
        (
            entry["difference"] or 0.0
            for entry in metrics["comparisons"]
            if (entry["baseline"], entry["system"], entry["split"], entry["metric"]) == ("base", system, "test", metric)
        ),
        0.0,
    )


def _direction(entry: _Entry) -> int:
    """Return 1 for a clear gain, -1 for a clear loss, else 0.

    Clear means that the interval excludes 0 and the randomization test gives p < .05: over a handful of questions the
    bootstrap's interval alone is too narrow.
    """
    low, high = entry["ci"]
    return 0 if entry["p_value"] >= SIGNIFICANT else int(low > 0) - int(high < 0)


def _headline(main: _Entry | None, name: str, system: str) -> str:
    tuning = _TRAINING[system]
    if main is None:
        return f"Whether {tuning} helped cannot be told: fewer than two questions of test have {name} for both systems"
    if _direction(main) > 0:
        return f"{tuning[0].upper()}{tuning[1:]} raised {name} on test by {_amount(main)}"
    if _direction(main) < 0:
        return f"Keep the base: {tuning} lowered {name} on test by {_amount(main)}"
    return f"Keep the base: {tuning} made no clear difference to {name} on test ({_signed(main)})"


def _not_kept(system: str, start: str, chosen: str) -> dict[str, Any]:
    """Tell that training left the system as it was when it started from `start`."""
    kept = "the base" if start == "base" else f"'{start}'"
    return {
        "headline": f"Keep {kept}: {_TRAINING[system]} did not pass the checks on dev.",
        "gain": False,
        "certainty": "Nothing was tested: dev decides, and nothing was left for test to confirm.",
        "reasons": [chosen, f"So the system '{system}' is the same as '{start}' in this report."],
    }


def _certainty(main: _Entry | None, found: Sequence[_Entry], family: Sequence[_Entry]) -> str:
    if main is None:
        return "Nothing was tested."
    signs = [_direction(entry) for entry in found if entry["p_holm"] < SIGNIFICANT]
    tested = sum(entry["p_value"] is not None for entry in family)
    return (
        f"{main['n']} questions, paired: randomization test {_p(main['p_value'])}, {_p(main['p_holm'])} after Holm's "
        f"correction for {tested} comparisons. After it, {signs.count(1)} of {len(found)} measures over the splits are "
        f"clearly better and {signs.count(-1)} clearly worse."
    )


def _went(entry: _Entry | None, name: str, metrics: Mapping[str, Any]) -> str:
    if entry is None:
        return f"{name} was scored for both systems on fewer than two questions"
    before, after = (
        metrics["systems"][entry[role]][entry["split"]][entry["metric"]]["mean"] for role in ("baseline", "system")
    )
    judged = {1: "a clear gain", -1: "a clear loss", 0: "no clear difference"}[_direction(entry)]
    return f"{name} went from {before:.3f} to {after:.3f}: {_signed(entry)}, {judged}, n = {entry['n']}"


def _lost_too_much(entry: _Entry, tolerance: float) -> bool:
    return _direction(entry) < 0 and entry["difference"] < -tolerance


def _within(entry: _Entry | None, tolerance: float) -> str:
    if entry is None or _direction(entry) > 0:
        return ""
    if _lost_too_much(entry, tolerance):
        return f"; the loss is more than the {tolerance:.3f} that is tolerated"
    if entry["ci"][0] >= -tolerance:
        return f"; at most the tolerated {tolerance:.3f} is lost"
    return f"; whether more than the tolerated {tolerance:.3f} is lost cannot be told"


def _amount(entry: _Entry) -> str:
    """Return how far a metric rose or fell, without a sign."""
    low, high = sorted(map(abs, entry["ci"]))
    return f"{abs(entry['difference']):.3f} [{low:.3f}, {high:.3f}]"


def _signed(entry: _Entry) -> str:
    # Adding 0 makes a rounded -0.0 positive.
    middle, low, high = (round(value, 3) + 0.0 for value in (entry["difference"], *entry["ci"]))
    return f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
