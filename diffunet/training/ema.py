"""The averaged weights that sampling uses, and averages of any width after training.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C: an
average by a power function of time, p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) for tau in [0, t], is named by its
relative width, the standard deviation of p over t. Two of them, stored now and then, give others by least squares.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

WIDTHS = (0.05, 0.10)
"""Relative widths of the averages that a run keeps (the paper's)."""

WIDEST = float(12**-0.5)
"""Relative width of the plain mean over the whole run, gamma = 0; those of gamma > 0 are below."""


class EMA:
    """Exponential moving average of a net's weights, with a half-life in images that ramps up from nothing.

    Karras et al. 2022, appendix F.2: the half-life is at most `ramp` of the images seen so far, so that the average
    forgets the random start; after one step it *is* the net.

    Args:
        net: what is averaged. `ema.net` is a copy of it, float32, on the same device.
        halflife: in images.
        ramp: share of the images seen.
    """

    def __init__(self, net: nn.Module, halflife: float, ramp: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.halflife, self.ramp = halflife, ramp

    def decay(self, step: int, batch: int) -> float:
        """beta of the update after step number `step` (from 0)."""
        return float(0.5 ** (batch / min(self.halflife, self.ramp * (step + 1) * batch)))

    @torch.no_grad()
    def update(self, net: nn.Module, step: int, batch: int, skipped: Tensor) -> None:
        """ema = beta * ema + (1 - beta) * net; nothing where `skipped` (float [], on the device) is 1."""
        # Gated on the device: nobody waits.
        _approach(self.net, net, torch.where(skipped > 0, 0.0, 1 - self.decay(step, batch)))


class PowerEMA:
    """Average of a net's weights by a power function of time; beta_t = (1 - 1/t)^(gamma + 1).

    With this beta the weights after update k count as the integral of p over [k - 1, k]: the average is that of weights
    that stand still between updates, with nothing left out, and so what `posthoc` assumes is exact.

    Time counts updates. A skipped step is none: neither the average nor `updates` changes, and the profile stays a
    power function (were t the step, what was before a skipped step would count too much). In a run t is then the step
    less the steps skipped; since the batch is fixed, images would only be another unit.

    Args:
        net: what is averaged. `average.net` is a copy of it, float32, on the same device.
        width: relative, in (0, `WIDEST`].
    """

    def __init__(self, net: nn.Module, width: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.width, self.gamma = width, gamma_of(width)
        self.updates = torch.zeros((), dtype=torch.int64, device=next(net.parameters()).device)

    @torch.no_grad()
    def update(self, net: nn.Module, skipped: Tensor) -> None:
        """average = beta * average + (1 - beta) * net; nothing where `skipped` (float [], on the device) is 1."""
        self.updates += skipped == 0
        share = -torch.expm1((self.gamma + 1) * torch.log1p(-1 / self.updates))  # 1 - beta without its cancellation
        _approach(self.net, net, torch.where(skipped > 0, 0.0, share))


def _approach(average: nn.Module, net: nn.Module, weight: Tensor) -> None:
    """average += weight * (net - average)."""
    mine: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(net.parameters())
    change = torch._foreach_sub(theirs, mine)
    torch._foreach_mul_(change, weight)
    torch._foreach_add_(mine, change)


@functools.cache
def gamma_of(width: float) -> float:
    """The exponent gamma of a relative width in (0, `WIDEST`].

    The largest root of (gamma+2)^2 (gamma+3) = (gamma+1) / width^2, the cubic of appendix C.
    """
    return float(max(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real))


def width_of(gamma: float) -> float:
    """The relative width of an exponent: (gamma+1)^1/2 (gamma+2)^-1 (gamma+3)^-1/2."""
    return float((gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5)


def inner_product(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> NDArray[np.float64]:
    """Integral over time of p_a p_b, of averages with these exponents at these times; arrays broadcast (appendix C)."""
    t_a, gamma_a, t_b, gamma_b = (np.asarray(each, np.float64) for each in (t_a, gamma_a, t_b, gamma_b))
    early, late = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    ratio = (early / late) ** np.where(t_a < t_b, gamma_b, gamma_a)
    return np.asarray((gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * late) * ratio)


def posthoc(snapshots: Sequence[tuple[float, float]], t: float, width: float) -> NDArray[np.float64]:
    """Coefficients by which stored averages add up to the one of a relative width at time `t`; their sum is 1.

    Least squares between the power functions (appendix C), under that condition, so that weights which stand still
    come out as they are. The paper's code divides by the sum afterwards instead.

    Args:
        snapshots: (t, width) of each, t in updates and at least 1, no two the same.

    Returns:
        float64 [n]; exactly 1 and 0 where the wanted average is among the stored.
    """
    if (t, width) in snapshots:
        return np.array([float(each == (t, width)) for each in snapshots])
    gram, target, _ = _products(snapshots, t, width)
    ones = np.ones((len(snapshots), 1))
    lagrange = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])
    return np.asarray(np.linalg.solve(lagrange, np.append(target, 1.0))[:-1])


def mismatch(
    snapshots: Sequence[tuple[float, float]], coefficients: NDArray[np.float64], t: float, width: float
) -> float:
    """|sum of coefficients * p_i - p| / |p|, p the wanted power function.

    It is the relative error of the average where weights of successive updates are independent; they are not, and then
    it is less.
    """
    gram, target, norm = _products(snapshots, t, width)
    square = float(coefficients @ gram @ coefficients - 2 * coefficients @ target) + norm
    return math.sqrt(max(0.0, square / norm))


def _products(
    snapshots: Sequence[tuple[float, float]], t: float, width: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Inner products of the stored ones [n n], of those with the wanted one [n], and of that with itself.

    In units of t, so that they are neither large nor small.
    """
    times = np.array([time / t for time, _ in snapshots])
    gammas = np.array([gamma_of(each) for _, each in snapshots])
    gamma = gamma_of(width)
    return (
        inner_product(times[:, None], gammas[:, None], times, gammas),
        inner_product(times, gammas, 1.0, gamma),
        float(inner_product(1.0, gamma, 1.0, gamma)),
    )
