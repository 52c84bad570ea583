"""Weightings against the papers' own words for them, the variational bound against integrals, what is learned."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from diffunet.diffusion import losses
from diffunet.diffusion.denoiser import EDM, X0, Denoised, Denoiser, Epsilon, Flow, V
from diffunet.diffusion.samplers import log_variance
from diffunet.diffusion.schedules import DDPMSchedule, EDMSchedule, FlowSchedule, shifted

SIGMA = torch.logspace(-2, 2.5, 19, dtype=torch.float64)
SNR = SIGMA**-2
TARGETS = {"epsilon": Epsilon(), "x0": X0(), "v": V(), "flow": Flow(), "edm": EDM(0.6)}


def images(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


PUBLISHED = {
    # Of |net - target|^2, as each paper writes it.
    "min-snr, epsilon": (losses.min_snr(5.0), Epsilon(), SNR.clamp(max=5) / SNR),
    "min-snr, v": (losses.min_snr(5.0), V(), SNR.clamp(max=5) / (SNR + 1)),
    "min-snr, x0": (losses.min_snr(5.0), X0(), SNR.clamp(max=5)),
    "soft-min-snr, epsilon": (losses.soft_min_snr(5.0), Epsilon(), 5 / (SNR + 5)),
    "soft-min-snr, x0": (losses.soft_min_snr(5.0), X0(), 5 * SNR / (SNR + 5)),
    "p2, epsilon": (losses.p2(0.5, k=1.0), Epsilon(), (1 + SNR) ** -0.5),
    "p2 with other k, epsilon": (losses.p2(1.0, k=3.0), Epsilon(), 1 / (3 + SNR)),
    "p2 of gamma 0 is simple, epsilon": (losses.p2(0.0), Epsilon(), torch.ones_like(SNR)),
    "edm, x0": (losses.edm(0.6), X0(), (SIGMA**2 + 0.6**2) / (SIGMA * 0.6) ** 2),
    "edm, edm": (losses.edm(0.6), EDM(0.6), torch.ones_like(SNR)),
    **{f"simple, {name}": (losses.simple(), target, torch.ones_like(SNR)) for name, target in TARGETS.items()},
}


@pytest.mark.parametrize(("weighting", "target", "published"), PUBLISHED.values(), ids=PUBLISHED)
def test_weights_are_the_published_ones_of_the_targets_own_loss(weighting, target, published):
    c_out = target.c_out(SIGMA)
    assert torch.allclose(weighting(SIGMA, c_out) * c_out**2, published, rtol=1e-9)


CONTINUOUS = {
    # Density of log SNR: log sigma of EDM and of a logit-normal t is normal; with t uniform it is logistic.
    "edm": (EDMSchedule(log_mean=-1.0, log_std=1.5), lambda log_snr: Normal(2.0, 3.0).log_prob(log_snr).exp()),
    "flow-logit-normal": (FlowSchedule(logit_normal=True), lambda log_snr: Normal(0.0, 2.0).log_prob(log_snr).exp()),
    "flow": (FlowSchedule(), lambda log_snr: 0.5 * torch.sigmoid(log_snr / 2) * torch.sigmoid(-log_snr / 2)),
    "shifted flow": (
        shifted(FlowSchedule(), 4.0),
        lambda log_snr: 0.5 * torch.sigmoid(log_snr / 2 + math.log(4)) * torch.sigmoid(-log_snr / 2 - math.log(4)),
    ),
}


@pytest.mark.parametrize(("schedule", "published"), CONTINUOUS.values(), ids=CONTINUOUS)
def test_density_of_log_snr_in_closed_form(schedule, published):
    assert torch.allclose(losses.density(schedule, SIGMA), published(SNR.log()), rtol=1e-5, atol=0)
    assert torch.allclose(losses.density(schedule, SIGMA.float()), published(SNR.log()), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_density_of_a_chain_has_its_steps_in_it(kind):
    """Between two log SNRs lies the share of u between them; all of it is 1."""
    schedule = DDPMSchedule(1000, kind)
    log_snr = torch.linspace(-2 * math.log(schedule.sigma_max), -2 * math.log(schedule.sigma_min), 200_001).double()
    p = losses.density(schedule, (-log_snr / 2).exp())
    share = torch.cumulative_trapezoid(p, log_snr)
    assert share[-1].item() == pytest.approx(0.999, abs=1e-4)  # the first of 1,000 steps begins below sigma_min
    for i in (20_000, 70_000, 150_000):
        assert share[i - 1].item() == pytest.approx(1 - schedule.u((-log_snr[i] / 2).exp()).item(), abs=1e-4)


def test_the_sigmoid_objective_is_the_same_on_every_schedule():
    """The mean over u of W times an error of D that falls off at both ends, against the integral over log SNR."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    for bias in (-1.0, 2.0):
        fine = np.linspace(-30, 30, 200_001)
        error = np.exp(-(fine**2) / 8)
        wanted = np.trapezoid(np.exp(fine) / (1 + np.exp(fine - bias)) * error, fine)
        for schedule in (
            EDMSchedule(), FlowSchedule(), FlowSchedule(True), shifted(FlowSchedule(), 2.0),
            DDPMSchedule(1000, "linear"), DDPMSchedule(1000, "cosine"), DDPMSchedule(1000, "sigmoid", zero_snr=True),
        ):  # fmt: skip
            sigma = schedule.sigma(u)
            terms = losses.sigmoid(schedule, bias)(sigma, sigma) * (-((-2 * sigma.log()) ** 2) / 8).exp()
            assert terms.mean().item() == pytest.approx(wanted, rel=0.002)


# The variational bound.


def test_a_terms_divergence_is_that_of_two_normals():
    schedule = DDPMSchedule(50, "cosine")
    x0, d = images(3, 2, 4, 4).clamp(-1, 1), images(3, 2, 4, 4, seed=1).clamp(-1, 1)
    fraction = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x_t = images(3, 2, 4, 4, seed=3)
    t = torch.tensor([1, 25, 49])
    sigma = schedule.sigmas[t]
    ours = losses.vlb_term(Denoised(d, fraction), x0, sigma, schedule.previous(sigma), schedule.first_variance)
    for i in range(3):  # in Ho's coordinates, and Nichol & Dhariwal's eq. 15
        mean, small = schedule.posterior(x0[i], x_t[i], int(t[i]))
        ours_mean, _ = schedule.posterior(d[i], x_t[i], int(t[i]))
        variance = (fraction[i] * schedule.beta[t[i]].log() + (1 - fraction[i]) * small.log()).exp()
        nats = kl_divergence(Normal(mean, small.sqrt()), Normal(ours_mean, variance.sqrt())).mean()
        assert ours[i].item() == pytest.approx(nats.item() / math.log(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_term_is_the_likelihood_of_256_levels(dtype):
    """Their probabilities are those of a normal's bins, with all 256 of sum 1."""
    levels = torch.linspace(-1, 1, 256, dtype=dtype)
    for mean, sd in ((0.1, 0.5), (-1.3, 0.01), (0.999, 0.002), (0.0, 30.0)):
        log_var = torch.tensor(2 * math.log(sd), dtype=dtype)
        ours = losses.log_likelihood(levels, torch.tensor(mean, dtype=dtype), log_var)
        assert ours.isfinite().all()
        assert ours.double().exp().sum().item() == pytest.approx(1, abs=1e-4)
        normal = NormalDist(mean, sd)
        edges = [-math.inf, *((2 * i + 1) / 255 - 1 for i in range(255)), math.inf]
        cdf = np.array([0.0, *(normal.cdf(edge) for edge in edges[1:-1]), 1.0])
        assert np.allclose(ours.double().exp().numpy(), np.diff(cdf), atol=1e-5 if dtype == torch.float32 else 1e-9)
    # Deep in a tail, where differences of a cdf are 0: by Mills' ratio the bin's inner edge has it all.
    mean, log_var = (torch.tensor(value, dtype=dtype) for value in (0.8, 2 * math.log(0.01)))
    far = losses.log_likelihood(levels[128], mean, log_var)
    z = (0.8 - float(levels[128]) - 1 / 255) / 0.01
    assert far.item() == pytest.approx(-(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi)), abs=1e-3)


class Said(nn.Module):
    """A net that says what it is given: mean channels, and the variance's. `heard` is its last input."""

    def __init__(self, answer, variance=None, uncertainty=None):
        super().__init__()
        self.answer = nn.Parameter(answer)
        self.variance = None if variance is None else nn.Parameter(variance)
        self.uncertainty = uncertainty

    def forward(self, x, c_noise, label=None, augment=None):
        self.heard = x
        x = x[:, : self.answer.shape[1]]  # less what a net that inpaints is told
        answer = self.answer.expand_as(x)
        return answer if self.variance is None else torch.cat([answer, self.variance.expand_as(x)], dim=1)


def nothing(sigma, c_out):
    return torch.zeros_like(sigma)


def test_the_bound_teaches_the_variance_alone():
    schedule = DDPMSchedule(100, "linear")
    for target in TARGETS.values():
        net = Said(images(2, 1, 3, 3), torch.zeros(2, 1, 3, 3, dtype=torch.float64))
        loss = losses.DenoisingLoss(Denoiser(net, target, schedule, learned_variance=True), nothing)
        loss(images(2, 1, 3, 3), images(2, 1, 3, 3, seed=1), schedule.sigmas[[0, 60]]).sum().backward()
        assert not net.answer.grad.any()
        assert net.variance.grad.abs().min() > 0


def test_the_hybrid_loss_is_its_two_parts():
    """L_simple + 0.001 L_vlb, L_vlb being T times a term (Nichol & Dhariwal 2021, eq. 16, in bits per dimension)."""
    schedule = DDPMSchedule(100, "linear")
    x0, noise, sigma = images(2, 1, 3, 3).clamp(-1, 1), images(2, 1, 3, 3, seed=1), schedule.sigmas[[0, 60]]
    net = Said(images(2, 1, 3, 3, seed=2), images(2, 1, 3, 3, seed=3).clamp(-1, 1))
    denoiser = Denoiser(net, Epsilon(), schedule, learned_variance=True)
    hybrid = losses.DenoisingLoss(denoiser, losses.simple())(x0, noise, sigma)
    bound = losses.vlb_term(
        denoiser(x0 + sigma[:, None, None, None] * noise, sigma), x0, sigma, schedule.previous(sigma),
        schedule.first_variance,
    )  # fmt: skip
    squares = (net.answer - noise).square().mean((1, 2, 3))
    assert torch.allclose(hybrid, squares + 0.001 * 100 * bound)


@pytest.mark.parametrize("t", [1, 5, 20])
def test_a_learned_variance_goes_to_that_of_the_true_reverse_step(t):
    """Gaussian data, exact D: the variance of x' given x is the posterior's and that of x0 given x, carried over.

    Where the gradient leads: by bisection, the bound being convex in the log of the variance.
    """
    schedule, sd = DDPMSchedule(50, "linear"), 0.5
    sigma, below = schedule.sigmas[t], schedule.sigmas[t - 1]
    grid = torch.special.ndtri((torch.arange(32, dtype=torch.float64) + 0.5) / 32)
    grid = (grid / grid.square().mean().sqrt()).expand(1, 1, 32, 32)  # the first moments of a normal, exactly
    x0, noise = sd * grid, grid.transpose(2, 3)
    exact = sd**2 / (sd**2 + sigma**2) * (x0 + sigma * noise)
    net = Said(exact, torch.zeros(1, dtype=torch.float64))
    loss = losses.DenoisingLoss(Denoiser(net, X0(), schedule, learned_variance=True), nothing)
    low, high = -1.0, 1.0
    for _ in range(30):
        net.variance.data.fill_((low + high) / 2)
        [slope] = torch.autograd.grad(loss(x0, noise, sigma[None]).mean(), net.variance)
        low, high = (low, net.variance.item()) if slope > 0 else (net.variance.item(), high)
    assert -0.999 < low < high < 0.999  # between the small and the large one
    learned = log_variance("learned", sigma, below, torch.tensor((low + 1) / 2)).exp().item()
    small = below**2 * (sigma**2 - below**2) / sigma**2
    true = small + (1 - below**2 / sigma**2) ** 2 * sd**2 * sigma**2 / (sd**2 + sigma**2)
    assert learned == pytest.approx(true.item(), rel=1e-6)


def test_a_learned_uncertainty_is_least_at_the_log_of_the_loss():
    """loss / exp(u) + u: its slope is 0 at u = log(loss), where it is 1 + log(loss); and it rises to either side."""

    class Constant(nn.Module):
        def __init__(self, u):
            super().__init__()
            self.u = nn.Parameter(u)

        def forward(self, log_snr):
            return self.u

    x0, noise, sigma = images(3, 1, 4, 4), images(3, 1, 4, 4, seed=1), SIGMA[[3, 10, 16]]
    plain = losses.DenoisingLoss(Denoiser(Said(x0 * 0), V(), FlowSchedule()), losses.simple())(x0, noise, sigma)
    u = Constant(plain.detach().log())
    loss = losses.DenoisingLoss(Denoiser(Said(x0 * 0, uncertainty=u), V(), FlowSchedule()), losses.simple())
    least = loss(x0, noise, sigma)
    least.sum().backward()
    assert torch.allclose(least, 1 + plain.log())
    assert u.u.grad.abs().max() < 1e-12
    for off in (-0.5, 0.5):
        moved = Denoiser(Said(x0 * 0, uncertainty=Constant(u.u.detach() + off)), V(), FlowSchedule())
        assert (losses.DenoisingLoss(moved, losses.simple())(x0, noise, sigma) > least).all()


# The loss of a net that learns to inpaint.


class Hardness(nn.Module):
    """An uncertainty that depends on the noise level."""

    def forward(self, log_snr):
        return 0.3 * log_snr


def absolute(denoised, x0, sigma):
    return sigma * (denoised.x0 - x0).abs().mean(dim=(1, 2, 3))


INPAINTING = {
    "simple": ({}, losses.simple(), None),
    "min-snr": ({}, losses.min_snr(5.0), None),
    "learned uncertainty": ({"uncertainty": Hardness()}, losses.simple(), None),
    "learned variance": ({"variance": images(2, 3, 6, 6, seed=3).clamp(-1, 1)}, losses.simple(), None),
    "a loss of one's own": ({}, losses.simple(), absolute),
}
RECTANGLES = [(slice(1, 4), slice(2, 6)), (slice(0, 6), slice(5, 6))]


def of_rectangles():
    """`keep` [2 1 6 6]: each image has another hole."""
    keep = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    for i, (rows, columns) in enumerate(RECTANGLES):
        keep[i, :, rows, columns] = False
    return keep


def loss_of(answer, extra, weighting, own, masked):
    """With the net's answer said, on a chain of 100 steps."""
    variance = extra.get("variance")
    net = Said(answer, variance, extra.get("uncertainty"))
    denoiser = Denoiser(net, V(), DDPMSchedule(100, "linear"), variance is not None, masked)
    return net, losses.DenoisingLoss(denoiser, weighting, own)


@pytest.mark.parametrize(("extra", "weighting", "own"), INPAINTING.values(), ids=INPAINTING)
def test_with_a_hole_the_loss_is_that_of_the_hole_cut_out(extra, weighting, own):
    """A net that says something for each pixel on its own: the plain loss of an image that is the hole alone."""
    x0, noise, answer = images(2, 3, 6, 6).clamp(-1, 1), images(2, 3, 6, 6, seed=1), images(2, 3, 6, 6, seed=2)
    sigma = DDPMSchedule(100, "linear").sigmas[[0, 60]]
    _, loss = loss_of(answer, extra, weighting, own, masked=True)
    ours = loss(x0, noise, sigma, keep=of_rectangles())
    for i, (rows, columns) in enumerate(RECTANGLES):
        cut = [each[i : i + 1, :, rows, columns] for each in (x0, noise, answer)]
        only = {name: part[i : i + 1, :, rows, columns] if name == "variance" else part for name, part in extra.items()}
        _, plain = loss_of(cut[2], only, weighting, own, masked=False)
        assert torch.allclose(ours[i : i + 1], plain(cut[0], cut[1], sigma[i : i + 1]), rtol=1e-9)


@pytest.mark.parametrize(("extra", "weighting", "own"), INPAINTING.values(), ids=INPAINTING)
def test_the_gradient_is_of_the_hole_alone_and_no_hole_is_no_loss(extra, weighting, own):
    x0, noise, answer = images(2, 3, 6, 6).clamp(-1, 1), images(2, 3, 6, 6, seed=1), images(2, 3, 6, 6, seed=2)
    sigma, keep = DDPMSchedule(100, "linear").sigmas[[0, 60]], of_rectangles()
    net, loss = loss_of(answer, extra, weighting, own, masked=True)
    loss(x0, noise, sigma, keep=keep).sum().backward()
    for learned in (net.answer, net.variance):
        if learned is not None:
            assert torch.equal(learned.grad != 0, ~keep.expand_as(learned))
            learned.grad = None
    nothing_to_do = loss(x0, noise, sigma, keep=torch.ones_like(keep))
    logvar = Hardness()(-2 * sigma.log()) if "uncertainty" in extra else torch.zeros(2)
    assert torch.allclose(nothing_to_do, logvar.to(nothing_to_do))
    nothing_to_do.sum().backward()
    assert not net.answer.grad.any()


def test_the_holes_area_does_not_change_the_scale():
    """A net that is off by 0.3 in every number, up or down: 0.09, whatever the hole."""
    x0, noise, sigma = images(7, 3, 8, 8), images(7, 3, 8, 8, seed=1), SIGMA[[3, 10, 16, 9, 9, 9, 9]]
    target = Flow().target(x0, noise, sigma[:, None, None, None])
    off = 0.3 * images(7, 3, 8, 8, seed=2).sign()
    keep = torch.ones(7, 1, 8, 8, dtype=torch.bool)
    for i, pixels in enumerate((1, 2, 5, 13, 32, 63, 64)):
        keep[i].view(-1)[torch.randperm(64, generator=torch.Generator().manual_seed(i))[:pixels]] = False
    loss = losses.DenoisingLoss(Denoiser(Said(target + off), Flow(), FlowSchedule(), masked=True), losses.simple())
    assert torch.allclose(loss(x0, noise, sigma, keep=keep), torch.full((7,), 0.09, dtype=torch.float64))


def test_a_net_that_inpaints_is_given_noise_everywhere_and_told_what_is_known_and_where():
    x0, noise, sigma, keep = images(2, 3, 6, 6), images(2, 3, 6, 6, seed=1), SIGMA[[5, 12]], of_rectangles()
    net = Said(x0 * 0)
    loss = losses.DenoisingLoss(Denoiser(net, Flow(), FlowSchedule(), masked=True), losses.simple())
    loss(x0, noise, sigma, keep=keep)
    s = sigma[:, None, None, None]
    wanted = [(x0 + s * noise) / (1 + s), x0 * keep, (~keep).double()]
    assert torch.allclose(net.heard, torch.cat(wanted, dim=1))
    loss(x0, noise, sigma)  # told of no hole, it takes all of the image for one
    assert torch.allclose(net.heard, torch.cat([wanted[0], x0 * 0, torch.ones_like(wanted[2])], dim=1))
