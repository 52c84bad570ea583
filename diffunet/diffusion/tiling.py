"""Denoising of images larger than those of the training, by windows that overlap.

Legend: B batch, C channels, H W height and width of the image, S size of a window, N number of windows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffunet.diffusion.denoiser import Condition, Denoised, Denoiser

Window = tuple[int, int]
"""The row and the column of a window's top left pixel."""

AT_ONCE = 32
"""The number of windows in one pass through the net, where memory allows it."""


class Tiled:
    """A denoiser of images of any size, which blends the windows of a `Denoiser` (Bar-Tal et al. 2023, eq. 5).

    All windows are denoised at every noise level, and blended with weights that fall to 0 at their edges. What one
    fills in, its neighbours see at the next level, so that no edge shows. Pixels without a window stay as they are.

    Args:
        denoiser, size: the denoiser of a window; S, the size of the images of its training.
        wanted: bool [H W], both at least S: the pixels to be denoised. Windows without such a pixel are left out.
        stride: the largest distance between neighbouring windows; S / 2 by default.
        at_once: the number of windows in one pass through the net.
    """

    def __init__(
        self, denoiser: Denoiser, size: int, wanted: Tensor, stride: int | None = None, at_once: int = AT_ONCE
    ) -> None:
        self.denoiser, self.size, self.at_once = denoiser, size, at_once
        self.windows = windows(wanted, size, stride)
        ramp = torch.arange(size, device=wanted.device, dtype=torch.float32).add(0.5).div(size).mul(math.pi).sin() ** 2
        self.weight = ramp[:, None] * ramp  # [S S]
        total = torch.zeros(wanted.shape, device=wanted.device)
        for top, left in self.windows:
            total[top : top + size, left : left + size] += self.weight
        self.covered = total > 0
        self.total = torch.where(self.covered, total, 1)

    def __call__(
        self, x: Tensor, sigma: Tensor, label: Condition = None, concat: Condition = None, augment: Condition = None
    ) -> Denoised:
        """Denoise images [B C H W]; the arguments are those of `Denoiser.forward`."""
        if not self.windows:
            return Denoised(x)
        size, n = self.size, max(1, self.at_once // len(x))
        passes = [self.windows[first : first + n] for first in range(0, len(self.windows), n)]

        def denoise(crops: Tensor, part: Sequence[Window]) -> Denoised:  # crops [N B, C S S]
            levels = sigma if sigma.ndim == 0 else sigma.repeat(len(part))
            labels = None if label is None else label.repeat(len(part))
            further = None if concat is None else cut(concat, part, size)
            vectors = None if augment is None else augment.repeat(len(part), 1)
            return self.denoiser(crops, levels, labels, further, vectors)

        if torch.is_grad_enabled():  # `mmps` needs gradients; checkpoints keep the activations of one pass, not of all.
            outputs = [
                checkpoint(denoise, crops, part, use_reentrant=False, preserve_rng_state=False)
                for crops, part in zip(_Cut.apply(x, passes, size), passes, strict=True)
            ]
            total = _Blend.apply(x, self.weight, passes, *(output.x0 for output in outputs))
            fractions = [None if output.var is None else output.var.detach() for output in outputs]
        else:
            total, fractions = torch.zeros_like(x), []
            for part in passes:
                output = denoise(cut(x, part, size), part)
                add(total, part, self.weight * output.x0)
                fractions.append(output.var)
        var = None
        if learned := [fraction for fraction in fractions if fraction is not None]:
            var = _Blend.apply(x.detach(), self.weight, passes, *learned) / self.total
        return Denoised(torch.where(self.covered, total / self.total, x), var)


class _Cut(torch.autograd.Function):
    """Cut x [B C H W] into the windows of each pass.

    Its backward pass is one sum. That of slices would make an image of zeros for each window, maybe thousands of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: list[Sequence[Window]], size: int) -> tuple[Tensor, ...]:
        ctx.like, ctx.passes = x.detach(), passes
        return tuple(cut(x, part, size) for part in passes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = torch.zeros_like(ctx.like)
        for part, gradient in zip(ctx.passes, gradients, strict=True):
            add(total, part, gradient)
        return total, None, None


class _Blend(torch.autograd.Function):
    """Add up the windows of each pass, times their weight [S S], in an image of the shape of `like` [B C H W]."""

    @staticmethod
    def forward(ctx: Any, like: Tensor, weight: Tensor, passes: list[Sequence[Window]], *outputs: Tensor) -> Tensor:
        ctx.weight, ctx.passes = weight, passes
        total = torch.zeros_like(like)
        for part, output in zip(passes, outputs, strict=True):
            add(total, part, weight * output)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(ctx.weight * cut(gradient, part, len(ctx.weight)) for part in ctx.passes)


def cut(x: Tensor, windows: Sequence[Window], size: int) -> Tensor:
    """Cut windows out of images: [B C H W] -> [N B, C S S]."""
    return torch.cat([x[..., top : top + size, left : left + size] for top, left in windows])


def add(total: Tensor, windows: Sequence[Window], crops: Tensor) -> None:
    """Add the crops [N B, C S S] to `total` [B C H W], in place, at their windows."""
    size = crops.shape[-1]
    for (top, left), crop in zip(windows, crops.chunk(len(windows)), strict=True):
        total[..., top : top + size, left : left + size] += crop


def windows(wanted: Tensor, size: int, stride: int | None = None) -> list[Window]:
    """Return the windows of `size` S that contain a wanted pixel, bool [H W] with H and W at least S, row by row.

    There may be thousands of candidates, and asking a GPU about each would wait for it each time. So the mask comes to
    the CPU once, and a table of sums answers for all windows together. It is summed along the rows alone: the table of
    a whole image would have 8 bytes a pixel, and took 25 times as long for 12 megapixels.
    """
    mask = wanted.cpu().numpy()
    rows, columns = (np.array(starts(length, size, stride or max(1, size // 2))) for length in mask.shape)
    # For each row of windows: the columns with a wanted pixel in it, and how many of them are left of each column.
    strips = np.stack([mask[top : top + size].any(axis=0) for top in rows])  # [rows W]
    before = np.pad(strips.cumsum(axis=1, dtype=np.int64), ((0, 0), (1, 0)))  # [rows W+1]
    found = before[:, columns + size] > before[:, columns]
    return [(int(rows[i]), int(columns[j])) for i, j in zip(*found.nonzero(), strict=True)]


def covered(wanted: Tensor, size: int, stride: int | None = None) -> Tensor:
    """Return the pixels of these windows, bool [H W], which are the pixels that `Tiled` denoises."""
    covered = torch.zeros_like(wanted)
    for top, left in windows(wanted, size, stride):
        covered[top : top + size, left : left + size] = True
    return covered


def starts(length: int, size: int, stride: int) -> list[int]:
    """Return the first pixels of windows of `size` that cover `length`, evenly spaced, at most `stride` apart."""
    n = math.ceil((length - size) / stride) + 1
    return [round(i * (length - size) / max(1, n - 1)) for i in range(n)]
