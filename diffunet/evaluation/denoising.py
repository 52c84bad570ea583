"""A loss on held-out images that depends neither on the weighting nor on the noise levels that a model learned by.

So models that were trained in different ways compare by it. Such losses vary less with the seed than distances of
samples do: by 0.2 to 1.4% where those vary by 5 to 37%, in samples/ablation-digits.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffunet import draws
from diffunet.diffusion.denoiser import Denoiser

SIGMAS = tuple(float(sigma) for sigma in torch.logspace(math.log10(0.02), math.log10(20.0), 16, dtype=torch.float64))
"""The noise levels, in units of the images' range [-1, 1]: 16 from 0.02 to 20, evenly spaced in the logarithm."""


@dataclass(frozen=True)
class DenoisingError:
    """The errors of a denoiser by noise level.

    Args:
        sigmas, errors: the noise levels, and for each the mean square error of a pixel divided by that of the best
            linear denoiser which knows only the deviation of the images, sd^2 sigma^2 / (sd^2 + sigma^2).
        num: the images.
    """

    sigmas: tuple[float, ...]
    errors: tuple[float, ...]
    num: int

    def lines(self) -> list[str]:
        """Describe the errors, for people."""
        rows = [f"  {sigma:8.3f}  {error:8.4f}" for sigma, error in zip(self.sigmas, self.errors, strict=True)]
        return [
            f"loss: {self.loss:.4f}, the mean over noise levels of the logarithm of the error ({self.num} images); the "
            "error is 1 for a denoiser that knows only how much pixels vary",
            "     sigma     error",
            *rows,
        ]

    @property
    def loss(self) -> float:
        """The mean of the logarithms of `errors`, in nats: 0 for the linear denoiser, less is better."""
        return float(torch.tensor(self.errors, dtype=torch.float64).log().mean())  # of an error of 0 it is -inf


@torch.no_grad()
def denoising_error(
    denoiser: Denoiser, x0: Tensor, label: Tensor | None = None, *, sigmas: Sequence[float] = SIGMAS, seed: int = 0,
    at_once: int = 64, on_step: Callable[[int, int], None] | None = None,
) -> DenoisingError:  # fmt: skip
    """Measure how well `denoiser` takes noise out of images that it has not learned from.

    Args:
        denoiser: the denoiser, on the device of x0. One that is trained to inpaint is told no known pixels.
        x0, label: the images [N C H W] in [-1, 1], and their classes int64 [N], or None.
        sigmas, seed: the noise levels, and the seed of the noise, which is the same for every denoiser.
        at_once, on_step: the images of one pass, and what is called with (levels done, of how many).
    """
    deviation = float(x0.double().var(correction=0).sqrt())
    levels, errors = torch.tensor(sigmas, dtype=torch.float64), []
    for level, sigma in enumerate(sigmas):
        total = 0.0
        for first in range(0, len(x0), at_once):
            clean = x0[first : first + at_once]
            noise = draws.gaussian(draws.seed_of("denoising", seed), level, first, len(clean), x0.shape[1:], x0.device)
            part = None if label is None else label[first : first + at_once]
            denoised = denoiser(clean + sigma * noise, torch.full((len(clean),), sigma, device=x0.device), part).x0
            total += float((denoised.float() - clean).square().mean(dim=(1, 2, 3)).double().sum())
        errors.append(total / len(x0))
        if on_step is not None:
            on_step(level + 1, len(sigmas))
    linear = deviation**2 * levels**2 / (deviation**2 + levels**2)  # 0 of images of one colour
    return DenoisingError(tuple(sigmas), tuple((torch.tensor(errors, dtype=torch.float64) / linear).tolist()), len(x0))
