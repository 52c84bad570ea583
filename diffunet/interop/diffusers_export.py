"""A config of ours written as the options of diffusers' UNet2DModel and of its scheduler.

What diffusers cannot express is refused by the name of our option, with how to mend it. Checked against diffusers 0.42.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from diffunet import build
from diffunet.config import Config
from diffunet.diffusion.schedules import DDPMSchedule, betas
from diffunet.errors import UsageError
from diffunet.interop.diffusers_import import ATTENTION, BETA_SCHEDULES, PLAIN, RESIDUAL, TARGETS, published_range
from diffunet.names import DDPM_SCHEDULES
from diffunet.nn.layers import Attention

log = logging.getLogger(__name__)

VERSION = "0.42.0"
"""The version of diffusers that this is checked against, and that the files name."""


def _refuse(what: str, mend: str) -> None:
    raise UsageError(f"diffusers cannot say {what}; {mend}")


def unet_options(config: Config, net: nn.Module) -> dict[str, Any]:
    """Return the config.json of the UNet2DModel that is the same net as `net`, which `config` describes.

    Raises:
        UsageError: no UNet2DModel is; the message names the option.
    """
    m, d, size = config.model, config.diffusion, config.data.image_size
    if m.net != "unet":
        _refuse(f"model.net {m.net}", "only the net 'unet' can be written")
    multipliers, attended = m.multipliers or (), m.attention_levels or ()  # None only before the config is resolved
    widths = [round((m.channels or 0) * multiplier) for multiplier in multipliers]
    unit = 2 ** (len(widths) - 1)
    if d.task != "generate":
        _refuse(f"diffusion.task {d.task}", "its pipelines give a net no mask; train with --task generate")
    if m.qk_norm:
        _refuse("model.qk-norm", "train with --model.no-qk-norm")
    if widths[0] != m.channels:
        _refuse(f"model.multipliers that begin with {multipliers[0]}", "train with ones that begin with 1")
    if size % unit:
        _refuse(f"data.image-size {size} with {len(widths)} levels", f"take a multiple of {unit}")
    groups = {module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)}
    if len(groups) > 1:
        _refuse("model.norm-groups of 16 channels each, one number for all", "train with --model.norm-groups 32")
    attentions = [module for module in net.modules() if isinstance(module, Attention)]
    dims = {module.qkv.in_channels // module.heads for module in attentions}
    single = {module.heads for module in attentions} == {1}
    if len(dims) > 1 and not single:
        what = f"heads of {' and '.join(map(str, sorted(dims)))} channels (model.num-heads, model.head-channels)"
        _refuse(what, "train with --model.head-channels that divide every width that has attention")
    plain = RESIDUAL if m.resample == "residual" else PLAIN
    down, up = ([ATTENTION[side] if i in attended else plain[side] for i in range(len(widths))] for side in (0, 1))
    resampling, classes = "resnet" if m.resample == "residual" else "conv", len(config.data.class_names)
    return {
        "_class_name": "UNet2DModel", "_diffusers_version": VERSION, "sample_size": size,
        "in_channels": config.data.channels, "out_channels": config.data.channels * (2 if d.learned_variance else 1),
        "center_input_sample": False, "time_embedding_type": "positional", "freq_shift": m.frequency_shift,
        "flip_sin_to_cos": True, "down_block_types": down, "mid_block_type": "UNetMidBlock2D",
        "up_block_types": up[::-1], "block_out_channels": widths, "layers_per_block": m.num_blocks,
        "mid_block_scale_factor": 1, "downsample_padding": 0 if m.resample == "asymmetric" else 1,
        "downsample_type": resampling, "upsample_type": resampling, "dropout": m.dropout or 0.0, "act_fn": "silu",
        "attention_head_dim": dims.pop() if len(dims) == 1 and not single else None, "norm_num_groups": min(groups),
        "attn_norm_num_groups": min(groups),  # else the attention of their middle has no norm with scale_shift
        "norm_eps": m.norm_eps, "resnet_time_scale_shift": "scale_shift" if m.scale_shift else "default",
        "add_attention": m.middle_attention, "class_embed_type": None,
        "num_class_embeds": classes + 1 if classes else None,
    }  # fmt: skip


def scheduler_options(config: Config) -> dict[str, Any]:
    """Return the scheduler_config.json of the process that `config` describes: DDPMScheduler, or rectified flow's.

    Raises:
        UsageError: no scheduler of theirs does the same in a DDPMPipeline; the message names the option.
    """
    d, noise = config.diffusion, build.schedule(config)
    if d.schedule not in DDPM_SCHEDULES:
        return _flow_options(config)
    assert isinstance(noise, DDPMSchedule), "DDPM_SCHEDULES"
    if d.target not in TARGETS.values():
        _refuse(f"diffusion.target {d.target} on schedule {d.schedule}", "train with --diffusion.target v or epsilon")
    if d.rescale_timesteps and d.num_steps != 1000:
        _refuse(f"diffusion.rescale-timesteps of {d.num_steps} steps", "it can of 1000")
    fixed = "fixed_large" if d.sampler == "ddpm-large" else "fixed_small"
    variance = "learned_range" if d.learned_variance else fixed
    names = {ours: theirs for theirs, ours in BETA_SCHEDULES.items()}
    by_name = d.schedule in names and noise.shift == 1
    if d.schedule != "cosine" and by_name:  # theirs do not keep the last betas of a range below 0.999
        by_name = bool(betas(d.schedule, d.num_steps, d.beta_range)[-1] < 0.999)
    first, last = d.beta_range or published_range(d.schedule, d.num_steps)
    return {
        "_class_name": "DDPMScheduler", "_diffusers_version": VERSION, "num_train_timesteps": d.num_steps,
        "beta_schedule": names[d.schedule] if by_name else "linear", "beta_start": first, "beta_end": last,
        "trained_betas": None if by_name else noise.beta.tolist(), "rescale_betas_zero_snr": d.zero_snr and by_name,
        "prediction_type": {ours: theirs for theirs, ours in TARGETS.items()}[d.target], "variance_type": variance,
        "clip_sample": d.threshold == "static", "clip_sample_range": 1.0, "thresholding": d.threshold == "dynamic",
        "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1e6 if d.threshold == "dynamic" else 1.0,
        # Their last step draws noise unless it is from timestep 0, which only these variances show.
        "timestep_spacing": "trailing" if variance == "fixed_small" else "leading", "steps_offset": 0,
    }  # fmt: skip


def _flow_options(config: Config) -> dict[str, Any]:
    d = config.diffusion
    if d.schedule == "edm" or d.target != "flow":
        what = f"diffusion.schedule {d.schedule} with target {d.target}, not to its DDPMPipeline"
        _refuse(what, "train with schedule flow and target flow, or with a DDPM schedule")
    shift = d.sigma_shift if d.sigma_shift is not None else max(1.0, config.data.image_size / 64)
    if shift != 1:
        _refuse(f"diffusion.sigma-shift {shift:g} of schedule {d.schedule}", "train with --diffusion.sigma-shift 1")
    if d.threshold != "none":
        log.warning("diffusion.threshold %s is left out: their scheduler of flow has none", d.threshold)
    name = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": VERSION}
    return {**name, "num_train_timesteps": 1000, "shift": 1.0}
