"""diffunet's samplers, schedules and targets against the schedulers of diffusers, on the same nets and the same noise.

Two nets: the closed form of a mixture of normals, and a small UNet with random weights. x is compared after every
step, in units of sqrt(1 + sigma^2). In float32 each side has its own tables: ours comes from `DDPMSchedule` and
`uniform_t`. In float64 both have theirs (alphas_cumprod, sigmas: float32, cast up), and where their step casts to
float32 it is made to cast to float64. Timesteps that the nets are told are equal integers (`test_same_ladder`).

Their x is ours divided by sqrt(1 + sigma^2) in DDPM, DDIM, DPMSolverMultistep and UniPC, by 1 + sigma in flow, and
the same in Euler, Heun and EDM.

Settings that make the two the same thing:

- Times. T / n and (T - 1) / (n - 1) are integers, or theirs round, or go between timesteps by a straight line in
  sigma (ours: in log sigma). DPMSolverMultistep's and UniPC's leading and linspace lists have one time more and lack
  the last.
- Start. Given the same x. On their own EDM starts at sqrt(sigma_max^2 + 1), as do the leading lists of Euler; ours at
  sigma_max. Heun's default betas (linear, 0.00085 to 0.012) start at sigma 25; here it gets the betas of the others.
- Clipping. DDIM: use_clipped_model_output=True, else epsilon is not derived again from the clipped x0. Dynamic
  threshold: sample_max_value above any pixel (1, its default, makes it static); their quantile lies between two of
  the values, ours is one of them: 14/15 and 15/16 are the same one of 16 pixels.
- Last step. final_sigmas_type="zero" (euler_at_final and, in second order, lower_order_final then change nothing). A
  last step to sigma_min: lower_order_final=False, as ours lowers the order only at 0, and ours without its GROWTH_MAX.
- UniPC: bh2, predict_x0. Of third order with lower_order_final=True their last step but one is of second order, ours
  is not: those two are left out; with False and a last sigma of 0 theirs ends in a singular matrix.
- DPM++ SDE: sde-dpmsolver++, midpoint, is `dpmpp_2m(eta=1)`.
- Heun: on the same strides. Ours takes Euler where sigma falls to less than an eighth; the cosine cases lift that.
- Zero terminal SNR: cosine, whose last sigma is 4096 in both; DDPM and DDIM, which keep alpha_bar = 0, get the 2^-24
  that Euler, DPMSolverMultistep and UniPC put. Linear and scaled linear: betas only. (Of theirs, on all 1,000 linear
  steps, the last sigma, 4096, is below the one before, 15,406; ours ends above it.)
- Flow. DPMSolverMultistep and UniPC (use_flow_sigmas) cut their times to integers: here they are not cut. With
  `shift` FlowMatchEuler's own list shifts its last time twice: here it is given its sigmas. Ours starts at sigma 1e9
  where theirs is infinite: those 2e-9.

Where they do something else:

- DDPM draws in its last step where that does not start at t = 0, as in a trailing list: the large variance then ends
  noisy (so: leading), the small one is clamped at 1e-20, those 2.5e-10.
- DDIM's linspace list is stepped through by T / n, which is not its next time: leading and trailing only.
- In float32, from the first level of a cosine list (sigma 20,291) x0 = x - sigma * epsilon, Euler ancestral's
  sigma_down and Heun's slopes each lose what float32 rounds, on both sides or on theirs: 4e-4 and more; compared in
  float64.
- Their float32 alpha_bar is off by 8e-5 (linear) to 3e-4 (cosine) of sigma at t = 0, which a learned variance and a
  last step to sigma_min see: those have their ladder in float32 too.

Largest differences measured (diffusers 0.42.1, torch 2.15, CPU), by `differences()`:

                              float32    float64
    DDPM, small variance      3.6e-06    2.5e-10
    DDPM, large               1.4e-06    1.8e-15
    DDPM, learned             5.6e-06    4.4e-15
    DDIM, eta 0, 0.5, 1       2.4e-06    2.0e-15
    EulerDiscrete             5.3e-05    1.1e-13
    EulerAncestralDiscrete    3.9e-06    9.9e-13
    HeunDiscrete              1.8e-06    9.1e-10
    DPMSolverMultistep 2M     1.0e-06    3.1e-15
    DPMSolverMultistep SDE    2.7e-06    2.3e-15
    UniPCMultistep 2          1.1e-06    1.8e-15
    UniPCMultistep 3          3.5e-06    2.0e-14
    FlowMatchEulerDiscrete    1.2e-06    2.4e-09
    EDMEuler                  7.0e-07    1.2e-15
    EDMDPMSolverMultistep     1.8e-06    2.7e-15
    posterior, all 1,000 t          -    4.0e-13
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import peers
from torch import Tensor, nn

from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import EDM, X0, Denoiser, Epsilon, Flow, V, bind
from diffunet.diffusion.guidance import threshold
from diffunet.diffusion.samplers import ddim, ddpm, dpmpp_2m, euler, euler_ancestral, heun, sample, unipc
from diffunet.diffusion.schedules import DDPMSchedule, EDMSchedule, FlowSchedule, karras, shifted, uniform_t

pytest.importorskip("diffusers", reason="diffusers is not installed")
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs, with numpy 2

LIMITS = {torch.float32: 1e-4, torch.float64: 1e-8}
SHAPE = (2, 1, 4, 4)
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
NAMES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
TARGETS = {"epsilon": Epsilon, "sample": X0, "v_prediction": V, "flow_prediction": Flow}
VARIANCE_EXPLODING = (
    EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, EDMEulerScheduler,
    EDMDPMSolverMultistepScheduler,
)  # fmt: skip
EDMS = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)


@dataclass(frozen=True)
class Case:
    """One of their samplers and ours, set so that the two are the same thing."""

    scheduler: type
    ours: samplers.Step
    options: dict[str, Any]
    n: int = 10
    step: dict[str, Any] = field(default_factory=dict)  # options of their `step`
    clip: str | None = None
    percentile: float = 0.995
    nets: tuple[str, ...] = ("mixture",)
    timesteps: dict[str, Any] = field(default_factory=dict)  # options of their `set_timesteps`, besides n
    float32: str = "our ladder"  # or "their ladder", or "not compared"
    any_stride: bool = False  # ours without its rules for long strides
    left_out: int = 0  # last steps that are not the same thing

    @property
    def flow(self) -> bool:
        return self.scheduler is FlowMatchEulerDiscreteScheduler or self.options.get("use_flow_sigmas", False)


PREDICTS_V, PREDICTS_X0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
LEADING, TRAILING, LINSPACE = ({"timestep_spacing": spacing} for spacing in ("leading", "trailing", "linspace"))
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
ZERO_SNR = COSINE | PREDICTS_V | TRAILING | {"rescale_betas_zero_snr": True}
RE_DERIVED = {"use_clipped_model_output": True}
LARGE, LEARNED = {"variance_type": "fixed_large"}, {"variance_type": "learned_range"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
DPM, UNIPC, FLOW_EULER = DPMSolverMultistepScheduler, UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler
EULER, ANCESTRAL, HEUN = EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler
EDM_DPM = EDMDPMSolverMultistepScheduler
BOTH = ("mixture", "unet")

CASES: dict[str, Case] = {
    "DDPM small": Case(DDPMScheduler, ddpm("small"), LINEAR | TRAILING),
    "DDPM small, v": Case(DDPMScheduler, ddpm("small"), SCALED | PREDICTS_V | TRAILING),
    "DDPM small, x0, cosine": Case(DDPMScheduler, ddpm("small"), COSINE | PREDICTS_X0 | TRAILING),
    "DDPM small, clipped": Case(DDPMScheduler, ddpm("small"), LINEAR, clip="static", nets=BOTH),
    "DDPM small, clipped, cosine": Case(DDPMScheduler, ddpm("small"), COSINE | LEADING, clip="static"),
    "DDPM small, clipped, cosine, trailing": Case(
        DDPMScheduler, ddpm("small"), COSINE | TRAILING, clip="static", float32="not compared"
    ),
    "DDPM small, zero SNR": Case(DDPMScheduler, ddpm("small"), ZERO_SNR),
    "DDPM large": Case(DDPMScheduler, ddpm("large"), LINEAR | LARGE),
    "DDPM large, x0, cosine": Case(DDPMScheduler, ddpm("large"), COSINE | LARGE | PREDICTS_X0),
    "DDPM learned": Case(DDPMScheduler, ddpm("learned"), LINEAR | LEARNED),
    "DDPM learned, clipped, cosine": Case(
        DDPMScheduler, ddpm("learned"), COSINE | LEARNED, clip="static", nets=BOTH, float32="their ladder"
    ),
    "DDIM": Case(DDIMScheduler, ddim(0), LINEAR | LEADING),
    "DDIM, x0, trailing": Case(DDIMScheduler, ddim(0), LINEAR | PREDICTS_X0 | TRAILING),
    "DDIM, v, cosine": Case(DDIMScheduler, ddim(0), COSINE | PREDICTS_V | TRAILING, nets=BOTH),
    "DDIM, zero SNR": Case(DDIMScheduler, ddim(0), ZERO_SNR),
    "DDIM 0.5": Case(DDIMScheduler, ddim(0.5), LINEAR | TRAILING, step={"eta": 0.5}),
    "DDIM 1": Case(DDIMScheduler, ddim(1), SCALED | TRAILING, step={"eta": 1.0}),
    "DDIM, clipped": Case(DDIMScheduler, ddim(0), LINEAR, step=RE_DERIVED, clip="static"),
    "DDIM 0.5, clipped": Case(DDIMScheduler, ddim(0.5), COSINE, step=RE_DERIVED | {"eta": 0.5}, clip="static"),
    "DDIM 1, clipped": Case(DDIMScheduler, ddim(1), LINEAR, step=RE_DERIVED | {"eta": 1.0}, clip="static"),
    "DDIM, dynamic threshold": Case(
        DDIMScheduler, ddim(0), LINEAR | {"dynamic_thresholding_ratio": 14 / 15, "sample_max_value": 1e9},
        step=RE_DERIVED, clip="dynamic", percentile=15 / 16,
    ),
    "Euler": Case(EULER, euler(), LINEAR | LINSPACE),
    "Euler, x0, trailing": Case(EULER, euler(), SCALED | TRAILING | PREDICTS_X0),
    "Euler, v, cosine": Case(EULER, euler(), COSINE | PREDICTS_V | LEADING, nets=BOTH),
    "Euler, zero SNR": Case(EULER, euler(), ZERO_SNR),
    "Euler ancestral": Case(ANCESTRAL, euler_ancestral(), LINEAR | TRAILING),
    "Euler ancestral, v, cosine": Case(ANCESTRAL, euler_ancestral(), COSINE | PREDICTS_V | LEADING, nets=BOTH),
    "Euler ancestral, v, cosine, linspace": Case(
        ANCESTRAL, euler_ancestral(), COSINE | PREDICTS_V | LINSPACE, float32="not compared"
    ),
    "Heun": Case(HEUN, heun(), LINEAR | TRAILING),
    "Heun, v": Case(HEUN, heun(), SCALED | PREDICTS_V | TRAILING, nets=BOTH),
    "Heun, x0, cosine": Case(HEUN, heun(), COSINE | PREDICTS_X0 | LEADING, any_stride=True),
    "Heun, x0, cosine, trailing": Case(
        HEUN, heun(), COSINE | PREDICTS_X0 | TRAILING, any_stride=True, float32="not compared"
    ),
    "DPM++ 2M": Case(DPM, dpmpp_2m(), LINEAR | TRAILING),
    "DPM++ 2M, x0, linspace": Case(DPM, dpmpp_2m(), SCALED | PREDICTS_X0 | LINSPACE, n=9),
    "DPM++ 2M, leading": Case(DPM, dpmpp_2m(), LINEAR | LEADING | {"euler_at_final": True}, n=9),
    "DPM++ 2M, v, cosine": Case(DPM, dpmpp_2m(), COSINE | TRAILING | PREDICTS_V, nets=BOTH),
    "DPM++ 2M, 20 steps": Case(DPM, dpmpp_2m(), LINEAR | TRAILING, n=20),
    "DPM++ 2M, zero SNR": Case(DPM, dpmpp_2m(), ZERO_SNR),
    "DPM++ 2M, flow": Case(DPM, dpmpp_2m(), FLOW),
    "DPM++ 2M to sigma_min": Case(
        DPM, dpmpp_2m(), LINEAR | TRAILING | TO_SIGMA_MIN, any_stride=True, float32="their ladder"
    ),
    "DPM++ 2M SDE": Case(DPM, dpmpp_2m(eta=1), LINEAR | TRAILING | SDE),
    "DPM++ 2M SDE, v, cosine": Case(DPM, dpmpp_2m(eta=1), COSINE | TRAILING | PREDICTS_V | SDE, nets=BOTH),
    "DPM++ 2M SDE, flow": Case(DPM, dpmpp_2m(eta=1), FLOW | SDE),
    "UniPC 2": Case(UNIPC, unipc(2), LINEAR | TRAILING),
    "UniPC 2, x0, linspace": Case(UNIPC, unipc(2), SCALED | PREDICTS_X0 | LINSPACE, n=9),
    "UniPC 2, v, cosine": Case(UNIPC, unipc(2), COSINE | TRAILING | PREDICTS_V, nets=BOTH),
    "UniPC 2, 20 steps": Case(UNIPC, unipc(2), LINEAR | TRAILING, n=20),
    "UniPC 2, zero SNR": Case(UNIPC, unipc(2), ZERO_SNR),
    "UniPC 2, flow": Case(UNIPC, unipc(2), FLOW),
    "UniPC 2 to sigma_min": Case(
        UNIPC, unipc(2), LINEAR | TRAILING | TO_SIGMA_MIN, any_stride=True, float32="their ladder"
    ),
    "UniPC 3": Case(UNIPC, unipc(3), LINEAR | TRAILING | {"solver_order": 3}, left_out=2),
    "UniPC 3 to sigma_min, v": Case(
        UNIPC, unipc(3), COSINE | TRAILING | PREDICTS_V | TO_SIGMA_MIN | {"solver_order": 3}, any_stride=True,
        float32="their ladder",
    ),
    "flow Euler": Case(FLOW_EULER, euler(), {}),
    "flow Euler, trailing": Case(FLOW_EULER, euler(), {}, timesteps={"sigmas": np.linspace(1, 0.1, 10)}, nets=BOTH),
    "flow Euler, shift 3": Case(
        FLOW_EULER, euler(), {"shift": 3.0}, timesteps={"sigmas": np.linspace(1, 0.1, 10)}
    ),
    "EDM Euler": Case(EDMEulerScheduler, euler(), {}, n=18),
    "EDM DPM++ 2M": Case(EDM_DPM, dpmpp_2m(), {}, nets=BOTH),
    "EDM DPM++ 2M SDE": Case(EDM_DPM, dpmpp_2m(eta=1), SDE),
}  # fmt: skip


class Wide:
    """torch, with float32 read as float64: some of their steps cast to float32 inside."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def their_scheduler(case: Case, dtype: torch.dtype) -> Any:
    """Their scheduler at its `n` times; in float64 its own float32 tables cast up."""
    options = dict(case.options)
    if case.scheduler in (DDPMScheduler, DDIMScheduler):
        options |= {"clip_sample": case.clip == "static", "thresholding": case.clip == "dynamic"}
    scheduler = case.scheduler(**options)
    scheduler.set_timesteps(**({"num_inference_steps": case.n} | case.timesteps))
    if options.get("rescale_betas_zero_snr"):
        scheduler.alphas_cumprod[-1] = 2**-24  # DDPM and DDIM leave 0 there; the others put this
    for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).to(dtype))
    if case.flow:  # their multistep schedulers cut these to integers
        scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    elif case.scheduler in EDMS:
        scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])
    return scheduler


def their_ladder(case: Case, scheduler: Any) -> Tensor:
    """The n + 1 sigmas that they walk down, as noise over signal, float64."""
    if case.flow:
        t = scheduler.sigmas.double()
        return (t / (1 - t)).clamp(max=1e9)
    if case.scheduler in (DDPMScheduler, DDIMScheduler):
        alpha_bar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        return torch.cat([((1 - alpha_bar) / alpha_bar).sqrt(), alpha_bar.new_zeros(1)])
    sigmas = scheduler.sigmas.double()
    return torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]]) if case.scheduler is HeunDiscreteScheduler else sigmas


def our_schedule(case: Case) -> Any:
    if case.flow:
        return FlowSchedule()
    if case.scheduler in EDMS:
        return EDMSchedule()
    return DDPMSchedule(1000, NAMES[case.options["beta_schedule"]], case.options.get("rescale_betas_zero_snr", False))


def our_ladder(case: Case, scheduler: Any) -> Tensor:
    """The same ladder from our own functions."""
    schedule, n = our_schedule(case), case.n
    if case.scheduler in EDMS:
        return karras(0.002, 80, n)
    if case.scheduler is FlowMatchEulerDiscreteScheduler:
        schedule = shifted(schedule, case.options.get("shift", 1.0))
        return uniform_t(schedule, n, "trailing" if case.timesteps else "linspace")
    if case.flow:
        return their_ladder(case, scheduler)  # (theirs ends between ours: t = 1 - 1/1000 and down)
    spacing = case.options.get("timestep_spacing", scheduler.config.timestep_spacing)
    if case.scheduler in (DPMSolverMultistepScheduler, UniPCMultistepScheduler) and spacing != "trailing":
        ladder = uniform_t(schedule, n + 1, spacing)  # theirs has one time more, and leaves out the last
        ladder = torch.cat([ladder[:n], ladder[-1:]])
    else:
        ladder = uniform_t(schedule, n, spacing)
    if scheduler.config.get("final_sigmas_type") == "sigma_min":
        ladder[-1] = schedule.sigma_min
    return ladder


def the_net(case: Case, name: str, scheduler: Any, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The net that both are given, and what it predicts."""
    learned = case.options.get("variance_type") == "learned_range"
    if case.scheduler in EDMS:
        target: Any = EDM(0.5)
    else:
        target = Flow() if case.flow else TARGETS[scheduler.config.prediction_type]()
    if name == "unet":
        return peers.unet(dtype, learned), target
    if case.flow:
        return peers.ClosedForm(target, lambda c: (c.double() / (1000 - c.double())).clamp(max=1e9)), target
    if case.scheduler in EDMS:
        return peers.ClosedForm(target, lambda c: (4 * c.double()).exp()), target
    alpha_bar = scheduler.alphas_cumprod.double()
    table = ((1 - alpha_bar) / alpha_bar).sqrt()
    return peers.ClosedForm(target, lambda c: table[c.long()], learned), target


def scale(case: Case, sigma: Tensor) -> Tensor:
    """Their coordinate over ours, x0 + sigma * noise."""
    if case.flow:
        return 1 / (1 + sigma)
    return torch.ones_like(sigma) if case.scheduler in VARIANCE_EXPLODING else (1 + sigma**2).rsqrt()


def their_walk(
    case: Case, scheduler: Any, net: nn.Module, x: Tensor, draws: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """Their x after each step, the start being `x`, all in their coordinate."""
    module = sys.modules[case.scheduler.__module__]
    monkeypatch.setattr(module, "randn_tensor", peers.one_by_one(draws), raising=False)
    if x.dtype == torch.float64:
        monkeypatch.setattr(module, "torch", Wide())
    walk = []
    for t in scheduler.timesteps:
        scaled = x if case.scheduler is FLOW_EULER else scheduler.scale_model_input(x, t)
        answer = net(scaled, t.float().expand(len(x)))
        x = scheduler.step(answer, t, x, **case.step).prev_sample
        assert x.dtype == answer.dtype
        walk.append(x)
    return walk[1::2] + walk[-1:] if case.scheduler is HeunDiscreteScheduler else walk


@torch.no_grad()
def difference(case: Case, name: str, dtype: torch.dtype) -> float:
    """The largest difference along the walk; in float32 on our own ladder, in float64 on theirs."""
    scheduler = their_scheduler(case, dtype)
    own = dtype == torch.float32 and case.float32 == "our ladder"
    sigmas = our_ladder(case, scheduler) if own else their_ladder(case, scheduler)
    net, target = the_net(case, name, scheduler, dtype)
    schedule = our_schedule(case)
    learned = case.options.get("variance_type") == "learned_range"
    denoise = bind(Denoiser(net, target, schedule, learned_variance=learned))
    if case.clip:
        denoise = threshold(denoise, case.clip, case.percentile)
    start, *draws = peers.noises(case.n + 1, SHAPE, dtype)
    x = start * (1 + sigmas[0] ** 2).sqrt()
    with pytest.MonkeyPatch.context() as monkeypatch:
        theirs = their_walk(case, scheduler, net, x * scale(case, sigmas[0]), draws, monkeypatch)
        if case.any_stride:
            monkeypatch.setattr(samplers, "STRIDE_MAX", float("inf"))
            monkeypatch.setattr(samplers, "GROWTH_MAX", float("inf"))
        ours = [x for _, x, _ in sample(denoise, x, sigmas, case.ours, peers.one_by_one(draws))]
    theirs = [x / s for x, s in zip(theirs, scale(case, sigmas[1:]), strict=True)]
    same = case.n - case.left_out
    return peers.difference(ours[:same], theirs[:same], sigmas[: same + 1])


def compared() -> list[tuple[str, str, torch.dtype]]:
    """Every (case, net, dtype) that is the same thing on both sides."""
    return [
        (name, net, dtype)
        for name, case in CASES.items()
        for net in case.nets
        for dtype in LIMITS
        if dtype == torch.float64 or case.float32 != "not compared"
    ]


def differences() -> dict[tuple[str, str, torch.dtype], float]:
    """(case, net, dtype) -> the largest difference; the table above."""
    return {(name, net, dtype): difference(CASES[name], net, dtype) for name, net, dtype in compared()}


@pytest.mark.parametrize(("name", "net", "dtype"), compared())
def test_same_walk(name, net, dtype, parity):
    pair = f"diffusers, {CASES[name].scheduler.__name__}, {str(dtype).removeprefix('torch.')}"
    parity(pair, difference(CASES[name], net, dtype), LIMITS[dtype])


LADDERS = [
    (scheduler, options, spacing, n)
    for scheduler, spacings in {
        DDIMScheduler: ("leading", "trailing"),  # its linspace steps down by T/n, past the next time of its own list
        DDPMScheduler: ("leading", "trailing", "linspace"),
        EULER: ("leading", "trailing", "linspace"),
        ANCESTRAL: ("leading", "trailing", "linspace"),
        HEUN: ("leading", "trailing", "linspace"),
        DPM: ("leading", "trailing", "linspace"),
        UNIPC: ("leading", "trailing", "linspace"),
    }.items()
    for spacing in spacings
    for n in ([9] if scheduler in (DPM, UNIPC) and spacing != "trailing" else [10])
    for options in (LINEAR, SCALED, COSINE)
]


@pytest.mark.parametrize(("scheduler", "options", "spacing", "n"), LADDERS)
def test_same_ladder(scheduler, options, spacing, n):
    case = Case(scheduler, euler(), options | {"timestep_spacing": spacing}, n)
    theirs = their_scheduler(case, torch.float64)
    sigmas, ours = their_ladder(case, theirs), our_ladder(case, theirs)
    assert sigmas[-1] == ours[-1] == 0
    torch.testing.assert_close(ours[:-2], sigmas[:-2], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours[-2], sigmas[-2], rtol=3e-4, atol=0)  # at t = 0 their 1 - alpha_bar has few digits
    times = theirs.timesteps[0::2] if scheduler is HEUN else theirs.timesteps
    for ladder in (sigmas, ours, ours.float()):
        assert our_schedule(case).c_noise(ladder[:-1]).tolist() == times.tolist()


def test_edm_and_flow_ladders():
    for scheduler, n in ((EDMEulerScheduler(), 18), (EDM_DPM(), 18)):
        scheduler.set_timesteps(n)
        torch.testing.assert_close(karras(0.002, 80, n), scheduler.sigmas.double(), rtol=5e-6, atol=0)
        assert scheduler.init_noise_sigma == (80**2 + 1) ** 0.5  # ours starts at 80
    flow = FLOW_EULER()
    flow.set_timesteps(10)
    ours = uniform_t(FlowSchedule(), 10, "linspace")
    torch.testing.assert_close(ours / (1 + ours), flow.sigmas.double(), rtol=0, atol=2e-6)  # ends at sigma, not t, 1e-3
    flow = FLOW_EULER(shift=3.0)
    flow.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    ours = uniform_t(shifted(FlowSchedule(), 3.0), 10)
    torch.testing.assert_close(ours / (1 + ours), flow.sigmas.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("options", [LINEAR, SCALED, COSINE])
def test_same_betas(options, zero_snr):
    theirs = DDPMScheduler(**options, rescale_betas_zero_snr=zero_snr)
    ours = DDPMSchedule(1000, NAMES[options["beta_schedule"]], zero_snr)
    torch.testing.assert_close(ours.beta[:-1], theirs.betas[:-1].double(), rtol=0, atol=1e-5 if zero_snr else 1e-7)
    torch.testing.assert_close(ours.alpha_bar[:-1], theirs.alphas_cumprod[:-1].double(), rtol=0, atol=2e-6)
    if zero_snr:
        assert theirs.betas[-1] == 1
        assert theirs.alphas_cumprod[-1] == 0
        assert ours.sigma_max >= 4096


@pytest.mark.parametrize("options", [LINEAR, SCALED, COSINE])
def test_same_posterior(options):
    """Its mean and variance, eq. 6 and 7 of Ho et al. 2020, at every t, from our own tables."""
    theirs = DDPMScheduler(**options, prediction_type="sample", clip_sample=False)
    schedule = DDPMSchedule(1000, NAMES[options["beta_schedule"]])
    theirs.alphas_cumprod = schedule.alpha_bar
    x0, x_t, nothing = *peers.noises(2, SHAPE), torch.zeros(SHAPE, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys.modules[DDPMScheduler.__module__], "randn_tensor", lambda *_, **__: nothing)
        for t in (0, 1, 2, 10, 100, 500, 998, 999):
            mean, variance = schedule.posterior(x0, x_t, t)
            torch.testing.assert_close(mean, theirs.step(x0, t, x_t).prev_sample, rtol=0, atol=1e-10)
            torch.testing.assert_close(variance.clamp(min=1e-20), theirs._get_variance(t), rtol=1e-8, atol=0)


def test_what_must_be_set():
    """Without these settings the two are not the same thing."""
    plain = CASES["DDIM, clipped"]
    assert difference(replace(plain, step={}), "mixture", torch.float64) > 1e-3  # epsilon is not derived again
    assert HEUN().sigmas.max() == pytest.approx(25, abs=0.2)  # its own betas: linear, 0.00085 to 0.012
    assert difference(replace(CASES["DDPM large"], options=LINEAR | LARGE | TRAILING), "mixture", torch.float64) > 0.1
