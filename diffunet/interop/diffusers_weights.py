"""The weights of diffusers' UNet2DModel: their names there and here, and the files that hold them.

The numbers are the same, in other places. A resampling layer of theirs is the last of a level, one of ours the first of
the next level. Their queries, keys and values have a matrix each, and ours one 1x1 convolution together.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffunet import storage
from diffunet.config import MAX_BYTES
from diffunet.errors import CheckpointError
from diffunet.interop.pickles import read_pickled, refuse_hollow

LABEL = "class_embedding.weight"
FILE = "diffusion_pytorch_model.safetensors"
_ENDINGS = (
    "safetensors", "safetensors.index.json", "bin", "fp16.safetensors", "safetensors.index.fp16.json", "fp16.bin",
)  # fmt: skip
FILES = tuple(f"diffusion_pytorch_model.{ending}" for ending in _ENDINGS)
"""Names of files with weights, of which the first that exists is read: half precision only where there is no other. An
index names the files beside it that hold the weights in parts."""

_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^embedding\.mlp\.0", "time_embedding.linear_1"),
    (r"^embedding\.mlp\.2", "time_embedding.linear_2"),
    (r"^embedding\.label", "class_embedding"),
    (r"^stem", "conv_in"),
    (r"^out\.0", "conv_norm_out"),
    (r"^out\.2", "conv_out"),
    (r"^middle\.(\d+)\.res", r"mid_block.resnets.\1"),
    (r"^middle\.(\d+)\.attention", r"mid_block.attentions.\1"),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.res", r"\1_blocks.\2.resnets.\3"),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.attention", r"\1_blocks.\2.attentions.\3"),
    (r"^(down|up)\.(\d+)\.\1(\.res)?", lambda match: f"{match[1]}_blocks.{int(match[2]) - 1}.{match[1]}samplers.0"),
    (r"(resnets|samplers)\.(\d+)\.embedding", r"\1.\2.time_emb_proj"),
    (r"(resnets)\.(\d+)\.shortcut", r"\1.\2.conv_shortcut"),
    (r"(attentions)\.(\d+)\.norm", r"\1.\2.group_norm"),
    (r"(attentions)\.(\d+)\.out", r"\1.\2.to_out.0"),
)
"""Patterns in our names and what theirs have instead; they are applied one after the other."""

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in attention before diffusers 0.13, which google/ddpm-* have kept, and today's."""


def _name(ours: str) -> str:
    for pattern, theirs in _NAMES:
        ours = re.sub(pattern, theirs, ours)
    return ours


def to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state_dict of our UNet, on any device, as that of a UNet2DModel whose `flip_sin_to_cos` is True."""
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        theirs = _name(name)
        if ".attentions." in theirs and tensor.ndim == 4:
            tensor = tensor.flatten(1)  # [C' C 1 1] -> [C' C], where C is the number of channels
        letters, parts = ("qkv", tensor.chunk(3)) if ".qkv." in theirs else ("-", (tensor,))
        result |= {theirs.replace(".qkv.", f".to_{letter}."): part for letter, part in zip(letters, parts, strict=True)}
    return result


def from_diffusers(weights: Mapping[str, Tensor], like: Mapping[str, Tensor], cos_first: bool) -> dict[str, Tensor]:
    """Return a UNet2DModel's `weights` under the names and in the shapes of `like`, the state_dict of our UNet.

    Without `cos_first` (their flip_sin_to_cos) their time embedding is sines, then cosines, and ours the other way
    round, so the columns of the first matrix change places. Where theirs has K labels and `like` has K + 1, their mean
    is added as the last.
    """
    result = {}
    for name, wanted in like.items():
        theirs = _name(name)
        if ".qkv." in theirs:
            tensor = torch.cat([weights[theirs.replace(".qkv.", f".to_{letter}.")] for letter in "qkv"])
        else:
            tensor = weights[theirs]
        if theirs == LABEL and len(tensor) == len(wanted) - 1:
            tensor = torch.cat([tensor, tensor.mean(dim=0, keepdim=True)])
        if theirs == "time_embedding.linear_1.weight" and not cos_first:
            half = tensor.shape[1] // 2  # an odd width ends with a column that is multiplied by 0
            tensor = torch.cat([tensor[:, half : 2 * half], tensor[:, :half], tensor[:, 2 * half :]], dim=1)
        result[name] = tensor.reshape(wanted.shape)
    return result


def read(folder: Path, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Path]:
    """Return the weights of the net in a folder, in float32 on the CPU, and the file that they are from.

    Attention has its names of today, whatever those in the file. Nothing in a `.bin` is run. The file must have the
    names and shapes of the tensors `wanted`, which may be on the meta device; that is checked before it is read.

    Raises:
        CheckpointError: there are no weights, they are damaged, or are others; the message names what differs.
        ResourceError: they do not fit into memory.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has no weights: neither {FILES[0]} nor {FILES[2]}")
    if path.suffix == ".bin":
        pickled = read_pickled(path)
        refuse_hollow(pickled, path)
        tensors = _current([pickled], path)
        storage.refuse_others(tensors, wanted, path)
        return {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}, path
    files = parts(path)
    storage.refuse_others(_current([storage.read_header(part)[0] for part in files], path), wanted, path)
    tensors = _current([storage.read_tensors(part)[0] for part in files], path)
    return {name: tensor.float() for name, tensor in tensors.items()}, path


def parts(path: Path) -> list[Path]:
    """Return the files with weights that `path`, one of `FILES`, stands for: itself, or those that it lists.

    Raises:
        CheckpointError: it lists none, or others than safetensors files beside it.
    """
    if path.suffix != ".json":
        return [path]
    try:
        names = sorted(set(read_json(path)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} does not say which file has which weights") from None
    if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise CheckpointError(f"{path} names files that are not safetensors beside it")
    return [path.with_name(name) for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; CheckpointError if it cannot be read or holds anything else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return content


def _current(parts: list[dict[str, Tensor]], path: Path) -> dict[str, Tensor]:
    """Return the weights in all `parts` with attention as diffusers now has it: in names, and as matrices."""
    weights = {name: tensor for part in parts for name, tensor in part.items()}
    if len(weights) < sum(map(len, parts)):
        raise CheckpointError(f"the files that {path} names hold the same weights twice")
    result = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"(.*attentions\.\d+)\.(?:(query|key|value|proj_attn)|to_[qkv]|to_out\.0)\.(\w+)", name)
        if match:
            name = f"{match[1]}.{_OLD[match[2]]}.{match[3]}" if match[2] else name
            tensor = tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor
        result[name] = tensor
    if len(result) < len(weights):
        raise CheckpointError(f"{path} holds weights of attention under their old and new names")
    return result
