"""Finding the mask that goes with each image, by their names."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from diffunet.data import folder
from diffunet.errors import DataError

log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """An image, its mask, if any, and its name: the path in its folder without the suffix, such as "holiday/beach"."""

    image: Path
    mask: Path | None
    name: str


def pairs(images: Sequence[Path], mask: Path | None) -> list[Pair]:
    """Find the mask of each image. Masks that no image has are logged.

    Args:
        images: files, and folders, of which all images are taken, those of their subfolders too, as of a data folder.
        mask: one mask for all images; or a folder, in which the mask of holiday/beach.jpg is holiday/beach with the
            suffix of any image format; or None.

    Raises:
        DataError: a file or folder that does not exist, a folder without images, images without a mask or with several.
    """
    for path in (*images, mask):
        if path is not None and not os.path.exists(path):
            raise DataError(f"{path}: no such file or folder")
    named = [(path, name) for source in images for path, name in _images(source)]
    if mask is None or not os.path.isdir(mask):
        return [Pair(path, mask, name) for path, name in named]
    masks: dict[str, list[Path]] = defaultdict(list)
    for path, name in _images(mask):
        masks[name].append(path)
    if without := [pair for pair in named if pair[1] not in masks]:
        missing, example = _some([path for path, _ in without]), f"{mask / without[0][1]}.png"
        raise DataError(f"no mask for {missing} in {mask}: a mask has the name of its image, as {example}")
    if several := [path for _, name in named if len(masks[name]) > 1 for path in masks[name]]:
        raise DataError(f"more than one mask for the same image: {_some(several)}; leave one")
    if unused := [path for name in masks.keys() - {name for _, name in named} for path in masks[name]]:
        log.warning("no image for %s", _some(sorted(unused)))
    return [Pair(path, masks[name][0], name) for path, name in named]


def _images(source: Path) -> list[tuple[Path, str]]:
    """Return the images of a folder, or a file itself, each with its name."""
    if not os.path.isdir(source):
        return [(source, source.stem)]
    files, rejected = folder.list_images(source)
    for file in rejected:
        log.warning("%s: %s", source / file.path, file.reason)
    return [(source / folder.native(path), PurePath(path).with_suffix("").as_posix()) for path in files]


def _some(paths: Sequence[Path], named: int = 3) -> str:
    """Name the first paths, and count the others."""
    more = f" and {len(paths) - named} more" if len(paths) > named else ""
    return ", ".join(map(str, paths[:named])) + more
