"""What a config leaves open, decided from the images and the device, and written resolved into RUN/config.toml."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from diffunet.config import Config
from diffunet.errors import UsageError
from diffunet.training.memory import WORTH, price

SMALL = 5000
"""Images below which a model learns them by heart: flips and dropout are on."""

MEMORY = 6 * 2**30
"""Bytes that training aims at: a card of 8 GB, of which a desktop and the allocator take their part."""

STORED, WORTH_STORING = 16, 100
"""Times that averages are stored for `convert --ema` (measured: 32 in float16 are no better between widths 0.03 and
0.20, at twice the disk), and steps below which they are not."""

MULTIPLIERS = {16: (1, 2, 2), 32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}
"""By the image size up to which they are meant; the deepest maps are 4 to 8 pixels wide (ADM, table 3)."""


def architecture(config: Config, device: torch.device) -> Config:
    """`config` with channels, multipliers and attention levels filled in."""
    size = config.data.image_size
    multipliers = config.model.multipliers
    classic = config.model.net == "unet2015"
    if multipliers is None and classic:  # at most four poolings, as in the paper; the deepest maps are 4 pixels or more
        multipliers = tuple(2**level for level in range(max(1, min(4, int(math.log2(size)) - 2)) + 1))
    elif multipliers is None:
        multipliers = next((value for limit, value in MULTIPLIERS.items() if size <= limit), MULTIPLIERS[256])
    channels = config.model.channels
    if channels is None:
        channels = (128 if size <= 64 else 96) if device.type == "cuda" else (64 if size <= 32 else 32)
    levels = () if classic else config.model.attention_levels
    if levels is None:
        sizes = [-(-size // 2**level) for level in range(len(multipliers))]
        near = {_nearest(sizes, wanted) for wanted in config.model.attention_resolutions}
        levels = tuple(sorted(level for level in near if level is not None))
    return config.changed("model", channels=channels, multipliers=multipliers, attention_levels=levels)


def _nearest(sizes: Sequence[int], wanted: int) -> int | None:
    """The level whose size is nearest to `wanted` by ratio; None where that is off by more than a half octave."""
    off = [abs(math.log2(size / wanted)) for size in sizes]
    return off.index(min(off)) if min(off) <= 0.5 else None


def resolve(
    config: Config,
    *,
    images: int,
    class_names: tuple[str, ...],
    mean: tuple[float, ...],
    sigma_data: float,
    device: torch.device,
    precision: str,
    processes: int = 1,
) -> Config:
    """`config` with nothing left open but a batch size of "auto", which takes trial.

    Raises:
        UsageError: for a batch that processes and accumulation do not divide.
    """
    config = architecture(config, device)
    small = images < SMALL
    if config.model.dropout is None:
        config = config.changed("model", dropout=0.1 if small else 0.0)
    if config.data.flip is None:
        config = config.changed("data", flip=small)
    config = config.changed("data", class_names=class_names)
    d = config.diffusion
    config = config.changed(
        "diffusion",
        mean=mean if d.mean is None else d.mean,
        # Images of one flat colour have no deviation; a net that divides by it needs some.
        sigma_data=max(sigma_data, 0.01) if d.sigma_data is None else d.sigma_data,
    )
    if config.train.steps is None:
        config = config.changed("train", steps=100_000 if device.type == "cuda" else 10_000)
    if config.train.ema_every is None:
        assert config.train.steps is not None, "just set"
        every = -(-config.train.steps // STORED) if config.train.steps >= WORTH_STORING else 0
        config = config.changed("train", ema_every=every)
    share = processes * config.train.grad_accumulation
    if config.train.batch_size is None:
        config = config.changed("train", batch_size=_batch(config, device, precision, share))
    batch = config.train.batch_size
    if isinstance(batch, int) and batch % share:
        near = max(share, batch // share * share)
        raise UsageError(
            f"--batch-size {batch} is the batch of one step and must divide by {processes} processes x "
            f"{config.train.grad_accumulation} passes; try {near} or {near + share}"
        )
    return config


def _batch(config: Config, device: torch.device, precision: str, share: int) -> int:
    """The largest power of two, times `share`, that fits `MEMORY` in one pass, up to what is worth it on the device."""
    counted, worth = price(config), WORTH.get(device.type, WORTH["cpu"])
    part = 1
    while part * 2 * share <= worth and counted.training_bytes(part * 2, precision, device.type) <= MEMORY:
        part *= 2
    return part * share
