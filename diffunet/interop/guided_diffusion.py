"""Nets of openai/improved-diffusion (Nichol & Dhariwal 2021) and openai/guided-diffusion (Dhariwal & Nichol 2021).

Their `.pt` files hold weights and nothing else. What the net and its process are, only the flags of their scripts tell,
which their READMEs print for each published model. Names, defaults and meanings of flags are those of their
script_util.py, and names of weights those of their unet.py.
"""

import difflib
import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import Tensor

from diffunet import build, compute, storage
from diffunet.config import Config, validated
from diffunet.config.fields import Multiplier, Positive
from diffunet.errors import CheckpointError, UsageError
from diffunet.interop.pickles import out_of_memory, read_pickled, refuse_hollow
from diffunet.nn.layers import Attention
from diffunet.nn.unet import DownBlock, UNet, UpBlock

Dialect = Literal["guided-diffusion", "improved-diffusion"]
Listed = BeforeValidator(lambda text: text.split(",") if text else ())
"""Marks a tuple that is written as numbers with commas between them."""


class Flags(BaseModel):
    """The flags that describe a net and its process, with the defaults of guided-diffusion; `parse` knows the other."""

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
    rescales = flags.rescale_timesteps or (is_improved and "rescale_timesteps" not in values)  # their default is True
    changed: dict[str, Any] = {"channel_mult": multipliers, "rescale_timesteps": rescales}
    return Flags.model_construct(flags.model_fields_set, **dict(flags) | changed)


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
    data = {"image_size": flags.image_size, "channels": 3, "classes": flags.class_cond, "reading": 2}
    return validated({"model": model, "diffusion": diffusion, "data": data}, "the flags")


def written(value: Any) -> str:
    """Return a value as it is written on their command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


PARTS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "embedding": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "shortcut": "skip_connection", "norm": "norm", "qkv": "qkv", "out": "proj_out",
}  # fmt: skip
"""Our names and theirs in a residual block and in attention."""

CLASSES, MAX_CLASSES = 1000, 1_000_000
"""How many classes their scripts have, and how many a file may have."""


def read(path: Path, flags: str, dialect: Dialect) -> storage.Model:
    """Read a model from a `.pt` file and its flags, on the CPU, in float32, for use and not for training.

    The net computes the same as theirs. Class labels are named "0" and so on. Theirs has no null label, so ours is the
    mean of the others, and `label_dropout` is 0, so that guidance, which needs a learned one, is refused. Sampling is
    diffunet's default, with x0 clipped as their scripts clip it.

    Args:
        path: a file of their scripts (model*.pt, ema_*.pt) or a published one; nothing in it is run.
        flags: "--flag value ..." or "--flag=value ...", as the READMEs of the `dialect` print them. A missing flag has
            the default of their scripts; flags of training and sampling have no effect.

    Raises:
        UsageError: a flag does not exist, has no possible value, or asks for what diffunet does not have.
        CheckpointError: the file cannot be read, is of another kind, or does not fit the flags.
        ResourceError: it does not fit into memory.
    """
    parsed = parse(flags, dialect)
    config, weights = to_config(parsed), read_pickled(path, legacy=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    _refuse_others(shapes, path)
    _refuse_other_flags(shapes, parsed, dialect, path)
    if parsed.class_cond:
        rows = shapes.get("label_emb.weight", ())
        classes = rows[0] if len(rows) == 2 and rows[0] <= MAX_CLASSES else CLASSES  # else it is a misfit, named below
        config = config.changed("data", class_names=tuple(str(label) for label in range(classes)))
    with torch.device("meta"):  # memory is allocated only once the file has shown that it fits
        net = build.net(config)
    assert isinstance(net, UNet), "to_config says so"
    _refuse_misfits(weights, their_shapes(net), path)
    refuse_hollow(weights, path)
    new_order, pairs = parsed.use_new_attention_order, names(net).items()
    try:
        tensors = {ours: _translated(ours, weights[theirs], net, new_order) for ours, theirs in pairs}
    except RuntimeError as error:
        if not compute.is_out_of_memory(error):
            raise
        raise out_of_memory(path) from None
    return storage.with_weights(config, net, tensors, path)


def names(net: UNet) -> dict[str, str]:
    """Return the name that each weight of a net has in their code, by our name."""
    modules = {
        "embedding.mlp": "time_embed", "embedding.label": "label_emb", "out": "out", "stem": "input_blocks.0.0",
        "middle.0.res": "middle_block.0", "middle.0.attention": "middle_block.1", "middle.1.res": "middle_block.2",
    }  # fmt: skip

    places = itertools.count(1)  # in input_blocks, where 0 is the stem
    for level, down in enumerate(net.down):
        assert isinstance(down, DownBlock)
        if level:
            theirs = f"input_blocks.{next(places)}.0"
            modules |= {f"down.{level}.down.res": theirs, f"down.{level}.down.conv": f"{theirs}.op"}
        for i in range(len(down.blocks)):
            ours, theirs = f"down.{level}.blocks.{i}", f"input_blocks.{next(places)}"
            modules |= {f"{ours}.res": f"{theirs}.0", f"{ours}.attention": f"{theirs}.1"}
    place, last = -1, 1  # the index in output_blocks; upsampling is the last part of the block before
    for level, up in enumerate(net.up):
        assert isinstance(up, UpBlock)
        if level:
            theirs = f"output_blocks.{place}.{last}"
            modules |= {f"up.{level}.up.res": theirs, f"up.{level}.up.conv": f"{theirs}.conv"}
        for i, part in enumerate(up.blocks):
            place, last = place + 1, 2 if isinstance(part.attention, Attention) else 1
            ours, theirs = f"up.{level}.blocks.{i}", f"output_blocks.{place}"
            modules |= {f"{ours}.res": f"{theirs}.0", f"{ours}.attention": f"{theirs}.1"}
    result = {}
    for name in net.state_dict():
        module = next(module for module in modules if name.startswith(f"{module}."))
        *parts, kind = name.removeprefix(f"{module}.").split(".")
        result[name] = ".".join([modules[module], *(PARTS.get(part, part) for part in parts), kind])
    return result


def their_shapes(net: UNet) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the weights which the same net has in their code."""
    weights = net.state_dict()
    shapes = {theirs: tuple(weights[ours].shape) for ours, theirs in names(net).items()}
    attention = [theirs for ours, theirs in names(net).items() if ".attention." in ours]
    shapes |= {theirs: shapes[theirs][:3] for theirs in attention}  # theirs is a 1-d convolution over positions
    if label := shapes.get("label_emb.weight"):
        shapes["label_emb.weight"] = (label[0] - 1, label[1])  # theirs has no null label
    return shapes


def _translated(ours: str, value: Tensor, net: UNet, new_order: bool) -> Tensor:
    """Return their weight as the one of ours by that name, a copy in float32."""
    value = value.to(torch.float32, copy=True)
    if ours == "embedding.label.weight":
        return torch.cat([value, value.mean(dim=0, keepdim=True)])
    if ".attention." not in ours:
        return value
    if ".qkv." in ours and not new_order:
        heads = net.get_submodule(ours.rpartition(".qkv.")[0]).heads
        value = rearrange(value, "(heads three c) ... -> (three heads c) ...", three=3, heads=heads)
    return value[..., None] if value.ndim == 3 else value


def _refuse_others(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Refuse weights of anything but a net that denoises images."""
    stem = shapes.get("input_blocks.0.0.weight", ())
    if "time_embed.0.weight" not in shapes or len(stem) != 4:
        raise CheckpointError(f"{path} is not a model of guided-diffusion or improved-diffusion")
    if not any(name.startswith("output_blocks.") for name in shapes):
        raise CheckpointError(f"{path} is a classifier, which diffunet cannot use")
    if stem[1] == 6:
        raise CheckpointError(f"{path} is a super-resolution model, which diffunet cannot use")


def _refuse_other_flags(shapes: Mapping[str, tuple[int, ...]], flags: Flags, dialect: Dialect, path: Path) -> None:
    """Refuse flags that the weights contradict, with those that they imply."""
    problems: list[str] = []
    for name, value in _implied(shapes).items():
        mine = getattr(flags, name)
        if value == mine:
            continue
        if name == "channel_mult":
            sizes = [size for size, multipliers in MULTIPLIERS[dialect].items() if multipliers == value]
            if sizes and "channel_mult" not in flags.model_fields_set:
                name, value, mine = "image_size", sizes[0], flags.image_size
        elif name == "attention_levels":
            if any(problem.startswith("--image_size") for problem in problems):
                continue  # levels are resolutions of that size
            size = flags.image_size  # no level has attention with a resolution above it
            name, mine = "attention_resolutions", flags.attention_resolutions
            value = tuple(size // 2**level for level in value) or (2 * size,)
        origin = "" if name in flags.model_fields_set else " (the default)"
        if name in GUIDED_ONLY and dialect == "improved-diffusion":
            origin = " (as in guided-diffusion, not improved-diffusion)"
        problems.append(f"--{name} {written(value)}, not {written(mine)}{origin}")
    if problems:
        raise CheckpointError(f"the weights in {path} are of other flags: {'; '.join(problems)}")


def _implied(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the flags that names and shapes imply; none where they are not those of a whole net."""

    rows = {name.removesuffix(".weight"): shape[0] for name, shape in shapes.items() if shape}
    try:
        channels = shapes["time_embed.0.weight"][1]
        count = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("output_blocks."))
        if count > len(shapes):
            return {}
        # The last block of each level but the full size ends with upsampling, in one of two ways.
        plain, residual = (
            [i for i in range(count) for j in (1, 2) if f"output_blocks.{i}.{j}.{kind}.weight" in shapes]
            for kind in ("conv", "in_layers.2")
        )
        ends = sorted(plain + residual)
        blocks = ends[0] + 1 if ends else count
        starts = range(count - blocks, -1, -blocks)  # the first block of each level, full size first
        ratios = [rows[f"output_blocks.{i}.0.out_layers.3"] / channels for i in starts]
        attended = [level for level, i in enumerate(starts) if f"output_blocks.{i}.1.qkv.weight" in shapes]
        shifts = rows["output_blocks.0.0.emb_layers.1"] == 2 * rows["output_blocks.0.0.out_layers.3"]
        return {
            "num_channels": channels, "num_res_blocks": blocks - 1,
            "channel_mult": tuple(int(ratio) if ratio.is_integer() else ratio for ratio in ratios),
            "attention_levels": tuple(attended), "class_cond": "label_emb.weight" in shapes,
            "use_scale_shift_norm": shifts, "learn_sigma": rows["out.2"] == 6,
            **({"resblock_updown": bool(residual)} if ends else {}),
        }  # fmt: skip
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        return {}


def _refuse_misfits(weights: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], path: Path) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in weights]
    problems += [f"{ascii(name)[1:-1][:80]} is not of this model" for name in weights if name not in wanted]
    for name in wanted.keys() & weights.keys():
        value = weights[name]
        if tuple(value.shape) != wanted[name]:
            problems.append(f"{name} is {list(value.shape)}, not {list(wanted[name])}")
        elif not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            problems.append(f"{name} is not of floating point, or has no values")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"the weights in {path} do not fit the flags: {'; '.join(sorted(problems)[:5])}{more}")
