"""Functions that make a denoiser from denoisers: clipping, and guidance, which extrapolates from the output of a weaker
denoiser beyond that of a better one."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Conditional, Denoise, Denoised, bind


class Pair:
    """Two denoisers: `pair(x, sigma)` returns the outputs of both, `pair.main(x, sigma)` only that of the better one.

    `weaker` is for instance without label, less trained or smaller (autoguidance, Karras et al. 2024).
    """

    def __init__(self, main: Denoise, weaker: Denoise) -> None:
        self.main, self.weaker = main, weaker

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Denoised, Denoised]:
        return self.main(x, sigma), self.weaker(x, sigma)


class WithAndWithoutLabel(Pair):
    """One net with its labels and with the null label, in a single forward pass of 2 B images (Ho & Salimans 2022)."""

    def __init__(self, denoiser: Conditional, label: Tensor, null_label: int, concat: Tensor | None = None) -> None:
        self.main = bind(denoiser, label, concat)
        null = torch.full_like(label, null_label)
        self.both = bind(denoiser, torch.cat([label, null]), None if concat is None else torch.cat([concat, concat]))

    def __call__(self, x: Tensor, sigma: Tensor) -> tuple[Denoised, Denoised]:
        outputs = self.both(torch.cat([x, x]), sigma if sigma.ndim == 0 else torch.cat([sigma, sigma]))
        main, weaker = zip(*(((None, None) if part is None else part.chunk(2)) for part in outputs), strict=True)
        return Denoised(*main), Denoised(*weaker)


def guided(
    pair: Callable[[Tensor, Tensor], tuple[Denoised, Denoised]], scale: float,
    interval: tuple[float, float] | None = None, rescale: float = 0.0,
) -> Denoise:  # fmt: skip
    """Return the denoiser weaker + scale * (main - weaker), which is classifier-free guidance and autoguidance alike.

    Args:
        pair, scale: a `Pair`, or a function that is called like one; 1 is no guidance, and returns `main`.
        interval: guide only where low < sigma <= high (Kynkäänniemi et al. 2024); elsewhere only `main` is called.
        rescale: 0 to 1, how far the standard deviation of each image is brought back to that of `main`, against
            oversaturated colours (Lin et al. 2023, section 3.4, who rescale the net's output; this is the clean image).
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
            std_main, std = (image.std(tuple(range(1, x0.ndim)), keepdim=True) for image in (better.x0, x0))
            ratio = torch.where(std > 0, std_main / std, 1)  # An image of one colour stays as it is.
            x0 = x0 * (1 + rescale * (ratio - 1))
        return better._replace(x0=x0)

    return denoise


def threshold(denoise: Denoise, kind: str, percentile: float = 0.995) -> Denoise:
    """Return a denoiser whose output stays within the range of images.

    Kind "static" clips x0 to [-1, 1] (Ho et al. 2020); "dynamic" clips it to [-s, s] and divides by s, where s is the
    `percentile`, 0 to 1, of |x0| of each image, and at least 1 (Saharia et al. 2022, section 2.3).

    Raises:
        ValueError: for an unknown `kind`.
    """
    if kind not in ("static", "dynamic"):
        raise ValueError(f"unknown threshold {kind!r}; there are static and dynamic")

    def clipped(x: Tensor, sigma: Tensor) -> Denoised:
        denoised = denoise(x, sigma)
        if kind == "static":
            return denoised._replace(x0=denoised.x0.clamp(-1, 1))
        size = denoised.x0.abs().flatten(1)  # Not with torch.quantile, which refuses large images.
        s = size.kthvalue(max(1, math.ceil(percentile * size.shape[1])), dim=1).values.clamp(min=1)[:, None, None, None]
        return denoised._replace(x0=denoised.x0.clamp(-s, s) / s)

    return clipped
