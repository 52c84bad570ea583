"""The averaged weights that sampling uses, and how averages of any width are put together after training.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C: an
average by a power function of time, p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) for tau in [0, t], is named by its
relative width, the deviation of p divided by t. Two such averages, stored now and then, give others by least squares.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

WIDTHS = (0.05, 0.10)
"""The relative widths of the averages that a run stores, as in the paper."""

WIDEST = float(12**-0.5)
"""The relative width of the plain mean over the whole run, gamma = 0; averages with gamma > 0 are less wide."""


EXACT, MOST = 256, 8
"""An average takes in the weights of each of its first 2 * `EXACT` steps, then of every second, fourth and at last of
every `MOST`th: those of at least `EXACT` moments. Each time takes three passes over memory; for the three averages of a
run that was 9% of the steps of DDPM's net on a CPU."""

Share = Callable[[int, int], float]
"""A function that returns 1 - beta, the share of new weights, for a step t and the steps n since the last time."""


def spacing(t: int) -> int:
    """Return how many steps around step t are between two times that an average takes in the weights: 1, 2, 4 or 8."""
    return int(min(MOST, 1 << max(0, (t // EXACT).bit_length() - 1)))


class Average:
    """A running average of a net's weights: average += share(t, n) * (net - average) after step t = 1, 2, ...

    That is done at the multiples of `spacing`, n steps after the time before, so that it is a function of t alone. A
    skipped step counts like any other: the weights stay, and to know of it would mean to wait for the device.

    Args:
        net: the net that is averaged. `average.net` is a copy of it, float32, on the same device. Its buffers, such as
            the statistics of a batch norm, are those of the net.
        share: gives 1 - beta, see `exponential` and `power`.
        name: "ema", or the relative width of a power average such as "0.050".
    """

    def __init__(self, net: nn.Module, share: Share, name: str = "ema") -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.share, self.name, self.updates = share, name, 0
        self._averages: list[Tensor] = list(self.net.parameters())
        self._weights: list[Tensor] = list(net.parameters())
        self._buffers = list(zip(self.net.buffers(), net.buffers(), strict=True))

    @property
    def time(self) -> int:
        """The last step whose weights are in the average."""
        return self.updates - self.updates % spacing(self.updates)

    @torch.no_grad()
    def update(self) -> None:
        """Count a step, and average the weights that the net has now into the average where it is their turn."""
        self.updates += 1
        if self.time == self.updates:
            since = spacing(self.updates - 1)
            torch._foreach_lerp_(self._averages, self._weights, self.share(self.updates, since))
            for own, buffer in self._buffers:
                own.copy_(buffer)


def exponential(halflife: float, ramp: float, batch: int) -> Share:
    """Return the share of new weights in an exponential average whose half-life grows.

    Karras et al. 2022, appendix F.2: the half-life is `halflife` images, but at most the share `ramp` of the images
    seen so far, so that the average forgets the random start; after one step it equals the net.
    """
    return lambda t, n: 1 - 0.5 ** (n * batch / min(halflife, ramp * t * batch))


def power(width: float) -> Share:
    """Return the share of new weights in an average by a power function of time.

    With beta = (1 - n/t)^(gamma + 1) weights that are taken in at t have the integral of p over [t - n, t] as their
    coefficient. The average is then exactly that of weights which do not change in between, as `posthoc` assumes. The
    relative `width` is in (0, `WIDEST`].
    """
    gamma = gamma_of(width)
    return lambda t, n: 1.0 if t == n else -math.expm1((gamma + 1) * math.log1p(-n / t))


def averages(net: nn.Module, halflife: float, ramp: float, batch: int, stored: bool) -> tuple[Average, ...]:
    """Return the average that sampling uses and, where averages are `stored` along the run, those of `WIDTHS`."""
    wide = tuple(Average(net, power(width), f"{width:.3f}") for width in WIDTHS if stored)
    return (Average(net, exponential(halflife, ramp, batch)), *wide)


@functools.cache
def gamma_of(width: float) -> float:
    """Return the exponent gamma of a relative width in (0, `WIDEST`], the largest root of the cubic of appendix C."""
    # (gamma + 2)^2 (gamma + 3) = (gamma + 1) / width^2
    return float(max(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real))


def inner_product(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> NDArray[np.float64]:
    """Return the integral over time of p_a p_b for these times and exponents (appendix C); arrays broadcast."""
    t_a, gamma_a, t_b, gamma_b = (np.asarray(each, np.float64) for each in (t_a, gamma_a, t_b, gamma_b))
    early, late = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    ratio = (early / late) ** np.where(t_a < t_b, gamma_b, gamma_a)
    return np.asarray((gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * late) * ratio)


def posthoc(snapshots: Sequence[tuple[float, float]], t: float, width: float) -> NDArray[np.float64]:
    """Return the coefficients float64 [n] by which stored averages add up to the one of a relative width at time `t`.

    They are the least squares fit between the power functions (appendix C) under the condition that their sum is 1, so
    that weights which never change come out as they are. (The paper's code divides by the sum afterwards.) Where the
    wanted average is among those that are stored, its coefficient is exactly 1 and all others are 0.

    Args:
        snapshots: (t, width) of each stored average, with t in updates and at least 1; no two are the same.
        t, width: the time and the relative width of the wanted average.
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
    """Return |sum of coefficients * p_i - p| / |p|, where p is the wanted power function; see `posthoc`.

    If the weights of successive updates were independent, this would be the relative error of the average; they are
    not, so that the error is smaller.
    """
    gram, target, norm = _products(snapshots, t, width)
    square = float(coefficients @ gram @ coefficients - 2 * coefficients @ target) + norm
    return math.sqrt(max(0.0, square / norm))


def _products(
    snapshots: Sequence[tuple[float, float]], t: float, width: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the inner products of the stored functions [n n], of these with the wanted one [n], and its own."""
    times = np.array([time / t for time, _ in snapshots])  # in units of t, so that numbers are neither large nor small
    gammas = np.array([gamma_of(stored) for _, stored in snapshots])
    gamma = gamma_of(width)
    return (
        inner_product(times[:, None], gammas[:, None], times, gammas),
        inner_product(times, gammas, 1.0, gamma),
        float(inner_product(1.0, gamma, 1.0, gamma)),
    )
