"""The weights of diffusers' UNet2DModel: what they are called there and here, and the files that they lie in.

The same numbers in other places: their resampling ends a level and ours begins the next one, their queries, keys and
values are three matrices and ours one 1x1 convolution.

Legend: C channels, E width of the embedding, K classes.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffunet import compute, storage
from diffunet.config import MAX_BYTES
from diffunet.errors import CheckpointError, ResourceError

FILE = "diffusion_pytorch_model.safetensors"
INDEX = f"{FILE}.index.json"
FILES = (
    FILE,
    INDEX,
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.bin",
)
"""Best first: of half precision only where there is nothing else."""

LABEL = "class_embedding.weight"

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
    (r"^(down|up)\.(\d+)\.\1(\.res)?", lambda found: f"{found[1]}_blocks.{int(found[2]) - 1}.{found[1]}samplers.0"),
    (r"(resnets|samplers)\.(\d+)\.embedding", r"\1.\2.time_emb_proj"),
    (r"(resnets)\.(\d+)\.shortcut", r"\1.\2.conv_shortcut"),
    (r"(attentions)\.(\d+)\.norm", r"\1.\2.group_norm"),
    (r"(attentions)\.(\d+)\.out", r"\1.\2.to_out.0"),
)
"""From our names to theirs, one after the other."""

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names in attention before diffusers 0.13, which google/ddpm-* have kept."""


def _name(ours: str) -> str:
    for pattern, theirs in _NAMES:
        ours = re.sub(pattern, theirs, ours)
    return ours


def to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's state_dict as a UNet2DModel's whose `flip_sin_to_cos` is True; tensors may be on the meta device."""
    result = {}
    for name, tensor in weights.items():
        theirs = _name(name)
        if ".attentions." in theirs and ".group_norm." not in theirs:
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor  # [C' C 1 1] -> [C' C]
        if ".qkv." in theirs:
            for part, each in zip("qkv", tensor.chunk(3), strict=True):
                result[theirs.replace(".qkv.", f".to_{part}.")] = each
        else:
            result[theirs] = tensor
    return result


def from_diffusers(
    weights: Mapping[str, Tensor], like: Mapping[str, Tensor], flip_sin_to_cos: bool = True
) -> dict[str, Tensor]:
    """The inverse: `weights` under the names and in the shapes of `like`, a UNet's state_dict.

    Without `flip_sin_to_cos` their net is told sines, then cosines, and ours the other way round, so that the columns
    of the first matrix change places. An embedding of K labels, where `like` has K + 1, gets their mean as the last.
    """
    result = {}
    for name, wanted in like.items():
        theirs = _name(name)
        if ".qkv." in theirs:
            tensor = torch.cat([weights[theirs.replace(".qkv.", f".to_{part}.")] for part in "qkv"])
        else:
            tensor = weights[theirs]
        if theirs == LABEL and len(tensor) == len(wanted) - 1:
            tensor = torch.cat([tensor, tensor.mean(dim=0, keepdim=True)])
        if theirs == "time_embedding.linear_1.weight" and not flip_sin_to_cos:
            half = tensor.shape[1] // 2  # an odd width ends with a column that is multiplied by 0
            tensor = torch.cat([tensor[:, half : 2 * half], tensor[:, :half], tensor[:, 2 * half :]], dim=1)
        result[name] = tensor.reshape(wanted.shape)
    return result


def read(folder: Path, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Path]:
    """The weights in a folder, float32, on the CPU, and the file that they are from.

    `wanted` has their names and shapes (it may be on the meta device), with which the file is compared before its
    tensors are read. The names of attention are the new ones, whatever those of the file. Nothing in a `.bin` is run.

    Raises:
        CheckpointError: for no weights, or damaged or others, naming what differs.
        ResourceError: for those that do not fit into memory.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has no weights: neither {FILES[0]} nor {FILES[2]}")
    if path.suffix == ".bin":
        tensors = _current(_unpickled(path), path)
        storage.refuse_others(tensors, wanted, path)
        return {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}, path
    parts = _parts(path)
    storage.refuse_others(_current(_joined([storage.read_header(part)[0] for part in parts], path), path), wanted, path)
    tensors = _current(_joined([storage.read_tensors(part)[0] for part in parts], path), path)
    return {name: tensor.float() for name, tensor in tensors.items()}, path


def _parts(path: Path) -> list[Path]:
    """The safetensors files that `path`, one or the index of several, stands for."""
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = sorted(set(read_json(path)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} does not say which file has which weights") from None
    if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise CheckpointError(f"{path} names files that are not safetensors beside it")
    return [path.with_name(name) for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: for a file that cannot be read or holds anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} cannot be read: it is larger than {MAX_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} cannot be read: it is not a JSON object")
    return content


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by `torch.save`, mapped, not read; what is not plain tensors of its size is refused."""
    try:
        with zipfile.ZipFile(path) as file:  # compressed, a small file could be a huge one
            if any(each.compress_type != zipfile.ZIP_STORED for each in file.infolist()):
                raise CheckpointError(f"{path} cannot be read: torch does not compress its files")
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # whatever an unpickler meets in a damaged file
        if compute.is_out_of_memory(error):
            raise ResourceError(f"out of memory: {path} has {storage.size(path.stat().st_size)}") from None
        raise CheckpointError(
            f"{path} cannot be read: it is damaged, of a torch before 1.6, or holds more than weights, which is never "
            "run"
        ) from None
    plain = isinstance(tensors, dict) and all(
        isinstance(name, str)
        and isinstance(each, Tensor)
        and each.layout == torch.strided
        and each.device.type == "cpu"
        for name, each in tensors.items()
    )
    # One number can be given any shape: a file has no more of them than it has bytes for.
    if not plain or sum(each.nbytes for each in tensors.values()) > path.stat().st_size:
        raise CheckpointError(f"{path} cannot be read: it is not weights by their names")
    assert isinstance(tensors, dict)
    return tensors


def _joined(parts: list[dict[str, Tensor]], path: Path) -> dict[str, Tensor]:
    result = {name: tensor for part in parts for name, tensor in part.items()}
    if len(result) < sum(len(part) for part in parts):
        raise CheckpointError(f"the files that {path} names hold the same weights twice")
    return result


def _current(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`weights` with attention as diffusers now has it: the new names, and matrices for 1x1 convolutions."""
    result = {}
    for name, tensor in weights.items():
        found = re.fullmatch(r"(.*attentions\.\d+)\.(?:(query|key|value|proj_attn)|to_[qkv]|to_out\.0)\.(\w+)", name)
        if found:
            name = f"{found[1]}.{_OLD[found[2]]}.{found[3]}" if found[2] else name
            tensor = tensor.flatten(1) if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor
        result[name] = tensor
    if len(result) < len(weights):
        raise CheckpointError(f"{path} holds weights of attention under their old and new names")
    return result
