"""What the generator's examples do: one training for each way of making or weighing them, judged on dev as in use.

Judged are all systems on the same questions of dev and ood with the passages that the retriever finds, three to a
prompt. The collection's test split is not touched. Finished trainings are kept in the cache folder, so what was
stopped goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from finetune import DEVICE, GENERATOR, RECIPE, examples, settings
from harness import arguments, finish

from ragbench.collection.load import load_collection
from ragbench.evaluation.answer_metrics import HOUSE_STYLE
from ragbench.evaluation.comparison import compare
from ragbench.evaluation.evaluate import System, choose_questions, evaluate
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.answering import Exam
from ragbench.training.examples import Mix
from ragbench.training.generator import fine_tune

VARIANTS = {
    "default": (Mix(contexts=3), RECIPE),
    "best first": (Mix(contexts=3, shuffle=False), RECIPE),
    "gold alone": (Mix(contexts=1), RECIPE),
    "five passages": (Mix(contexts=5), RECIPE),
    "a tenth without gold": (Mix(contexts=3, without_gold=0.1), RECIPE),
    "a fifth without gold": (Mix(contexts=3, without_gold=0.2), RECIPE),
    "refusals in full": (Mix(contexts=3), replace(RECIPE, refusal_weight=1.0)),
}
MEASURES = ("answer_f1", "refusal", "citation_precision", "format")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="pydocs", help="a collection with train and dev")
    parser.add_argument("--questions", type=int, default=0, help="train questions; 0 for all")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--answer-format", default=HOUSE_STYLE)
    parser.add_argument("--seed", type=int, default=0)


def main() -> None:
    chosen = arguments(__doc__.splitlines()[0], options)
    questions, limit = (16, 8) if chosen.quick else (chosen.questions, 0)
    data, retriever = load_collection(chosen.folder), Retriever(device=DEVICE)
    asked = choose_questions(data, [split for split in ("dev", "ood") if split in data.qrels], limit, chosen.seed)
    encoder = open_encoder("all-MiniLM-L6-v2", device=DEVICE)
    systems, seconds, tables = {"base": GENERATOR}, {"base": 0.0}, []
    for name in chosen.variants:
        mix, recipe = VARIANTS[name]
        mix = replace(mix, seed=chosen.seed)
        train, dev = (examples(data, split, questions, mix, retriever, chosen.seed) for split in ("train", "dev"))
        exam = Exam(dev.select(range(min(len(dev), 24))), GENERATOR.max_new_tokens, chosen.answer_format)
        tuned = fine_tune(recipe, settings("unused", num_train_epochs=chosen.epochs, seed=chosen.seed), train, exam)
        systems[name] = replace(GENERATOR, model=str(tuned.folder))
        seconds[name] = tuned.seconds
    for name, each in systems.items():
        system = System(name, retriever, each)
        tables.append(evaluate(system, data, asked, encoder=encoder, answer_format=chosen.answer_format).scores)
    scores = pd.concat(tables, ignore_index=True)
    able = {query.id for queries in asked.values() for query in queries if query.answerable}
    rows = [row for name in systems for row in _rows(name, scores, able, seconds[name], chosen)]
    finish(Path(__file__).stem, chosen, rows, [])


def _rows(
    name: str, scores: pd.DataFrame, able: set[str], seconds: float, chosen: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a row a split: the means, how many were refused, and answer F1's difference to the first variant.

    Args:
        able: the questions that can be answered.
    """
    against = {
        (c.split, c.metric): c for c in compare(scores, chosen.variants[0], name, seed=chosen.seed)
    } if name != chosen.variants[0] else {}  # fmt: skip
    rows = []
    for split, part in scores[scores["system"] == name].groupby("split", sort=False):
        means = part.groupby("metric")["value"].mean()
        row = {"variant": name, "split": split, **{each: float(means[each]) for each in MEASURES}, "seconds": seconds}
        right = part[part["metric"] == "refusal"].set_index("query_id")["value"]
        wrongly, rightly = right[right.index.isin(able)].eq(0), right[~right.index.isin(able)].eq(1)
        row["refused wrongly"] = f"{wrongly.sum()} of {len(wrongly)}"
        row["refused rightly"] = f"{rightly.sum()} of {len(rightly)}"
        found = against.get((str(split), "answer_f1"))
        if found is not None and found.ci:
            row["F1 against the first variant"] = f"{found.difference:+.3f} [{found.ci[0]:+.3f}, {found.ci[1]:+.3f}]"
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
