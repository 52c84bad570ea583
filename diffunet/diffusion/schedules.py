"""Noise schedules say how often training meets each noise level, and ladders which of them a sampler visits.

All schedules share one coordinate, `x = x0 + sigma * noise`; the noise level sigma is the ratio of noise to signal. A
schedule is an increasing function from u in (0, 1) to sigma. Training draws u uniformly. A ladder is a list of noise
levels in descending order. What each paper calls time (timestep, log sigma, t) stays within this file.

Legend: T number of steps of a DDPM chain, n number of sampling steps.
"""

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffunet.errors import UsageError

FLOW_SIGMA_MAX = 1e9
"""The noise level of a flow at t = 1, in place of infinity: a signal this much weaker is below float32's last bit."""

ZERO_SNR_SIGMA_MAX = 4096.0
"""The last noise level of a schedule of zero terminal SNR, in place of infinity; alpha_bar is about 2^-24 there. It is
sqrt(2) times the level before it, if that is larger. (Cosine reaches 20,291 anyway, so zero_snr adds nothing to it.)"""


def _wide(x: Tensor) -> Tensor:
    """Convert to float64, or to float32 on Apple's GPUs, which have no float64."""
    return x.float() if x.device.type == "mps" else x.double()


class Schedule(Protocol):
    """A noise schedule, as training and ladders use it. Results have the shape of the argument, in float64.

    Sampling starts from the noise level `sigma_max`; `sigma_min` is the lowest that it visits before 0.
    """

    sigma_min: float
    sigma_max: float

    def sigma(self, u: Tensor) -> Tensor:
        """Return the noise level at `u` in (0, 1); it increases with u."""

    def u(self, sigma: Tensor) -> Tensor:
        """Return the inverse of `sigma`."""

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return the number that stands for `sigma` at the input of the net, clamped to the range of training."""

    def sigma_at(self, t: Tensor) -> Tensor:
        """Return the noise level at the schedule's own time `t` in (0, 1], in which ladders are uniform.

        Time is u where training draws times uniformly; for logit-normal it is the u of the uniform schedule.
        """
        return self.sigma(t)

    def time(self, sigma: Tensor) -> Tensor:
        """Return the inverse of `sigma_at`."""
        return self.u(sigma)


def betas(kind: str, num_steps: int, beta_range: tuple[float, float] | None = None) -> Tensor:
    """Return the variances beta_t of the steps of a DDPM schedule, float64 [T].

    Args:
        kind: "linear", 1e-4 to 0.02 over 1,000 steps (Ho et al. 2020), scaled by 1000 / T to end at the same noise
            level; "scaled-linear", 0.00085 to 0.012, uniform in sqrt(beta) and scaled likewise (Rombach et al. 2022);
            "cosine", s = 0.008 (Nichol & Dhariwal 2021, eq. 17); "sigmoid", start -3, end 3, tau 1, of alpha_bar (Jabri
            et al. 2022, figure 8; Chen 2023, algorithm 1). No beta is above 0.999.
        num_steps, beta_range: T; the first and the last beta of "linear" and "scaled-linear", used without scaling.

    Raises:
        ValueError: for an unknown `kind`, or for a `beta_range` with a kind that has none.
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
    """Change beta_t [T] so that nothing of the image is left at the end (Lin et al. 2023, algorithm 1).

    sqrt(alpha_bar) is shifted so that its last value is 0, and scaled so that its first value stays.
    """
    root = torch.cumprod(1 - beta, 0).sqrt()
    alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return torch.cat([beta[:1], 1 - alpha_bar[1:] / alpha_bar[:-1]])


class DDPMSchedule(Schedule):
    """The discrete chain of DDPM (Ho et al. 2020). No other code uses the paper's notation.

    With beta_t for t = 0 ... T-1 (the paper counts from 1) and alpha_bar_t, the product of (1 - beta_s) over s <= t,
    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) (eq. 4). In the coordinate of all other code the noisy
    image is x_t / sqrt(alpha_bar_t) = x_0 + sigma_t * noise, with sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t).
    `posterior` gives eq. 6 and 7; the sampler `euler(eta=1)` is that step in this coordinate (a test shows it).

    Between its steps the schedule is continuous: log sigma is linear between neighbours, and u = (t + 1) / T, so that
    u in (0, 1] covers the T steps. `c_noise` is the timestep t, an exact integer at each step.

    Args:
        num_steps, kind, beta_range: T, at least 2; see `betas`.
        zero_snr: use `zero_terminal_snr`; the last sigma, which would be infinite, is `ZERO_SNR_SIGMA_MAX`. This is not
            for a net that predicts epsilon: where x is pure noise, that prediction says nothing about the image.
        shift: the factor of every sigma, to which alpha_bar and beta are adapted; see `shifted`.
        rescale_timesteps: let `c_noise` be 1000 t / T in place of t, as in improved diffusion.

    Raises:
        ValueError: for fewer than 2 steps, and as `betas`.
    """

    def __init__(
        self, num_steps: int = 1000, kind: str = "linear", zero_snr: bool = False, shift: float = 1.0,
        beta_range: tuple[float, float] | None = None, rescale_timesteps: bool = False,
    ) -> None:  # fmt: skip
        if num_steps < 2:
            raise ValueError(f"a DDPM schedule needs at least 2 steps, not {num_steps}")
        self.num_steps, self.kind, self.zero_snr, self.shift = num_steps, kind, zero_snr, shift
        self.beta_range, self.rescale_timesteps = beta_range, rescale_timesteps
        beta = betas(kind, num_steps, beta_range)
        self.beta = zero_terminal_snr(beta) if zero_snr else beta  # [T]
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
        if device not in self._tables:  # The copy is kept, so that a training step on a GPU transfers nothing.
            table = self._tables[torch.device("cpu")]
            self._tables[device] = (table.float() if device.type == "mps" else table).to(device)
        return self._tables[device]

    def _t(self, sigma: Tensor) -> Tensor:
        """Return the continuous timestep of sigma: exact integers at the steps, extrapolated beyond both ends."""
        table = self._log_sigmas(sigma.device)
        value = _wide(sigma).log()
        low = (torch.searchsorted(table, value.contiguous(), right=True) - 1).clamp(0, self.num_steps - 2)
        return low + (value - table[low]) / (table[low + 1] - table[low])

    def sigma(self, u: Tensor) -> Tensor:
        t = _wide(u) * self.num_steps - 1
        table = self._log_sigmas(u.device)
        low = t.floor().long().clamp(0, self.num_steps - 2)
        return torch.lerp(table[low], table[low + 1], t - low).exp()

    def u(self, sigma: Tensor) -> Tensor:
        return (self._t(sigma) + 1) / self.num_steps

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return the timestep, 0 to T - 1, or 1000 / T times it with `rescale_timesteps`."""
        t = self._t(sigma)
        # A sigma that was rounded to float32 gives a t that is almost an integer; the integer is what was trained.
        t = torch.where((t - t.round()).abs() < 5e-3, t.round(), t).clamp(0, self.num_steps - 1)
        return t * (1000 / self.num_steps) if self.rescale_timesteps else t

    @property
    def first_variance(self) -> float:
        """beta~_1, which replaces beta~_0 = 0, the log of which is infinite (Nichol & Dhariwal 2021, section 3.1)."""
        return ((1 - self.alpha_bar[0]) / (1 - self.alpha_bar[1]) * self.beta[1]).item()

    def posterior(self, x0: Tensor, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of q(x_{t-1} | x_t, x_0), eq. 6 and 7, in the paper's coordinate; t = 0 ... T-1."""
        alpha_bar = self.alpha_bar[t]
        previous = self.alpha_bar[t - 1] if t else torch.ones((), dtype=torch.float64)
        beta, alpha = self.beta[t], 1 - self.beta[t]
        mean = previous.sqrt() * beta / (1 - alpha_bar) * x0 + alpha.sqrt() * (1 - previous) / (1 - alpha_bar) * x_t
        return mean, (1 - previous) / (1 - alpha_bar) * beta

    def previous(self, sigma: Tensor) -> Tensor:
        """Return the float64 noise level one step of the chain, 1 / T in u, below `sigma`; it is 0 below the first."""
        t = self._t(sigma)
        return torch.where(t < 0.5, 0.0, self.sigma(t / self.num_steps))


class EDMSchedule(Schedule):
    """The schedule of EDM (Karras et al. 2022, table 1): training draws log sigma from a normal distribution.

    P_mean and P_std are `log_mean` and `log_std`. Ladders and `c_noise` stay within `sigma_min` to `sigma_max`.
    """

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, log_mean: float = -1.2, log_std: float = 1.2
    ) -> None:
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.log_mean, self.log_std = log_mean, log_std
        # EDM has no time of its own; u, divided by its value at sigma_max so that it ends at 1, serves as time.
        self._u_max = self.u(torch.tensor(sigma_max, dtype=torch.float64, device="cpu")).item()

    def sigma(self, u: Tensor) -> Tensor:
        return (self.log_mean + self.log_std * torch.special.ndtri(_wide(u).clamp(1e-12, 1 - 1e-12))).exp()

    def u(self, sigma: Tensor) -> Tensor:
        return torch.special.ndtr((_wide(sigma).log() - self.log_mean) / self.log_std)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return log(sigma) / 4."""
        return _wide(sigma).clamp(self.sigma_min, self.sigma_max).log() / 4

    def sigma_at(self, t: Tensor) -> Tensor:
        return self.sigma(_wide(t) * self._u_max)

    def time(self, sigma: Tensor) -> Tensor:
        return self.u(sigma) / self._u_max


class FlowSchedule(Schedule):
    """The schedule of rectified flow (Liu et al. 2022): x_t = (1 - t) x0 + t noise, so that sigma = t / (1 - t).

    Training draws t uniformly or, with `logit_normal`, so that log sigma = logit(t) is standard normal (Esser et al.
    2024, section 3.1).
    """

    sigma_min, sigma_max = 1e-3, FLOW_SIGMA_MAX

    def __init__(self, logit_normal: bool = False) -> None:
        self.logit_normal = logit_normal

    def sigma(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(_wide(u).clamp(1e-12, 1 - 1e-12)).exp() if self.logit_normal else self.sigma_at(u)

    def u(self, sigma: Tensor) -> Tensor:
        return torch.special.ndtr(_wide(sigma).log()) if self.logit_normal else self.time(sigma)

    def c_noise(self, sigma: Tensor) -> Tensor:
        """Return 1000 t, 0 to 1000."""
        return 1000 * self.time(sigma)

    def sigma_at(self, t: Tensor) -> Tensor:
        t = _wide(t)
        return (t / (1 - t)).clamp(max=FLOW_SIGMA_MAX)

    def time(self, sigma: Tensor) -> Tensor:
        sigma = _wide(sigma)
        return sigma / (1 + sigma)


class ShiftedSchedule(Schedule):
    """A schedule `base` with every sigma multiplied by `factor`; see `shifted`.

    The larger image with `factor` times the noise is about as hard to denoise as the smaller one was, so u and
    `c_noise` are those of the base at sigma / factor: the net gets the same number for the same difficulty.
    """

    def __init__(self, base: Schedule, factor: float) -> None:
        self.base, self.factor = base, factor
        self.sigma_min, self.sigma_max = base.sigma_min * factor, min(base.sigma_max * factor, FLOW_SIGMA_MAX)

    def sigma(self, u: Tensor) -> Tensor:
        return self.factor * self.base.sigma(u)

    def u(self, sigma: Tensor) -> Tensor:
        return self.base.u(sigma / self.factor)

    def c_noise(self, sigma: Tensor) -> Tensor:
        return self.base.c_noise(sigma / self.factor)

    def sigma_at(self, t: Tensor) -> Tensor:
        return self.factor * self.base.sigma_at(t)

    def time(self, sigma: Tensor) -> Tensor:
        return self.base.time(sigma / self.factor)


def shifted(schedule: Schedule, factor: float) -> Schedule:
    """Return `schedule` with every sigma multiplied by `factor` (Hoogeboom et al. 2023, simple diffusion, section 3.1).

    Neighbouring pixels of a larger image are more alike, so more noise is needed to hide as much: factor is size / 64.
    """
    if factor == 1:
        return schedule
    if not isinstance(s := schedule, DDPMSchedule):
        return ShiftedSchedule(schedule, factor)
    # A chain stays one, with the beta and alpha_bar of the new sigmas.
    return DDPMSchedule(s.num_steps, s.kind, s.zero_snr, s.shift * factor, s.beta_range, s.rescale_timesteps)


# Ladders are float64 [n + 1]: n noise levels in descending order, then 0, with which `F.pad` ends them.


def karras(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0) -> Tensor:
    """Return the ladder of Karras et al. 2022, eq. 5, uniform in sigma^(1/rho) from `sigma_max` to `sigma_min`."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return F.pad((high + torch.linspace(0, 1, n, dtype=torch.float64) * (low - high)) ** rho, (0, 1))


def uniform_log_snr(sigma_min: float, sigma_max: float, n: int) -> Tensor:
    """Return a ladder uniform in log sigma, and so in log-SNR = -2 log sigma, from `sigma_max` to `sigma_min`."""
    return F.pad(torch.linspace(math.log(sigma_max), math.log(sigma_min), n, dtype=torch.float64).exp(), (0, 1))


def uniform_t(schedule: Schedule, n: int, spacing: Literal["trailing", "leading", "linspace"] = "trailing") -> Tensor:
    """Return a ladder uniform in the schedule's own time t; with n = T each spacing gives the steps of a DDPM chain.

    Spacing "trailing", t = 1, 1 - 1/n ... 1/n, starts at pure noise (Lin et al. 2023, section 3.3); "linspace" visits
    both ends, t = 1 ... t(sigma_min); "leading", DDIM's t = t(sigma_min) + k/n, visits sigma_min but not t = 1.

    Raises:
        ValueError: for an unknown `spacing`.
        UsageError: for "leading" of one step, from which no image can come.
    """
    first = schedule.time(torch.tensor(schedule.sigma_min, dtype=torch.float64)).item()
    k = torch.arange(n, dtype=torch.float64)
    if spacing == "trailing":
        t = 1 - k / n
    elif spacing == "linspace":
        t = torch.linspace(1, first, n, dtype=torch.float64)
    elif spacing == "leading":
        if n == 1:
            raise UsageError("ladder leading needs 2 steps: its only one would start at the lowest noise level")
        t = first + (n - 1 - k) * min(1 / n, (1 - first) / max(1, n - 1))
    else:
        raise ValueError(f"unknown spacing {spacing!r}; there are trailing, leading and linspace")
    return F.pad(schedule.sigma_at(t).clamp(max=schedule.sigma_max), (0, 1))
