import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from planted_vocabulary import WORDS, planted_collection
from sentence_transformers import SentenceTransformer

from ragbench.collection.schema import UNANSWERABLE, Query
from ragbench.evaluation.comparison import Comparison, compare
from ragbench.evaluation.evaluate import retrieve_and_score
from ragbench.evaluation.scores import summarise
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.decision import write_training
from ragbench.training.dev import HELD_OUT, LABELLED, DevSet, choose_dev
from ragbench.training.guards import Guard, guard_table
from ragbench.training.pairs import labelled_pairs
from ragbench.training.result import (
    check,
    decide,
    questions_to_compare,
    save_retriever,
    tried_table,
    with_dev,
)
from ragbench.training.retriever import Recipe, Tuned

FINE, BAD = Guard("loss was finite", True, "1.000 at first"), Guard("dev did not fall", False, "0.5 before, 0.4 after")
DEV = DevSet(LABELLED, {"q": WORDS[0]}, {"q": ["p1"]})
MADE_OF = {"collection": "planted", "pairs": {"labelled": 18, "title": 2}, "passages": 19}


@pytest.fixture(scope="module")
def data():
    """The planted collection with its test split as ood, where it also has a question without an answer."""
    made = planted_collection(concepts=8)
    lost = Query("lost", WORDS[0], tags=(UNANSWERABLE,), split="ood")
    qrels = {"train": made.qrels["train"], "dev": made.qrels["dev"], "ood": {**made.qrels["test"], "lost": {}}}
    return replace(made, queries={**made.queries, "lost": lost}, qrels=qrels)


@pytest.fixture(scope="module")
def collapsed(tiny_encoder, tmp_path_factory):
    """The base model with its last layer overwritten, so that all texts have the same embedding."""
    model = SentenceTransformer(str(tiny_encoder), device="cpu")
    [*_, last] = (layer for layer in model.modules() if isinstance(layer, torch.nn.LayerNorm))
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(1.0)
    folder = tmp_path_factory.mktemp("collapsed")
    model.save(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


def tuned_in(folder, **changes):
    log = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0], "dev": [None, 0.6]})
    made = Tuned(folder, 1e-4, 3.0, log, 0.5, 0.6, 8, 12, 1.0, 31.2, (FINE,))
    return replace(made, **changes)


def retrieved(name, data, dev, folder):
    return retrieve_and_score(
        name, data, questions_to_compare(data, dev), Retriever(model=str(folder), device="cpu", dtype="float32")
    )


def checked(data, dev, base, folder):
    before, after = retrieved("base", data, dev, base), retrieved("retriever", data, dev, folder)
    encoder = open_encoder(str(folder), device="cpu", dtype="float32")
    return check(tuned_in(folder), before, after, data, encoder), before, after


def lost(split, difference, metric="ndcg@10"):
    return Comparison(split, metric, "base", "retriever", difference, (difference - 0.1, difference), 0.2, 0.2, 20)


# The questions that choose, as a split


def test_a_labelled_dev_set_is_the_dev_split_without_what_has_no_gold(data):
    data = replace(data, qrels={**data.qrels, "dev": {**data.qrels["dev"], "lost": {}, "q0": {"p1": 1, "p2": 0}}})
    dev, _ = choose_dev(data, [], seed=0)
    found = with_dev(data, dev)
    assert found.queries == data.queries
    assert found.qrels["dev"] == {**planted_collection(8).qrels["dev"], "q0": {"p1": 1}}
    assert {name: found.qrels[name] for name in ("train", "ood")} == {n: data.qrels[n] for n in ("train", "ood")}


def test_held_out_pairs_become_a_split_that_can_be_scored(data, tiny_encoder):
    plain = replace(data, qrels={"train": data.qrels["train"]})
    dev, left = choose_dev(plain, labelled_pairs(plain), seed=0)
    made_up = replace(dev, questions={**dev.questions, "title:p3:1": WORDS[3]}, gold={**dev.gold, "title:p3:1": ["p3"]})
    found = with_dev(plain, made_up)
    assert found.queries["title:p3:1"] == Query("title:p3:1", WORDS[3])
    assert {**found.queries, **plain.queries} == found.queries
    scores = retrieved("base", found, made_up, tiny_encoder).scores
    assert set(scores["query_id"]) == set(made_up.questions)
    assert not set(dev.questions) & {pair.query_id for pair in left}
    assert "dev" not in plain.qrels and "title:p3:1" not in plain.queries


def test_dev_and_ood_are_compared_without_what_cannot_be_answered(data):
    dev, _ = choose_dev(data, [], seed=0)
    found = questions_to_compare(data, dev)
    assert [query.id for query in found["dev"]] == list(data.qrels["dev"])
    assert [query.id for query in found["ood"]] == [name for name in data.qrels["ood"] if name != "lost"]
    assert list(questions_to_compare(replace(data, qrels={"dev": data.qrels["dev"]}), dev)) == ["dev"]


# Whether the tuned model is kept


def test_a_model_that_embeds_everything_alike_is_refused_and_the_reason_names_the_check(data, tiny_encoder, collapsed):
    dev, _ = choose_dev(data, [], seed=0)
    found, before, after = checked(data, dev, tiny_encoder, collapsed)
    comparisons = compare(pd.concat([before.scores, after.scores]), "base", "retriever")
    decision = decide(found, comparisons, dev, 0.01)
    assert decision["kept"] == "base"
    assert "embeddings did not collapse: no (mean cosine of different passages 1.00" in decision["reason"]
    assert f"{len(dev.questions)} questions rank 1 different passages first" in decision["reason"]
    assert "loss was finite" not in decision["reason"]


def test_a_model_that_is_no_worse_is_kept(data, tiny_encoder):
    dev, _ = choose_dev(data, [], seed=0)
    found, before, _ = checked(data, dev, tiny_encoder, tiny_encoder)
    assert [guard.name for guard in found] == ["loss was finite", "embeddings did not collapse", "dev did not fall"]
    assert all(guard.holds for guard in found)
    mean = before.scores.query("split == 'dev' and metric == 'ndcg@10'")["value"].mean()
    assert found[-1].measured == f"nDCG@10 {mean:.3f} before, {mean:.3f} after"
    assert decide(found, [], dev, 0.01) == {"kept": "tuned", "reason": decide([], [], dev, 0)["reason"], "notes": []}


def test_a_fall_on_dev_is_measured_on_dev_alone(data, tiny_encoder):
    dev, _ = choose_dev(data, [], seed=0)
    before = retrieved("base", data, dev, tiny_encoder)
    encoder = open_encoder(str(tiny_encoder), device="cpu", dtype="float32")
    for split, holds in (("dev", False), ("ood", True)):
        lower = before.scores.assign(value=before.scores["value"].where(before.scores["split"] != split, -1.0))
        *_, last = check(tuned_in(tiny_encoder), before, replace(before, scores=lower), data, encoder)
        assert (last.name, last.holds) == ("dev did not fall", holds)


def test_one_failed_check_is_enough_and_only_the_failed_are_named():
    decision = decide([FINE, BAD, FINE], [], DEV, 0.01)
    assert decision["kept"] == "base"
    assert decision["reason"] == "The base model is kept. dev did not fall: no (0.5 before, 0.4 after)."


def test_a_loss_out_of_domain_is_said_and_does_not_decide():
    decision = decide([FINE], [lost("dev", 0.2), lost("ood", -0.05)], DEV, 0.01)
    assert decision["kept"] == "tuned"
    assert decision["notes"] == [
        "nDCG@10 on dev: +0.200 [+0.100, +0.200], 20 questions.",
        "nDCG@10 on ood: -0.050 [-0.150, -0.050], 20 questions.",
        "Out of domain it lost more than the 0.01 that is tolerated.",
    ]


@pytest.mark.parametrize("comparison", [lost("ood", -0.009), lost("dev", -0.5), lost("ood", -0.5, "recall@5")])
def test_what_is_tolerated_or_not_out_of_domain_is_not_called_a_loss(comparison):
    assert not [note for note in decide([FINE], [comparison], DEV, 0.01)["notes"] if "tolerated" in note]


def test_a_split_without_a_scored_question_is_not_spoken_of():
    empty = Comparison("ood", "ndcg@10", "base", "retriever", None, None, None, None, 0)
    assert decide([FINE], [empty], DEV, 0.01)["notes"] == []


@pytest.mark.parametrize(("kind", "said"), [(LABELLED, 0), (HELD_OUT, 1)])
def test_it_is_said_that_no_labelled_question_chose(kind, said):
    notes = decide([FINE], [], replace(DEV, kind=kind), 0.01)["notes"]
    assert len([note for note in notes if "held back from training" in note]) == said == len(notes)


# What is left on disk


@pytest.fixture
def saved(data, tiny_encoder, collapsed, tmp_path):
    """Save either model as decided; return a function that does, and the metrics that go into the card."""
    dev, _ = choose_dev(data, [], seed=0)
    outcomes = [retrieved("base", data, dev, tiny_encoder), retrieved("retriever", data, dev, collapsed)]
    metrics = summarise(pd.concat([outcome.scores for outcome in outcomes]))

    def save(kept):
        decision = {"kept": kept, "reason": "Because of that.", "notes": ["And of this."]}
        recipe = Recipe(model=str(tiny_encoder))
        save_retriever(tmp_path / "m", tuned_in(collapsed), recipe, decision, metrics, {"seed": 13}, MADE_OF)
        return tmp_path / "m"

    return save, metrics


@pytest.mark.parametrize("kept", ["tuned", "base"])
def test_the_folder_holds_the_model_that_is_kept_and_opens_as_it_is(saved, tiny_encoder, collapsed, kept):
    folder = saved[0](kept)
    source = collapsed if kept == "tuned" else tiny_encoder
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    found, expected = (SentenceTransformer(str(path), device="cpu").encode(WORDS[:9]) for path in (folder, source))
    np.testing.assert_array_equal(found, expected)
    assert not list(folder.rglob("*.bin"))
    title = next(line for line in (folder / "README.md").read_text().splitlines() if line.startswith("# "))
    assert ("tuned on" in title, "discarded" in title) == (kept == "tuned", kept == "base")


def test_the_card_shows_the_numbers_that_were_measured(saved):
    save, metrics = saved
    text = (save("tuned") / "README.md").read_text()
    for split in ("dev", "ood"):
        [cells] = re.findall(
            rf"^\| {split} \| ndcg@10 \| (\S+) .*\(n = (\d+)\) \| (\S+) .*\(n = (\d+)\) \|$", text, re.M
        )
        for system, mean, n in zip(("base", "retriever"), cells[::2], cells[1::2], strict=True):
            assert float(mean) == pytest.approx(metrics[system][split]["ndcg@10"]["mean"], abs=5e-4)
            assert int(n) == metrics[system][split]["ndcg@10"]["scored"]
    assert "Because of that. And of this." in text
    assert "20 pairs (18 labelled, 2 title) over 19 passages, in 12 steps of\n31 seconds" in text
    assert "learning rate 0.0001; best at step 8." in text and "- seed: 13" in text


def test_the_results_are_the_named_files_and_what_was_given(data, tiny_encoder, tmp_path):
    dev, _ = choose_dev(data, [], seed=0)
    before = retrieved("base", data, dev, tiny_encoder)
    after = replace(before, system="retriever", scores=before.scores.assign(system="retriever"))
    scores = pd.concat([before.scores, after.scores], ignore_index=True)
    decision = decide([FINE, BAD], [], dev, 0.01)
    tuned = tuned_in(tiny_encoder)
    write_training(tmp_path / "out", tuned, [before, after], scores, {"systems": {}}, decision, [FINE, BAD])
    files = {path.name for path in (tmp_path / "out").iterdir()}
    names = {"base.trec", "retriever.trec", "scores.parquet", "metrics.json", "training_log.csv", "decision.json"}
    assert files == names
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "scores.parquet"), scores)
    assert pd.read_csv(tmp_path / "out" / "training_log.csv")["loss"].tolist() == [2.0, 1.0]
    kept = json.loads((tmp_path / "out" / "decision.json").read_text())
    assert kept["kept"] == "base" and [guard["holds"] for guard in kept["guards"]] == [True, False]
    lines = (tmp_path / "out" / "retriever.trec").read_text().splitlines()
    assert len(lines) == sum(map(len, after.run.values())) and lines[0].endswith("retriever")


def test_tables_show_a_row_a_check_and_a_row_a_training():
    table = guard_table([FINE, BAD])
    assert table["holds"].tolist() == ["yes", "NO"] and table["check"].tolist() == [FINE.name, BAD.name]
    shown = tried_table([tuned_in("x"), tuned_in("y", learning_rate=2e-5, epochs=1.5, best_dev=0.55)])
    assert shown["learning rate"].tolist() == ["0.0001", "2e-05"] and shown["epochs"].tolist() == ["3", "1.5"]
    assert shown["dev at best"].tolist() == [0.6, 0.55] and shown["best step"].tolist() == ["8 of 12"] * 2
