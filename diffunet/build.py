"""The one place that turns names in a config into objects."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from diffunet.compute import Compute
from diffunet.config import Config, LadderName, SamplerName, ThresholdName, TrainConfig
from diffunet.data import warp
from diffunet.data.cache import Dataset, open_dataset
from diffunet.diffusion import losses, samplers, schedules
from diffunet.diffusion.denoiser import EDM, X0, Denoise, Denoised, Denoiser, Epsilon, Flow, Target, V
from diffunet.diffusion.guidance import threshold
from diffunet.diffusion.inpainting import ITERATIONS, ddnm, keep_known, mmps, resample_ladder
from diffunet.draws import Noise
from diffunet.errors import UsageError
from diffunet.nn.footprint import Footprint
from diffunet.nn.footprint import footprint as count
from diffunet.nn.unet import UNet
from diffunet.nn.unet2015 import UNet2015

STEPS = {
    "ddpm": lambda: samplers.ddpm("small"),
    "ddpm-large": lambda: samplers.ddpm("large"),
    "ddpm-learned": lambda: samplers.ddpm("learned"),
    "ddim": samplers.ddim,
    "euler": samplers.euler,
    "euler-ancestral": samplers.euler_ancestral,
    "heun": samplers.heun,
    "dpm++2m": samplers.dpmpp_2m,
    "dpm++2m-sde": lambda: samplers.dpmpp_2m(eta=1.0),
    "unipc": samplers.unipc,
}
ON_LOG_SNR = ("dpm++2m", "unipc")
"""Samplers at home on a ladder uniform in log-SNR, where at few steps the others are worse than on a trailing one
(scripts/benchmark_quality.py on CIFAR-10, excess at 15 calls: unipc 0.50 against 0.62, heun 7.2 against 1.2, ddim 7.9
against 1.6)."""

INPAINTING = ("trained", "repaint", "ddnm", "mmps", "replace")
"""Methods of filling in; see diffusion/inpainting.py."""
INPAINTING_DEFAULT = "mmps"
"""Of a model that was not trained to inpaint."""
JUMPS = {"repaint": (20, 5, 5), "ddnm": (50, 50, 1)}
"""Steps of the default ladder, into how many stretches it is cut, and how often each is walked."""


def net(config: Config) -> UNet | UNet2015:
    """The net of a resolved config, freshly initialised from torch's global generator.

    Raises:
        UsageError: for channels that cannot be divided as asked.
    """
    model, data = config.model, config.data
    assert model.channels is not None, "the config is resolved"
    assert model.multipliers is not None, "the config is resolved"
    assert model.attention_levels is not None, "the config is resolved"
    shared: dict[str, Any] = {
        "in_channels": data.channels if config.diffusion.task == "generate" else 2 * data.channels + 1,
        "out_channels": data.channels * (2 if config.diffusion.learned_variance else 1),
        "dropout": model.dropout or 0.0,
        "num_classes": len(data.class_names),
        "augment_channels": warp.CHANNELS if data.augment else 0,
        "uncertainty": config.diffusion.learned_uncertainty,
    }
    if model.net == "unet2015":
        layers = len(model.multipliers) - 1
        return UNet2015(layers=layers, base_channels=model.channels, padding="same", time=True, **shared)
    try:
        return UNet(
            channels=model.channels,
            multipliers=model.multipliers,
            num_blocks=model.num_blocks,
            attention_levels=model.attention_levels,
            middle_attention=model.middle_attention,
            head_channels=model.head_channels,
            num_heads=model.num_heads,
            qk_norm=model.qk_norm,
            norm_groups=model.norm_groups,
            norm_eps=model.norm_eps,
            scale_shift=model.scale_shift,
            resample=model.resample,
            frequency_shift=model.frequency_shift,
            checkpointing=bool(model.checkpointing),
            **shared,
        )
    except ValueError as error:
        raise UsageError(f"model: {error}") from None


def footprint(config: Config, how: Compute, *, learn: bool) -> Footprint:
    """The memory that the net of a resolved config takes as `how` computes it; see `nn.footprint`."""
    return _footprint(config.model_copy(update={"train": TrainConfig()}), how, learn)  # of which it is no function


@functools.lru_cache(maxsize=8)
def _footprint(config: Config, how: Compute, learn: bool) -> Footprint:
    size = config.data.image_size
    with torch.inference_mode(False), torch.device("meta"):
        meta = net(config)
        return count(meta, size, size, how.dtype, how.device.type, learn=learn)


def schedule(config: Config) -> schedules.Schedule:
    """The noise schedule, shifted for large images."""
    d = config.diffusion
    base: schedules.Schedule
    if d.schedule == "edm":
        base = schedules.EDMSchedule(log_mean=d.edm_log_mean, log_std=d.edm_log_std)
    elif d.schedule.startswith("flow"):
        base = schedules.FlowSchedule(logit_normal=d.schedule == "flow-logit-normal")
    else:
        base = schedules.DDPMSchedule(
            d.num_steps, d.schedule, d.zero_snr, beta_range=d.beta_range, rescale_timesteps=d.rescale_timesteps
        )
    shift = d.sigma_shift if d.sigma_shift is not None else max(1.0, config.data.image_size / 64)
    return schedules.shifted(base, shift)


def target(config: Config) -> Target:
    """What the net predicts."""
    targets: dict[str, Target] = {
        "epsilon": Epsilon(),
        "x0": X0(),
        "v": V(),
        "flow": Flow(),
        "edm": EDM(config.diffusion.sigma_data or 0.5),
    }
    return targets[config.diffusion.target]


def weighting(config: Config) -> losses.Weighting:
    """How noise levels count in the loss."""
    d = config.diffusion
    return {
        "simple": losses.simple(),
        "min-snr": losses.min_snr(d.min_snr_gamma),
        "soft-min-snr": losses.soft_min_snr(d.min_snr_gamma),
        "edm": losses.edm(d.sigma_data or 0.5),
        "p2": losses.p2(d.p2_gamma),
        "sigmoid": losses.sigmoid(schedule(config), d.sigmoid_bias),
    }[d.weighting]


def denoiser(config: Config, backbone: nn.Module | None = None) -> Denoiser:
    """Net (or `backbone` in its place), target and schedule in one."""
    d = config.diffusion
    return Denoiser(backbone or net(config), target(config), schedule(config), d.learned_variance, d.task == "inpaint")


def step(config: Config) -> samplers.Step:
    """The sampler that a config names."""
    return STEPS[config.diffusion.sampler]()


def calls(sampler: str, steps: int) -> int:
    """Calls of the net that a sampler makes in so many steps; the last one of heun is one of Euler."""
    return 2 * steps - 1 if sampler == "heun" else steps


def sampling(config: Config, **chosen: str | None) -> Config:
    """`config` with what was chosen for sampling (sampler, ladder, threshold); None leaves what it says.

    Raises:
        UsageError: for what there is not, or this model cannot do.
    """
    values = {name: value for name, value in chosen.items() if value is not None}
    names = {"sampler": SamplerName, "ladder": LadderName, "threshold": ThresholdName}
    for name, value in values.items():
        if value not in get_args(names[name]):
            raise UsageError(f"unknown {name} {value!r}; there are {', '.join(get_args(names[name]))}")
    return config.changed("diffusion", **values) if values else config


def ladder(config: Config, noise: schedules.Schedule, n: int) -> Tensor:
    """The sigmas that `n` sampling steps visit, float64 [n + 1]."""
    name = config.diffusion.ladder or ("log-snr" if config.diffusion.sampler in ON_LOG_SNR else "trailing")
    low, high = noise.sigma_min, min(noise.sigma_max, 500.0)
    if name == "karras":
        return schedules.karras(low, high, n)
    if name == "log-snr":
        return schedules.uniform_log_snr(low, high, n)
    return schedules.uniform_t(noise, n, name)


Walk = Iterator[tuple[int, Tensor, Denoised]]
"""See `samplers.sample`."""


@dataclass(frozen=True)
class Inpainting:
    """A way to fill in: the `ladder` [n + 1] and `walk(denoise, known, keep, x, noise)` down it.

    `known` [B C H W] in [-1, 1], `keep` bool and broadcasting to it, True where pixels are known; x [B C H W] at the
    first sigma. `method` is its name; it takes `calls` of the net, passes backwards among them. A net that is `trained`
    for it is to be told what is known, too; see `denoiser.condition`.
    """

    method: str
    ladder: Tensor
    calls: int
    walk: Callable[[Denoise, Tensor, Tensor, Tensor, Noise], Walk]

    @property
    def trained(self) -> bool:
        """Whether the net is told what is known."""
        return self.method == "trained"


def inpainting(
    config: Config,
    noise: schedules.Schedule,
    method: str = "auto",
    steps: int | None = None,
    jump_length: int | None = None,
    jump_n_sample: int | None = None,
    below: float = math.inf,
) -> Inpainting:
    """The way to fill in that `method`, one of `INPAINTING`, names.

    Args:
        config: of the model; its sampler and ladder are those of trained, replace and mmps.
        noise: the model's schedule.
        method: auto is trained for a model trained to inpaint, else `INPAINTING_DEFAULT`.
        steps: of the ladder, before it is walked more than once.
        jump_length, jump_n_sample: see `resample_ladder`; of repaint and ddnm.
        below: begin at this sigma, with what is left of the ladder.

    Raises:
        UsageError: for a method that there is not, or that the model or the other arguments do not go with.
    """
    trained = config.diffusion.task == "inpaint"
    if method == "auto":
        method = "trained" if trained else INPAINTING_DEFAULT
    if method not in INPAINTING:
        raise UsageError(f"unknown method {method!r}; there are {', '.join(INPAINTING)}")
    if method == "trained" and not trained:
        raise UsageError("method trained needs a model that was trained with --task inpaint, and this one was not")
    if method not in JUMPS:
        if jump_length is not None or jump_n_sample is not None:
            raise UsageError(
                f"method {method} does not jump back; jump_length and jump_n_sample are of repaint and ddnm"
            )
        sampler = config.diffusion.sampler
        sigmas, step = _below(ladder(config, noise, steps or config.diffusion.sample_steps), below), STEPS[sampler]()
        count = calls(sampler, len(sigmas) - 1) * (1 + ITERATIONS if method == "mmps" else 1)
        given = _mmps if method == "mmps" else keep_known
        return Inpainting(
            method,
            sigmas,
            count,
            lambda denoise, known, keep, x, noise: samplers.sample(given(denoise, known, keep), x, sigmas, step, noise),
        )
    default_steps, stretches, visits = JUMPS[method]
    steps = steps or default_steps
    sigmas = _below(ladder(sampling(config, ladder="trailing"), noise, steps), below)  # uniform in time, as they walk
    sigmas = resample_ladder(sigmas, jump_length or max(1, steps // stretches), jump_n_sample or visits)
    count = int((sigmas.diff() < 0).sum())
    if method == "ddnm":
        return Inpainting(
            method,
            sigmas,
            count,
            lambda denoise, known, keep, x, noise: samplers.sample(denoise, x, sigmas, ddnm(known, keep), noise),
        )
    return Inpainting(
        method,
        sigmas,
        count,
        lambda denoise, known, keep, x, noise: samplers.sample(
            keep_known(denoise, known, keep, noise), x, sigmas, samplers.euler(eta=1.0), noise
        ),
    )


def _mmps(denoise: Denoise, known: Tensor, keep: Tensor) -> Denoise:
    """`mmps` within the range of images: at much noise a net's small error is a large one of its derivative."""
    return threshold(mmps(denoise, known, keep), "static")


def _below(sigmas: Tensor, sigma: float) -> Tensor:
    """What of a ladder is below a sigma, from it on; all of it where that begins lower."""
    return sigmas if sigmas[0] <= sigma else torch.cat([sigmas.new_tensor([sigma]), sigmas[sigmas < sigma]])


def prior_mean(config: Config) -> Tensor:
    """Where sampling starts, before the noise: the mean of the images, [C 1 1]."""
    mean = config.diffusion.mean or (0.0,) * config.data.channels
    return torch.tensor(mean)[:, None, None]


def dataset(config: Config, root: Path, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """The images of a folder, decoded and cached as the config says."""
    data = config.data
    cache: Path | Literal["off"] | None = None
    if data.cache is not None:
        cache = "off" if data.cache == "off" else Path(data.cache)
    return open_dataset(
        root,
        image_size=data.image_size,
        channels=data.channels,
        fit=data.fit,
        background=data.background,
        cache=cache,
        progress=progress,
    )
