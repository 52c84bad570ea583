"""Weights on disk: model folders, and the files that checkpoints are made of. Nothing here unpickles.

A model folder is `config.json` and `model.safetensors`, and is all that sampling needs; the weights in it are the EMA.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffunet import build, compute, files
from diffunet.config import MAX_BYTES, Config, read_toml, validated
from diffunet.diffusion.denoiser import Denoiser
from diffunet.errors import CheckpointError, Error, ResourceError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT, VERSION = "diffunet", 1

RUN_CONFIG = "config.toml"
"""Of a run folder."""

AVERAGE, MANIFEST = "ema.safetensors", "manifest.json"
"""In a checkpoint of a run: the weights to sample from, and the hashes of its files."""


@dataclass(frozen=True)
class Model:
    """A model as loaded: its config, the denoiser with its weights, and the step that they are from."""

    config: Config
    denoiser: Denoiser
    step: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, written whole or not at all."""
    content = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with files.replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as this user's files are; safetensors' own only their owner may read
        try:
            save_file(content, temporary, dict(metadata))
        except SafetensorError as error:  # its way of saying that the disk is full
            raise OSError(str(error)) from None
        temporary.chmod(mode)


def read_tensors(path: Path, like: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    With `like` (which may be on torch's meta device) the file has to hold exactly these names and shapes, which is seen
    before anything is read, and comes in their types.

    Raises:
        CheckpointError: for a file that is missing, is not safetensors, or holds other tensors.
        ResourceError: for one that does not fit into memory.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if like is not None:
                refuse_others(_claimed(file), like, path)
            # Cloned: a view would keep the file mapped, and Windows would then not let training replace it.
            tensors = {name: file.get_tensor(name).clone() for name in names}
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except Exception as error:
        if not compute.is_out_of_memory(error):
            raise
        raise ResourceError(f"out of memory: {path} has {size(path.stat().st_size)}") from None
    if like is not None:
        tensors = {name: tensor.to(like[name].dtype) for name, tensor in tensors.items()}
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; its tensors are not read.

    Raises:
        CheckpointError: for a file that is missing or is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def claimed(path: Path) -> dict[str, Tensor]:
    """What the header of a safetensors file claims to hold, on torch's meta device: nothing is read or allocated.

    Raises:
        CheckpointError: for a file that is missing or is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _claimed(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _claimed(file: Any) -> dict[str, Tensor]:
    parts = {name: file.get_slice(name) for name in list(file.keys())}
    kinds = {name: part.get_dtype() in ("F64", "F32", "F16", "BF16") for name, part in parts.items()}
    return {
        name: torch.empty(part.get_shape(), dtype=torch.float32 if kinds[name] else torch.int64, device="meta")
        for name, part in parts.items()
    }


def refuse_others(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path) -> None:
    """Refuse tensors (any may be on the meta device) that have other names or shapes, or are not of floating point.

    Raises:
        CheckpointError: listing what is missing, extra, or of another shape.
    """
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{ascii(name)[1:-1][:80]} is not of this model" for name in tensors if name not in wanted]
    for name in wanted.keys() & tensors.keys():
        if wanted[name].shape != tensors[name].shape:
            problems.append(f"{name} is {list(tensors[name].shape)}, not {list(wanted[name].shape)}")
        elif wanted[name].is_floating_point() and not tensors[name].is_floating_point():
            problems.append(f"{name} is not of floating point")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"the weights in {where} do not fit: {'; '.join(sorted(problems)[:5])}{more}")


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Give `module` exactly these weights; what is on torch's meta device becomes real.

    Raises:
        CheckpointError: listing what is missing, extra, or of another shape.
    """
    wanted = module.state_dict()
    refuse_others(tensors, wanted, where)
    with torch.no_grad():
        for name, value in wanted.items():
            if not value.is_meta:
                value.copy_(tensors[name])
    if any(value.is_meta for value in wanted.values()):
        module.load_state_dict(dict(tensors), assign=True)


def write_model(folder: Path, config: Config, weights: Mapping[str, Tensor], step: int) -> None:
    """A model folder. Where it exists, only the weights are replaced (the config of a run does not change).

    Raises:
        ResourceError: where the disk does not take it; what was there before is whole.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, "config": config.model_dump(mode="json")}, indent=1)
    path, needed = folder / CONFIG, sum(tensor.nbytes for tensor in weights.values())
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            files.write_atomic(path, text)
        write_tensors(folder / WEIGHTS, weights, {"step": str(step), "config": config.hash()})
    except OSError as error:
        raise ResourceError(
            f"the model {folder} ({size(needed)}) could not be written: {error.strerror or error}; make room"
        ) from None


def export_model(folder: Path, config: Config, weights: Mapping[str, Tensor], step: int) -> None:
    """As `write_model`, to a folder that may hold a model of another config: it is replaced once all is on the disk.

    Raises:
        ResourceError: where the disk does not take it; what was there before is whole.
    """
    temporary = folder / f".model.{os.getpid()}.tmp"
    try:
        write_model(temporary, config, weights, step)
        for name in (CONFIG, WEIGHTS):
            files.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def model_step(folder: Path) -> int | None:
    """The step that a model folder's weights are from; None where there are none that can be read."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return int((file.metadata() or {}).get("step", -1)) if (folder / CONFIG).is_file() else None
    except (OSError, SafetensorError, ValueError):
        return None


def find_model(model: str | Path) -> Path:
    """The folder that MODEL means: a model folder, the one in a run folder, or a checkpoint of a run.

    Raises:
        CheckpointError: where there is none, saying what is there instead.
    """
    try:
        return _find(Path(model))
    except OSError as error:
        raise CheckpointError(f"{model} cannot be read: {error.strerror}") from None


def _find(path: Path) -> Path:
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if _is_checkpoint(path):
        if not (_run_of(path) / RUN_CONFIG).is_file():
            raise CheckpointError(f"the checkpoint {path} is in no run folder, whose {RUN_CONFIG} says what it is of")
        return path
    if (path / RUN_CONFIG).is_file():
        raise CheckpointError(f"the run {path} has no model yet: it has not reached its first checkpoint")
    if not path.exists():
        raise CheckpointError(
            f"there is no model {path}: give a run folder (diffunet train ... --out {path}), a model folder, a "
            "folder of diffusers, or a name of the hub (owner/name)"
        )
    if path.is_file():
        raise CheckpointError(f"{path} is a file, and a model is a folder; diffunet convert --flags reads a .pt")
    raise CheckpointError(f"{path} is not a model: it has no {CONFIG} and {WEIGHTS}, nor a folder 'model' with them")


def _is_checkpoint(folder: Path) -> bool:
    return (folder / AVERAGE).is_file() and not (folder / CONFIG).is_file()


def _run_of(checkpoint: Path) -> Path:
    """The run folder that RUN/checkpoints/step-00001000 is in."""
    return checkpoint.absolute().parent.parent


def run_config(run: Path) -> Config:
    """The config of a run folder, everything resolved.

    Raises:
        CheckpointError: where there is none, or it cannot be read.
    """
    if not (run / RUN_CONFIG).is_file():
        raise CheckpointError(f"{run} is not a run folder: it has no {RUN_CONFIG}")
    try:
        return read_toml(run / RUN_CONFIG)
    except Error as error:
        raise CheckpointError(str(error)) from None


def read_config(folder: Path) -> Config:
    """The config of a model folder or checkpoint.

    Raises:
        CheckpointError: for one that is damaged, or that a newer diffunet wrote.
    """
    if _is_checkpoint(folder):
        return run_config(_run_of(folder))
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} cannot be read: it is larger than {MAX_BYTES >> 20} MiB")
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a diffunet config")
        if content.get("version") != VERSION:
            raise CheckpointError(
                f"{path} is of version {content.get('version')}; this diffunet reads {VERSION}: update it"
            )
        return validated(content.get("config"), str(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except CheckpointError:
        raise
    except Error as error:
        raise CheckpointError(str(error)) from None


def read_model(model: str | Path) -> Model:
    """Load MODEL, on the CPU, for use and not for training.

    Raises:
        CheckpointError: for a model that is missing, damaged, or whose weights are of other shapes or not finite.
    """
    folder = find_model(model)
    config = read_config(folder)
    if None in (config.model.channels, config.model.multipliers, config.model.attention_levels):
        raise CheckpointError(f"the config of {folder} leaves open what the net is: it was not written by training")
    with torch.device("meta"):  # nothing is allocated before the file has shown that it fits
        net = build.net(config)
    path = folder / WEIGHTS
    if _is_checkpoint(folder):
        path = folder / AVERAGE
        _refuse_damaged(path)
    tensors, metadata = read_tensors(path, net.state_dict())
    step = metadata.get("step", "0")
    return with_weights(config, net, tensors, path, int(step) if step.isdecimal() and len(step) < 19 else 0)


def with_weights(config: Config, net: nn.Module, tensors: Mapping[str, Tensor], where: Path, step: int = 0) -> Model:
    """A model for use and not for training; `net` is of `config`, and may be on torch's meta device.

    Raises:
        CheckpointError: for weights of other names or shapes, or not finite; `where` says whose.
    """
    spoilt = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if spoilt:
        raise CheckpointError(f"the weights in {where} are damaged: {spoilt[0]} is not finite")
    load_weights(net, tensors, where)
    return Model(config, build.denoiser(config, net).eval().requires_grad_(False), step)


def _refuse_damaged(path: Path) -> None:
    """Compare a file of a checkpoint with its hash; safetensors accepts a flipped bit."""
    try:
        wanted = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))[path.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path.parent / MANIFEST}, which says what {path.name} holds, cannot be read") from None
    if files.sha256(path) != wanted:
        raise CheckpointError(f"{path} is damaged (its hash differs); take another checkpoint")
