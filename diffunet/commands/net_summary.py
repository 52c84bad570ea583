"""What a model costs, in words: for `diffunet info`."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from diffunet import build, compute
from diffunet.commands.progress import duration
from diffunet.compute import Compute
from diffunet.config import Config, preset, preset_names
from diffunet.errors import CheckpointError, UsageError
from diffunet.interop import hub, models
from diffunet.training import defaults, memory

WORTH_MEASURING = 150 * 10**9
"""MACs of a pass, some seconds of a CPU, above which time is measured with fewer images."""


def describe(model: str, image_size: int | None = None, device_name: str | None = None) -> Iterator[str]:
    """Lines about a model or preset: shapes, parameters, MACs, memory, and a short measurement of time.

    Raises:
        UsageError: neither a model nor a preset.
        CheckpointError: a model that cannot be read.
    """
    how = compute.choose(device_name)
    if model in preset_names():
        config = preset(model)
        if image_size is not None:
            config = config.changed("data", image_size=image_size)
        config = defaults.architecture(config, how.device)
    else:
        try:
            found = Path(model).exists()
        except OSError as error:
            raise CheckpointError(f"{model} cannot be read: {error.strerror}") from None
        if not found and not hub.is_name(model):
            close = difflib.get_close_matches(model, preset_names(), n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UsageError(f"{model} is neither a model nor a preset; {hint}presets: {', '.join(preset_names())}")
        config = models.read_config(model)
    size = image_size or config.data.image_size
    yield f"{model}: {size}x{size}, {config.data.channels} channels" + (
        f", {len(config.data.class_names)} classes" if config.data.class_names else ""
    )
    d = config.diffusion
    if d.task == "inpaint":
        yield f"learned to inpaint, with random masks ({config.data.masks}), and generates too"
    yield f"predicts {d.target} on the {d.schedule} schedule; samples by {d.sample_steps} steps of {d.sampler}"
    price = memory.price(config.changed("data", image_size=size))
    yield ""
    yield f"{'part':<14}{'output':>18}{'parameters':>14}{'MACs':>14}"
    yield f"{'image':<14}{_shape((config.data.channels, size, size)):>18}"
    for row in price.rows:
        yield f"{row.name:<14}{_shape(row.shape):>18}{row.parameters:>14,}{row.macs / 1e6:>13,.1f}M"
    yield f"{'all':<14}{'':>18}{price.parameters:>14,}{price.macs / 1e6:>13,.1f}M"
    yield ""
    config = config.changed("data", image_size=size)

    def needed(batch: int) -> int:
        return memory.training_bytes(config, how, batch)

    yield f"memory to train in {how.precision}: {_gib(needed(1))} at 1 image a pass, " + ", ".join(
        f"{_gib(needed(batch))} at {batch}" for batch in (16, 64)
    )
    yield f"weights on disk: {price.parameters * 4 / 2**20:.0f} MiB"
    yield ""
    most = max(1, min(8, WORTH_MEASURING // max(1, price.macs)))
    batch = how.fits(needed, most=most, free=how.free_memory() // 2)
    if batch:
        yield from _time(config, size, how, batch)
    else:
        yield f"time not measured: {compute.describe(how.device)} has too little free memory for it"


def _time(config: Config, size: int, how: Compute, batch: int) -> Iterator[str]:
    """A few passes of `batch` images through a net with random weights."""
    net = build.net(config)
    how.prepare(net)
    x = torch.zeros(batch, net.in_channels, size, size, device=how.device)
    c_noise = torch.zeros(batch, device=how.device)

    def passes(learn: bool) -> float:
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            with torch.set_grad_enabled(learn), how.autocast():
                out = net(x, c_noise)
            if learn:
                out.float().square().mean().backward()
            how.synchronize()
            seconds.append(time.perf_counter() - began)
        return median(seconds[1:])  # the first pass prepares things

    with how.kernels():
        learn = passes(True)
        how.prepare(net, frozen=True)
        use = passes(False)
    d = config.diffusion
    calls = build.calls(d.sampler, d.sample_steps)
    yield f"measured on {compute.describe(how.device)} in {how.precision} ({how.why}), {batch} images a pass:"
    yield f"  training: {batch / learn:.1f} images a second; 1,000 steps of 64: {duration(64_000 * learn / batch)}"
    yield f"  sampling: 16 images by {calls} calls of the net take {duration(16 * calls * use / batch)}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
