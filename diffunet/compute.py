"""How nets are computed: on which device, in which precision and memory layout, compiled or not, and what fits there.

Whoever runs a net (training, the pipeline, `info`, `evaluate`, the scripts) asks for a `Compute` and does as it says:
tuning for a device is a change of this file. Which net and which batch of training suit a device is a matter of the
recipe: training/defaults.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from diffunet.errors import ResourceError, UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

WORTH = {"cuda": 256, "mps": 32, "cpu": 32}
"""Images of a pass of training above which a device gains little."""

SAMPLING_WORTH, SMALL = {"cuda": 256, "mps": 32, "cpu": 16}, 64
"""The same of sampling, at this image size; on a CPU more of smaller ones."""

RESERVE = 0.1
"""Share of the free memory that is left alone: what an allocator wastes between blocks, and libraries' work space."""

COMPILING_PAYS = 5_000
"""Steps of training from which on `torch.compile` is worth its wait on CUDA: it takes minutes, and a step of the
default net, some 2,500 small kernels of which it fuses most, takes some hundredths of a second. An estimate: it has not
been measured on a GPU yet (scripts/gpu.py does)."""

SHAPES = 64
"""Shapes of input that a compiled net is compiled for; torch's own limit is 8, past which it runs plain, silently."""

_NO_MEMORY = (
    "allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED", "Storage size calculation",
    "could not create a primitive",
)  # fmt: skip
"""Words of torch's RuntimeErrors where memory runs out: on the CPU of Linux and of Windows, on a GPU, in C++ and in
NVIDIA's libraries, where more is asked for than can be counted; and in oneDNN, which says no more than that."""

CPU_ONLY = (
    "warning: this machine has an NVIDIA driver, but this torch ({version}) is built without CUDA and leaves the GPU "
    "idle. Install a CUDA build of torch and torchvision by the command that https://pytorch.org/get-started/locally/ "
    "gives for your system"
)


@dataclass(frozen=True)
class Compute:
    """How a net is computed.

    Args:
        device: where.
        precision: "fp32", or the type that convolutions, products and attention take under autocast: "bf16", "fp16".
        why: the reason for the precision, in a few words.
        channels_last: whether the channels of a pixel lie side by side in memory.
        compiled: whether the net goes through `torch.compile`.
    """

    device: torch.device
    precision: str = "fp32"
    why: str = "as asked"
    channels_last: bool = False
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The type of the precision."""
        return PRECISIONS[self.precision]

    def autocast(self) -> AbstractContextManager[None]:
        """Runs a net in the precision, whatever autocast the caller is in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.precision != "fp32")

    def prepare(self, module: nn.Module, *, frozen: bool = False) -> None:
        """Bring a module to the device, in the memory layout.

        Args:
            module: changed in place.
            frozen: its weights will not change, so those that autocast would cast at every call are cast now. What
                comes out is the same, bit for bit.
        """
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        if frozen and self.precision != "fp32":
            for part in module.modules():
                if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    part.to(self.dtype)

    def compile(self, net: nn.Module, deterministic: bool = False) -> None:
        """Compile a net in place, where asked for: for each shape that it meets, when it first does.

        Its weights, their names and copies of it stay those of the plain module.
        """
        if self.compiled:
            import torch._dynamo.config as dynamo
            import torch._inductor.config as inductor

            dynamo.recompile_limit = max(SHAPES, dynamo.recompile_limit)
            same = deterministic and hasattr(inductor, "deterministic")  # newer than the oldest torch that will do
            net.compile(dynamic=False, options={"deterministic": True} if same else None)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Round what may compile a net that was asked to be: raises UsageError where that cannot be done."""
        try:
            yield
        except Exception as error:
            if not self.compiled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UsageError(f"the net cannot be compiled: {first_line(error)}; do without (--compile)") from None

    @contextlib.contextmanager
    def kernels(self, deterministic: bool = False) -> Iterator[None]:
        """Which kernels torch may choose, for as long as it lasts.

        On CUDA products that stay float32 use TF32, and convolutions are tried out for each shape (`cudnn.benchmark`).
        With `deterministic` only kernels are used that give the same bits every time, and nothing is tried out.
        """
        with _flags.held(self.device.type == "cuda", deterministic):
            yield

    def fits(self, bytes_of: Callable[[int], int], most: int | None = None, free: int | None = None) -> int:
        """The largest power of two of images, up to `most`, that memory is counted to hold; 0 where not even one fits.

        Args:
            bytes_of: memory that so many images take.
            most: `WORTH` of the device by default.
            free: bytes that are free; found by default.
        """
        free, n = self.free_memory() if free is None else free, 0
        most = WORTH[self.device.type] if most is None else most
        while (more := max(1, 2 * n)) <= most:
            if bytes_of(more) > (1 - RESERVE) * free:
                break
            n = more
        return n

    def at_once(self, image_size: int, bytes_of: Callable[[int], int], most: int | None = None) -> int:
        """How many images to sample at a time: as many as are worth it, or `most`, of what is counted to fit; 0 where
        not even one does. Counting takes a second or two, and small images on a CPU do without."""
        if most is None:
            most = SAMPLING_WORTH[self.device.type]
            if self.device.type == "cpu":
                most = max(most, min(256, most * SMALL**2 // image_size**2))
        if self.device.type == "cpu" and image_size <= SMALL:
            return most
        return self.fits(bytes_of, most)

    def free_memory(self) -> int:
        """Bytes that can still be allocated on the device by this process."""
        return free_memory(self.device)

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


class _Flags:
    """torch's choice of kernels is one for the process, and pipelines may be at work in several threads: the first to
    come sets it, and the last to go puts back what was there. One that has to be deterministic makes all of them so.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self, cuda: bool, deterministic: bool) -> Iterator[None]:
        """For as long as it lasts; see `Compute.kernels`."""
        with self.lock:
            self.users += 1
            if self.users == 1 or deterministic:
                self._set(cuda, deterministic)
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.before.close()

    def _set(self, cuda: bool, deterministic: bool) -> None:
        if cuda:
            with contextlib.suppress(RuntimeError):  # a program that sets it by torch's newer API has decided itself
                self.before.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                torch.set_float32_matmul_precision("high")
            cudnn = torch.backends.cudnn
            tried, same = not deterministic, deterministic
            self.before.enter_context(cudnn.flags(cudnn.enabled, benchmark=tried, deterministic=same, allow_tf32=True))
        if deterministic:
            self.before.callback(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            torch.use_deterministic_algorithms(True)


_flags = _Flags()


def choose(device: str | torch.device | None = None, precision: str = "auto", *, compiled: bool = False) -> Compute:
    """How to compute on `device`, or on the best there is; "auto" is the precision that suits it, see `precision_of`.

    Raises:
        UsageError: for a device that is not there.
    """
    found = find_device(None if device is None else str(device))
    chosen, why = precision_of(found) if precision == "auto" else (precision, "as asked")
    # Measured on two cores with AVX-512: convolutions take half the time with the channels last. NVIDIA's take it too.
    return Compute(found, chosen, why, channels_last=found.type in ("cpu", "cuda"), compiled=compiled)


def warning() -> str | None:
    """One loud line where a GPU is there but torch was built without it (what a plain pip gives on Windows)."""
    if torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi"):
        return CPU_ONLY.format(version=torch.__version__)
    return None


def find_device(name: str | None = None) -> torch.device:
    """`name`, or the best there is: CUDA, Apple's MPS, CPU.

    Raises:
        UsageError: for a device that is not there.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(name)
        if found.type not in WORTH:
            raise RuntimeError("diffunet does not compute on it")
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name!r} cannot be used (cpu, cuda, cuda:1, mps can be): {reason}") from None
    return found


def precision_of(device: torch.device) -> tuple[str, str]:
    """The precision that suits a device, and why.

    bf16 where the hardware has it natively: emulated it is slower than float32. Else fp16 on GPUs with fast float16
    (NVIDIA's from 7.0 on: T4, 16xx, 20xx), where training scales the loss so that small gradients are not lost.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if torch.version.hip is not None or capability >= (8, 0):
            return "bf16", "native on this GPU"
        if capability >= (7, 0):
            return "fp16", "this GPU has no native bfloat16, and fast float16"
        return "fp32", "this GPU has neither native bfloat16 nor fast float16"
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return "bf16", "this CPU has AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return "bf16", "this CPU has AVX-512 bf16"
        return "fp32", "this CPU has no native bfloat16"
    return "fp32", f"the safe choice on {device.type}"


def pays_to_compile(found: Compute, steps: int, deterministic: bool) -> tuple[bool, str]:
    """Whether training compiles its net where it is left to us, and why, in words."""
    if found.device.type != "cuda":
        return False, f"not compiled: on {found.device.type} only where asked for"
    if deterministic:
        return False, "not compiled: compiled kernels are chosen by trial, and --train.deterministic is on"
    if steps < COMPILING_PAYS:
        return False, f"not compiled: that takes minutes and pays from about {COMPILING_PAYS:,} steps on"
    if importlib.util.find_spec("triton") is None:
        return False, "not compiled: triton, which torch.compile needs for CUDA, is not installed"
    return True, f"compiled: that takes minutes before the first step, which {steps:,} steps earn back"


@contextlib.contextmanager
def use_threads(count: int | None) -> Iterator[int]:
    """Compute with `count` CPU threads for as long as it lasts, or as torch is set, and give their number.

    No more than there are cores: a config may come from a larger machine.
    """
    before = torch.get_num_threads()
    if count is not None and (count := min(count, cores())) != before:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def cores() -> int:
    """Cores of the CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(device: torch.device) -> int:
    """Bytes that a device has in all: of a CPU what the machine, the container and the process are allowed."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    limits = [int(psutil.virtual_memory().total)]
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    if (most := _address_space()) is not None:
        limits.append(most)
    return min(limits)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, by this process, which may hold some of them already unused."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    limits = [int(psutil.virtual_memory().available)]
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(fields.get("inactive_file", 0))  # cached files, which make room
        limits.append(int((group / "memory.max").read_text()) - used)
    if (most := _address_space()) is not None:
        limits.append(most - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def _address_space() -> int | None:
    """Bytes of memory that this process may map (`ulimit -v`), None where that is not limited."""
    if not hasattr(psutil, "RLIMIT_AS"):
        return None
    soft = int(psutil.Process().rlimit(psutil.RLIMIT_AS)[0])
    return soft if soft > 0 else None


def describe(device: torch.device) -> str:
    """A device in words: name and memory, or thread count."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    if device.type == "cpu":
        return f"CPU ({torch.get_num_threads()} threads)"
    return device.type


def first_line(error: BaseException) -> str:
    """Of what an exception says, or its name."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: CUDA's own, Python's, or the plain RuntimeError of torch's CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    cut_short = said != "" and said in "[enforce fail at alloc_cpu.cpp"  # there was none left for the message either
    return isinstance(error, RuntimeError) and (cut_short or any(words in said for words in _NO_MEMORY))


def give_back(error: BaseException | None = None) -> None:
    """Give memory that nobody uses back to the device; what an `error` of it still holds, too."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


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
