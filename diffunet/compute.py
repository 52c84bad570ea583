"""How nets are computed: on which device, in which precision and memory layout, compiled or not, and how much fits.

All code that runs a net asks for a `Compute` and does as it says, so that tuning for a device is a change of this file
alone. Which net and which batch size suit a device is decided in training/defaults.py.
"""

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
"""The images of a training pass beyond which a device gains little."""

SAMPLING_WORTH, SMALL = {"cuda": 256, "mps": 32, "cpu": 16}, 64
"""The images of a sampling pass beyond which a device gains little, at this image size; a CPU takes more small ones."""

RESERVE = 0.1
"""The share of free memory that is left to the allocator, which wastes some between blocks, and to libraries."""

COMPILING_PAYS, COMPILING_PAYS_MINUTES = 20_000, 20
"""The training steps, or the minutes where a run has minutes, from which on `torch.compile` is worth its wait on CUDA.
On an H200 it took 66 s, and made replayed steps 1.04 to 1.24 times as fast (samples/gpu.md)."""

SHAPES = 64
"""The number of input shapes for which a net is compiled; past torch's own limit of 8 a net silently runs plain."""

_NO_MEMORY = (
    "allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED", "Storage size calculation",
    "could not create a primitive",
)  # fmt: skip
"""Words of the RuntimeErrors that torch raises where memory runs out: on the CPU of Linux and of Windows, on a GPU, in
C++, in NVIDIA's libraries, for sizes that overflow, and in oneDNN, which says no more than its words."""

CPU_ONLY = (
    "warning: this machine has an NVIDIA driver, but this torch ({version}) is built without CUDA and leaves the GPU "
    "idle. Install a CUDA build of torch and torchvision by the command that https://pytorch.org/get-started/locally/ "
    "gives for your system"
)


@dataclass(frozen=True)
class Compute:
    """How a net is computed.

    Args:
        device: where the net is.
        precision: the type of convolutions, matrix products and attention: "fp32" or, by autocast, "bf16" or "fp16".
        why: the reason for the precision, in a few words.
        channels_last: whether the channels of a pixel lie side by side in memory.
        compiled: whether the net goes through `torch.compile`.
        native: whether, on a CPU, the kernels of nn/kernels.py take the place of torch's where they apply.
    """

    device: torch.device
    precision: str = "fp32"
    why: str = "as asked"
    channels_last: bool = False
    compiled: bool = False
    native: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Return torch's type for the precision."""
        return PRECISIONS[self.precision]

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context in which nets run in the precision, whatever autocast the caller is in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.precision != "fp32")

    def prepare(self, module: nn.Module, *, frozen: bool = False) -> None:
        """Bring a module to the device, in the memory layout.

        Args:
            module: it is changed in place.
            frozen: whether its weights will not change: then those which autocast would cast at every call are cast
                now. The outputs are the same, bit for bit.
        """
        module.to(self.device)
        if self.channels_last:
            module.to(memory_format=torch.channels_last)
        for part in module.modules():
            if hasattr(part, "native_kernels"):
                part.native_kernels = self.native  # type: ignore[assignment]
        if frozen and self.precision != "fp32":
            for part in module.modules():
                if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    part.to(self.dtype)

    def compile(self, net: nn.Module, deterministic: bool = False) -> None:
        """Compile a net in place if `compiled` is set; this happens for each input shape when the net first meets it.

        The names of its weights, and copies of it, stay those of the plain module.
        """
        if self.compiled:
            import torch._dynamo.config as dynamo
            import torch._inductor.config as inductor

            dynamo.recompile_limit = max(SHAPES, dynamo.recompile_limit)
            same = deterministic and hasattr(inductor, "deterministic")  # the oldest torch that we allow lacks it
            net.compile(dynamic=False, options={"deterministic": True} if same else None)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Turn errors of the compiler within this context into a UsageError, if the net was to be compiled."""
        try:
            yield
        except Exception as error:
            if not self.compiled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UsageError(f"the net cannot be compiled: {first_line(error)}; do without (--compile)") from None

    @contextlib.contextmanager
    def kernels(self, deterministic: bool = False) -> Iterator[None]:
        """Set which kernels torch may choose within this context.

        On CUDA matrix products that stay float32 use TF32. Convolution kernels are those that cuDNN takes for best,
        without a trial for each shape (`cudnn.benchmark`). With `deterministic` torch uses only kernels that give the
        same bits every time.
        """
        with _flags.held(self.device.type == "cuda", deterministic):
            yield

    def fits(self, bytes_of: Callable[[int], int], most: int | None = None, free: int | None = None) -> int:
        """Return the largest power of two of images that fits into memory by count; 0 where not even one fits.

        Args:
            bytes_of: gives the bytes of memory that a number of images takes.
            most: an upper limit, by default `WORTH` of the device.
            free: the bytes that are free, by default those of the device.
        """
        free, n = self.free_memory() if free is None else free, 0
        most = WORTH[self.device.type] if most is None else most
        while (more := max(1, 2 * n)) <= most:
            if bytes_of(more) > (1 - RESERVE) * free:
                break
            n = more
        return n

    def at_once(self, image_size: int, bytes_of: Callable[[int], int], most: int | None = None) -> int:
        """Return how many images to sample at a time: as many as fit by count, up to `most`; 0 where not even one fits.

        By default `most` is what is worth it on the device. Counting takes a second or two, and is left out for small
        images on a CPU.
        """
        if most is None:
            most = SAMPLING_WORTH[self.device.type]
            if self.device.type == "cpu":
                most = max(most, min(256, most * SMALL**2 // image_size**2))
        if self.device.type == "cpu" and image_size <= SMALL:
            return most
        return self.fits(bytes_of, most)

    def free_memory(self) -> int:
        """Return the bytes that this process can still allocate, with those that it holds but does not use.

        The processes that a launcher has started on a machine share the memory of its CPU.
        """
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return int(free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device))
        if self.device.type == "mps":
            return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
        limits = [int(psutil.virtual_memory().available)]
        with contextlib.suppress(OSError, ValueError):
            group = Path("/sys/fs/cgroup")
            used = int((group / "memory.current").read_text())
            fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used -= int(fields.get("inactive_file", 0))  # these are cached files, which the system drops for us
            limits.append(int((group / "memory.max").read_text()) - used)
        if (most := _address_space()) is not None:
            limits.append(most - psutil.Process().memory_info().vms)
        return max(0, min(limits)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


class _Flags:
    """torch's choice of kernels, which is global, for pipelines that may be at work in several threads.

    The first user sets it, and the last one puts back what was set before. A user that has to be deterministic makes
    all of them deterministic.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.before = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self, cuda: bool, deterministic: bool) -> Iterator[None]:
        """Be one of the users within this context; see `Compute.kernels`."""
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
            with contextlib.suppress(RuntimeError):  # the caller has set it by torch's newer API, and decides
                self.before.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                torch.set_float32_matmul_precision("high")
            cudnn = torch.backends.cudnn
            flags = cudnn.flags(cudnn.enabled, benchmark=False, deterministic=deterministic, allow_tf32=True)
            self.before.enter_context(flags)
        if deterministic:
            self.before.callback(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            torch.use_deterministic_algorithms(True)


_flags = _Flags()


def choose(device: str | torch.device | None = None, precision: str = "auto", *, compiled: bool = False) -> Compute:
    """Return how to compute on `device`, by default on the best there is; precision "auto" is that of `precision_of`.

    Raises:
        UsageError: the device is not there.
    """
    chosen = find_device(None if device is None else str(device))
    precision, why = precision_of(chosen) if precision == "auto" else (precision, "as asked")
    # Measured on two cores with AVX-512: convolutions take half the time with the channels last. NVIDIA's take it too.
    return Compute(chosen, precision, why, channels_last=chosen.type in ("cpu", "cuda"), compiled=compiled)


def warning() -> str | None:
    """Return a warning if torch was built without CUDA and leaves a GPU idle, as after a plain pip on Windows."""
    if torch.version.cuda is None and torch.version.hip is None and shutil.which("nvidia-smi"):
        return CPU_ONLY.format(version=torch.__version__)
    return None


def find_device(name: str | None = None) -> torch.device:
    """Return the device `name`, or the best there is: CUDA, Apple's MPS, the CPU.

    Raises:
        UsageError: the device is not there, or diffunet does not compute on it.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in WORTH:
            raise RuntimeError("diffunet does not compute on it")
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name!r} cannot be used (cpu, cuda, cuda:1, mps can be): {reason}") from None
    return device


def precision_of(device: torch.device) -> tuple[str, str]:
    """Return the precision that suits a device, and why.

    It is bf16 where the hardware has it natively, since emulated it is slower than float32; else fp16 on GPUs with fast
    float16 (NVIDIA's from compute capability 7.0 on: T4, 16xx, 20xx), where training scales the loss so that small
    gradients are not lost; else fp32.
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


def pays_to_compile(how: Compute, steps: int, minutes: float | None, deterministic: bool) -> tuple[bool, str]:
    """Return whether training compiles its net where the config leaves it open, and why, in words.

    A run has so many `steps`, and ends after so many `minutes` unless they are None.
    """
    if how.device.type != "cuda":
        return False, f"not compiled: on {how.device.type} only where asked for"
    if deterministic:
        return False, "not compiled: compiled kernels are chosen by trial, and --train.deterministic is on"
    enough = f"{COMPILING_PAYS:,} steps" if minutes is None else f"{COMPILING_PAYS_MINUTES} minutes"
    if steps < COMPILING_PAYS if minutes is None else minutes < COMPILING_PAYS_MINUTES:
        return False, f"not compiled: that takes a minute or more and pays from about {enough} on"
    if importlib.util.find_spec("triton") is None:
        return False, "not compiled: triton, which torch.compile needs for CUDA, is not installed"
    run = f"{steps:,} steps" if minutes is None else f"{minutes:g} minutes"
    return True, f"compiled: that takes a minute or more before the first step, which {run} earn back"


@contextlib.contextmanager
def use_threads(count: int | None) -> Iterator[int]:
    """Compute with `count` CPU threads within this context, by default as many as torch is set to; yield their number.

    They are at most the cores that there are, since a config may come from a larger machine.
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
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(device: torch.device) -> int:
    """Return the bytes of memory of a device; of a CPU, what the machine, the container and the process are allowed."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    limits = [int(psutil.virtual_memory().total)]
    with contextlib.suppress(OSError, ValueError):  # without a limit the file says "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    if (most := _address_space()) is not None:
        limits.append(most)
    return min(limits)


def _address_space() -> int | None:
    """Return the bytes of memory that this process may map (`ulimit -v`), or None without a limit."""
    if not hasattr(psutil, "RLIMIT_AS"):
        return None
    soft = int(psutil.Process().rlimit(psutil.RLIMIT_AS)[0])
    return soft if soft > 0 else None


def describe(device: torch.device) -> str:
    """Return a device in words: its name and memory, or its number of threads."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    if device.type == "cpu":
        return f"CPU ({torch.get_num_threads()} threads)"
    return device.type


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the exception's name."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out: CUDA's, Python's, or a RuntimeError of torch on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error)
    # With no memory left for the message either, torch cuts it short.
    cut_short = message != "" and message in "[enforce fail at alloc_cpu.cpp"
    return isinstance(error, RuntimeError) and (cut_short or any(words in message for words in _NO_MEMORY))


def give_back(error: BaseException | None = None) -> None:
    """Give unused memory back to the device, that which the frames of an `error` still hold included."""
    if error is not None:
        traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextlib.contextmanager
def enough_memory(needs: str) -> Iterator[None]:
    """Raise ResourceError if memory runs out within this context, saying "out of memory" and `needs`, what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # else they hold the memory while the new error lives
        raise ResourceError(f"out of memory {needs}") from None
