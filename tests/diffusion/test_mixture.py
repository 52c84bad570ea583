"""Samplers on a mixture of Gaussians in the plane, whose denoiser is exact, and the script that measures them there."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffunet.diffusion.denoiser import Denoised
from diffunet.diffusion.samplers import dpmpp_2m, euler, heun, last, sample, unipc
from diffunet.diffusion.schedules import DDPMSchedule, EDMSchedule, FlowSchedule, karras, uniform_log_snr, uniform_t

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import benchmark_samplers  # noqa: E402
from benchmark_samplers import no_noise, plain_heun, rms  # noqa: E402
from mixture import Mixture, random_mixture, sliced_distance  # noqa: E402

pytestmark = pytest.mark.seconds


def noise(n, seed=0):
    return torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [1e-4, 0.05, 0.5, 10.0, 1e4])
def test_the_exact_denoiser_is_tweedies(sigma):
    """D = x + sigma^2 grad log p (Efron 2011, eq. 1.3), the density being torch's own."""
    mixture, sigma = random_mixture(3), torch.tensor(sigma, dtype=torch.float64)
    each = torch.distributions.MultivariateNormal(
        mixture.means, mixture.covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
    )
    density = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture.weights), each)
    x = (noise(50) * (sigma**2 + 0.25).sqrt()).requires_grad_()
    log = density.log_prob(x.flatten(1))
    assert torch.allclose(mixture.log_density(x, sigma), log, rtol=1e-9, atol=1e-9)
    (score,) = torch.autograd.grad(log.sum(), x)
    assert torch.allclose(mixture.denoise(x, sigma).x0, x + sigma**2 * score, rtol=1e-6, atol=1e-7 * sigma.item())


def test_samples_have_the_moments_that_images_have():
    x = random_mixture(0).draw(100_000, torch.Generator().manual_seed(0)).flatten(1)
    assert x.mean(0).abs().max() < 0.01
    assert x.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.01)


def test_the_reference_is_the_closed_form_on_a_single_gaussian():
    """Along each axis of C the ODE only scales: x(sigma) = sqrt(v + sigma^2) z."""
    variances = torch.tensor([0.002, 0.3], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    gaussian = Mixture(one, torch.tensor([[0.2, -0.1]], dtype=torch.float64), torch.diag(variances)[None])
    z = noise(4)
    for sigma, x in gaussian.trajectory(z, [1e9, 3.0, 0.01, 0.0], tolerance=1e-10).items():
        truth = gaussian.means[..., None, None] + (variances + sigma**2).sqrt()[:, None, None] * z
        assert ((x - truth).abs().max() / (0.5 + sigma)).item() < 1e-8


@pytest.fixture(scope="module")
def exact():
    """The exact ODE from noise(16), on random_mixture(0)."""
    return random_mixture(0).trajectory(noise(16), [1e9, 20.0, 0.05, 0.0], tolerance=1e-10)


def error(step, ladder, exact):
    """On random_mixture(0), of a walk down a ladder that starts on the exact ODE."""
    first, end = exact[round(ladder[0].item(), 9)], exact[round(ladder[-1].item(), 9)]
    return rms(last(sample(random_mixture(0).denoise, first, ladder, step, no_noise)) - end)


@pytest.mark.parametrize(
    ("make", "order", "margin"), [(heun, 2, 0.1), (dpmpp_2m, 2, 0.15), (unipc, 3, 0.2), (lambda: unipc(3), 4, 0.3)]
)
def test_order_of_convergence(make, order, margin, exact):
    """UniPC's corrector brings its order to one more than its name's (Zhao et al. 2023, theorem 3.1)."""
    coarse, fine = (error(make(), uniform_log_snr(0.05, 20.0, n + 1)[:-1], exact) for n in (100, 200))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=margin)


def test_the_sliced_distance_of_a_shift_is_its_projections():
    """Moved by d: |d . ray| in every direction, of mean square |d|^2 / 2."""
    x = noise(2000)
    distance = sliced_distance(x, 2000)
    assert distance(x[torch.randperm(2000)]) == pytest.approx(0, abs=1e-9)
    assert distance(x + torch.tensor([3.0, 4.0])[:, None, None]) == pytest.approx(5 / math.sqrt(2), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", benchmark_samplers.STOCHASTIC)
def test_with_many_steps_stochastic_samplers_draw_from_the_mixture(name):
    n, generator, mixture = 10_000, torch.Generator().manual_seed(0), random_mixture(0)
    distance = sliced_distance(mixture.draw(10 * n, generator), n)
    floor = max(distance(mixture.draw(n, generator)) for _ in range(10))

    def error(steps):
        def draw():
            return torch.randn(n, 2, 1, 1, generator=generator, dtype=torch.float64)

        ladder, step = karras(0.002, 80.0, steps), benchmark_samplers.STOCHASTIC[name](steps)
        return distance(last(sample(mixture.denoise, 80.0 * draw(), ladder, step, draw)))

    assert error(400) < 1.5 * floor
    assert error(10) > 2 * floor


def test_heun_as_printed_fails_on_ten_steps_where_ours_does_not(exact):
    flow = uniform_t(FlowSchedule(), 10)
    assert error(plain_heun, flow, exact) > 100 * error(euler(), flow, exact)
    assert error(heun(), flow, exact) < error(euler(), flow, exact)


def test_heun_as_printed_is_far_worse_than_euler_on_a_cosine_ladder():
    def denoise(x, sigma):
        return Denoised(0.25 * x / (0.25 + sigma**2))

    ladder, z = uniform_t(DDPMSchedule(1000, "cosine"), 10), noise(16)
    start = (0.25 + ladder[0] ** 2).sqrt() * z
    errors = [rms(last(sample(denoise, start, ladder, s, no_noise)) - 0.5 * z) for s in (euler(), heun(), plain_heun)]
    assert errors[1] < errors[0] < errors[2] / 50


def test_flow_with_logit_normal_times_has_the_ladders_of_flow():
    for spacing in ("trailing", "leading", "linspace"):
        assert torch.equal(uniform_t(FlowSchedule(), 12, spacing), uniform_t(FlowSchedule(True), 12, spacing))


@pytest.mark.parametrize("budget", [5, 10, 25])
def test_samplers_take_the_most_steps_that_fit(budget):
    def ladder_of(n):
        return uniform_t(EDMSchedule(), n, "linspace")

    for name, make in benchmark_samplers.ODE.items():
        n, made = benchmark_samplers.fitting(make, ladder_of, budget)
        assert made <= budget < benchmark_samplers.calls(make(n + 1), ladder_of(n + 1))
        assert name == "heun" or n == made == budget


def test_calls_counts_what_the_sampler_asks():
    assert benchmark_samplers.calls(heun(), uniform_log_snr(0.01, 80.0, 18)) == 35


@pytest.mark.slow
def test_the_script(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(SCRIPTS / "benchmark_samplers.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "samplers.md").read_text(encoding="utf-8") in done.stdout
    assert (tmp_path / "samplers.png").stat().st_size > 10_000
    assert (tmp_path / "samplers-stochastic.png").stat().st_size > 10_000
