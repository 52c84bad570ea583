"""Nets of openai/improved-diffusion (Nichol & Dhariwal 2021) and openai/guided-diffusion (Dhariwal & Nichol 2021).

Their `.pt` files hold weights and nothing else. What the net and its process are, only the flags of their scripts say,
which their READMEs print for each published model. Names of weights are those of their unet.py.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from diffunet import build, compute, storage
from diffunet.errors import CheckpointError, ResourceError
from diffunet.interop.guided_flags import GUIDED_ONLY, MULTIPLIERS, Dialect, Flags, parse, to_config, written
from diffunet.nn.layers import Attention
from diffunet.nn.unet import DownBlock, UNet, UpBlock

RES = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "embedding": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "shortcut": "skip_connection",
}  # fmt: skip
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}

CLASSES = 1000
"""Of their scripts; files may have others."""
MAX_CLASSES = 1_000_000


def read(path: Path, flags: str, dialect: Dialect) -> storage.Model:
    """A model from a `.pt` file and the flags that go with it, on the CPU, in float32, for use and not for training.

    The net says the same as theirs. Class labels are named "0" and so on. Theirs knows no null label; ours is the mean
    of the others, and `label_dropout` is 0, so that nobody takes it for one that guidance could use. Sampling is
    diffunet's default, with x0 clipped as their scripts clip it.

    Args:
        path: written by their scripts (model*.pt, ema_*.pt) or published; nothing in it is run.
        flags: "--flag value ..." or "--flag=value ...", as their READMEs print them. What is not given has the default
            of their scripts; flags of training and sampling do nothing.
        dialect: whose scripts the flags are of.

    Raises:
        UsageError: for flags that there are not, that cannot be meant, or that diffunet cannot say.
        CheckpointError: for a file that cannot be read, is of another kind, or does not fit the flags.
        ResourceError: for one that does not fit into memory.
    """
    said = parse(flags, dialect)
    config = to_config(said)
    weights = _load(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    _refuse_others(shapes, path)
    _refuse_other_flags(shapes, said, dialect, path)
    if said.class_cond:
        rows = shapes.get("label_emb.weight", ())
        classes = rows[0] if len(rows) == 2 and rows[0] <= MAX_CLASSES else CLASSES  # else a misfit, named below
        config = config.changed("data", class_names=tuple(str(label) for label in range(classes)))
    with torch.device("meta"):  # nothing is allocated before the file has shown that it fits
        net = build.net(config)
    assert isinstance(net, UNet), "to_config says so"
    _refuse_misfits(weights, their_shapes(net), path)
    renamed = names(net)
    try:
        tensors = {
            ours: _translated(ours, weights[theirs], net, said.use_new_attention_order)
            for ours, theirs in renamed.items()
        }
    except RuntimeError as error:
        if not compute.is_out_of_memory(error):
            raise
        raise ResourceError(f"out of memory: {path} has {storage.size(path.stat().st_size)}") from None
    return storage.with_weights(config, net, tensors, path)


def names(net: UNet) -> dict[str, str]:
    """Our name of each weight of a net -> theirs."""
    modules = {
        "embedding.mlp.0": "time_embed.0",
        "embedding.mlp.2": "time_embed.2",
        "embedding.label": "label_emb",
        "stem": "input_blocks.0.0",
        "out.0": "out.0",
        "out.2": "out.2",
    }

    def res(ours: str, theirs: str) -> None:
        modules.update({f"{ours}.{part}": f"{theirs}.{name}" for part, name in RES.items()})

    def block(ours: str, theirs: str) -> None:
        res(f"{ours}.res", f"{theirs}.0")
        modules.update({f"{ours}.attention.{part}": f"{theirs}.1.{name}" for part, name in ATTENTION.items()})

    block("middle.0", "middle_block")
    res("middle.1.res", "middle_block.2")
    place = 1  # in input_blocks; 0 is the stem
    for level, down in enumerate(net.down):
        assert isinstance(down, DownBlock)
        if level:
            res(f"down.{level}.down.res", f"input_blocks.{place}.0")
            modules[f"down.{level}.down.conv"] = f"input_blocks.{place}.0.op"
            place += 1
        for i in range(len(down.blocks)):
            block(f"down.{level}.blocks.{i}", f"input_blocks.{place}")
            place += 1
    place, last = 0, 1  # in output_blocks; enlarging is the last part of the block before
    for k, up in enumerate(net.up):
        assert isinstance(up, UpBlock)
        if k:
            res(f"up.{k}.up.res", f"output_blocks.{place - 1}.{last}")
            modules[f"up.{k}.up.conv"] = f"output_blocks.{place - 1}.{last}.conv"
        for i, each in enumerate(up.blocks):
            block(f"up.{k}.blocks.{i}", f"output_blocks.{place}")
            place, last = place + 1, 2 if isinstance(each.attention, Attention) else 1
    return {
        name: f"{modules[module]}.{kind}" for name in net.state_dict() for module, _, kind in [name.rpartition(".")]
    }


def their_shapes(net: UNet) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the weights that a net of theirs has which is `net`."""
    shapes, weights = {}, net.state_dict()
    for ours, theirs in names(net).items():
        shape = tuple(weights[ours].shape)
        if ".attention." in ours:
            shape = shape[:3]  # a 1-d convolution over positions
        elif ours == "embedding.label.weight":
            shape = (shape[0] - 1, shape[1])  # no null label
        shapes[theirs] = shape
    return shapes


def _translated(ours: str, value: Tensor, net: UNet, new_order: bool) -> Tensor:
    """Their weight as ours, a copy in float32."""
    value = value.to(torch.float32, copy=True)
    if ours == "embedding.label.weight":
        return torch.cat([value, value.mean(dim=0, keepdim=True)])
    if ".attention." not in ours:
        return value
    if ".qkv." in ours and not new_order:
        heads = net.get_submodule(ours.rpartition(".qkv.")[0]).heads
        value = rearrange(value, "(heads three c) ... -> (three heads c) ...", three=3, heads=heads)
    return value[..., None] if value.ndim == 3 else value


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped and not yet read where torch's format of today allows it."""
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                spoilt = archive.testzip()
            if spoilt:
                raise CheckpointError(f"{path} is damaged (a checksum differs): get it again")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # by what is wrong with the file, nearly any
        if compute.is_out_of_memory(error):
            raise ResourceError(f"out of memory: {path} has {storage.size(path.stat().st_size)}") from None
        raise CheckpointError(
            f"{path} cannot be read: it is cut short, not of torch, or holds more than tensors, which is never run"
        ) from None
    plain = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not plain:
        raise CheckpointError(f"{path} is not a plain state dict of tensors, as model*.pt and ema_*.pt are")
    return dict(content)


def _refuse_others(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Refuse what is not a net that denoises images."""
    stem = shapes.get("input_blocks.0.0.weight", ())
    if "time_embed.0.weight" not in shapes or len(stem) != 4:
        raise CheckpointError(f"{path} is not a model of guided-diffusion or improved-diffusion")
    if not any(name.startswith("output_blocks.") for name in shapes):
        raise CheckpointError(f"{path} is a classifier, which diffunet cannot use")
    if stem[1] == 6:
        raise CheckpointError(f"{path} is a super-resolution model, which diffunet cannot use")


def _refuse_other_flags(shapes: Mapping[str, tuple[int, ...]], said: Flags, dialect: Dialect, path: Path) -> None:
    """Refuse flags that are not those of the file, by their names."""
    problems: list[str] = []
    for name, value in _told(shapes).items():
        mine = getattr(said, name)
        if value == mine:
            continue
        if name == "channel_mult":
            sizes = [size for size, each in MULTIPLIERS[dialect].items() if each == value]
            if sizes and "channel_mult" not in said.model_fields_set:
                name, value, mine = "image_size", sizes[0], said.image_size
        elif name == "attention_levels":
            if any(each.startswith("--image_size") for each in problems):
                continue  # levels are resolutions of that size
            sizes = [said.image_size // 2**level for level in value] or [2 * said.image_size]  # too large for any level
            name, value, mine = "attention_resolutions", tuple(sizes), said.attention_resolutions
        default = "" if name in said.model_fields_set else " (the default)"
        if name in GUIDED_ONLY and dialect == "improved-diffusion":
            default = " (as in guided-diffusion, not improved-diffusion)"
        problems.append(f"--{name} {written(value)}, not {written(mine)}{default}")
    if problems:
        raise CheckpointError(f"the weights in {path} are of other flags: {'; '.join(problems)}")


def _told(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The flags that names and shapes tell, where they are those of a whole net."""

    def first(name: str) -> int:
        return shapes[f"{name}.weight"][0]

    try:
        channels = shapes["time_embed.0.weight"][1]
        count = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("output_blocks."))
        if count > len(shapes):
            return {}
        enlarging = {
            kind: [i for i in range(count) for j in (1, 2) if f"output_blocks.{i}.{j}.{kind}.weight" in shapes]
            for kind in ("conv", "in_layers.2")
        }
        ends = sorted(enlarging["conv"] + enlarging["in_layers.2"])  # each is the last block of a level
        blocks = ends[0] + 1 if ends else count
        starts = range(count - blocks, -1, -blocks)  # first blocks of the levels, full size first
        multipliers = [first(f"output_blocks.{i}.0.out_layers.3") / channels for i in starts]
        attended = [f"output_blocks.{i}.1.qkv.weight" in shapes for i in starts]
        told = {
            "num_channels": channels,
            "num_res_blocks": blocks - 1,
            "channel_mult": tuple(int(each) if each == int(each) else each for each in multipliers),
            "attention_levels": tuple(level for level, each in enumerate(attended) if each),
            "class_cond": "label_emb.weight" in shapes,
            "use_scale_shift_norm": first("output_blocks.0.0.emb_layers.1")
            == 2 * first("output_blocks.0.0.out_layers.3"),
            "learn_sigma": first("out.2") == 6,
        }
        return told | ({"resblock_updown": bool(enlarging["in_layers.2"])} if ends else {})
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
