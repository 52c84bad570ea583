"""Denoising an image larger than those that the net was trained on, by windows that overlap.

Legend: B images, C channels, H W height and width of the image, S of a window, N windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffunet.diffusion.denoiser import Denoised, Denoiser

AT_ONCE = 32
"""Windows of one pass through the net."""


class Tiled:
    """A denoiser's windows, blended: called as a `Denoiser`, of images of any size (Bar-Tal et al. 2023, eq. 5).

    Every noise level is denoised by windows whose weights fall to nothing at their edges, so what one fills in goes
    into what the others see at the next level, and no edge shows. Where no window is wanted, x comes back.

    Args:
        denoiser: of windows.
        size: S, that it was trained at.
        wanted: bool [H W], at least S each way: pixels that need an answer; all windows that have one are computed.
        stride: from a window to the next, at most.
    """

    def __init__(self, denoiser: Denoiser, size: int, wanted: Tensor, stride: int | None = None) -> None:
        self.denoiser = denoiser
        self.net = denoiser.net
        self.size = size
        self.windows = windows(wanted, size, stride)
        ramp = torch.arange(size, device=wanted.device, dtype=torch.float32).add(0.5).div(size).mul(math.pi).sin() ** 2
        self.weight = ramp[:, None] * ramp
        total = torch.zeros(wanted.shape, device=wanted.device)
        for top, left in self.windows:
            total[top : top + size, left : left + size] += self.weight
        self.covered = covered(wanted, size, stride)
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
        sums: list[Tensor | None] = [None, None]
        for some in batched(self.windows, max(1, AT_ONCE // len(x))):
            n = len(some)
            given = (
                self._cut(x, some),
                sigma if sigma.ndim == 0 else sigma.repeat(n),
                None if label is None else label.repeat(n),
                None if concat is None else self._cut(concat, some),
                None if augment is None else augment.repeat(n, 1),
            )
            # Gradients (mmps) keep what one pass computes, not what all of them do.
            each = (
                checkpoint(self._denoise, *given, use_reentrant=False, preserve_rng_state=False)
                if torch.is_grad_enabled()
                else self._denoise(*given)
            )
            for i, parts in enumerate(each):
                if parts is not None:
                    sums[i] = self._add(sums[i], parts, some, x)
        x0, var = (None if total is None else total / self.total for total in sums)
        return Denoised(x if x0 is None else torch.where(self.covered, x0, x), var)

    def _denoise(self, *given: Tensor | None) -> tuple[Tensor, Tensor | None]:
        denoised = self.denoiser(*given)
        return denoised.x0, denoised.var

    def _cut(self, x: Tensor, windows: Sequence[tuple[int, int]]) -> Tensor:
        """[B C H W] -> [N B, C S S]."""
        s = self.size
        return torch.cat([x[..., top : top + s, left : left + s] for top, left in windows])

    def _add(self, total: Tensor | None, parts: Tensor, windows: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
        """Add weighted windows [N B, C S S] to [B C H W]."""
        total = torch.zeros_like(like) if total is None else total
        s = self.size
        for (top, left), part in zip(windows, parts.chunk(len(windows)), strict=True):
            total[..., top : top + s, left : left + s] += self.weight * part
        return total


def windows(wanted: Tensor, size: int, stride: int | None = None) -> list[tuple[int, int]]:
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


def batched(windows: Sequence[tuple[int, int]], n: int) -> Iterator[Sequence[tuple[int, int]]]:
    """At most `n` at a time."""
    return (windows[first : first + n] for first in range(0, len(windows), n))
