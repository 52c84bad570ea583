"""Reading MODEL: a run folder, a model folder, a checkpoint, a folder of diffusers, a name on the hub, or a short name.

A short name is that of a model that comes with diffunet (`pretrained`).
"""

import logging
import os
from pathlib import Path

from diffunet import build, pretrained, storage
from diffunet.config import Config
from diffunet.errors import CheckpointError
from diffunet.interop import diffusers, hub
from diffunet.storage import Model

log = logging.getLogger(__name__)


def shipped(model: str | Path) -> Path | None:
    """Return the folder of the model that comes with diffunet by this short name, None where a folder here has it."""
    folder = pretrained.folder(os.fspath(model))
    return None if folder is None or Path(model).is_dir() else folder


def find(model: str | Path) -> Path:
    """Return the folder that MODEL means; a name on the hub is downloaded first, unless it was before.

    A folder of the name of a model that comes with diffunet wins, which is said.

    Raises:
        CheckpointError: there is no model (the message says what is at that path instead), or it cannot be downloaded.
        ResourceError: the disk has no room for a download.
    """
    try:
        if (folder := shipped(model)) is not None:
            return folder
        if pretrained.folder(os.fspath(model)) is not None:
            log.info(
                "%s is the folder of that name here, and not the model that comes with diffunet, which is meant in "
                "any other folder",
                model,
            )
        if hub.is_name(str(model)):
            model = hub.pull(str(model))
        return Path(model) if diffusers.is_folder(Path(model)) else storage.find_model(model)
    except OSError as error:
        raise CheckpointError(f"{model} cannot be read: {error.strerror}") from None


def read_config(model: str | Path) -> Config:
    """Return the config of MODEL, everything resolved; raise as `read_model` does."""
    folder = find(model)
    return diffusers.read_config(folder) if diffusers.is_folder(folder) else storage.read_config(folder)


def read_model(model: str | Path, net: build.NetFactory = build.net) -> Model:
    """Read MODEL, on the CPU, for sampling and not for training; `net` makes the net of a model of ours.

    Raises:
        CheckpointError, ResourceError: as `find`; or the config is damaged or of a net that cannot be built here; or
            the weights are damaged, of other shapes or not finite, or do not fit into memory.
    """
    folder = find(model)
    if not diffusers.is_folder(folder):
        return storage.read_model(folder, net)
    if net is not build.net:
        storage.refuse_other_net(diffusers.read_config(folder), folder)
    return diffusers.read(folder)
