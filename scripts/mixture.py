"""A two-dimensional mixture of Gaussians, about which everything is known: what samplers are measured on.

Its exact denoiser, density and samples, and the exact probability-flow ODE. Points are images [N 2 1 1].

Legend: N points, K components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Denoised

TOP, BOTTOM = 1e9, 1e-7
"""The sigmas between which the ODE is solved: where flow starts, and where less than 1e-12 is left to go."""


class Mixture:
    """sum_k w_k N(m_k, C_k) in the plane, and what noise makes of it.

    Args:
        weights: w, [K], of sum 1.
        means: m, [K 2].
        covariances: C, [K 2 2].
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means, self.covariances = weights, means, covariances
        self._formulas = lru_cache(maxsize=4096)(self._worked_out)  # a ladder's sigmas come again with every sampler

    def _worked_out(self, sigma: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """With z = (a^2, ab, b^2, a, b) of a point (a, b) of x.

        log w_k N(x; m_k, C_k + sigma^2) = constants [K 1] + quadratics [K 5] z, and means_k + maps_k x, the mean of x0
        if x is of component k, as affine [6 K]: the entries of the 2x2 map, then the shift.
        """
        noisy = self.covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
        inverse = torch.linalg.inv(noisy)
        pull = (inverse @ self.means[:, :, None]).squeeze(2)
        constants = self.weights.log() - 0.5 * (noisy.logdet() + (self.means * pull).sum(1)) - math.log(2 * math.pi)
        a, ab, b = inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]
        quadratics = torch.stack([-a / 2, -ab, -b / 2, pull[:, 0], pull[:, 1]], 1)
        maps = self.covariances @ inverse
        shifts = self.means - (maps @ self.means[:, :, None]).squeeze(2)
        affine = torch.cat([maps.flatten(1), shifts], 1).T
        return constants[:, None].to(dtype), quadratics.to(dtype), affine.to(dtype)

    def _log_parts(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log w_k N(x; m_k, C_k + sigma^2), [K N]."""
        a, b = x.flatten(1).unbind(1)
        constants, quadratics, _ = self._formulas(sigma.item(), x.dtype)
        return torch.addmm(constants, quadratics, torch.stack([a * a, a * b, b * b, a, b]))

    def denoise(self, x: Tensor, sigma: Tensor) -> Denoised:
        """E[x0 | x] = sum_k r_k (m_k + C_k (C_k + sigma^2)^-1 (x - m_k)), r_k being the chance that x is of k."""
        a, b = x.flatten(1).unbind(1)
        share = torch.softmax(self._log_parts(x, sigma), 0)
        aa, ab, ba, bb, a0, b0 = (self._formulas(sigma.item(), x.dtype)[2] @ share).unbind()
        return Denoised(torch.stack([aa * a + ab * b + a0, ba * a + bb * b + b0], 1)[:, :, None, None])

    def log_density(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(x; sigma), [N]."""
        return torch.logsumexp(self._log_parts(x, sigma), 0)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Exact samples, float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, 2, 1, generator=generator, dtype=torch.float64)
        return self.means[k, :, None, None] + (torch.linalg.cholesky(self.covariances)[k] @ normal)[..., None]

    def trajectory(self, noise: Tensor, sigmas: Iterable[float], tolerance: float = 1e-12) -> dict[float, Tensor]:
        """The exact ODE that starts as TOP * noise: where it is at each of `sigmas`, 0 being its end.

        Runge-Kutta of order 8 in log sigma, of y = x / s with s^2 = sigma^2 + 1/4, which is of order 1 all along:
        dy/dlog sigma = (y / (4 s) - D) / s.
        """
        from scipy.integrate import solve_ivp

        def slope(log_sigma: float, y: np.ndarray) -> Any:
            sigma = torch.tensor(log_sigma, dtype=torch.float64).exp()
            size, scaled = (sigma**2 + 0.25).sqrt(), torch.from_numpy(y).reshape(noise.shape)
            return ((scaled / (4 * size) - self.denoise(size * scaled, sigma).x0) / size).flatten().numpy()

        wanted = {sigma: math.log(min(max(sigma, BOTTOM), TOP)) for sigma in sigmas}
        stops = sorted({math.log(TOP), *wanted.values(), math.log(BOTTOM)}, reverse=True)
        start = noise.double().flatten().numpy()
        found = solve_ivp(slope, (stops[0], stops[-1]), start, "DOP853", stops, rtol=tolerance, atol=tolerance).y.T
        at = {
            stop: math.sqrt(math.exp(stop) ** 2 + 0.25) * torch.from_numpy(y).reshape(noise.shape)
            for stop, y in zip(stops, found, strict=True)
        }
        return {sigma: at[stop] for sigma, stop in wanted.items()}


def random_mixture(seed: int, components: int = 10, deviation: float = 0.5) -> Mixture:
    """Unequal weights, wide and narrow directions, one component in three close to another; mean 0, and `deviation`."""
    draw = np.random.Generator(np.random.Philox(key=[seed, 0]))
    weights = draw.dirichlet(np.full(components, 3.0))
    means = draw.normal(size=(components, 2))
    for k in range(2, components, 3):
        means[k] = means[k - 1] + draw.normal(size=2) / 6
    angles = draw.uniform(0, np.pi, components)
    widths = np.exp(draw.uniform(np.log(0.05), np.log(0.4), (components, 2)))
    axes = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], 1).reshape(-1, 2, 2)
    covariances = np.einsum("kij,kj,klj->kil", axes, widths**2, axes)
    means -= weights @ means
    variance = weights @ (np.trace(covariances, axis1=1, axis2=2) + (means**2).sum(1)) / 2
    scale = deviation / math.sqrt(variance)
    return Mixture(*(torch.from_numpy(each) for each in (weights, scale * means, scale**2 * covariances)))


def sliced_distance(exact: Tensor, n: int, directions: int = 32) -> Callable[[Tensor], float]:
    """The sliced Wasserstein-2 distance of n points from an exact sample, of a multiple of n points.

    The root of the mean over evenly spread directions of the squared distance of the two projections (Bonneel et al.
    2015), which sorting matches: each of the n with as many of the exact ones, of which mean and variance suffice.
    """
    angles = math.pi * (torch.arange(directions, dtype=exact.dtype) + 0.5) / directions
    rays = torch.stack([angles.cos(), angles.sin()], 1)
    matched = (rays @ exact.flatten(1).T).sort(1).values.unflatten(1, (n, -1))
    means, spread = matched.mean(2), matched.var(2, correction=0).mean()

    def distance(x: Tensor) -> float:
        projected = (rays @ x.to(exact.dtype).flatten(1).T).sort(1).values
        return ((projected - means) ** 2).mean().add(spread).sqrt().item()

    return distance
