import dataclasses

import pytest
import torch
from generator_examples import dataset, example, refused
from safetensors.torch import load_file
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig

from ragbench.collection.schema import Collection, Query, corpus_from_rows
from ragbench.errors import RagbenchError
from ragbench.generation.local import load_model, load_tokenizer
from ragbench.generation.prompts import REFUSAL
from ragbench.models import model_hash
from ragbench.retrieval.encoder import open_encoder
from ragbench.training import generator, preferences
from ragbench.training.answer_likelihood import Row, answer_log_likelihoods
from ragbench.training.answer_rows import answer_tokens
from ragbench.training.answering import CRITERION, Exam
from ragbench.training.generator_model import Recipe
from ragbench.training.preferences import ERRORS, errors, errors_table, prefer

PASSAGES = 30
TRAIN = dataset([example(number) if number % 4 else refused(number) for number in range(16)])
DEV = Exam(dataset([example(number) for number in range(16, 20)]), max_new_tokens=6)


@pytest.fixture
def collection():
    rows = [
        (f"p{n}", f"p{n}", f"The gate of tower {n} opens at noon and shuts at dusk.", f"d{n}") for n in range(PASSAGES)
    ]
    queries = {f"q{n}": Query(f"q{n}", f"When does the gate of tower {n} open?", "At noon.", (), ((f"p{n}",),)) for n in
               range(PASSAGES)}  # fmt: skip
    return Collection(
        "made", corpus_from_rows(rows), queries, {"train": {f"q{n}": {f"p{n}": 1} for n in range(PASSAGES)}}
    )


@pytest.fixture
def encoder(real_cache, monkeypatch):
    monkeypatch.setenv("RAGBENCH_CACHE", str(real_cache))
    return open_encoder("all-MiniLM-L6-v2", device="cpu")


def fine_tuned(folder, **recipe):
    made = Recipe(str(folder), **{"rank": 8, "alpha": 16, "device": "cpu", "dtype": "float32", **recipe})
    arguments = SFTConfig(
        "unused", max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2, bf16=False, use_cpu=True,
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, load_best_model_at_end=True,
        metric_for_best_model=f"eval_{CRITERION}", gradient_checkpointing=False, **generator.BOOKKEEPING,
    )  # fmt: skip
    return made, generator.fine_tune(made, arguments, TRAIN, DEV)


def settings(**changes):
    known = {
        "num_train_epochs": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "seed": 1, **preferences.BOOKKEEPING,
    }  # fmt: skip
    return DPOConfig("unused", **{**known, **changes})


def margins(folder, pairs):
    """How much likelier each expected answer is than the own one, in log-likelihood."""
    version = model_hash(folder)
    network, tokenizer = load_model(folder, version, "cpu", torch.float32), load_tokenizer(folder, version)
    sides = []
    for side in ("chosen", "rejected"):
        rows = [
            Row(*map(tuple, answer_tokens(pair | {"completion": pair[side]}, tokenizer, [1], None))) for pair in pairs
        ]
        with torch.no_grad():
            sides.append(answer_log_likelihoods(network, rows))
    return sides[0] - sides[1]


def test_an_answer_is_in_error_if_it_invents_answers_anyway_or_refuses(collection, encoder):
    asked = dataset([example(1), example(2), example(3), refused(4), refused(5), example(6)])
    invented, anyway = "Sixteen horses drank beer in Paris. [p2]", "It opens at noon."
    found = ["The gate opens at noon. [p1]", invented, REFUSAL, REFUSAL, anyway, "[p6]"]
    expected = ["", "unsupported", "refused", "", "answered anyway", "unsupported"]
    assert errors(asked, found, collection, encoder) == expected


def test_the_expected_answer_is_preferred_to_the_models_own_error(tiny_generator, collection, encoder):
    recipe, tuned = fine_tuned(tiny_generator)
    found = prefer(tuned, recipe, settings(), TRAIN, DEV, collection, encoder, limit=12)
    assert 6 <= len(found.pairs) <= 12
    assert set(found.pairs["error"]) <= set(ERRORS)
    expected = {row["query_id"]: row["completion"] for row in TRAIN}
    assert all(pair["chosen"] == expected[pair["query_id"]] != pair["rejected"] for pair in found.pairs)
    assert errors_table(found.pairs)["pairs"].sum() == len(found.pairs)
    folder, _ = preferences._trained(tuned, recipe, settings(), found.pairs, DEV.max_new_tokens)
    assert not any(path.is_dir() for path in folder.iterdir())  # the copy of the adapter that is the reference
    before, after = (load_file(path / "adapter_model.safetensors") for path in (tuned.folder, folder))
    assert before.keys() == after.keys() and any((before[name] != after[name]).any() for name in before)
    rows = list(found.pairs)
    assert (margins(folder, rows) - margins(tuned.folder, rows)).mean() > 1


def test_the_step_is_kept_only_if_dev_has_fewer_errors(tiny_generator, collection, encoder, monkeypatch):
    recipe, tuned = fine_tuned(tiny_generator)
    measured = iter([{CRITERION: 0.2, "unsupported": 0.5}, {CRITERION: 0.2, "unsupported": 0.5},
                     {CRITERION: 0.2, "unsupported": 0.5}, {CRITERION: 0.1, "unsupported": 0.4},
                     {CRITERION: 0.2, "unsupported": 0.5}, {CRITERION: 0.3, "unsupported": 0.4}])  # fmt: skip
    nothing = dict.fromkeys(ERRORS, 0.0)
    monkeypatch.setattr(preferences, "_on_dev", lambda *_: nothing | next(measured))
    trained = []
    whole = preferences._PairTrainer.train
    monkeypatch.setattr(preferences._PairTrainer, "train", lambda self: trained.append(1) or whole(self))
    found = [
        prefer(tuned, recipe, settings(max_steps=1), TRAIN, DEV, collection, encoder, limit=4) for _ in range(3)
    ]  # fmt: skip
    assert [each.kept for each in found] == [False, False, True]
    assert [each.tuned == tuned for each in found] == [True, True, False]
    assert found[2].tuned.folder != tuned.folder
    assert "errors on dev 0.50 → 0.40" in found[2].reason.lower()
    assert len(trained) == 1  # what was done is not done again


def test_a_generator_without_errors_is_left_alone(tiny_generator, collection, encoder, monkeypatch):
    recipe, tuned = fine_tuned(tiny_generator)
    monkeypatch.setattr(preferences, "errors", lambda examples, *_: [""] * len(examples))
    found = prefer(tuned, recipe, settings(), TRAIN, DEV, collection, encoder, limit=4)
    assert (found.tuned, found.kept, len(found.pairs)) == (tuned, False, 0)
    assert "no errors" in found.reason


def test_switched_off_it_does_nothing_whatever_the_model(tiny_generator, collection, encoder):
    recipe, tuned = fine_tuned(tiny_generator, method="full")
    found = prefer(tuned, recipe, settings(), TRAIN, DEV, collection, encoder, limit=0)
    assert found.tuned is tuned and not len(found.pairs) and "Switched off" in found.reason
    assert errors_table(found.pairs).empty


def test_a_whole_model_is_refused(tiny_generator, collection, encoder):
    recipe, tuned = fine_tuned(tiny_generator, method="full")
    with pytest.raises(RagbenchError, match="needs an adapter: use generator_method lora or qlora"):
        prefer(tuned, recipe, settings(), TRAIN, DEV, collection, encoder, limit=4)


def test_other_pairs_or_settings_are_trained_anew(tiny_generator, collection, encoder):
    recipe, tuned = fine_tuned(tiny_generator)
    found = prefer(tuned, recipe, settings(max_steps=1), TRAIN, DEV, collection, encoder, limit=4)
    folders = {
        preferences._trained(tuned, recipe, settings(max_steps=1, **changes), pairs, 6)[0]
        for changes, pairs in (({}, found.pairs), ({"beta": 0.3}, found.pairs), ({}, found.pairs.select([0, 1])))
    }
    assert len(folders) == 3
    assert dataclasses.is_dataclass(found)
