"""The flags of openai/improved-diffusion (Nichol & Dhariwal 2021) and openai/guided-diffusion (Dhariwal & Nichol 2021).

They describe a net and its process. Names, defaults and meanings are those of their script_util.py.
"""

from __future__ import annotations

import difflib
import shlex
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from diffunet.config import Config, Multiplier, Positive, validated
from diffunet.errors import UsageError

Dialect = Literal["guided-diffusion", "improved-diffusion"]

Listed = BeforeValidator(lambda text: text.split(",") if text else ())
"""Marks a tuple that is written as numbers with commas between them."""


class Flags(BaseModel):
    """The flags that describe a net and its process, with the defaults of guided-diffusion; `parse` knows others'."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    image_size: Positive = 64
    num_channels: Positive = 128
    num_res_blocks: Positive = 2
    channel_mult: Annotated[tuple[Multiplier, ...], Listed] = ()
    num_heads: Positive = 4
    num_head_channels: Positive | Literal["-1"] = "-1"
    num_heads_upsample: Positive | Literal["-1"] = "-1"
    attention_resolutions: Annotated[tuple[Positive, ...], Listed] = (16, 8)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    diffusion_steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The levels with attention, where 0 is full size: those of the sizes in `attention_resolutions`."""
        factors = [self.image_size // size for size in self.attention_resolutions]
        return tuple(level for level in range(len(self.channel_mult)) if 2**level in factors)


GUIDED_ONLY = ("channel_mult", "num_head_channels", "resblock_updown", "use_new_attention_order")
"""Flags that improved-diffusion does not have; its nets are as the defaults say."""

IGNORED = (
    "anneal_lr", "batch_size", "classifier_attention_resolutions", "classifier_depth", "classifier_path",
    "classifier_pool", "classifier_resblock_updown", "classifier_scale", "classifier_use_fp16",
    "classifier_use_scale_shift_norm", "classifier_width", "clip_denoised", "data_dir", "ema_rate", "eval_interval",
    "fp16_scale_growth", "iterations", "log_interval", "lr", "lr_anneal_steps", "microbatch", "model_path", "noised",
    "num_samples", "rescale_learned_sigmas", "resume_checkpoint", "save_interval", "schedule_sampler", "sigma_small",
    "timestep_respacing", "use_checkpoint", "use_ddim", "use_fp16", "use_kl", "val_data_dir", "weight_decay",
)  # fmt: skip
"""Flags of training and sampling, which do not describe the net."""

SUPER_RESOLUTION = ("base_samples", "large_size", "small_size")

MULTIPLIERS: dict[Dialect, dict[int, tuple[float, ...]]] = {
    "guided-diffusion":
        {64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)},
    "improved-diffusion": {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)},
}  # fmt: skip
"""The channel_mult of each image size, where none is given."""


def parse(text: str, dialect: Dialect) -> Flags:
    """Return the flags in `text`, written as on a command line; others have the defaults of the dialect's scripts.

    Raises:
        UsageError: a flag does not exist (the message names the closest), or its value is not possible.
    """
    is_improved = dialect == "improved-diffusion"
    own = [name for name in Flags.model_fields if not (is_improved and name in GUIDED_ONLY)]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"the flags cannot be read: {error}") from None
    values: dict[str, str] = {}
    while words:
        flag, equals, value = words.pop(0).partition("=")
        name = flag.removeprefix("--")
        if name == flag:
            raise UsageError(f"the flags have {flag!r} where a flag should be; write --flag value, or --flag=value")
        if name in SUPER_RESOLUTION:
            raise UsageError(f"{flag} is of a super-resolution model, which diffunet cannot use")
        if name not in own and name not in IGNORED:
            close = difflib.get_close_matches(name, [*own, *IGNORED], n=1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            raise UsageError(f"{dialect} has no flag {flag}{hint}")
        if not equals and (not words or words[0].startswith("--")):
            raise UsageError(f"{flag} needs a value")
        value = value if equals else words.pop(0)
        if name in own:
            values[name] = value
    try:
        flags = Flags.model_validate(values)
    except ValidationError as error:
        name, message = str(error.errors()[0]["loc"][0]), error.errors()[0]["msg"]
        raise UsageError(f"--{name} {values[name]}: {message[0].lower()}{message[1:]}") from None
    multipliers = flags.channel_mult or MULTIPLIERS[dialect].get(flags.image_size)
    if multipliers is None:
        sizes = ", ".join(map(str, MULTIPLIERS[dialect]))
        other = " without --channel_mult" if "channel_mult" in own else ""
        raise UsageError(f"--image_size {flags.image_size}: {dialect} has nets for {sizes}{other}")
    resolved: dict[str, Any] = dict(flags) | {"channel_mult": multipliers}
    if is_improved and "rescale_timesteps" not in values:
        resolved["rescale_timesteps"] = True
    return Flags.model_construct(flags.model_fields_set, **resolved)


def to_config(flags: Flags) -> Config:
    """Return the config of a net with the flags that `parse` returns, resolved but for the names of its classes.

    Raises:
        UsageError: no net of diffunet is the same.
    """
    channels, multipliers, head = flags.num_channels, flags.channel_mult, flags.num_head_channels
    if multipliers[0] > 1:
        raise UsageError(f"--channel_mult {written(multipliers)}: the first one cannot be above 1 here")
    if head == "-1" and flags.num_heads_upsample not in ("-1", flags.num_heads):
        what = f"--num_heads_upsample {flags.num_heads_upsample} is not --num_heads {flags.num_heads}"
        raise UsageError(f"{what}: diffunet's nets have one number of heads")
    for level in sorted({*flags.attention_levels, len(multipliers) - 1}):  # the middle has attention, too
        width = round(channels * multipliers[level])
        if isinstance(head, int) and width % head:
            raise UsageError(f"--num_head_channels {head} does not divide {width} channels")
    model = {
        "channels": channels, "multipliers": multipliers, "num_blocks": flags.num_res_blocks, "dropout": flags.dropout,
        "attention_resolutions": flags.attention_resolutions, "attention_levels": flags.attention_levels,
        **({"num_heads": flags.num_heads} if head == "-1" else {"head_channels": head}), "norm_groups": 32,
        "scale_shift": flags.use_scale_shift_norm, "resample": "residual" if flags.resblock_updown else "convolution",
    }  # fmt: skip
    diffusion = {
        "schedule": flags.noise_schedule, "num_steps": flags.diffusion_steps,
        "rescale_timesteps": flags.rescale_timesteps, "target": "x0" if flags.predict_xstart else "epsilon",
        "learned_variance": flags.learn_sigma, "sigma_shift": 1.0, "mean": (0.0, 0.0, 0.0), "label_dropout": 0.0,
        "threshold": "static",
    }  # fmt: skip
    data = {"image_size": flags.image_size, "channels": 3, "classes": flags.class_cond}
    return validated({"model": model, "diffusion": diffusion, "data": data}, "the flags")


def written(value: Any) -> str:
    """Return a value as it is written on their command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
