"""What is written where a command is not told: names made of those of the images and of the model."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

RUNS = Path("runs")
"""The folder, in the current one, of the runs that are not told where to go."""

_PATTERN = re.compile(r"[-_.]*(\{.*?\}|[*?\[]).*")
"""What begins the changing part of a pattern of files: shard-{0000..0127}.tar, photos-*.zip."""

_ARCHIVE = re.compile(r"(?:\.(?:tar|zip|npz|npy|tgz|tbz2?|txz|gz|bz2|xz|zst))+$", re.IGNORECASE)


def run_of(data: Path) -> Path:
    """Return the folder of a run on `data`: `runs/` and its name, without what makes an archive or a pattern of it."""
    path = Path(os.path.abspath(data))
    name = path.name
    if not path.is_dir():
        name = _ARCHIVE.sub("", name if path.exists() else _PATTERN.sub("", name)) or path.parent.name
    return RUNS / (name or "run")


def samples_of(model: str, seed: int, suffix: str) -> str:
    """Return the name of samples: that of the model and the seed, with a suffix of files or, for a folder, none.

    The model's name is that of its folder, or of the run where it is RUN/model, without the owner on the hub.
    """
    place = Path(os.path.abspath(model))
    name = place.parent.name if place.name == "model" else place.name
    return f"{name or 'model'}-seed{seed}{suffix}"


def fillings_of(images: Sequence[Path], num: int, suffix: str) -> str:
    """Return the name of fillings, in the current folder: of one image a file, of a folder or of several a folder.

    They do not go beside the image, unless that is the current folder: nothing may be written there, or it may be
    trained on.

    Args:
        images: as they are named on the command line.
        num: how many there are of each.
        suffix: of the file for one filling.
    """
    if len(images) != 1:
        return "filled"
    [image] = images
    if image.is_dir():
        return f"{Path(os.path.abspath(image)).name or 'images'}-filled"
    return f"{image.stem}-filled" + (suffix if num == 1 else "")
