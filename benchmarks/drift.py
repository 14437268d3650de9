"""Drift: how often the monitor cries wolf, and from how much drift on it is heard.

Periods are drawn from the embedded collection's questions, with the base retriever's first scores; grounding and
refusals are left out, as nothing is answered. Without drift both periods are of the usual kind, no question twice. With
drift a share of the second period's questions is out of domain.
"""

import argparse
from pathlib import Path

import numpy as np
from harness import arguments, finish, result
from tqdm import tqdm

from ragbench.collection.load import load_collection
from ragbench.collection.schema import Query
from ragbench.deployment.drift import ALPHA, query_drift
from ragbench.deployment.query_log import Entry, make_entry
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever, retrieve

SHARES = (0.25, 0.5, 1.0)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=200, help="pairs of periods without drift; half as many with")
    parser.add_argument("--size", type=int, default=40, help="questions of a period")


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    repeats = 10 if chosen.quick else chosen.repeats
    data, encoder = load_collection("pydocs"), open_encoder("all-MiniLM-L6-v2")
    run = retrieve(data, list(data.queries.values()), Retriever(depth=1))

    def entry(query: Query) -> Entry:
        found = list(run[query.id].items())
        return make_entry(query.id, query.text, "", found, False, seconds=0.0, bundle="b/1", finish_reason="stop")

    ood = [entry(data.queries[name]) for name in data.qrels["ood"]]
    usual = [entry(data.queries[name]) for split, qrels in data.qrels.items() if split != "ood" for name in qrels]
    rows = []
    for share in (0.0, *SHARES):
        count = repeats if share == 0 else repeats // 2
        for seed in tqdm(range(count), desc=f"{share:.0%} out of domain", unit="pair"):
            rng = np.random.default_rng([seed, round(100 * share)])
            drawn = [usual[place] for place in rng.choice(len(usual), 2 * chosen.size, replace=False)]
            other = [ood[place] for place in rng.choice(len(ood), round(share * chosen.size), replace=False)]
            before, after = drawn[: chosen.size], [*other, *drawn[chosen.size :]][: chosen.size]
            signals = query_drift(before, after, data, encoder, seed)
            rows.append({"share": share, "alarms": [signal.name for signal in signals if signal.alarm]})
    rates = {share: np.mean([bool(row["alarms"]) for row in rows if row["share"] == share]) for share in (0.0, *SHARES)}
    for share, rate in rates.items():
        print(f"{share:4.0%} out of domain: an alarm in {rate:.1%}")
    # With 200 pairs a true rate of 5 % gives more than 8.5 % in one of a hundred runs.
    results = [result(f"false alarms (stated: {ALPHA:.0%})", float(rates[0.0]), 0.085, float.__le__)]
    results += [result("alarms where all questions are out of domain", float(rates[1.0]), 0.9, float.__ge__)]
    shown = [{"share": share, "alarm rate": float(rate)} for share, rate in rates.items()]
    finish(Path(__file__).stem, chosen, shown, results)


if __name__ == "__main__":
    main()
