import contextlib
import dataclasses
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from planted_vocabulary import WORDS, planted_collection
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

from ragbench.errors import RagbenchError
from ragbench.evaluation.evaluate import choose_questions, retrieval_scores
from ragbench.retrieval.encoder import open_encoder
from ragbench.retrieval.retrieve import Retriever
from ragbench.training import finishing
from ragbench.training.candidates import Mining
from ragbench.training.dev import choose_dev, dev_evaluator
from ragbench.training.negatives import filled, mine
from ragbench.training.pairs import labelled_pairs
from ragbench.training.retriever import Recipe, fine_tune, fine_tune_each, open_for_training
from ragbench.training.rows import training_rows

WEIGHTS = "model.safetensors"
STEPS = 80


def arguments(**changes):
    settings = {
        "num_train_epochs": 12,
        "per_device_train_batch_size": 64,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 0.25,
        "save_strategy": "steps",
        "save_steps": 0.25,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_dev_cosine_ndcg@10",
        "greater_is_better": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 1,
    }
    return SentenceTransformerTrainingArguments("unused", **{**settings, **changes})


def few_steps(**changes):
    """Return arguments for two steps, each with a look at dev."""
    return arguments(
        **{
            "max_steps": 2,
            "eval_steps": 1,
            "save_steps": 1,
            "warmup_steps": 0,
            "per_device_train_batch_size": 9,
            **changes,
        }
    )


def prepared(folder, negatives=2):
    data = planted_collection()
    pairs = labelled_pairs(data)
    base = Retriever(model=str(folder), device="cpu", dtype="float32")
    encoder = open_encoder(str(folder), device="cpu", dtype="float32")
    dev, pairs = choose_dev(data, pairs, seed=0)
    mined = mine(data, pairs, encoder, Mining(per_positive=negatives))
    rows = training_rows(data, pairs, filled(data, pairs, mined.rows, seed=0))
    return data, rows, dev_evaluator(data, dev, base, limit=120, seed=0), base


def small(folder, negatives=0, teacher=None):
    """Return 18 pairs to train with, and what measures dev on all of 28 passages."""
    data = planted_collection(concepts=8)
    dev, pairs = choose_dev(data, labelled_pairs(data), seed=0)
    drawn = np.random.default_rng(0).integers(len(data.corpus), size=(len(pairs), negatives))
    scores = None if teacher is None else np.tile(teacher, (len(pairs), 1))
    base = Retriever(model=str(folder), device="cpu", dtype="float32")
    return training_rows(data, pairs, drawn, scores), dev_evaluator(data, dev, base, limit=1000, seed=0)


def misled(folder):
    """Return the same with a dev set that takes for answers what has no word of the answer: it falls in training."""
    rows, evaluator = small(folder)
    for name, gold in evaluator.relevant_docs.items():
        words = {word for passage in gold for word in evaluator.corpus[evaluator.corpus_ids.index(passage)].split()}
        texts = zip(evaluator.corpus_ids, evaluator.corpus, strict=True)
        evaluator.relevant_docs[name] = {passage for passage, text in texts if not words & set(text.split())}
    return rows, evaluator


def tune(folder, changed, data=None, **recipe):
    return fine_tune(Recipe(model=str(folder), device="cpu", **recipe), changed, *(data or small(folder)))


def measured(evaluator, folder):
    return evaluator(SentenceTransformer(str(folder), device="cpu"))[evaluator.primary_metric]


def recall(data, retriever, split="test"):
    _, scores = retrieval_scores("x", data, choose_questions(data, [split]), retriever)
    return float(scores.loc[scores["metric"] == "recall@5", "value"].mean())


def test_a_vocabulary_that_only_the_pairs_explain_is_learned(tiny_encoder):
    data, rows, evaluator, base = prepared(tiny_encoder)
    tuned = fine_tune(Recipe(model=str(tiny_encoder), device="cpu"), arguments(), rows, evaluator)
    before = recall(data, base)
    after = recall(data, Retriever(model=str(tuned.folder), device="cpu", dtype="float32"))
    assert before < 0.15
    assert after > 0.9


# A training that is killed


def long_training(folder):
    """Train for `STEPS` steps with eight checkpoints, most of them within an epoch."""
    often = {"eval_steps": 0.125, "save_steps": 0.125, "save_total_limit": 2}
    return tune(folder, arguments(num_train_epochs=16, per_device_train_batch_size=4, **often))


@contextlib.contextmanager
def cache_in(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def undisturbed(tiny_encoder, tmp_path_factory):
    with cache_in(tmp_path_factory.mktemp("undisturbed")):
        return long_training(tiny_encoder)


def whole_checkpoints(cache):
    return sorted(
        int(path.parent.name.split("-")[1]) for path in cache.glob("training/*/checkpoint-*/trainer_state.json")
    )


@pytest.fixture(scope="module")
def killed(tiny_encoder, tmp_path_factory):
    """The cache folder of a training that was killed with SIGKILL after a checkpoint and before its end."""
    cache = tmp_path_factory.mktemp("killed")
    tests = Path(__file__).parent
    code = f"import test_retriever; test_retriever.long_training({str(tiny_encoder)!r})"
    environment = {**os.environ, "RAGBENCH_CACHE": str(cache), "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
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
    return cache


@pytest.fixture(scope="module")
def resumed(tiny_encoder, killed):
    """The same training begun again beside two half-written checkpoints, and the steps of its start and its kill."""
    [folder] = (killed / "training").iterdir()
    last = whole_checkpoints(killed)[-1]
    shutil.copytree(folder / f"checkpoint-{last}", folder / f"checkpoint-{STEPS - 1}")
    (folder / f"checkpoint-{STEPS - 1}" / "trainer_state.json").unlink()
    shutil.copytree(folder / f"checkpoint-{last}", folder / f"checkpoint-{STEPS}")
    state = folder / f"checkpoint-{STEPS}" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    with cache_in(killed), contextlib.redirect_stderr(io.StringIO()) as shown:
        tuned = long_training(tiny_encoder)
    return tuned, first_step(shown.getvalue()), last


def first_step(shown):
    """Return the step at which the bar of a training began."""
    return int(re.search(rf"training:.*?(\d+)/{STEPS} ", shown)[1])


def test_a_killed_training_goes_on_from_its_last_whole_checkpoint(resumed):
    tuned, begun, last = resumed
    assert 0 < begun == last < STEPS
    assert tuned.log["step"].tolist() == list(range(1, STEPS + 1))
    assert tuned.log.loc[tuned.log["dev"].notna(), "step"].tolist() == list(range(10, STEPS + 1, 10))


def test_a_killed_training_ends_like_an_undisturbed_one(resumed, undisturbed):
    tuned, *_ = resumed
    assert tuned.best_dev == pytest.approx(undisturbed.best_dev, abs=0.005)
    assert tuned.folder.parent.name == undisturbed.folder.parent.name
    np.testing.assert_allclose(tuned.log["loss"], undisturbed.log["loss"], rtol=0.02, atol=0.01)
    assert all(guard.holds for guard in tuned.guards)
    assert not list(tuned.folder.parent.glob("checkpoint-*"))


def test_a_training_killed_while_it_finished_is_finished_and_not_repeated(
    tiny_encoder, undisturbed, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr("ragbench.training.retriever.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            long_training(tiny_encoder)
    capsys.readouterr()
    tuned = long_training(tiny_encoder)
    assert first_step(capsys.readouterr().err) == STEPS
    assert tuned.best_dev == undisturbed.best_dev
    assert load_equal(tuned.folder, undisturbed.folder)


def test_a_best_checkpoint_that_is_gone_is_an_error_and_not_replaced_by_the_last(tiny_encoder, own_cache, monkeypatch):
    def drop_the_best(trainer, *arguments):
        shutil.rmtree(arguments[-1] / f"checkpoint-{trainer.state.best_global_step}")
        finishing.finish(trainer, *arguments)

    monkeypatch.setattr("ragbench.training.retriever.finish", drop_the_best)
    with pytest.raises(RagbenchError, match=r"best checkpoint .*checkpoint-\d+ is gone. Delete .*, and train again"):
        tune(tiny_encoder, few_steps())
    assert not list(own_cache.glob("training/*/record.json"))


def test_a_cache_that_was_moved_between_kill_and_resume_still_gives_the_best(
    tiny_encoder, undisturbed, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("ragbench.training.retriever.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            long_training(tiny_encoder)
    (tmp_path / "cache").rename(tmp_path / "moved")
    with cache_in(tmp_path / "moved"):
        assert load_equal(long_training(tiny_encoder).folder, undisturbed.folder)


def load_equal(one, other):
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_record_of_a_training_is_complete(undisturbed, tiny_encoder):
    log, (_, evaluator) = undisturbed.log, small(tiny_encoder)
    assert log["epoch"].iloc[-1] == undisturbed.epochs == 16
    assert log["learning_rate"].max() == pytest.approx(undisturbed.learning_rate)
    assert log["loss"].notna().all() and (log["grad_norm"] > 0).all()
    assert undisturbed.best_dev == log["dev"].max() > undisturbed.base_dev + 0.2
    assert log.loc[log["step"] == undisturbed.best_step, "dev"].item() == undisturbed.best_dev
    assert undisturbed.base_dev == pytest.approx(measured(evaluator, tiny_encoder))
    assert undisturbed.best_dev == pytest.approx(measured(evaluator, undisturbed.folder))
    assert [guard.holds for guard in undisturbed.guards] == [True] * 2
    assert undisturbed.steps == STEPS and undisturbed.seconds > 0 and undisturbed.blend == 1.0


# What has been done is not done again


@pytest.fixture(scope="module")
def short(tiny_encoder, tmp_path_factory):
    with cache_in(tmp_path_factory.mktemp("short")):
        return tune(tiny_encoder, few_steps())


def test_a_finished_training_is_not_done_again(tiny_encoder):
    first = tune(tiny_encoder, few_steps())
    times = {path: path.stat().st_mtime_ns for path in first.folder.parent.rglob("*")}
    again = tune(tiny_encoder, few_steps())
    assert {path: path.stat().st_mtime_ns for path in first.folder.parent.rglob("*")} == times
    assert dataclasses.replace(again, log=None) == dataclasses.replace(first, log=None)
    np.testing.assert_array_equal(again.log.to_numpy(float), first.log.to_numpy(float))


def test_the_same_training_anywhere_has_the_same_name_and_weights(tiny_encoder, short, tmp_path):
    moved = shutil.copytree(tiny_encoder, tmp_path / "moved")
    again = tune(moved, dataclasses.replace(few_steps(), output_dir=str(tmp_path / "elsewhere")))
    assert again.folder != short.folder and again.folder.parent.name == short.folder.parent.name
    assert (again.folder / WEIGHTS).read_bytes() == (short.folder / WEIGHTS).read_bytes()


def with_another_pair(rows, evaluator):
    return rows.map(
        lambda row, place: {"anchor": row["anchor"] + " bab" if not place else row["anchor"]}, with_indices=True
    ), evaluator


def with_another_dev(rows, evaluator):
    evaluator.queries[0] += " bab"
    return rows, evaluator


@pytest.mark.parametrize(
    ("changes", "recipe", "change"),
    [
        ({"seed": 2}, {}, None),
        ({"learning_rate": 2e-2}, {}, None),
        ({}, {"neighbourhood": 3}, None),
        ({}, {}, with_another_pair),
        ({}, {}, with_another_dev),
    ],
)
def test_another_setting_pair_or_dev_set_is_another_training(tiny_encoder, short, changes, recipe, change):
    data = small(tiny_encoder)
    other = tune(tiny_encoder, few_steps(**changes), change(*data) if change else data, **recipe)
    assert other.folder.parent.name != short.folder.parent.name
    assert change or not load_equal(other.folder, short.folder)


def damaged(folder, to, change):
    """Copy a model and change its weights."""
    copy = shutil.copytree(folder, to)
    weights = load_file(copy / WEIGHTS)
    save_file({name: change(weight) for name, weight in weights.items()}, copy / WEIGHTS, {"format": "pt"})
    return copy


def test_other_base_weights_are_another_training(tiny_encoder, short, tmp_path):
    other = tune(damaged(tiny_encoder, tmp_path / "other", lambda weight: weight * 1.1), few_steps())
    assert other.folder.parent.name != short.folder.parent.name


# What is chosen, and when it ends


def test_every_rate_is_tried_with_every_length_and_the_best_on_dev_comes_first(tiny_encoder):
    rates, lengths = [1e-5, 1e-2], [1.0, 8.0]
    tried = fine_tune_each(
        Recipe(model=str(tiny_encoder), device="cpu"),
        arguments(per_device_train_batch_size=9, eval_steps=0.5, save_steps=0.5),
        *small(tiny_encoder),
        learning_rates=rates,
        epochs=lengths,
        patience=0,
    )
    assert {(tuned.learning_rate, tuned.epochs) for tuned in tried} == set(itertools.product(rates, lengths))
    assert [tuned.best_dev for tuned in tried] == sorted((tuned.best_dev for tuned in tried), reverse=True)
    assert (tried[0].learning_rate, tried[0].epochs) == (1e-2, 8.0)
    assert [tuned.steps for tuned in tried if tuned.epochs == 1] == [2, 2]


@pytest.mark.parametrize(("rates", "lengths"), [([], [1.0]), ([1e-3], [])])
def test_nothing_to_choose_from_is_an_error(tiny_encoder, rates, lengths):
    recipe, data = Recipe(model=str(tiny_encoder), device="cpu"), small(tiny_encoder)
    with pytest.raises(RagbenchError, match="retriever_learning_rates and retriever_epochs need at least one"):
        fine_tune_each(recipe, few_steps(), *data, learning_rates=rates, epochs=lengths, patience=0)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_without_a_new_best_the_training_stops_and_the_best_checkpoint_is_what_is_left(tiny_encoder, lora_rank):
    rows, evaluator = misled(tiny_encoder)
    # The first step has no learning rate yet, and every later one misleads.
    changed = arguments(per_device_train_batch_size=9, eval_steps=1, save_steps=1)
    recipe = Recipe(model=str(tiny_encoder), lora_rank=lora_rank, device="cpu")
    tuned = fine_tune(recipe, changed, rows, evaluator, patience=3)
    dev = tuned.log["dev"].dropna()
    assert tuned.steps == tuned.best_step + 3 < 24
    assert tuned.best_dev == dev.max() > dev.iloc[-1]
    assert measured(evaluator, tuned.folder) == pytest.approx(tuned.best_dev)


def test_where_tuning_only_hurts_the_blend_is_the_base_model(tiny_encoder):
    tuned = tune(tiny_encoder, arguments(num_train_epochs=4, warmup_steps=0), misled(tiny_encoder), blends=(0.5, 0.0))
    assert (tuned.blend, tuned.best_dev) == (0.0, pytest.approx(tuned.base_dev))
    assert tuned.log["dev"].max() < tuned.base_dev
    assert load_equal(tuned.folder, tiny_encoder)


# Adapters and other losses


def test_an_adapter_is_merged_into_a_plain_model(tiny_encoder):
    tuned = tune(tiny_encoder, few_steps(), lora_rank=4)
    before, after = load_file(tiny_encoder / WEIGHTS), load_file(tuned.folder / WEIGHTS)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.endswith(".weight") and before[name].ndim == 2 for name in moved)
    assert not [name for name in moved if "embeddings" in name]
    assert not list(tuned.folder.rglob("adapter*"))
    assert all(guard.holds for guard in tuned.guards)


def test_a_merged_model_embeds_like_the_model_with_its_adapter(tiny_encoder):
    model = open_for_training(Recipe(model=str(tiny_encoder), lora_rank=4, device="cpu"), tiny_encoder)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_()
    merged = finishing._merged(model, tiny_encoder)
    found, expected, plain = (m.eval().encode(WORDS) for m in (merged, model, SentenceTransformer(str(tiny_encoder))))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - plain).max() > 0.1


@pytest.mark.parametrize(
    "recipe",
    [
        {"loss": "mnr"},
        {"loss": "cached_mnr"},
        {"loss": "gist"},
        {"loss": "mnr", "matryoshka": (16, 8)},
        {"loss": "shared", "matryoshka": (16, 8)},
    ],
)
def test_other_losses_train_too(tiny_encoder, recipe):
    tuned = tune(tiny_encoder, few_steps(), small(tiny_encoder, negatives=1), **recipe)
    assert tuned.steps == 2 and all(guard.holds for guard in tuned.guards)
    assert not load_equal(tuned.folder, tiny_encoder)


def test_the_librarys_losses_get_no_passage_twice_in_a_batch(tiny_encoder):
    rows, evaluator = small(tiny_encoder)
    twice = rows.select([0, 1] * 8)
    tuned = tune(tiny_encoder, arguments(per_device_train_batch_size=2), (twice, evaluator), loss="mnr")
    # Against its own copy a passage cannot win: such a batch has a loss of log 2 at least.
    assert tuned.log["loss"].tail(24).max() < np.log(2)


def test_a_last_batch_of_one_pair_is_no_fault(tiny_encoder):
    tuned = tune(tiny_encoder, few_steps(per_device_train_batch_size=17))
    assert tuned.log["loss"].tolist()[1] == tuned.log["grad_norm"].tolist()[1] == 0
    assert all(guard.holds for guard in tuned.guards)


@pytest.mark.parametrize("loss", ["margin_mse", "kl"])
def test_losses_that_learn_from_a_teacher_need_its_scores(tiny_encoder, loss):
    tuned = tune(tiny_encoder, few_steps(), small(tiny_encoder, 2, [0.9, 0.1, 0.3]), loss=loss)
    assert tuned.steps == 2 and all(guard.holds for guard in tuned.guards)
    with pytest.raises(RagbenchError, match=f"retriever_loss '{loss}' learns from a teacher.*prep_teacher"):
        tune(tiny_encoder, few_steps(), small(tiny_encoder, 2), loss=loss)


# What cannot be trained


def test_a_loss_that_is_no_number_ends_the_training_and_names_step_and_rate(tiny_encoder):
    with pytest.raises(RagbenchError, match=r"was no number at step 2 of 4, with learning rate 1e\+30"):
        tune(tiny_encoder, few_steps(max_steps=4, learning_rate=1e30, warmup_steps=0, lr_scheduler_type="constant"))


def test_weights_that_are_no_numbers_end_the_training_at_once(tiny_encoder, tmp_path):
    base = damaged(tiny_encoder, tmp_path / "nan", lambda weight: torch.full_like(weight, float("nan")))
    with pytest.raises(RagbenchError, match="was no number at step 1 of 2"):
        tune(base, few_steps(), small(tiny_encoder))


def test_no_pairs_are_an_error_that_says_what_to_do(tiny_encoder):
    rows, evaluator = small(tiny_encoder)
    with pytest.raises(RagbenchError, match=r"no training pairs\. Run 02_data_prep"):
        tune(tiny_encoder, few_steps(), (rows.select([]), evaluator))


def test_an_unknown_loss_is_an_error(tiny_encoder):
    with pytest.raises(RagbenchError, match="retriever_loss 'triplet' is unknown"):
        tune(tiny_encoder, few_steps(), loss="triplet")
