"""Filling in masked images with a model that was never trained for it: functions from a denoiser to a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Denoise, Denoised
from diffunet.draws import Noise


def keep_known(denoise: Denoise, known: Tensor, keep: Tensor, noise: Noise | None = None) -> Denoise:
    """A denoiser that knows part of the image: known pixels are pasted into what D says.

    Args:
        known: [B C H W]; what it holds where `keep` is False is never used.
        keep: bool, broadcasts to [B C H W]; True where pixels are known.
        noise: where given, the known part of D's *input* is known + sigma * noise() too (RePaint, Lugmayr et al. 2022,
            algorithm 1, lines 4 to 7): for first-order samplers. Where None, the sampler itself carries the known
            region: its noise shrinks towards the known pixels along the ODE; higher-order samplers keep their order.
    """

    def denoise_rest(x: Tensor, sigma: Tensor) -> Denoised:
        if noise is not None:
            spread = sigma if sigma.ndim == 0 else sigma[:, None, None, None]
            x = torch.where(keep, known + spread * noise(), x)
        denoised = denoise(x, sigma)
        return denoised._replace(x0=torch.where(keep, known, denoised.x0))

    return denoise_rest


def resample_ladder(sigmas: Tensor, jump_length: int = 10, jump_n_sample: int = 10) -> Tensor:
    """RePaint's walk (Lugmayr et al. 2022, section 4.2): down `sigmas` [n + 1], with jumps back up that harmonise.

    Each time that the walk has come down `jump_length` steps it goes up by as many and down again, until it was there
    `jump_n_sample` times; then on. With n = 250 and 10, 10 that is 2,410 descents and 2,160 rises, as published.

    Raises:
        ValueError: for a length or count below 1.
    """
    if jump_length < 1 or jump_n_sample < 1:
        raise ValueError("jump_length and jump_n_sample are at least 1")
    n = len(sigmas) - 1
    walk: list[int] = []
    for t in range(n - 1, -1, -1):  # t counts the steps left after this one, as the paper's timestep does
        walk.append(t)
        if t % jump_length == 0 and t < n - jump_length:
            up = list(range(t + 1, t + jump_length + 1))
            walk += (up + up[-2::-1] + [t]) * (jump_n_sample - 1)
    walk.append(-1)
    return sigmas[[n - 1 - t for t in walk]]
