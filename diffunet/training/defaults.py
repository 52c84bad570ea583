"""How options that a config leaves open are chosen by the images and the device; RUN/config.toml has the choices."""

import logging
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffunet import build, compute
from diffunet.compute import Compute
from diffunet.config import Config, DataConfig
from diffunet.data import augment, symmetry
from diffunet.data.dataset import Dataset
from diffunet.errors import UsageError
from diffunet.pictures.ranges import Ranges
from diffunet.training import best, half_size
from diffunet.training.ema import WIDTHS
from diffunet.training.memory import training_bytes

log = logging.getLogger(__name__)

SMALL = best.SMALL
"""With fewer images a model learns them by heart, so that flips and dropout are switched on."""

BATCH, LARGE_BATCH, CPU_BATCH = {64: 128, 128: 64}, 32, 32
"""The batch size on a GPU for image sizes up to each key, for larger ones, and on a CPU, where a step takes seconds.
Memory decides on the passes of a step, and not on its images, so that a run is the same on a card of 8 GB and of 80."""

ROUND = 8
"""The images of a process are a multiple of this where we choose them, so that they divide into passes well."""

RATES, LEAST_RATE = {"adamw": {64: 2e-3, 128: 1e-3}, "muon": {64: 4e-3, 128: 1e-3}}, 5e-4
"""The learning rate of each optimizer for nets of up to so many channels, and for wider ones; see samples/recipe.md."""

MUON_STEPS, MUON_LEAST = 1_500, 1e-3
"""The steps up to which Muon has that rate. In longer runs it falls as one over the root of their number, to the second
value: at a rate that is too high a run learns no more until its cool-down; see samples/recipe.md."""

WARMUP, LEAST_WARMUP, MOST_WARMUP, COOLDOWN = 0.03, 20, 500, 0.4
"""The shares of a run over which the learning rate rises and falls, and the fewest and the most steps of its rise."""

CHECKPOINTING_ABOVE, FEW = 128, 4
"""Above this image size blocks are checkpointed if fewer than so many images would otherwise fit one pass."""

LOOKING, MOST_UNSEEN = 0.01, 1000
"""The share of the time that validation losses may take, and as much previews; the most steps from one to the next."""

STORED, WORTH_STORING, STORED_BYTES = 16, 100, 10**9
"""How often a run stores averages for `convert --ema` (measured: 32 times in float16 are no better between widths 0.03
and 0.20, and take twice the disk), the steps of the shortest run that stores any, and the most bytes that they take."""

MULTIPLIERS = {16: (1, 2, 2), 32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
"""The channel multipliers for image sizes up to each key; the deepest maps are 4 to 8 pixels wide (ADM, table 3)."""


def architecture(config: Config, device: torch.device) -> Config:
    """Return `config` with the channels, multipliers, blocks and attention levels of its net chosen."""
    size, classic, multipliers = config.data.image_size, config.model.net == "unet2015", config.model.multipliers
    if multipliers is None and classic:  # at most four poolings, as in the paper, and maps of at least 4 pixels
        multipliers = tuple(2**level for level in range(max(1, min(4, int(math.log2(size)) - 2)) + 1))
    elif multipliers is None:
        multipliers = next((value for limit, value in MULTIPLIERS.items() if size <= limit), MULTIPLIERS[256])
    channels = config.model.channels
    if channels is None:
        channels = (128 if size <= 64 else 96) if device.type == "cuda" else (64 if size <= 32 else 32)
    levels = () if classic else config.model.attention_levels
    if levels is None:
        sizes = [-(-size // 2**level) for level in range(len(multipliers))]
        octaves = ([abs(math.log2(size / wanted)) for size in sizes] for wanted in config.model.attention_resolutions)
        levels = tuple(sorted({off.index(min(off)) for off in octaves if min(off) <= 0.5}))  # half an octave at most
    config = config.changed("model", channels=channels, multipliers=multipliers, attention_levels=levels)
    return config if classic else _filled(config, "model", num_blocks=2, middle_attention=True)


def resolve(
    config: Config, *, images: int, class_names: tuple[str, ...], mean: tuple[float, ...], sigma_data: float,
    how: Compute, processes: int = 1, free: int | None = None, net: build.NetFactory = build.net,
    expected: int | None = None, held_out: int = 0, one_sided: bool = False,
) -> Config:  # fmt: skip
    """Return `config` with everything chosen; raise UsageError if processes and passes do not divide the batch size.

    A batch size of "auto" is found by trial later, see `after_trial`.

    Args:
        config, images: the options that were asked for, and the number of images to train on.
        class_names, mean, sigma_data: the classes of the images, the mean of each channel and their standard deviation.
        how, net: how to compute, and what makes the net.
        processes: the number of processes that divide a step.
        free: the bytes of memory that a process may take; those that `how` finds by default.
        expected: about how many steps there will be, where `config` leaves that open.
        held_out: the number of images that are held out.
        one_sided: whether mirrored images would be wrong, see `data.symmetry`.
    """
    small, steps = images < SMALL, config.train.steps or expected or 1
    config = scheduled(architecture(config, how.device).changed("train", precision=how.precision), steps)
    config = _filled(config, "model", dropout=0.1 if small else 0.0).changed("data", class_names=class_names)
    config = _filled(config, "data", flip=small and not one_sided)
    # Images of one flat colour have no deviation, by which a net may have to divide.
    config = _filled(config, "diffusion", mean=mean, sigma_data=max(sigma_data, 0.01))
    # A learning rate that is stated is AdamW's, as in the configs and presets from before there was Muon.
    ours = config.model.net == "unet" and net is build.net and config.train.learning_rate is None
    config = _filled(config, "train", optimizer="muon" if ours else "adamw", cpu_parts=1)
    if config.train.ema_every is None:
        config = config.changed("train", ema_every=stored_every(config, steps, net))
    if config.train.batch_size is None:
        config = config.changed("train", batch_size=_batch(config, how.device, processes))
    if config.model.checkpointing is None:
        large, plain = config.model.net == "unet" and config.data.image_size > CHECKPOINTING_ABOVE, config
        few = large and how.fits(lambda n: training_bytes(plain, how, n, net), most=FEW, free=free) < FEW
        config = config.changed("model", checkpointing=few)
    if isinstance(batch := config.train.batch_size, int):
        config = _filled(
            _passes(config, how, batch, processes, free, net), "train", learning_rate=rate_for(config, steps)
        )
    config = _looked_at(config, steps, held_out)
    if config.train.compile == "auto":
        compiled, _ = compute.pays_to_compile(how, steps, config.train.minutes, config.train.deterministic)
        config = config.changed("train", compile="on" if compiled else "off")
    return config


def one_sided(data: DataConfig, dataset: Dataset, training: NDArray[np.int64]) -> bool:
    """Return whether the images to train on are so few that they would be mirrored, and left and right differ in them.

    See `data.symmetry`; it is said where it is so.
    """
    if len(training) >= SMALL:
        return False
    chosen = training[np.linspace(0, len(training) - 1, min(len(training), symmetry.MOST)).astype(np.int64)]
    pictures = augment.gather(
        dataset.images, chosen, build.windows(data, chosen), image_size=data.image_size, fit=data.fit,
        background=data.background, scales=data.scales,
    )  # fmt: skip
    if found := symmetry.one_sided(pictures):
        log.info("left and right differ in these images, as in writing: none is mirrored (--data.flip True does it)")
    return found


def with_ranges(config: Config, found: Ranges) -> Config:
    """Return `config` with what was found to be black and white in images of more than 8 bits, unless it states it."""
    if config.data.range is not None:
        return config
    return config.changed("data", int_range=found.integers, float_range=found.floats)


def scheduled(config: Config, expected: int) -> Config:
    """Return `config` with its warm-up, for a run of so many steps, and the steps at which its stages begin.

    These, from which it is at full size and its learning rate falls, stay open where the number of steps is.

    Raises:
        UsageError: the stages take more than the whole run.
    """
    cooldown = COOLDOWN if config.train.cooldown is None else config.train.cooldown
    warmup = min(max(round(WARMUP * expected), LEAST_WARMUP), MOST_WARMUP)
    config = _filled(config, "train", cooldown=cooldown, warmup=warmup, half_size=0.0)
    if (config.train.half_size or 0.0) + cooldown > 1:
        raise UsageError(
            f"train.half_size {config.train.half_size:g} and train.cooldown {cooldown:g} are shares of one run, and "
            "are more than 1 together"
        )
    t = (config := half_size.decided(config)).train
    if t.steps is None:
        return config
    falls = t.steps - round(cooldown * half_size.cost(t))
    return _filled(config, "train", cooldown_from=max(falls, min(t.half_size_until or 0, t.steps)))


def cooled(config: Config, step: int) -> Config:
    """Return `config` of a run that goes on at `step` with its full learning rate, which cannot fall before that."""
    first, end = config.train.cooldown_from, config.train.steps
    late = first is not None and end is not None and first < step < end
    return config.changed("train", cooldown_from=step) if late else config


def _looked_at(config: Config, steps: int, held_out: int) -> Config:
    """Return `config` of a run of so many steps with the steps between validation losses, and between previews.

    Each takes at most about `LOOKING` of the time: a forward pass costs a third of a step's share of an image.
    """
    batch = config.train.batch_size if isinstance(config.train.batch_size, int) else CPU_BATCH
    images = {"validate_every": min(held_out, 256), "sample_every": config.train.previews * 15}
    every = {name: max(steps // 20, round(number / (3 * batch * LOOKING)), 1) for name, number in images.items()}
    return _filled(config, "train", **{name: min(number, MOST_UNSEEN) for name, number in every.items()})


def _filled(config: Config, section: str, **values: Any) -> Config:
    """Return `config` in which those options of a section that are None have these values."""
    chosen = getattr(config, section)
    return config.changed(section, **{name: value for name, value in values.items() if getattr(chosen, name) is None})


def after_trial(config: Config, fits: int, processes: int, steps: int) -> Config:
    """Return `config` of so many steps, whose batch size was "auto", once it is known how many images fit one pass."""
    passes = config.train.grad_accumulation or 1
    batch = fits * processes * passes
    config = _filled(config, "train", learning_rate=rate_for(config, steps))
    return config.changed("train", batch_size=batch, grad_accumulation=passes)


def rate_for(config: Config, steps: int) -> float:
    """Return the learning rate for the net of a config, whose channels are chosen, in a run of so many steps."""
    rates = RATES[config.train.optimizer or "adamw"]
    rate = next((rate for limit, rate in rates.items() if (config.model.channels or 0) <= limit), LEAST_RATE)
    if config.train.optimizer != "muon" or steps <= MUON_STEPS:
        return rate
    return max(min(rate, MUON_LEAST), float(f"{rate * math.sqrt(MUON_STEPS / steps):.2g}"))


def stored_every(config: Config, steps: int, net: build.NetFactory = build.net) -> int:
    """Return the steps between the stored averages of a run of so many steps; 0 where none are stored.

    They fit into `STORED_BYTES`.
    """
    times = min(STORED, STORED_BYTES // _pair_bytes(config, net))
    return -(-steps // times) if steps >= WORTH_STORING and times else 0


def spaced(
    config: Config, before: Config, expected: int, net: build.NetFactory = build.net, *, ours: bool | None = None
) -> Config:
    """Return `config`, where its run is longer than it was `before` with averages so far apart that all of them fit.

    The steps between them become a multiple of what they were, where diffunet chose them: what a person chose stays.
    `ours` says who did; if it is None, as for runs of diffunet 0.1, it is known by the number of steps. A run has
    `expected` steps where its config leaves that open.
    """
    every, steps, planned = config.train.ema_every, config.train.steps or expected, before.train.steps
    if ours is None:
        ours = planned is not None and before.train.minutes is None and every == stored_every(before, planned, net)
    if planned is not None:
        is_longer = steps > planned
    else:  # its end was open
        is_longer = config.train.steps is not None or (config.train.minutes or 0) > (before.train.minutes or 0)
    if not every or not is_longer or not ours:
        return config
    fit = max(1, STORED_BYTES // _pair_bytes(config, net))
    return config.changed("train", ema_every=every * max(1, -(-(steps // every) // fit)))


def _pair_bytes(config: Config, net: build.NetFactory = build.net) -> int:
    """Return the bytes of disk that the averages of one step take in float16."""
    with torch.device("meta"):
        module = net(config)
    return len(WIDTHS) * 2 * sum(parameter.numel() for parameter in module.parameters())


def _batch(config: Config, device: torch.device, processes: int) -> int:
    """Return the batch size; the images of each process are a multiple of `ROUND`."""
    size, share = config.data.image_size, processes * (config.train.grad_accumulation or 1)
    wanted = next((batch for limit, batch in BATCH.items() if size <= limit), LARGE_BATCH)
    each = -(-(wanted if device.type == "cuda" else CPU_BATCH) // share)
    return (each if each < ROUND else -(-each // ROUND) * ROUND) * share


def _passes(
    config: Config, how: Compute, batch: int, processes: int, free: int | None, net: build.NetFactory
) -> Config:
    """Return `config` with the fewest passes that memory allows; raise UsageError if they do not divide the batch."""
    asked = config.train.grad_accumulation
    share = processes * (asked or 1)
    if batch % share:
        near = max(share, batch // share * share)
        lower = range((asked or 1) - 1, 0, -1)
        fewer = next((n for n in lower if batch % processes == 0 and batch // processes % n == 0), None)
        raise UsageError(
            f"--batch-size {batch} is the batch of one step and must divide by {processes} processes x "
            f"{asked or 1} passes; try {near} or {near + share}"
            + (f", or --train.grad-accumulation {fewer}" if fewer else "")
        )
    if asked is None:
        each = batch // processes
        fits = max(1, how.fits(lambda n: training_bytes(config, how, n, net), most=2 * each, free=free))
        asked = next(n for n in range(1, each + 1) if each % n == 0 and each // n <= fits)
        if 2 * each < asked * fits:
            log.warning(
                "--batch-size %d divides badly: %d passes of %d images, where %d would fit; a multiple of %d is faster",
                batch, asked, each // asked, fits, processes * ROUND,
            )  # fmt: skip
    return config.changed("train", grad_accumulation=asked)
