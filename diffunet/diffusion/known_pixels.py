"""Inpainting by a model that was not trained for it: denoisers, a sampling step and a ladder that use known pixels.

Legend: B batch, C channels, H W height and width. Everywhere `known` [B C H W] is the image, and `keep`, bool and
broadcasting to it, is True where its pixels are known; the others are never used.
"""

import torch
from torch import Tensor

from diffunet.diffusion.denoiser import Denoise, Denoised
from diffunet.diffusion.samplers import State, Step, StepResult
from diffunet.draws import Noise

ROUNDING = 2 / 255 / 12**0.5
"""The standard deviation of rounding to 8 bits, in units of [-1, 1]: known pixels are known with this accuracy."""

ITERATIONS = 1
"""The iterations of conjugate gradients in `mmps`. Three take twice the passes through the net, and on images their
results differ by less than the error of measurement (samples/inpainting.md)."""


def keep_known(denoise: Denoise, known: Tensor, keep: Tensor, noise: Noise | None = None) -> Denoise:
    """Return a denoiser that pastes the known pixels into the output of D.

    With `noise`, known + sigma * noise() also replaces the known part of D's *input* (RePaint, Lugmayr et al. 2022,
    algorithm 1, lines 4 to 7); this is for first-order samplers. Without, the sampler itself takes the known part along
    the ODE to the known pixels, and samplers of higher order keep their order.
    """

    def denoise_rest(x: Tensor, sigma: Tensor) -> Denoised:
        if noise is not None:
            std = sigma if sigma.ndim == 0 else sigma[:, None, None, None]
            x = torch.where(keep, known + std * noise(), x)
        denoised = denoise(x, sigma)
        return denoised._replace(x0=torch.where(keep, known, denoised.x0))

    return denoise_rest


def resample_ladder(sigmas: Tensor, jump_length: int = 10, jump_n_sample: int = 10) -> Tensor:
    """Return RePaint's ladder (Lugmayr et al. 2022, section 4.2): `sigmas` [n + 1] with jumps back up.

    The jumps harmonise the hole with the known pixels. After every `jump_length` steps down the ladder rises by as many
    steps and comes down again, until these steps have been made `jump_n_sample` times. With n = 250 and 10, 10 these
    are 2,410 steps down and 2,160 up, as published.

    Raises:
        ValueError: for a length or count below 1.
    """
    if jump_length < 1 or jump_n_sample < 1:
        raise ValueError("jump_length and jump_n_sample are at least 1")
    n = len(sigmas) - 1
    timesteps: list[int] = []
    for t in range(n - 1, -1, -1):  # As the paper's timestep, t counts the steps that are left after this one.
        timesteps.append(t)
        if t % jump_length == 0 and t < n - jump_length:
            up = list(range(t + 1, t + jump_length + 1))
            timesteps += (up + up[-2::-1] + [t]) * (jump_n_sample - 1)
    return sigmas[[n - 1 - t for t in [*timesteps, -1]]]


def ddnm(known: Tensor, keep: Tensor, eta: float = 0.85) -> Step:
    """Return the step of DDNM (Wang et al. 2022, algorithm 1, with the mask as A, and the noise of its SVD form).

    x' = D^ + sigma' (eta noise + sqrt(1 - eta^2) (x - D) / sigma), where D^ is D with the known pixels pasted. The old
    noise (x - D) / sigma is that of the *raw* D; therefore this is a step, and not a function from a denoiser to a
    denoiser. `eta`, 0 to 1, is the new part of the noise. The time travel of algorithm 2 is `resample_ladder`.
    """

    def step(denoise: Denoise, x: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Noise, state: State) -> StepResult:
        raw = denoise(x, sigma)
        projected = raw._replace(x0=torch.where(keep, known, raw.x0))
        if sigma_next == 0:
            return projected.x0, projected, None
        old = (1 - eta**2) ** 0.5 * (x - raw.x0) / sigma
        new = eta * noise() if eta > 0 else 0
        return projected.x0 + sigma_next * (new + old), projected, None

    return step


def mmps(
    denoise: Denoise, known: Tensor, keep: Tensor, iterations: int = ITERATIONS, known_std: float = ROUNDING
) -> Denoise:
    """Return a denoiser that knows some pixels: moment matching posterior sampling (Rozet et al. 2024, section 4.2).

    By Tweedie's formulas the covariance of x0 given x is V = sigma^2 dD/dx. If x0 given x were normal, its mean given
    also the known pixels y = A x0 would be D + V A' (A V A' + known_std^2)^-1 (y - A D); this is exact for Gaussian
    data. Conjugate gradients solve the linear system; each product with V is one backward pass through D. One iteration
    is much like PiGDM (Song et al. 2023), which has a multiple of the identity as V, with the best multiple.

    D must be differentiable; it is run forwards once, and backwards in each of the `iterations` of conjugate gradients,
    at least 1. The error of the known pixels has the standard deviation `known_std`.
    """

    def denoise_known(x: Tensor, sigma: Tensor) -> Denoised:
        variance = (sigma if sigma.ndim == 0 else sigma[:, None, None, None]) ** 2
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = denoise(x, sigma)
        mean = denoised.x0.detach()
        residual = torch.where(keep, known - mean, 0)
        direction, size = residual, _dot(residual, residual)
        for i in range(iterations):
            (gradient,) = torch.autograd.grad(denoised.x0, x, direction, retain_graph=i + 1 < iterations)
            change = variance * gradient  # V A' direction
            product = torch.where(keep, change, 0) + known_std**2 * direction  # (A V A' + known_std^2) direction
            curvature = _dot(direction, product)
            # The Jacobian of a trained net is not quite symmetric, and the curvature may be negative: do not move then.
            length = torch.where(curvature > 0, size / curvature, 0)
            mean = mean + length * change
            residual = residual - length * product
            size_last, size = size, _dot(residual, residual)
            direction = residual + torch.where(size_last > 0, size / size_last, 0) * direction
        var = None if denoised.var is None else denoised.var.detach()
        return Denoised(torch.where(keep, known, mean).to(x.dtype), var, denoised.logvar)

    return denoise_known


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar product of each pair of images, [B 1 1 1]."""
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)
