"""A step after fine-tuning: direct preference optimization (DPO) on the generator's own errors.

The tuned generator answers its training examples as in use. Where it invents, answers what its passages do not tell,
or refuses what they do, the expected answer is preferred to its own (Rafailov et al. 2023, arXiv 2305.18290; errors of
the model itself as the rejected side: Tian et al. 2023, arXiv 2311.08401). What comes out is kept only if dev has
fewer errors and is answered no worse.
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
from datasets import Dataset, Features, List, Value
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from ragbench.cache import cache_folder
from ragbench.collection.schema import Collection, passages
from ragbench.devices import choose_device, choose_dtype
from ragbench.errors import RagbenchError
from ragbench.evaluation.answer_metrics import refuses
from ragbench.evaluation.grounding import AnswerWithContexts, grounding
from ragbench.evaluation.grounding_model import fitted
from ragbench.files import sha256_folder, sha256_text, write_json
from ragbench.generation.local import end_tokens, load_model, load_tokenizer, longest_input
from ragbench.models import adapted_model, model_hash
from ragbench.retrieval.encoder import Encoder
from ragbench.training.answer_rows import answer_tokens
from ragbench.training.answering import CRITERION, Exam, answers, scores
from ragbench.training.callbacks import Progress, StopAtNaN
from ragbench.training.checkpoints import MODEL, RECORD, STORE, settings
from ragbench.training.generator import Tuned
from ragbench.training.generator_model import Recipe, name_base, open_frozen, plain_model

ERRORS = ("unsupported", "answered anyway", "refused")
"""An answer that its passages do not support, one where they tell nothing, and a refusal where they do."""
BOOKKEEPING: dict[str, Any] = {
    "max_length": None,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,  # a loss that is no number must be seen
    "report_to": "none",
    "disable_tqdm": True,  # `callbacks.Progress` draws the bar
    "dataloader_pin_memory": False,
    "save_strategy": "no",  # it is short: what was killed is done again
    "eval_strategy": "no",
}
"""Arguments of the trainer that change nothing in what is learned."""
_MESSAGES = List({"role": Value("string"), "content": Value("string")})
_FEATURES = Features(
    dict.fromkeys(("prompt", "chosen", "rejected"), _MESSAGES)
    | {name: Value("string") for name in ("query_id", "error")}
)
_CODE = ("answer_rows.py", "answering.py", "generator_model.py", "preferences.py")


@dataclass(frozen=True)
class Preferred:
    """What the step came to.

    Attributes:
        tuned: the generator to go on with: after the step if it helped, else the one before it.
        kept: whether it is the one after the step.
        reason: why, in words.
        pairs: columns prompt, chosen, rejected (TRL's), query_id and error.
        dev: a row before and, where there were pairs, after: `answering.scores`, and the share of each of `ERRORS`.
        seconds: of the training.
    """

    tuned: Tuned
    kept: bool
    reason: str
    pairs: Dataset
    dev: pd.DataFrame
    seconds: float


class _PairTrainer(DPOTrainer):
    """TRL's trainer on rows that are tokens already: where a chat template ends no answer, its own (1.16) does not."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def prefer(
    tuned: Tuned,
    recipe: Recipe,
    arguments: DPOConfig,
    examples: Dataset,
    exam: Exam,
    collection: Collection,
    encoder: Encoder,
    *,
    limit: int,
) -> Preferred:
    """Train on pairs of the generator's own errors, and keep the result if dev has fewer errors and no lower criterion.

    Args:
        tuned, recipe: an adapter that `generator.fine_tune` left, and how it was made.
        arguments: the trainer's; its folder is replaced by one in the cache.
        examples: those of train that it learned from, with the columns of `training.examples.FEATURES`.
        exam: dev's.
        collection: whose passages the examples show.
        encoder: the fixed encoder of the grounding estimate, by which an answer counts as unsupported.
        limit: examples to look for errors in; all if there are fewer. With 0 nothing is done.

    Raises:
        RagbenchError: the generator is no adapter, or the loss was no number.
    """
    if not limit:
        return Preferred(tuned, False, "Switched off: generator_preferences is 0.", _pairs_of([]), pd.DataFrame(), 0.0)
    if adapted_model(tuned.folder) is None:
        raise RagbenchError(
            "generator_preferences needs an adapter: use generator_method lora or qlora, or set it to 0."
        )
    step = max(1, len(examples) // limit)
    asked = dataclasses.replace(exam, examples=examples.select(range(0, len(examples), step)[:limit]))
    pairs = _pairs(asked, _answers(tuned.folder, recipe, asked), collection, encoder)
    before = _on_dev(tuned.folder, recipe, exam, collection, encoder)
    if not len(pairs):
        table = pd.DataFrame([before], index=["before"])
        return Preferred(tuned, False, "It made no errors to learn from.", pairs, table, 0.0)
    folder, seconds = _trained(tuned, recipe, arguments, pairs, exam.max_new_tokens)
    after = _on_dev(folder, recipe, exam, collection, encoder)
    wrong = [sum(row[name] for name in ERRORS) for row in (before, after)]
    kept = wrong[1] < wrong[0] and after[CRITERION] >= before[CRITERION]
    reason = (
        f"Errors on dev {wrong[0]:.2f} → {wrong[1]:.2f}, {CRITERION} {before[CRITERION]:.3f} → {after[CRITERION]:.3f}: "
        f"{'kept' if kept else 'the generator before it is kept'}."
    )
    best = {name: after[name] for name in tuned.best if name in after}
    chosen = dataclasses.replace(tuned, folder=folder, best=best, seconds=tuned.seconds + seconds) if kept else tuned
    return Preferred(chosen, kept, reason, pairs, pd.DataFrame([before, after], index=["before", "after"]), seconds)


def errors(examples: Dataset, found: Sequence[str], collection: Collection, encoder: Encoder) -> list[str]:
    """Return which of `ERRORS` each answer is, an empty text if it is none.

    Support is the offline estimate (`grounding` without a language model, at its fitted threshold) by the passages
    that the example shows.
    """
    judged = ["" for _ in found]
    to_weigh: list[int] = []
    for place, (example, answer) in enumerate(zip(examples, found, strict=True)):
        answerable = not refuses(example["completion"][-1]["content"])
        if refuses(answer) == answerable:
            judged[place] = "refused" if answerable else "answered anyway"
        elif answerable:
            to_weigh.append(place)
    rows = [examples[place] for place in to_weigh]
    known = passages(collection, (name for row in rows for name in row["context_ids"]))
    items = [
        AnswerWithContexts(
            collection.queries[row["query_id"]].text,
            found[place],
            tuple(known[name].full_text for name in row["context_ids"]),
        )
        for place, row in zip(to_weigh, rows, strict=True)
    ]
    for place, support in zip(to_weigh, grounding(items, encoder, model=None), strict=True):
        if support.score is None or support.score < fitted("light").threshold:
            judged[place] = "unsupported"
    return judged


def errors_table(pairs: Dataset) -> pd.DataFrame:
    """Count the pairs: a row an error that was made: error, pairs, and the expected and own answer of the first."""
    rows = []
    for name in ERRORS:
        of_it = [pair for pair in pairs if pair["error"] == name]
        if of_it:
            shown = [of_it[0][side][-1]["content"] for side in ("chosen", "rejected")]
            rows.append({"error": name, "pairs": len(of_it), "expected": shown[0], "its own": shown[1]})
    return pd.DataFrame(rows)


def _pairs(exam: Exam, found: Sequence[str], collection: Collection, encoder: Encoder) -> Dataset:
    rows = [
        {
            "prompt": example["prompt"],
            "chosen": example["completion"],
            "rejected": [{"role": "assistant", "content": answer}],
            "query_id": example["query_id"],
            "error": error,
        }
        for example, answer, error in zip(
            exam.examples, found, errors(exam.examples, found, collection, encoder), strict=True
        )
        if error and answer
    ]
    return _pairs_of(rows)


def _pairs_of(rows: Sequence[dict[str, Any]]) -> Dataset:
    return Dataset.from_dict({name: [row[name] for row in rows] for name in _FEATURES}, features=_FEATURES)


def _on_dev(folder: Path, recipe: Recipe, exam: Exam, collection: Collection, encoder: Encoder) -> dict[str, float]:
    found = _answers(folder, recipe, exam)
    judged = errors(exam.examples, found, collection, encoder)
    return scores(exam, found) | {name: judged.count(name) / len(judged) for name in ERRORS}


def _answers(folder: Path, recipe: Recipe, exam: Exam) -> list[str]:
    device = choose_device(recipe.device)
    version = model_hash(folder)
    network = load_model(folder, version, device, choose_dtype(device, recipe.dtype))
    with torch.inference_mode():
        return answers(network, load_tokenizer(folder, version), exam)


def _trained(
    tuned: Tuned, recipe: Recipe, arguments: DPOConfig, pairs: Dataset, max_new_tokens: int
) -> tuple[Path, float]:
    """Return the folder of the adapter after the step, and the seconds it took; what was done is not done again."""
    device, base = choose_device(recipe.device), adapted_model(tuned.folder)
    assert base is not None, "`prefer` has asked"
    dtype = choose_dtype(device, recipe.dtype)
    key = sha256_text(
        model_hash(tuned.folder),
        settings(arguments),
        repr((device, dtype, recipe.method)),
        *(json.dumps(pair) for pair in pairs),
        sha256_folder(Path(__file__).parent, _CODE),
    )
    folder = cache_folder() / STORE / key[:32]
    if not (folder / RECORD).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        network = PeftModel.from_pretrained(open_frozen(recipe, base, dtype), tuned.folder, is_trainable=True)
        tokenizer = load_tokenizer(tuned.folder, model_hash(tuned.folder))
        trainer = _PairTrainer(
            model=network,
            args=dataclasses.replace(arguments, output_dir=str(folder)),
            train_dataset=_rows(pairs, network, tokenizer, recipe, max_new_tokens),
            processing_class=tokenizer,
            callbacks=[Progress(), StopAtNaN()],
        )
        trainer.remove_callback(PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"]
        # Only the adapter that was trained: the trainer keeps a copy of the one before beside it, as its reference.
        # No token was added; PEFT would ask the hub for the base's vocabulary to find that out.
        network.save_pretrained(str(folder / MODEL), selected_adapters=["default"], save_embedding_layers=False)
        tokenizer.save_pretrained(folder / MODEL)
        name_base(folder / MODEL, recipe.model, recipe.revision)
        write_json(folder / RECORD, {"seconds": round(seconds, 1)})
    return folder / MODEL, float(json.loads((folder / RECORD).read_text(encoding="utf-8"))["seconds"])


def _rows(
    pairs: Dataset, network: PeftModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, max_new_tokens: int
) -> Dataset:
    """Return the trainer's columns prompt_ids, chosen_ids and rejected_ids, as `answer_rows` makes them."""
    ends = end_tokens(plain_model(network), tokenizer)
    longest = longest_input(recipe.model, recipe.revision)
    rows = []
    for pair in pairs:
        prompt, chosen = answer_tokens(pair | {"completion": pair["chosen"]}, tokenizer, ends, longest)
        _, rejected = answer_tokens(pair | {"completion": pair["rejected"]}, tokenizer, ends, longest)
        # An answer that ran into the limit was not ended by the model.
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected[:max_new_tokens]})
    return Dataset.from_list(rows)
