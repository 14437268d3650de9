"""The generator as it is opened for training: an adapter on frozen weights, in 16 or 4 bits, or all of its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from ragbench.devices import choose_device, choose_dtype
from ragbench.errors import RagbenchError
from ragbench.files import write_json
from ragbench.models import ADAPTER_CONFIG, adapted_model, resolve_model

ALL_LINEAR = ("all-linear",)
METHODS = ("lora", "qlora", "full")


@dataclass(frozen=True)
class Recipe:
    """What is trained; how long and how fast is in the trainer's own arguments.

    Attributes:
        model, revision: the generator to start from, see `ragbench.models`.
        method: ``lora`` (Hu et al. 2021), ``qlora`` (the same over weights in 4 bits, Dettmers et al. 2023), or
            ``full`` (all weights).
        rank, alpha, dropout: of the adapter; its change is scaled by alpha over rank.
        targets: names of the layers that get an adapter; ``all-linear`` for all but the output layer.
        depth: share of the blocks, from the top, whose layers get one. Below the lowest of them nothing has to be
            computed backward, and nothing kept for it.
        refusal_weight: of the examples that expect a refusal, in the loss; that of the others is 1.
        device, dtype: see `ragbench.devices`; what is trained is in float32 whatever the dtype.
    """

    model: str = "SmolLM2-135M-Instruct"
    revision: str = ""
    method: Literal["lora", "qlora", "full"] = "lora"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    depth: float = 1.0
    refusal_weight: float = 1.0
    device: str = "auto"
    dtype: str = "auto"


def open_for_training(recipe: Recipe, base: Path, seed: int = 0) -> PreTrainedModel | PeftModel:
    """Load the model with what is to be trained in float32: a fresh adapter, or all of it.

    Raises:
        RagbenchError: the method or a target layer is unknown, or the packages for 4 bits are missing.
    """
    device = choose_device(recipe.device)
    dtype = choose_dtype(device, recipe.dtype)
    if recipe.method not in METHODS:
        raise RagbenchError(f"generator_method '{recipe.method}' is unknown; use {', '.join(METHODS)}.")
    network = open_frozen(recipe, base, torch.float32 if recipe.method == "full" else dtype)
    if recipe.method == "full":
        return network
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _with_adapter(recipe, network)


def open_frozen(recipe: Recipe, base: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the model that an adapter is trained on, for ``qlora`` in 4 bits."""
    device = choose_device(recipe.device)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    network: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        quantization_config=four_bits if recipe.method == "qlora" else None,
        device_map=device,
        local_files_only=True,
        use_safetensors=True,
    )
    if recipe.method == "qlora" and device == "cpu":
        _keep_trainable(network)
    return network


def _keep_trainable(network: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking weights when they first answer: no gradient passes the repacked ones."""
    from bitsandbytes.nn.modules import Linear4bit

    for layer in network.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def _with_adapter(recipe: Recipe, network: PreTrainedModel) -> PeftModel:
    linear = [name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)]
    known = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
    unknown = [] if recipe.targets == ALL_LINEAR else sorted(set(recipe.targets) - set(known))
    if unknown:
        raise RagbenchError(
            f"generator_lora_targets names '{unknown[0]}', which {recipe.model} has no layer of. Use all-linear, or "
            f"some of: {', '.join(known)}."
        )
    if not 0 < recipe.depth <= 1:
        raise RagbenchError(f"generator_lora_depth must lie above 0 and be at most 1, found {recipe.depth}.")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=known if recipe.targets == ALL_LINEAR else list(recipe.targets),
        layers_to_transform=_upper(network, recipe.depth) if recipe.depth < 1 else None,
    )
    return cast(PeftModel, get_peft_model(network, config))


def _upper(network: PreTrainedModel, depth: float) -> list[int]:
    blocks = int(network.config.num_hidden_layers)
    return list(range(blocks - max(1, round(depth * blocks)), blocks))


def plain_model(network: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model under an adapter, which still computes with it, or the model itself."""
    return cast(PreTrainedModel, network.get_base_model()) if isinstance(network, PeftModel) else network


def trained_weights(network: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    """Return a copy of what is trained, under the names that its checkpoints have."""
    named = get_peft_model_state_dict(network) if isinstance(network, PeftModel) else dict(network.named_parameters())
    return {name: weight.detach().cpu().clone() for name, weight in named.items()}


def adapted_name(model: str, revision: str) -> tuple[str, str]:
    """Return name and revision of the model that an adapter belongs to, as it was asked for; a whole model's own."""
    folder = resolve_model(model, revision)
    if adapted_model(folder) is None:
        return model, revision
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return config["base_model_name_or_path"], config.get("revision") or ""


def name_base(folder: Path, model: str, revision: str) -> None:
    """Put a name into an adapter's configuration, where PEFT notes a folder of this machine."""
    path = folder / ADAPTER_CONFIG
    known = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, known | {"base_model_name_or_path": model, "revision": revision or None})
