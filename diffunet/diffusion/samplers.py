"""Samplers: each a `Step` from one sigma to the next, under one loop. They see only a denoiser and a list of sigmas.

In the coordinate x = x0 + sigma * noise the probability-flow ODE is dx/dsigma = (x - D(x, sigma)) / sigma.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Denoise, Denoised
from diffunet.draws import Noise

State = Any
"""What a multistep sampler remembers; None at the start and after a rise."""

Step = Callable[[Denoise, Tensor, Tensor, Tensor, Noise, State], tuple[Tensor, Denoised, State]]
"""(D, x, sigma, sigma_next, noise, state) -> (x at sigma_next, what D said at sigma, state)."""

STRIDE_MAX = 8.0
"""Steps that are polynomial in sigma take Euler where sigma / sigma_next is above this: over such a stride a straight
slope in sigma is wrong by orders of magnitude (10 steps on a cosine ladder: 100 times Euler's error)."""


def sample(
    denoise: Denoise, x: Tensor, sigmas: Tensor, step: Step, noise: Noise
) -> Iterator[tuple[int, Tensor, Denoised]]:
    """Walk x [B C H W] down `sigmas` [n + 1], yielding (i, x at sigmas[i + 1], D at sigmas[i]): watch, or stop.

    Where sigma rises (RePaint's jumps back), noise is added to match and no net is called; D is then the last one. A
    multistep sampler's memory does not reach across.
    """
    state: State = None
    denoised = Denoised(x)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas.unbind())):
        if sigma_next > sigma:
            x, state = x + (sigma_next**2 - sigma**2).sqrt() * noise(), None
        else:
            x, denoised, state = step(denoise, x, sigma, sigma_next, noise, state)
        yield i, x, denoised


def last(steps: Iterator[tuple[int, Tensor, Denoised]]) -> Tensor:
    """The final x of `sample`."""
    [(_, x, _)] = deque(steps, maxlen=1)
    return x


def posterior_variance(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Ho et al. 2020, eq. 7, divided by alpha_bar_{t-1}: sigma'^2 (sigma^2 - sigma'^2) / sigma^2."""
    return sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2


def euler(eta: float = 0.0) -> Step:
    """DDIM (Song et al. 2020, eq. 12): eta = 0 is Euler's step of the ODE, eta = 1 is DDPM with the small variance.

    x' = D + sqrt(sigma'^2 - s^2) (x - D) / sigma + s noise, with s = eta sqrt(posterior variance) (eq. 16).
    """

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        denoised = denoise(x, sigma)
        variance = eta**2 * posterior_variance(sigma, sigma_next)
        x = denoised.x0 + (sigma_next**2 - variance).sqrt() / sigma * (x - denoised.x0)
        if variance > 0:
            x = x + variance.sqrt() * noise()
        return x, denoised, None

    return step


def ddim(eta: float = 0.0) -> Step:
    """DDIM under its own name; see `euler`."""
    return euler(eta)


def ddpm(variance: str = "small") -> Step:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the posterior's mean, one of the variances of section 3.2.

    small: beta~ = sigma'^2 (sigma^2 - sigma'^2) / sigma^2, right where the data are one point; this is `euler(1)`.
    large: beta = (sigma^2 - sigma'^2) (1 + sigma'^2) / (1 + sigma^2), right where the data are a unit normal.
    Both are divided by alpha_bar_{t-1}. No noise in the last step, to sigma 0.

    Raises:
        ValueError: for an unknown `variance`.
    """
    if variance == "small":
        return euler(eta=1.0)
    if variance != "large":
        raise ValueError(f"unknown variance {variance!r}; there are small and large")

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        denoised = denoise(x, sigma)
        x = denoised.x0 + (sigma_next / sigma) ** 2 * (x - denoised.x0)
        if sigma_next > 0:
            large = (sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2)
            x = x + large.sqrt() * noise()
        return x, denoised, None

    return step


def heun() -> Step:
    """Karras et al. 2022, algorithm 1: Euler's step, then the mean of the slopes at both ends. Two calls a step."""

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        denoised = denoise(x, sigma)
        slope = (x - denoised.x0) / sigma
        euler_x = denoised.x0 + sigma_next * slope
        if sigma_next == 0 or sigma / sigma_next > STRIDE_MAX:
            return euler_x, denoised, None
        slope_next = (euler_x - denoise(euler_x, sigma_next).x0) / sigma_next
        return x + (sigma_next - sigma) * (slope + slope_next) / 2, denoised, None

    return step


def dpmpp_2m() -> Step:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: second order in log sigma, one call of D a step.

    With h = log(sigma / sigma') and r = h_last / h: x' = (sigma' / sigma) x - (e^-h - 1) ((1 + 1/2r) D - 1/2r D_last);
    first order on the first step (no D_last yet) and on the last (h is infinite).
    """

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised.x0, denoised, None
        h = math.log(sigma / sigma_next)
        ahead = denoised.x0
        if state is not None:
            x0_last, h_last = state
            ahead = torch.lerp(x0_last, denoised.x0, 1 + h / (2 * h_last))
        x = (sigma_next / sigma) * x - math.expm1(-h) * ahead
        return x, denoised, (denoised.x0, h)

    return step
