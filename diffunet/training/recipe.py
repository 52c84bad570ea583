"""How a run makes the most of its minutes: net, batch and learning rate by what the device computes in them."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from diffunet import build, compiler
from diffunet.compute import Compute
from diffunet.config import Config, ModelConfig
from diffunet.errors import UsageError
from diffunet.nn import kernels
from diffunet.nn.cost import Cost
from diffunet.training import defaults, half_size, memory, processes
from diffunet.training.learner import Learner

MINUTES = 60.0
"""The minutes of a run that is given neither minutes nor steps."""

SECONDS, STEPS, WARM = 1.0, 20, 2
"""A step is timed for at most so many seconds and steps, after some that are not counted."""


DOUBLING = 1.4
"""A batch is doubled where that makes a step less than so many times as long, as it does where a net is small."""


class Net(NamedTuple):
    """A size of the UNet: the channels at full size, the residual blocks of a level, and whether it has attention."""

    channels: int
    blocks: int
    attention: bool = True


LADDER = (
    Net(24, 1, False), Net(32, 1, False), Net(48, 1, False), Net(64, 1), Net(64, 2), Net(96, 2), Net(128, 2),
    Net(192, 2),
)  # fmt: skip
"""The nets to choose from, in the order of what they cost."""

PROBE, PROBE_GPU = Net(32, 1, False), Net(128, 2)
"""The nets by which the speed of a device is measured, on a CPU and on a GPU."""

PARAMETERS, IMAGES, GROWTH = 1.5e6, 7_000, 7 / 3
"""A net of so many parameters pays from so many images on, and one of p times as many from p^GROWTH times those on."""

STEPS_AT_LEAST, SMALLEST, LARGEST = 2_000, 8, {64: 128, 128: 64, 256: 32}
"""The batch is so small that a run has about so many steps, but has at least `SMALLEST` images, and at most those that
the table has for image sizes up to each key."""


HALF, HALF_FROM, HALF_UP_TO = 0.5, 64, 50_000
"""The share of its time that a run spends at half of its image size, if nobody says otherwise: from this size on, and
where it sees at most so many images at full size. Measured in samples/recipe.md."""


def of_size(config: Config, net: Net) -> Config:
    """Return `config` with those of the net's options that it leaves open."""
    model, plain = config.model, ModelConfig()
    chosen: dict[str, Any] = {"channels": net.channels, "num_blocks": net.blocks, "middle_attention": net.attention}
    if not net.attention and model.attention_resolutions == plain.attention_resolutions:
        chosen["attention_levels"] = ()
    return config.changed("model", **{name: value for name, value in chosen.items() if getattr(model, name) is None})


def seconds_per_step(config: Config, how: Compute, net: build.NetFactory, processes: int) -> float:
    """Return the seconds of an optimizer step of one of the processes, by timing some on made-up images.

    The config is resolved but for its steps. What processes tell each other is not counted. Nobody learns from these
    steps.
    """
    passes = config.train.grad_accumulation or 1
    denoiser = build.denoiser(config, net(config))
    how.prepare(denoiser)
    learner = Learner(config, denoiser, how)
    size = learner.batch_size // processes // passes
    batch = [learner.imagined(size)] * passes
    if processes == 1:
        learner.record(size, own=net is not build.net)
    times, began = list[float](), time.perf_counter()
    for number in range(WARM + STEPS):
        start = time.perf_counter()
        learner.step(0, batch)
        how.synchronize()
        times.append(time.perf_counter() - start)
        if number >= WARM and time.perf_counter() - began > SECONDS:
            break
    return median(times[WARM:])


def divided(
    config: Config, how: Compute, net: build.NetFactory, processes: int, resolved: Callable[[Config], Config]
) -> tuple[Config, float]:
    """Return `config` with the parts of a pass that are fastest on a CPU, and the seconds of a step with them.

    There is something to choose for diffunet's net in one process with several threads.
    """
    each, parts = seconds_per_step(resolved(config), how, net, processes), 2
    if config.train.cpu_parts is not None or how.device.type != "cpu" or processes > 1 or net is not build.net:
        return config, each
    config = config.changed("train", cpu_parts=1)
    while parts <= min(torch.get_num_threads(), _batch(resolved(config))):
        more = config.changed("train", cpu_parts=parts)
        if (faster := seconds_per_step(resolved(more), how, net, processes)) > each:
            break
        config, each, parts = more, faster, 2 * parts
    return config, each


def for_minutes(
    config: Config, how: Compute, seconds: float, resolved: Callable[[Config], Config], net: build.NetFactory,
    joined: Accelerator,
) -> tuple[Config, int, float]:  # fmt: skip
    """Return `config` with the net that makes the most of `seconds` of training, and about how many steps that makes.

    The third value is how many times as long a step takes as at half of the image size; 1 where no step is at half.

    Args:
        config, how: the config with what a person chose, and how to compute.
        seconds: those that are left for steps, on each process.
        resolved: completes a config whose net is chosen (`defaults.resolve`).
        net: what makes the net.
        joined: the processes of the run, which choose alike.
    """
    many, whole = joined.num_processes, config
    config = half_size.without(config)  # the net is chosen by what full size takes
    asked = config.train.batch_size
    if asked == "auto":  # found by trial later, with the net that is chosen here
        config = config.changed("train", batch_size=None)
    trial = replace(how, native=_with_kernels(config, how))
    if net is build.net and config.model.net == "unet" and None in (config.model.channels, config.model.num_blocks):

        def price(size: Net) -> Cost:
            return memory.price(defaults.architecture(of_size(config, size), how.device), net)

        ladder = possible(config, how.device)
        wanted = PROBE_GPU if how.device.type == "cuda" else PROBE
        probe, each = divided(of_size(config, wanted if wanted in ladder else ladder[0]), trial, net, many, resolved)
        config, probe = config.changed("train", cpu_parts=probe.train.cpu_parts), resolved(probe)
        images = many * processes.smallest(int(_batch(probe) / each / many * seconds), joined)
        macs = images * memory.price(probe, net).macs
        size = best(macs, price, ladder)
        config = of_size(config, size)
        if asked is None:
            config = _for_images(config, macs / price(size).macs, many)
    config, each = divided(config, trial, net, many, resolved)
    if asked is None and config.train.batch_size is None:  # the net is given
        images = many * processes.smallest(int(_batch(resolved(config)) / each / many * seconds), joined)
        config, each = divided(_for_images(config, images, many), trial, net, many, resolved)
    while asked is None and config.train.batch_size is not None and _batch(config) < largest_batch(config):
        larger = config.changed("train", batch_size=2 * _batch(config))
        slower = seconds_per_step(resolved(larger), trial, net, many)
        if not processes.smallest(int(slower < DOUBLING * each), joined):
            break
        config, each = larger, slower
    t, slower = whole.train, 1.0
    share = t.half_size or 0.0
    if t.half_size is None and t.half_size_until is None and net is build.net:
        pays = _half_pays(resolved(config), seconds / each * _batch(resolved(config)))
        share = min(HALF, 1 - (t.cooldown or defaults.COOLDOWN)) if processes.smallest(int(pays), joined) else 0.0
    if share or t.half_size_until:
        halved = resolved(config.changed("train", half_size_until=1))
        half_size.refuse_misfit(halved, net)
        slower = each / seconds_per_step(halved, trial, net, many)
    config = config.changed(
        "train", batch_size=asked or config.train.batch_size, half_size=share, half_size_until=t.half_size_until
    )
    steps = max(1, int(seconds * (1 - share + share * slower) / each))
    return config, processes.smallest(steps, joined), slower


def possible(config: Config, device: torch.device) -> tuple[Net, ...]:
    """Return the nets of `LADDER` that there are with the options of `config`.

    Where these ask for groups of channels or for heads of attention, some widths do not divide into them.

    Raises:
        UsageError: there is none.
    """
    found, problem = list[Net](), None
    for size in LADDER:
        try:
            with torch.device("meta"):
                build.net(defaults.architecture(of_size(config, size), device))
        except UsageError as error:
            problem = problem or error
        else:
            found.append(size)
    if not found:
        assert problem is not None, "the ladder has nets"
        raise problem
    return tuple(found)


def best(macs: float, price: Callable[[Net], Cost], ladder: Sequence[Net] = LADDER) -> Net:
    """Return the largest net of `ladder` that sees enough images in so many multiply-accumulates of forward passes.

    `price` returns what a net costs. See `PARAMETERS` for how many are enough.
    """
    chosen = ladder[0]
    for size in ladder[1:]:  # the larger, the more images are enough, and the fewer it sees
        cost = price(size)
        if macs / cost.macs < enough(cost.parameters):
            break
        chosen = size
    return chosen


def enough(parameters: float) -> float:
    """Return the images from which on a net of so many parameters pays, see `PARAMETERS`."""
    return IMAGES * (parameters / PARAMETERS) ** GROWTH


def _half_pays(config: Config, images: float) -> bool:
    """Return whether a run of so many images at full size learns more if it begins at half of it."""
    fits = config.model.net == "unet" and half_size.reason_against(config) is None
    return fits and config.data.image_size >= HALF_FROM and images <= HALF_UP_TO


def _for_images(config: Config, images: float, processes: int) -> Config:
    """Return `config` with the batch for a run that sees so many images."""
    share = processes * (config.train.grad_accumulation or 1)  # of which a step is a multiple
    return config.changed("train", batch_size=-(-batch_for(config, images) // share) * share)


def batch_for(config: Config, images: float) -> int:
    """Return the batch size, a power of two, for a run that sees so many images."""
    wanted = 2 ** int(math.log2(max(1.0, images / STEPS_AT_LEAST)))
    return min(max(wanted, SMALLEST), largest_batch(config))


def largest_batch(config: Config) -> int:
    """Return the largest batch size for the image size of a config."""
    return next((batch for size, batch in LARGEST.items() if config.data.image_size <= size), min(LARGEST.values()))


def _batch(config: Config) -> int:
    assert isinstance(config.train.batch_size, int), "the config is resolved"
    return config.train.batch_size


def _with_kernels(config: Config, how: Compute) -> bool:
    """Return whether to time with the kernels of nn/kernels.py, which a run uses where they are faster."""
    if (how.device.type == "cpu" and how.precision == "fp16") or config.train.kernels == "off":
        return False
    try:
        kernels.ready(how.device)
    except compiler.Unavailable:
        return False
    return True
