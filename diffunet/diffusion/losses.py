"""The training loss is `W(sigma) * c_out^2 * (net - target)^2`, which equals `W * (D - x0)^2` without cancellation.

A weighting W always multiplies (D - x0)^2, so that every target goes with every weighting. SNR is 1 / sigma^2.

Legend: B batch, C channels, H W height and width, A size of the augmentation vector.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffunet.diffusion.denoiser import Denoised, Denoiser, condition
from diffunet.diffusion.samplers import log_variance
from diffunet.diffusion.schedules import DDPMSchedule, Schedule

Weighting = Callable[[Tensor, Tensor], Tensor]
"""(sigma [B], c_out [B]) -> W [B], the weight of (D - x0)^2."""

Loss = Callable[[Denoised, Tensor, Tensor], Tensor]
"""A loss written by the user: (denoised, x0 [B C H W], sigma [B]) -> [B]."""

VLB_WEIGHT = 0.001
"""The weight of the variational bound in the hybrid loss (Nichol & Dhariwal 2021, eq. 16)."""


def simple() -> Weighting:
    """Return W = 1 / c_out^2, which weights the square error of the net's own output equally at all noise levels.

    That is 1 / sigma^2 for epsilon (Ho et al. 2020, eq. 14), 1 + 1 / sigma^2 for v, 1 / sigma^2 + 1 / sd^2 for EDM.
    """
    return lambda sigma, c_out: c_out**-2


def min_snr(gamma: float = 5.0) -> Weighting:
    """Return W = min(SNR, gamma) (Hang et al. 2023, section 3.4)."""
    return lambda sigma, c_out: (sigma**-2).clamp(max=gamma)


def soft_min_snr(gamma: float = 5.0) -> Weighting:
    """Return W = SNR gamma / (SNR + gamma), a smooth min-SNR (Crowson et al. 2024, section 3.3)."""
    return lambda sigma, c_out: 1 / (sigma**2 + 1 / gamma)


def edm(sigma_data: float) -> Weighting:
    """Return W = 1 / sigma^2 + 1 / sigma_data^2 (Karras et al. 2022, table 1), whatever the target."""
    return lambda sigma, c_out: sigma**-2 + sigma_data**-2


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Return W = SNR / (k + SNR)^gamma (Choi et al. 2022, eq. 8), which lowers epsilon's weight at low noise levels."""
    return lambda sigma, c_out: sigma**-2 / (k + sigma**-2) ** gamma


def sigmoid(schedule: Schedule, bias: float = 2.0) -> Weighting:
    """Return W = SNR sigmoid(bias - log SNR) / p(log SNR) (Kingma & Gao 2023, appendix D.1).

    p is the density with which training draws log SNR; the division makes the objective the same for every schedule.
    """

    def weight(sigma: Tensor, c_out: Tensor) -> Tensor:
        log_snr = -2 * sigma.log()
        return sigma**-2 * torch.sigmoid(bias - log_snr) / density(schedule, sigma).to(sigma)

    return weight


def density(schedule: Schedule, sigma: Tensor) -> Tensor:
    """Return the density [B] of log SNR = -2 log sigma in training, by a finite difference of u."""
    step = 1e-3  # in log SNR, to either side
    sigma = sigma.double() if sigma.device.type != "mps" else sigma
    return (schedule.u(sigma * math.exp(step / 2)) - schedule.u(sigma * math.exp(-step / 2))) / (2 * step)


def vlb_term(
    denoised: Denoised, x0: Tensor, sigma: Tensor, sigma_next: Tensor, first: float, variance: str = "learned",
    keep: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return one term of the variational bound (Ho et al. 2020, eq. 5), in bits per dimension [B].

    Where sigma_next > 0 it is the KL divergence of the model's step, which has D in place of x0, from the posterior
    given x0. Where sigma_next is 0 it is the negative log likelihood of x0, stored in 256 levels from -1 to 1 (eq. 13).

    Args:
        denoised: the output of D at `sigma`.
        x0, sigma, sigma_next: the images [B C H W] in [-1, 1]; the noise levels [B].
        first, keep: `DDPMSchedule.first_variance`; the mask of known pixels, see `hole_mean`.
        variance: the kind of the model's step, see `samplers.log_variance`; "learned" needs `denoised.var`.
    """
    s, s_next = (level.to(x0)[:, None, None, None] for level in (sigma, sigma_next))
    log_var = log_variance(variance, s, s_next, denoised.var, first)
    log_small = log_variance("small", s, s_next, None, first)
    mean_error = (1 - (s_next / s) ** 2) * (x0 - denoised.x0)
    divergence = 0.5 * (log_var - log_small - 1 + (log_small - log_var).exp() + mean_error**2 * (-log_var).exp())
    terms = torch.where(s_next > 0, divergence, -log_likelihood(x0, denoised.x0, log_var))
    return hole_mean(terms, keep) / math.log(2)


def hole_mean(values: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the mean of each image's values [B C H W], [B]; with `keep` bool [B 1 H W] over the hole, 0 if empty."""
    if keep is None:
        return values.mean(dim=(1, 2, 3))
    hole = ~keep
    return torch.where(hole, values, 0).sum(dim=(1, 2, 3)) / (values.shape[1] * hole.sum(dim=(1, 2, 3)).clamp(min=1))


def log_likelihood(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return the log likelihood in nats of the level of x0 under a normal distribution (Ho et al. 2020, eq. 13).

    There are 256 levels from -1 to 1. Each is a bin around its value, the first and the last of them open to one side.
    """
    inverse = (-0.5 * log_var).exp()
    above, below = ((x0 - mean + half) * inverse for half in (1 / 255, -1 / 255))
    # log(cdf(above) - cdf(below)), reflected to the lower tail, where the difference keeps its digits.
    flip = above + below > 0
    above, below = torch.where(flip, -below, above), torch.where(flip, -above, below)
    log_above, log_below = log_normal_cdf(above), log_normal_cdf(below)
    inner = log_above + torch.log1p(-(log_below - log_above).exp().clamp(max=1 - 1e-7))
    lowest, highest = x0 < -0.999, x0 > 0.999
    edge = log_normal_cdf(torch.where(lowest, x0 - mean + 1 / 255, mean - x0 + 1 / 255) * inverse)
    return torch.where(lowest | highest, edge, inner)


def log_normal_cdf(x: Tensor) -> Tensor:
    """Return the log of the distribution function of the standard normal, exact far into the lower tail.

    This is `torch.special.log_ndtr`, which has no kernel on Apple's GPUs, in terms of functions which have one.
    """
    t = x * 0.5**0.5
    # Each branch stays within its range: an infinite gradient of the one that is not taken would make the sum NaN.
    low, high = t.clamp(max=-1.0), t.clamp(min=-1.0)
    tail = (torch.special.erfcx(-low) / 2).log() - low**2
    return torch.where(t < -1, tail, torch.log1p(-torch.erfc(high) / 2))


class DenoisingLoss(nn.Module):
    """The module that is trained: it adds noise to images, denoises them and compares (Ho et al. 2020, algorithm 1).

    With a learned variance it is the hybrid loss (Nichol & Dhariwal 2021, eq. 16), whose bound trains only the
    variance. With a learned uncertainty logvar it is loss / exp(logvar) + logvar (Karras et al. 2024, EDM2, eq. 21),
    which gives all noise levels the same influence although nobody knows beforehand how hard each is.

    For a denoiser that learns to inpaint, all means are over the hole (as in Palette, Saharia et al. 2022), so that its
    area does not change the scale. Noise is added to all pixels, since samplers call the net with such images.

    A loss `own` of the user's replaces all of the above. With a hole it gets D with the known pixels of x0 pasted in,
    and its result is divided by the hole's share of the pixels: a mean over all pixels becomes that over the hole.
    """

    def __init__(self, denoiser: Denoiser, weighting: Weighting, own: Loss | None = None) -> None:
        super().__init__()
        self.denoiser, self.weighting, self.own = denoiser, weighting, own

    def forward(
        self, x0: Tensor, noise: Tensor, sigma: Tensor,
        label: Tensor | None = None, keep: Tensor | None = None, augment: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss [B] of images `x0` with normal `noise` [B C H W] at `sigma` [B], in float32 on one device.

        `label` is int64 [B] (None: null) and `augment` [B A]. For a denoiser that learns to inpaint, `keep` bool
        [B 1 H W] is True where pixels are known; None is nowhere.
        """
        s = sigma[:, None, None, None]
        x = x0 + s * noise  # In float32: in bfloat16 the lowest noise levels would vanish.
        concat = None if keep is None else condition(x0, keep)
        if self.own is not None:
            denoised = self.denoiser(x, sigma, label, concat, augment)
            pasted = denoised if keep is None else denoised._replace(x0=torch.where(keep, x0, denoised.x0))
            loss = self.own(pasted, x0, sigma)
            if keep is not None:
                share = (~keep).to(x0).mean(dim=(1, 2, 3))
                loss = torch.where(share > 0, loss / share.clamp(min=1e-9), 0)
            # A parameter without a gradient has no optimizer state to resume from, and other processes wait for it.
            return loss if denoised.logvar is None else loss + 0 * denoised.logvar
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
            denoised = Denoised(self.denoiser.denoised(x, output.x0.detach(), sigma), output.var)
            bound = vlb_term(denoised, x0, sigma, chain.previous(sigma), chain.first_variance, keep=keep)
            loss = loss + VLB_WEIGHT * chain.num_steps * bound
        return loss
