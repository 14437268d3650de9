"""How fast this machine reads and trains the generator: measured, once for each model, device and precision.

One forward pass and one training step over a few hundred random tokens. The finding is kept in the cache folder, so
that a report that is made again says the same.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ragbench.cache import cache_folder
from ragbench.devices import choose_device, choose_dtype, memory_of
from ragbench.files import sha256_text, write_json
from ragbench.models import model_hash, resolve_model

ROWS, LENGTH, REPETITIONS = 2, 96, 1
LORA_RANK = 16
MEMORY_SHARE = 0.5
"""A full fine-tuning step is measured only if weights, gradients and AdamW's two moments, 16 bytes a parameter, take no
more than this share of the memory."""


@dataclass(frozen=True)
class Throughput:
    """Tokens a second, measured.

    Attributes:
        device, dtype: where and how.
        parameters: of the model.
        forward, lora, full: tokens read, trained with LoRA on all linear layers, and trained with every weight; None
            where it was not measured because the memory would not do.
    """

    device: str
    dtype: str
    parameters: int
    forward: float
    lora: float
    full: float | None


def measure_throughput(model: str, revision: str = "", device: str = "auto", dtype: str = "auto") -> Throughput:
    """Measure reading and training speed of a local causal language model.

    Raises:
        RagbenchError: the model or device is not to be had.
    """
    folder = resolve_model(model, revision)
    where = choose_device(device)
    precision = choose_dtype(where, dtype)
    name = torch.cuda.get_device_name() if where.startswith("cuda") else where
    key = sha256_text(model_hash(folder), str(precision), name, str(torch.get_num_threads()), torch.__version__)
    path = cache_folder() / "machine" / f"throughput-{key[:16]}.json"
    if not path.is_file():
        network = AutoModelForCausalLM.from_pretrained(
            folder, dtype=precision, local_files_only=True, use_safetensors=True
        ).to(where)  # type: ignore[arg-type]  # a decorator hides the signature
        write_json(path, asdict(_measure(network, where, name, str(precision).removeprefix("torch."))))
    return Throughput(**json.loads(path.read_text(encoding="utf-8")))


def _measure(network: Any, where: str, device: str, dtype: str) -> Throughput:
    parameters = sum(weight.numel() for weight in network.parameters())
    # LoRA draws its first weights: what follows in the run must not depend on whether this was measured in it.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = torch.randint(0, network.config.vocab_size, (ROWS, LENGTH), device=network.device)
        with torch.inference_mode():
            forward = _tokens_per_second(lambda rows: network(input_ids=rows), ids)
        full = None
        if 16 * parameters < MEMORY_SHARE * (memory_of(where) or 0):
            full = _training_speed(network, ids)
        return Throughput(device, dtype, parameters, forward, _training_speed(_with_lora(network), ids), full)


def _with_lora(network: PreTrainedModel) -> Any:
    # Importing peft takes seconds, which a run whose measurement is in the cache need not spend.
    from peft import LoraConfig, get_peft_model

    return get_peft_model(network, LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear"))


def _training_speed(network: Any, ids: torch.Tensor) -> float:
    network.train()
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0)

    def step(rows: torch.Tensor) -> None:
        network(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _tokens_per_second(step, ids)


def _tokens_per_second(work: Callable[[torch.Tensor], Any], ids: torch.Tensor) -> float:
    work(ids[:, :16])  # the first pass allocates
    seconds = []
    for _ in range(REPETITIONS):
        _wait(ids.device)
        started = time.perf_counter()
        work(ids)
        _wait(ids.device)
        seconds.append(time.perf_counter() - started)
    return ids.numel() / min(seconds)  # whatever else the machine does only ever adds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
