"""The local backend: a Hugging Face causal language model, batched by length."""

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ragbench.devices import choose_device, choose_dtype
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text
from ragbench.generation.answers import Completion, cache_completions, cached_completions
from ragbench.generation.prompts import Message, TokenCount
from ragbench.models import model_hash, resolve_model


def token_counter(model: str, revision: str = "") -> TokenCount:
    """Return a function that counts a text's tokens as this model's tokenizer does."""
    tokenizer = _load_tokenizer(resolve_model(model, revision))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


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
    tokenizer = _load_tokenizer(folder)
    texts = [render(tokenizer, messages) for messages in conversations]
    base = sha256_text(model_hash(folder), str(precision), where.split(":")[0], f"greedy {max_new_tokens}")
    keys = [sha256_text(base, text) for text in texts]
    done = cached_completions(keys)
    waiting = {key: text for key, text in zip(keys, texts, strict=True) if key not in done}
    if waiting:
        network = _load_model(folder, where, precision)
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
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


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
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left").to(network.device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=network.generation_config.eos_token_id or tokenizer.eos_token_id,
    )
    with torch.inference_mode():
        output = network.generate(**batch, generation_config=config)
    seconds = (time.perf_counter() - started) / len(prompts)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    completions: list[Completion] = []
    for prompt, row in zip(prompts, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
        stop = next((position for position, token in enumerate(row) if token in ends), None)
        text = tokenizer.decode(row[:stop], skip_special_tokens=True).strip()
        length = len(row) if stop is None else stop + 1
        completions.append(Completion(text, len(prompt), length, seconds, "length" if stop is None else "stop"))
    return completions


@lru_cache(maxsize=2)
def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@lru_cache(maxsize=1)
def _load_model(folder: Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    return network.to(device).eval()
