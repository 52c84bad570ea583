"""The scale of the loss in float16, so that small gradients do not become 0 (Micikevicius et al. 2018, section 3.2).

It is halved where gradients overflow and doubled after a while without: on the device, so that nobody waits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffunet.compute import Compute

START, LEAST, MOST = 2.0**16, 1.0, 2.0**24
"""At `LEAST` a gradient that is not finite is no overflow any more, and counts as a bad step."""

PATIENCE = 2000
"""Steps without an overflow after which it is doubled."""


class LossScale:
    """`value` [] is what the loss is multiplied by, and gradients divided; 1, for ever, but in fp16."""

    def __init__(self, how: Compute) -> None:
        self.used = how.precision == "fp16"
        self.value = torch.tensor(START if self.used else 1.0, device=how.device)
        self.calm = torch.zeros((), device=how.device)  # steps since it changed

    @property
    def may_shrink(self) -> Tensor:
        """Whether a smaller one might help, bool []."""
        return self.value > (LEAST if self.used else math.inf)

    def update(self, overflow: Tensor, nothing: Tensor) -> None:
        """After a step: `overflow` bool [], its gradient was too large; `nothing` bool [], it was skipped."""
        if not self.used:
            return
        self.calm = torch.where(nothing, 0.0, self.calm + 1)
        grow = self.calm >= PATIENCE
        self.value = torch.where(overflow, self.value / 2, torch.where(grow, self.value * 2, self.value))
        self.value = self.value.clamp(LEAST, MOST)
        self.calm = torch.where(grow, 0.0, self.calm)

    def state(self) -> dict[str, float]:
        """For state.json; waits for the device. Empty where it is not used."""
        return {"scale": self.value.item(), "calm": self.calm.item()} if self.used else {}

    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave; what is missing stays."""
        if self.used and state:
            self.value.fill_(state["scale"])
            self.calm.fill_(state["calm"])
