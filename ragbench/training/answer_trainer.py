"""TRL's trainer for answers: their loss only, dev answered at every evaluation, and which rows broke a training."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from ragbench.errors import RagbenchError
from ragbench.training.answer_likelihood import label_log_likelihoods
from ragbench.training.answer_rows import IGNORED
from ragbench.training.answering import Exam, measure
from ragbench.training.generator_model import plain_model

_ROWS, _WEIGHTS = "rows", "weights"


def padding(token: int) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Return the library's collator, padding with `token`, which also tells the rows' weights and queries."""
    pad = DataCollatorForLanguageModeling(pad_token_id=token)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = pad([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
        weights = torch.tensor([row["weight"] for row in rows])
        return {**batch, _WEIGHTS: weights, _ROWS: [row["query_id"] for row in rows]}

    return collate


class AnswerTrainer(SFTTrainer):
    """TRL's trainer with the loss of answers, which also answers dev at every evaluation.

    The loss is the library's, computed for less: without Triton TRL's own (1.16) computes the logits of all tokens. The
    rows of a loss that is no number are named.
    """

    def __init__(self, *arguments: Any, exam: Exam, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._exam = exam

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean negative log-likelihood of the answers' tokens, times the weights of their rows.

        Outputs are not to be had, and not asked for.

        Raises:
            RagbenchError: it is not finite.
        """
        tokens = (inputs["labels"][:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        likelihoods = label_log_likelihoods(model, inputs["input_ids"], inputs["labels"])
        loss = -(inputs[_WEIGHTS] * likelihoods).sum() / tokens
        if model.training and not math.isfinite(float(loss.detach())):
            raise RagbenchError(
                f"The loss was no number at step {self.state.global_step + 1} of {self.state.max_steps}, with learning "
                f"rate {self._get_learning_rate():g}, on the examples of: {', '.join(inputs[_ROWS])}. Lower the "
                "learning rate, or train in float32 (dtype)."
            )
        return loss

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        """Measure the loss on dev, and how dev is answered."""
        output = super().evaluation_loop(*arguments, **named)
        return output._replace(
            metrics=(output.metrics or {}) | {f"eval_{name}": value for name, value in self.answer_dev().items()}
        )

    def answer_dev(self) -> dict[str, float]:
        """Return dev's metrics (`answering.scores`) with the model as it is now."""
        # The model under the trainer's wrappings, so in the precision of the training.
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=bool(self.args.bf16)):
            network = plain_model(cast(PreTrainedModel, self.model))
            return measure(network, cast(PreTrainedTokenizerBase, self.processing_class), self._exam)
