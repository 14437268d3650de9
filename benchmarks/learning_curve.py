"""A learning curve of the retriever: would more labels pay?

ragbench's default is trained on a quarter, half and all of the labelled train questions of a collection, the smaller
parts within the larger, and judged on dev over the whole corpus. What decides is the paired difference between all and
half of them: if its interval lies above 0, twice as many questions can be expected to help again.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
from harness import arguments, finish
from retriever import BASE, ragbench_with

from ragbench.collection.load import load_collection
from ragbench.evaluation.comparison import compare
from ragbench.evaluation.evaluate import choose_questions, retrieval_scores
from ragbench.evaluation.scores import summarise
from ragbench.training.pairs import labelled_pairs

SHARES = (0.25, 0.5, 1.0)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "collection", nargs="?", default="pydocs", help="a collection folder with train and dev, or pydocs"
    )
    parser.add_argument("--seed", type=int, default=0)


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    data = load_collection(chosen.collection)
    pairs = labelled_pairs(data)
    names = pd.Series(sorted({pair.query_id for pair in pairs})).sample(frac=1, random_state=chosen.seed).tolist()
    shares = SHARES[:1] if chosen.quick else SHARES
    questions = choose_questions(data, ["dev"])
    tables = [retrieval_scores("0 %", data, questions, BASE)[1]]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RAGBENCH_CACHE"] = cache
        for share in shares:
            kept = set(names[: round(share * len(names))])
            part = [pair for pair in pairs if pair.query_id in kept]
            with tempfile.TemporaryDirectory() as folder:
                tuned = ragbench_with({}, data, part, chosen.seed, Path(folder))
                tables.append(retrieval_scores(f"{share:.0%}", data, questions, replace(BASE, model=str(tuned)))[1])
    scores = pd.concat(tables, ignore_index=True).query("metric == 'ndcg@10'")
    rows = [
        {"variant": system, "ndcg@10": splits["dev"]["ndcg@10"]["mean"], "ci": splits["dev"]["ndcg@10"]["ci"]}
        for system, splits in summarise(scores, chosen.seed).items()
    ]
    if len(shares) > 1:
        [last] = compare(scores, f"{shares[-2]:.0%}", f"{shares[-1]:.0%}", seed=chosen.seed)
        low = last.ci[0] if last.ci else float("nan")
        rows.append({"variant": "all over half", "ndcg@10": last.difference, "ci": last.ci})
        print("More labels would pay." if low > 0 else "That more labels would pay cannot be told from this.")
    finish(Path(__file__).stem, chosen, rows, [])  # neither answer is a failure: there is no bound to hold


if __name__ == "__main__":
    main()
