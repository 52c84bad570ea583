"""Filling in holes of Gaussian data, where the law of the hole given the known pixels is exact."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from diffunet.diffusion.denoiser import Denoised
from diffunet.diffusion.known_pixels import ROUNDING, ddnm, keep_known, mmps, resample_ladder
from diffunet.diffusion.samplers import euler, heun, last, sample, unipc
from diffunet.diffusion.schedules import DDPMSchedule, uniform_log_snr, uniform_t

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import benchmark_inpainting_truth as truth  # noqa: E402
from benchmark_inpainting_truth import no_noise  # noqa: E402

PAIR = np.array([[1, 0.9], [0.9, 1]]), np.array([True, False])
ROW = 0.95 ** abs(np.arange(16)[:, None] - np.arange(16)), np.arange(16) < 8
LINEAR = DDPMSchedule(1000, "linear")


def exact(covariance, keep):
    """The hole given the known pixels: its mean as a map of them, its covariance."""
    pull = covariance[np.ix_(~keep, keep)] @ np.linalg.inv(covariance[np.ix_(keep, keep)])
    return pull, covariance[np.ix_(~keep, ~keep)] - pull @ covariance[np.ix_(keep, ~keep)]


def denoiser(covariance, mean=0.0):
    """E[x0 | x] for x0 ~ N(mean, covariance), of images of any shape with as many numbers."""
    covariance = torch.as_tensor(covariance)
    eye = torch.eye(len(covariance)).double()

    def denoise(x, sigma):
        noisy = covariance + sigma.double().reshape(-1, 1, 1) ** 2 * eye
        pulled = torch.linalg.solve(noisy, (x.double() - mean).flatten(1)[..., None])
        return Denoised((mean + (covariance @ pulled).reshape(x.shape)).to(x.dtype))

    return denoise


class Units:
    """Draws that are 0 but for one number of one image: image i gets its 1 where the i-th number is drawn."""

    def __init__(self, images, pixels):
        self.x, self.drawn = torch.zeros(images, 1, 1, pixels, dtype=torch.float64), 0

    def __call__(self):
        x, n = self.x.clone(), self.x.shape[3]
        x[self.drawn : self.drawn + n, 0, 0] = torch.eye(n).double()
        self.drawn += n
        return x


def response(covariance, keep, given, sigmas, draws):
    """Mean (a map of the known pixels) and covariance of a linear sampler's hole, without samples.

    Its answers to a 1 in each of its numbers drawn, the start's among them, and to a 1 in each known pixel.
    """
    n, k = len(keep), keep.sum()
    noise = Units(draws * n + k, n)
    known = torch.zeros_like(noise.x)
    known[draws * n :, 0, 0, keep] = torch.eye(k).double()
    denoise, step = given(denoiser_of(covariance), known, torch.from_numpy(keep), noise)
    end = last(sample(denoise, sigmas[0] * noise(), sigmas, step, noise))[:, 0, 0].numpy()
    assert noise.drawn == draws * n
    assert np.array_equal(end[:, keep], known[:, 0, 0, keep])
    end = end[:, ~keep].T
    return end[:, draws * n :], end[:, : draws * n] @ end[:, : draws * n].T


def denoiser_of(covariance):
    """`denoiser` at one sigma for all images, as fast as it can be."""
    maps = {}

    def denoise(x, sigma):
        if sigma.item() not in maps:
            noisy = covariance + sigma.item() ** 2 * np.eye(len(covariance))
            maps[sigma.item()] = torch.from_numpy(np.linalg.solve(noisy, covariance))
        return Denoised(x @ maps[sigma.item()])

    return denoise


def repaint(denoise, known, keep, noise):
    return keep_known(denoise, known, keep, noise), euler(eta=1.0)


def recursion(covariance, keep, sigmas):
    """RePaint's moments, in DDPM's own notation: the hole x is N(m y, P) at each t, in units of sqrt(alpha_bar).

    Downwards by algorithm 1, lines 4 to 7: the known pixels get fresh noise, and x is the posterior mean
    (Ho et al. 2020, eq. 7) of E[x0 | x] and x, and fresh noise; upwards by line 10.
    """
    hole, eye = ~keep, np.eye((~keep).sum())
    bar = [1 / (1 + s**2) for s in sigmas]
    mean, law = np.zeros((hole.sum(), keep.sum())), (1 - bar[0]) * eye
    for a, b in pairwise(bar):
        if b < a:
            mean, law = math.sqrt(b / a) * mean, b / a * law + (1 - b / a) * eye
            continue
        wiener = math.sqrt(a) * covariance @ np.linalg.inv(a * covariance + (1 - a) * np.eye(len(keep)))
        of_x0, of_x = math.sqrt(b) * (1 - a / b) / (1 - a), math.sqrt(a / b) * (1 - b) / (1 - a)
        pull, push = of_x0 * wiener[np.ix_(hole, keep)], of_x0 * wiener[np.ix_(hole, hole)] + of_x * eye
        mean = push @ mean + pull * math.sqrt(a)
        law = push @ law @ push.T + (1 - a) * pull @ pull.T + (1 - b) / (1 - a) * (1 - a / b) * eye
    return mean, law


def relative(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("n", "jump_length", "jump_n_sample"),
    [
        pytest.param(250, 10, 10, marks=pytest.mark.seconds), (100, 10, 10), (250, 5, 20), (40, 8, 5), (23, 4, 3),
        (7, 1, 3), (12, 12, 2), (13, 12, 2), (9, 20, 4),
    ],
)  # fmt: skip
def test_the_walk_has_the_published_times(n, jump_length, jump_n_sample):
    """Those of diffusers, which are the authors'; and the calls and rises that come of them."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from diffusers import RePaintScheduler

    theirs = RePaintScheduler(num_train_timesteps=n)
    theirs.set_timesteps(n, jump_length, jump_n_sample)
    levels = torch.arange(n, -1, -1, dtype=torch.float64)  # of sigma = t + 1, which is 0 at the end
    walk = resample_ladder(levels, jump_length, jump_n_sample)
    assert (walk - 1).tolist() == [*theirs.timesteps.tolist(), -1]

    made = []
    list(sample(lambda x, s: made.append(s) or Denoised(x), torch.zeros(1, 1, 1, 1), walk, euler(), lambda: 0.0))
    again = (jump_n_sample - 1) * jump_length * len(range(0, n - jump_length, jump_length))
    assert len(made) == n + again
    assert len(walk) - 1 - len(made) == again
    if (jump_length, jump_n_sample) == (10, 10):
        assert (len(made), again) == {250: (2410, 2160), 100: (910, 810)}[n]


@pytest.mark.parametrize("wrong", [{"jump_length": 0}, {"jump_n_sample": 0}])
def test_a_walk_of_no_length_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        resample_ladder(torch.tensor([1.0, 0]), **wrong)


@pytest.mark.parametrize(
    ("field", "plan"), [(PAIR, (250, 10, 10)), (ROW, (12, 3, 3))], ids=["pair, as published", "row"]
)
@pytest.mark.seconds
def test_repaint_follows_the_recursion_of_its_moments(field, plan):
    """Exactly: all is linear, so the answers to unit draws are its law."""
    sigmas = resample_ladder(uniform_t(LINEAR, plan[0]), *plan[1:])
    calls = (sigmas.diff() < 0).sum().item()
    draws = 1 + 2 * calls - 1 + len(sigmas) - 1 - calls  # the start; known pixels, a step, the last without; rises
    ours, theirs = response(*field, repaint, sigmas, draws), recursion(*field, sigmas.tolist())
    assert relative(ours[0], theirs[0]) < 1e-9
    assert relative(ours[1], theirs[1]) < 1e-9


@pytest.mark.parametrize(
    "times", [(1, 2, 5, 10), pytest.param((10, 20, 50, 200), marks=pytest.mark.slow)], ids=["to 10", "to 200"]
)
def test_resampling_mends_repaints_mean_but_not_its_spread(times):
    """250 steps, jumps of 10: what is known of its errors (of the row: as the norm of a map)."""
    two, many = [], []
    for each in times:
        sigmas = resample_ladder(uniform_t(LINEAR, 250, "linspace"), 10, each).tolist()
        mean, law = recursion(*PAIR, sigmas)
        two.append(abs(mean.item() / 0.9 - 1))
        many.append(relative(truth.repaint("linspace", 250, 10, each).law(truth.row())[0], exact(*ROW)[0]))
        assert -0.105 < law.item() / 0.19 - 1 < -0.07 or each < 10
    assert two == sorted(two, reverse=True)
    assert many == sorted(many, reverse=True)
    assert many[times.index(10)] == pytest.approx(0.49, abs=0.005)
    assert 200 not in times or many[-1] == pytest.approx(0.15, abs=0.005)


def test_the_script_has_the_same_moments():
    sigmas = resample_ladder(uniform_t(LINEAR, 40), 8, 5).tolist()
    for ours, theirs in zip(truth.repaint("trailing", 40, 8, 5).law(truth.row()), recursion(*ROW, sigmas), strict=True):
        assert relative(ours, theirs) < 1e-9
    assert truth.row().errors(*(torch.from_numpy(each) for each in exact(*ROW))) == pytest.approx((0, 0), abs=1e-12)


def test_replace_ends_where_its_own_ode_does():
    """Far from the exact law. The known pixel goes straight from its noise to y: y (1 - sigma / high) + sigma n."""
    from scipy.integrate import solve_ivp

    high, low = 50.0, 0.01

    def slope(log_sigma, x):  # of the hole, in log sigma, given y, the noise of the known pixel and where x began
        (y, n, hole), sigma = x, math.exp(log_sigma)
        a, b = (PAIR[0] @ np.linalg.inv(PAIR[0] + sigma**2 * np.eye(2)))[1]
        return 0, 0, hole - a * (y * (1 - sigma / high) + sigma * n) - b * hole

    starts = [(1, 0, 0), (0, 1, 0), (0, 0, high)]
    ends = [solve_ivp(slope, (math.log(high), math.log(low)), x, rtol=1e-9, atol=1e-9).y[2, -1] for x in starts]
    for step, n in ((heun(), 400), (unipc(), 150)):
        sigmas = uniform_log_snr(low, high, n)
        mean, law = response(
            *PAIR, lambda d, known, keep, noise, step=step: (keep_known(d, known, keep), step), sigmas, 1
        )
        assert mean.item() == pytest.approx(ends[0], abs=1e-3)
        assert law.item() == pytest.approx(ends[1] ** 2 + ends[2] ** 2, abs=1e-3)
    assert abs(ends[0] / 0.9 - 1) > 0.4


def test_ddnm_is_the_papers_step():
    """Wang et al. 2022, algorithm 1 with A the mask, the noise as in its SVD form, in the paper's alpha_bar."""
    generator = torch.Generator().manual_seed(0)
    x, y, n = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    keep = torch.rand(4, 4, generator=generator) < 0.5
    bar, bar_next, eta = LINEAR.alpha_bar[600], LINEAR.alpha_bar[500], 0.85
    epsilon = torch.sin(3 * x)  # any net
    sigma, sigma_next = ((1 / each - 1).sqrt() for each in (bar, bar_next))

    def denoise(scaled, s):
        assert s == sigma
        return Denoised(scaled - sigma * epsilon, var=x, logvar=y)

    x0 = (x - (1 - bar).sqrt() * epsilon) / bar.sqrt()  # eq. 5
    mask = keep.double()
    rectified = mask * y + x0 - mask * (mask * x0)  # A+ y + (I - A+ A) x0, eq. 8
    new = (1 - bar_next).sqrt() * (eta * n + math.sqrt(1 - eta**2) * epsilon)
    after, said, state = ddnm(y, keep, eta)(denoise, x / bar.sqrt(), sigma, sigma_next, lambda: n, None)
    assert torch.allclose(bar_next.sqrt() * after, bar_next.sqrt() * rectified + new)
    assert torch.allclose(said.x0, rectified)
    assert state is None
    assert said.var is x
    assert said.logvar is y


def test_ddnm_travels_in_time():
    """Its law against its recursion: each step draws once, and the last one ends on known pixels exactly."""
    sigmas, eta = resample_ladder(uniform_t(LINEAR, 24), 4, 3), 0.85
    covariance, keep = ROW
    eye, known = np.eye(16), np.diag(keep.astype(float))
    mean, law = np.zeros((16, 8)), sigmas[0].item() ** 2 * eye
    for a, b in pairwise(sigmas.tolist()):
        if b > a:
            law = law + (b**2 - a**2) * eye
            continue
        raw = covariance @ np.linalg.inv(covariance + a**2 * eye)
        push = (eye - known) @ raw + b * math.sqrt(1 - eta**2) / a * (eye - raw)
        mean, law = push @ mean + known[:, keep], push @ law @ push.T + (b * eta) ** 2 * eye
    ours = response(*ROW, lambda d, known, keep, noise: (d, ddnm(known, keep, eta)), sigmas, len(sigmas) - 1)
    assert relative(ours[0], mean[~keep]) < 1e-9
    assert relative(ours[1], law[np.ix_(~keep, ~keep)]) < 1e-9


def images(b=4, c=2, h=3, w=4, seed=0):
    """Correlated data of some mean: its covariance, its mean, clean images of it and noisy ones of several sigmas."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(c * h * w, c * h * w, generator=generator, dtype=torch.float64) / math.sqrt(c * h * w)
    covariance = root @ root.T + 0.05 * torch.eye(len(root))
    mean, clean, noise = (torch.randn(n, c, h, w, generator=generator, dtype=torch.float64) for n in (1, b, b))
    known = mean + (clean.flatten(1) @ torch.linalg.cholesky(covariance).T).reshape(clean.shape)
    sigma = torch.tensor([0.1, 0.7, 3.0, 40.0], dtype=torch.float64)[:b]
    return covariance, mean, known, known + sigma[:, None, None, None] * noise, sigma


def given(covariance, mean, known, keep, x, sigma, std):
    """E[x0 | x, known]: of one image, from both observations stacked."""
    seen = np.flatnonzero(keep.expand_as(x).numpy())
    look = np.concatenate([np.eye(x.numel()), np.eye(x.numel())[seen]])
    noise = np.diag([sigma**2] * x.numel() + [std**2] * len(seen))
    covariance, mean, known, x = (each.numpy() for each in (covariance, mean.flatten(), known.flatten(), x.flatten()))
    seen_values = np.concatenate([x, known[seen]])
    gain = covariance @ look.T @ np.linalg.inv(look @ covariance @ look.T + noise)
    return mean + gain @ (seen_values - look @ mean)


MASKS = {
    "H W": lambda generator: torch.rand(3, 4, generator=generator) < 0.5,
    "B 1 H W": lambda generator: torch.rand(4, 1, 3, 4, generator=generator) < 0.5,
    "B C H W": lambda generator: torch.rand(4, 2, 3, 4, generator=generator) < 0.5,
}


@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("std", [ROUNDING, 0.3])
def test_mmps_with_its_equation_solved_is_the_exact_denoiser(shape, std):
    covariance, mean, known, x, sigma = images()
    keep = MASKS[shape](torch.Generator().manual_seed(1))
    denoise = denoiser(covariance, mean)
    with torch.no_grad():
        ours = mmps(denoise, known, keep, 60, std)(x, sigma)
        alone = mmps(denoise, known[2:3], keep.expand_as(x)[2:3], 60, std)(x[2:3], sigma[2])
    hidden = torch.where(keep, known, torch.inf)  # what is in the hole is never used
    assert torch.equal(mmps(denoise, hidden, keep, 60, std)(x, sigma).x0, ours.x0)
    assert torch.allclose(ours.x0[2:3], alone.x0)
    assert not ours.x0.requires_grad
    keep = keep.expand_as(x)
    assert torch.equal(ours.x0[keep], known[keep])
    for i in range(len(x)):
        theirs = torch.from_numpy(given(covariance, mean, known[i], keep[i], x[i], sigma[i].item(), std))
        assert torch.allclose(ours.x0[i][~keep[i]], theirs.reshape(x[i].shape)[~keep[i]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_mmps_stops_where_conjugate_gradients_do(iterations):
    """scipy's, an image at a time."""
    from scipy.sparse.linalg import cg

    covariance, mean, known, x, sigma = images(c=1)
    keep = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) < 0.6
    ours = mmps(denoiser(covariance, mean), known, keep, iterations)(x, sigma).x0
    d, seen = denoiser(covariance, mean)(x, sigma).x0, keep.flatten().numpy()
    for i, s in enumerate(sigma.tolist()):
        v = np.linalg.inv(np.linalg.inv(covariance.numpy()) + np.eye(12) / s**2)  # of x0 given x
        system = v[np.ix_(seen, seen)] + ROUNDING**2 * np.eye(seen.sum())
        solved, _ = cg(system, (known - d)[i].flatten().numpy()[seen], rtol=0, atol=0, maxiter=iterations)
        theirs = d[i].flatten().numpy() + v[:, seen] @ solved
        assert np.allclose(ours[i].flatten().numpy()[~seen], theirs[~seen], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 4])
def test_mmps_costs_a_pass_back_for_each_iteration(iterations):
    passes = []

    class Halve(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            passes.append("forward")
            return x / 2

        @staticmethod
        def backward(ctx, slope):
            passes.append("back")
            return slope / 2

    x, keep = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.eye(3) > 0
    mmps(lambda x, s: Denoised(Halve.apply(x)), x, keep, iterations)(x, torch.tensor(1.0))
    assert passes == ["forward"] + ["back"] * iterations


def test_mmps_where_nothing_or_all_is_known():
    covariance, mean, known, x, sigma = images()
    denoise = denoiser(covariance, mean)
    for keep in (torch.ones(3, 4), torch.zeros(3, 4)):
        x0 = mmps(denoise, known, keep > 0)(x, sigma).x0
        assert torch.equal(x0, known if keep.any() else denoise(x, sigma).x0)


def test_mmps_hands_on_what_else_a_denoiser_says():
    net = torch.nn.Conv2d(1, 2, 3, padding=1)
    logvar = torch.tensor([1.0, 2.0])

    def denoise(x, sigma):
        x0, var = net(x).chunk(2, 1)
        return Denoised(x0, var, logvar)

    x, keep = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4) > 0
    with torch.no_grad():
        said = mmps(denoise, x, keep)(x, torch.tensor(0.5, dtype=torch.float64))
        assert torch.equal(said.var, denoise(x, None).var)
    assert not said.var.requires_grad
    assert said.x0.dtype == torch.float32
    assert torch.equal(said.logvar, logvar)
    assert all(weight.grad is None for weight in net.parameters())


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("step", "n"), [(euler(), 150), (heun(), 30), (unipc(), 15)], ids=["euler, 150", "heun, 30", "unipc, 15"]
)
@pytest.mark.parametrize("field", [PAIR, ROW], ids=["pair", "row"])
def test_mmps_comes_within_five_percent_of_the_exact_law(field, step, n):
    """With its equation solved, where it is linear, so its law is what it answers to units."""
    sigmas, iterations = uniform_log_snr(LINEAR.sigma_min, LINEAR.sigma_max, n), 1 if field is PAIR else 12

    def given(denoise, known, keep, noise):
        return mmps(denoise, known, keep, iterations), step

    for ours, theirs in zip(response(*field, given, sigmas, 1), exact(*field), strict=True):
        assert relative(ours, theirs) < 0.05


@pytest.mark.seconds
def test_mmps_comes_within_five_percent_in_ninety_passes():
    """15 steps of 5 iterations, which stop before the equation is solved; on samples, of three images."""
    covariance, keep = ROW
    pull, law = exact(covariance, keep)
    generator = torch.Generator().manual_seed(0)
    sigmas, each = uniform_log_snr(LINEAR.sigma_min, LINEAR.sigma_max, 15), 10_000
    root = torch.from_numpy(np.linalg.cholesky(covariance))
    one = torch.randn(3, 16, generator=generator, dtype=torch.float64) @ root.T
    known = one.repeat_interleave(each, 0)[:, None, None]
    noise = torch.randn(known.shape, generator=generator, dtype=torch.float64)
    denoise = mmps(denoiser_of(covariance), known, torch.from_numpy(keep), 5)
    end = last(sample(denoise, sigmas[0] * noise, sigmas, unipc(), no_noise))[:, 0, 0, ~keep].unflatten(0, (3, each))
    assert relative(end.mean(1), one.numpy()[:, keep] @ pull.T) < 0.05
    assert relative(np.mean([np.cov(x, rowvar=False) for x in end.numpy()], axis=0), law) < 0.05
    assert truth.row().errors(*truth.matched(15, 5, 800).law(truth.row())) < (0.05, 0.05)


@pytest.mark.slow
def test_the_script(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(SCRIPTS / "benchmark_inpainting_truth.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "inpainting-truth.md").read_text(encoding="utf-8") in done.stdout
    assert (tmp_path / "inpainting-truth.png").stat().st_size > 10_000
