"""Properties that hold for every schedule, ladder, target and weighting; hypothesis chooses which."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffunet.diffusion import losses
from diffunet.diffusion.denoiser import EDM, X0, Denoiser, Epsilon, Flow, V
from diffunet.diffusion.schedules import (
    DDPMSchedule,
    EDMSchedule,
    FlowSchedule,
    karras,
    shifted,
    uniform_log_snr,
    uniform_t,
)
from diffunet.nn.unet import UNet

TARGETS = {"epsilon": Epsilon(), "x0": X0(), "v": V(), "flow": Flow(), "edm": EDM(0.5)}

quickly = settings(max_examples=25, deadline=None)

ddpm_schedules = st.builds(
    DDPMSchedule,
    st.integers(2, 4000),
    st.sampled_from(["linear", "scaled-linear", "cosine", "sigmoid"]),
    st.booleans(),
)
schedules = st.builds(
    shifted,
    st.one_of(
        ddpm_schedules,
        st.builds(EDMSchedule, log_mean=st.floats(-3, 1), log_std=st.floats(1.2, 2)),
        st.builds(FlowSchedule, st.booleans()),
    ),
    st.sampled_from([1.0, 0.25, 1.5, 16.0]),
)
insides = st.lists(st.floats(1e-9, 1 - 1e-9), min_size=2, max_size=50, unique=True).map(sorted)


@quickly
@given(schedules, insides)
def test_sigma_rises_with_u_and_u_is_its_inverse(schedule, inside):
    """In float64; the inverse to 1e-10, and where u are that far apart sigma tells them apart."""
    u = torch.tensor(inside, dtype=torch.float64)
    sigma = schedule.sigma(u)
    assert sigma.dtype == torch.float64
    assert (sigma > 0).all()
    assert sigma.isfinite().all()
    assert (schedule.u(sigma) - u).abs().max() < 1e-10
    assert (sigma.diff()[u.diff() > 1e-10] > 0).all()
    assert (sigma.diff() >= 0).all()
    at = schedule.sigma_at(u)
    assert (schedule.time(at) - u).abs().max() < 1e-10
    # In training sigma is float32: its own place in u is found again as well as float32 can say it.
    assert (schedule.u(sigma.float()) - u).abs().max() < 1e-6


@quickly
@given(ddpm_schedules, st.sampled_from([1.0, 0.25, 2.0, 16.0]), st.sampled_from([torch.float32, torch.float64]))
@example(DDPMSchedule(100_000, "scaled-linear"), 1.0, torch.float32)  # as many as a config may have
def test_ddpm_tells_the_net_exact_integers_on_its_grid(base, shift, dtype):
    schedule = shifted(base, shift)
    assert torch.equal(schedule.c_noise(schedule.sigmas.to(dtype)), torch.arange(base.num_steps, dtype=torch.float64))
    assert torch.allclose(schedule.sigmas, shift * base.sigmas)


@quickly
@given(schedules, st.floats(1e-12, 1e12))
def test_what_the_net_is_told_is_within_its_range(schedule, sigma):
    base = getattr(schedule, "base", schedule)
    low, high = {
        DDPMSchedule: lambda: (0, base.num_steps - 1),
        EDMSchedule: lambda: (torch.tensor(0.002).log() / 4, torch.tensor(80.0).log() / 4),
        FlowSchedule: lambda: (0, 1000),
    }[type(base)]()
    for dtype in (torch.float32, torch.float64):
        told = schedule.c_noise(torch.tensor(sigma, dtype=dtype))
        assert low - 1e-6 <= told <= high + 1e-6


@quickly
@given(schedules, st.one_of(st.integers(1, 1000), st.sampled_from([1, 2, 1000])))
@example(EDMSchedule(log_mean=1.0, log_std=2.0), 71)  # trained above sigma_max: two steps must not both be cut to it
def test_ladders_have_n_steps_descend_strictly_and_end_at_zero(schedule, n):
    low, high = schedule.sigma_min, schedule.sigma_max
    for name, ladder in {
        **{spacing: uniform_t(schedule, n, spacing) for spacing in ("trailing", "linspace")},
        **({"leading": uniform_t(schedule, n, "leading")} if n > 1 else {}),
        "karras": karras(low, high, n),
        "log-snr": uniform_log_snr(low, high, n),
    }.items():
        assert ladder.shape == (n + 1,)
        assert ladder.dtype == torch.float64
        assert ladder.isfinite().all()
        assert (ladder.diff() < 0).all(), name
        assert (ladder.float().diff() < 0).all(), name  # a step of float32 sigmas too goes down
        assert ladder[-1] == 0
        if name == "leading":
            assert low * (1 - 1e-9) <= ladder[0] <= high * (1 + 1e-9)
            assert ladder[-2] == pytest.approx(low)
        else:
            assert ladder[0] == pytest.approx(high)
        if n > 1 and name in ("linspace", "karras", "log-snr"):
            assert ladder[-2] == pytest.approx(low)


ENDS = {
    "linear": DDPMSchedule(1000, "linear"),
    "zero-snr, shifted": shifted(DDPMSchedule(1000, "cosine", zero_snr=True), 16.0),
    "edm": EDMSchedule(),
    "flow": FlowSchedule(),
    "flow-logit-normal": FlowSchedule(logit_normal=True),
}


@pytest.fixture(scope="module")
def nets():
    """A UNet without and with a learned variance, with a learned uncertainty, none of their parameters zero."""
    torch.manual_seed(0)
    nets = [
        UNet(
            in_channels=1, out_channels=channels, channels=4, multipliers=(1,), num_blocks=1, attention_levels=(),
            uncertainty=True,
        )
        for channels in (1, 2)
    ]  # fmt: skip
    for parameter in [*nets[0].parameters(), *nets[1].parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    return nets


@pytest.mark.parametrize("name", ENDS)
def test_loss_gradient_and_denoised_are_finite_at_both_ends(nets, name):
    """For every target and weighting, in float32 and under bf16 autocast; D where sampling begins and ends.

    Training keeps u 1e-9 off 0 and 1. Finite is not small: x0 with weighting edm on a flow schedule is 1e18 there.
    """
    schedule = ENDS[name]
    trained = schedule.sigma(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64)).float()
    sampled = torch.tensor([schedule.sigma_min, schedule.sigma_max])
    ends = torch.cat([trained, sampled.clamp(*trained)])
    weightings = [
        losses.simple(), losses.min_snr(), losses.soft_min_snr(), losses.edm(0.5), losses.p2(), losses.p2(10.0),
        losses.sigmoid(schedule),
    ]  # fmt: skip

    def each(sigma, c_out):  # one part of the batch for each weighting
        parts = zip(weightings, sigma.chunk(len(weightings)), c_out.chunk(len(weightings)), strict=True)
        return torch.cat([weighting(*part) for weighting, *part in parts])

    sigma = ends.repeat(len(weightings))
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(len(sigma), 1, 4, 4, generator=generator) * 2 - 1
    noise = torch.randn(len(sigma), 1, 4, 4, generator=generator)
    chain = isinstance(schedule, DDPMSchedule)
    net = nets[chain]  # the hybrid loss is of chains only
    for (target_name, target), autocast in itertools.product(TARGETS.items(), (False, True)):
        denoiser = Denoiser(net, target, schedule, learned_variance=chain)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = losses.DenoisingLoss(denoiser, each)(x0, noise, sigma)
            loss.sum().backward()
            with torch.no_grad():
                denoised = denoiser(x0[:2] + sampled[:, None, None, None] * noise[:2], sampled)
        where = f"{target_name}, autocast {autocast}"
        assert loss.dtype == denoised.x0.dtype == torch.float32
        assert loss.isfinite().all(), (where, loss.view(len(weightings), -1))
        assert denoised.x0.isfinite().all(), where
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters()), where


@pytest.mark.parametrize("autocast", [False, True])
def test_noise_is_added_in_float32(autocast):
    """In bfloat16 the first 10 of 1,000 levels of the linear schedule vanish: their alpha_bar rounds to 1."""
    schedule = DDPMSchedule(1000, "linear")
    assert (schedule.alpha_bar.bfloat16() == 1).sum() == 10

    class Net(torch.nn.Module):
        def forward(self, x, c_noise, label=None, augment=None):
            self.seen = x
            return x

    denoiser = Denoiser(Net(), X0(), schedule)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(10, 3, 8, 8, generator=generator) for _ in range(2))
    sigma = schedule.sigmas[:10].float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses.DenoisingLoss(denoiser, losses.simple())(x0, noise, sigma)
    s = schedule.sigmas[:10, None, None, None]
    exact = (x0.double() + s * noise.double()) / (1 + s**2).sqrt()
    assert (denoiser.net.seen - exact).abs().max() < 1e-6
    rounded = x0.bfloat16() + sigma.bfloat16()[:, None, None, None] * noise.bfloat16()
    assert (rounded / (1 + s**2).sqrt() - exact).abs().max() > 1e-3
