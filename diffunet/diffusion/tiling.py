"""Denoising an image larger than those that the net was trained on, by windows that overlap.

Legend: B images, C channels, H W height and width of the image, S of a window, N windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffunet.diffusion.denoiser import Denoised, Denoiser

Window = tuple[int, int]
"""Its top and left pixel."""

AT_ONCE = 32
"""Windows of one pass through the net, where memory allows it."""


class Tiled:
    """A denoiser's windows, blended: called as a `Denoiser`, of images of any size (Bar-Tal et al. 2023, eq. 5).

    Every noise level is denoised by windows whose weights fall to nothing at their edges, so what one fills in goes
    into what the others see at the next level, and no edge shows. Where no window is wanted, x comes back.

    Args:
        denoiser: of windows.
        size: S, that it was trained at.
        wanted: bool [H W], at least S each way: pixels that need an answer; all windows that have one are computed.
        stride: from a window to the next, at most.
        at_once: windows of one pass through the net.
    """

    def __init__(
        self, denoiser: Denoiser, size: int, wanted: Tensor, stride: int | None = None, at_once: int = AT_ONCE
    ) -> None:
        self.denoiser = denoiser
        self.at_once = at_once
        self.net = denoiser.net
        self.size = size
        self.windows = windows(wanted, size, stride)
        ramp = torch.arange(size, device=wanted.device, dtype=torch.float32).add(0.5).div(size).mul(math.pi).sin() ** 2
        self.weight = ramp[:, None] * ramp
        total = torch.zeros(wanted.shape, device=wanted.device)
        for top, left in self.windows:
            total[top : top + size, left : left + size] += self.weight
        self.covered = total > 0
        self.total = torch.where(self.covered, total, 1)

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        concat: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Denoised:
        """As `Denoiser.forward`."""
        if not self.windows:
            return Denoised(x)
        passes = list(batched(self.windows, max(1, self.at_once // len(x))))
        told = (sigma, label, concat, augment)
        if torch.is_grad_enabled():  # as mmps asks for
            cuts = _Cut.apply(x, passes, self.size)
            # Gradients keep what one pass computes, not what all of them do.
            answers = [
                checkpoint(self._pass, part, some, *told, use_reentrant=False, preserve_rng_state=False)
                for part, some in zip(cuts, passes, strict=True)
            ]
            total = _Blend.apply(x, self.weight, passes, *(each.x0 for each in answers))
            fractions = [None if each.var is None else each.var.detach() for each in answers]
        else:
            total, fractions = torch.zeros_like(x), []
            for some in passes:
                each = self._pass(cut(x, some, self.size), some, *told)
                add(total, some, self.weight * each.x0)
                fractions.append(each.var)
        var: Tensor | None = None
        for some, fraction in zip(passes, fractions, strict=True):
            if fraction is not None:
                var = torch.zeros_like(x) if var is None else var
                add(var, some, self.weight * fraction)
        return Denoised(torch.where(self.covered, total / self.total, x), None if var is None else var / self.total)

    def _pass(
        self,
        parts: Tensor,
        some: Sequence[Window],
        sigma: Tensor,
        label: Tensor | None,
        concat: Tensor | None,
        augment: Tensor | None,
    ) -> Denoised:
        """What the denoiser says of windows [N B, C S S]."""
        n = len(some)
        return self.denoiser(
            parts,
            sigma if sigma.ndim == 0 else sigma.repeat(n),
            None if label is None else label.repeat(n),
            None if concat is None else cut(concat, some, self.size),
            None if augment is None else augment.repeat(n, 1),
        )


class _Cut(torch.autograd.Function):
    """x [B C H W] to the windows of each pass. Backwards it is one sum: a slice's gradient is an image of zeros, and
    there may be thousands of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: list[Sequence[Window]], size: int) -> tuple[Tensor, ...]:
        ctx.like, ctx.passes = x.detach(), passes
        return tuple(cut(x, some, size) for some in passes)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        total = torch.zeros_like(ctx.like)
        for some, slope in zip(ctx.passes, slopes, strict=True):
            add(total, some, slope)
        return total, None, None


class _Blend(torch.autograd.Function):
    """The windows of each pass, weighted [S S] and added up in an image [B C H W] like one that is given."""

    @staticmethod
    def forward(ctx: Any, like: Tensor, weight: Tensor, passes: list[Sequence[Window]], *parts: Tensor) -> Tensor:
        ctx.weight, ctx.passes = weight, passes
        total = torch.zeros_like(like)
        for some, part in zip(passes, parts, strict=True):
            add(total, some, weight * part)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *(ctx.weight * cut(slope, some, len(ctx.weight)) for some in ctx.passes)


def cut(x: Tensor, some: Sequence[Window], size: int) -> Tensor:
    """[B C H W] -> [N B, C S S]."""
    return torch.cat([x[..., top : top + size, left : left + size] for top, left in some])


def add(total: Tensor, some: Sequence[Window], parts: Tensor) -> None:
    """Add windows [N B, C S S] to [B C H W], in place."""
    size = parts.shape[-1]
    for (top, left), part in zip(some, parts.chunk(len(some)), strict=True):
        total[..., top : top + size, left : left + size] += part


def windows(wanted: Tensor, size: int, stride: int | None = None) -> list[Window]:
    """(top, left) of the windows that have a wanted pixel, bool [H W]."""
    rows, columns = (starts(length, size, stride or max(1, size // 2)) for length in wanted.shape)
    return [(top, left) for top, left in product(rows, columns) if wanted[top : top + size, left : left + size].any()]


def covered(wanted: Tensor, size: int, stride: int | None = None) -> Tensor:
    """bool [H W]: the pixels of those windows, the only ones of which `Tiled` says anything."""
    covered = torch.zeros_like(wanted)
    for top, left in windows(wanted, size, stride):
        covered[top : top + size, left : left + size] = True
    return covered


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows of `size` begin that cover `length`, evenly, at most `stride` apart."""
    n = math.ceil((length - size) / stride) + 1
    return [round(i * (length - size) / max(1, n - 1)) for i in range(n)]


def batched(windows: Sequence[Window], n: int) -> Iterator[Sequence[Window]]:
    """At most `n` at a time."""
    return (windows[first : first + n] for first in range(0, len(windows), n))
