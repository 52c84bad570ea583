"""`diffunet info` says what a net is made of and what it costs, or what there is to compute with."""

from __future__ import annotations

import difflib
import json as formats
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from diffunet import pretrained
from diffunet.commands.options import Device, Size
from diffunet.commands.progress import duration, tell
from diffunet.config import Config, preset, preset_names
from diffunet.errors import CheckpointError, ResourceError, UsageError

if TYPE_CHECKING:
    from diffunet.compute import Compute

WORTH_MEASURING = 150 * 10**9
"""MACs of a pass, some seconds of a CPU, above which time is measured with fewer images."""


def info(
    model: Annotated[Positional[str | None], arg(metavar="MODEL_OR_PRESET")] = None, /,
    image_size: Size | None = None, device: Device | None = None, list: bool = False, json: bool = False,
) -> None:  # fmt: skip
    """Show a net: shapes as an image flows through it, parameters, MACs, memory and time to expect.

    Without MODEL_OR_PRESET, show what there is to compute with: versions, device, precision, memory, disk, and whether
    a small net learns there.

    Example: diffunet info default --image-size 64

    Example: diffunet info --json

    Args:
        model: Run folder, model folder, folder of diffusers, name on the hub (owner/name), preset, or model that comes
            with diffunet.
        image_size: Height and width of the images, in pixels. If not given, it is the model's own.
        device: Device to measure on: cuda, cuda:1, mps or cpu. If not given, it is the best there is.
        list: Show the models that come with diffunet instead.
        json: Print one JSON object in place of lines (with --list, a list of them).
    """
    if list and any(each is not None for each in (model, image_size, device)):
        raise UsageError("--list shows all models that come with diffunet, and takes nothing beside it")
    if model is None and image_size is not None:
        raise UsageError("--image-size is of a net: MODEL_OR_PRESET is missing (see diffunet info --help)")
    if list:
        _tell(formats.dumps([*shipped()], indent=1) if json else listed())
    elif model is not None:
        _tell(
            formats.dumps(facts(model, image_size, device), indent=1) if json else describe(model, image_size, device)
        )
    else:
        from diffunet.commands import machine

        found = machine.facts(device)
        if json:
            found["self_test"] = machine.self_test(device)
            tell(formats.dumps(found, indent=1))
        else:
            _tell(machine.lines(found))
            found["self_test"] = machine.self_test(device)
            _tell(machine.tested(found["self_test"]))
        if not found["self_test"]["passed"]:
            raise ResourceError(f"the self-test failed: {found['self_test']['why']}")


def _tell(lines: str | Iterator[str]) -> None:
    for line in [lines] if isinstance(lines, str) else lines:
        if not tell(line):
            return


def shipped() -> Iterator[dict[str, Any]]:
    """Yield the facts of each model that comes with diffunet, as JSON has them."""
    from diffunet import storage

    for name in pretrained.names():
        folder = pretrained.HERE / name
        data, task = (config := storage.read_config(folder)).data, config.diffusion.task
        parameters = sum(tensor.numel() for tensor in storage.read_header(folder / storage.WEIGHTS)[0].values())
        yield {
            "name": name, "parameters": parameters, "image_size": data.image_size, "task": task,
            "classes": [*data.class_names], "card": pretrained.card(name),
        }  # fmt: skip


def listed() -> Iterator[str]:
    """Yield what there is to print of the models that come with diffunet: what they are, their data, what they reached.

    It comes from their configs, their weights and their cards.
    """
    for one in shipped():
        name, size = one["name"], one["image_size"]
        classes = f", {len(one['classes'])} classes: {', '.join(one['classes'])}" if one["classes"] else ""
        yield f"{name}: {one['parameters'] / 1e6:.1f} M parameters, {size}x{size}, {one['task']}{classes}"
        yield from (f"  {line}" for line in pretrained.lines(name))
        yield f"  try: diffunet sample {name}"


def facts(model: str, image_size: int | None = None, device_name: str | None = None) -> dict[str, Any]:
    """Return what there is to know of a model or preset, as JSON has it; raise as `describe` does.

    Bytes, parameters and multiply-accumulates are whole numbers, speeds are images a second; `parts` has the rows of
    the table, with the shape [C H W] of what each gives.
    """
    found, config, how = _counted(model, image_size, device_name)
    return found | {"time": _time(config, how)}


def describe(model: str, image_size: int | None = None, device_name: str | None = None) -> Iterator[str]:
    """Yield what there is to print of a model or preset: shapes, parameters, MACs, memory, and a measurement of time.

    Raises UsageError for what is neither a model nor a preset, CheckpointError for a model that cannot be read.
    """
    from diffunet import compute
    from diffunet.interop import models

    found, config, how = _counted(model, image_size, device_name)
    data, diffusion, size = config.data, config.diffusion, config.data.image_size
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    yield f"{model}: {size}x{size}, {data.channels} channels{classes}"
    if model not in preset_names() and models.shipped(model) is not None:
        yield from ("comes with diffunet:", *pretrained.lines(model))
    if diffusion.task == "inpaint":
        yield f"learned to inpaint, with random masks ({data.masks}), and generates too"
    sampling = f"samples by {diffusion.sample_steps} steps of {diffusion.sampler}"
    yield f"predicts {diffusion.target} on the {diffusion.schedule} schedule; {sampling}"
    yield f"\n{'part':<14}{'output':>18}{'parameters':>14}{'MACs':>14}"
    yield f"{'image':<14}{f'{data.channels} x {size} x {size}':>18}"
    for row in found["parts"]:
        shape = " x ".join(map(str, row["shape"]))
        yield f"{row['name']:<14}{shape:>18}{row['parameters']:>14,}{row['macs'] / 1e6:>13,.1f}M"
    yield f"{'all':<14}{'':>18}{found['parameters']:>14,}{found['macs'] / 1e6:>13,.1f}M\n"
    one, few, many = (f"{size / 2**30:.1f} GiB" for size in found["training_bytes"].values())
    yield f"memory to train in {how.precision}: {one} at 1 image a pass, {few} at 16, {many} at 64"
    yield f"weights on disk: {found['parameters'] * 4 / 2**20:.0f} MiB\n"
    if (took := _time(config, how)) is None:
        yield f"time not measured: {compute.describe(how.device)} has too little free memory for it"
        return
    training, sampled = took["training"], took["sampling"]
    yield f"measured on {found['device']} in {how.precision} ({how.why}), {took['images']} images a pass:"
    yield f"  training: {training:.1f} images a second; 1,000 steps of 64: {duration(64_000 / training)}"
    yield f"  sampling: 16 images by {took['calls']} calls of the net take {duration(16 / sampled)}"


def _counted(model: str, image_size: int | None, device_name: str | None) -> tuple[dict[str, Any], Config, Compute]:
    """Return what can be counted of a model or preset, its config, and how it would be computed."""
    from diffunet import compute
    from diffunet.training import memory

    how = compute.choose(device_name)
    config = _config(model, image_size, how)
    data, diffusion, price = config.data, config.diffusion, memory.price(config)
    return {
        "model": model, "image_size": data.image_size, "channels": data.channels, "classes": [*data.class_names],
        "task": diffusion.task, "target": diffusion.target, "schedule": diffusion.schedule,
        "sampler": diffusion.sampler, "sample_steps": diffusion.sample_steps,
        "parts": [
            {"name": row.name, "shape": [*row.shape], "parameters": row.parameters, "macs": row.macs}
            for row in price.rows
        ],
        "parameters": price.parameters, "macs": price.macs,
        "training_bytes": {str(batch): memory.training_bytes(config, how, batch) for batch in (1, 16, 64)},
        "device": compute.describe(how.device), "precision": how.precision,
    }, config, how  # fmt: skip


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


def _time(config: Config, how: Compute) -> dict[str, Any] | None:
    """Return how fast a net of random weights learns and samples, by a few passes; None where it does not fit.

    Returns:
        `images` of a pass and `calls` of the net for a sample; `training` and `sampling` are images a second.
    """
    import torch

    from diffunet import build
    from diffunet.training import memory

    size, diffusion = config.data.image_size, config.diffusion
    most = max(1, min(8, WORTH_MEASURING // max(1, memory.price(config).macs)))
    batch = how.fits(lambda n: memory.training_bytes(config, how, n), most=most, free=how.free_memory() // 2)
    if not batch:
        return None
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

    calls = build.calls(diffusion.sampler, diffusion.sample_steps)
    with how.kernels():
        training = images_per_second(learn=True)
        how.prepare(net, frozen=True)
        sampling = images_per_second(learn=False)
    return {"images": batch, "calls": calls, "training": training, "sampling": sampling / calls}
