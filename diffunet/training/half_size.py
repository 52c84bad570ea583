"""A run may begin at half of its image size, where a step costs about a quarter, and go on at full size.

Large structures are learned first anyway, and are as good at half of the size: there more images are seen in the same
time. The net is convolutional, so that its weights fit both. Whether a step is of this stage depends on the config and
the number of the step alone; images that are held out, and previews, are of the full size always. Where it is
not asked for, short runs of larger images begin so (`recipe.HALF`): samples/recipe.md has what was measured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffunet import build
from diffunet.config import Config, TrainConfig
from diffunet.errors import UsageError

QUARTER = 4
"""How many times as much a step computes at full size; what a step takes besides makes the times differ by less."""

DEEPEST = 2
"""The fewest pixels across that the deepest feature map has at half of the size."""


def applies(train: TrainConfig, step: int) -> bool:
    """Return whether a step, counted from 0, of a resolved config is at half of the image size.

    Where `half_size_until` is None, as the clock has not ended the stage yet, all steps up to now are.
    """
    return bool(train.half_size) if train.half_size_until is None else step < train.half_size_until


def share(train: TrainConfig) -> float:
    """Return the share of its time in which a run of a resolved config may be at half of the image size."""
    return train.half_size or 0.0 if train.half_size_until is None else 1.0


def pooled(x0: Tensor, keep: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
    """Return images [B C H W] averaged to `size` x `size`, H or half of it, and `keep`, bool [B 1 H W], in that size.

    A pixel is known where all pixels that it is the mean of are.
    """
    if x0.shape[-1] == size:
        return x0, keep
    known = None if keep is None else F.max_pool2d((~keep).float(), 2) == 0
    return F.avg_pool2d(x0, 2), known


def without(config: Config) -> Config:
    """Return `config` of a run that is at full size from its first step on."""
    return config.changed("train", half_size=0.0, half_size_until=None)


def reason_against(config: Config) -> str | None:
    """Return why a net whose architecture is chosen cannot be trained at half of the image size, or None."""
    size, levels = config.data.image_size, len(config.model.multipliers or (1,))
    if size % 2:
        return f"the image size, {size}, is odd"
    if config.model.custom is None and size // 2 // 2 ** (levels - 1) < DEEPEST:
        return f"at {size // 2} pixels the deepest of {levels} levels has less than {DEEPEST}x{DEEPEST} pixels"
    return None


def refuse_misfit(config: Config, net: build.NetFactory) -> None:
    """Raise UsageError where a resolved config asks for this stage and the net cannot be trained so."""
    t = config.train
    if not t.half_size and not t.half_size_until:
        return
    reason = reason_against(config)
    if reason is None and net is not build.net:
        half = config.changed("data", image_size=config.data.image_size // 2)
        with torch.random.fork_rng([]):
            try:
                build.refuse_misfit(half, lambda _: net(config))
            except UsageError as error:
                reason = str(error)
            except Exception as error:  # of the user's own code
                reason = f"it raises {type(error).__name__}: {error}"
    if reason is not None:
        raise UsageError(f"the net cannot be trained at half of the image size: {reason}; --train.half-size 0 does not")


def decided(config: Config, done: int = 0) -> Config:
    """Return `config` with the step from which its run, of which so many steps are done, is at full size.

    It stays open where the number of steps is. Of N steps, those of a share s of the time are as many as take it where
    a step at full size takes `QUARTER` times as long.

    Raises:
        UsageError: no step would be left at full size.
    """
    t = config.train
    if t.steps is None:
        return config
    until = t.half_size_until
    if until is None and t.half_size:
        until = max(done, round(QUARTER * t.half_size * t.steps / (1 + (QUARTER - 1) * t.half_size)))
        config = config.changed("train", half_size_until=until)
    if until is not None and 0 < t.steps <= until and done < t.steps:
        raise UsageError(f"train.half_size_until {until} leaves none of {t.steps} steps at full size; make it less")
    return config


def cost(train: TrainConfig) -> float:
    """Return what all steps of a resolved config cost, in steps at full size."""
    assert train.steps is not None, "only a run whose end is known has such a cost"
    return train.steps - min(train.half_size_until or 0, train.steps) * (1 - 1 / QUARTER)
