import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from generator_examples import dataset, example, refused
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig

from ragbench.errors import RagbenchError
from ragbench.generation.local import complete
from ragbench.training.answer_likelihood import label_log_likelihoods
from ragbench.training.answer_rows import IGNORED, answer_rows
from ragbench.training.answer_trainer import padding
from ragbench.training.answering import CRITERION, Exam, answers, scores
from ragbench.training.generator import BOOKKEEPING, fine_tune, fine_tune_each
from ragbench.training.generator_model import Recipe, open_for_training, plain_model

TRAIN = dataset([example(number) for number in range(24)])
DEV = Exam(dataset([example(number) for number in range(24, 28)]), max_new_tokens=6)
STEPS = 48


def arguments(**changes):
    settings = {
        "num_train_epochs": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 2e-2,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "eval_strategy": "steps",
        "eval_steps": 0.25,
        "save_strategy": "steps",
        "save_steps": 0.25,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{CRITERION}",
        "train_sampling_strategy": "group_by_length",
        "seed": 1,
        **BOOKKEEPING,
    }
    return SFTConfig("unused", **{**settings, **changes})


def tune(folder, examples=TRAIN, exam=DEV, changed=None, patience=0, **recipe):
    made = Recipe(str(folder), **{"rank": 16, "alpha": 32, "device": "cpu", "dtype": "float32", **recipe})
    return fine_tune(made, changed or arguments(), examples, exam, patience=patience)


def short(**changes):
    return arguments(**{"max_steps": 2, "eval_steps": 1, "save_steps": 1, **changes})


@contextlib.contextmanager
def cache_in(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def undisturbed(tiny_generator, tmp_path_factory):
    with cache_in(tmp_path_factory.mktemp("undisturbed")):
        return tune(tiny_generator)


@pytest.fixture(scope="module")
def whole(tiny_generator, tmp_path_factory):
    with cache_in(tmp_path_factory.mktemp("whole")):
        return tune(tiny_generator, method="full")


# The loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_answers_is_the_librarys_with_its_padding_masked_and_all_logits(tiny_generator, dtype):
    network = AutoModelForCausalLM.from_pretrained(tiny_generator, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(tiny_generator)
    rows = answer_rows([example(1), refused(2), example(30)], tokenizer, [tokenizer.eos_token_id], None)
    assert len({len(row["input_ids"]) for row in rows}) > 1
    batch = padding(0)(list(rows))
    weight = network.get_input_embeddings().weight
    theirs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    sums = label_log_likelihoods(network, batch["input_ids"], batch["labels"])
    ours = -sums.sum() / (batch["labels"] != IGNORED).sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5 if dtype == torch.float32 else 1e-2)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    (gradient,), (expected,) = (torch.autograd.grad(each, [weight]) for each in (ours, theirs))
    assert torch.allclose(gradient, expected, atol=tolerance)


def test_refusals_count_by_their_weight(tiny_generator, own_cache):
    mixed = dataset([example(0), refused(1), example(2), refused(3)])
    weighed = {
        weight: tune(tiny_generator, mixed, changed=short(max_steps=1, eval_steps=1), refusal_weight=weight)
        for weight in (0.0, 0.5, 1.0)
    }
    loss = {weight: tuned.log["loss"].dropna().iloc[0] for weight, tuned in weighed.items()}
    assert 0.1 < loss[0.0] < loss[1.0] - 0.1
    assert loss[0.5] == pytest.approx((loss[0.0] + loss[1.0]) / 2, rel=1e-5)


def test_a_weight_below_nothing_is_refused(tiny_generator, own_cache):
    with pytest.raises(RagbenchError, match=r"generator_refusal_weight is -0.5; .* 0 or more"):
        tune(tiny_generator, refusal_weight=-0.5)


def test_refusals_of_less_weight_are_learned_to_be_rarer(tiny_generator, own_cache):
    # Nothing in the prompts tells which is to be refused, so what can be learned is how often: one time in four.
    mixed = dataset([refused(0) if number % 4 == 0 else example(0) for number in range(24)])
    at_the_end = arguments(per_device_train_batch_size=24, num_train_epochs=60, eval_steps=60, save_steps=60)
    probability = {}
    for weight in (1.0, 0.25):
        tuned = tune(tiny_generator, mixed, changed=at_the_end, method="full", refusal_weight=weight)
        network = AutoModelForCausalLM.from_pretrained(tuned.folder)
        tokenizer = AutoTokenizer.from_pretrained(tuned.folder)
        [row] = answer_rows([refused(0)], tokenizer, [tokenizer.eos_token_id], None)
        labels = torch.tensor([row["labels"]])
        labels[:, (labels != IGNORED).nonzero()[0, 1] + 1 :] = IGNORED  # the first word decides whether it refuses
        with torch.inference_mode():
            probability[weight] = float(label_log_likelihoods(network, torch.tensor([row["input_ids"]]), labels).exp())
    # A quarter of the weight makes odds of 1 to 3 odds of 1 to 12.
    assert probability[1.0] == pytest.approx(1 / 4, abs=0.08)
    assert probability[0.25] == pytest.approx(1 / 13, abs=0.04)


def test_rows_that_are_computed_apart_make_the_same_steps(tiny_generator, own_cache):
    whole = tune(tiny_generator, changed=short())
    parted = tune(tiny_generator, changed=short(per_device_train_batch_size=2, gradient_accumulation_steps=2))
    for name in ("loss", "grad_norm"):
        assert parted.log[name].dropna().tolist() == pytest.approx(whole.log[name].dropna().tolist(), rel=1e-3)


# What a training leaves


@pytest.mark.parametrize("name", ["undisturbed", "whole"])
def test_what_is_left_answers_as_was_measured_on_dev(name, request, own_cache):
    tuned = request.getfixturevalue(name)
    found = complete(
        DEV.examples["prompt"], model=str(tuned.folder), device="cpu", dtype="float32", max_new_tokens=6
    )  # fmt: skip
    assert scores(DEV, [each.text for each in found]) == pytest.approx(tuned.best)
    at_best = tuned.log.loc[tuned.log["step"] == tuned.best_step]
    assert at_best["dev"].item() == tuned.best[CRITERION] == tuned.log["dev"].max() > tuned.before[CRITERION]


def test_the_adapter_opens_with_peft_and_names_its_base_as_it_was_asked_for(undisturbed, tiny_generator):
    config = json.loads((undisturbed.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_generator)
    assert not list(undisturbed.folder.glob("*.bin")) and (undisturbed.folder / "tokenizer.json").is_file()
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_generator), undisturbed.folder).eval()
    found = answers(plain_model(opened), AutoTokenizer.from_pretrained(undisturbed.folder), DEV)
    assert scores(DEV, found) == pytest.approx(undisturbed.best)


def test_a_fully_tuned_model_opens_with_transformers(whole):
    model = AutoModelForCausalLM.from_pretrained(whole.folder, use_safetensors=True).eval()
    found = answers(model, AutoTokenizer.from_pretrained(whole.folder), DEV)
    assert scores(DEV, found) == pytest.approx(whole.best)
    assert whole.trained == sum(weight.numel() for weight in model.parameters())


def test_the_record_of_a_training_is_complete(undisturbed):
    log = undisturbed.log
    assert log["step"].tolist() == list(range(1, STEPS + 1)) and undisturbed.steps == STEPS
    assert log["loss"].notna().all() and (log["grad_norm"] > 0).all()
    assert log.loc[log["dev"].notna(), "step"].tolist() == [12, 24, 36, 48]
    assert log["dev_loss"].dropna().iloc[-1] < log["dev_loss"].dropna().iloc[0]
    assert [guard.holds for guard in undisturbed.guards] == [True, True]
    assert undisturbed.seconds > 0 and undisturbed.epochs == 8
    assert not list(undisturbed.folder.parent.glob("checkpoint-*"))


def test_the_loss_is_of_the_answers_tokens_only(tiny_generator, undisturbed):
    tokenizer = AutoTokenizer.from_pretrained(tiny_generator)
    network = AutoModelForCausalLM.from_pretrained(tiny_generator)
    total = tokens = 0.0
    for row in answer_rows(DEV.examples, tokenizer, [1], None):
        labels = torch.tensor([row["labels"]])
        with torch.inference_mode():
            logits = network(input_ids=torch.tensor([row["input_ids"]])).logits
        losses = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
        total, tokens = total + float(losses), tokens + int((labels[0, 1:] >= 0).sum())
    untrained = tune(tiny_generator, changed=short(learning_rate=1e-12, max_steps=1))
    assert untrained.log["dev_loss"].item() == pytest.approx(total / tokens, rel=1e-4)


def test_full_training_moves_every_layer_and_an_adapter_leaves_the_base_alone(tiny_generator, whole, undisturbed):
    base, tuned = (load_file(folder / "model.safetensors") for folder in (tiny_generator, whole.folder))
    assert all(not torch.equal(base[name], tuned[name]) for name in base if "layers" in name)
    adapter = load_file(undisturbed.folder / "adapter_model.safetensors")
    assert undisturbed.trained == sum(weight.numel() for weight in adapter.values()) < whole.trained / 2
    assert all(bool(weight.any()) for weight in adapter.values())


def test_targets_choose_the_layers_of_the_adapter(tiny_generator):
    tuned = tune(tiny_generator, changed=short(), targets=("q_proj", "v_proj"))
    names = load_file(tuned.folder / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in names} == {"q_proj", "v_proj"}


# Four bits


def test_qlora_learns_over_four_bits_and_its_adapter_answers_over_the_plain_model(tiny_generator):
    tuned = tune(tiny_generator, method="qlora")
    assert tuned.log["loss"].iloc[-3:].mean() < tuned.log["loss"].iloc[:3].mean() - 0.1
    assert all(guard.holds for guard in tuned.guards)
    [found] = complete(
        DEV.examples["prompt"][:1], model=str(tuned.folder), device="cpu", dtype="float32", max_new_tokens=6
    )  # fmt: skip
    assert found.text


def test_answering_in_between_does_not_cut_the_gradient_of_four_bit_layers(tiny_generator):
    network = open_for_training(Recipe(str(tiny_generator), method="qlora", device="cpu"), tiny_generator)
    tokenizer = AutoTokenizer.from_pretrained(tiny_generator)
    network.eval()
    with torch.inference_mode():
        answers(plain_model(network), tokenizer, DEV)
    network.train()
    row = answer_rows(DEV.examples, tokenizer, [1], None)[0]
    network(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
    first = [weight for name, weight in network.named_parameters() if "layers.0.self_attn.q_proj.lora_B" in name]
    assert [bool(weight.grad.any()) for weight in first] == [True]


# A training that is killed


def whole_checkpoints(cache):
    return sorted(
        int(path.parent.name.split("-")[1]) for path in cache.glob("training/*/checkpoint-*/trainer_state.json")
    )


def test_a_killed_training_goes_on_and_ends_like_an_undisturbed_one(tiny_generator, undisturbed, tmp_path, capsys):
    cache = tmp_path / "killed"
    cache.mkdir()
    code = f"import test_generator; test_generator.tune({str(tiny_generator)!r})"
    environment = {
        **os.environ,
        "RAGBENCH_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    with (cache / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)
        try:
            while not whole_checkpoints(cache):
                assert process.poll() is None, (cache / "log").read_text()
                time.sleep(0.01)
        finally:
            process.kill()
            process.wait()
    assert not list(cache.glob("training/*/record.json")), "the training ended before it could be killed"
    [folder] = (cache / "training").iterdir()
    last = whole_checkpoints(cache)[-1]
    shutil.copytree(folder / f"checkpoint-{last}", folder / f"checkpoint-{STEPS}")
    (folder / f"checkpoint-{STEPS}" / "trainer_state.json").write_text("{")
    with cache_in(cache):
        tuned = tune(tiny_generator)
    assert f"| {last}/{STEPS} " in capsys.readouterr().err
    assert tuned.folder.parent.name == undisturbed.folder.parent.name
    assert tuned.best[CRITERION] == pytest.approx(undisturbed.best[CRITERION], abs=0.005)
    np.testing.assert_allclose(tuned.log["loss"], undisturbed.log["loss"], rtol=0.02)


def test_a_finished_training_is_not_done_again(tiny_generator):
    first = tune(tiny_generator, changed=short())
    times = {path: path.stat().st_mtime_ns for path in first.folder.parent.rglob("*")}
    again = tune(tiny_generator, changed=dataclasses.replace(short(), output_dir="elsewhere"))
    assert {path: path.stat().st_mtime_ns for path in first.folder.parent.rglob("*")} == times
    assert dataclasses.replace(again, log=None) == dataclasses.replace(first, log=None)


@pytest.mark.parametrize(
    "changes",
    [
        {"changed": short(seed=2)},
        {"changed": short(learning_rate=1e-3)},
        {"rank": 2},
        {"examples": dataset([example(number) for number in range(1, 24)])},
        {"exam": dataclasses.replace(DEV, max_new_tokens=5)},
        {"exam": dataclasses.replace(DEV, examples=dataset([refused(30)]))},
    ],
)
def test_another_setting_example_or_exam_is_another_training(tiny_generator, changes):
    first = tune(tiny_generator, changed=short())
    other = tune(tiny_generator, **{"changed": short(), **changes})
    assert other.folder.parent.name != first.folder.parent.name


# Choosing


def test_the_grid_is_tried_whole_and_the_best_on_dev_comes_first(tiny_generator):
    recipe = Recipe(str(tiny_generator), rank=16, alpha=32, device="cpu", dtype="float32")
    settings = {"learning_rates": [1e-9, 2e-2], "epochs": [1, 6], "patience": 0}
    tried = fine_tune_each(recipe, arguments(), TRAIN, DEV, **settings)
    assert sorted((each.learning_rate, each.epochs) for each in tried) == [(1e-9, 1), (1e-9, 6), (2e-2, 1), (2e-2, 6)]
    assert tried[0].learning_rate == 2e-2
    assert [each.best[CRITERION] for each in tried] == sorted((each.best[CRITERION] for each in tried), reverse=True)


def test_it_stops_when_dev_stays_where_it_is(tiny_generator):
    assert tune(tiny_generator, changed=arguments(learning_rate=1e-9), patience=1).steps < STEPS


# What cannot be trained


def test_no_examples_no_dev_and_no_grid_are_errors(tiny_generator):
    with pytest.raises(RagbenchError, match=r"no examples to train the generator on.*02_data_prep"):
        tune(tiny_generator, examples=TRAIN.select([]))
    with pytest.raises(RagbenchError, match=r"no examples of dev.*02_data_prep"):
        tune(tiny_generator, exam=dataclasses.replace(DEV, examples=TRAIN.select([])))
    with pytest.raises(RagbenchError, match="generator_learning_rates and generator_epochs"):
        fine_tune_each(Recipe(), arguments(), TRAIN, DEV, learning_rates=[], epochs=[1], patience=0)


def test_an_unknown_method_and_layer_are_errors_that_name_what_there_is(tiny_generator):
    with pytest.raises(RagbenchError, match="generator_method 'prefix' is unknown; use lora, qlora, full"):
        tune(tiny_generator, method="prefix")
    with pytest.raises(RagbenchError, match=r"'query', which .* has no layer of.*all-linear.*q_proj"):
        tune(tiny_generator, targets=("v_proj", "query"))


def test_a_loss_that_is_no_number_stops_with_the_step_the_rate_and_the_rows(tiny_generator, tmp_path, own_cache):
    broken = shutil.copytree(tiny_generator, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    names = r"q\d+(, q\d+){3}"
    with pytest.raises(RagbenchError, match=rf"no number at step 1 of 2, with learning rate 0.02, on .*: {names}\."):
        tune(broken, changed=short())
    assert not list(own_cache.glob("training/*/record.json"))


def test_a_tokenizer_without_a_padding_token_does_not_hinder(tiny_generator, undisturbed, tmp_path):
    bare = shutil.copytree(tiny_generator, tmp_path / "bare")
    config = json.loads((bare / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    assert AutoTokenizer.from_pretrained(bare).pad_token is None
    assert tune(bare).log["loss"].tolist() == pytest.approx(undisturbed.log["loss"].tolist(), rel=1e-4)


def test_an_adapter_may_go_on_the_upper_blocks_only(tiny_generator):
    half = open_for_training(Recipe(str(tiny_generator), depth=0.5, device="cpu", dtype="float32"), tiny_generator)
    blocks = {name.split(".layers.")[1].split(".")[0] for name, w in half.named_parameters() if w.requires_grad}
    assert blocks == {"1"}
    whole = open_for_training(Recipe(str(tiny_generator), device="cpu", dtype="float32"), tiny_generator)
    assert sum(w.requires_grad for w in whole.parameters()) == 2 * sum(w.requires_grad for w in half.parameters())
    for depth in (0.0, 1.5):
        with pytest.raises(
            RagbenchError, match=f"generator_lora_depth must lie above 0 and be at most 1, found {depth}"
        ):
            open_for_training(Recipe(str(tiny_generator), depth=depth, device="cpu"), tiny_generator)
