"""Which device and precision to work with, and why, in words for the person who waits for it."""

from __future__ import annotations

import contextlib
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from diffunet.errors import ResourceError, UsageError

_NO_MEMORY = (
    "allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED", "Storage size calculation",
)  # fmt: skip
"""Words of torch's RuntimeErrors where memory runs out: on the CPU of Linux and of Windows, on a GPU, in C++ and in
NVIDIA's libraries; and where more is asked for than can be counted."""

CPU_ONLY = (
    "warning: this machine has an NVIDIA driver, but this torch cannot use it ({version}). Install the CUDA build: "
    "pip install --upgrade --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu128"
)


@dataclass(frozen=True)
class Choice:
    """What was chosen, and `why` in a few words."""

    value: str
    why: str


def warning() -> str | None:
    """One loud line where a GPU is there but torch was built without it (what a plain pip gives on Windows)."""
    if torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi"):
        return CPU_ONLY.format(version=torch.__version__)
    return None


def device(name: str | None = None) -> torch.device:
    """`name`, or the best there is: CUDA, Apple's MPS, CPU.

    Raises:
        UsageError: for a device that is not there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).item()  # which the meta device, for one, cannot
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name!r} cannot be used (cpu, cuda, cuda:1, mps can be): {reason}") from None
    return found


def precision(found: torch.device, wanted: str = "auto") -> Choice:
    """ "bf16" where the hardware has it natively, else "fp32"; `wanted` other than "auto" is taken as it is.

    Emulated bfloat16 is slower than float32, and float16 loses small gradients.
    """
    if wanted != "auto":
        return Choice(wanted, "as asked")
    if found.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16", "native on this GPU")
        return Choice("fp32", "this GPU has no native bfloat16")
    if found.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return Choice("bf16", "this CPU has AMX")
        if torch.cpu._is_avx512_bf16_supported():
            return Choice("bf16", "this CPU has AVX-512 bf16")
        return Choice("fp32", "this CPU has no native bfloat16")
    return Choice("fp32", f"the safe choice on {found.type}")


def memory(found: torch.device) -> int | None:
    """Bytes that a device has in all: of a CPU what the machine, the container and the process are allowed."""
    if found.type == "cuda":
        return int(torch.cuda.get_device_properties(found).total_memory)
    if found.type != "cpu":
        return None
    limits = [int(psutil.virtual_memory().total)]
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    if hasattr(psutil, "RLIMIT_AS"):
        limits.append(int(psutil.Process().rlimit(psutil.RLIMIT_AS)[0]))
    return min(limit for limit in limits if limit > 0)


def describe(found: torch.device) -> str:
    """The device in words: name and memory, or thread count."""
    if found.type == "cuda":
        properties = torch.cuda.get_device_properties(found)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    if found.type == "cpu":
        return f"CPU ({torch.get_num_threads()} threads)"
    return found.type


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: CUDA's own, Python's, or the plain RuntimeError of torch's CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    cut_short = said != "" and said in "[enforce fail at alloc_cpu.cpp"  # there was none left for the message either
    return isinstance(error, RuntimeError) and (cut_short or any(words in said for words in _NO_MEMORY))


@contextlib.contextmanager
def enough_memory(needs: str) -> Iterator[None]:
    """Raises ResourceError where memory runs out: "out of memory" and `needs`, which says with what, and what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they would hold the memory for as long as the new error lives
        raise ResourceError(f"out of memory {needs}") from None
