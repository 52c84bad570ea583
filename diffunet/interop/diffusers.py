"""Folders of diffusers, read and written: a pipeline with a UNet2DModel and its scheduler, or the UNet2DModel alone.

The package diffusers is not needed: a folder is JSON and weights. `diffusers.DDPMPipeline.from_pretrained(folder)`
loads what is written here, and our config lies beside theirs, so that it reads back the same.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from diffunet import build, files, storage
from diffunet.config import Config, validated
from diffunet.errors import CheckpointError, ResourceError, UsageError
from diffunet.interop import diffusers_options as options
from diffunet.interop import diffusers_weights as weights
from diffunet.storage import Model

log = logging.getLogger(__name__)

INDEX, CONFIG, SCHEDULER_CONFIG, OURS = "model_index.json", "config.json", "scheduler_config.json", "diffunet.json"
"""The files of a folder; `OURS`, which only diffunet writes, holds our whole config."""

PROCESS = ("num_train_timesteps", "prediction_type", "rescale_betas_zero_snr", "trained_betas")
"""Options of a scheduler that the weights of a net depend on."""

DROPPED = ("uncertainty.", "embedding.augment.")
"""How the names of weights begin that only training uses."""


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder of diffusers: a pipeline, a net, or a checkpoint of train_unconditional.py."""
    if (path / INDEX).is_file() or (path / "unet" / CONFIG).is_file():
        return True
    try:
        return (path / CONFIG).is_file() and "_class_name" in weights.read_json(path / CONFIG)
    except CheckpointError:
        return False


def read_config(folder: Path) -> Config:
    """Return the config of a folder of diffusers, everything resolved, without a look at the weights."""
    return _read_config(folder)[0]


def read(folder: Path) -> Model:
    """Read a model of diffusers, on the CPU, in float32, for use and not for training.

    The folder is a pipeline (with unet/ and scheduler/, or both at its root); a UNet2DModel alone, taken to be DDPM's;
    or a checkpoint of train_unconditional.py, of which the averaged weights are taken. Theirs has no null label, so
    ours, the last of K + 1, is the mean of the others, and guidance, which needs a learned one, is refused.

    Raises:
        CheckpointError: something is missing, damaged, or cannot be expressed here; the message names file and option.
        ResourceError: the weights do not fit into memory.
    """
    config, step, unet, where = _read_config(folder)
    try:
        with torch.device("meta"):  # memory is allocated only once the file has shown that it fits
            net = build.net(config)
        if own := (folder / OURS).is_file():
            _refuse_changed(folder, config, net, unet)
    except UsageError as error:
        raise CheckpointError(f"{where / CONFIG}: {error}") from None
    like = net.state_dict()
    wanted = weights.to_diffusers(like)
    if unet.num_class_embeds and not own:
        wanted[weights.LABEL] = wanted[weights.LABEL][:-1]
    tensors, path = weights.read(where, wanted)
    return storage.with_weights(config, net, weights.from_diffusers(tensors, like, unet.flip_sin_to_cos), path, step)


def _read_config(folder: Path) -> tuple[Config, int, options.UNet2D, Path]:
    """Return our config, the step, the options of the net, and the folder that holds the net."""
    where, scheduler = _find(folder)
    unet = options.read_unet(weights.read_json(where / CONFIG), str(where / CONFIG))
    if (folder / OURS).is_file():
        return *_read_ours(folder / OURS), unet, where
    process = options.read_scheduler(weights.read_json(scheduler), str(scheduler)) if scheduler else None
    return options.config(unet, process, str(folder)), 0, unet, where


def _find(folder: Path) -> tuple[Path, Path | None]:
    """Return the folder that holds the net, and the config of its scheduler, None where there is none."""
    is_pipeline = (folder / INDEX).is_file()
    index = weights.read_json(folder / INDEX) if is_pipeline else {}
    for name, value in index.items():
        if not name.startswith("_") and name not in ("unet", "scheduler") and value not in (None, [None, None]):
            what = f"a {str(index.get('_class_name', 'pipeline'))[:60]} with a {name[:60]} cannot be said here"
            raise CheckpointError(f"{folder / INDEX}: {what}, only a UNet2DModel of pixels and its scheduler")
    names = ("unet",) if is_pipeline else ("unet_ema", "unet")
    where = next((folder / name for name in names if (folder / name / CONFIG).is_file()), folder)
    for place in (folder / "scheduler", folder, folder.absolute().parent / "scheduler"):
        if (place / SCHEDULER_CONFIG).is_file():
            return where, place / SCHEDULER_CONFIG
    if is_pipeline:
        raise CheckpointError(f"{folder} has no scheduler/{SCHEDULER_CONFIG}, which says what its net predicts")
    return where, None


def _read_ours(path: Path) -> tuple[Config, int]:
    content: Any = weights.read_json(path)
    if content.get("format") != storage.FORMAT or content.get("version") != storage.VERSION:
        raise CheckpointError(f"{path} is not of this diffunet: update it, or delete the file to read the rest")
    try:
        config = validated(content.get("config"), str(path))
    except UsageError as error:
        raise CheckpointError(str(error)) from None
    if None in (config.model.channels, config.model.multipliers, config.model.attention_levels):
        raise CheckpointError(f"{path} leaves open what the net is: delete it to read the rest of the folder")
    step = content.get("step")
    return config, step if isinstance(step, int) else 0


def _refuse_changed(folder: Path, config: Config, net: torch.nn.Module, unet: options.UNet2D) -> None:
    """Refuse our config where the files beside it are of another model, which was put into the folder later."""
    stated, written = unet.model_dump(mode="json"), options.unet_options(config, net)
    if scheduler := _find(folder)[1]:
        stated |= {name: value for name, value in weights.read_json(scheduler).items() if name in PROCESS}
        written |= options.scheduler_options(config)
    for name, value in written.items():
        if stated.get(name, value) != value:
            what = f"is of another model than the one beside it, by {name}"
            raise CheckpointError(f"{folder / OURS} {what}: delete it to read that one")


def write(model: Model, folder: Path) -> None:
    """Write a folder that `diffusers.DDPMPipeline.from_pretrained` loads; files that it replaces may exist.

    Two parts that sampling has no use for are left out: the embedding of augmentation, and the expected loss. The null
    label is the last of their classes.

    Raises:
        UsageError: diffusers cannot express the model; the message names the option and how to mend it.
        ResourceError: the disk does not take it; what was in the folder before is whole.
    """
    config, net = model.config, model.denoiser.net
    if config.data.augment or config.diffusion.learned_uncertainty:
        config = config.changed("data", augment=0.0).changed("diffusion", learned_uncertainty=False)
    unet, scheduler = options.unet_options(config, net), options.scheduler_options(config)
    _warn_of_differences(config, scheduler["num_train_timesteps"])
    contents = {
        f"unet/{CONFIG}": unet, f"scheduler/{SCHEDULER_CONFIG}": scheduler,
        OURS: {"format": storage.FORMAT, "version": storage.VERSION, "step": model.step,
               "config": config.model_dump(mode="json")},
        INDEX: {"_class_name": "DDPMPipeline", "_diffusers_version": options.VERSION,
                "scheduler": ["diffusers", scheduler["_class_name"]], "unet": ["diffusers", unet["_class_name"]]},
    }  # fmt: skip
    kept = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith(DROPPED)}
    theirs = {name: tensor.clone() for name, tensor in weights.to_diffusers(kept).items()}
    try:
        with files.replacing_all(folder, (f"unet/{weights.FILE}", *contents)) as temporary:
            storage.write_tensors(temporary / "unet" / weights.FILE, theirs, {"format": "pt"})
            for path, content in contents.items():
                files.write_atomic(temporary / path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        needed, reason = storage.size(sum(tensor.nbytes for tensor in theirs.values())), error.strerror or error
        raise ResourceError(f"the model {folder} ({needed}) could not be written: {reason}; make room") from None


def _warn_of_differences(config: Config, num_steps: int) -> None:
    """Log what their pipeline does otherwise when it samples; `num_steps` is the length of its chain."""
    if classes := len(config.data.class_names):
        text = "DDPMPipeline gives its net no labels, and this one wants some: call unet(x, t, labels); no class is %d"
        log.warning(text, classes)
    if num_steps < 1000:
        text = "DDPMPipeline takes 1,000 steps if not told: call it with num_inference_steps of at most %d"
        log.warning(text, num_steps)
    off = max(abs(value) for value in config.diffusion.mean or (0.0,)) / build.schedule(config).sigma_max
    if off > 0.01:
        log.warning("DDPMPipeline starts at noise alone, and diffunet at the mean of the images: %.3f apart", off)
