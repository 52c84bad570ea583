"""Bits per dimension against closed forms: Gaussian data, whose density, denoiser and reverse steps are all known."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from helpers.small import tiny
from scipy.special import ndtr

import diffunet
from diffunet import build
from diffunet.data.index import split
from diffunet.diffusion.denoiser import Denoised
from diffunet.diffusion.likelihood import denoised_and_trace, log_density, variational_bound
from diffunet.diffusion.losses import log_likelihood, vlb_term
from diffunet.diffusion.schedules import DDPMSchedule, EDMSchedule, FlowSchedule
from diffunet.errors import Cancelled, UsageError
from diffunet.evaluation import reference, report
from diffunet.evaluation.bits_per_dimension import floor, highest, levels, lowest, ode, vlb
from diffunet.evaluation.features import train_classifier
from diffunet.sampling.pipeline import Pipeline

SHAPE, D = (1, 2, 3), 6
CHAINS = [DDPMSchedule(1000, kind) for kind in ("linear", "scaled-linear", "cosine", "sigmoid")]
SCHEDULES = {chain.kind: chain for chain in CHAINS} | {"flow": FlowSchedule(), "edm": EDMSchedule()}


class Gaussian:
    """Images of a normal of any mean and covariance, and their exact denoiser."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.mean = generator.uniform(-0.2, 0.2, D)
        turn = np.linalg.qr(generator.normal(size=(D, D)))[0]
        self.cov = turn @ np.diag([0.3, 0.1, 0.05, 0.02, 0.005, 1e-5]) @ turn.T
        self.sigma_data = math.sqrt(np.trace(self.cov) / D)

    def denoise(self, x, sigma):
        """m + C (C + sigma^2)^-1 (x - m), for sigma [] or [B]."""
        s = float(sigma.flatten()[0])
        gain = torch.from_numpy(self.cov @ np.linalg.inv(self.cov + s**2 * np.eye(D))).to(x)
        mean = torch.from_numpy(self.mean).to(x)
        return Denoised((mean + (x.flatten(1) - mean) @ gain.T).reshape(x.shape))

    def draw(self, n):
        drawn = np.random.default_rng(1).multivariate_normal(self.mean, self.cov, n)
        return torch.from_numpy(drawn).reshape(n, *SHAPE)

    def log_density(self, x, blur):
        cov, off = self.cov + blur**2 * np.eye(D), x.flatten(1).numpy() - self.mean
        square = np.einsum("bi,ij,bj->b", off, np.linalg.inv(cov), off)
        return -0.5 * (square + np.linalg.slogdet(cov)[1] + D * math.log(2 * math.pi))


def units(x):
    """Probes that give the exact trace: D^(1/2) times the unit vectors."""
    return [lambda e=e: (math.sqrt(D) * e).reshape(SHAPE).expand(x.shape) for e in torch.eye(D, dtype=x.dtype)]


def walk(low, high, steps=50):
    return torch.linspace(math.log(low), math.log(high), steps + 1, dtype=torch.float64).exp()


# The ODE


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ode_gives_the_density_of_a_gaussian(name):
    """Of every image by itself, on every schedule; blurred by the first sigma and by nothing else."""
    data, schedule = Gaussian(), SCHEDULES[name]
    low, high = lowest(schedule), highest(schedule, data.sigma_data)
    x = data.draw(50)
    mean = torch.from_numpy(data.mean).reshape(SHAPE)
    found = log_density(data.denoise, x, walk(low, high), mean, data.sigma_data, units(x))
    bits = (found.numpy() - data.log_density(x, low)) / (D * math.log(2))
    assert np.abs(bits).max() < 0.01
    assert abs(bits.mean()) < 0.002


def test_the_ode_converges_and_further_up_there_is_nothing_left():
    data = Gaussian()
    x = data.draw(20)
    exact = torch.from_numpy(data.log_density(x, 0.002))
    mean = torch.from_numpy(data.mean).reshape(SHAPE)

    def error(high, steps):
        found = log_density(data.denoise, x, walk(0.002, high, steps), mean, data.sigma_data, units(x))
        return ((found - exact).abs().max() / (D * math.log(2))).item()

    coarse, fine = error(300.0, 60), error(300.0, 120)
    assert math.log2(coarse / fine) > 2.5
    enough = highest(FlowSchedule(), data.sigma_data)
    assert enough < 60
    assert error(enough, 120) < 1e-3
    assert error(10 * enough, 140) < 1e-3
    assert error(1.0, 100) > 0.01


def test_hutchinson_is_unbiased():
    """All 2^6 probes, each once: their mean is the trace, by the covariance itself."""
    data, sigma = Gaussian(), torch.tensor(0.1, dtype=torch.float64)
    x = data.draw(2)
    signs = [torch.tensor(s, dtype=torch.float64).reshape(SHAPE) for s in itertools.product((-1.0, 1.0), repeat=D)]
    trace = np.trace(data.cov @ np.linalg.inv(data.cov + 0.01 * np.eye(D)))
    x0, found = denoised_and_trace(data.denoise, x, sigma, [s.expand(x.shape) for s in signs])
    assert found.numpy() == pytest.approx([trace, trace])
    assert not x0.requires_grad
    single = [denoised_and_trace(data.denoise, x, sigma, [s.expand(x.shape)])[1][0].item() for s in signs]
    assert np.std(single) > 0.01  # it takes the mean


# The variational bound


def normal_kl(mean1, logvar1, mean2, logvar2):
    """Of two normals, nats (guided-diffusion, losses.py)."""
    return 0.5 * (-1 + logvar2 - logvar1 + np.exp(logvar1 - logvar2) + (mean1 - mean2) ** 2 * np.exp(-logvar2))


def discretised(x, mean, log_scale):
    """Log-likelihood of 256 levels (guided-diffusion, losses.py), with the true cdf in place of its fit by a tanh."""
    plus, minus = (ndtr((x - mean + half) * np.exp(-log_scale)) for half in (1 / 255, -1 / 255))
    inside = np.where(x < -0.999, plus, np.where(x > 0.999, 1 - minus, plus - minus))
    return np.log(np.clip(inside, 1e-12, None))


class Ho:
    """The chain as the paper writes it, in numpy: beta, alpha_bar, the posterior, and the terms of the bound."""

    def __init__(self, beta):
        self.beta, self.alpha_bar = beta, np.cumprod(1 - beta)
        self.before = np.append(1.0, self.alpha_bar[:-1])
        self.small = beta * (1 - self.before) / (1 - self.alpha_bar)
        self.log_small = np.log(np.append(self.small[1], self.small[1:]))

    def posterior_mean(self, x0, x_t, t):
        a = self.beta[t] * np.sqrt(self.before[t]) / (1 - self.alpha_bar[t])
        b = (1 - self.before[t]) * np.sqrt(1 - self.beta[t]) / (1 - self.alpha_bar[t])
        return a * x0 + b * x_t

    def term(self, x0, x_t, t, denoised, fraction):
        """L_t in bits per dimension; `fraction` 0 is the small variance, 1 the large."""
        mean, log_var = (
            self.posterior_mean(denoised, x_t, t),
            (fraction * np.log(self.beta[t]) + (1 - fraction) * self.log_small[t]),
        )
        if t == 0:
            nats = -discretised(x0, mean, 0.5 * log_var)
        else:
            nats = normal_kl(self.posterior_mean(x0, x_t, t), self.log_small[t], mean, log_var)
        return nats.reshape(len(x0), -1).mean(1) / math.log(2)

    def prior(self, x0):
        a = self.alpha_bar[-1]
        return normal_kl(np.sqrt(a) * x0, np.log(1 - a), 0.0, 0.0).reshape(len(x0), -1).mean(1) / math.log(2)


def eight_bit(x):
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@pytest.mark.parametrize("t", [0, 1, 17, 500, 999])
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_term_of_the_bound_is_the_published_one(kind, variance, t):
    chain = DDPMSchedule(1000, kind)
    ho, generator = Ho(chain.beta.numpy()), np.random.default_rng(t)
    x0 = eight_bit(torch.from_numpy(generator.uniform(-1.1, 1.1, (4, 3, 2, 2))))  # with both ends
    x_t = np.sqrt(ho.alpha_bar[t]) * x0.numpy() + np.sqrt(1 - ho.alpha_bar[t]) * generator.normal(size=x0.shape)
    denoised = x0.numpy() + generator.normal(size=x0.shape) * 0.3 * np.sqrt(1 - ho.alpha_bar[t])
    fraction = {"small": 0.0, "large": 1.0, "learned": generator.uniform(size=x0.shape)}[variance]
    said = Denoised(torch.from_numpy(denoised), torch.as_tensor(fraction) if variance == "learned" else None)
    sigma = chain.sigmas[t].expand(4)
    ours = vlb_term(said, x0, sigma, chain.previous(sigma), chain.first_variance, variance)
    assert ours.numpy() == pytest.approx(ho.term(x0.numpy(), x_t, t, denoised, fraction), rel=1e-6)


@pytest.mark.parametrize("log_var", [-14.0, -9.0, -4.0, 0.0])
@pytest.mark.parametrize("mean", [-1.3, -0.999, 0.0013, 0.5])
def test_the_levels_are_a_distribution(mean, log_var):
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    total = log_likelihood(levels, torch.full((256,), mean, dtype=torch.float64), torch.tensor(log_var)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("steps", [None, 20])
@pytest.mark.parametrize("kind", ["linear", "scaled-linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_bound_of_a_gaussian_is_that_of_the_paper(kind, variance, steps):
    """Each term of the true chain in its own notation, on the same noise; a shorter chain by its own beta."""
    data, chain = Gaussian(), DDPMSchedule(100, kind)
    sigmas = levels(chain, steps)
    alpha_bar = 1 / (1 + sigmas.numpy() ** 2)
    ho = Ho(chain.beta.numpy() if steps is None else 1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    assert ho.alpha_bar == pytest.approx(alpha_bar)
    x0, generator = eight_bit(data.draw(5)), np.random.default_rng(2)
    noises = [generator.normal(size=x0.shape) for _ in sigmas]
    queue = iter(noises)
    ours = variational_bound(data.denoise, x0, sigmas, variance, lambda: torch.from_numpy(next(queue)))
    expected = ho.prior(x0.numpy())
    for t, noise in enumerate(noises):
        a = ho.alpha_bar[t]
        x_t = np.sqrt(a) * x0.numpy() + np.sqrt(1 - a) * noise
        gain = np.sqrt(a) * data.cov @ np.linalg.inv(a * data.cov + (1 - a) * np.eye(D))
        off = x_t.reshape(-1, D) - np.sqrt(a) * data.mean
        denoised = (data.mean + off @ gain.T).reshape(x0.shape)
        expected = expected + ho.term(x0.numpy(), x_t, t, denoised, float(variance == "large"))
    assert ours.numpy() == pytest.approx(expected, rel=1e-6)


def test_the_bound_is_above_the_truth_nearer_with_more_steps_and_exact_with_the_right_variance():
    """Pixels that are independent normals: what an image of 256 levels costs at least is a difference of cdfs.

    The variance of x_{t-1} given x_t is the posterior's and, through its mean, that of x0 given x_t; with it the chain
    is the true one backwards, and the bound is the truth at any number of steps.
    """
    sd = torch.tensor([0.3, 0.1, 0.05, 0.2], dtype=torch.float64).reshape(1, 1, 2, 2)
    chain, generator = DDPMSchedule(1000, "linear"), torch.Generator().manual_seed(3)

    def normal(n):
        return torch.randn(n, 1, 2, 2, generator=generator, dtype=torch.float64)

    x0 = eight_bit(sd * normal(10_000))
    truth = -(torch.special.ndtr((x0 + 1 / 255) / sd) - torch.special.ndtr((x0 - 1 / 255) / sd)).log2().mean().item()

    def bound(variance, steps, n):
        sigmas = levels(chain, steps)

        def denoise(x, sigma):
            left = sd**2 * sigma**2 / (sd**2 + sigma**2)  # the variance of x0 given x
            i = int((sigmas - sigma).abs().argmin())
            below = sigmas[i - 1] if i else torch.zeros(())
            small = below**2 * (sigma**2 - below**2) / sigma**2
            log_large = ((sigma**2 - below**2) * (1 + below**2) / (1 + sigma**2)).log()
            log_small = small.log() if i else ((1 - (sigma / sigmas[1]) ** 2) * sigma**2 / (1 + sigma**2)).log()
            log_right = (small + (1 - (below / sigma) ** 2) ** 2 * left).log()
            fraction = (log_right - log_small) / (log_large - log_small)
            return Denoised(sd**2 / (sd**2 + sigma**2) * x, fraction.expand(x.shape))

        return variational_bound(denoise, x0[:n], sigmas, variance, lambda: normal(n)).mean().item()

    found = {(v, n): bound(v, n, 1000) for v in ("small", "large") for n in (10, 40, 120)}
    for v in ("small", "large"):
        assert found[v, 10] > found[v, 40] > found[v, 120] > truth
    for n in (10, 40):
        learned = bound("learned", n, 10_000)
        assert learned == pytest.approx(truth, abs=0.02)
        assert learned < min(found["small", n], found["large", n]) - 0.05


# On a pipeline


class Known(torch.nn.Module):
    """In place of a `Denoiser`: the exact one of `Gaussian`."""

    def __init__(self, schedule):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.schedule, self.learned_variance, self.data, self.labels = schedule, False, Gaussian(), []

    def forward(self, x, sigma, label=None, concat=None, augment=None):
        self.labels.append(label)
        return self.data.denoise(x, sigma)


def pipeline(schedule):
    config = tiny(data={"channels": 1, "classes": False}, diffusion={"sigma_data": 0.28, "mean": (0.0,)})
    return Pipeline(config, Known(schedule))


def stored(n):
    return ((eight_bit(Gaussian().draw(n)) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", ["linear", "edm", "flow"])
def test_bits_of_a_gaussian_by_the_ode(name):
    """Uniform noise adds (1/255)^2 / 3 times the trace of the inverse covariance to the mean square."""
    data, images, schedule = Gaussian(), stored(40), SCHEDULES[name]
    low = lowest(schedule)
    inverse = np.linalg.inv(data.cov + low**2 * np.eye(D))
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    nats = -data.log_density(x, low) + 0.5 * np.trace(inverse) / 255**2 / 3
    exact = nats / (D * math.log(2)) + math.log2(127.5)
    result = ode(pipeline(schedule), images, dequantisations=40)
    assert result.bits == pytest.approx(exact.mean(), abs=0.01)
    assert result.error == pytest.approx(exact.std(ddof=1) / math.sqrt(40), rel=0.05)
    assert (result.num, result.calls) == (40, 40 * 52)


def test_the_floor_is_what_a_perfect_model_of_one_image_costs():
    """By the mean of -log2 N(u; 0, sigma^2) * 2 / 255 over the level, point by point; least where `lowest` reads."""
    u = (np.arange(20_000) + 0.5) / 20_000 * 2 / 255 - 1 / 255
    for low in (0.001, 0.01, 0.05):
        density = np.exp(-0.5 * (u / low) ** 2) / (low * math.sqrt(2 * math.pi))
        assert floor(low) == pytest.approx(-np.log2(density * 2 / 255).mean(), abs=1e-6)
    least = lowest(FlowSchedule())
    assert floor(least) < min(floor(0.99 * least), floor(1.01 * least)) < 0.26


def test_batches_and_random_state_do_not_matter():
    images = stored(5)
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    for schedule, of in ((SCHEDULES["edm"], ode), (DDPMSchedule(50, "linear"), vlb)):
        results = [of(pipeline(schedule), images, batch_size=size) for size in (5, 2)]
        assert results[0].bits == pytest.approx(results[1].bits, abs=1e-5)
        assert of(pipeline(schedule), images, seed=1).bits != results[0].bits
    assert torch.equal(state, torch.random.get_rng_state())


def test_labels_are_bound_and_steps_are_told():
    pipe, told = pipeline(SCHEDULES["flow"]), []
    ode(pipe, stored(3), [0, 2, 1], steps=4, batch_size=2, on_step=lambda done, total: told.append((done, total)))
    assert [label.tolist() for label in pipe.denoiser.labels] == [[0, 2]] * 6 + [[1]] * 6
    assert told == [(i + 1, 12) for i in range(12)]
    with pytest.raises(Cancelled):
        ode(pipe, stored(3), on_step=lambda done, total: done < 3)


def test_the_bound_keeps_the_denoised_image_in_its_range():
    """What strays to 1,000 where sigma is large counts as what strays to 1."""
    chain, exact = DDPMSchedule(50, "cosine"), Gaussian().denoise
    found = []
    for far in (1.0, 1000.0):
        pipe = pipeline(chain)
        pipe.denoiser.data.denoise = lambda x, sigma, far=far: (
            exact(x, sigma) if sigma < 5 else Denoised(torch.full_like(x, far))
        )
        found.append(vlb(pipe, stored(4)).bits)
    assert found[0] == found[1]


def test_what_cannot_be_is_refused():
    for name in ("flow", "edm"):
        with pytest.raises(UsageError, match="by the ODE"):
            vlb(pipeline(SCHEDULES[name]), stored(2))
    for given in ({"steps": 1}, {"steps": 1001}, {"batch_size": 0}):
        with pytest.raises(UsageError):
            vlb(pipeline(SCHEDULES["linear"]), stored(2), **given)
    for given in ({"steps": 3}, {"dequantisations": 0}):
        with pytest.raises(UsageError):
            ode(pipeline(SCHEDULES["linear"]), stored(2), **given)


def test_in_the_report(run, folder, monkeypatch):
    """Of images that training held out: of the folder's forty, those that it drew for validation."""
    monkeypatch.setattr(reference, "train_classifier", functools.partial(train_classifier, steps=2))
    dataset = build.dataset(tiny().data, folder)
    held = len(split(dataset.files, 0.05, 1000)[1])
    found = report.evaluate(diffunet.load(run), folder, num=4, steps=2, likelihood="ode", likelihood_steps=4)
    assert found.likelihood.calls == 6
    assert 0 < found.likelihood.num == held < 20
    assert any("bits per dimension" in line for line in found.lines())
    assert any("holds out" in line for line in found.lines())
    few = report.evaluate(diffunet.load(run), folder, num=4, steps=2, likelihood="ode", likelihood_num=1)
    assert few.likelihood.num == 1
    assert few.distance == found.distance
    with pytest.raises(UsageError, match="unknown likelihood"):
        report.evaluate(diffunet.load(run), folder, num=4, likelihood="mcmc")
