"""Whether a run uses the kernels of nn/kernels.py: decided once, by a trial, and kept in RUN/config.toml."""

import importlib.metadata
import logging
import time
from dataclasses import replace
from statistics import median

import torch
from accelerate import Accelerator
from torch import Tensor

from diffunet import build, compiler, compute
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.errors import UsageError
from diffunet.nn import kernels
from diffunet.nn.layers import ResBlock
from diffunet.training import memory, processes

log = logging.getLogger(__name__)

FEWEST, WORTH = 1000, {"cpu": 2e12, "cuda": 4e14}
"""The images, and by the device the multiply-accumulates for them in forward passes, of the shortest run that uses
kernels by itself: a minute or so of two cores, or of an H100. Building them, once, takes seconds, as does the trial."""

PIXELS = {"cpu": 32 * 64**2, "cuda": 256 * 64**2}
"""The pixels of the images of the trial, by the device; but at most 16 images on a CPU, and 4,096 on a GPU, which is to
compute for longer than Python takes to launch what it computes."""

FASTER, RUNS = 1.05, 5
"""How many times as fast they have to be to be used by default, by the median of so many pairs of runs."""


def choose(
    config: Config, how: Compute, processes_: Accelerator, net: build.NetFactory, steps: int, *, resumed: bool,
    timed: bool = False,
) -> tuple[Config, Compute]:  # fmt: skip
    """Return `config` and `how` with train.kernels "on" or "off", the same on all processes, for a run of `steps`.

    `timed` says that steps with kernels have been timed, by `recipe.for_minutes`: they are built then, and pay in short
    runs, too.

    Raises:
        UsageError: kernels were asked for, in a new run, and cannot be used.
    """
    asked = config.train.kernels
    reason = _reason_against(config, how, net, None if timed else steps, trial=asked == "auto")
    if not processes.smallest(reason is None, processes_):
        reason = reason or "another process could not use them"
        if asked == "on" and not resumed:
            raise UsageError(f"--train.kernels on: {reason}")
        if asked == "on":
            log.warning(
                "the run began with kernels of diffunet's own, and goes on without, so that bits differ: %s", reason
            )
        elif asked == "auto" and how.device.type in WORTH:
            log.info("kernels: torch's alone (%s)", reason)
    on = reason is None
    return config.changed("train", kernels="on" if on else "off"), replace(how, native=on)


def description(how: Compute) -> str:
    """Return what has built the kernels that `how` uses, or "off"; another compiler may change the last bits."""
    if how.native and how.device.type == "cuda":
        return f"triton {importlib.metadata.version('triton')}"
    return compiler.describe() if how.native else "off"


def _reason_against(
    config: Config, how: Compute, net: build.NetFactory, steps: int | None, *, trial: bool
) -> str | None:
    """Return why the run does not use kernels, or None; with `trial`, also where they would not make it faster.

    A run of few `steps` has none, since building them takes seconds; where `steps` is None, they have been built.
    """
    if config.train.kernels == "off":
        return "as asked"
    if how.device.type not in WORTH:
        return f"they are for a CPU and for NVIDIA's GPUs, and the run is on {how.device.type}"
    if how.device.type == "cpu" and how.precision == "fp16":
        return f"there are none for {how.precision}"
    if config.train.compile == "on":
        return "the net is compiled"
    with torch.device("meta"):
        module = net(config)
    if not any(hasattr(part, "native_kernels") for part in module.modules()):
        return "no layer of this net has any"
    if trial and steps is not None and _is_short(config, how, net, steps):
        return "the run is short"
    try:
        kernels.ready(how.device)
    except compiler.Unavailable as error:
        return str(error)
    if not trial:
        return None
    with compute.use_threads(max(1, torch.get_num_threads() // (config.train.cpu_parts or 1))):  # those of one part
        times = _times_as_fast(config, how)
    if times < FASTER:
        return f"with others residual blocks are only {times:.2f} times as fast"
    log.info("kernels: diffunet's own, residual blocks take 1/%.2f of the time of torch's", times)
    return None


def _is_short(config: Config, how: Compute, net: build.NetFactory, steps: int) -> bool:
    """Return whether a run of so many steps is over before kernels are built and have paid."""
    batch = config.train.batch_size
    images = steps * (batch if isinstance(batch, int) else 1)
    return images < FEWEST or memory.price(config, net).macs * images < WORTH[how.device.type]


def _times_as_fast(config: Config, how: Compute) -> float:
    """Return how many times as fast residual blocks are with kernels, forwards and backwards: one of each level.

    They are of the widths and sizes of the run, and new ones, which nobody learns from.
    """
    size, channels = config.data.image_size, config.model.channels or 64
    batch = max(1, min(16 if how.device.type == "cpu" else 4096, PIXELS[how.device.type] // size**2))
    levels = list[tuple[ResBlock, Tensor, Tensor]]()
    with torch.random.fork_rng([how.device] if how.device.type == "cuda" else []):
        for level, times in enumerate(config.model.multipliers or (1, 2)):
            c, side = max(kernels.FEWEST_CHANNELS, round(channels * times)), max(1, size >> level)
            x = torch.randn(batch, c, side, side, device=how.device).contiguous(memory_format=torch.channels_last)
            levels.append((ResBlock(c, c, 4 * c), x.requires_grad_(), torch.randn(batch, 4 * c, device=how.device)))

    def seconds(on: bool) -> float:
        for block, _, _ in levels:
            replace(how, native=on).prepare(block)
        how.synchronize()
        began = time.perf_counter()
        for block, x, e in levels:
            with how.autocast():
                y = block(x, e)
            torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()])
        how.synchronize()
        return time.perf_counter() - began

    pairs = [(seconds(True), seconds(False)) for _ in range(RUNS + 1)]  # the first warms up
    return median(torchs / mine for mine, torchs in pairs[1:])
