"""Samplers on Gaussian data, where the exact denoiser and the exact end of the ODE are known."""

import math

import pytest
import torch

from diffunet import draws
from diffunet.diffusion.denoiser import Denoised
from diffunet.diffusion.samplers import ddim, ddpm, dpmpp_2m, euler, heun, last, sample
from diffunet.diffusion.schedules import DDPMSchedule, uniform_log_snr, uniform_t

MEAN, SD = 0.4, 0.5


def exact(x, sigma):
    """E[x0 | x] for x0 ~ N(MEAN, SD^2)."""
    return Denoised((SD**2 * x + sigma**2 * MEAN) / (SD**2 + sigma**2))


def no_noise():
    raise AssertionError("this sampler makes no draw")


def error(step, n, sigma_max=80.0, sigma_min=0.05):
    """Distance to the exact end of the ODE at sigma_min, on a ladder uniform in log sigma."""
    x = MEAN + sigma_max * torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    ladder = uniform_log_snr(sigma_min, sigma_max, n + 1)[:-1]
    truth = MEAN + (x - MEAN) * math.sqrt((SD**2 + sigma_min**2) / (SD**2 + sigma_max**2))
    return (last(sample(exact, x, ladder, step, no_noise)) - truth).abs().max().item()


@pytest.mark.parametrize(("make", "order"), [(euler, 1), (ddim, 1), (heun, 2), (dpmpp_2m, 2)])
def test_order_of_convergence(make, order):
    coarse, fine = error(make(), 320), error(make(), 640)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_higher_order_is_better_at_few_steps():
    assert error(heun(), 16) < error(euler(), 32)  # the same number of calls
    assert error(dpmpp_2m(), 32) < error(euler(), 32)


def test_heun_on_a_cosine_ladder_of_ten_steps_is_no_worse_than_euler():
    ladder = uniform_t(DDPMSchedule(1000, "cosine"), 10)
    x = MEAN + ladder[0] * torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    truth = MEAN + (x - MEAN) * SD / math.sqrt(SD**2 + ladder[0] ** 2)
    errors = {s: (last(sample(exact, x, ladder, s(), no_noise)) - truth).abs().max() for s in (euler, heun)}
    assert errors[heun] < errors[euler]


@pytest.mark.parametrize(("kind", "data_sd"), [("small", SD), ("large", 1.0)])
def test_ddpm_reproduces_mean_and_variance(kind, data_sd):
    """With all 1,000 steps; `large` is right for unit data, `small` close for any."""
    schedule = DDPMSchedule(1000, "linear")
    noise = draws.streams(0, [0], (1, 200, 200))

    def denoise(x, sigma):
        return Denoised((data_sd**2 * x + sigma**2 * MEAN) / (data_sd**2 + sigma**2))

    x = MEAN + schedule.sigma_max * noise()
    x = last(sample(denoise, x, uniform_t(schedule, 1000), ddpm(kind), noise))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x.std().item() == pytest.approx(data_sd, rel=0.02)


def test_stochastic_ddim_keeps_the_variance_between_the_ends():
    ladder = uniform_t(DDPMSchedule(1000, "linear"), 500)
    for eta in (0.0, 0.5, 1.0):
        noise = draws.streams(1, [0], (1, 150, 150))
        x = last(sample(exact, MEAN + ladder[0] * noise(), ladder, euler(eta), noise))
        assert x.std().item() == pytest.approx(SD, rel=0.03)


def test_a_rise_adds_the_missing_noise_and_forgets_history():
    seen = []

    def step(denoise, x, sigma, sigma_next, noise, state):
        seen.append(state)
        return x, Denoised(x), "history"

    ladder = torch.tensor([3.0, 2.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    noise = draws.streams(0, [0], (1, 300, 300))
    states = [x.clone() for _, x, _ in sample(exact, torch.zeros(1, 1, 300, 300), ladder, step, noise)]
    assert seen == [None, "history", None]
    assert states[1].std() == 0
    assert states[2].std().item() == pytest.approx(math.sqrt(2**2 - 1**2), rel=0.01)


def test_ode_samplers_draw_nothing_and_call_as_often_as_they_say():
    calls = []

    def counting(x, sigma):
        calls.append(sigma)
        return exact(x, sigma)

    x = torch.randn(1, 1, 2, 2)
    ladder = uniform_log_snr(0.01, 80.0, 18)
    for step, expected in ((euler(), 18), (heun(), 35), (dpmpp_2m(), 18)):
        calls.clear()
        last(sample(counting, x, ladder, step, no_noise))
        assert len(calls) == expected


def test_watching_and_stopping_midway():
    walk = sample(exact, torch.ones(1, 1, 2, 2), uniform_log_snr(0.1, 10.0, 5), euler(), no_noise)
    i, x, denoised = next(walk)
    assert i == 0
    assert torch.equal(denoised.x0, exact(torch.ones(1, 1, 2, 2), torch.tensor(10.0, dtype=torch.float64)).x0)
    assert x.dtype == torch.float32
    walk.close()


@pytest.mark.parametrize("data_sd", [0.2, 0.5])
def test_the_default_ladder_and_sampler_keep_the_variance_of_the_data(data_sd):
    """25 steps of dpm++2m on the default schedule give a Gaussian's spread back, not a smoothed one."""
    from diffunet import build
    from diffunet.config import Config

    config = Config()
    schedule = build.schedule(config)
    ladder = build.ladder(config, schedule, config.diffusion.sample_steps)
    assert ladder[0] == schedule.sigma_max == 1e9
    x = ladder[0] * torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)

    def denoise(x, sigma):
        return Denoised(data_sd**2 * x / (data_sd**2 + sigma**2))

    end = last(sample(denoise, x, ladder, build.step(config), no_noise))
    assert torch.allclose(end / data_sd, x / ladder[0], rtol=0.02, atol=1e-6)
