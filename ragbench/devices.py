"""Where to compute, and in which precision."""

import json
import os
import statistics
import time

import torch

from ragbench.cache import cache_folder
from ragbench.errors import RagbenchError
from ragbench.files import sha256_text, write_json

WORTHWHILE_SPEEDUP = 1.2


def choose_device(name: str = "auto") -> str:
    """Return ``cuda``, ``mps`` or ``cpu``; ``auto`` takes the fastest there is.

    Raises:
        RagbenchError: the named device is not available.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available.get(name.split(":")[0], False):
        present = ", ".join(device for device, there in available.items() if there)
        raise RagbenchError(f"device '{name}' is not available here; there is: {present}. Use 'auto'.")
    return name


def choose_dtype(device: str, name: str = "auto") -> torch.dtype:
    """Return the precision to compute in: ``auto`` is bfloat16 where it is faster, else float32.

    Raises:
        RagbenchError: the name is none of auto, bfloat16, float32.
    """
    named = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if name in named:
        return named[name]
    if name != "auto":
        raise RagbenchError(f"dtype '{name}' is unknown; use auto, {', '.join(named)}.")
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device == "cpu" and cpu_gains_from_bfloat16() else torch.float32


def memory_of(device: str) -> int | None:
    """Return a device's memory in bytes; None if the system does not tell."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        return os.sysconf("SC_PAGE_SIZE") * pages if pages > 0 else None
    except (AttributeError, ValueError, OSError):
        return None


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16 (AVX512-BF16, AMX or Arm's), rather than emulating it."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_gains_from_bfloat16() -> bool:
    """Whether bfloat16 matrix products are clearly faster than float32 ones on this processor.

    Having the instructions is not enough: on some processors with AVX512-BF16 the products are twice as fast, on others
    slower. So it is measured, in a fifth of a second, once for each processor and version of torch; the finding is kept
    in the cache folder, because a choice that flipped between two runs would change their results.
    """
    if not cpu_has_bfloat16():
        return False
    machine = sha256_text(str(torch.cpu.get_capabilities()), str(torch.get_num_threads()), torch.__version__)
    path = cache_folder() / "machine" / f"{machine[:16]}.json"
    if not path.is_file():
        write_json(path, {"bfloat16_speedup": round(_bfloat16_speedup(), 3)})
    return json.loads(path.read_text())["bfloat16_speedup"] >= WORTHWHILE_SPEEDUP


def _bfloat16_speedup(repetitions: int = 15) -> float:
    """Time of a float32 product over that of the bfloat16 one: the medians of interleaved repetitions."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(repetitions):
        for dtype, times in seconds.items():
            left, right = torch.ones(512, 768, dtype=dtype), torch.ones(3072, 768, dtype=dtype)
            started = time.perf_counter()
            torch.nn.functional.linear(left, right)
            times.append(time.perf_counter() - started)
    return statistics.median(seconds[torch.float32]) / statistics.median(seconds[torch.bfloat16])
