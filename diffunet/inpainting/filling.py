"""Filling in one part of an image: what of it the net sees, on which conditions, and from which picture it starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffunet import draws
from diffunet.diffusion import known_pixels, samplers, tiling
from diffunet.diffusion.denoiser import Denoise, condition
from diffunet.inpainting.methods import Method
from diffunet.inpainting.part import Part
from diffunet.pictures import images

REFINE = 0.5
"""The noise level (sigma) from which a picture that was filled in at a coarser resolution is denoised again.

As in SDEdit (Meng et al. 2022) it is a compromise, chosen by looking at fillings: the noise has to hide the blur of
enlarging, so that the net draws detail, but not the shapes and colours on which the windows have to agree."""


@dataclass
class Filler:
    """Fills in parts of images with one model, by one method.

    Args:
        image_size: height and width that the model was trained at.
        mean: the mean of the images, [C 1 1], from which sampling starts; see `build.prior_mean`.
        whole: the method, from noise alone.
        refining: the same method, from the noise level `REFINE` on, for all levels of a part but the coarsest.
        denoise_for: the denoiser for given conditions; see `conditions.denoising`.
        label: number of the class, or None for a model without classes.
        finish: runs a walk to its end and returns its last x, [B C H W].
        device, at_once: where the model is, and how many windows of an image go through the net at once.
    """

    image_size: int
    mean: Tensor
    whole: Method
    refining: Method
    denoise_for: Callable[..., Denoise]
    label: int | None
    finish: Callable[[samplers.Walk], Tensor]
    device: torch.device
    at_once: int = tiling.AT_ONCE

    def fill(self, levels: Sequence[Part], batch: range, seed: int) -> list[images.Pixels]:
        """Fill in all levels of a part, see `Part.levels`, each beginning with what the one before it gave.

        `batch` has the numbers of the fillings: filling i of a seed is the same in every batch. Returned are those of
        the last level, uint8 [rows columns C] each.
        """
        filled: list[images.Pixels] = []
        for i, level in enumerate(levels):
            filled = self._fill(level, filled, batch, draws.key_of("level", seed, i) if i else seed)
        return filled

    def steps(self, levels: Sequence[Part]) -> int:
        """Return the number of steps that `fill` takes."""
        return len(self.whole.ladder) - 1 + (len(levels) - 1) * (len(self.refining.ladder) - 1)

    def calls(self, levels: Sequence[Part]) -> int:
        """Return the number of passes through the net that a filling takes, for each of its windows."""
        return self.whole.calls + (len(levels) - 1) * self.refining.calls

    def halve_windows(self) -> bool:
        """Put half as many windows through the net at once from now on, and return whether that was possible."""
        before, self.at_once = self.at_once, max(1, self.at_once // 2)
        return before > 1

    def _fill(self, part: Part, coarser: list[images.Pixels], batch: range, seed: int) -> list[images.Pixels]:
        pixels, gap = part.cut(len(self.mean))
        known = images.to_float(torch.from_numpy(pixels[None]).to(self.device))
        keep = torch.from_numpy(~gap).to(self.device)
        noise = draws.streams(seed, batch, known.shape[1:], self.device)
        if not coarser:
            method, start = self.whole, self.mean.to(known)
        else:
            enlarged = np.stack([images.resize(one, *gap.shape) for one in coarser])
            method, start = self.refining, torch.where(keep, known, images.to_float(enlarged).to(self.device))
        x = start + method.ladder[0] * noise()
        label = None if self.label is None else torch.full((len(batch),), self.label, device=self.device)
        concat = condition(known, keep).expand(len(batch), -1, -1, -1) if method.trained else None
        tiles = part.region.fit == "tile"
        tiled = partial(tiling.Tiled, size=self.image_size, wanted=~keep, at_once=self.at_once) if tiles else None
        denoise = self.denoise_for(label, concat, tiled)
        if tiles:
            # Where no window is, nothing is to be filled in, and `Tiled` gives the noisy x back. As a prediction of
            # pixels that are known it is wrong, which mmps would correct by its gradient at the cost of the hole.
            denoise = known_pixels.keep_known(denoise, known, ~tiling.covered(~keep, self.image_size))
        x = self.finish(method.walk(denoise, known, keep, x, noise))
        return list(images.to_uint8(torch.where(keep, known, x)))
