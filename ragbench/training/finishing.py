"""What a finished training leaves: the best weights, and the record of how they came about."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from ragbench.files import write_json
from ragbench.training import guards
from ragbench.training.blending import blend
from ragbench.training.callbacks import Clock
from ragbench.training.checkpoints import MODEL, RECORD, best_checkpoint, drop_checkpoints, tidy_log


def finish(
    trainer: SentenceTransformerTrainer,
    base: Path,
    before: dict[str, torch.Tensor],
    evaluator: InformationRetrievalEvaluator,
    base_dev: float,
    blends: Sequence[float],
    clock: Clock,
    folder: Path,
) -> None:
    """Put the best model and the record of its training into the folder, the record last; drop the checkpoints.

    Args:
        trainer: after its training.
        base: the model's folder as it came.
        before: its trained weights as they were before, by name.
        base_dev: its nDCG@10 under `evaluator`.
        blends: shares of the tuned weights to try, see `ragbench.training.blending`.
        clock: what the training has taken, to which the blending is added.

    Raises:
        RagbenchError: the best checkpoint is not there.
    """
    state, metric = trainer.state, evaluator.primary_metric or ""
    model = _best(trainer, folder)
    log = tidy_log(state.log_history, {f"eval_{metric}": "dev"})
    after = {name: weight.detach().cpu() for name, weight in model.named_parameters() if name in before}
    steps = log.dropna(subset=["grad_norm", "loss"])
    checked = (
        guards.parameters_moved(before, after),
        guards.gradients_flowed(steps["grad_norm"].tolist(), steps["loss"].tolist()),
    )
    whole = _merged(model, base) if any(isinstance(layer, BaseTunerLayer) for layer in model.modules()) else model
    best_dev = float(state.best_metric if state.best_metric is not None else base_dev)
    share, best_dev = blend(whole, _weights(base), blends, lambda mixed: float(evaluator(mixed)[metric]), best_dev)
    partial_folder = folder / f"{MODEL}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    whole.save_pretrained(str(partial_folder), create_model_card=False)
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    partial_folder.rename(folder / MODEL)
    record = {
        "learning_rate": trainer.args.learning_rate,
        "epochs": trainer.args.num_train_epochs,
        "log": log.astype(object).where(log.notna(), None).to_dict("records"),
        "base_dev": base_dev,
        "best_dev": best_dev,
        "best_step": int(state.best_global_step or 0),
        "steps": state.global_step,
        "blend": share,
        "seconds": round(clock.seconds, 1),
        "guards": [dataclasses.asdict(guard) for guard in checked],
    }
    write_json(folder / RECORD, record)
    drop_checkpoints(folder)


def _best(trainer: SentenceTransformerTrainer, folder: Path) -> SentenceTransformer:
    path = best_checkpoint(trainer.state, folder)
    if path is None:
        return trainer.model
    return SentenceTransformer(str(path), device=str(trainer.model.device), local_files_only=True)


def _weights(base: Path) -> dict[str, torch.Tensor]:
    return SentenceTransformer(
        str(base), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True
    ).state_dict()


def _merged(model: SentenceTransformer, base: Path) -> SentenceTransformer:
    """Return the base model with the adapter's change added to its weights: a plain model that needs no PEFT."""
    whole = SentenceTransformer(str(base), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True)
    whole.max_seq_length = model.max_seq_length
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                change = layer.get_delta_weight(layer.active_adapters[0])  # type: ignore[attr-defined]
                whole.get_submodule(name).weight += change.cpu()
    return whole
