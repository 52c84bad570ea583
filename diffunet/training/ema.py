"""The averaged weights that sampling uses."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a net's weights, with a half-life in images that ramps up from nothing.

    Karras et al. 2022, appendix F.2: the half-life is at most `ramp` of the images seen so far, so that the average
    forgets the random start; after one step it *is* the net.

    Args:
        net: what is averaged. `ema.net` is a copy of it, float32, on the same device.
        halflife: in images.
        ramp: share of the images seen.
    """

    def __init__(self, net: nn.Module, halflife: float, ramp: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.halflife, self.ramp = halflife, ramp

    def decay(self, step: int, batch: int) -> float:
        """beta of the update after step number `step` (from 0)."""
        return float(0.5 ** (batch / min(self.halflife, self.ramp * (step + 1) * batch)))

    @torch.no_grad()
    def update(self, net: nn.Module, step: int, batch: int, skipped: Tensor) -> None:
        """ema = beta * ema + (1 - beta) * net; nothing where `skipped` (float [], on the device) is 1."""
        mine: list[Tensor] = list(self.net.parameters())
        theirs: list[Tensor] = list(net.parameters())
        weight = torch.where(skipped > 0, 0.0, 1 - self.decay(step, batch))  # gated on the device: nobody waits
        change = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(mine, change)
