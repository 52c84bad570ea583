"""Schedules and ladders against the papers' formulas."""

import math

import numpy as np
import pytest
import torch

from diffunet.diffusion.schedules import (
    DDPMSchedule,
    EDMSchedule,
    FlowSchedule,
    betas,
    karras,
    shifted,
    uniform_log_snr,
    uniform_t,
    zero_terminal_snr,
)

KINDS = ("linear", "scaled-linear", "cosine", "sigmoid")

SCHEDULES = {
    **{kind: DDPMSchedule(1000, kind) for kind in KINDS},
    "zero-snr": DDPMSchedule(1000, "scaled-linear", zero_snr=True),
    "short": DDPMSchedule(10, "cosine"),
    "edm": EDMSchedule(),
    "flow": FlowSchedule(),
    "flow, logit-normal": FlowSchedule(logit_normal=True),
    "shifted": shifted(DDPMSchedule(1000, "cosine"), 4.0),
    "shifted flow": shifted(FlowSchedule(), 3.0),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_sigma_increases_and_u_is_its_inverse(schedule):
    u = torch.linspace(0.001, 0.999, 4001, dtype=torch.float64)
    sigma = schedule.sigma(u)
    assert sigma.dtype == torch.float64
    assert (sigma.diff() > 0).all()
    assert torch.allclose(schedule.u(sigma), u, atol=1e-9)
    assert (schedule.c_noise(sigma).diff() >= 0).all()
    assert torch.allclose(schedule.time(schedule.sigma_at(u)), u, atol=1e-9)


def test_betas_are_the_papers():
    linear = betas("linear", 1000).numpy()
    assert np.allclose(linear, np.linspace(1e-4, 0.02, 1000))

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    cosine = [min(1 - f(t + 1) / f(t), 0.999) for t in range(1000)]
    assert np.allclose(betas("cosine", 1000).numpy(), cosine)
    assert DDPMSchedule(1000, "cosine").sigma_max == pytest.approx(20_291, rel=1e-4)
    assert betas("linear", 10).max() <= 0.999
    assert np.allclose(betas("scaled-linear", 1000).numpy(), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    with pytest.raises(ValueError, match="unknown"):
        betas("quadratic", 10)


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_by_the_number_of_steps_a_schedule_goes_through_the_same_noise(kind):
    """Half-way the sigma of 1,000 steps is that of 4,000."""
    few, many = (DDPMSchedule(n, kind).sigma(torch.tensor([0.25, 0.5, 0.75])) for n in (1000, 4000))
    assert torch.allclose(few, many, rtol=0.02)


def enforce_zero_terminal_snr(beta):
    """Lin et al. 2023, algorithm 1, step by step: betas -> betas."""
    root = np.sqrt(np.cumprod(1 - beta))
    first, final = root[0], root[-1]
    root = root - final
    root = root * first / (first - final)
    alpha_bar = root**2
    alpha = np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alpha


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [2, 50, 1000])
def test_zero_terminal_snr_is_the_papers_algorithm(kind, num_steps):
    beta = betas(kind, num_steps)
    ours = zero_terminal_snr(beta)
    assert np.allclose(ours.numpy(), enforce_zero_terminal_snr(beta.numpy()), rtol=1e-9)
    root = torch.cumprod(1 - ours, 0).sqrt()
    assert root[-1] == 0
    assert root[0] == pytest.approx((1 - beta[0]).sqrt().item())
    schedule = DDPMSchedule(num_steps, kind, zero_snr=True)
    assert np.allclose(schedule.alpha_bar[:-1].numpy(), (root[:-1] ** 2).numpy())
    assert (schedule.sigmas.diff() > 0).all()
    assert schedule.sigma_max == pytest.approx(max(4096, math.sqrt(2) * schedule.sigmas[-2].item()), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("shift", [1.0, 0.5, 4.0])
def test_a_chain_agrees_with_its_sigmas(kind, zero_snr, shift):
    """alpha_bar, beta and the posterior are those of the sigmas, after a shift and the cap of zero SNR too."""
    schedule = shifted(DDPMSchedule(20, kind, zero_snr), shift)
    assert torch.allclose(schedule.alpha_bar, 1 / (1 + schedule.sigmas**2), rtol=1e-9)
    assert torch.allclose(torch.cumprod(1 - schedule.beta, 0), schedule.alpha_bar, rtol=1e-9)
    for t in (0, 1, 10, 19):
        sigma = schedule.sigmas[t]
        below = schedule.sigmas[t - 1] if t else torch.zeros((), dtype=torch.float64)
        x0, x = (torch.tensor(value, dtype=torch.float64) for value in (0.7, -3.0))
        mean, variance = schedule.posterior(x0, schedule.alpha_bar[t].sqrt() * x, t)
        # The law of x' given x = x' + sqrt(sigma^2 - sigma'^2) n and x0: two Gaussian measurements of x' joined.
        one, other = sigma**2 - below**2, below**2
        scale = (1 + below**2).sqrt()  # 1 / sqrt(alpha_bar) of x'
        assert mean * scale == pytest.approx(((x * other + x0 * one) / (one + other)).item(), rel=1e-9)
        assert variance * scale**2 == pytest.approx((one * other / (one + other)).item(), rel=1e-7, abs=1e-12)


def test_posterior_by_bayes_on_a_fine_grid():
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0): integrate that numerically."""
    schedule = DDPMSchedule(50, "cosine")
    x0, x_t, t = 0.7, -0.4, 20
    grid = np.linspace(-6, 6, 400_001)
    beta, previous = schedule.beta[t].item(), schedule.alpha_bar[t - 1].item()
    log = -((x_t - math.sqrt(1 - beta) * grid) ** 2) / (2 * beta)
    log -= (grid - math.sqrt(previous) * x0) ** 2 / (2 * (1 - previous))
    weight = np.exp(log - log.max())
    mean = (weight * grid).sum() / weight.sum()
    variance = (weight * (grid - mean) ** 2).sum() / weight.sum()
    ours = schedule.posterior(torch.tensor(x0, dtype=torch.float64), torch.tensor(x_t, dtype=torch.float64), t)
    assert ours[0].item() == pytest.approx(mean, abs=1e-8)
    assert ours[1].item() == pytest.approx(variance, abs=1e-8)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_previous_is_one_step_down_on_the_grid_and_between(shift, dtype):
    schedule = shifted(DDPMSchedule(100, "cosine"), shift)
    below = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.sigmas[:-1]])
    assert torch.allclose(schedule.previous(schedule.sigmas.to(dtype)), below, rtol=1e-4)
    assert schedule.previous(schedule.sigmas[:1].to(dtype)) == 0  # exactly
    middle = (schedule.sigmas[1:] * schedule.sigmas[:-1]).sqrt()  # log sigma is linear between neighbours
    assert torch.allclose(schedule.previous(middle[1:].to(dtype)), middle[:-1], rtol=1e-4)
    sigma = schedule.sigma(torch.linspace(1e-3, 1 - 1e-3, 999, dtype=torch.float64)).to(dtype)
    assert (schedule.previous(sigma) < sigma).all()
    assert (schedule.previous(sigma).diff() >= 0).all()


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_as_many_steps_as_the_schedule_are_its_grid(spacing):
    schedule = DDPMSchedule(100, "cosine")
    assert torch.allclose(uniform_t(schedule, 100, spacing)[:-1], schedule.sigmas.flip(0), rtol=1e-9)


def test_karras_and_log_snr_by_their_formulas():
    ladder = karras(0.002, 80.0, 18)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert np.allclose(ladder[:-1].numpy(), expected)
    steps = uniform_log_snr(0.01, 100.0, 9)[:-1].log().diff()
    assert torch.allclose(steps, steps[0].expand(8))


def test_training_distributions():
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_sigma = EDMSchedule(log_mean=-1.2, log_std=1.2).sigma(u).log()
    assert log_sigma.mean().item() == pytest.approx(-1.2, abs=0.01)
    assert log_sigma.std().item() == pytest.approx(1.2, abs=0.01)
    sigma = FlowSchedule().sigma(u)
    assert torch.allclose(sigma / (1 + sigma), u)
    sigma = FlowSchedule(logit_normal=True).sigma(u)
    logit = torch.logit(sigma / (1 + sigma))
    assert logit.std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "base",
    [DDPMSchedule(1000, "cosine"), EDMSchedule(), FlowSchedule(), FlowSchedule(logit_normal=True)],
    ids=lambda base: type(base).__name__,
)
def test_a_shift_multiplies_sigma_and_tells_the_net_the_same(base):
    moved = shifted(base, 4.0)
    u = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.allclose(moved.sigma(u), 4 * base.sigma(u))
    assert torch.allclose(moved.sigma_at(u), 4 * base.sigma_at(u))
    assert torch.allclose(moved.c_noise(moved.sigma(u)), base.c_noise(base.sigma(u)))
    assert torch.allclose(moved.time(moved.sigma(u)), base.time(base.sigma(u)))
    assert moved.sigma_min == pytest.approx(4 * base.sigma_min)
    assert moved.sigma_max == pytest.approx(min(4 * base.sigma_max, 1e9))
    assert shifted(base, 1) is base


def test_betas_from_one_to_another_are_as_given():
    schedule = DDPMSchedule(500, "linear", beta_range=(1e-4, 0.02))  # as diffusers has it: not scaled to 500 steps
    assert schedule.beta.tolist() == pytest.approx([1e-4 + (0.02 - 1e-4) * t / 499 for t in range(500)])
    roots = [0.001**0.5 + (0.01**0.5 - 0.001**0.5) * t / 9 for t in range(10)]
    given = DDPMSchedule(10, "scaled-linear", beta_range=(0.001, 0.01))
    assert given.beta.tolist() == pytest.approx([root**2 for root in roots])
    assert shifted(given, 2.0).sigmas.tolist() == pytest.approx((2 * given.sigmas).tolist())
    with pytest.raises(ValueError, match="cosine"):
        DDPMSchedule(10, "cosine", beta_range=(0.1, 0.2))


def test_rescaled_timesteps_are_of_a_thousand():
    schedule = DDPMSchedule(4000, "cosine", rescale_timesteps=True)
    assert schedule.c_noise(schedule.sigmas).tolist() == pytest.approx([t / 4 for t in range(4000)])
    assert shifted(schedule, 2.0).c_noise(2 * schedule.sigmas)[400].item() == pytest.approx(100)
