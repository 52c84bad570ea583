"""The training loss: `W(sigma) * c_out^2 * (net - target)^2`, which is `W * (D - x0)^2` without its cancellation.

A weighting W always weights (D - x0)^2, so that any target goes with any weighting. SNR is 1 / sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffunet.diffusion.denoiser import Denoised, Denoiser, condition
from diffunet.diffusion.samplers import log_variance
from diffunet.diffusion.schedules import DDPMSchedule, Schedule

Weighting = Callable[[Tensor, Tensor], Tensor]
"""(sigma [B], c_out [B]) -> W [B]."""

Loss = Callable[[Denoised, Tensor, Tensor], Tensor]
"""A loss of one's own: (denoised, x0 [B C H W], sigma [B]) -> [B]."""

VLB_WEIGHT = 0.001
"""Of the variational bound in the hybrid loss (Nichol & Dhariwal 2021, eq. 16)."""


def simple() -> Weighting:
    """Every noise level of the net's own target counts the same: W = 1 / c_out^2.

    For epsilon that is 1 / sigma^2 (Ho et al. 2020, eq. 14), for v 1 + 1 / sigma^2, for EDM 1 / sigma^2 + 1 / sd^2.
    """
    return lambda sigma, c_out: c_out**-2


def min_snr(gamma: float = 5.0) -> Weighting:
    """W = min(SNR, gamma) (Hang et al. 2023, section 3.4)."""
    return lambda sigma, c_out: (sigma**-2).clamp(max=gamma)


def soft_min_snr(gamma: float = 5.0) -> Weighting:
    """W = SNR gamma / (SNR + gamma), min-SNR without its corner (Crowson et al. 2024, section 3.3)."""
    return lambda sigma, c_out: 1 / (sigma**2 + 1 / gamma)


def edm(sigma_data: float) -> Weighting:
    """W = 1 / sigma^2 + 1 / sd^2 (Karras et al. 2022, table 1), whatever the target."""
    return lambda sigma, c_out: sigma**-2 + sigma_data**-2


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """W = SNR / (k + SNR)^gamma (Choi et al. 2022, eq. 8): of epsilon's loss, less where little noise is left."""
    return lambda sigma, c_out: sigma**-2 / (k + sigma**-2) ** gamma


def sigmoid(schedule: Schedule, bias: float = 2.0) -> Weighting:
    """W = SNR sigmoid(bias - log SNR) / p(log SNR) (Kingma & Gao 2023, appendix D.1).

    Divided by the density p with which training meets a log SNR, so that the objective is the same on every schedule.
    """

    def weight(sigma: Tensor, c_out: Tensor) -> Tensor:
        log_snr = -2 * sigma.log()
        return sigma**-2 * torch.sigmoid(bias - log_snr) / density(schedule, sigma).to(sigma)

    return weight


def density(schedule: Schedule, sigma: Tensor) -> Tensor:
    """Of log SNR = -2 log sigma where u is uniform in (0, 1), by the slope of u: [B], float64 where there is one."""
    step = 1e-3  # in log SNR, to either side
    sigma = sigma.double() if sigma.device.type != "mps" else sigma
    return (schedule.u(sigma * math.exp(step / 2)) - schedule.u(sigma * math.exp(-step / 2))) / (2 * step)


def vlb_term(
    denoised: Denoised,
    x0: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    first: float,
    variance: str = "learned",
    keep: Tensor | None = None,
) -> Tensor:
    """One term of the variational bound (Ho et al. 2020, eq. 5), in bits per dimension [B].

    Where sigma_next > 0 the divergence of the chain's step, D in place of x0, from the posterior given x0; where it is
    0 how unlikely the step finds x0 as it was stored, in 256 levels from -1 to 1 (eq. 13).

    Args:
        denoised: what D says at `sigma`; see `samplers.log_variance` for `variance`, of which "learned" needs its var.
        x0: [B C H W] in [-1, 1].
        sigma, sigma_next: [B].
        first: `DDPMSchedule.first_variance`.
        keep: see `hole_mean`.
    """
    s, s_next = (each.to(x0)[:, None, None, None] for each in (sigma, sigma_next))
    log_var = log_variance(variance, s, s_next, denoised.var, first)
    log_small = log_variance("small", s, s_next, None, first)
    off = (1 - (s_next / s) ** 2) * (x0 - denoised.x0)  # of the two means
    divergence = 0.5 * (log_var - log_small - 1 + (log_small - log_var).exp() + off**2 * (-log_var).exp())
    terms = torch.where(s_next > 0, divergence, -log_likelihood(x0, denoised.x0, log_var))
    return hole_mean(terms, keep) / math.log(2)


def hole_mean(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """Of each image's values [B C H W], [B]; with `keep` bool [B 1 H W] of those where it is False, 0 without any."""
    if keep is None:
        return values.mean(dim=(1, 2, 3))
    hole = ~keep
    return torch.where(hole, values, 0).sum(dim=(1, 2, 3)) / (values.shape[1] * hole.sum(dim=(1, 2, 3)).clamp(min=1))


def log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """In nats, of the bin of x0 under a normal: of 256 from -1 to 1, the outer ones open (Ho et al. 2020, eq. 13)."""
    inverse = (-0.5 * log_var).exp()
    above, below = ((x0 - mean + half) * inverse for half in (1 / 255, -1 / 255))
    # log(cdf(above) - cdf(below)), from the tail in which the difference keeps its digits.
    flip = above + below > 0
    above, below = torch.where(flip, -below, above), torch.where(flip, -above, below)
    log_above, log_below = log_normal_cdf(above), log_normal_cdf(below)
    inner = log_above + torch.log1p(-(log_below - log_above).exp().clamp(max=1 - 1e-7))
    lowest, highest = x0 < -0.999, x0 > 0.999
    edge = log_normal_cdf(torch.where(lowest, x0 - mean + 1 / 255, mean - x0 + 1 / 255) * inverse)
    return torch.where(lowest | highest, edge, inner)


def log_normal_cdf(x: Tensor) -> Tensor:
    """log of the standard normal's distribution function, exact far into the lower tail.

    As `torch.special.log_ndtr`, for which Apple's GPUs have no kernel, from functions for which they do.
    """
    t = x * 0.5**0.5
    low, high = t.clamp(max=-1.0), t.clamp(min=-1.0)  # each branch within its range: a gradient of inf would spoil both
    tail = (torch.special.erfcx(-low) / 2).log() - low**2
    return torch.where(t < -1, tail, torch.log1p(-torch.erfc(high) / 2))


def _of_hole(own: Loss, denoised: Denoised, x0: Tensor, sigma: Tensor, keep: Tensor) -> Tensor:
    """A loss of one's own [B] by the hole's share of the pixels; 0 where there is none."""
    each = own(denoised._replace(x0=torch.where(keep, x0, denoised.x0)), x0, sigma)
    share = (~keep).to(x0).mean(dim=(1, 2, 3))
    return torch.where(share > 0, each / share.clamp(min=1e-9), 0)


class DenoisingLoss(nn.Module):
    """`loss(x0, noise, sigma, label, ...) -> [B]`: noise, denoise, compare. The module that training wraps.

    With a learned variance it is the hybrid loss (Nichol & Dhariwal 2021, eq. 16), whose bound teaches the variance
    alone. With a learned uncertainty logvar it is loss / exp(logvar) + logvar (Karras et al. 2024, EDM2, eq. 21), which
    makes all noise levels count the same without knowing beforehand how hard each is.

    For a denoiser that learns to inpaint, all means are over the hole alone (as in Palette, Saharia et al. 2022), so
    that its area does not change the scale. Noise is everywhere, as it is where samplers call the net.

    Args:
        denoiser: what learns.
        weighting: see `Weighting`.
        own: a loss of one's own, used instead of all that. With a hole it sees D with the known pixels of x0 pasted in,
            and what it says of an image is divided by the hole's share of the pixels, which makes a mean over pixels
            the mean over the hole.
    """

    def __init__(self, denoiser: Denoiser, weighting: Weighting, own: Loss | None = None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.weighting = weighting
        self.own = own

    def forward(
        self,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        keep: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Images and noise [B C H W], sigma [B], float32 on one device -> each image's mean weighted square [B].

        `keep` bool [B 1 H W] is True where pixels are known, for a denoiser that learns to inpaint; None is nowhere.
        """
        s = sigma[:, None, None, None]
        x = x0 + s * noise  # float32: in bfloat16 the faintest noise levels vanish
        concat = None if keep is None else condition(x0, keep)
        if self.own is not None:
            denoised = self.denoiser(x, sigma, label, concat, augment)
            each = self.own(denoised, x0, sigma) if keep is None else _of_hole(self.own, denoised, x0, sigma, keep)
            # A parameter without a gradient has no optimizer state to resume from, and other processes wait for it.
            return each if denoised.logvar is None else each + 0 * denoised.logvar
        target = self.denoiser.target
        output = self.denoiser.output(x, sigma, label, concat, augment)
        error = hole_mean((output.x0 - target.target(x0, noise, s)).square(), keep)
        c_out = target.c_out(sigma)
        loss = self.weighting(sigma, c_out) * c_out**2 * error
        if output.logvar is not None:
            loss = loss * (-output.logvar).exp() + output.logvar
        if output.var is not None:
            chain = self.denoiser.schedule
            assert isinstance(chain, DDPMSchedule), "the config is resolved"
            said = Denoised(self.denoiser.denoised(x, output.x0.detach(), sigma), output.var)
            bound = vlb_term(said, x0, sigma, chain.previous(sigma), chain.first_variance, keep=keep)
            loss = loss + VLB_WEIGHT * chain.num_steps * bound
        return loss
