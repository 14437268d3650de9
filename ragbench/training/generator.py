"""Fine-tuning a generator with TRL and PEFT: resumable, selected on dev by how it answers, checked for having learned.

As with the retriever, finished and interrupted trainings lie in the cache folder under a hash of all that they depend
on.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig

from ragbench.cache import cache_folder
from ragbench.devices import choose_device, choose_dtype
from ragbench.errors import RagbenchError
from ragbench.files import sha256_folder, sha256_text, write_json
from ragbench.generation.local import end_tokens, load_tokenizer, longest_input
from ragbench.models import ADAPTER_CONFIG, model_hash, resolve_model
from ragbench.training import guards
from ragbench.training.answer_rows import answer_rows
from ragbench.training.answer_trainer import AnswerTrainer, padding
from ragbench.training.answering import CRITERION, Exam
from ragbench.training.callbacks import Clock, Progress, StopAtNaN
from ragbench.training.checkpoints import (
    MODEL,
    RECORD,
    STORE,
    best_checkpoint,
    drop_checkpoints,
    last_checkpoint,
    settings,
    tidy_log,
)
from ragbench.training.generator_model import Recipe, name_base, open_for_training, plain_model, trained_weights
from ragbench.training.grid import grid

BOOKKEEPING: dict[str, Any] = {
    "greater_is_better": True,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,  # a loss that is no number must be seen
    "report_to": "none",
    "disable_tqdm": True,  # `callbacks.Progress` draws the bar
    "dataloader_pin_memory": False,
    "prediction_loss_only": True,
    "dataset_kwargs": {"skip_prepare_dataset": True},  # `answer_rows` has made tokens of the examples
    "remove_unused_columns": False,
    "max_length": None,
}
"""Arguments of the trainer that change nothing in what is learned, and that `fine_tune` relies on."""
_CODE = (
    "answer_likelihood.py", "answer_rows.py", "answer_trainer.py", "answering.py", "callbacks.py", "checkpoints.py",
    "generator.py", "generator_model.py", "guards.py",
)  # fmt: skip
_LOGGED = {f"eval_{CRITERION}": "dev", "eval_loss": "dev_loss"}
_MODEL_FILES = (ADAPTER_CONFIG, "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Tuned:
    """What a training run left.

    Attributes:
        folder: the best checkpoint by dev: a PEFT adapter, or for ``full`` a whole model, with its tokenizer.
        learning_rate, epochs: what it was trained with.
        log: columns step, epoch, loss, learning_rate, grad_norm, dev, dev_loss; the last two where measured.
        before, best: dev's metrics (`answering.scores`) of the model as it came, and of the best checkpoint.
        best_step, steps: at which step the best was found, and how many were taken.
        trained: how many numbers were trained.
        seconds: spent training, looks at dev included, over all attempts.
        guards: what was checked, see `ragbench.training.guards`.
    """

    folder: Path
    learning_rate: float
    epochs: float
    log: pd.DataFrame
    before: dict[str, float]
    best: dict[str, float]
    best_step: int
    steps: int
    trained: int
    seconds: float
    guards: tuple[guards.Guard, ...]


def fine_tune_each(
    recipe: Recipe,
    arguments: SFTConfig,
    examples: Dataset,
    exam: Exam,
    *,
    learning_rates: Sequence[float],
    epochs: Sequence[float],
    patience: int,
) -> list[Tuned]:
    """Fine-tune with every learning rate and number of epochs; return the results, the best on dev first.

    Raises:
        RagbenchError: nothing to train with or to choose from, or what `fine_tune` raises.
    """
    found = [
        fine_tune(recipe, each, examples, exam, patience=patience)
        for each in grid(arguments, learning_rates, epochs, "generator")
    ]
    return sorted(found, key=lambda tuned: -tuned.best[CRITERION])


def fine_tune(recipe: Recipe, arguments: SFTConfig, examples: Dataset, exam: Exam, *, patience: int = 0) -> Tuned:
    """Fine-tune a generator and return its best checkpoint by dev's `answering.CRITERION`.

    The loss is of the answers' tokens only. Dev is answered, as in use, at every evaluation.

    Args:
        arguments: the trainer's; its folder is replaced by one in the cache. It must evaluate and save in step.
        examples: to train on, with the columns of `training.examples.FEATURES`.
        exam: dev's.
        patience: stop after so many evaluations without a new best; 0 trains to the end.

    Raises:
        RagbenchError: there are no examples or none of dev, one cannot be used, the weight of refusals is negative, the
            method or a target layer is unknown, the model cannot be had, or the loss was no number.
    """
    if not len(examples) or not len(exam.examples):
        what = "to train the generator on" if not len(examples) else "of dev to choose the generator by"
        raise RagbenchError(f"There are no examples {what}. See what 02_data_prep rejected, and why.")
    if recipe.refusal_weight < 0:
        raise RagbenchError(f"generator_refusal_weight is {recipe.refusal_weight:g}; it must be 0 or more.")
    base = resolve_model(recipe.model, recipe.revision)
    folder = cache_folder() / STORE / _key(recipe, base, arguments, examples, exam, patience)[:32]
    if not (folder / RECORD).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _train(recipe, base, dataclasses.replace(arguments, output_dir=str(folder)), examples, exam, patience, folder)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    checked = tuple(guards.Guard(**guard) for guard in record.pop("guards"))
    return Tuned(folder / MODEL, log=pd.DataFrame(record.pop("log")), guards=checked, **record)


def _key(recipe: Recipe, base: Path, arguments: SFTConfig, examples: Dataset, exam: Exam, patience: int) -> str:
    device = choose_device(recipe.device)
    return sha256_text(
        model_hash(base),
        repr(dataclasses.replace(recipe, model="", revision="", device=device, dtype="")),
        str(choose_dtype(device, recipe.dtype)),
        settings(arguments),
        *(json.dumps([part["query_id"], part["prompt"], part["completion"]]) for part in (*examples, *exam.examples)),
        repr((len(examples), exam.max_new_tokens, exam.answer_format, patience)),
        sha256_folder(Path(__file__).parent, _CODE),
    )


def _train(
    recipe: Recipe, base: Path, arguments: SFTConfig, examples: Dataset, exam: Exam, patience: int, folder: Path
) -> None:
    clock = Clock(folder)
    tokenizer = load_tokenizer(base, model_hash(base))
    network = open_for_training(recipe, base, arguments.seed)
    before = trained_weights(network)
    ends, longest = end_tokens(plain_model(network), tokenizer), longest_input(recipe.model, recipe.revision)
    rows = answer_rows(examples, tokenizer, ends, longest, recipe.refusal_weight)
    dev = answer_rows(exam.examples, tokenizer, ends, longest)
    trainer = AnswerTrainer(
        model=network,
        args=arguments,
        train_dataset=rows,
        eval_dataset=dev,
        # Any token does for padding, which nothing attends to.
        data_collator=padding(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]),
        processing_class=tokenizer,
        exam=exam,
        callbacks=[clock, Progress(), StopAtNaN(), *([EarlyStoppingCallback(patience)] if patience else [])],
    )
    trainer.remove_callback(PrinterCallback)
    measured = trainer.answer_dev()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    _finish(trainer, recipe, tokenizer, before, measured, clock, folder)


def _finish(
    trainer: AnswerTrainer,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    before: dict[str, torch.Tensor],
    measured: dict[str, float],
    clock: Clock,
    folder: Path,
) -> None:
    """Put the best checkpoint's model and the record of its training into the folder, the record last."""
    best = best_checkpoint(trainer.state, folder)
    assert best is not None, "the trainer evaluates at least once"
    after = {name: weight for path in best.glob("*.safetensors") for name, weight in load_file(path).items()}
    log = tidy_log(trainer.state.log_history, _LOGGED)
    steps = log.dropna(subset=["grad_norm", "loss"])
    at_best = next(entry for entry in trainer.state.log_history if _at(entry, trainer.state.best_global_step))
    _save(best, recipe, tokenizer, folder / MODEL)
    record = {
        "learning_rate": trainer.args.learning_rate,
        "epochs": trainer.args.num_train_epochs,
        "log": log.astype(object).where(log.notna(), None).to_dict("records"),
        "before": measured,
        "best": {name: at_best[f"eval_{name}"] for name in measured},
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "trained": sum(weight.numel() for weight in before.values()),
        "seconds": round(clock.seconds, 1),
        "guards": [
            dataclasses.asdict(guard)
            for guard in (
                guards.parameters_moved(before, after),
                guards.gradients_flowed(steps["grad_norm"].tolist(), steps["loss"].tolist()),
            )
        ],
    }
    write_json(folder / RECORD, record)
    drop_checkpoints(folder)


def _at(entry: dict[str, Any], step: int | None) -> bool:
    return entry["step"] == step and f"eval_{CRITERION}" in entry


def _save(checkpoint: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Copy a checkpoint's model, with its tokenizer, under the name by which its base model was asked for."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in (path for pattern in _MODEL_FILES for path in checkpoint.glob(pattern)):
        shutil.copy(path, folder)
    tokenizer.save_pretrained(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        name_base(folder, recipe.model, recipe.revision)
