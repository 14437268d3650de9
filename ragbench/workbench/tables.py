"""Tables and pages as HTML; whatever comes from a collection or a model is escaped."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML
from jinja2 import Environment, PackageLoader, select_autoescape

_TEMPLATES = Environment(
    loader=PackageLoader("ragbench.workbench"),
    autoescape=select_autoescape(default=True),
    trim_blocks=True,
    lstrip_blocks=True,
)


def fill(template: str, **values: Any) -> str:
    """Return a template of `ragbench/workbench/templates` filled with values, which are escaped."""
    return _TEMPLATES.get_template(template).render(**values)


def plain_table(table: pd.DataFrame, decimals: int = 3) -> HTML:
    """Show a small table; numbers to the right, text escaped."""
    numeric = [pd.api.types.is_numeric_dtype(table[column]) for column in table]
    rows = [
        [_cell(value, decimals) for value in row] for row in table.astype(object).itertuples(index=False, name=None)
    ]
    return HTML(fill("table.html.j2", columns=list(table.columns), numeric=numeric, rows=rows))


def _cell(value: Any, decimals: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "–"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def tidy_metrics(systems: Mapping[str, Any]) -> pd.DataFrame:
    """Turn the ``systems`` of a metrics.json into columns system, split, metric, mean, low, high, n, scored."""
    rows = [
        (system, split, metric, entry["mean"], *(entry["ci"] or (None, None)), entry["n"], entry["scored"])
        for system, splits in systems.items()
        for split, metrics in splits.items()
        for metric, entry in metrics.items()
    ]
    return pd.DataFrame(rows, columns=["system", "split", "metric", "mean", "low", "high", "n", "scored"])


def metrics_rows(systems: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
    """Return ((system, split) columns, (metric, cells) rows): a cell is the mean with its interval and n."""
    columns = [(system, split) for system, splits in systems.items() for split in splits]
    metrics = list(dict.fromkeys(metric for system, split in columns for metric in systems[system][split]))
    return columns, [
        (metric, [_metric_cell(systems[system][split].get(metric)) for system, split in columns]) for metric in metrics
    ]


def _metric_cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    if entry["mean"] is None:
        return f"not scored (0 of {entry['n']})"
    interval = f" [{entry['ci'][0]:.3f}, {entry['ci'][1]:.3f}]" if entry["ci"] else ""
    count = str(entry["n"]) if entry["scored"] == entry["n"] else f"{entry['scored']} of {entry['n']}"
    return f"{entry['mean']:.3f}{interval} n = {count}"


def metrics_table(systems: Mapping[str, Any]) -> HTML:
    """Show every metric of every system and split: mean, 95 % interval, and how many of n questions were scored."""
    columns, rows = metrics_rows(systems)
    return HTML(fill("metrics.html.j2", columns=columns, rows=rows))


def against_base(metrics: Mapping[str, Any], split: str, baseline: str = "base") -> HTML:
    """Show one split of a metrics.json: a row a metric, the baseline's mean, and each other system against it.

    Each of these has its mean, the mean paired difference with its 95 % interval, and ``better`` or ``worse`` where
    that is clear.
    """
    entries = [entry for entry in metrics["comparisons"] if (entry["split"], entry["baseline"]) == (split, baseline)]
    systems = list(dict.fromkeys(entry["system"] for entry in entries))
    cells = {
        (entry["metric"], entry["system"]): (
            _mean_cell(metrics["systems"], entry["system"], split, entry["metric"]),
            _difference_cell(entry),
            _reading(entry),
        )
        for entry in entries
    }
    rows = [
        (name, _mean_cell(metrics["systems"], baseline, split, name), [cells.get((name, each)) for each in systems])
        for name in dict.fromkeys(entry["metric"] for entry in entries)
    ]
    return HTML(fill("against.html.j2", split=split, baseline=baseline, systems=systems, rows=rows))


def tidy_comparisons(comparisons: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Turn the ``comparisons`` of a metrics.json into a table.

    Columns baseline, system, split, metric, difference, low, high, n.
    """
    rows = [
        (
            entry["baseline"],
            entry["system"],
            entry["split"],
            entry["metric"],
            entry["difference"],
            *(entry["ci"] or (None, None)),
            entry["n"],
        )
        for entry in comparisons
    ]
    table = pd.DataFrame(rows, columns=["baseline", "system", "split", "metric", "difference", "low", "high", "n"])
    return table.astype(dict.fromkeys(["difference", "low", "high"], float))


def comparison_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of each paired comparison of a metrics.json; none where it has none.

    split, metric, the two means, difference with its interval, p, p after Holm, n, and ``better``, ``worse`` or ``–``:
    a difference whose interval excludes 0 and whose p is below .05.
    """
    return [
        [
            entry["split"],
            entry["metric"],
            *(
                f"{entry[role]} {_mean_cell(metrics['systems'], entry[role], entry['split'], entry['metric'])}"
                for role in ("baseline", "system")
            ),
            _difference_cell(entry),
            _p_cell(entry["p_value"]),
            _p_cell(entry["p_holm"]),
            str(entry["n"]),
            _reading(entry),
        ]
        for entry in metrics.get("comparisons", [])
    ]


def _mean_cell(systems: Mapping[str, Any], system: str, split: str, metric: str) -> str:
    mean = systems.get(system, {}).get(split, {}).get(metric, {}).get("mean")
    return "–" if mean is None else f"{mean:.3f}"


def _difference_cell(entry: Mapping[str, Any]) -> str:
    if entry["difference"] is None:
        return "–"
    # Adding 0 makes a rounded -0.0 positive.
    middle, *ends = (f"{round(value, 3) + 0.0:+.3f}" for value in (entry["difference"], *(entry["ci"] or ())))
    return f"{middle} [{', '.join(ends)}]" if ends else middle


def _p_cell(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _reading(entry: Mapping[str, Any]) -> str:
    # Over a handful of questions the bootstrap's interval alone is too narrow.
    if entry["ci"] is None or entry["p_value"] >= 0.05:
        return "–"
    return "better" if entry["ci"][0] > 0 else "worse" if entry["ci"][1] < 0 else "–"


def comparison_table(metrics: Mapping[str, Any]) -> HTML:
    """Show the paired comparisons of a metrics.json, and in words which differences are clear."""
    return HTML(fill("comparisons.html.j2", comparisons=comparison_rows(metrics)))


def change_list(changes: Sequence[Any], metric: str, systems: tuple[str, str]) -> HTML:
    """Show questions (`evaluation.comparison.Change`) to open one by one: what two systems found and answered.

    Args:
        systems: names of the systems before and after.
    """
    return HTML(fill("changes.html.j2", changes=changes, metric=metric, systems=systems))


def bullet_list(headline: str, items: Sequence[str]) -> HTML:
    """Show a headline and sentences below it."""
    return HTML(fill("bullets.html.j2", headline=headline, items=items))


def case_list(cases: Sequence[Any], metric: str) -> HTML:
    """Show questions (`evaluation.cases.Case`) to open one by one: expected, answered, shown and missed passages."""
    return HTML(fill("cases.html.j2", cases=cases, metric=metric))


def verdict_box(headline: str, certainty: str, sections: Mapping[str, Sequence[str]]) -> HTML:
    """Show a verdict: what to do, how sure that is, and under headings the sentences behind it."""
    return HTML(fill("verdict.html.j2", headline=headline, certainty=certainty, sections=sections))


def sign_list(signs: Sequence[Any], examples: Mapping[str, Sequence[Any]], consequences: Mapping[str, str]) -> HTML:
    """Show warning signs (`diagnosis.sign.Sign`) to open one by one, each with questions that show it.

    Args:
        examples: name of the sign → cases (`evaluation.cases.Case`).
        consequences: name of a sign → name of the one that explains it.
    """
    causes = {
        effect: next(sign.title for sign in signs if sign.name == cause) for effect, cause in consequences.items()
    }
    return HTML(fill("signs.html.j2", signs=signs, examples=examples, causes=causes))
