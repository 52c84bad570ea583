"""Filling in a part of an image: what of it the net sees, what it is told, and from which picture it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffunet import build, draws
from diffunet.config import Config
from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import Denoise, condition
from diffunet.diffusion.known_pixels import keep_known
from diffunet.diffusion.tiling import AT_ONCE, Tiled, covered
from diffunet.inpainting import methods
from diffunet.inpainting.part import Part
from diffunet.pictures import images

REFINE = 0.5
"""The sigma from which a picture that was filled in at half the resolution or so is denoised again: it hides what the
smaller one could not show, and keeps what it did (SDEdit, Meng et al. 2022). Chosen by looking."""


@dataclass(frozen=True)
class Filler:
    """Fills in parts of images with one model, by one method.

    Args:
        config: of the model.
        whole, refining: the method, from noise alone and from `REFINE`.
        denoise_for: see `conditions.denoising`.
        label: number of the class, or None for a model without.
        walk: goes to the end of a walk, which gives x [B C H W].
        device: of the model.
        at_once: windows of an image that are denoised at once.
    """

    config: Config
    whole: methods.Method
    refining: methods.Method
    denoise_for: Callable[..., Denoise]
    label: int | None
    walk: Callable[[samplers.Walk], Tensor]
    device: torch.device
    at_once: int = AT_ONCE

    def fill(self, levels: Sequence[Part], batch: range, seed: int) -> list[images.Pixels]:
        """Fillings `batch` of a seed, uint8 [rows columns C] each: of the coarsest level first, of the last at last."""
        filled: list[images.Pixels] | None = None
        for i, level in enumerate(levels):
            filled = self._fill(level, filled, batch, draws.key_of("level", seed, i) if i else seed)
        assert filled is not None, "a part has at least one level"
        return filled

    def steps(self, levels: Sequence[Part]) -> int:
        """How many steps on_step is told of for a batch."""
        return len(self.whole.ladder) - 1 + (len(levels) - 1) * (len(self.refining.ladder) - 1)

    def calls(self, levels: Sequence[Part]) -> int:
        """Passes through the net that a filling takes, of each window."""
        return self.whole.calls + (len(levels) - 1) * self.refining.calls

    def _fill(self, part: Part, coarse: list[images.Pixels] | None, batch: range, seed: int) -> list[images.Pixels]:
        pixels, gap = part.cut(self.config.data.channels)
        known = images.to_float(torch.from_numpy(pixels[None]).to(self.device))
        keep = torch.from_numpy(~gap).to(self.device)
        noise = draws.streams(seed, batch, known.shape[1:], self.device)
        way = self.whole if coarse is None else self.refining
        if coarse is None:
            start = build.prior_mean(self.config).to(known)
        else:
            larger = np.stack([images.resize(one, *gap.shape) for one in coarse])
            start = torch.where(keep, known, images.to_float(larger).to(self.device))
        x = start + way.ladder[0] * noise()
        label = None if self.label is None else torch.full((len(batch),), self.label, device=self.device)
        told = condition(known, keep).expand(len(batch), -1, -1, -1) if way.trained else None
        tiled, size = part.region.fit == "tile", self.config.data.image_size
        denoise = self.denoise_for(
            label, told, partial(Tiled, size=size, wanted=~keep, at_once=self.at_once) if tiled else None
        )
        if tiled:  # where no window is, nothing is to be filled in
            denoise = keep_known(denoise, known, ~covered(~keep, size))
        x = self.walk(way.walk(denoise, known, keep, x, noise))
        return list(images.to_uint8(torch.where(keep, known, x)))
