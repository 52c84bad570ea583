"""Samplers: each is a `Step` from one noise level to the next, and `sample` is the loop that all of them share.

A sampler sees only a denoiser D and a ladder of noise levels. In the coordinate x = x0 + sigma * noise the
probability-flow ODE is dx/dsigma = (x - D(x, sigma)) / sigma.

Legend: B batch, C channels, H W height and width, n number of steps. A step leads from x at sigma to x' at sigma'.
"""

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
"""What a multistep sampler keeps from one step to the next; None at the start and after a rise of sigma."""

Point = tuple[Tensor, Tensor]
"""(sigma [], the clean image [B C H W] that D returned there)."""

StepResult = tuple[Tensor, Denoised, State]
"""(x at sigma_next, the output of D at sigma, the state for the next step)."""

Step = Callable[[Denoise, Tensor, Tensor, Tensor, Noise, State], StepResult]
"""(D, x [B C H W], sigma [], sigma_next [], noise, state) -> StepResult."""

Walk = Iterator[tuple[int, Tensor, Denoised]]
"""The iterator over the steps that `sample` returns: (number of the step, x after it, the output of D in it)."""

STRIDE_MAX = 8.0
"""`heun` takes Euler's step where sigma / sigma' is larger than this. It assumes a slope that changes linearly in
sigma, which fails over so long a step: with 10 steps its error on a mixture of Gaussians is 16 times that of Euler on a
cosine ladder, and 4e5 times on a flow ladder (scripts/benchmark_samplers.py)."""

GROWTH_MAX = 2.0
"""`dpmpp_2m` and `unipc` take a first-order step where the step is more than this many times as long, in log sigma, as
the one before: so far beyond the past steps, extrapolating D is worse than Euler. The last step but one of the ladders
"leading" and "linspace" is so long."""


def sample(denoise: Denoise, x: Tensor, sigmas: Tensor, step: Step, noise: Noise) -> Walk:
    """Take x [B C H W] down the ladder `sigmas` [n + 1] and yield (i, x at sigmas[i + 1], D's output at sigmas[i]).

    The caller can watch each step, or stop. Where sigma rises (RePaint's jumps back), noise is added to match, D is not
    called and its last output is yielded again. The state of a multistep sampler is dropped, as x is on a new path.
    """
    denoised, state = Denoised(x), None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas.unbind())):
        if sigma_next > sigma:
            x, state = x + (sigma_next**2 - sigma**2).sqrt() * noise(), None
        else:
            x, denoised, state = step(denoise, x, sigma, sigma_next, noise, state)
        yield i, x, denoised


def last(steps: Walk) -> Tensor:
    """Run `sample` to its end and return the final x."""
    return deque(steps, maxlen=1)[0][1]


VARIANCES = ("small", "large", "learned")
"""The kinds of variance of an ancestral step; see `log_variance`."""


def posterior_variance(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Return Ho et al. 2020, eq. 7, divided by alpha_bar_{t-1}: sigma'^2 (sigma^2 - sigma'^2) / sigma^2."""
    return sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2


def log_variance(
    variance: str, sigma: Tensor, sigma_next: Tensor, fraction: Tensor | None = None, first: float = 0.0
) -> Tensor:
    """Return the log of the variance of an ancestral step from sigma to sigma_next (Ho et al. 2020, section 3.2).

    The paper's variances are of x_{t-1}; here x is x_{t-1} / sqrt(alpha_bar_{t-1}), and they are divided by
    alpha_bar_{t-1}. The log is what a net learns, and what the variational bound needs.

    Args:
        variance: "small" is beta~ (`posterior_variance`), exact for data that are a single point; "large" is beta,
            (sigma^2 - sigma'^2) (1 + sigma'^2) / (1 + sigma^2), exact for data that are standard normal; "learned"
            interpolates between the logs of these two bounds (Nichol & Dhariwal 2021, eq. 15).
        sigma, sigma_next: noise levels that broadcast against `fraction`.
        fraction: the net's output for "learned", from 0 (small) to 1 (large).
        first: replaces the small variance where sigma_next is 0: the formula gives 0 there, whose log is infinite.

    Raises:
        ValueError: for "learned" without a fraction.
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
    """Return DDIM (Song et al. 2020, eq. 12): eta = 0 is Euler's step of the ODE, eta = 1 DDPM with the small variance.

    x' = D + sqrt(sigma'^2 - s^2) (x - D) / sigma + s noise, with s = eta sqrt(posterior variance) (eq. 16).
    """

    def step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State) -> StepResult:
        denoised = denoise(x, sigma)
        variance = eta**2 * posterior_variance(sigma, sigma_next)
        x = denoised.x0 + (sigma_next**2 - variance).clamp(min=0).sqrt() / sigma * (x - denoised.x0)
        if variance > 0:
            x = x + variance.sqrt() * noise()
        return x, denoised, None

    return step


ddim = euler
"""DDIM under its own name."""


def euler_ancestral(eta: float = 1.0) -> Step:
    """Return Euler's step to below sigma', followed by noise up to sigma'. In this coordinate that is `euler(eta)`."""
    return euler(eta)


def ddpm(variance: str = "small") -> Step:
    """Return ancestral sampling (Ho et al. 2020, algorithm 2): the posterior's mean, and a variance of `log_variance`.

    x' = D + (sigma' / sigma)^2 (x - D) + sqrt(variance) noise, the last step without noise; "small" is `euler(eta=1)`.

    Raises:
        ValueError: for an unknown `variance`, and in the first step for "learned" with a denoiser that has none.
    """
    if variance == "small":
        return euler(eta=1.0)
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; there are {', '.join(VARIANCES)}")

    def step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State) -> StepResult:
        denoised = denoise(x, sigma)
        x = denoised.x0 + (sigma_next / sigma) ** 2 * (x - denoised.x0)
        if sigma_next > 0:
            x = x + (0.5 * log_variance(variance, sigma, sigma_next, denoised.var)).exp() * noise()
        return x, denoised, None

    return step


def heun(gamma: float = 0.0, low: float = 0.0, high: float = math.inf, noise_scale: float = 1.0) -> Step:
    """Return Heun's method (Karras et al. 2022, algorithm 2): Euler's step, repeated with the mean slope of its ends.

    A step calls D twice, unless it is Euler's alone: the last one, and where sigma / sigma' is above `STRIDE_MAX`.
    Where low <= sigma <= high, noise first raises sigma by the fraction `gamma`, min(S_churn / N, sqrt(2) - 1); 0 draws
    no noise, which is algorithm 1. `low`, `high` and `noise_scale` are S_tmin, S_tmax and S_noise.
    """

    def step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State) -> StepResult:
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
    """Return DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) or its SDE form, with one call of D in each step.

    It is of second order in log sigma. With h = log(sigma / sigma'), and D~ = D + h / (2 h_last) (D - D_last), which is
    D extrapolated to the middle of the step,

        x' = (sigma' / sigma) e^(-eta h) x + (1 - e^(-(1 + eta) h)) D~ + sigma' sqrt(1 - e^(-2 eta h)) noise.

    D~ is D, and the step of first order, in three cases: in the first step, which has no D_last; in a step that is much
    longer than the one before (`GROWTH_MAX`); and in the last, to sigma 0, whose h is infinite and has no middle.
    An `eta` of 0 is the ODE, 1 the reverse SDE (SDE-DPM-Solver++(2M), Lu et al. 2022, appendix).
    """

    def step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State) -> StepResult:
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            return denoised.x0, denoised, None
        h, x0_middle = math.log(sigma / sigma_next), denoised.x0
        if state is not None and h <= GROWTH_MAX * state[1]:
            x0_last, h_last = state
            x0_middle = torch.lerp(x0_last, x0_middle, 1 + h / (2 * h_last))
        x = (sigma_next / sigma) * math.exp(-eta * h) * x - math.expm1(-(1 + eta) * h) * x0_middle
        if eta > 0:
            x = x + sigma_next * math.sqrt(-math.expm1(-2 * eta * h)) * noise()
        return x, denoised, (denoised.x0, h)

    return step


def unipc(order: int = 2) -> Step:
    """Return UniPC-`order`, a predictor and corrector (Zhao et al. 2023, algorithms 1 and 2), for B(h) = e^h - 1.

    The order, 2 or 3, is that of the predictor; with its corrector the sampler is of one order more. D is called once
    in each step, at the point to which the last step has led. Its output first corrects that point (UniC), then takes
    part in the prediction of the next one (UniP), which uses the outputs at the last `order` points. The prediction is
    of first order, from the newest output alone, in the same three cases as that of `dpmpp_2m`.
    """

    def step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State) -> StepResult:
        denoised = denoise(x, sigma)
        here, past = (sigma, denoised.x0), []
        if state is not None:
            x_last, past = state
            x = _unipc_step(x_last, sigma, past, [here])
        if past and sigma / sigma_next > (past[0][0] / sigma) ** GROWTH_MAX:
            past = []
        past = [here, *past][:order]
        return denoised.x0 if sigma_next == 0 else _unipc_step(x, sigma_next, past, []), denoised, (x, past)

    return step


def _unipc_step(x: Tensor, sigma_next: Tensor, past: list[Point], ahead: list[Point]) -> Tensor:
    """Return x at sigma_next, from x at past[0]'s sigma, as if D were a polynomial through all points (sigma, D).

    Let s be the distance in log sigma from the start of the step, from 0 to h. The ODE is dx/ds = D - x, and so

        x' = e^-h x + integral of e^(s - h) D ds, from 0 to h.

    With D a polynomial in r = s / h, through D_0 at r = 0 and D_m at r_m, m = 1 ... p, it is Zhao et al. 2023, eq. 3,

        x' = e^-h x + (1 - e^-h) (D_0 + sum over m of w_m (D_m - D_0) / r_m).

    The weights w, the paper's a, solve eq. 5, which makes the integral exact for every power of r: for n = 1 ... p, the
    sum over m of r_m^(n-1) w_m is b_n, the mean of r^n over the step, weighted by e^s. Without `ahead` this is the
    predictor UniP; with one point `ahead`, at sigma_next (r = 1), it is the corrector UniC.
    """
    (sigma, x0), *others = past
    h = math.log(sigma / sigma_next)
    points = [(math.log(sigma / s) / h, d - x0) for s, d in others + ahead]  # (r_m, D_m - D_0)
    weights = [0.5]  # For a single point the paper takes the limit of b_1 for small h, which is of the same order.
    if len(points) > 1:
        # b_n = n! phi / (e^z - 1) with z = -h and phi = z phi_{n+1}(z), where phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z.
        phi, b = math.expm1(-h) / -h - 1, []
        for n in range(1, len(points) + 1):
            b.append(phi * math.factorial(n) / math.expm1(-h))
            phi = phi / -h - 1 / math.factorial(n + 1)
        powers = np.vander([r for r, _ in points], increasing=True).T
        weights = np.linalg.solve(powers, b).tolist()
    mean = x0 + sum(weight / r * change for weight, (r, change) in zip(weights, points, strict=False))
    return (sigma_next / sigma) * x - math.expm1(-h) * mean
