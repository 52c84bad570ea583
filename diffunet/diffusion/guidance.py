"""Guidance: from two denoisers, one that goes further the way that the better one went."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Denoise, Denoised, Denoiser, bind


class Pair:
    """`pair(x, sigma) -> (main, weaker)`, and `pair.main(x, sigma)` alone.

    Args:
        main: the better denoiser.
        weaker: the worse one: without label, less trained, smaller (autoguidance, Karras et al. 2024).
    """

    def __init__(self, main: Denoise, weaker: Denoise) -> None:
        self.main = main
        self.weaker = weaker

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Denoised, Denoised]:
        return self.main(x, sigma), self.weaker(x, sigma)


class WithAndWithoutLabel(Pair):
    """One net with its labels and with the null label, in a single forward of 2B (Ho & Salimans 2022)."""

    def __init__(self, denoiser: Denoiser, label: Tensor, concat: Tensor | None = None) -> None:
        self.main = bind(denoiser, label, concat)
        null = torch.full_like(label, int(denoiser.net.null_label))  # type: ignore[arg-type]
        both = None if concat is None else torch.cat([concat, concat])
        self.both = bind(denoiser, torch.cat([label, null]), both)

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Denoised, Denoised]:
        twice = self.both(torch.cat([x, x]), sigma if sigma.ndim == 0 else torch.cat([sigma, sigma]))
        main, weaker = zip(*(((None, None) if part is None else part.chunk(2)) for part in twice), strict=True)
        return Denoised(*main), Denoised(*weaker)


def guided(
    pair: Callable[[Tensor, Tensor], tuple[Denoised, Denoised]],
    scale: float,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """weaker + scale * (main - weaker): classifier-free guidance and autoguidance are this one function.

    Args:
        pair: see `Pair`; a plain function will do.
        scale: 1 is off: `main` alone.
        interval: guide only where low < sigma <= high (Kynkäänniemi et al. 2024); outside it only `main` runs.
    """
    main: Denoise = getattr(pair, "main", lambda x, sigma: pair(x, sigma)[0])
    if scale == 1:
        return main

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        if interval is not None and not interval[0] < sigma.max() <= interval[1]:
            return main(x, sigma)
        better, weaker = pair(x, sigma)
        return better._replace(x0=torch.lerp(weaker.x0, better.x0, scale))

    return denoise
