"""The scale of the loss in float16, which keeps small gradients from being 0 (Micikevicius et al. 2018, section 3.2).

It is halved when gradients overflow and doubled after a while without overflow, on the device, so that nothing waits.
"""

import math
from typing import Any

import torch
from torch import Tensor

from diffunet.compute import Compute

START, LEAST, MOST = 2.0**16, 1.0, 2.0**24
"""The first, the smallest and the largest scale. At the smallest, a gradient that is not finite is not taken for an
overflow, and counts as a bad step."""

PATIENCE = 2000
"""Steps without an overflow after which the scale is doubled."""


class LossScale:
    """`value` [] multiplies the loss and divides the gradients; it stays 1 in precisions other than fp16."""

    def __init__(self, how: Compute) -> None:
        self.used = how.precision == "fp16"
        self.value = torch.tensor(START if self.used else 1.0, device=how.device)
        self.calm = torch.zeros((), device=how.device)  # steps since the scale was changed

    @property
    def may_shrink(self) -> Tensor:
        """Return whether a smaller scale might help, bool []."""
        return self.value > (LEAST if self.used else math.inf)

    def update(self, overflow: Tensor, skipped: Tensor) -> None:
        """Change the scale after a step that did `overflow`, bool [], or was `skipped` for any reason, bool []."""
        if not self.used:
            return
        self.calm = torch.where(skipped, 0.0, self.calm + 1)
        grow = self.calm >= PATIENCE
        value = torch.where(overflow, self.value / 2, torch.where(grow, self.value * 2, self.value))
        self.value = value.clamp(LEAST, MOST)
        self.calm = torch.where(grow, 0.0, self.calm)

    def state(self) -> dict[str, float]:
        """Return the values for state.json, none where the scale is not used; this waits for the device."""
        return {"scale": self.value.item(), "calm": self.calm.item()} if self.used else {}

    def load(self, state: dict[str, Any]) -> None:
        """Set the values that `state` returned, if there are any."""
        if self.used and state:
            self.value.fill_(state["scale"])
            self.calm.fill_(state["calm"])
