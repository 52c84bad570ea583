"""diffunet's samplers against those of k-diffusion, on the same nets and the same noise.

k-diffusion is not asked for by diffunet's tests: it takes numpy below 2 with it, and does not import beside a
setuptools that has no pkg_resources. So `record.py` wrote where its samplers end (float64, the closed form of a
mixture of normals) to `k_diffusion.json`; that is compared always, and the library itself, with a small UNet too,
where it is installed.

Both work on x = x0 + sigma * noise, so little has to be set:

- Ladders. get_sigmas_karras is `karras`, get_sigmas_exponential is `uniform_log_snr`; theirs are of float32, and are
  given to both. One ends at 0, the other at a sigma that is not, where multistep samplers keep their order.
- sample_euler_ancestral's eta is `euler_ancestral`'s: sigma_up is eta times the root of the posterior's variance.
- sample_heun: gamma = min(s_churn / N, sqrt(2) - 1), N counting the step to 0. It draws noise in every step and drops
  it outside s_tmin to s_tmax; ours draws where it is used, so ours is given those draws. The strides are below 8, so
  that ours never takes Euler but to 0.
- sample_dpmpp_2m_sde: solver_type="midpoint" (its default); noise by a noise_sampler, not by its Brownian tree.

Largest differences measured (k-diffusion 0.1.1.post1, torch 2.15, CPU):

                                mixture                UNet
                                float32    float64    float32    float64
    euler                       1.7e-07    2.2e-16    8.3e-07    1.0e-15
    euler ancestral             2.7e-07    8.9e-16    4.7e-07    8.9e-16
    euler ancestral, eta 0.5    3.5e-07    5.6e-16    5.4e-07    6.7e-16
    heun                        4.5e-07    4.4e-16    6.6e-07    8.2e-16
    heun, churn                 3.7e-07    7.8e-16    7.7e-07    1.0e-15
    heun, churn, narrow         2.7e-07    1.1e-15    5.4e-07    1.3e-15
    heun, churn, most           2.5e-07    1.4e-15    3.9e-07    6.7e-16
    dpm++ 2m                    3.8e-07    1.3e-15    6.0e-07    6.7e-16
    dpm++ 2m sde                6.2e-07    1.3e-15    7.2e-07    2.4e-15
    dpm++ 2m sde, eta 0.5       4.4e-07    8.3e-16    4.2e-07    8.3e-16
    dpm++ 2m sde, eta 0         3.8e-07    6.7e-16    4.8e-07    7.2e-16
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from helpers import peers
from torch import Tensor

from diffunet.diffusion.denoiser import EDM, Denoise, Denoised, Denoiser, bind
from diffunet.diffusion.samplers import Step, dpmpp_2m, euler, euler_ancestral, heun, last, sample
from diffunet.diffusion.schedules import EDMSchedule, karras, uniform_log_snr

VECTORS = Path(__file__).with_name("k_diffusion.json")
SHAPE, N, SIGMA_MIN, SIGMA_MAX = (2, 1, 3, 3), 10, 0.03, 20.0
LIMITS = {torch.float32: 1e-4, torch.float64: 1e-8}


class Case(NamedTuple):
    """One of their functions and ours, set so that the two are the same thing."""

    function: str
    options: dict[str, Any]
    ours: Step
    churned: tuple[float, float] | None = (
        None  # where noise is drawn, for `sample_heun`: it draws everywhere, and drops
    )


CHURN, GAMMA = {"s_churn": 3.0}, 3.0 / N  # gamma = min(S_churn / N, sqrt(2) - 1); N counts the step to 0
NARROW = {"s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.007}

CASES = {
    "euler": Case("sample_euler", {}, euler()),
    "euler ancestral": Case("sample_euler_ancestral", {}, euler_ancestral()),
    "euler ancestral, eta 0.5": Case("sample_euler_ancestral", {"eta": 0.5}, euler_ancestral(0.5)),
    "heun": Case("sample_heun", {}, heun()),
    "heun, churn": Case("sample_heun", CHURN, heun(GAMMA), (0.0, math.inf)),
    "heun, churn, narrow": Case("sample_heun", CHURN | NARROW, heun(GAMMA, 0.1, 5.0, 1.007), (0.1, 5.0)),
    "heun, churn, most": Case("sample_heun", {"s_churn": 40.0}, heun(math.sqrt(2) - 1), (0.0, math.inf)),
    "dpm++ 2m": Case("sample_dpmpp_2m", {}, dpmpp_2m()),
    "dpm++ 2m sde": Case("sample_dpmpp_2m_sde", {"solver_type": "midpoint"}, dpmpp_2m(eta=1)),
    "dpm++ 2m sde, eta 0.5": Case("sample_dpmpp_2m_sde", {"solver_type": "midpoint", "eta": 0.5}, dpmpp_2m(eta=0.5)),
    "dpm++ 2m sde, eta 0": Case("sample_dpmpp_2m_sde", {"solver_type": "midpoint", "eta": 0.0}, dpmpp_2m()),
}


def sampling() -> Any:
    """Their module of samplers."""
    return pytest.importorskip("k_diffusion.sampling", reason="k-diffusion is not installed", exc_type=ImportError)


def their_end(
    case: Case, model: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor, draws: list[Tensor]
) -> Tensor:
    """Where their sampler ends; `model(x, sigma [B])` is D."""
    draw, options = peers.one_by_one(draws), dict(case.options)
    if case.function in ("sample_euler_ancestral", "sample_dpmpp_2m_sde"):
        options["noise_sampler"] = draw
    with mock.patch.object(torch, "randn_like", draw):
        return getattr(sampling(), case.function)(model, x, sigmas, disable=True, **options)


def our_end(case: Case, denoise: Denoise, x: Tensor, sigmas: Tensor, draws: list[Tensor]) -> Tensor:
    """Where our sampler ends, given the same draw at the same step."""
    if case.churned:
        low, high = case.churned
        draws = [draw for draw, sigma in zip(draws, sigmas[:-1], strict=True) if low <= sigma <= high]
    return last(sample(denoise, x, sigmas, case.ours, peers.one_by_one(draws)))


def exact(x: Tensor, sigma: Tensor) -> Denoised:
    return Denoised(peers.mixture(x, sigma))


def their_exact(x: Tensor, sigma: Tensor) -> Tensor:
    return peers.mixture(x, sigma[:, None, None, None])


def ladders(sigmas: Tensor) -> dict[str, Tensor]:
    """Theirs, to 0; and with a last step to a sigma that is not 0, where samplers keep their order. n steps each."""
    return {"to 0": sigmas, "to sigma_min": torch.cat([sigmas[:-1], sigmas[-2:-1] / 2])}


def start(sigmas: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    first, *draws = peers.noises(N + 1, SHAPE, dtype)
    return first * sigmas[0], draws


def recorded(name: str) -> Tensor:
    return torch.tensor(json.loads(VECTORS.read_text())[name], dtype=torch.float64)


def difference(name: str, dtype: torch.dtype) -> float:
    """The largest difference between our ends and the recorded ones."""
    errors = []
    for ladder, sigmas in ladders(recorded("karras")).items():
        x, draws = start(sigmas, dtype)
        ours = our_end(CASES[name], exact, x, sigmas, draws)
        errors.append((ours - recorded(f"{name}, {ladder}").reshape(SHAPE)).abs().max().item())
    return max(errors)


@torch.no_grad()
def unet_difference(name: str, dtype: torch.dtype) -> float:
    """How far apart they end with a small UNet under EDM's preconditioning; needs the library."""
    net = Denoiser(peers.unet(dtype), EDM(0.5), EDMSchedule())
    sigmas = recorded("karras")
    first, *draws = peers.noises(N + 1, (2, 1, 4, 4), dtype)
    x = first * sigmas[0]
    theirs = their_end(CASES[name], lambda x, sigma: net(x, sigma).x0, x, sigmas.to(dtype), draws)
    return (our_end(CASES[name], bind(net), x, sigmas, draws) - theirs).abs().max().item()


def differences() -> dict[tuple[str, torch.dtype], float]:
    """(case, dtype) -> the largest difference; the table above."""
    return {(name, dtype): difference(name, dtype) for name in CASES for dtype in LIMITS}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_same_end_as_recorded(name, dtype, parity):
    pair = f"k-diffusion, {CASES[name].function} (recorded), {str(dtype).removeprefix('torch.')}"
    parity(pair, difference(name, dtype), LIMITS[dtype])


def test_same_ladders_as_recorded():
    """Theirs are of float32."""
    torch.testing.assert_close(karras(SIGMA_MIN, SIGMA_MAX, N), recorded("karras"), rtol=2e-6, atol=0)
    torch.testing.assert_close(uniform_log_snr(SIGMA_MIN, SIGMA_MAX, N), recorded("exponential"), rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_the_library_says_what_was_recorded(name):
    sampling()
    for ladder, sigmas in ladders(recorded("karras")).items():
        x, draws = start(sigmas, torch.float64)
        theirs = their_end(CASES[name], their_exact, x, sigmas, draws)
        torch.testing.assert_close(theirs.flatten(), recorded(f"{name}, {ladder}"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_same_end_with_a_unet(name, dtype, parity):
    pair = f"k-diffusion, {CASES[name].function}, {str(dtype).removeprefix('torch.')}"
    parity(pair, unet_difference(name, dtype), LIMITS[dtype])
