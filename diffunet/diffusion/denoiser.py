"""A denoiser D estimates the clean image from a noisy one by a net, whatever the net predicts (its target):
`D(x, sigma) = c_skip * x + c_out * net(c_in * x, c_noise(sigma))`.

Legend: B batch, C channels, H W height and width, A size of the augmentation vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffunet.diffusion.schedules import Schedule


class Denoised(NamedTuple):
    """The output of a denoiser; `var` and `logvar` are None where the net does not learn them.

    `x0` [B C H W] is the expected clean image. `var` [B C H W] is the position of the log variance of an ancestral step
    between its bounds, 0 for the small and 1 for the large variance (`samplers.log_variance`). `logvar` [B] is the log
    of the weighted loss to be expected at this sigma, in training only.
    """

    x0: Tensor
    var: Tensor | None = None
    logvar: Tensor | None = None


Denoise = Callable[[Tensor, Tensor], Denoised]
"""(x [B C H W], sigma [B] or []) -> Denoised: a denoiser with its conditions bound, as samplers call it."""

Condition = Tensor | None
"""A condition of a net; None where there is none."""


class Target(Protocol):
    """A parametrisation: the coefficients of D as functions of sigma, and the output that training asks of the net.

    `sigma` broadcasts against images. `target` is (x0 - c_skip * x) / c_out in a closed form without cancellation.
    """

    def c_skip(self, sigma: Tensor) -> Tensor: ...
    def c_out(self, sigma: Tensor) -> Tensor: ...
    def c_in(self, sigma: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor: ...


class Epsilon:
    """The net predicts the noise (Ho et al. 2020, eq. 14)."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma

    def c_in(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise


class X0(Epsilon):
    """The net predicts the clean image."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return x0


class V(Epsilon):
    """The net predicts v = alpha * noise - sqrt(1 - alpha^2) * x0 (Salimans & Ho 2022, appendix D)."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma * (1 + sigma**2).rsqrt()

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return (noise - sigma * x0) * (1 + sigma**2).rsqrt()


class Flow:
    """The net predicts the velocity noise - x0 of the straight path (Lipman et al. 2022; Liu et al. 2022, eq. 1)."""

    def c_skip(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def c_out(self, sigma: Tensor) -> Tensor:
        return -sigma / (1 + sigma)

    c_in = c_skip

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0


class EDM:
    """The preconditioning of Karras et al. 2022, table 1: inputs and targets have unit variance at every sigma.

    Args:
        sigma_data: standard deviation of the images, in units of [-1, 1].
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        self.sigma_data = sigma_data

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data * (sigma**2 + self.sigma_data**2).rsqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        sd = self.sigma_data
        return (sigma * x0 - sd**2 * noise) / (sd * (sigma**2 + sd**2).sqrt())


class Denoiser(nn.Module):
    """A net, a target and a schedule: `denoiser(x, sigma).x0` is the expected clean image.

    Args:
        net: called as `net(c_in * x [B C H W], c_noise [B], label, augment)`, it returns C channels, or 2 C with
            `learned_variance`. It has an `uncertainty(log_snr [B]) -> logvar [B]` where it learns that.
        target: what the net predicts.
        schedule: gives the net its `c_noise`.
        learned_variance: the second half of the net's channels is `Denoised.var`, scaled to -1 ... 1 (Nichol & Dhariwal
            2021, eq. 15).
        masked: the net is trained to inpaint, with `condition` as its `concat`; None is a hole as large as the image.
    """

    def __init__(
        self, net: nn.Module, target: Target, schedule: Schedule, learned_variance: bool = False, masked: bool = False
    ) -> None:
        super().__init__()
        self.net = net
        self.target = target
        self.schedule = schedule
        self.learned_variance = learned_variance
        self.masked = masked

    def output(
        self, x: Tensor, sigma: Tensor, label: Condition = None, concat: Condition = None, augment: Condition = None
    ) -> Denoised:
        """Do as `forward`, but return in place of x0 the net's own output, which training compares with the target."""
        if sigma.ndim == 0:  # `full` fills on the device; a copy to it would make the GPU wait.
            c_noise = torch.full((len(x),), self.schedule.c_noise(sigma).item(), device=x.device)
        else:
            c_noise = self.schedule.c_noise(sigma).float()
        inputs = self.target.c_in(_like_images(sigma)) * x
        if concat is None and self.masked:
            concat = condition(x, torch.zeros_like(x[:, :1], dtype=torch.bool))
        if concat is not None:
            inputs = torch.cat([inputs, concat], dim=1)
        output, var = self.net(inputs, c_noise, label, augment).to(x.dtype), None
        if self.learned_variance:
            output, fraction = output.chunk(2, dim=1)
            var = (fraction + 1) / 2
        uncertainty, logvar = getattr(self.net, "uncertainty", None), None
        if uncertainty is not None and sigma.ndim == 1:
            logvar = uncertainty(-2 * sigma.log())
        return Denoised(output, var, logvar)

    def forward(
        self, x: Tensor, sigma: Tensor, label: Condition = None, concat: Condition = None, augment: Condition = None
    ) -> Denoised:
        """Denoise images.

        Args:
            x: noisy images x0 + sigma * noise, [B C H W].
            sigma: [B] on the device of x, or [] on the CPU.
            label: int64 [B]; None is the null label.
            concat: further input channels [B C' H W], which c_in does not scale.
            augment: the augmentation vectors [B A].
        """
        output = self.output(x, sigma, label, concat, augment)
        return output._replace(x0=self.denoised(x, output.x0, sigma))

    def denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """Return the clean image [B C H W] that the net's own output means: c_skip * x + c_out * output."""
        sigma = _like_images(sigma)
        return self.target.c_skip(sigma) * x + self.target.c_out(sigma) * output


def _like_images(sigma: Tensor) -> Tensor:
    """Reshape sigma [B] to [B 1 1 1], so that it broadcasts against images; [] stays."""
    return sigma if sigma.ndim == 0 else sigma[:, None, None, None]


def condition(known: Tensor, keep: Tensor) -> Tensor:
    """Return the additional input of a net that is trained to inpaint (Saharia et al. 2022, Palette).

    Args:
        known: [B C H W].
        keep: bool [B 1 H W], or broadcasting to it; True where pixels are known.

    Returns:
        [B C + 1 H W]: the known pixels, 0 elsewhere, and the hole as a mask, 1 where there is something to fill in.
    """
    hole = (~keep).expand(len(known), 1, *known.shape[2:])
    return torch.cat([torch.where(keep, known, 0), hole.to(known)], dim=1)


class Conditional(Protocol):
    """A `Denoiser`, or an object that is called like one, such as `tiling.Tiled`."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Condition = None, concat: Condition = None) -> Denoised: ...


def bind(denoiser: Conditional, label: Condition = None, concat: Condition = None) -> Denoise:
    """Return the denoiser with its conditions bound."""
    return lambda x, sigma: denoiser(x, sigma, label, concat)
