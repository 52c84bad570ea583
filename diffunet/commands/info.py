"""`diffunet info` says what a net is made of and what it costs."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from diffunet import pretrained
from diffunet.commands.options import Device, Size
from diffunet.commands.progress import duration, tell
from diffunet.config import Config, preset, preset_names
from diffunet.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from diffunet.compute import Compute

WORTH_MEASURING = 150 * 10**9
"""MACs of a pass, some seconds of a CPU, above which time is measured with fewer images."""


def info(
    model: Annotated[Positional[str | None], arg(metavar="MODEL_OR_PRESET")] = None, /,
    image_size: Size | None = None, device: Device | None = None, list: bool = False,
) -> None:  # fmt: skip
    """Show a net: shapes as an image flows through it, parameters, MACs, memory and time to expect.

    Example: diffunet info default --image-size 64

    Args:
        model: Run folder, model folder, folder of diffusers, name on the hub (owner/name), preset, or model that comes
            with diffunet.
        image_size: Height and width of the images, in pixels. If not given, it is the model's own.
        device: Device to measure on: cuda, cuda:1, mps or cpu. If not given, it is the best there is.
        list: Show the models that come with diffunet instead.
    """
    if list and any(each is not None for each in (model, image_size, device)):
        raise UsageError("--list shows all models that come with diffunet, and takes nothing beside it")
    if model is None and not list:
        raise UsageError("MODEL_OR_PRESET is missing (or --list; see diffunet info --help)")
    for line in listed() if model is None else describe(model, image_size, device):
        if not tell(line):
            return


def listed() -> Iterator[str]:
    """Yield what there is to print of the models that come with diffunet: what they are, their data, what they reached.

    It comes from their configs, their weights and their cards.
    """
    from diffunet import storage

    for name in pretrained.names():
        folder = pretrained.HERE / name
        data, task = (config := storage.read_config(folder)).data, config.diffusion.task
        parameters = sum(tensor.numel() for tensor in storage.read_header(folder / storage.WEIGHTS)[0].values())
        classes = f", {len(data.class_names)} classes: {', '.join(data.class_names)}" if data.class_names else ""
        yield f"{name}: {parameters / 1e6:.1f} M parameters, {data.image_size}x{data.image_size}, {task}{classes}"
        yield from (f"  {line}" for line in pretrained.lines(name))
        yield f"  try: diffunet sample {name} --out {name}.png --grid"


def describe(model: str, image_size: int | None = None, device_name: str | None = None) -> Iterator[str]:
    """Yield what there is to print of a model or preset: shapes, parameters, MACs, memory, and a measurement of time.

    Raises UsageError for what is neither a model nor a preset, CheckpointError for a model that cannot be read.
    """
    from diffunet import compute
    from diffunet.interop import models
    from diffunet.training import memory

    how = compute.choose(device_name)
    config = _config(model, image_size, how)
    data, diffusion, size = config.data, config.diffusion, config.data.image_size
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    yield f"{model}: {size}x{size}, {data.channels} channels{classes}"
    if model not in preset_names() and models.shipped(model) is not None:
        yield from ("comes with diffunet:", *pretrained.lines(model))
    if diffusion.task == "inpaint":
        yield f"learned to inpaint, with random masks ({data.masks}), and generates too"
    sampling = f"samples by {diffusion.sample_steps} steps of {diffusion.sampler}"
    yield f"predicts {diffusion.target} on the {diffusion.schedule} schedule; {sampling}"
    price = memory.price(config)
    yield f"\n{'part':<14}{'output':>18}{'parameters':>14}{'MACs':>14}"
    yield f"{'image':<14}{f'{data.channels} x {size} x {size}':>18}"
    for row in price.rows:
        yield f"{row.name:<14}{' x '.join(map(str, row.shape)):>18}{row.parameters:>14,}{row.macs / 1e6:>13,.1f}M"
    yield f"{'all':<14}{'':>18}{price.parameters:>14,}{price.macs / 1e6:>13,.1f}M\n"

    def needed(batch: int) -> int:
        return memory.training_bytes(config, how, batch)

    one, few, many = (f"{needed(batch) / 2**30:.1f} GiB" for batch in (1, 16, 64))
    yield f"memory to train in {how.precision}: {one} at 1 image a pass, {few} at 16, {many} at 64"
    yield f"weights on disk: {price.parameters * 4 / 2**20:.0f} MiB\n"
    most = max(1, min(8, WORTH_MEASURING // max(1, price.macs)))
    if batch := how.fits(needed, most=most, free=how.free_memory() // 2):
        yield from _time(config, how, batch)
    else:
        yield f"time not measured: {compute.describe(how.device)} has too little free memory for it"


def _config(model: str, image_size: int | None, how: Compute) -> Config:
    """Return the config of a model or preset, everything resolved, at `image_size` if that is given."""
    from diffunet.interop import hub, models
    from diffunet.training import defaults

    resize = {} if image_size is None else {"image_size": image_size}
    if model in preset_names():
        return defaults.architecture(preset(model).changed("data", **resize), how.device)
    try:
        exists = Path(model).exists()
    except OSError as error:
        raise CheckpointError(f"{model} cannot be read: {error.strerror}") from None
    if not exists and not hub.is_name(model) and pretrained.folder(model) is None:
        close = difflib.get_close_matches(model, [*preset_names(), *pretrained.names()], n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        come = f"models that come with diffunet: {', '.join(pretrained.names())}"
        raise UsageError(f"{model} is neither a model nor a preset; {hint}presets: {', '.join(preset_names())}; {come}")
    return models.read_config(model).changed("data", **resize)


def _time(config: Config, how: Compute, batch: int) -> Iterator[str]:
    """Yield how long training and sampling take, by a few passes of `batch` images through a net of random weights."""
    import torch

    from diffunet import build, compute

    size, diffusion = config.data.image_size, config.diffusion
    net = build.net(config)
    how.prepare(net)
    x = torch.zeros(batch, net.in_channels, size, size, device=how.device)
    c_noise = torch.zeros(batch, device=how.device)

    def images_per_second(learn: bool) -> float:
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
        training = images_per_second(learn=True)
        how.prepare(net, frozen=True)
        sampling = images_per_second(learn=False)
    calls = build.calls(diffusion.sampler, diffusion.sample_steps)
    yield f"measured on {compute.describe(how.device)} in {how.precision} ({how.why}), {batch} images a pass:"
    yield f"  training: {training:.1f} images a second; 1,000 steps of 64: {duration(64_000 / training)}"
    yield f"  sampling: 16 images by {calls} calls of the net take {duration(16 * calls / sampling)}"
