"""Targets, losses and inpainting: what must be equal is equal."""

import pytest
import torch

from diffunet import draws
from diffunet.diffusion import losses
from diffunet.diffusion.denoiser import EDM, X0, Denoised, Denoiser, Epsilon, Flow, V, bind
from diffunet.diffusion.known_pixels import keep_known, resample_ladder
from diffunet.diffusion.samplers import ddpm, dpmpp_2m, euler, heun, last, sample
from diffunet.diffusion.schedules import DDPMSchedule, FlowSchedule, uniform_t

TARGETS = {"epsilon": Epsilon(), "x0": X0(), "v": V(), "flow": Flow(), "edm": EDM(0.6)}


def images(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, device="cpu").to(
        torch.get_default_device()
    )


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("sigma", [1e-9, 1e-3, 0.1, 1.0, 7.0, 300.0, 4096.0, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_perfect_net_gives_the_clean_image(target, sigma, dtype, device):
    """The closed-form target put through c_skip and c_out is x0, for every target and sigma.

    As well as the two terms that are added can say it: for epsilon these are as large as sigma, and at 1e9, where x
    holds nothing of x0 in float32, no net can answer so that D is x0. That is why flow refuses it.
    """
    x0, noise = images(2, 3, 4, 4, dtype=dtype), images(2, 3, 4, 4, seed=1, dtype=dtype)
    s = torch.tensor(sigma, dtype=dtype)
    x = x0 + s * noise
    answer = target.target(x0, noise, s)
    skip, out = target.c_skip(s) * x, target.c_out(s) * answer
    assert skip.isfinite().all()
    assert out.isfinite().all()
    last_bit = torch.finfo(dtype).eps * (skip.abs() + out.abs() + 1)
    assert ((skip + out - x0).abs() <= 4 * last_bit).all()
    if not isinstance(target, Epsilon) or isinstance(target, X0 | V):
        assert last_bit.max() < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_target_gives_the_same_denoiser(target, device):
    """A net that is optimal for a Gaussian, said in each target's words, is one and the same D."""
    mean, sd = 0.3, 0.6

    def optimal(x, sigma):
        return (sd**2 * x + sigma**2 * mean) / (sd**2 + sigma**2)

    class Net(torch.nn.Module):
        def forward(self, scaled, c_noise, label=None, augment=None):
            sigma = (c_noise / 1000 / (1 - c_noise / 1000)).double()[:, None, None, None]
            x = scaled / target.c_in(sigma)
            return (optimal(x, sigma) - target.c_skip(sigma) * x) / target.c_out(sigma)

    denoiser = Denoiser(Net(), target, FlowSchedule())
    x = images(3, 1, 2, 2)
    for sigma in (torch.tensor(0.5, dtype=torch.float64), torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)):
        spread = sigma if sigma.ndim == 0 else sigma[:, None, None, None]
        assert torch.allclose(denoiser(x, sigma).x0, optimal(x, spread), atol=1e-4)  # c_noise is float32


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_loss_is_the_weighted_error_of_the_denoised_image(target):
    net = torch.nn.Conv2d(3, 3, 1).double()

    class Net(torch.nn.Module):
        def forward(self, x, c_noise, label=None, augment=None):
            return net(x)

    denoiser = Denoiser(Net(), target, FlowSchedule())
    x0, noise = images(4, 3, 2, 2), images(4, 3, 2, 2, seed=1)
    sigma = torch.tensor([0.1, 0.5, 2.0, 30.0], dtype=torch.float64)
    error = (denoiser(x0 + sigma[:, None, None, None] * noise, sigma).x0 - x0).square().mean(dim=(1, 2, 3))
    weights = {
        "simple": (losses.simple(), 1 / target.c_out(sigma) ** 2),
        "min-snr": (losses.min_snr(5.0), torch.minimum(sigma**-2, torch.tensor(5.0))),
        "edm": (losses.edm(0.6), sigma**-2 + 0.6**-2),
    }
    for weighting, w in weights.values():
        ours = losses.DenoisingLoss(denoiser, weighting)(x0, noise, sigma)
        assert torch.allclose(ours, w * error, rtol=1e-5)


def test_a_loss_of_ones_own_sees_the_denoised_image(device):
    denoiser = Denoiser(torch.nn.Module(), X0(), FlowSchedule())
    denoiser.net.forward = lambda x, c_noise, label=None, augment=None: torch.zeros_like(x)
    own = losses.DenoisingLoss(denoiser, losses.simple(), lambda d, x0, sigma: (d.x0 - x0).abs().mean((1, 2, 3)))
    x0 = images(2, 1, 3, 3, dtype=torch.float32)
    assert torch.allclose(own(x0, x0, torch.ones(2)), x0.abs().mean((1, 2, 3)))


@pytest.mark.parametrize("step", [euler(), euler(1.0), ddpm("large"), heun(), dpmpp_2m()], ids=lambda step: "step")
@pytest.mark.parametrize("with_noise", [False, True])
def test_known_pixels_are_exact_at_the_end(step, with_noise, device):
    known, keep = images(2, 3, 6, 6, dtype=torch.float32), torch.rand(1, 1, 6, 6) < 0.5
    noise = draws.streams(0, [0, 1], (3, 6, 6))
    denoise = keep_known(lambda x, s: Denoised(x / (1 + s**2)), known, keep, noise if with_noise else None)
    x = last(sample(denoise, 10 * noise(), resample_ladder(uniform_t(FlowSchedule(), 12), 3, 2), step, noise))
    assert torch.equal(x[keep.expand_as(x)], known[keep.expand_as(x)])
    assert x.isfinite().all()


@pytest.mark.parametrize("sigma", [torch.tensor(3.0, dtype=torch.float64), torch.tensor([3.0, 0.5])])
def test_the_known_part_of_what_a_denoiser_sees_has_the_noise_of_sigma(sigma, device):
    """known + sigma * n where given a noise (RePaint, algorithm 1, line 4), else what the sampler carries."""
    known, n, x = (images(2, 3, 4, 4, seed=seed, dtype=torch.float32) for seed in range(3))
    keep = images(1, 1, 4, 4, seed=3) > 0
    spread, seen = sigma.float().reshape(-1, 1, 1, 1), []

    def denoise(x, sigma):
        seen.append(x)
        return Denoised(x)

    keep_known(denoise, known, keep, lambda: n)(x, sigma)
    keep_known(denoise, known, keep)(x, sigma)
    assert torch.allclose(seen[0], torch.where(keep, known + spread * n, x))
    assert torch.equal(seen[1], x)


def test_a_learned_uncertainty_is_told_the_log_snr_in_training_alone():
    net = torch.nn.Module()
    net.forward = lambda x, c_noise, label=None, augment=None: x
    net.uncertainty = lambda log_snr: log_snr
    denoiser, sigma = Denoiser(net, V(), FlowSchedule()), torch.tensor([0.1, 1.0, 20.0])
    assert torch.allclose(denoiser(images(3, 1, 2, 2).float(), sigma).logvar, (1 / sigma**2).log(), atol=1e-6)
    assert denoiser(images(3, 1, 2, 2).float(), sigma[0].double()).logvar is None


def test_repaints_walk_has_the_published_counts():
    for n, calls, rises in ((250, 2410, 2160), (100, 910, 810)):
        walk = resample_ladder(torch.linspace(1, 0, n + 1, dtype=torch.float64), 10, 10)
        assert (walk.diff() < 0).sum() == calls
        assert (walk.diff() > 0).sum() == rises
        assert (walk.diff().abs() < 1.001 / n).all()  # one step at a time
    plain = torch.linspace(1, 0, 8)
    assert torch.equal(resample_ladder(plain, 3, 1), plain)
    small = resample_ladder(torch.tensor([4.0, 3, 2, 1, 0]), 2, 2)
    # by hand: steps left 3 2 1 0, one return from 0 to 2 (from 2 itself there is no room below the top), then the end
    assert small.tolist() == [4, 3, 2, 1, 2, 3, 2, 1, 0]


def test_the_large_variance_is_beta_in_the_papers_coordinates():
    schedule = DDPMSchedule(50, "linear")
    t = 30
    sigma, below = schedule.sigmas[t], schedule.sigmas[t - 1]
    x0, x = images(1, 1, 2, 2), images(1, 1, 2, 2, seed=1)
    n = images(1, 1, 2, 2, seed=2)
    ours, _, _ = ddpm("large")(lambda x, s: Denoised(x0), x, sigma, below, lambda: n, None)
    mean, _ = schedule.posterior(x0, schedule.alpha_bar[t].sqrt() * x, t)
    papers = mean + schedule.beta[t].sqrt() * n
    assert torch.allclose(ours * schedule.alpha_bar[t - 1].sqrt(), papers)


def test_euler_with_eta_one_is_the_papers_sampling_step():
    schedule = DDPMSchedule(50, "cosine")
    x0, n = images(1, 1, 2, 2), images(1, 1, 2, 2, seed=2)
    for t in (1, 10, 49):
        x = images(1, 1, 2, 2, seed=t)
        step = bind(Denoiser(_Answer(x0), X0(), schedule))
        ours, _, _ = euler(eta=1.0)(step, x, schedule.sigmas[t], schedule.sigmas[t - 1], lambda: n, None)
        mean, variance = schedule.posterior(x0, schedule.alpha_bar[t].sqrt() * x, t)
        assert torch.allclose(ours * schedule.alpha_bar[t - 1].sqrt(), mean + variance.sqrt() * n)


class _Answer(torch.nn.Module):
    def __init__(self, x0):
        super().__init__()
        self.x0 = x0

    def forward(self, x, c_noise, label=None, augment=None):
        return self.x0
