"""Weights on disk: model folders, and the files that checkpoints are made of. Nothing here unpickles.

A model folder is `config.json` and `model.safetensors`, and is all that sampling needs; its weights are the average.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffunet import build, compute, files, pretrained
from diffunet.config import MAX_BYTES, Config, read_toml, validated
from diffunet.diffusion.denoiser import Denoiser
from diffunet.errors import CheckpointError, Error, ResourceError, UsageError
from diffunet.nn import layers

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The files of a model folder."""

WEAKER = "weaker.safetensors"
"""A file that a model folder may have: the average after an eighth of the run, by which sampling can be guided."""

FORMAT, VERSION = "diffunet", 1
"""What config.json says of itself."""

RUN_CONFIG = "config.toml"
"""The config of a run folder."""

AVERAGE, MANIFEST = "ema.safetensors", "manifest.json"
"""Files of a checkpoint of a run: the weights to sample from, and the hashes of its files."""


@dataclass(frozen=True)
class Model:
    """A model that is loaded: its config, the denoiser with its weights, and the step that they are from.

    `weaker` is the denoiser with the average after an eighth of the run, or None where that was not kept.
    """

    config: Config
    denoiser: Denoiser
    step: int
    weaker: Denoiser | None = None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: the disk does not take it.
    """
    content = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with files.replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's own; a file that safetensors makes only its owner may read
        try:
            save_file(content, temporary, dict(metadata))
        except SafetensorError as error:  # safetensors' way to say that the disk is full
            raise OSError(str(error)) from None
        temporary.chmod(mode)


def read_tensors(path: Path, like: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, on the CPU, and its metadata.

    Args:
        path: the file.
        like: tensors, which may be on the meta device, whose names and shapes the file has to have. This is checked
            before any tensor is read, and the tensors are returned in their types.

    Raises:
        CheckpointError: the file is missing, is not safetensors, or holds other tensors.
        ResourceError: it does not fit into memory.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if like is not None:
                refuse_others(_shapes(file), like, path)
            # A view would keep the file mapped, and Windows would then not let training replace it.
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


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what the header of a safetensors file says of its tensors, on the meta device, and its metadata.

    No tensor is read, and no memory is allocated for any.

    Raises:
        CheckpointError: the file is missing or is not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _shapes(file), dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _shapes(file: Any) -> dict[str, Tensor]:
    slices = {name: file.get_slice(name) for name in list(file.keys())}
    floating = {name: part.get_dtype() in ("F64", "F32", "F16", "BF16") for name, part in slices.items()}
    return {
        name: torch.empty(part.get_shape(), dtype=torch.float32 if floating[name] else torch.int64, device="meta")
        for name, part in slices.items()
    }


def refuse_others(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path) -> None:
    """Refuse tensors whose names, shapes or kinds of numbers are not those that are wanted.

    Both may be on the meta device; `where` is named in the message.

    Raises:
        CheckpointError: it lists what is missing, not of the model, or of another shape.
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
    """Copy weights into a module; if it is on the meta device, it takes the tensors themselves.

    Raises:
        CheckpointError: the weights are not exactly those of the module, see `refuse_others`.
    """
    wanted = module.state_dict()
    refuse_others(tensors, wanted, where)
    with torch.no_grad():
        for name, value in wanted.items():
            if not value.is_meta:
                value.copy_(tensors[name])
    if any(value.is_meta for value in wanted.values()):
        module.load_state_dict(dict(tensors), assign=True)


def write_model(
    folder: Path, config: Config, weights: Mapping[str, Tensor], step: int, *, run_step: int | None = None,
    finished: bool = False, loss: float | None = None,
) -> None:  # fmt: skip
    """Write a model folder. The config is only written where it has changed, as that of a run does not.

    Args:
        folder, config, weights, step: the folder, the model's config, its weights, and the step that they are from.
        run_step: how far the run was that wrote it, if it had better weights than the last.
        finished: note that it is of a run whose learning rate has fallen to its end, see `is_finished`.
        loss: note the validation loss of the weights, see `validation_loss`.

    Raises:
        ResourceError: the disk does not take it; earlier files are whole.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, "config": config.model_dump(mode="json")}, indent=1)
    path, needed = folder / CONFIG, sum(tensor.nbytes for tensor in weights.values())
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            files.write_atomic(path, text)
        about = {"step": str(step), "config": config.hash(), **({"finished": "yes"} if finished else {})}
        about |= {} if run_step is None else {"run_step": str(run_step)}
        about |= {} if loss is None else {"validation_loss": repr(loss)}
        write_tensors(folder / WEIGHTS, weights, about)
    except OSError as error:
        raise ResourceError(
            f"the model {folder} ({size(needed)}) could not be written: {error.strerror or error}; make room"
        ) from None


def export_model(folder: Path, config: Config, weights: Mapping[str, Tensor], step: int) -> None:
    """Write a model folder in place of one that may have another config: both files are replaced when both are written.

    Raises:
        ResourceError: the disk does not take it; earlier files are whole.
    """
    with files.replacing_all(folder, (CONFIG, WEIGHTS)) as temporary:
        write_model(temporary, config, weights, step)


def size(count: int) -> str:
    """Return a number of bytes in words."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def model_step(folder: Path) -> int | None:
    """Return how far the run was that wrote a model folder, in steps, or None where it has no weights to be read."""
    try:
        metadata = read_header(folder / WEIGHTS)[1]
        return int(metadata.get("run_step", metadata.get("step", -1))) if (folder / CONFIG).is_file() else None
    except (CheckpointError, ValueError):
        return None


def weights_step(folder: Path) -> int | None:
    """Return the step that the weights of a model folder are from, or None where there are none that can be read."""
    try:
        return int(read_header(folder / WEIGHTS)[1].get("step", -1))
    except (CheckpointError, ValueError):
        return None


def validation_loss(folder: Path) -> float | None:
    """Return the validation loss of the weights of a model folder, or None where it is not noted."""
    try:
        return float(read_header(folder / WEIGHTS)[1]["validation_loss"])
    except (CheckpointError, ValueError, KeyError):
        return None


def is_finished(folder: Path) -> bool:
    """Return whether a model folder is of a run whose learning rate had fallen to its end."""
    try:
        return (folder / CONFIG).is_file() and "finished" in read_header(folder / WEIGHTS)[1]
    except CheckpointError:
        return False


def find_model(model: str | Path) -> Path:
    """Return the folder that MODEL means: a model folder, the one in a run folder, or a checkpoint of a run.

    Raises:
        CheckpointError: there is no model; the message says what is there instead.
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
            f"folder of diffusers, or a name of the hub (owner/name); {pretrained.hint(str(path))}"
        )
    if path.is_file():
        raise CheckpointError(f"{path} is a file, and a model is a folder; diffunet convert --flags reads a .pt")
    raise CheckpointError(f"{path} is not a model: it has no {CONFIG} and {WEIGHTS}, nor a folder 'model' with them")


def _is_checkpoint(folder: Path) -> bool:
    return (folder / AVERAGE).is_file() and not (folder / CONFIG).is_file()


def _run_of(checkpoint: Path) -> Path:
    """Return the run folder of RUN/checkpoints/step-00001000."""
    return checkpoint.absolute().parent.parent


def run_config(run: Path) -> Config:
    """Return the resolved config of a run folder.

    Raises:
        CheckpointError: it has none, or one that cannot be read.
    """
    if not (run / RUN_CONFIG).is_file():
        raise CheckpointError(f"{run} is not a run folder: it has no {RUN_CONFIG}")
    try:
        return read_toml(run / RUN_CONFIG)
    except Error as error:
        raise CheckpointError(str(error)) from None


def read_config(folder: Path) -> Config:
    """Return the config of a model folder or of a checkpoint.

    Raises:
        CheckpointError: it is damaged, or a newer diffunet wrote it.
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


def read_model(model: str | Path, net: build.NetFactory = build.net) -> Model:
    """Load MODEL, on the CPU, for sampling and not for training.

    Args:
        model: see `find_model`.
        net: makes the net, see `build.NetFactory`.

    Raises:
        CheckpointError: the model is missing or damaged, or its weights have other shapes or are not finite.
        UsageError: its net is a user's own and `net` was not given, or the reverse; the net's output has another shape.
    """
    folder = find_model(model)
    config = read_config(folder)
    if net is not build.net:
        refuse_other_net(config, folder)
        build.refuse_misfit(config, net)
    if None in (config.model.channels, config.model.multipliers, config.model.attention_levels):
        raise CheckpointError(f"the config of {folder} leaves open what the net is: it was not written by training")
    with torch.device("meta"):  # nothing is allocated before the file has shown that it fits
        module = net(config)
    path = folder / WEIGHTS
    if _is_checkpoint(folder):
        path = folder / AVERAGE
        _refuse_damaged(path)
    tensors, metadata = read_tensors(path, module.state_dict())
    step = metadata.get("step", "0")
    read = with_weights(config, module, tensors, path, int(step) if step.isdecimal() and len(step) < 19 else 0)
    return replace(read, weaker=_weaker(folder, config, net)) if (folder / WEAKER).is_file() else read


def _weaker(folder: Path, config: Config, net: build.NetFactory) -> Denoiser | None:
    """Return the weaker model of a model folder, or None, which is said, where it is damaged: models work without."""
    with torch.device("meta"):
        module = net(config)
    try:
        tensors, _ = read_tensors(folder / WEAKER, module.state_dict())
        return with_weights(config, module, tensors, folder / WEAKER).denoiser
    except CheckpointError as error:
        log.warning("%s; samples of this model cannot be guided by it, and are as they are without --guidance", error)
        return None


def replace_weaker(folder: Path, source: Path | None) -> None:
    """Let a model folder have a copy of the file `source` as its weaker model, or none.

    Raises:
        ResourceError: the disk does not take it.
    """
    target = folder / WEAKER
    try:
        if source is None:
            target.unlink(missing_ok=True)
        elif not (target.is_file() and files.sha256(target) == files.sha256(source)):
            files.write_atomic(target, source.read_bytes())
    except OSError as error:
        raise ResourceError(f"{target} could not be written: {error.strerror or error}; make room") from None


def refuse_other_net(config: Config, where: Path) -> None:
    """Raise UsageError if a function that makes a net was given for a model of one of diffunet's nets: it might fit."""
    if config.model.custom is None:
        raise UsageError(f"{where} has a net of diffunet's own, and net= was given: leave it out")


def with_weights(config: Config, net: nn.Module, tensors: Mapping[str, Tensor], where: Path, step: int = 0) -> Model:
    """Return a model for sampling and not for training, whose net, which may be on the meta device, gets these weights.

    Raises:
        CheckpointError: the weights have other names or shapes, or are not finite; `where` is named in the message.
    """
    spoilt = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if spoilt:
        raise CheckpointError(f"the weights in {where} are damaged: {spoilt[0]} is not finite")
    load_weights(net, tensors, where)
    if not config.diffusion.label_dropout:
        layers.null_from_labels(net)
    return Model(config, build.denoiser(config, net).eval().requires_grad_(False), step)


def _refuse_damaged(path: Path) -> None:
    """Compare a file of a checkpoint with its hash, since safetensors accepts a flipped bit."""
    try:
        wanted = json.loads((path.parent / MANIFEST).read_text(encoding="utf-8"))[path.name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path.parent / MANIFEST}, which says what {path.name} holds, cannot be read") from None
    if files.sha256(path) != wanted:
        raise CheckpointError(f"{path} is damaged (its hash differs); take another checkpoint")
