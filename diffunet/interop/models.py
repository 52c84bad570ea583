"""Anything that MODEL may be, ours or not: run and model folders, checkpoints, diffusers folders, names of the hub."""

from __future__ import annotations

from pathlib import Path

from diffunet import build, storage
from diffunet.config import Config
from diffunet.errors import CheckpointError
from diffunet.interop import diffusers, hub
from diffunet.storage import Model


def find(model: str | Path) -> Path:
    """The folder that MODEL means; what has a name of the hub is downloaded, or taken from where it was before.

    Raises:
        CheckpointError: where there is none, saying what is there instead, or why the hub could not be asked.
        UsageError: a name of the hub, and what asks it is not installed.
    """
    try:
        if hub.is_name(str(model)):
            model = hub.pull(str(model))
        return Path(model) if diffusers.is_folder(Path(model)) else storage.find_model(model)
    except OSError as error:
        raise CheckpointError(f"{model} cannot be read: {error.strerror}") from None


def read_config(model: str | Path) -> Config:
    """The config of MODEL, everything resolved.

    Raises:
        CheckpointError, UsageError: as `find`; a config that cannot be read, or says what this project cannot be.
    """
    folder = find(model)
    return diffusers.read_config(folder) if diffusers.is_folder(folder) else storage.read_config(folder)


def read_model(model: str | Path, net: build.NetFactory = build.net) -> Model:
    """Load MODEL, on the CPU, for use and not for training.

    Raises:
        CheckpointError, UsageError: as `read_config`; weights that are damaged, of other shapes or not finite.
    """
    folder = find(model)
    return diffusers.read(folder) if diffusers.is_folder(folder) else storage.read_model(folder, net)
