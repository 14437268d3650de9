"""The card of the training data: what is in it, where it comes from, what was left out and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragbench.collection.schema import Collection
from ragbench.files import write_json, write_text
from ragbench.training.cards import listed
from ragbench.training.dev import LABELLED, DevSet
from ragbench.training.example_checks import Checked
from ragbench.training.negatives import Mined
from ragbench.training.pairs import Pair
from ragbench.training.sources import Gathered


def facts(
    collection: Collection,
    gathered: Gathered,
    pairs: Sequence[Pair],
    mined: Mined,
    dev: DevSet,
    checked: Checked,
    files: Mapping[str, str],
) -> dict[str, Any]:
    """Return the counts of a set of training data, and the SHA-256 of its files, as JSON.

    Args:
        pairs: those that are trained on; what `gathered` holds beyond them went into the dev set.
        files: name → SHA-256.
    """
    found = (mined.rows >= 0).sum(axis=1) if mined.rows.size else []
    return {
        "collection": collection.name,
        "splits": {split: len(qrels) for split, qrels in collection.qrels.items()},
        "pairs": dict(Counter(pair.source for pair in pairs)),
        "passages": len({pair.passage_id for pair in pairs}),
        "removed": dict(Counter(each.reason for each in gathered.removed)),
        "passages nobody asked about": len(gathered.written.silent),
        "dev": {"kind": dev.kind, "questions": len(dev.questions)},
        "negatives": {
            "asked for each pair": int(mined.rows.shape[1]),
            "mined": int(sum(found)),
            "pairs with fewer": int(sum(count < mined.rows.shape[1] for count in found)),
            "candidates": dict(zip(mined.outcomes["outcome"], map(int, mined.outcomes["candidates"]), strict=True)),
        },
        "generator examples": dict(Counter(example.kind for example in checked.kept)),
        "generator examples rejected": dict(Counter(each.reason for each in checked.rejected)),
        "files": dict(files),
    }


def card(known: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Return the card in Markdown, from `facts` and the parameters of its making."""
    labelled = known["dev"]["kind"] == LABELLED
    dev = "the collection's dev split" if labelled else "pairs held back from training, by document: nothing labelled"
    negatives = known["negatives"]
    sections = {
        "Pairs for the retriever, by source": listed(known["pairs"]),
        "Questions removed": listed(known["removed"]),
        "Hard negatives": (
            f"{negatives['mined']} mined, {negatives['asked for each pair']} asked for each pair; "
            f"{negatives['pairs with fewer']} pairs had fewer left and were filled up at random.\n\n"
            f"What became of the candidates:\n\n{listed(negatives['candidates'])}"
        ),
        "Examples for the generator, by kind": listed(known["generator examples"]),
        "Examples rejected": listed(known["generator examples rejected"]),
        "Choosing": f"{known['dev']['questions']} questions: {dev}.",
        "Splits of the collection (questions)": listed(known["splits"]),
        "Made with": listed(parameters),
        "SHA-256": listed(known["files"]),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    return (
        f"# Training data from {known['collection']}\n\n"
        "Questions, passages and answers are the collection's; synthetic questions were written by the generator named "
        "below, and no person has checked them. Documents with gold passages of dev, test or ood give no questions.\n\n"
        f"{text}\n"
    )


def write_card(known: Mapping[str, Any], parameters: Mapping[str, Any], folder: Path) -> str:
    """Write data_card.json and data_card.md; return the card's text."""
    text = card(known, parameters)
    write_json(folder / "data_card.json", known)
    write_text(folder / "data_card.md", text)
    return text
