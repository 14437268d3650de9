"""Fine-tuning a bi-encoder with Sentence Transformers: resumable, selected on dev, and checked for having learned.

What is finished and what was interrupted lie in the cache folder under a hash of all that the result depends on: a
killed training goes on from its last checkpoint, and one that has ended is not done again.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import PrinterCallback

from ragbench.cache import cache_folder
from ragbench.devices import choose_device
from ragbench.errors import RagbenchError
from ragbench.files import sha256_folder, sha256_text
from ragbench.models import model_hash, resolve_model
from ragbench.retrieval.encoder import encode, open_encoder
from ragbench.training import guards
from ragbench.training.callbacks import Clock, Progress, StopAtNaN
from ragbench.training.checkpoints import MODEL, RECORD, STORE, last_checkpoint, settings
from ragbench.training.contrast import ROW, NeighbourhoodSampler
from ragbench.training.finishing import finish
from ragbench.training.grid import grid
from ragbench.training.losses import build_loss

BOOKKEEPING: dict[str, Any] = {
    "greater_is_better": True,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,  # a loss that is no number must be seen
    "report_to": "none",
    "disable_tqdm": True,  # `callbacks.Progress` draws the bar
    "dataloader_pin_memory": False,
}
"""Arguments of the trainer that change nothing in what is learned, and that `fine_tune` relies on."""
_CODE = (
    "blending.py", "callbacks.py", "checkpoints.py", "contrast.py", "finishing.py", "guards.py", "losses.py",
    "retriever.py",
)  # fmt: skip
"""The modules that a training depends on: an edit of any other leaves what is finished as it is."""


@dataclass(frozen=True)
class Recipe:
    """What is trained, and on what signal; how long and how fast is in the trainer's own arguments.

    Attributes:
        model, revision: the bi-encoder to start from, see `ragbench.models`.
        max_tokens: longer passages are cut here, in training as in retrieval.
        loss: see `ragbench.training.losses.build_loss`.
        scale: one over the temperature of the loss.
        matryoshka: dimensions at which the embedding should work too.
        neighbourhood: the batches of ``shared`` are made of groups of so many passages that resemble each other.
        blends: shares of the tuned weights in a blend with the base model's, of which dev chooses; empty for none.
        lora_rank: rank of a low-rank adapter (LoRA, Hu et al. 2021), merged when training ends; 0 trains all weights.
        device: see `ragbench.devices`.
        dtype: of the base model's embeddings, by which neighbours are found; training has its own in the arguments.
    """

    model: str = "all-MiniLM-L6-v2"
    revision: str = ""
    max_tokens: int = 256
    loss: str = "shared"
    scale: float = 20.0
    matryoshka: tuple[int, ...] = ()
    neighbourhood: int = 8
    blends: tuple[float, ...] = ()
    lora_rank: int = 0
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Tuned:
    """What a training run left.

    Attributes:
        folder: the best model by dev nDCG@10, a Sentence-Transformers folder.
        learning_rate, epochs: what it was trained with.
        log: columns step, epoch, loss, learning_rate, grad_norm, dev; a row a step, dev only where it was measured.
        base_dev, best_dev: nDCG@10 on the evaluator's passages of the model as it came, and of the best checkpoint.
        best_step, steps: at which step the best was found, and how many were taken.
        blend: share of the tuned weights in the model, the rest being the base model's; 1 if they were not blended.
        seconds: spent training, evaluations on dev included, over all attempts.
        guards: what was checked, see `ragbench.training.guards`.
    """

    folder: Path
    learning_rate: float
    epochs: float
    log: pd.DataFrame
    base_dev: float
    best_dev: float
    best_step: int
    steps: int
    blend: float
    seconds: float
    guards: tuple[guards.Guard, ...]


def fine_tune_each(
    recipe: Recipe,
    arguments: SentenceTransformerTrainingArguments,
    rows: Dataset,
    evaluator: InformationRetrievalEvaluator,
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
        fine_tune(recipe, each, rows, evaluator, patience=patience)
        for each in grid(arguments, learning_rates, epochs, "retriever")
    ]
    return sorted(found, key=lambda tuned: -tuned.best_dev)


def fine_tune(
    recipe: Recipe,
    arguments: SentenceTransformerTrainingArguments,
    rows: Dataset,
    evaluator: InformationRetrievalEvaluator,
    *,
    patience: int = 0,
) -> Tuned:
    """Fine-tune a bi-encoder and return its best checkpoint by dev nDCG@10.

    Args:
        arguments: the trainer's; its folder is replaced by one in the cache. It must evaluate and save in step.
        rows: columns anchor, positive, negative_1, …; for a loss that learns from a teacher also its scores, ``label``.
        evaluator: measures dev, with ``ndcg@10`` as its main metric.
        patience: stop after so many evaluations without a new best; 0 trains to the end.

    Raises:
        RagbenchError: there are no rows, the loss is unknown or lacks its teacher, or the loss was no number.
    """
    if not len(rows):
        raise RagbenchError("There are no training pairs. Run 02_data_prep with more sources of positives.")
    base = resolve_model(recipe.model, recipe.revision)
    folder = cache_folder() / STORE / _key(recipe, base, arguments, rows, evaluator, patience)[:32]
    if not (folder / RECORD).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _train(recipe, base, arguments, rows, evaluator, patience, folder)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    checked = tuple(guards.Guard(**guard) for guard in record.pop("guards"))
    return Tuned(folder / MODEL, log=pd.DataFrame(record.pop("log")), guards=checked, **record)


def _key(
    recipe: Recipe,
    base: Path,
    arguments: SentenceTransformerTrainingArguments,
    rows: Dataset,
    evaluator: InformationRetrievalEvaluator,
    patience: int,
) -> str:
    return sha256_text(
        model_hash(base),
        repr(dataclasses.replace(recipe, model="", revision="")),
        settings(arguments),
        *(sha256_text(name, *map(str, rows[name])) for name in rows.column_names),
        *map(str, evaluator.queries),
        *map(str, evaluator.corpus),
        repr(sorted((query, sorted(found)) for query, found in evaluator.relevant_docs.items())),
        str(patience),
        choose_device(recipe.device),
        sha256_folder(Path(__file__).parent, _CODE),
    )


def _train(
    recipe: Recipe,
    base: Path,
    arguments: SentenceTransformerTrainingArguments,
    rows: Dataset,
    evaluator: InformationRetrievalEvaluator,
    patience: int,
    folder: Path,
) -> None:
    arguments = dataclasses.replace(arguments, output_dir=str(folder))
    clock = Clock(folder)
    torch.manual_seed(arguments.seed)
    model = open_for_training(recipe, base)
    before = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    if recipe.loss == "shared":
        rows = rows.add_column(ROW, list(range(len(rows))))
        arguments.batch_sampler = _neighbourhoods(recipe, rows)
    else:
        arguments.batch_sampler = BatchSamplers.NO_DUPLICATES
    guide = SentenceTransformer(str(base), device=str(model.device)) if recipe.loss == "gist" else None
    loss = build_loss(recipe.loss, model, rows, scale=recipe.scale, guide=guide, matryoshka=recipe.matryoshka)
    with torch.random.fork_rng():
        measured = evaluator(model)
    base_dev = float(measured[evaluator.primary_metric or ""])  # its name is known once it has run
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows, loss=loss, evaluator=evaluator,
        callbacks=[clock, Progress(), StopAtNaN(), *([EarlyStoppingCallback(patience)] if patience else [])],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    finish(trainer, base, before, evaluator, base_dev, recipe.blends, clock, folder)


def open_for_training(recipe: Recipe, base: Path) -> SentenceTransformer:
    """Load the model in float32 with all its weights trainable, or with a fresh adapter of `recipe.lora_rank`."""
    model = SentenceTransformer(
        str(base),
        device=choose_device(recipe.device),
        model_kwargs={"dtype": torch.float32, "use_safetensors": True},
        local_files_only=True,
    )
    model.max_seq_length = recipe.max_tokens
    if recipe.lora_rank:
        from peft import LoraConfig, TaskType

        model.add_adapter(
            LoraConfig(
                task_type=TaskType.FEATURE_EXTRACTION,
                r=recipe.lora_rank,
                lora_alpha=2 * recipe.lora_rank,
                target_modules="all-linear",
            )
        )
    return model


def _neighbourhoods(recipe: Recipe, rows: Dataset) -> Any:
    encoder = open_encoder(
        recipe.model,
        revision=recipe.revision,
        max_tokens=recipe.max_tokens,
        device=recipe.device,
        dtype=recipe.dtype,
    )
    vectors = encode(encoder, rows["positive"], "passage")
    return partial(NeighbourhoodSampler, vectors=vectors, group=recipe.neighbourhood)
