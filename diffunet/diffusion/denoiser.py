"""From a net to a denoiser: `D(x, sigma) = c_skip * x + c_out * net(c_in * x, c_noise(sigma))`, for every target.

Legend: B batch, C channels, H W height and width, A width of the augmentation vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diffunet.diffusion.schedules import Schedule


class Denoised(NamedTuple):
    """What a denoiser says of a noisy image.

    `x0` [B C H W] is the expected clean image. `var` [B C H W] is where between the small (0) and the large (1) one the
    log of the variance of an ancestral step lies, `logvar` [B] the log of the weighted loss to expect at this sigma, in
    training only; None where the net does not learn them.
    """

    x0: Tensor
    var: Tensor | None = None
    logvar: Tensor | None = None


Denoise = Callable[[Tensor, Tensor], Denoised]
"""(x [B C H W], sigma [B] or []) -> Denoised, conditions already bound."""


class Net(Protocol):
    """What a Denoiser wraps: `net(c_in * x [B C' H W], c_noise [B], label, augment) -> [B C H W]`.

    It has 2 C channels where it learns the variance, and an `uncertainty(log_snr [B]) -> logvar [B]` where it learns
    that.
    """

    def __call__(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor: ...


class Target(Protocol):
    """A parametrisation: three functions of sigma, and what the net should answer, in closed form.

    `sigma` broadcasts against images. `target` is (x0 - c_skip * x) / c_out without its cancellation.
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

    def c_in(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0


class EDM:
    """Preconditioning of Karras et al. 2022, table 1: inputs and targets of unit variance at every sigma.

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
    """A net, a parametrisation and a schedule: `denoiser(x, sigma)` is the expected clean image.

    Args:
        net: see `Net`; its `null_label`, where it has labels, is the label that says nothing.
        target: see `Target`.
        schedule: tells the net its `c_noise`.
        learned_variance: the second half of the net's channels is the fraction `var` of a `Denoised`, as -1 to 1
            (Nichol & Dhariwal 2021, eq. 15).
        masked: the net is trained to inpaint, and `condition` is its `concat`; None is a hole that is all of the image.
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
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        concat: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Denoised:
        """As `forward`, but in place of x0 the net's own answer, which training compares with the target."""
        if sigma.ndim == 0:  # filled on the device: a copy would make the GPU wait
            c_noise = torch.full((len(x),), self.schedule.c_noise(sigma).item(), device=x.device)
        else:
            c_noise = self.schedule.c_noise(sigma).float()
        scaled = self.target.c_in(_spread(sigma)) * x
        if concat is None and self.masked:
            concat = condition(x, torch.zeros_like(x[:, :1], dtype=torch.bool))
        if concat is not None:
            scaled = torch.cat([scaled, concat], dim=1)
        answer, var = self.net(scaled, c_noise, label, augment).to(x.dtype), None
        if self.learned_variance:
            answer, fraction = answer.chunk(2, dim=1)
            var = (fraction + 1) / 2
        uncertainty, logvar = getattr(self.net, "uncertainty", None), None
        if uncertainty is not None and sigma.ndim == 1:
            logvar = uncertainty(-2 * sigma.log())
        return Denoised(answer, var, logvar)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        concat: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Denoised:
        """Denoise.

        Args:
            x: noisy images, [B C H W], x0 + sigma * noise.
            sigma: [B] on x's device, or [] on the CPU.
            label: int64 [B]; None says nothing.
            concat: more input channels [B C' H W], not scaled by c_in.
            augment: [B A].
        """
        output = self.output(x, sigma, label, concat, augment)
        return output._replace(x0=self.denoised(x, output.x0, sigma))

    def denoised(self, x: Tensor, output: Tensor, sigma: Tensor) -> Tensor:
        """c_skip * x + c_out * output: from the net's own answer to the clean image, [B C H W]."""
        sigma = _spread(sigma)
        return self.target.c_skip(sigma) * x + self.target.c_out(sigma) * output


def _spread(sigma: Tensor) -> Tensor:
    """[B] -> [B 1 1 1], so that it broadcasts against images; [] stays."""
    return sigma if sigma.ndim == 0 else sigma[:, None, None, None]


def condition(known: Tensor, keep: Tensor) -> Tensor:
    """What a net that is trained to inpaint is told beside the noisy image (Saharia et al. 2022, Palette).

    Args:
        known: [B C H W].
        keep: bool [B 1 H W], or broadcasting to it; True where pixels are known.

    Returns:
        [B C + 1 H W]: the known pixels, 0 elsewhere; and 1 where there is something to fill in.
    """
    hole = (~keep).expand(len(known), 1, *known.shape[2:])
    return torch.cat([torch.where(keep, known, 0), hole.to(known)], dim=1)


class Conditional(Protocol):
    """What is called like a `Denoiser`: one, or one by windows (tiling.py)."""

    net: nn.Module

    def __call__(
        self, x: Tensor, sigma: Tensor, label: Tensor | None = None, concat: Tensor | None = None
    ) -> Denoised: ...


def bind(denoiser: Conditional, label: Tensor | None = None, concat: Tensor | None = None) -> Denoise:
    """A fresh `Denoise` for one run, with its conditions bound."""

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        return denoiser(x, sigma, label, concat)

    return denoise
