"""Where to compute, and in which precision."""

import torch

from ragbench.errors import RagbenchError


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
    """Return the precision to compute in: ``auto`` is bfloat16 where the hardware multiplies in it, else float32.

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
    return torch.bfloat16 if device == "cpu" and cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16 (AVX512-BF16 or AMX); emulation would be slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
