"""What everything runs on: `python -m benchmarks.machine DEVICE`, where an empty DEVICE is the best there is."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from benchmarks import children

PACKAGES = (
    "torch", "torchvision", "diffusers", "denoising-diffusion-pytorch", "accelerate", "safetensors", "pillow", "numpy",
    "matplotlib",
)  # fmt: skip
"""Packages whose versions matter; a missing one is None."""

FLAGS = {
    "AVX2": "_is_avx2_supported", "AVX-512": "_is_avx512_supported", "AVX-512 bf16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
}  # fmt: skip
"""What a CPU may be able to do -> torch's function that says so."""


def facts(device: str = "") -> dict[str, Any]:
    """Return the CPU or GPU, how diffunet computes on it, and the versions of what computes."""
    import torch

    from diffunet import __version__, compute

    how = compute.choose(device or None)
    flags = [name for name, function in FLAGS.items() if getattr(torch.cpu, function, bool)()]
    found: dict[str, Any] = {
        "cpu": cpu(), "cores": compute.cores(), "threads": torch.get_num_threads(), "flags": flags,
        "memory_gib": round(compute.memory(torch.device("cpu")) / 2**30, 1), "device": str(how.device),
        "chosen": f"{how.precision} ({how.why})",
    }  # fmt: skip
    if how.device.type != "cpu":
        found |= {"gpu": compute.describe(how.device), "cuda": torch.version.cuda}
    versions = {"python": platform.python_version(), "diffunet": __version__}
    return found | {"versions": versions | {name: version(name) for name in PACKAGES}, "system": platform.platform()}


def cpu() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Return the version of a package, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    children.answer(facts)
