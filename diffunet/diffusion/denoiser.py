"""A denoiser D estimates the clean image from a noisy one by a net, whatever the net predicts (its target):
`D(x, sigma) = c_skip * x + c_out * net(c_in * x, c_noise(sigma))`.

Legend: B batch, C channels, H W height and width, A size of the augmentation vector.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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


@dataclass(frozen=True)
class Target:
    """A parametrisation: the coefficients of D as functions of sigma, and the output that training asks of the net.

    `sigma` broadcasts against images. `target(x0, noise, sigma)` is (x0 - c_skip * x) / c_out without cancellation.
    """

    c_skip: Callable[[Tensor], Tensor]
    c_out: Callable[[Tensor], Tensor]
    c_in: Callable[[Tensor], Tensor]
    target: Callable[[Tensor, Tensor, Tensor], Tensor]


def _unit_variance(sigma: Tensor) -> Tensor:
    """Return the c_in that gives the net inputs of unit variance if the images have it."""
    return (1 + sigma**2).rsqrt()


class Epsilon(Target):
    """The net predicts the noise (Ho et al. 2020, eq. 14)."""

    def __init__(self) -> None:
        super().__init__(torch.ones_like, torch.neg, _unit_variance, lambda x0, noise, sigma: noise)


class X0(Target):
    """The net predicts the clean image."""

    def __init__(self) -> None:
        super().__init__(torch.zeros_like, torch.ones_like, _unit_variance, lambda x0, noise, sigma: x0)


class V(Target):
    """The net predicts v = alpha * noise - sqrt(1 - alpha^2) * x0 (Salimans & Ho 2022, appendix D)."""

    def __init__(self) -> None:
        super().__init__(
            c_skip=lambda sigma: 1 / (1 + sigma**2),
            c_out=lambda sigma: -sigma * (1 + sigma**2).rsqrt(),
            c_in=_unit_variance,
            target=lambda x0, noise, sigma: (noise - sigma * x0) * (1 + sigma**2).rsqrt(),
        )


class Flow(Target):
    """The net predicts the velocity noise - x0 of the straight path (Lipman et al. 2022; Liu et al. 2022, eq. 1)."""

    def __init__(self) -> None:
        super().__init__(
            c_skip=lambda sigma: 1 / (1 + sigma),
            c_out=lambda sigma: -sigma / (1 + sigma),
            c_in=lambda sigma: 1 / (1 + sigma),
            target=lambda x0, noise, sigma: noise - x0,
        )


class EDM(Target):
    """The preconditioning of Karras et al. 2022, table 1: inputs and targets have unit variance at every sigma.

    `sigma_data` is the standard deviation of the images, in units of [-1, 1].
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        sd = sigma_data
        super().__init__(
            c_skip=lambda sigma: sd**2 / (sigma**2 + sd**2),
            c_out=lambda sigma: sigma * sd * (sigma**2 + sd**2).rsqrt(),
            c_in=lambda sigma: (sigma**2 + sd**2).rsqrt(),
            target=lambda x0, noise, sigma: (sigma * x0 - sd**2 * noise) / (sd * (sigma**2 + sd**2).sqrt()),
        )


class Denoiser(nn.Module):
    """A net, a target and a schedule: `denoiser(x, sigma).x0` is the expected clean image.

    Args:
        net: called as `net(c_in * x [B C H W], c_noise [B], label, augment)`, it returns C channels, or 2 C with
            `learned_variance`. It has an `uncertainty(log_snr [B]) -> logvar [B]` where it learns that.
        target, schedule: what the net predicts, and what gives it its `c_noise`.
        learned_variance: the second half of the net's channels is `Denoised.var`, scaled to -1 ... 1 (Nichol & Dhariwal
            2021, eq. 15).
        masked: the net is trained to inpaint, with `condition` as its `concat`; None is a hole as large as the image.
    """

    def __init__(
        self, net: nn.Module, target: Target, schedule: Schedule, learned_variance: bool = False, masked: bool = False
    ) -> None:
        super().__init__()
        self.net, self.target, self.schedule = net, target, schedule
        self.learned_variance, self.masked = learned_variance, masked

    def output(
        self, x: Tensor, sigma: Tensor, label: Condition = None, concat: Condition = None, augment: Condition = None
    ) -> Denoised:
        """Do as `forward`, but return in place of x0 the net's own output, which training compares with the target."""
        c_noise = self.schedule.c_noise(sigma)
        # `full` fills on the device; a copy to it would make the GPU wait.
        c_noise = torch.full((len(x),), c_noise.item(), device=x.device) if sigma.ndim == 0 else c_noise.float()
        inputs = self.target.c_in(_like_images(sigma)) * x
        if concat is None and self.masked:
            concat = condition(x, torch.zeros_like(x[:, :1], dtype=torch.bool))
        if concat is not None:
            inputs = torch.cat([inputs, concat], dim=1)
        output, var = self.net(inputs, c_noise, label, augment).to(x.dtype), None
        if self.learned_variance:
            output, fraction = output.chunk(2, dim=1)
            var = (fraction + 1) / 2
        uncertainty = getattr(self.net, "uncertainty", None)
        logvar = None if uncertainty is None or sigma.ndim != 1 else uncertainty(-2 * sigma.log())
        return Denoised(output, var, logvar)

    def forward(
        self, x: Tensor, sigma: Tensor, label: Condition = None, concat: Condition = None, augment: Condition = None
    ) -> Denoised:
        """Denoise images x0 + sigma * noise, `x` [B C H W], of `sigma` [B] on the device of x, or [] on the CPU.

        `label` is int64 [B], None for the null label. `concat` [B C' H W] are further input channels, which c_in does
        not scale, and `augment` [B A] the augmentation vectors.
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
    """Return the additional input of a net that is trained to inpaint (Saharia et al. 2022, Palette), [B C + 1 H W].

    Its channels are the pixels of `known` [B C H W] where `keep`, bool and broadcasting to [B 1 H W], is True, 0
    elsewhere, and the hole as a mask, 1 where there is something to fill in.
    """
    hole = (~keep).expand(len(known), 1, *known.shape[2:])
    return torch.cat([torch.where(keep, known, 0), hole.to(known)], dim=1)


Conditional = Callable[[Tensor, Tensor, Condition, Condition], Denoised]
"""(x, sigma, label, concat) -> Denoised: a `Denoiser`, or what is called like one, such as `tiling.Tiled`."""


def bind(denoiser: Conditional, label: Condition = None, concat: Condition = None) -> Denoise:
    """Return the denoiser with its conditions bound."""
    return lambda x, sigma: denoiser(x, sigma, label, concat)
