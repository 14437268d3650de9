"""The two models of joint training: opened with what is to learn in float32, used with gradients, and saved."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ragbench.devices import choose_device, choose_dtype
from ragbench.generation.generate import Generator
from ragbench.generation.local import load_model, load_tokenizer
from ragbench.models import adapted_model, model_hash, resolve_model
from ragbench.retrieval.retrieve import Retriever
from ragbench.training.contrast import embed
from ragbench.training.generator_model import Recipe, adapted_name, name_base, open_for_training

Kind = Literal["query", "document"]
_PROMPTS: dict[Kind, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_CHUNK = 512


@dataclass
class Models:
    """What is trained, and what stays as it is.

    Attributes:
        queries: the encoder of questions.
        passages: the encoder of passages: the same object where both sides learn, else a copy that is never touched.
        generator: a causal language model, an adapter on it where it learns.
        tokenizer: the generator's.
        half: whether to compute in bfloat16; what is trained is in float32.
    """

    queries: SentenceTransformer
    passages: SentenceTransformer
    generator: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    half: bool

    @property
    def both_sides(self) -> bool:
        """Whether the passages' encoder learns too."""
        return self.queries is self.passages

    @property
    def rounding(self) -> float:
        """What rounding takes away of a number, as a share of it, in the precision that is computed in."""
        return torch.finfo(torch.bfloat16 if self.half else torch.float32).eps / 2

    def autocast(self) -> Any:
        """Return a context in which to compute."""
        return torch.autocast(self.queries.device.type, torch.bfloat16) if self.half else nullcontext()

    def trained(self) -> dict[str, Tensor]:
        """Return what learns, by name."""
        named = {f"retriever.{name}": weight for name, weight in self.queries.named_parameters()}
        named |= {f"generator.{name}": weight for name, weight in self.generator.named_parameters()}
        return {name: weight for name, weight in named.items() if weight.requires_grad}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Put weights, as `trained` returns them, in the place of what has been learned."""
        with torch.no_grad():
            for name, weight in self.trained().items():
                weight.copy_(weights[name])


def open_models(
    retriever: Retriever, generator: Generator, *, sides: str, train_generator: bool, rank: int, seed: int
) -> Models:
    """Open both models to go on from.

    Neither has dropout while it learns: few small steps are taken, and what is scored is what will be used.

    Args:
        sides: ``query`` or ``both``: whether the passages' encoder learns too.
        rank: of a fresh adapter, where the generator learns and has none yet.

    Raises:
        RagbenchError: a model cannot be had.
    """
    device = choose_device(retriever.device)
    encoder = SentenceTransformer(
        str(resolve_model(retriever.model, retriever.revision)),
        device=device,
        model_kwargs={"dtype": torch.float32, "use_safetensors": True},
        local_files_only=True,
    ).eval()
    encoder.max_seq_length = retriever.max_tokens
    passages = encoder if sides == "both" else copy.deepcopy(encoder).requires_grad_(False)
    folder = resolve_model(generator.model, generator.revision)
    version = model_hash(folder)
    dtype = choose_dtype(device, generator.dtype)
    network = (
        _open_generator(generator, folder, device, dtype, rank, seed)
        if train_generator
        else load_model(folder, version, device, dtype).requires_grad_(False)
    )
    return Models(encoder, passages, network.eval(), load_tokenizer(folder, version), dtype == torch.bfloat16)


def _open_generator(
    generator: Generator, folder: Path, device: str, dtype: torch.dtype, rank: int, seed: int
) -> PreTrainedModel | PeftModel:
    base = adapted_model(folder)
    if base is None:
        recipe = Recipe(generator.model, generator.revision, rank=rank, alpha=2 * rank, device=device,
                        dtype=generator.dtype)  # fmt: skip
        return open_for_training(recipe, folder, seed)
    network = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, device_map=device, local_files_only=True, use_safetensors=True
    )
    return PeftModel.from_pretrained(network, folder, is_trainable=True, local_files_only=True)


def embed_texts(model: SentenceTransformer, texts: Sequence[str], kind: Kind) -> Tensor:
    """Return unit-length embeddings in float32, (texts, dimensions), with gradients unless they are switched off."""
    prompt = next((model.prompts[name] for name in _PROMPTS[kind] if model.prompts.get(name)), None)
    features = model.preprocess(list(texts), prompt=prompt, task=kind)
    tensors = {name: value.to(model.device) for name, value in features.items() if isinstance(value, Tensor)}
    return embed(partial(model, task=kind), tensors)  # type: ignore[arg-type]  # called like the module


def texts_of(texts: pa.ChunkedArray, rows: Sequence[int] | np.ndarray) -> list[str]:
    """Return some rows of an Arrow array of texts."""
    return texts.take(pa.array(rows, type=pa.int64())).to_pylist()


@torch.no_grad()
def embed_corpus(models: Models, texts: pa.ChunkedArray) -> np.ndarray:
    """Return the embeddings of all passages by the encoder as it is now, float32 of shape (passages, dimensions)."""
    order = np.argsort(-pc.utf8_length(texts).to_numpy(), kind="stable")
    parts: list[np.ndarray] = []
    with tqdm(total=len(order), desc="encoding passages anew", unit="text") as bar, models.autocast():
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            parts.append(embed_texts(models.passages, texts_of(texts, rows), "document").cpu().numpy())
            bar.update(len(rows))
    vectors = np.concatenate(parts)
    return vectors[np.argsort(order)]


def save_models(models: Models, retriever: Path, generator: Path, start: Generator) -> None:
    """Write what learned: the retriever as a plain Sentence-Transformers folder, the generator's adapter if it has one.

    Where only the questions' encoder learned, the folder routes questions and passages to their own encoders.
    """
    model = models.queries
    if not models.both_sides:
        router = Router.for_query_document(
            query_modules=[*cast(Any, models.queries)], document_modules=[*cast(Any, models.passages)]
        )  # fmt: skip
        prompts = {name: text for name, text in models.queries.prompts.items() if text}
        model = SentenceTransformer(modules=[router], device=str(models.queries.device), prompts=prompts)
    model.save_pretrained(str(retriever), create_model_card=False)
    if not isinstance(models.generator, PeftModel):
        return
    # No token was added; PEFT would ask the hub for the base's vocabulary to find that out.
    models.generator.save_pretrained(str(generator), save_embedding_layers=False)
    (generator / "README.md").unlink(missing_ok=True)
    models.tokenizer.save_pretrained(generator)
    name_base(generator, *adapted_name(start.model, start.revision))
