"""Samplers: each a `Step` from one sigma to the next, under one loop. They see only a denoiser and a list of sigmas.

In the coordinate x = x0 + sigma * noise the probability-flow ODE is dx/dsigma = (x - D(x, sigma)) / sigma.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Denoise, Denoised
from diffunet.draws import Noise

State = Any
"""What a multistep sampler remembers; None at the start and after a rise."""

Step = Callable[[Denoise, Tensor, Tensor, Tensor, Noise, State], tuple[Tensor, Denoised, State]]
"""(D, x, sigma, sigma_next, noise, state) -> (x at sigma_next, what D said at sigma, state)."""

Walk = Iterator[tuple[int, Tensor, Denoised]]
"""What `sample` yields after each step: its number, x at the next sigma, and what D said."""

STRIDE_MAX = 8.0
"""Steps that are polynomial in sigma take Euler where sigma / sigma_next is above this: over such a stride a straight
slope in sigma is wrong by orders of magnitude (10 steps on a cosine ladder: 16 times Euler's error on a mixture of
Gaussians, and 4e5 times on a flow ladder, by scripts/benchmark_samplers.py)."""

GROWTH_MAX = 2.0
"""Multistep steps are first order where they are longer in log sigma than this many times the step before: what the
last two points say does not reach that far, and dpm++2m and unipc would be worse than Euler. Leading and linspace
ladders have such a step, the last one above 0."""


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, step: Step, noise: Noise) -> Walk:
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


def last(steps: Walk) -> Tensor:
    """The final x of `sample`."""
    [(_, x, _)] = deque(steps, maxlen=1)
    return x


VARIANCES = ("small", "large", "learned")
"""Of an ancestral step; see `log_variance`."""


def posterior_variance(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Ho et al. 2020, eq. 7, divided by alpha_bar_{t-1}: sigma'^2 (sigma^2 - sigma'^2) / sigma^2."""
    return sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2


def log_variance(
    variance: str, sigma: Tensor, sigma_next: Tensor, fraction: Tensor | None = None, first: float = 0.0
) -> Tensor:
    """log of the variance of an ancestral step (Ho et al. 2020, section 3.2), divided by alpha_bar_{t-1}.

    Args:
        variance: "small", beta~ = `posterior_variance`, right where the data are one point; "large", beta =
            (sigma^2 - sigma'^2) (1 + sigma'^2) / (1 + sigma^2), right where they are a unit normal; "learned", between
            the logs of the two (Nichol & Dhariwal 2021, eq. 15).
        sigma, sigma_next: broadcast against `fraction`.
        fraction: of "learned", 0 (small) to 1 (large).
        first: the small variance where sigma' is 0, which the formula gives as 0 and a likelihood has no use for.

    Raises:
        ValueError: "learned" without a fraction.
    """
    assert variance in VARIANCES, variance
    small = torch.where(sigma_next > 0, posterior_variance(sigma, sigma_next), first).log()
    if variance == "small":
        return small
    large = ((sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2)).log()
    if variance == "large":
        return large
    if fraction is None:
        raise ValueError("this model has not learned the variance of its steps")
    return small + fraction * (large - small)


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


def euler_ancestral(eta: float = 1.0) -> Step:
    """Euler's step to below sigma', then noise up to it: in this coordinate DDIM with the same eta; see `euler`."""
    return euler(eta)


def ddpm(variance: str = "small") -> Step:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): the posterior's mean, and a variance of `log_variance`.

    "small" is `euler(1)`. No noise in the last step, to sigma 0.

    Raises:
        ValueError: for an unknown `variance`; in its first step, "learned" of a denoiser that has not learned it.
    """
    if variance == "small":
        return euler(eta=1.0)
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; there are {', '.join(VARIANCES)}")

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        denoised = denoise(x, sigma)
        x = denoised.x0 + (sigma_next / sigma) ** 2 * (x - denoised.x0)
        if sigma_next > 0:
            x = x + (0.5 * log_variance(variance, sigma, sigma_next, denoised.var)).exp() * noise()
        return x, denoised, None

    return step


def heun(gamma: float = 0.0, low: float = 0.0, high: float = math.inf, noise_scale: float = 1.0) -> Step:
    """Karras et al. 2022, algorithm 2: Euler's step, then the mean of the slopes at both ends. Two calls a step.

    Args:
        gamma: where low <= sigma <= high, noise lifts sigma by this share first: min(S_churn / N, sqrt(2) - 1). 0 draws
            none, and is algorithm 1.
        low, high, noise_scale: S_tmin, S_tmax, S_noise.
    """

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        if gamma > 0 and low <= sigma <= high:
            x = x + sigma * math.sqrt((1 + gamma) ** 2 - 1) * noise_scale * noise()
            sigma = sigma * (1 + gamma)
        denoised = denoise(x, sigma)
        slope = (x - denoised.x0) / sigma
        euler_x = denoised.x0 + sigma_next * slope
        if sigma_next == 0 or sigma / sigma_next > STRIDE_MAX:
            return euler_x, denoised, None
        slope_next = (euler_x - denoise(euler_x, sigma_next).x0) / sigma_next
        return x + (sigma_next - sigma) * (slope + slope_next) / 2, denoised, None

    return step


def dpmpp_2m(eta: float = 0.0) -> Step:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, and its SDE form: second order in log sigma, one call a step.

    With h = log(sigma / sigma') and D~ = D + h / (2 h_last) (D - D_last), to the middle of the step:
    x' = (sigma' / sigma) e^(-eta h) x + (1 - e^(-(1 + eta) h)) D~ + sigma' sqrt(1 - e^(-2 eta h)) noise.
    First order on the first step (no D_last yet) and on the last (h is infinite).

    Args:
        eta: 0 is the ODE, 1 the reverse SDE (SDE-DPM-Solver++(2M), Lu et al. 2022, appendix).
    """

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised.x0, denoised, None
        h = math.log(sigma / sigma_next)
        ahead = denoised.x0
        if state is not None and h <= GROWTH_MAX * state[1]:
            x0_last, h_last = state
            ahead = torch.lerp(x0_last, denoised.x0, 1 + h / (2 * h_last))
        x = (sigma_next / sigma) * math.exp(-eta * h) * x - math.expm1(-(1 + eta) * h) * ahead
        if eta > 0:
            x = x + sigma_next * math.sqrt(-math.expm1(-2 * eta * h)) * noise()
        return x, denoised, (denoised.x0, h)

    return step


def unipc(order: int = 2) -> Step:
    """UniPC-`order`, B(h) = e^h - 1, predicting D (Zhao et al. 2023, algorithms 1 and 2): one call of D a step.

    What D says where a step has led corrects that step, then takes part in the next. Lower orders until there is enough
    history, and first order on the last step.

    Args:
        order: of the predictor; with its corrector the sampler is of one order more. 2 or 3.
    """

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        denoised = denoise(x, sigma)
        here, past = (sigma, denoised.x0), []
        if state is not None:
            x_last, past = state
            x = _unipc_step(x_last, sigma, past, [here])
        if past and sigma / sigma_next > (past[0][0] / sigma) ** GROWTH_MAX:
            past = []
        past = [here, *past][:order]
        x_next = denoised.x0 if sigma_next == 0 else _unipc_step(x, sigma_next, past, [])
        return x_next, denoised, (x, past)

    return step


def _unipc_step(
    x: Tensor, sigma_next: Tensor, past: list[tuple[Tensor, Tensor]], ahead: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """From x at past[0]'s sigma to sigma_next, D taken as a polynomial of log sigma through (sigma, D) of all points.

    Zhao et al. 2023, eq. 3: the predictor without, the corrector with what is `ahead`, at sigma_next.
    """
    (sigma, x0), *others = past
    h = math.log(sigma / sigma_next)
    points = [(math.log(sigma / s) / h, each - x0) for s, each in others + ahead]
    weights = [0.5]  # of one point, as they take it for order 2; else from matching the powers of h, eq. 5
    if len(points) > 1:
        phi, b = math.expm1(-h) / -h - 1, []
        for n in range(1, len(points) + 1):
            b.append(phi * math.factorial(n) / math.expm1(-h))
            phi = phi / -h - 1 / math.factorial(n + 1)
        powers = np.vander([r for r, _ in points], increasing=True).T
        weights = np.linalg.solve(powers, b).tolist()
    mean = x0 + sum(weight / r * change for weight, (r, change) in zip(weights, points, strict=False))
    return (sigma_next / sigma) * x - math.expm1(-h) * mean
