"""What a net is made of and what it costs, in words: the work of `diffunet info`."""

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
    """Yield lines about a model or preset: shapes, parameters, MACs, memory, and a short measurement of time.

    Raises:
        UsageError: neither a model nor a preset.
        CheckpointError: a model that cannot be read.
    """
    how = compute.choose(device_name)
    config = _config(model, image_size, how)
    data, diffusion, size = config.data, config.diffusion, config.data.image_size
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    yield f"{model}: {size}x{size}, {data.channels} channels{classes}"
    if diffusion.task == "inpaint":
        yield f"learned to inpaint, with random masks ({data.masks}), and generates too"
    yield (
        f"predicts {diffusion.target} on the {diffusion.schedule} schedule; "
        f"samples by {diffusion.sample_steps} steps of {diffusion.sampler}"
    )
    price = memory.price(config)
    yield ""
    yield f"{'part':<14}{'output':>18}{'parameters':>14}{'MACs':>14}"
    yield f"{'image':<14}{_shape((data.channels, size, size)):>18}"
    for row in price.rows:
        yield f"{row.name:<14}{_shape(row.shape):>18}{row.parameters:>14,}{row.macs / 1e6:>13,.1f}M"
    yield f"{'all':<14}{'':>18}{price.parameters:>14,}{price.macs / 1e6:>13,.1f}M"
    yield ""

    def needed(batch: int) -> int:
        return memory.training_bytes(config, how, batch)

    one, few, many = (f"{needed(batch) / 2**30:.1f} GiB" for batch in (1, 16, 64))
    yield f"memory to train in {how.precision}: {one} at 1 image a pass, {few} at 16, {many} at 64"
    yield f"weights on disk: {price.parameters * 4 / 2**20:.0f} MiB"
    yield ""
    most = max(1, min(8, WORTH_MEASURING // max(1, price.macs)))
    batch = how.fits(needed, most=most, free=how.free_memory() // 2)
    if batch:
        yield from _time(config, how, batch)
    else:
        yield f"time not measured: {compute.describe(how.device)} has too little free memory for it"


def _config(model: str, image_size: int | None, how: Compute) -> Config:
    """Return the config of a model or preset, everything resolved, at `image_size` if that is given."""
    resize = {} if image_size is None else {"image_size": image_size}
    if model in preset_names():
        return defaults.architecture(preset(model).changed("data", **resize), how.device)
    try:
        exists = Path(model).exists()
    except OSError as error:
        raise CheckpointError(f"{model} cannot be read: {error.strerror}") from None
    if not exists and not hub.is_name(model):
        close = difflib.get_close_matches(model, preset_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(f"{model} is neither a model nor a preset; {hint}presets: {', '.join(preset_names())}")
    return models.read_config(model).changed("data", **resize)


def _time(config: Config, how: Compute, batch: int) -> Iterator[str]:
    """Yield how long training and sampling take, by a few passes of `batch` images through a net of random weights."""
    size, diffusion = config.data.image_size, config.diffusion
    net = build.net(config)
    how.prepare(net)
    x = torch.zeros(batch, net.in_channels, size, size, device=how.device)
    c_noise = torch.zeros(batch, device=how.device)

    def rate(learn: bool) -> float:
        """Return the images a second."""
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            with torch.set_grad_enabled(learn), how.autocast():
                out = net(x, c_noise)
            if learn:
                out.float().square().mean().backward()
            how.synchronize()
            seconds.append(time.perf_counter() - began)
        return batch / median(seconds[1:])  # the first pass prepares things

    with how.kernels():
        training = rate(learn=True)
        how.prepare(net, frozen=True)
        sampling = rate(learn=False)
    calls = build.calls(diffusion.sampler, diffusion.sample_steps)
    yield f"measured on {compute.describe(how.device)} in {how.precision} ({how.why}), {batch} images a pass:"
    yield f"  training: {training:.1f} images a second; 1,000 steps of 64: {duration(64_000 / training)}"
    yield f"  sampling: 16 images by {calls} calls of the net take {duration(16 * calls / sampling)}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
