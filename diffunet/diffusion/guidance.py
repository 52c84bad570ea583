"""From denoisers to a denoiser: guidance, which goes further the way that the better of two went, and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Conditional, Denoise, Denoised, bind


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

    def __init__(self, denoiser: Conditional, label: Tensor, concat: Tensor | None = None) -> None:
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
    rescale: float = 0.0,
) -> Denoise:
    """weaker + scale * (main - weaker): classifier-free guidance and autoguidance are this one function.

    Args:
        pair: see `Pair`; a plain function will do.
        scale: 1 is off: `main` alone.
        interval: guide only where low < sigma <= high (Kynkäänniemi et al. 2024); outside it only `main` runs.
        rescale: 0 to 1, how far each image's deviation is brought back to that of `main`, against colours that are too
            strong (Lin et al. 2023, section 3.4, there of the net's output, here of the clean image).
    """
    main: Denoise = getattr(pair, "main", lambda x, sigma: pair(x, sigma)[0])
    if scale == 1:
        return main

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        if interval is not None and not interval[0] < sigma.max() <= interval[1]:
            return main(x, sigma)
        better, weaker = pair(x, sigma)
        x0 = torch.lerp(weaker.x0, better.x0, scale)
        if rescale:
            all_but_batch = tuple(range(1, x0.ndim))
            wanted, spread = (each.std(all_but_batch, keepdim=True) for each in (better.x0, x0))
            ratio = torch.where(spread > 0, wanted / spread, 1)  # an even image stays
            x0 = x0 * (1 + rescale * (ratio - 1))
        return better._replace(x0=x0)

    return denoise


def threshold(denoise: Denoise, kind: str, percentile: float = 0.995) -> Denoise:
    """A denoiser that stays within the range of images.

    Args:
        denoise: whose x0 is clipped.
        kind: "static", to [-1, 1] (Ho et al. 2020); "dynamic" (Saharia et al. 2022, section 2.3): to [-s, s], s being
            this percentile of each image's |x0| and at least 1, and divided by s.
        percentile: 0 to 1.

    Raises:
        ValueError: for an unknown `kind`.
    """
    if kind not in ("static", "dynamic"):
        raise ValueError(f"unknown threshold {kind!r}; there are static and dynamic")

    def clipped(x: Tensor, sigma: Tensor) -> Denoised:
        denoised = denoise(x, sigma)
        if kind == "static":
            return denoised._replace(x0=denoised.x0.clamp(-1, 1))
        size = denoised.x0.abs().flatten(1)  # torch.quantile refuses large images
        s = size.kthvalue(max(1, math.ceil(percentile * size.shape[1])), dim=1).values.clamp(min=1)[:, None, None, None]
        return denoised._replace(x0=denoised.x0.clamp(-s, s) / s)

    return clipped
