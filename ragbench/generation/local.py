"""The local backend: a Hugging Face causal language model, batched by length."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jinja2 import TemplateError
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ragbench.devices import choose_device, choose_dtype
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.generation.answers import Completion, cache_completions, cached_completions
from ragbench.generation.decoding import can_decode, greedy
from ragbench.generation.prompts import Message, TokenCount
from ragbench.models import adapted_model, model_hash, resolve_model


def token_counter(model: str, revision: str = "") -> TokenCount:
    """Return a function that counts a text's tokens as this model's tokenizer does."""
    folder = resolve_model(model, revision)
    tokenizer = load_tokenizer(folder, model_hash(folder))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def longest_input(model: str, revision: str = "") -> int | None:
    """Return how many tokens a model can read, prompt and answer together; None if its configuration does not tell."""
    folder = resolve_model(model, revision)
    config = AutoConfig.from_pretrained(adapted_model(folder) or folder, local_files_only=True)
    return getattr(config, "max_position_embeddings", None)


@dataclass(frozen=True)
class Opened:
    """A language model in memory: what is opened once to answer many questions."""

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def count_tokens(self, text: str) -> int:
        """Return how many tokens the model's tokenizer makes of a text."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def open_model(model: str, revision: str = "", device: str = "auto", dtype: str = "auto") -> Opened:
    """Load a model, see `ragbench.models` and `ragbench.devices`.

    Raises:
        RagbenchError: the model or device is not to be had.
    """
    folder, where = resolve_model(model, revision), choose_device(device)
    version = model_hash(folder)
    network = load_model(folder, version, where, choose_dtype(where, dtype))
    return Opened(model, network, load_tokenizer(folder, version))


def reply(
    opened: Opened,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 64,
    batch_rows: int = 32,
    batch_tokens: int = 32_768,
) -> list[Completion]:
    """Answer each conversation as `complete` does, without its cache: for what users ask, which is not to be kept.

    Raises:
        RagbenchError: a prompt is longer than the model can read.
    """
    texts = [render(opened.tokenizer, messages) for messages in conversations]
    prompts = {
        str(place): opened.tokenizer(text, add_special_tokens=False)["input_ids"] for place, text in enumerate(texts)
    }
    if prompts:
        _check_lengths(opened.network, prompts, max_new_tokens, opened.name)
    done: dict[str, Completion] = {}
    for batch in _batches(prompts, batch_rows, batch_tokens, max_new_tokens):
        produced = _generate(opened.network, opened.tokenizer, [prompts[key] for key in batch], max_new_tokens)
        done |= dict(zip(batch, produced, strict=True))
    return [done[str(place)] for place in range(len(texts))]


def complete(
    conversations: Sequence[Sequence[Message]],
    *,
    model: str,
    revision: str = "",
    max_new_tokens: int = 64,
    device: str = "auto",
    dtype: str = "auto",
    batch_rows: int = 32,
    batch_tokens: int = 32_768,
) -> list[Completion]:
    """Answer each conversation by greedy decoding; what the answer cache holds is not computed again.

    Prompts are sorted longest first and cut into batches of at most `batch_rows` rows and `batch_tokens` padded tokens.
    Every finished batch goes into the cache at once. Because the batches are taken in order, a run that was killed goes
    on with the very batches that an undisturbed one would have had.

    Raises:
        RagbenchError: the model or device is not to be had, or a prompt is longer than the model can read.
    """
    folder = resolve_model(model, revision)
    where = choose_device(device)
    precision = choose_dtype(where, dtype)
    version = model_hash(folder)
    tokenizer = load_tokenizer(folder, version)
    texts = [render(tokenizer, messages) for messages in conversations]
    base = sha256_text(version, str(precision), where.split(":")[0], f"greedy {max_new_tokens}")
    keys = [sha256_text(base, text) for text in texts]
    done = cached_completions(keys)
    waiting = {key: text for key, text in zip(keys, texts, strict=True) if key not in done}
    if waiting:
        network = load_model(folder, version, where, precision)
        prompts = {key: tokenizer(text, add_special_tokens=False)["input_ids"] for key, text in waiting.items()}
        _check_lengths(network, prompts, max_new_tokens, model)
        with tqdm(total=len(prompts), desc="answering", unit="question") as bar:
            for batch in _batches(prompts, batch_rows, batch_tokens, max_new_tokens):
                fresh = _generate(network, tokenizer, [prompts[key] for key in batch], max_new_tokens)
                completions = dict(zip(batch, fresh, strict=True))
                cache_completions(completions)
                done |= completions
                bar.update(len(batch))
    return [done[key] for key in keys]


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Return the prompt's text in the model's chat template, or plainly for a model without one."""
    if tokenizer.chat_template is None:
        return "\n\n".join(message["content"] for message in messages) + "\n\nAnswer:"
    return _templated(tokenizer, messages, add_generation_prompt=True)


def render_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: str) -> str:
    """Return what a model is to write after the prompt that `render` gives: the answer, and its turn's end if any."""
    if tokenizer.chat_template is None:
        return f" {answer}"
    prompt = render(tokenizer, messages)
    whole = _templated(tokenizer, [*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)
    # Templates that write past turns otherwise than new ones (without their thoughts, say) tell no end.
    return whole.removeprefix(prompt).rstrip() if whole.startswith(prompt) else answer


def _templated(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except TemplateError:
        # Some templates know no system role: then the instruction opens the user's message.
        asked = [message["content"] for message in messages if message["role"] != "assistant"]
        replies = [message for message in messages if message["role"] == "assistant"]
        merged = [{"role": "user", "content": "\n\n".join(asked)}, *replies]
        return str(tokenizer.apply_chat_template(merged, tokenize=False, add_generation_prompt=add_generation_prompt))


def _batches(prompts: dict[str, list[int]], rows: int, tokens: int, new_tokens: int) -> Iterator[list[str]]:
    order = sorted(prompts, key=lambda key: (-len(prompts[key]), key))
    while order:
        longest = len(prompts[order[0]]) + new_tokens
        size = max(1, min(rows, tokens // longest))
        yield order[:size]
        order = order[size:]


def _check_lengths(network: PreTrainedModel, prompts: dict[str, list[int]], new_tokens: int, name: str) -> None:
    limit = getattr(network.config, "max_position_embeddings", None)
    longest = max(map(len, prompts.values())) + new_tokens
    if limit is not None and longest > limit:
        raise RagbenchError(
            f"The longest prompt and its answer take {longest} tokens; {name} reads {limit}. Lower "
            "generator_max_context_tokens, generator_contexts or generator_max_new_tokens."
        )


def _generate(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], max_new_tokens: int
) -> list[Completion]:
    started = time.perf_counter()
    ends = end_tokens(network, tokenizer)
    decode = greedy if can_decode(network) else greedy_by_generate
    produced = decode(network, prompts, max_new_tokens=max_new_tokens, ends=ends)
    seconds = (time.perf_counter() - started) / len(prompts)
    completions: list[Completion] = []
    for prompt, row in zip(prompts, produced, strict=True):
        stopped = bool(row) and row[-1] in ends
        text = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
        completions.append(Completion(text, len(prompt), len(row), seconds, "stop" if stopped else "length"))
    return completions


def end_tokens(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end an answer."""
    configured = network.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ends, tokenizer.eos_token_id] if token is not None})


@torch.inference_mode()
def greedy_by_generate(
    network: PreTrainedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, ends: Sequence[int]
) -> list[list[int]]:
    """Do what `decoding.greedy` does with the library's `generate`, for models with other kinds of cache."""
    width = max(map(len, prompts))
    padding = ends[0] if ends else 0
    ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=network.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=network.device)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=padding, eos_token_id=list(ends) or None
    )
    rows = network.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=mask, generation_config=config
    )[:, width:].tolist()
    stops = [next((position for position, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[: stop + 1] for row, stop in zip(rows, stops, strict=True)]


# `version` is the model's hash: a folder whose files were replaced is loaded anew.
@lru_cache(maxsize=2)
def load_tokenizer(folder: Path, version: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a resolved model; the last two stay in memory. `version` is the model's hash."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@lru_cache(maxsize=1)
def load_model(folder: Path, version: str, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load a resolved model for inference; the last one stays in memory. `version` is the model's hash.

    A PEFT adapter is added to the weights of the model that it belongs to: so it costs nothing when answering.
    """
    base = adapted_model(folder)
    network = AutoModelForCausalLM.from_pretrained(
        base or folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    if base is not None:
        # Importing PEFT takes seconds, which a whole model need not spend.
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, folder, local_files_only=True).merge_and_unload()
    # Only the end tokens of the model's settings: penalties and sampling would make the answers other than greedy.
    network.generation_config = GenerationConfig(eos_token_id=network.generation_config.eos_token_id)
    return network.to(device).eval()  # type: ignore[arg-type]  # a decorator hides the signature
