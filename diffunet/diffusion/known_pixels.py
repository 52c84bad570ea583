"""Filling in masked images with a model that was not trained for it: denoisers from a denoiser, a step, a ladder.

Legend: B images, C channels, H W height and width. `known` [B C H W] is the image, of which only what `keep`, bool and
broadcasting to it, marks is ever used: True where pixels are known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Denoise, Denoised
from diffunet.diffusion.samplers import State, Step
from diffunet.draws import Noise

ROUNDING = 2 / 255 / 12**0.5
"""Standard deviation of what 8 bits round away, in units of [-1, 1]: known pixels are known that well."""

ITERATIONS = 1
"""Of conjugate gradients in `mmps`: 3 take twice the passes, and on images they are level within the error
(samples/inpainting.md)."""


def keep_known(denoise: Denoise, known: Tensor, keep: Tensor, noise: Noise | None = None) -> Denoise:
    """A denoiser that knows part of the image: known pixels are pasted into what D says.

    Args:
        known, keep: see above.
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


def ddnm(known: Tensor, keep: Tensor, eta: float = 0.85) -> Step:
    """DDNM (Wang et al. 2022, algorithm 1 with A the mask; the noise as in its SVD form).

    x' = D^ + sigma' (eta noise + sqrt(1 - eta^2) (x - D) / sigma), D^ being D with the known pixels pasted: the noise
    that stays is the one that the *raw* D found, so this is no function from a denoiser to a denoiser. Its time travel
    (algorithm 2) is `resample_ladder`.

    Args:
        known, keep: see above.
        eta: share of the noise that is new, 0 to 1; 0.85 is theirs.
    """

    def step(
        denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State
    ) -> tuple[Tensor, Denoised, State]:
        raw = denoise(x, sigma)
        projected = raw._replace(x0=torch.where(keep, known, raw.x0))
        if sigma_next == 0:
            return projected.x0, projected, None
        left = (1 - eta**2) ** 0.5 * (x - raw.x0) / sigma
        new = eta * noise() if eta > 0 else 0
        return projected.x0 + sigma_next * (new + left), projected, None

    return step


def mmps(
    denoise: Denoise, known: Tensor, keep: Tensor, iterations: int = ITERATIONS, known_std: float = ROUNDING
) -> Denoise:
    """A denoiser given the known pixels: moment matching posterior sampling (Rozet et al. 2024, section 4.2).

    By Tweedie's formulas the covariance of x0 given x is V = sigma^2 dD/dx. Were x0 normal given x, its mean given the
    known pixels y = A x0 too would be D + V A' (A V A' + known_std^2)^-1 (y - A D), which is exact for Gaussian data.
    Conjugate gradients solve it; V is only ever multiplied by, each time by one pass backwards through D. One iteration
    is much like PiGDM (Song et al. 2023), which takes V as a multiple of the identity, with the best multiple.

    Args:
        denoise: must let gradients pass; for `iterations` + 1 passes through it.
        known, keep: see above.
        iterations: of conjugate gradients, at least 1.
        known_std: how far off the known pixels may be.
    """

    def denoise_given(x: Tensor, sigma: Tensor) -> Denoised:
        variance = (sigma if sigma.ndim == 0 else sigma[:, None, None, None]) ** 2
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = denoise(x, sigma)
        mean = denoised.x0.detach()
        residual = torch.where(keep, known - mean, 0)
        direction, size = residual, _dot(residual, residual)
        for i in range(iterations):
            (slope,) = torch.autograd.grad(denoised.x0, x, direction, retain_graph=i + 1 < iterations)
            spread = variance * slope  # V A' direction
            image = torch.where(keep, spread, 0) + known_std**2 * direction
            curvature = _dot(direction, image)
            # A trained net's Jacobian is not quite symmetric, and may bend the wrong way: then stay.
            length = torch.where(curvature > 0, size / curvature, 0)
            mean = mean + length * spread
            residual = residual - length * image
            smaller = _dot(residual, residual)
            direction = residual + torch.where(size > 0, smaller / size, 0) * direction
            size = smaller
        var = None if denoised.var is None else denoised.var.detach()
        return Denoised(torch.where(keep, known, mean).to(x.dtype), var, denoised.logvar)

    return denoise_given


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each image, [B 1 1 1]."""
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)
