"""Samplers on Gaussian data, where the exact denoiser and the exact end of the ODE are known."""

import math

import pytest
import torch

from diffunet import draws
from diffunet.diffusion.denoiser import Denoised
from diffunet.diffusion.samplers import (
    STRIDE_MAX,
    ddim,
    ddpm,
    dpmpp_2m,
    euler,
    euler_ancestral,
    heun,
    last,
    log_variance,
    sample,
    unipc,
)
from diffunet.diffusion.schedules import DDPMSchedule, FlowSchedule, shifted, uniform_log_snr, uniform_t

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


@pytest.mark.parametrize(("make", "order"), [(euler, 1), (ddim, 1), (heun, 2), (dpmpp_2m, 2), (unipc, 3)])
def test_order_of_convergence(make, order, device):
    coarse, fine = error(make(), 320), error(make(), 640)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_higher_order_is_better_at_few_steps(device):
    assert error(heun(), 16) < error(euler(), 32)  # the same number of calls
    assert error(dpmpp_2m(), 32) < error(euler(), 32)
    assert error(unipc(), 32) < error(dpmpp_2m(), 32)


def test_heun_on_a_cosine_ladder_of_ten_steps_is_no_worse_than_euler():
    ladder = uniform_t(DDPMSchedule(1000, "cosine"), 10)
    x = MEAN + ladder[0] * torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    truth = MEAN + (x - MEAN) * SD / math.sqrt(SD**2 + ladder[0] ** 2)
    errors = {s: (last(sample(exact, x, ladder, s(), no_noise)) - truth).abs().max() for s in (euler, heun)}
    assert errors[heun] < errors[euler]


STOCHASTIC = {
    "ddpm": ddpm("small"), "ddpm-large": ddpm("large"), "ddpm-learned": ddpm("learned"),
    "euler(0)": euler(0.0), "euler(0.5)": euler(0.5), "euler-ancestral": euler_ancestral(),
    "heun, churn 0.2": heun(gamma=0.2), "heun, churn in part": heun(gamma=math.sqrt(2) - 1, low=0.05, high=50.0),
    "dpm++2m-sde": dpmpp_2m(eta=1.0), "dpm++2m(0.5)": dpmpp_2m(eta=0.5),
}  # fmt: skip


@pytest.mark.parametrize(
    ("step", "sd"),
    [*((step, SD) for step in STOCHASTIC.values()), (ddpm("large"), 1.0)],
    ids=[*STOCHASTIC, "ddpm-large, unit data"],
)
def test_the_end_has_the_mean_and_spread_of_the_data(step, sd):
    """Exactly, without samples: all is linear, so the spread is the sum of squares of the answers to each unit draw."""
    ladder = uniform_log_snr(0.01, 80.0, 150)
    calls = iter(range(2 * len(ladder)))

    def unit():  # the last of these meets no draw: the mean
        one = torch.zeros(2 * len(ladder), 1, 1, 1, dtype=torch.float64)
        one[next(calls)] = 1
        return one

    def denoise(x, sigma):
        # The best variance is the posterior's and that of x0 given x, carried over; said as its share of the logs.
        below = ladder[(ladder < sigma).nonzero()[0]]
        small, large = (log_variance(kind, sigma, below, None, 1.0) for kind in ("small", "large"))
        best = (small.exp() + (1 - (below / sigma) ** 2) ** 2 * sd**2 * sigma**2 / (sd**2 + sigma**2)).log()
        x0 = (sd**2 * x + sigma**2 * MEAN) / (sd**2 + sigma**2)
        return Denoised(x0, ((best - small) / (large - small)).expand_as(x))

    end = last(sample(denoise, MEAN + ladder[0] * unit(), ladder, step, unit))
    assert end[-1].item() == pytest.approx(MEAN)
    end = end - end[-1]
    is_large = step is STOCHASTIC["ddpm-large"]  # right for unit data only
    assert end.norm().item() == pytest.approx(sd, rel=0.2 if is_large else 0.03)
    if step is STOCHASTIC["ddpm-learned"]:  # right at any number of steps
        assert end.norm().item() == pytest.approx(sd, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "calls", "draws_made"),
    [
        (ddpm("small"), 6, 5), (ddpm("large"), 6, 5), (ddpm("learned"), 6, 5),
        (ddim(), 6, 0), (ddim(0.5), 6, 5), (euler(), 6, 0), (euler_ancestral(), 6, 5),
        (heun(), 11, 0), (heun(gamma=0.1), 11, 6), (heun(gamma=0.1, low=0.5, high=3.0), 11, 2),
        (dpmpp_2m(), 6, 0), (dpmpp_2m(eta=1.0), 6, 5), (unipc(), 6, 0), (unipc(order=3), 6, 0),
    ],
)  # fmt: skip
def test_calls_and_draws(step, calls, draws_made, device):
    """On 6 steps, the last of them to 0; no draw that is not needed."""
    made = {"calls": 0, "draws": 0}

    def counting(x, sigma):
        made["calls"] += 1
        return exact(x, sigma)._replace(var=torch.full_like(x, 0.5))

    def noise():
        made["draws"] += 1
        return torch.ones(1, 1, 2, 2)

    ladder = torch.tensor([16.0, 8.0, 4.0, 2.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    x = last(sample(counting, torch.ones(1, 1, 2, 2), ladder, step, noise))
    assert made == {"calls": calls, "draws": draws_made}
    assert x.dtype == torch.float32


def test_names_that_are_one_thing():
    """euler_ancestral is euler(1) and ddpm("small"); a learned share of 0 is the small variance, of 1 the large."""
    ladder = uniform_log_snr(0.01, 80.0, 12)
    x = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0))

    def end(step, share=None):
        def denoise(x, sigma):
            return exact(x, sigma)._replace(var=None if share is None else torch.full_like(x, share))

        return last(sample(denoise, x, ladder, step, draws.streams(3, [0], (1, 5, 5))))

    assert torch.equal(end(euler_ancestral()), end(euler(1.0)))
    assert torch.equal(end(ddpm()), end(euler(1.0)))
    assert torch.equal(end(ddim(0.3)), end(euler(0.3)))
    assert torch.allclose(end(ddpm("learned"), 1.0), end(ddpm("large")), atol=1e-5)
    assert torch.allclose(end(ddpm("learned"), 0.0), end(ddpm("small")), atol=1e-5)
    assert torch.equal(end(heun(gamma=0.3, low=90.0)), end(heun()))
    with pytest.raises(ValueError, match="has not learned the variance"):
        end(ddpm("learned"))
    with pytest.raises(ValueError, match="unknown variance 'huge'"):
        end(ddpm("huge"))


def test_log_variance_is_between_the_papers_two():
    """beta and beta~ of Ho's chain (divided by alpha_bar of where the step ends), and the geometric mean half-way."""
    schedule = DDPMSchedule(50, "cosine")
    for t in (1, 20, 49):
        sigma, below, alpha_bar = schedule.sigmas[t], schedule.sigmas[t - 1], schedule.alpha_bar[t - 1]
        zero = torch.zeros((), dtype=torch.float64)
        _, small = schedule.posterior(zero, zero, t)
        large = schedule.beta[t]
        for share, wanted in ((0.0, small), (0.5, (small * large).sqrt()), (1.0, large)):
            ours = log_variance("learned", sigma, below, torch.tensor(share)).exp() * alpha_bar
            assert ours.item() == pytest.approx(wanted.item(), rel=1e-7)


@pytest.mark.parametrize(("size", "n"), [(70, 8), (71, 4), (73, 4)])
def test_a_step_from_nothing_but_noise_is_finite(size, n):
    """Where sigma is 1e9, the variance of the step is all of sigma'^2, or by rounding a little more."""
    ladder = uniform_t(shifted(FlowSchedule(), size / 64), n)
    x = torch.full((1, 1, 1, 1), ladder[0].item(), dtype=torch.float64)
    assert last(sample(exact, x, ladder, euler(1.0), lambda: torch.ones(1, 1, 1, 1))).isfinite().all()


def test_churn_lifts_sigma_by_its_share_first():
    """Karras et al. 2022, algorithm 2, lines 4 to 6, written out."""
    gamma, noise_scale = 0.25, 1.007
    x, n = torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    sigma, below = torch.tensor(2.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    ours, _, _ = heun(gamma, noise_scale=noise_scale)(exact, x, sigma, below, lambda: n, None)
    t_hat = sigma + gamma * sigma
    x_hat = x + (t_hat**2 - sigma**2).sqrt() * noise_scale * n
    d = (x_hat - exact(x_hat, t_hat).x0) / t_hat
    x_next = x_hat + (below - t_hat) * d
    d_next = (x_next - exact(x_next, below).x0) / below
    assert torch.allclose(ours, x_hat + (below - t_hat) * (d / 2 + d_next / 2))
    assert t_hat / below < STRIDE_MAX


@pytest.mark.parametrize("make", [dpmpp_2m, unipc])
def test_a_rise_takes_a_multistep_samplers_memory_away(make, device):
    """After a jump back the walk is a walk of its own from there."""
    down, again = uniform_log_snr(0.5, 80.0, 6)[:-1], uniform_log_snr(0.1, 20.0, 5)
    x = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    n = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    whole = last(sample(exact, x, torch.cat([down, again]), make(), lambda: n))
    middle = last(sample(exact, x, down, make(), no_noise)) + (again[0] ** 2 - down[-1] ** 2).sqrt() * n
    assert torch.equal(whole, last(sample(exact, middle, again, make(), no_noise)))


def test_a_rise_adds_the_missing_noise_and_forgets_history(device):
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


def test_watching_and_stopping_midway(device):
    walk = sample(exact, torch.ones(1, 1, 2, 2), uniform_log_snr(0.1, 10.0, 5), euler(), no_noise)
    i, x, denoised = next(walk)
    assert i == 0
    assert torch.equal(denoised.x0, exact(torch.ones(1, 1, 2, 2), torch.tensor(10.0, dtype=torch.float64)).x0)
    assert x.dtype == torch.float32
    walk.close()


def test_the_default_ladder_suits_the_sampler_and_one_that_is_chosen_stays():
    from diffunet import build
    from diffunet.config import Config

    config = Config()
    schedule = build.schedule(config)
    trailing, log_snr = uniform_t(schedule, 7), uniform_log_snr(schedule.sigma_min, 500.0, 7)
    for sampler in build.SAMPLERS:
        expected = log_snr if sampler in ("unipc", "dpm++2m") else trailing
        if sampler != "ddpm-learned":
            assert torch.equal(
                build.ladder(build.sampling(config.diffusion, sampler=sampler), schedule, 7), expected
            ), sampler
    chosen = build.sampling(config.diffusion, ladder="trailing")
    assert torch.equal(build.ladder(build.sampling(chosen, sampler="unipc"), schedule, 7), trailing)


@pytest.mark.parametrize("data_sd", [0.02, 0.1, 0.5, 1.0])
def test_the_default_ladder_and_sampler_keep_the_variance_of_the_data(data_sd):
    """The default steps of the default sampler give every Gaussian's spread back, the finest detail's too.

    A ladder uniform in time does not: 25 trailing steps leave 0.43 of a deviation of 0.02.
    """
    from diffunet import build
    from diffunet.config import Config

    config = Config()
    schedule = build.schedule(config)
    ladder = build.ladder(config.diffusion, schedule, config.diffusion.sample_steps)
    assert ladder[0].item() == pytest.approx(500)  # 1,000 times the data
    x = ladder[0] * torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)

    def denoise(x, sigma):
        return Denoised(data_sd**2 * x / (data_sd**2 + sigma**2))

    end = last(sample(denoise, x, ladder, build.step(config.diffusion), no_noise))
    assert torch.allclose(end / data_sd, x / ladder[0], rtol=0.05, atol=1e-6)
