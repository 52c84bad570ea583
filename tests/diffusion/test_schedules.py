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
)

SCHEDULES = {
    **{kind: DDPMSchedule(1000, kind) for kind in ("linear", "cosine", "sigmoid")},
    "short": DDPMSchedule(10, "cosine"),
    "edm": EDMSchedule(),
    "flow": FlowSchedule(),
    "flow, logit-normal": FlowSchedule(logit_normal=True),
    "shifted": shifted(DDPMSchedule(1000, "cosine"), 4.0),
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


@pytest.mark.parametrize("kind", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ddpm_tells_the_net_exact_integers_on_its_grid(kind, dtype):
    schedule = DDPMSchedule(1000, kind)
    assert torch.equal(schedule.c_noise(schedule.sigmas.to(dtype)), torch.arange(1000, dtype=torch.float64))
    assert schedule.c_noise(torch.tensor(1e-9)) == 0
    assert schedule.c_noise(torch.tensor(1e9)) == 999


def test_betas_are_the_papers():
    linear = betas("linear", 1000).numpy()
    assert np.allclose(linear, np.linspace(1e-4, 0.02, 1000))

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    cosine = [min(1 - f(t + 1) / f(t), 0.999) for t in range(1000)]
    assert np.allclose(betas("cosine", 1000).numpy(), cosine)
    assert DDPMSchedule(1000, "cosine").sigma_max == pytest.approx(20_291, rel=1e-4)
    assert betas("linear", 10).max() <= 0.999
    with pytest.raises(ValueError, match="unknown"):
        betas("quadratic", 10)


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


def test_previous_is_one_step_down():
    schedule = DDPMSchedule(10, "linear")
    assert schedule.previous(schedule.sigmas[5]).item() == pytest.approx(schedule.sigmas[4].item())
    assert schedule.previous(schedule.sigmas[0]).item() == 0


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("n", [1, 2, 10, 37])
def test_ladders_descend_to_zero_and_are_finite(schedule, spacing, n):
    ladder = uniform_t(schedule, n, spacing)
    assert ladder.shape == (n + 1,)
    assert ladder.dtype == torch.float64
    assert ladder.isfinite().all()
    assert (ladder.diff() < 0).all()
    assert ladder[-1] == 0


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


def test_a_shift_multiplies_sigma_and_tells_the_net_the_same():
    base = DDPMSchedule(1000, "cosine")
    moved = shifted(base, 4.0)
    u = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.allclose(moved.sigma(u), 4 * base.sigma(u))
    assert torch.allclose(moved.c_noise(moved.sigma(u)), base.c_noise(base.sigma(u)))
    assert shifted(base, 1) is base
