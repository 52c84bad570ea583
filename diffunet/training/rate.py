"""The learning rate of each step: it rises, stays at its peak, and falls at the end.

The weights of a constant rate jitter around a good place, and so does what they draw: a UNet that ends without a fall
of the rate draws worse images at the same loss (arXiv 2510.19376). The fall as 1 - sqrt of the time is of Hägele et al.
2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations". Up to its beginning nothing depends
on the number of steps but the peak, which is chosen for it once, so that a run may be made longer from there.
"""

import math
from typing import Any

from diffunet.config import TrainConfig

FLOOR = 0.02
"""The least share of the peak rate that the last steps have."""


def rate(train: TrainConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0, of a resolved config.

    It rises linearly over `warmup` steps, stays at `learning_rate`, and falls from the step `cooldown_from` on as 1 -
    sqrt(share of the cool-down). Where `steps` is None, as the end of the run is still open, it has not begun to fall.
    """
    assert train.learning_rate is not None, "the config is resolved"
    peak = train.learning_rate * min(1.0, (step + 1) / max(1, train.warmup or 0))
    first, end = train.cooldown_from, train.steps
    if first is None or end is None or step < first or end <= first:
        return peak
    return peak * max(FLOOR, 1 - math.sqrt((step - first + 1) / (end - first)))


def fall(train: TrainConfig, step: int) -> list[int] | None:
    """Return the first and the last step of the cool-down in which the weights of a step are; None before it."""
    first, end = train.cooldown_from, train.steps
    return None if first is None or end is None or step <= first else [first, end]


def leads_on(train: TrainConfig, state: dict[str, Any]) -> bool:
    """Return whether a run with these options can go on from a checkpoint with the values `state`.

    It cannot where the rate of that checkpoint was falling already towards another end.
    """
    return state.get("cooldown") in (None, fall(train, state["step"]))
