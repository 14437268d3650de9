import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from generator_examples import dataset, example, refused
from transformers import AutoModelForCausalLM

from ragbench.collection.schema import UNANSWERABLE, Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.evaluation.comparison import compare
from ragbench.evaluation.evaluate import Outcome, System, evaluate
from ragbench.evaluation.scores import of_answers, summarise
from ragbench.generation.answers import Answer
from ragbench.generation.generate import Generator
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.answering import CRITERION
from ragbench.training.decision import write_training
from ragbench.training.generator import Tuned
from ragbench.training.generator_card import model_card
from ragbench.training.generator_model import Recipe, open_for_training, plain_model
from ragbench.training.generator_result import (
    check,
    closed_book,
    contexts_table,
    decide,
    examples_of,
    questions_to_compare,
    save_generator,
    tried_table,
)
from ragbench.training.guards import Guard
from ragbench.training.made_with import check_made_with, write_made_with

FINE = Guard("parameters moved", True, "by 1e-2 of their norm")
TEXTS = ["bab dad gag", "kak lal mam", "nan pap rar", "sas tat bab"]
QUERIES = {
    "d1": Query("d1", "bab?", "bab dad [p0]"),
    "d2": Query("d2", "kak?", "kak lal [p1]"),
    "d3": Query("d3", "zzz?", None, tags=(UNANSWERABLE,), split="dev"),
    "o1": Query("o1", "nan?", "nan pap [p2]"),
    "o2": Query("o2", "sas?", "sas tat [p3]"),
}
DATA = Collection(
    "planted",
    corpus_from_rows((f"p{n}", "", text, f"d{n}") for n, text in enumerate(TEXTS)),
    QUERIES,
    {"dev": {"d1": {"p0": 1}, "d2": {"p1": 1}, "d3": {}}, "ood": {"o1": {"p2": 1}, "o2": {"p3": 1}}},
)
TRAIN = dataset([example(n, answer) for n, answer in enumerate(["gag gag", "lal mam rar [p9]", "bab dad [p0]"])])
RETRIEVER = Retriever(method="bm25")


def tuned_in(folder=Path("nowhere"), **changes):
    log = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0], "dev": [None, 0.6], "dev_loss": [None, 1.5]})
    made = Tuned(folder, 1e-3, 2.0, log, {CRITERION: 0.2}, {CRITERION: 0.6}, 2, 2, 1234, 31.2, (FINE,))
    return replace(made, **changes)


@pytest.fixture
def encoder(tiny_encoder):
    return open_encoder(str(tiny_encoder), device="cpu", dtype="float32")


def outcome(name: str, replies: dict[str, str], monkeypatch, encoder) -> Outcome:
    """Return what `evaluate` makes of these answers."""
    answers = [Answer(query, text, ("p0",), (), 1, 1, 0.1, "stop") for query, text in replies.items()]
    with monkeypatch.context() as patch:
        patch.setattr("ragbench.evaluation.evaluate.answer_run", lambda *_: answers)
        return evaluate(System(name, RETRIEVER, Generator()), DATA, questions_to_compare(DATA), encoder=encoder)


BEFORE = {"d1": "xx", "d2": "yy", "d3": "zz", "o1": "nan pap", "o2": "sas tat"}


def failed(monkeypatch, encoder, tuned=None, **replies) -> list[str]:
    before = outcome("base", BEFORE, monkeypatch, encoder)
    after = outcome("generator", {**BEFORE, **replies}, monkeypatch, encoder)
    return [g.name for g in check(tuned or tuned_in(), before, after, TRAIN, 0.01, 0) if not g.holds]


# Whether the tuned model is kept


def test_a_model_that_answers_better_and_forgets_nothing_passes(monkeypatch, encoder):
    assert failed(monkeypatch, encoder, d1="bab dad [p0]", d2="kak lal [p1]") == []


def test_a_model_that_recites_train_answers_does_not_pass(monkeypatch, encoder):
    assert failed(monkeypatch, encoder, d1="lal mam rar [p2]", d2="Gag, gag.") == ["does not recite"]
    refusal = "The documents do not say. [none]"
    assert failed(monkeypatch, encoder, d1=refusal, d2=refusal, d3=refusal) == []


def test_a_model_that_lost_what_it_could_out_of_domain_does_not_pass(monkeypatch, encoder):
    assert failed(monkeypatch, encoder, o1="xx", o2="yy") == ["ood was not forgotten"]
    assert failed(monkeypatch, encoder, o1="xx") == [], "one of two questions proves nothing"


def test_a_model_that_fell_on_dev_and_guards_of_the_training_count_too(monkeypatch, encoder):
    worse = tuned_in(best={CRITERION: 0.1}, guards=(replace(FINE, holds=False),))
    assert failed(monkeypatch, encoder, worse) == ["parameters moved", "dev did not fall"]


def test_a_collection_without_ood_is_checked_without_it(monkeypatch, encoder):
    before, after = (outcome(name, BEFORE, monkeypatch, encoder) for name in ("base", "generator"))
    only_dev = [
        replace(each, scores=each.scores[each.scores["split"] == "dev"], questions={"dev": each.questions["dev"]})
        for each in (before, after)
    ]
    names = [guard.name for guard in check(tuned_in(), *only_dev, TRAIN, 0.01, 0)]
    assert names == ["parameters moved", "dev did not fall", "does not recite"]


def test_the_decision_names_what_failed_and_what_changed(monkeypatch, encoder):
    before = outcome("base", BEFORE, monkeypatch, encoder)
    after = outcome("generator", {**BEFORE, "d1": "bab dad [p0]", "d2": "kak lal [p1]"}, monkeypatch, encoder)
    comparisons = compare(pd.concat([before.scores, after.scores]), "base", "generator")
    kept = decide([FINE], comparisons, {"base": 0.12, "generator": 0.05})
    assert kept["kept"] == "tuned"
    assert "answer_f1 on dev: +1.000 [+1.000, +1.000], 2 questions." in kept["notes"]
    assert "Without any passage, answer F1 on dev: base 0.120, generator 0.050." in kept["notes"]
    refused_one = decide([FINE, Guard("does not recite", False, "7 of 9")], [], {"base": None})
    assert refused_one == {
        "kept": "base", "reason": "The base model is kept. does not recite: no (7 of 9).", "notes": []
    }  # fmt: skip


# What it is trained on, and what it knows


def test_the_contexts_of_the_examples_are_counted_by_kind():
    far = example(3, context_ids=["a", "b", "p3"], gold_ids=["p3"])
    table = contexts_table(dataset([example(0), far, refused(1), refused(2)])).set_index("kind")
    assert table.loc["gold retrieved"].to_dict() == {
        "examples": 2, "share": 0.5, "passages": 2, "distractors": 1, "gold stands at": 2
    }  # fmt: skip
    assert table.loc["gold left out", "distractors"] == 1 and pd.isna(table.loc["gold left out", "gold stands at"])


@pytest.mark.parametrize(("limit", "kept"), [(0, 7), (3, 3), (9, 7)])
def test_examples_of_a_split_are_spread_evenly_under_a_limit(limit, kept):
    rows = dataset([example(n, split="dev" if n % 2 else "train") for n in range(14)])
    found = examples_of(rows, "dev", limit)["query_id"]
    assert len(found) == len(set(found)) == kept and set(found) <= {f"q{n}" for n in range(1, 14, 2)}
    assert limit != 3 or list(found) == ["q1", "q5", "q9"]


def test_without_passages_only_the_answerable_questions_of_dev_are_asked(chat_server):
    url, requests = chat_server(lambda messages: "bab dad" if "bab" in messages[-1]["content"] else "nothing")
    served = Generator("endpoint", "m", endpoint=url)
    assert closed_book(questions_to_compare(DATA), DATA, {"base": served}) == {"base": 0.5}
    assert sorted(request["messages"][-1]["content"] for request in requests) == ["bab?", "kak?"]
    assert closed_book({"dev": [QUERIES["d3"]]}, DATA, {"base": served}) == {"base": None}


# What the examples were made with


@pytest.mark.parametrize(
    ("retriever", "generator", "named"),
    [
        (replace(RETRIEVER, bm25_b=0.9), Generator(), r"retriever bm25_b \(0.4 there, 0.9 here\)"),
        (RETRIEVER, Generator(contexts=5), r"prompt contexts \(3 there, 5 here\)"),
        (RETRIEVER, Generator(order="instruction_last"), "prompt order"),
        (RETRIEVER, Generator(instruction="Answer."), "prompt instruction"),
    ],
)
def test_examples_made_with_another_setting_are_refused(tmp_path, retriever, generator, named):
    write_made_with(tmp_path / "generator.json", RETRIEVER, Generator())
    check_made_with(tmp_path / "generator.json", RETRIEVER, Generator(model="another", device="cpu"))
    with pytest.raises(RagbenchError, match=f"{named}.*run 02_data_prep again"):
        check_made_with(tmp_path / "generator.json", retriever, generator)


def test_another_encoder_is_another_setting_but_not_another_name_of_it(tmp_path, tiny_encoder):
    import shutil

    dense = Retriever(model=str(tiny_encoder))
    write_made_with(tmp_path / "generator.json", dense, Generator())
    moved = shutil.copytree(tiny_encoder, tmp_path / "moved")
    check_made_with(tmp_path / "generator.json", replace(dense, model=str(moved)), Generator())
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    with pytest.raises(RagbenchError, match="retriever encoder"):
        check_made_with(tmp_path / "generator.json", replace(dense, model=str(moved)), Generator())


# What is left


def test_the_adapter_its_card_and_on_request_the_merged_model(tiny_generator, tmp_path, monkeypatch, encoder):
    network = open_for_training(Recipe(str(tiny_generator), rank=4, device="cpu", dtype="float32"), tiny_generator)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    network.save_pretrained(tmp_path / "adapter")
    for path in tiny_generator.glob("tokenizer*"):
        (tmp_path / "adapter" / path.name).write_bytes(path.read_bytes())
    both = [outcome(name, BEFORE, monkeypatch, encoder) for name in ("base", "generator")]
    scores = pd.concat([each.scores for each in both])
    decision = decide([FINE], [], {"base": 0.1})
    data = {"collection": "planted", "generator examples": {"gold retrieved": 3}}
    tuned = tuned_in(tmp_path / "adapter")
    card = model_card(tuned, Recipe("org/tiny"), decision, summarise(scores, 0), {"seed": 1}, data)
    save_generator(tmp_path / "out", tuned, decision, card, merge=True)
    assert "| dev | answer_f1 | 0.000" in card and "3 gold retrieved" in card and "library_name: peft" in card
    assert (tmp_path / "out" / "model" / "README.md").read_text() == card
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    ids = torch.arange(5, 20)[None]
    with torch.inference_mode():
        assert torch.allclose(merged(ids).logits, plain_model(network).eval()(ids).logits, atol=1e-4)
    save_generator(tmp_path / "plain", tuned, decision, card, merge=False)
    assert not (tmp_path / "plain" / "merged").exists()
    (tmp_path / "none").mkdir()
    save_generator(tmp_path / "none", tuned, decision | {"kept": "base"}, card, merge=True)
    assert [path.name for path in (tmp_path / "none").iterdir()] == ["README.md"]
    write_training(tmp_path / "out", tuned, both, scores, {"systems": {}}, decision, [FINE])
    assert json.loads((tmp_path / "out" / "decision.json").read_text())["guards"][0]["holds"] is True
    names = {"base.answers.jsonl", "generator.answers.jsonl", "scores.parquet", "metrics.json", "training_log.csv"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_row_of_the_tried_tells_what_dev_said():
    table = tried_table([tuned_in(best={CRITERION: 0.6, "format": 1.0})])
    assert table.iloc[0].to_dict() == {
        "learning rate": "0.001", "epochs": "2", f"dev {CRITERION} before": 0.2, f"dev {CRITERION}": 0.6,
        "dev format": 1.0, "best step": "2 of 2", "seconds": 31,
    }  # fmt: skip


def test_what_every_generator_shares_is_not_of_answers(monkeypatch, encoder):
    scores = outcome("base", BEFORE, monkeypatch, encoder).scores
    left = set(of_answers(scores)["metric"])
    assert {"ndcg@10", "context_recall", "answer_f1"} <= set(scores["metric"])
    assert {"answer_f1", "format", "refusal"} <= left
    assert not {name for name in left if "@" in name or name.startswith("context_")}
