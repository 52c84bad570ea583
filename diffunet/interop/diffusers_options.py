"""The options of diffusers' UNet2DModel and of its schedulers, read as a config of ours and written from one.

A net that runs with other options than its own makes noise. So an option of theirs that our config cannot express, or
that is not known here, is refused by its name, and so is one of ours that diffusers cannot express.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from diffunet import build
from diffunet.config import Config, validated
from diffunet.diffusion.schedules import DDPMSchedule, betas
from diffunet.errors import CheckpointError, UsageError
from diffunet.names import DDPM_SCHEDULES
from diffunet.nn.layers import Attention

log = logging.getLogger(__name__)

VERSION = "0.42.0"
"""The version of diffusers that this is checked against, and that the files name."""

Size = Annotated[int, Field(ge=1, le=2**17)]
One = Annotated[float, Field(ge=1, le=1)]
Beta = Annotated[float, Field(gt=0, lt=0.999)]  # betas of ours are at most 0.999
Resampling = Literal["conv", "resnet"] | None
Blocks = Annotated[tuple[str, ...], Field(min_length=1, max_length=10)]

PLAIN = ("DownBlock2D", "UpBlock2D")
ATTENTION = ("AttnDownBlock2D", "AttnUpBlock2D")
RESIDUAL = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
"""Their kinds of blocks: the name in the encoder, and the name in the decoder."""


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def read(cls, content: Mapping[str, Any], where: str) -> Self:
        """Return the options in `content` without private ones (_class_name) and unknown ones that are null."""
        known = {name: value for name, value in content.items() if value is not None or name in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in known.items() if not name.startswith("_")})
        except ValidationError as error:
            problems = {}  # one for each option, which can have several errors
            for item in error.errors():
                name, is_unknown = str(item["loc"][0]), item["type"] == "extra_forbidden"
                what = "is not known here" if is_unknown else f"cannot be said here ({item['msg']})"
                problems[name] = f"{name[:60]} {_shown(content[name])} {what}"
            raise CheckpointError(f"{where}: {'; '.join(list(problems.values())[:3])}") from None


class UNet2D(_Options):
    """The options of a UNet2DModel with the values that can be read; the defaults are diffusers'."""

    sample_size: int | tuple[int, int] | None = None
    in_channels: Literal[1, 3, 4] = 3
    out_channels: Size = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    freq_shift: Literal[0, 1] = 0
    flip_sin_to_cos: bool = True
    down_block_types: Blocks = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: Blocks = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: Annotated[tuple[Size, ...], Field(min_length=1, max_length=10)] = (224, 448, 672, 896)
    layers_per_block: Annotated[int, Field(ge=1, le=16)] = 2
    mid_block_scale_factor: One = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Resampling = "conv"
    upsample_type: Resampling = "conv"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: Size | None = 8
    norm_num_groups: Size = 32
    attn_norm_num_groups: Size | None = None
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: Annotated[int, Field(ge=1, le=100_000)] | None = None
    num_train_timesteps: Any = None  # has a meaning only with time_embedding_type "learned"


class Chain(_Options):
    """The options of a scheduler of a DDPM chain with the values that can be read; the defaults are diffusers'."""

    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    predict_epsilon: Literal[True] | None = None
    variance_type: str | None = None
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    thresholding: bool = False
    sample_max_value: float = 1.0
    timestep_type: Literal["discrete"] = "discrete"
    use_flow_sigmas: Literal[False] = False
    use_dynamic_shifting: Any = None  # has a meaning only with use_flow_sigmas


class FlowMatch(_Options):
    """The options of a scheduler of rectified flow with the values that can be read; the defaults are diffusers'."""

    num_train_timesteps: Annotated[int, Field(ge=1000, le=1000)] = 1000
    shift: One = 1.0
    use_dynamic_shifting: Literal[False] = False
    invert_sigmas: Literal[False] = False


_SCHEDULERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("DDPMScheduler DDPMParallelScheduler DDIMScheduler DDIMParallelScheduler", {"clip_sample": True}),
    ("PNDMScheduler DEISMultistepScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler "
     "UniPCMultistepScheduler SASolverScheduler LMSDiscreteScheduler EulerDiscreteScheduler "
     "EulerAncestralDiscreteScheduler", {}),
    ("DPMSolverSDEScheduler HeunDiscreteScheduler KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler",
     {"beta_start": 0.00085, "beta_end": 0.012}),
)  # fmt: skip
SCHEDULERS = {name: defaults for names, defaults in _SCHEDULERS for name in names.split()}
"""The schedulers of a DDPM chain, and those of their defaults that differ from `Chain`'s."""

FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")

SAMPLING = frozenset((
    "algorithm_type", "base_image_seq_len", "base_shift", "corrector_order", "disable_corrector",
    "dynamic_thresholding_ratio", "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type",
    "lambda_min_clipped", "lower_order_final", "max_image_seq_len", "max_shift", "noise_sampler_seed", "predict_x0",
    "predictor_order", "set_alpha_to_one", "shift_terminal", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order",
    "solver_p", "solver_type", "steps_offset", "stochastic_sampling", "tau_func", "tensor_format", "time_shift_type",
    "timestep_spacing", "timestep_values", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas",
    "use_lu_lambdas",
))  # fmt: skip
"""Options of schedulers that say how to sample, and nothing about the model; our samplers have options of their own."""

EMA = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
"""Options which diffusers' EMAModel adds to the config of the net that it averages."""

TARGETS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]} ..."


def _class(content: Mapping[str, Any], where: str) -> str:
    name = content.get("_class_name")
    if not isinstance(name, str):
        raise CheckpointError(f"{where}: it has no _class_name, so that it is not of diffusers")
    return name


def read_unet(content: Mapping[str, Any], where: str) -> UNet2D:
    """Return the options in `content`, the config.json of a UNet2DModel; messages begin with `where`.

    Raises:
        CheckpointError: it is of another net, or an option (by its name) is not known or not one that ours can express.
    """
    if _class(content, where) != "UNet2DModel":
        raise CheckpointError(f"{where}: it is a {content['_class_name']}, and only a UNet2DModel can be read")
    unet = UNet2D.read({name: value for name, value in content.items() if name not in EMA}, where)
    for name, why in _misfits(unet):
        raise CheckpointError(f"{where}: {name} {_shown(getattr(unet, name))} cannot be said here: {why}")
    return unet


def _misfits(unet: UNet2D) -> Iterator[tuple[str, str]]:
    """Yield the options that do not go with others or cannot be expressed here, each with the reason."""
    widths, groups = unet.block_out_channels, unet.attn_norm_num_groups
    down, up = _kinds(unet)
    for side, (name, kinds) in enumerate((("down_block_types", down), ("up_block_types", up))):
        known = (PLAIN[side], ATTENTION[side], RESIDUAL[side])
        yield from ((name, f"there is no {_shown(kind)}") for kind in kinds if kind not in known)
        if len(kinds) != len(widths):
            yield name, f"block_out_channels has {len(widths)} levels"
    if [kind in ATTENTION for kind in down] != [kind in ATTENTION for kind in reversed(up)]:
        yield "up_block_types", "attention is at the levels where down_block_types has it"
    if len(set(_resampling(unet))) > 1:
        yield "down_block_types", "sizes are changed by convolutions at all levels or inside residual blocks at all"
    if unet.time_embedding_dim not in (None, 0, 4 * widths[0]):
        yield "time_embedding_dim", f"it is 4 times the first width, {4 * widths[0]}"
    if unet.out_channels not in (unet.in_channels, 2 * unet.in_channels):
        yield "out_channels", f"they are as in_channels, {unet.in_channels}, or twice as many with learned variances"
    if isinstance(unet.sample_size, tuple) and len(set(unet.sample_size)) > 1:
        yield "sample_size", "image-size is one number, of square images"
    if unet.add_attention and groups is None and unet.resnet_time_scale_shift == "scale_shift":
        yield "attn_norm_num_groups", "with scale_shift the attention of their middle is then not normalised"
    if unet.add_attention and groups not in (None, unet.norm_num_groups):
        yield "attn_norm_num_groups", f"all norms have norm_num_groups, {unet.norm_num_groups}"
    attended = [width for width, kind in zip(widths, down, strict=True) if kind in ATTENTION]
    for width in (*attended, *(widths[-1:] if unet.add_attention else ())):
        if unet.attention_head_dim is not None and width % unet.attention_head_dim:
            yield "attention_head_dim", f"it does not divide {width}"


def _kinds(unet: UNet2D) -> list[list[str]]:
    """Return the kinds of blocks of the encoder and of the decoder, without the UNetRes of the first diffusers."""
    return [[kind.removeprefix("UNetRes") for kind in side] for side in (unet.down_block_types, unet.up_block_types)]


def _resampling(unet: UNet2D) -> list[str]:
    """Return how the levels are made smaller, then how larger: "conv" or "resnet". Plain blocks ignore the options."""
    return [
        (chosen or "conv") if kind in ATTENTION else "resnet" if kind in RESIDUAL else "conv"
        for kinds, chosen in zip(_kinds(unet), (unet.downsample_type, unet.upsample_type), strict=True)
        for kind in kinds[:-1]
    ]


def read_scheduler(content: Mapping[str, Any], where: str) -> Chain | FlowMatch:
    """Return the options in `content`, a scheduler_config.json, that describe the model; messages begin with `where`.

    Raises:
        CheckpointError: it is another scheduler, or an option (by its name) is not known or cannot be expressed here.
    """
    scheduler = _class(content, where)
    content = {name: value for name, value in content.items() if name not in SAMPLING}
    if scheduler in FLOW_SCHEDULERS:
        return FlowMatch.read(content, where)
    if scheduler not in SCHEDULERS:
        able = "schedulers of DDPM's chain can (DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler and others)"
        raise CheckpointError(f"{where}: a {scheduler} cannot be said here; {able}, and {FLOW_SCHEDULERS[0]}")
    return Chain.read({**SCHEDULERS[scheduler], **content}, where)


def config(unet: UNet2D, scheduler: Chain | FlowMatch | None, where: str) -> Config:
    """Return a config of ours for a net and its scheduler, everything resolved; messages begin with `where`.

    Where `scheduler` is None, it is taken as DDPM's linear chain with target epsilon.

    Raises:
        CheckpointError: the options do not go with each other, or are out of the range of ours.
    """
    first, *_ = widths = unet.block_out_channels
    size = unet.sample_size[0] if isinstance(unet.sample_size, tuple) else unet.sample_size
    if size is None:
        size = 64
        log.warning("%s does not say for what size of images: taken as %d", where, size)
    learned = unet.out_channels == 2 * unet.in_channels
    if scheduler is None:
        scheduler = Chain(variance_type="learned_range" if learned else None)
        log.warning("there is no scheduler with %s: taken as DDPM's own, linear betas and target epsilon", where)
    variance = scheduler.variance_type if isinstance(scheduler, Chain) else None
    if learned != (variance == "learned_range") or variance == "learned":
        what = f"out_channels {unet.out_channels} of in_channels {unet.in_channels} with variance_type {variance!r}"
        rule = "twice as many channels go with learned_range, and no others do"
        raise CheckpointError(f"{where}: {what} cannot be said here: {rule}")
    levels = [level for level, kind in enumerate(_kinds(unet)[0]) if kind in ATTENTION]
    convolution = "asymmetric" if unet.downsample_padding == 0 and _resampling(unet) else "convolution"
    resample = "residual" if "resnet" in _resampling(unet) else convolution
    heads = {"num_heads": 1} if unet.attention_head_dim is None else {"head_channels": unet.attention_head_dim}
    model = {
        "channels": first, "multipliers": [width / first if width % first else width // first for width in widths],
        "num_blocks": unet.layers_per_block, "dropout": unet.dropout, "frequency_shift": unet.freq_shift,
        "attention_resolutions": [max(1, size // 2**level) for level in levels], "attention_levels": levels,
        "middle_attention": unet.add_attention, **(heads if levels or unet.add_attention else {}),
        "norm_groups": unet.norm_num_groups, "norm_eps": unet.norm_eps,
        "scale_shift": unet.resnet_time_scale_shift == "scale_shift", "resample": resample,
    }  # fmt: skip
    names = [str(label) for label in range(unet.num_class_embeds or 0)]
    data = {"image_size": size, "channels": unet.in_channels, "classes": bool(names), "class_names": names}
    diffusion = {
        **(_chain(scheduler) if isinstance(scheduler, Chain) else {"schedule": "flow", "target": "flow"}),
        "learned_variance": learned, "sigma_shift": 1.0, "label_dropout": 0.0, "mean": [0.0] * unet.in_channels,
    }  # fmt: skip
    try:
        return validated({"model": model, "diffusion": diffusion, "data": data | {"reading": 2}}, where)
    except UsageError as error:
        raise CheckpointError(str(error)) from None


def _chain(scheduler: Chain) -> dict[str, Any]:
    schedule, ends = BETA_SCHEDULES[scheduler.beta_schedule], (scheduler.beta_start, scheduler.beta_end)
    published = published_range(schedule, scheduler.num_train_timesteps)
    threshold = "static" if scheduler.clip_sample and scheduler.clip_sample_range == 1 else "none"
    if scheduler.thresholding:  # to [-s, s] with s at most sample_max_value: to [-1, 1] by default
        threshold = "dynamic" if scheduler.sample_max_value > 1 else "static"
    elif scheduler.clip_sample and threshold == "none":
        log.warning("clip_sample_range %g is left out: x0 is not clipped", scheduler.clip_sample_range)
    return {
        "schedule": schedule, "num_steps": scheduler.num_train_timesteps, "threshold": threshold,
        "beta_range": ends if schedule != "cosine" and ends != published else None,
        "zero_snr": scheduler.rescale_betas_zero_snr, "target": TARGETS[scheduler.prediction_type],
    }  # fmt: skip


def published_range(schedule: str, num_steps: int) -> tuple[float, float]:
    """Return the first and the last beta of Rombach et al. 2022 for scaled-linear, of Ho et al. 2020 for others."""
    first, last = (0.00085, 0.012) if schedule == "scaled-linear" else (1e-4, 0.02)
    return 1000 / num_steps * first, 1000 / num_steps * last


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
        "up_block_types": up[::-1], "block_out_channels": widths, "layers_per_block": m.num_blocks or 2,
        "mid_block_scale_factor": 1, "downsample_padding": 0 if m.resample == "asymmetric" else 1,
        "downsample_type": resampling, "upsample_type": resampling, "dropout": m.dropout or 0.0, "act_fn": "silu",
        "attention_head_dim": dims.pop() if len(dims) == 1 and not single else None, "norm_num_groups": min(groups),
        "attn_norm_num_groups": min(groups),  # else the attention of their middle has no norm with scale_shift
        "norm_eps": m.norm_eps, "resnet_time_scale_shift": "scale_shift" if m.scale_shift else "default",
        "add_attention": m.middle_attention is not False, "class_embed_type": None,
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
    if d.schedule not in ("flow", "flow-logit-normal") or d.target != "flow":
        what = f"diffusion.schedule {d.schedule} with target {d.target}, not to its DDPMPipeline"
        _refuse(what, "train with schedule flow and target flow, or with a DDPM schedule")
    shift = d.sigma_shift if d.sigma_shift is not None else max(1.0, config.data.image_size / 64)
    if shift != 1:
        _refuse(f"diffusion.sigma-shift {shift:g} of schedule {d.schedule}", "train with --diffusion.sigma-shift 1")
    if d.threshold != "none":
        log.warning("diffusion.threshold %s is left out: their scheduler of flow has none", d.threshold)
    name = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": VERSION}
    return {**name, "num_train_timesteps": 1000, "shift": 1.0}
