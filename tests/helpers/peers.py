"""Nets and noise to give to both diffunet and another library of diffusion, and how far the two results lie apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from diffunet.diffusion.denoiser import Target
from diffunet.nn.unet import UNet

MEANS, WEIGHTS, SD = (-1.1, 0.2, 1.2), (0.5, 0.2, 0.3), 0.35
"""Means, shares and common deviation of three normals: their mixture is the distribution of every pixel, whose denoised
image D is nonlinear and yet known exactly, without training."""


def mixture(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the denoised image E[x0 | x], x0 being drawn from the mixture; `sigma` broadcasts against x."""
    mean, weight = (x.new_tensor(values).reshape(-1, *[1] * x.ndim) for values in (MEANS, WEIGHTS))
    variance = SD**2 + sigma**2
    share = (weight.log() - (x - mean) ** 2 / (2 * variance)).softmax(0)
    return (share * (mean + SD**2 / variance * (x - mean))).sum(0)


class ClosedForm(nn.Module):
    """A perfectly trained net: it predicts the `target` that belongs to the mixture's D, from c_in * x and c_noise.

    Args:
        target: what the net predicts.
        level: the function from c_noise [B] to sigma [B].
        learned_variance: whether the net has twice the channels, the second half a smooth function of its input within
            -1 and 1.
    """

    def __init__(self, target: Target, level: Callable[[Tensor], Tensor], learned_variance: bool = False) -> None:
        super().__init__()
        self.target, self.level, self.learned_variance = target, level, learned_variance

    def forward(self, x: Tensor, c_noise: Tensor, label: object = None, augment: object = None) -> Tensor:
        sigma = self.level(c_noise).to(x.dtype)[:, None, None, None]
        noisy = x / self.target.c_in(sigma)
        answer = (mixture(noisy, sigma) - self.target.c_skip(sigma) * noisy) / self.target.c_out(sigma)
        return torch.cat([answer, torch.sin(3 * x)], dim=1) if self.learned_variance else answer


def unet(dtype: torch.dtype, learned_variance: bool = False) -> UNet:
    """Return a small UNet with random weights, also where they start at zero, so that its output is of order 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, 2 if learned_variance else 1, channels=8, multipliers=(1, 2), num_blocks=1, attention_levels=(1,),
                   head_channels=8)  # fmt: skip
        for weight in net.parameters():
            if weight.ndim > 1 and not weight.any():
                torch.nn.init.kaiming_normal_(weight.data)
    return net.to(dtype).eval()


def noises(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return fixed draws that look normal, the same on every machine: quantiles of the golden ratio's sequence."""
    k = torch.arange(1, count * math.prod(shape) + 1, dtype=torch.float64)
    draws = torch.special.ndtri((k * (math.sqrt(5) - 1) / 2) % 1)
    return list(draws.reshape(count, *shape).to(dtype).unbind())


def one_by_one(draws: list[Tensor]) -> Callable[..., Tensor]:
    """Return a function that gives the draws in turn, whatever it is called with."""
    rest: Iterator[Tensor] = iter(draws)
    return lambda *_, **__: next(rest)


def difference(ours: list[Tensor], theirs: list[Tensor], sigmas: Tensor) -> float:
    """Return the largest difference of two samplings, in units of each level's own deviation sqrt(1 + sigma^2).

    Args:
        ours, theirs: the noisy images after every step, so at `sigmas[1:]`.
        sigmas: the noise levels that both visited.
    """
    assert len(ours) == len(theirs) == len(sigmas) - 1
    scale = (1 + sigmas[1:].double() ** 2).rsqrt()
    return max(((a - b).abs().max() * s).item() for a, b, s in zip(ours, theirs, scale, strict=True))
