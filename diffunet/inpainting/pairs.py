"""Finding the mask that goes with each image, by their names."""

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from diffunet import files
from diffunet.data import folder
from diffunet.errors import DataError

log = logging.getLogger(__name__)
_MASK = re.compile(r"mask[_-](?P<after>.+)|(?P<before>.+)[_.-]mask", re.IGNORECASE | re.DOTALL)


class Pair(NamedTuple):
    """An image, its mask, if any, and its name: the path in its folder without the suffix, such as "holiday/beach"."""

    image: Path
    mask: Path | None
    name: str


def pairs(images: Sequence[Path], mask: Path | None, out: Path | None = None) -> list[Pair]:
    """Find the mask of each image. Masks that no image has are logged.

    Names are compared in one Unicode form. A mask has the name of its image, whatever its suffix, or that name with
    "mask": the mask of holiday/beach.jpg is holiday/beach.png, or else beach_mask, beach-mask, beach.mask, mask_beach
    or mask-beach there. Masks may lie among the images, by the latter names; they are no images then.

    Args:
        images: files, and folders, of which all images are taken, those of their subfolders too, as of a data folder.
            Folders of masks or of results that lie in them are left out.
        mask: one mask for all images; or a folder of masks; or None.
        out: where results are to be written.

    Raises:
        DataError: a file or folder that does not exist, a folder without images, images without a mask or with several.
    """
    for path in (*images, mask):
        if path is not None and (why := files.absent(path)) is not None:
            raise DataError(f"{path}: {why}")
    left_out = [path for path in (mask, out) if path is not None]
    named = [(path, name) for source in images for path, name in _images(source, left_out)]
    if mask is None or not os.path.isdir(mask):
        return [Pair(path, mask, name) for path, name in named]
    there = _images(mask, left_out)
    own = {os.path.realpath(path) for path, _ in named}
    among = own & {os.path.realpath(path) for path, _ in there}
    if among:  # there a mask is known by its name, and no image, even where there is no image for it
        named = [each for each in named if os.path.realpath(each[0]) not in among or not _with_mask(each[1])]
    found = _found(named, there)
    if several := [one for masks in found for one in masks if len(masks) > 1]:
        raise DataError(f"more than one mask for the same image: {_some(several)}; leave one")
    own = {os.path.realpath(path) for path, _ in named}
    if images_too := [one for masks in found for one in masks if os.path.realpath(one) in own]:
        raise DataError(
            f"{_some(images_too)}: an image or the mask of one? Name masks that are among the images as "
            f"{images_too[0].with_name(images_too[0].stem)}_mask.png"
        )
    if without := [each for each, masks in zip(named, found, strict=True) if not masks]:
        path, name = without[0]
        example = f"{mask / name}{'_mask' if os.path.realpath(path) in among else ''}.png"
        missing = _some([path for path, _ in without])
        raise DataError(f"no mask for {missing} in {mask}: a mask has the name of its image, as {example}")
    taken = {one for masks in found for one in masks}
    unused = [path for path, _ in there if path not in taken and os.path.realpath(path) not in own]
    if unused and any(map(os.path.isdir, images)):
        log.warning("no image for %s", _some(sorted(unused)))
    return [Pair(path, masks[0], name) for (path, name), masks in zip(named, found, strict=True)]


def _found(named: Sequence[tuple[Path, str]], there: Sequence[tuple[Path, str]]) -> list[list[Path]]:
    """Return the masks of each image: those of its very name, else those of its name with "mask"."""
    exact, worded = defaultdict[str, list[tuple[Path, str]]](list), defaultdict[str, list[tuple[Path, str]]](list)
    for path, name in there:
        exact[_plain(name)].append((path, name))
        if base := _with_mask(name):
            worded[base].append((path, name))
    found = []
    for image, name in named:
        with_suffix = name + image.suffix  # of beach.jpg.png
        choices = (known[_plain(of)] for of in (name, with_suffix) for known in (exact, worded))
        others = ([(path, of) for path, of in masks if not _same(path, image)] for masks in choices)
        masks = next(filter(None, others), [])
        alike = [path for path, of in masks if of == name]  # of two that differ in their Unicode form alone
        found.append(alike if len(alike) == 1 else [path for path, _ in masks])
    return found


def _with_mask(name: str) -> str | None:
    """Return the name of the image of which a mask is named, such as "holiday/beach" for "holiday/beach_mask"."""
    head, slash, last = _plain(name).rpartition("/")
    match = _MASK.fullmatch(last)
    return None if match is None else head + slash + (match["before"] or match["after"])


def _plain(name: str) -> str:
    """Return a name in the one Unicode form in which names are compared: systems write an é in two ways."""
    return unicodedata.normalize("NFC", name)


def _same(one: Path, other: Path) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def _images(source: Path, left_out: Sequence[Path] = ()) -> list[tuple[Path, str]]:
    """Return the images of a folder but those in files and folders that are left out, or a file, each with its name."""
    if not os.path.isdir(source):
        return [(source, source.stem)]
    files, rejected = folder.list_images(source)
    root, *places = (Path(os.path.realpath(path)) for path in (source, *left_out))
    starts = tuple(f"{place.relative_to(root).as_posix()}/" for place in places if root in place.parents)
    for file in rejected:
        if not f"{file.path}/".startswith(starts):
            log.warning("%s: %s", source / file.path, file.reason)
    kept = [path for path in files if not f"{path}/".startswith(starts)]
    if not kept:
        raise DataError(f"{source}: all of its images are masks or results")
    return [(source / folder.native(path), PurePath(path).with_suffix("").as_posix()) for path in kept]


def _some(paths: Sequence[Path], named: int = 3) -> str:
    """Name the first paths, and count the others."""
    more = f" and {len(paths) - named} more" if len(paths) > named else ""
    return ", ".join(map(str, paths[:named])) + more
