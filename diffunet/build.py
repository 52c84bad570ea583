"""The one place that turns names in a config into objects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from diffunet.compute import Compute
from diffunet.config import Config, LadderName, SamplerName, ThresholdName, TrainConfig
from diffunet.data import warp
from diffunet.data.dataset import Dataset, open_dataset
from diffunet.diffusion import losses, samplers, schedules
from diffunet.diffusion.denoiser import EDM, X0, Denoiser, Epsilon, Flow, Target, V
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


NetFactory = Callable[[Config], nn.Module]
"""Makes the net of a resolved config: `net` below, or a function of the user's own.

It returns a module that is called as `denoiser.Net` says, with `in_channels(config)` channels of input and
`out_channels(config)` of output. Labels are 0 ... K - 1 for the K names in `config.data.class_names`, and K stands for
no class. It draws its random start from torch's global generator.
"""


def in_channels(config: Config) -> int:
    """Return the channels of the net's input: of the image and, for inpainting, of the known pixels and the mask."""
    return config.data.channels if config.diffusion.task == "generate" else 2 * config.data.channels + 1


def out_channels(config: Config) -> int:
    """Return the channels of the net's output: of the image and, where it is learned, of the variance."""
    return config.data.channels * (2 if config.diffusion.learned_variance else 1)


def net(config: Config) -> UNet | UNet2015:
    """The net of a resolved config, freshly initialised from torch's global generator.

    Raises:
        UsageError: for channels that cannot be divided as asked, and for a config of a user's own net.
    """
    model, data = config.model, config.data
    if model.custom is not None:
        raise UsageError(
            f"the net is not one of diffunet's but {model.custom}: give the function that makes it to diffunet.load or "
            "diffunet.train, net=..."
        )
    assert model.channels is not None, "the config is resolved"
    assert model.multipliers is not None, "the config is resolved"
    assert model.attention_levels is not None, "the config is resolved"
    shared: dict[str, Any] = {
        "in_channels": in_channels(config),
        "out_channels": out_channels(config),
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


def footprint(config: Config, how: Compute, *, learn: bool, make: NetFactory = net) -> Footprint:
    """Return the memory that the net of a resolved config takes as `how` computes it; see `nn.footprint`."""
    return _footprint(config.model_copy(update={"train": TrainConfig()}), how, learn, make)  # no function of `train`


@functools.lru_cache(maxsize=8)
def _footprint(config: Config, how: Compute, learn: bool, make: NetFactory) -> Footprint:
    size, channels = config.data.image_size, in_channels(config)
    with torch.inference_mode(False), torch.device("meta"):
        return count(make(config), size, size, how.dtype, how.device.type, learn=learn, channels=channels)


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
