"""What there is to compute with on this machine, and whether a small net learns on it: `diffunet info` alone."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffunet.errors import Error
from diffunet.version import __version__

PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "pillow", "pydantic", "safetensors", "tyro")
"""Packages whose versions matter where something goes wrong."""

EXTRAS = {
    "web": ("starlette", "uvicorn", "markdown-it-py"), "fid": ("torch-fidelity", "timm"),
    "tensorboard": ("tensorboard",), "onnx": ("onnx", "onnxscript"), "parquet": ("pyarrow",),
}  # fmt: skip
"""What `pip install "diffunet[NAME]"` adds; tests/commands/test_info.py compares it with pyproject.toml."""

BESIDE = ("pillow-heif", "triton")
"""Packages that diffunet uses where they are, and that no extra brings."""


def facts(device_name: str | None = None) -> dict[str, Any]:
    """Return versions, device, precision, memory, disk and caches, as JSON has them; sizes are bytes.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    from diffunet import compute
    from diffunet.data import kept

    how = compute.choose(device_name)
    disk = {"here": Path.cwd(), "cache": kept.places()[0]}
    return {
        "versions": {"diffunet": __version__, "python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "extras": {name: {p: _version(p) for p in packages} for name, packages in EXTRAS.items()},
        "beside": {name: _version(name) for name in BESIDE},
        "system": platform.platform(),
        "device": compute.describe(how.device), "precision": how.precision, "why": how.why,
        "threads": torch.get_num_threads(), "warning": compute.warning(),
        "memory": compute.memory(how.device), "free_memory": how.free_memory(),
        "free_disk": {name: {"path": str(path), "bytes": _free(path)} for name, path in disk.items()},
        "cache": sum(each.size for each in kept.caches()),
    }  # fmt: skip


def _version(package: str) -> str | None:
    """Return the version of an installed package, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _free(path: Path) -> int | None:
    """Return the bytes that are free where `path` is or would be made."""
    try:
        return shutil.disk_usage(next(each for each in (path, *path.parents) if each.exists())).free
    except (OSError, StopIteration):
        return None


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what there is to print of `facts`."""
    from diffunet.data.cache import megabytes

    def listed(versions: Mapping[str, str | None]) -> str:
        return ", ".join(f"{name} {version or 'is not installed'}" for name, version in versions.items())

    def room(size: int | None) -> str:
        return "unknown" if size is None else megabytes(size)

    yield listed(found["versions"])
    yield from (f"extra {name}: {listed(packages)}" for name, packages in found["extras"].items())
    yield f"used where they are: {listed(found['beside'])}"
    yield f"system: {found['system']}"
    if found["warning"]:
        yield found["warning"]
    yield f"device: {found['device']}; precision: {found['precision']} ({found['why']})"
    yield f"memory: {megabytes(found['free_memory'])} free of {megabytes(found['memory'])}"
    for name, place in found["free_disk"].items():
        yield f"disk, {name}: {room(place['bytes'])} free ({place['path']})"
    yield f"decoded images that are kept: {megabytes(found['cache'])} (diffunet cache)"


def self_test(device_name: str | None = None) -> dict[str, Any]:
    """Return whether a small net learns on the device: training steps with finite results, and samples of it.

    Returns:
        `passed`, and where it did not `why`; the mean `losses` of the steps and the `seconds` that all of it took;
        `kernels`: what there is of kernels of diffunet's own, which are built where they can be.
    """
    import torch

    from diffunet import build, compiler, compute
    from diffunet.nn import kernels

    how, began = compute.choose(device_name), time.perf_counter()
    try:
        kernels.ready(how.device)
        own = "built, and right"
    except compiler.Unavailable as error:
        own = f"none: {error}"
    found: dict[str, Any] = {"passed": False, "why": None, "losses": [], "kernels": own}
    try:
        with how.kernels(), torch.random.fork_rng([how.device] if how.device.type == "cuda" else []):
            found["losses"] = _learned(how, build)
        found["passed"] = True
    except (Error, RuntimeError, ArithmeticError) as error:
        found["why"] = compute.first_line(error)
    return found | {"seconds": time.perf_counter() - began}


def _learned(how: Any, build: Any) -> list[float]:
    """Return the losses of some training steps of a small net; raise ArithmeticError for what is not finite."""
    import torch

    from diffunet.config import Config
    from diffunet.training import defaults
    from diffunet.training.learner import Learner

    torch.manual_seed(0)
    asked = Config.model_validate({
        "model": {"channels": 16, "multipliers": (1, 2), "num_blocks": 1}, "data": {"image_size": 16},
        "train": {"steps": 4, "batch_size": 8, "compile": "off"},
    })  # fmt: skip
    config = defaults.resolve(asked, images=8, class_names=(), mean=(0.0, 0.0, 0.0), sigma_data=0.5, how=how)
    denoiser = build.denoiser(config, build.net(config))
    how.prepare(denoiser)
    learner = Learner(config, denoiser, how)
    losses = [float(learner.step(step, [learner.imagined(8)]).loss) for step in range(4)]
    if not all(map(torch.isfinite, torch.tensor(losses))) or not learner.state.finite():
        raise ArithmeticError(f"a training step is not finite: losses {losses}")
    return losses


def tested(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what there is to print of `self_test`."""
    yield f"kernels of diffunet's own: {found['kernels']}"
    if found["passed"]:
        yield f"self-test: passed, {len(found['losses'])} training steps of a small net in {found['seconds']:.1f} s"
