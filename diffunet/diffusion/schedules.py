"""Noise schedules, all in one coordinate: `x = x0 + sigma * noise`, sigma being noise over signal.

A schedule maps u in (0, 1) to sigma, increasing; training draws u, ladders walk down it. What each paper calls time
(timestep, log sigma, t) lives in here and nowhere else.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

FLOW_SIGMA_MAX = 1e9
"""Where flow starts: sigma = t / (1 - t) is infinite at t = 1; at 1e9 the signal is below float32's last bit."""

ZERO_SNR_SIGMA_MAX = 4096.0
"""Where a schedule of zero terminal SNR starts instead of at infinity: there alpha_bar is about 2^-24. Or at sqrt(2)
times the sigma before it, where that is more. (Cosine ends at 20,291 by itself, so it gains nothing.)"""


def _wide(x: Tensor) -> Tensor:
    """float64, where the device has it (Apple's has not)."""
    return x.float() if x.device.type == "mps" else x.double()


def _on(table: Tensor, device: torch.device) -> Tensor:
    """A float64 table on a device, in the widest type that it has."""
    return table.float().to(device) if device.type == "mps" else table.to(device)


class Schedule(Protocol):
    """What training and ladders need to know of a schedule."""

    sigma_min: float
    """The least noise that a sampler visits before 0."""
    sigma_max: float
    """The noise that sampling starts from."""

    def sigma(self, u: Tensor) -> Tensor:
        """Sigma at `u` in (0, 1), increasing; float64 of u's shape."""

    def u(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`; float64 of sigma's shape."""

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the net is told of sigma, clamped to the trained range; float64 of sigma's shape."""

    def sigma_at(self, t: Tensor) -> Tensor:
        """Sigma at the schedule's own time t in (0, 1], in which ladders are uniform. It is u where training draws
        times uniformly, and where it does not (logit-normal) what u would be if it did."""

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma_at`."""


def betas(kind: str, num_steps: int, beta_range: tuple[float, float] | None = None) -> Tensor:
    """beta_t, float64 [num_steps], of a DDPM schedule.

    linear: Ho et al. 2020, 1e-4 to 0.02 over 1,000 steps; scaled by 1000 / num_steps, so that its end stays.
    scaled-linear: Rombach et al. 2022, 0.00085 to 0.012, uniform in sqrt(beta); scaled likewise.
    cosine: Nichol & Dhariwal 2021, eq. 17, with s = 0.008 and beta <= 0.999.
    sigmoid: Jabri et al. 2022, algorithm 1 (start -3, end 3, tau 1), of alpha_bar, with beta <= 0.999.
    `beta_range` is the first and the last beta of linear and scaled-linear in place of theirs, not scaled.

    Raises:
        ValueError: for an unknown `kind`, or a `beta_range` of a kind that has none.
    """
    scale = 1000 / num_steps
    if kind == "linear":
        first, last = beta_range or (scale * 1e-4, scale * 0.02)
        return torch.linspace(first, last, num_steps, dtype=torch.float64).clamp(max=0.999)
    if kind == "scaled-linear":
        first, last = beta_range or (scale * 0.00085, scale * 0.012)
        return (torch.linspace(first**0.5, last**0.5, num_steps, dtype=torch.float64) ** 2).clamp(max=0.999)
    if beta_range is not None:
        raise ValueError(f"a beta_range is of linear and scaled-linear, not of {kind}")
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if kind == "cosine":
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    elif kind == "sigmoid":
        curve = torch.sigmoid(6 * t - 3)
        alpha_bar = (curve[-1] - curve) / (curve[-1] - curve[0])
    else:
        raise ValueError(f"unknown DDPM schedule {kind!r}; there are linear, scaled-linear, cosine and sigmoid")
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def zero_terminal_snr(beta: Tensor) -> Tensor:
    """beta_t [T] changed so that nothing of the image is left at the end (Lin et al. 2023, algorithm 1).

    sqrt(alpha_bar) is shifted so that its last value is 0 and scaled so that its first one stays.
    """
    root = torch.cumprod(1 - beta, 0).sqrt()
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return torch.cat([beta[:1], 1 - alpha_bar[1:] / alpha_bar[:-1]])


class DDPMSchedule:
    r"""The discrete process of DDPM (Ho et al. 2020), and the one place that speaks its notation.

    With beta_t given for t = 0 ... T-1 (the paper counts from 1), alpha_bar_t the product of (1 - beta_s), s <= t,

        q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)                                     (paper: eq. 4)

    Divide the noisy image by sqrt(alpha_bar_t) and it reads

        x_t / sqrt(alpha_bar_t) = x_0 + sigma_t * noise,    sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t)

    which is the coordinate of all other code. `posterior` gives the paper's eq. 6 and 7; the sampler `euler(eta=1)` is
    that step in the coordinate above (a test shows it).

    Between its steps the schedule goes on continuously (log sigma is linear between neighbours): u = (t + 1) / T, so
    that u in (0, 1] covers the T steps. At and between the steps the net is told t, exact integers on the grid.

    Args:
        num_steps: T.
        kind: "linear", "scaled-linear", "cosine" or "sigmoid" (see `betas`).
        zero_snr: see `zero_terminal_snr`; sigma, infinite at the end, is `ZERO_SNR_SIGMA_MAX` there. Not for a
            net that predicts epsilon, which says nothing of the image where x is nothing but noise.
        shift: multiplies every sigma, and alpha_bar and beta change to match: see `shifted`.
        beta_range: see `betas`.
        rescale_timesteps: tell the net 1000 t / T in place of t, as improved diffusion does.
    """

    def __init__(
        self,
        num_steps: int = 1000,
        kind: str = "linear",
        zero_snr: bool = False,
        shift: float = 1.0,
        beta_range: tuple[float, float] | None = None,
        rescale_timesteps: bool = False,
    ) -> None:
        if num_steps < 2:
            raise ValueError(f"a DDPM schedule needs at least 2 steps, not {num_steps}")
        self.num_steps, self.kind, self.zero_snr, self.shift = num_steps, kind, zero_snr, shift
        self.beta_range, self.rescale_timesteps = beta_range, rescale_timesteps
        self.beta = betas(kind, num_steps, beta_range)  # [T]
        if zero_snr:
            self.beta = zero_terminal_snr(self.beta)
        self.alpha_bar = torch.cumprod(1 - self.beta, 0)  # [T]
        if zero_snr:
            self.alpha_bar[-1] = min(1 / (1 + ZERO_SNR_SIGMA_MAX**2), self.alpha_bar[-2].item() / 2)
        self.sigmas = shift * ((1 - self.alpha_bar) / self.alpha_bar).sqrt()  # [T]
        if shift != 1 or zero_snr:
            self.alpha_bar = 1 / (1 + self.sigmas**2)
            self.beta = 1 - self.alpha_bar / torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])
        self.sigma_min, self.sigma_max = self.sigmas[0].item(), self.sigmas[-1].item()
        self._tables = {torch.device("cpu"): self.sigmas.log()}

    def _log_sigmas(self, device: torch.device) -> Tensor:
        if device not in self._tables:  # kept, so that a training step on a GPU copies nothing
            self._tables[device] = _on(self._tables[torch.device("cpu")], device)
        return self._tables[device]

    def _t(self, sigma: Tensor) -> Tensor:
        """Continuous t of sigma: exact integers on the grid, extrapolated beyond it; float64."""
        table = self._log_sigmas(sigma.device)
        value = _wide(sigma).log()
        low = (torch.searchsorted(table, value.contiguous(), right=True) - 1).clamp(0, self.num_steps - 2)
        return low + (value - table[low]) / (table[low + 1] - table[low])

    def sigma(self, u: Tensor) -> Tensor:
        """See `Schedule`."""
        t = _wide(u) * self.num_steps - 1
        table = self._log_sigmas(u.device)
        low = t.floor().long().clamp(0, self.num_steps - 2)
        return torch.lerp(table[low], table[low + 1], t - low).exp()

    def u(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return (self._t(sigma) + 1) / self.num_steps

    def c_noise(self, sigma: Tensor) -> Tensor:
        """The timestep, 0 to T-1. A sigma of float32 still gives the integer that it stands for."""
        t = self._t(sigma)
        t = torch.where((t - t.round()).abs() < 5e-3, t.round(), t).clamp(0, self.num_steps - 1)
        return t * (1000 / self.num_steps) if self.rescale_timesteps else t

    @property
    def first_variance(self) -> float:
        """beta~_1, which stands in for beta~_0 = 0 where a variance is wanted (Nichol & Dhariwal 2021, section 3.1)."""
        return ((1 - self.alpha_bar[0]) / (1 - self.alpha_bar[1]) * self.beta[1]).item()

    def posterior(self, x0: Tensor, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0), eq. 6 and 7, in the paper's own coordinates; t = 0 ... T-1."""
        alpha_bar = self.alpha_bar[t]
        previous = self.alpha_bar[t - 1] if t else torch.ones((), dtype=torch.float64)
        beta, alpha = self.beta[t], 1 - self.beta[t]
        mean = previous.sqrt() * beta / (1 - alpha_bar) * x0 + alpha.sqrt() * (1 - previous) / (1 - alpha_bar) * x_t
        return mean, (1 - previous) / (1 - alpha_bar) * beta

    def sigma_at(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.sigma(t)

    def time(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.u(sigma)

    def previous(self, sigma: Tensor) -> Tensor:
        """Sigma one step of the chain below `sigma`, 0 below its first; for the posterior and the VLB. float64.

        Between the grid's levels the chain is that of the levels between: u - 1 / T.
        """
        t = self._t(sigma)
        return torch.where(t < 0.5, 0.0, self.sigma(t / self.num_steps))


class EDMSchedule:
    """EDM (Karras et al. 2022): training draws log sigma from a normal; the net is told log(sigma) / 4 (table 1).

    Args:
        sigma_min, sigma_max: the range that samplers walk.
        log_mean, log_std: P_mean and P_std of the training distribution.
    """

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, log_mean: float = -1.2, log_std: float = 1.2
    ) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.log_mean, self.log_std = log_mean, log_std

    def sigma(self, u: Tensor) -> Tensor:
        """See `Schedule`."""
        inside = _wide(u).clamp(1e-12, 1 - 1e-12)
        return (self.log_mean + self.log_std * torch.special.ndtri(inside)).exp()

    def u(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return torch.special.ndtr((_wide(sigma).log() - self.log_mean) / self.log_std)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """log(sigma) / 4."""
        return _wide(sigma).clamp(self.sigma_min, self.sigma_max).log() / 4

    @property
    def _sampled(self) -> float:
        """The share of training that is below `sigma_max`."""
        return self.u(torch.tensor(self.sigma_max, dtype=torch.float64)).item()

    def sigma_at(self, t: Tensor) -> Tensor:
        """See `Schedule`; EDM knows no time but the share of training below a sigma, of that below `sigma_max`."""
        return self.sigma(_wide(t) * self._sampled)

    def time(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.u(sigma) / self._sampled


class FlowSchedule:
    """Rectified flow (Liu et al. 2022): (1 - t) x0 + t noise, so sigma = t / (1 - t); the net is told 1000 t.

    Args:
        logit_normal: draw t from a logit-normal (Esser et al. 2024, section 3.1: mean 0, deviation 1), else uniformly.
    """

    def __init__(self, logit_normal: bool = False) -> None:
        self.logit_normal = logit_normal
        self.sigma_min, self.sigma_max = 1e-3, FLOW_SIGMA_MAX

    def sigma(self, u: Tensor) -> Tensor:
        """See `Schedule`."""
        if self.logit_normal:  # logit(t) = log sigma is a standard normal
            return torch.special.ndtri(_wide(u).clamp(1e-12, 1 - 1e-12)).exp()
        return self.sigma_at(u)

    def u(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return torch.special.ndtr(_wide(sigma).log()) if self.logit_normal else self.time(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """1000 t, 0 to 1000."""
        return 1000 * self.time(sigma)

    def sigma_at(self, t: Tensor) -> Tensor:
        """t / (1 - t), at most `FLOW_SIGMA_MAX`."""
        t = _wide(t)
        return (t / (1 - t)).clamp(max=FLOW_SIGMA_MAX)

    def time(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        sigma = _wide(sigma)
        return sigma / (1 + sigma)


class ShiftedSchedule:
    """A continuous schedule with every sigma multiplied by `factor`; see `shifted`."""

    def __init__(self, base: Schedule, factor: float) -> None:
        self.base, self.factor = base, factor
        self.sigma_min, self.sigma_max = base.sigma_min * factor, min(base.sigma_max * factor, FLOW_SIGMA_MAX)

    def sigma(self, u: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.factor * self.base.sigma(u)

    def u(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.base.u(sigma / self.factor)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the base says of sigma / factor."""
        return self.base.c_noise(sigma / self.factor)

    def sigma_at(self, t: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.factor * self.base.sigma_at(t)

    def time(self, sigma: Tensor) -> Tensor:
        """See `Schedule`."""
        return self.base.time(sigma / self.factor)


def shifted(schedule: Schedule, factor: float) -> Schedule:
    """`schedule` with every sigma multiplied by `factor`: larger images need more noise to hide as much.

    Hoogeboom et al. 2023 (simple diffusion), section 3.1: factor = size / 64. Itself where factor is 1.
    """
    if factor == 1:
        return schedule
    if isinstance(schedule, DDPMSchedule):  # stays a chain, with the beta and alpha_bar of its new sigmas
        s = schedule
        return DDPMSchedule(s.num_steps, s.kind, s.zero_snr, s.shift * factor, s.beta_range, s.rescale_timesteps)
    return ShiftedSchedule(schedule, factor)


# Ladders: n + 1 descending sigmas, float64, the last is 0.


def _end(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def karras(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, eq. 5: uniform in sigma^(1/rho) from `sigma_max` to `sigma_min`, then 0."""
    steps = torch.linspace(0, 1, n, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _end((high + steps * (low - high)) ** rho)


def uniform_log_snr(sigma_min: float, sigma_max: float, n: int) -> Tensor:
    """Uniform in log sigma (so in log-SNR = -2 log sigma) from `sigma_max` to `sigma_min`, then 0."""
    return _end(torch.linspace(math.log(sigma_max), math.log(sigma_min), n, dtype=torch.float64).exp())


def uniform_t(schedule: Schedule, n: int, spacing: Literal["trailing", "leading", "linspace"] = "trailing") -> Tensor:
    """Uniform in the schedule's own time, then 0.

    trailing: t = 1, 1 - 1/n ... 1/n: starts at pure noise (Lin et al. 2023, section 3.3).
    linspace: both ends, t = 1 ... t(sigma_min).  leading: t(sigma_min) + k/n: never visits t = 1 (DDIM's own),
    and with n = 1 only sigma_min.
    With n = T all three are the grid of a DDPM schedule.

    Raises:
        ValueError: for an unknown `spacing`.
    """
    first = schedule.time(torch.tensor(schedule.sigma_min, dtype=torch.float64)).item()
    k = torch.arange(n, dtype=torch.float64)
    if spacing == "trailing":
        t = 1 - k / n
    elif spacing == "linspace":
        t = torch.linspace(1, first, n, dtype=torch.float64)
    elif spacing == "leading":
        t = first + (n - 1 - k) * min(1 / n, (1 - first) / max(1, n - 1))
    else:
        raise ValueError(f"unknown spacing {spacing!r}; there are trailing, leading and linspace")
    return _end(schedule.sigma_at(t).clamp(max=schedule.sigma_max))
