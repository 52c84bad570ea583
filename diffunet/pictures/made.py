"""Pictures that diffunet has made, as Python gets them: a list that saves, shows and lays out what is in it."""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, SupportsIndex, overload

from PIL import Image

from diffunet import plain
from diffunet.errors import UsageError
from diffunet.pictures import formats, given, images

SHOWN, WIDTH = 64, 1600
"""The most pictures that a notebook shows of a list, and the most pixels that they are wide together."""


_OTHERS = (*formats.EXTENSIONS, *formats.UNSUPPORTED, ".pdf")
_IN_PNG = ("1", "L", "P", "LA", "RGB", "RGBA", "I;16")


def names_file(path: str | os.PathLike[str]) -> bool:
    """Return whether pictures are meant to go to one file of this name, rather than to a folder.

    It is a folder where it is one already, ends in a slash, or where what follows a dot in its name is no picture's
    suffix: `w1.5`.

    Raises:
        UsageError: a suffix of pictures that cannot be written, or one that looks misspelt, as .pgn.
    """
    target, suffix = Path(path), Path(path).suffix.lower()
    if not suffix or target.is_dir() or os.fspath(path).endswith(("/", os.sep)):
        return False
    try:
        images.is_lossless(target)
        return True
    except UsageError:
        swapped = any(sorted(suffix) == sorted(other) for other in _OTHERS)
        if swapped or difflib.get_close_matches(suffix, _OTHERS, n=1, cutoff=0.8):
            raise
        return False


def file_name(label: str) -> str:
    """Return a label as part of a file name that every system takes: its letters and digits, 60 characters at most."""
    known = label.encode(sys.getfilesystemencoding(), "replace").decode(sys.getfilesystemencoding())
    return "".join(c if c.isalnum() or c in "-_ ." else "_" for c in known)[:60]


@lru_cache(maxsize=8)
def file_names(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return `file_name` of each label, or `distinct_name` of those that would be the same."""
    names = [file_name(label) for label in labels]
    many = Counter(name.casefold() for name in names)
    pairs = zip(names, labels, strict=True)
    return tuple(name if many[name.casefold()] == 1 else distinct_name(label) for name, label in pairs)


def distinct_name(label: str) -> str:
    """Return `file_name` of a label with some digits of its hash, so that labels that differ in signs alone differ."""
    return f"{file_name(label)[:50]}-{hashlib.sha256(label.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def source_of(image: Any) -> Path | None:
    """Return the file that an image is, or was opened from, after which its fillings are named; None if there is none.

    The path is absolute: the current folder may be another one when they are saved.
    """
    name = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", None)
    return Path(os.path.abspath(name)) if name and isinstance(name, str | os.PathLike) else None


def suffix_for(picture: Image.Image) -> str:
    """Return the suffix of the format that holds all of a picture: .png, or .tif for CMYK and 32 bits."""
    return ".png" if picture.mode in _IN_PNG else ".tif"


def save(image: Any, path: str | os.PathLike[str]) -> Path:
    """Write a picture as the commands do, with all that it holds, and return the path.

    That is 16 bits a colour where it has them, its colour profile, EXIF, XMP and resolution; never half a file. The
    picture may be any that `Pipeline.inpaint` takes.

    Raises:
        UsageError: the name ends in no picture's suffix, or the format cannot hold the picture.
        DataError: what is given is no picture.
        ResourceError: it cannot be written there.
    """
    found, target = given.picture(image), plain.path("path", path)
    images.save(images.open_image(found) if isinstance(found, Path) else found, target)
    return target


class Picture(Image.Image):
    """A Pillow image that diffunet has made, whose `save` keeps what Pillow's drops: 16 bits, EXIF, XMP, resolution.

    `name` is that of its file, without suffix, where a list of pictures is saved to a folder, and `source` the file of
    the image that was filled in, if any.
    """

    name: str = ""
    source: Path | None = None

    @classmethod
    def of(cls, image: Image.Image, name: str = "", source: Path | None = None) -> Picture:
        """Return an image as a Picture; the two share their pixels."""
        picture = cls()
        vars(picture).update(vars(image))
        picture.name, picture.source = name, source
        return picture

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write the picture as `made.save`; an open file, a format or options of Pillow's go to its own writer."""
        if isinstance(fp, str | os.PathLike) and format is None and not params:
            save(self, fp)
        else:
            super().save(fp, format, **params)

    def __eq__(self, other: object) -> bool:
        # Pillow compares the classes first, and takes no subclass for equal.
        if type(other) is Image.Image:
            other = Picture.of(other)
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as Pillow's


class Pictures(list[Image.Image]):
    """A list of pictures, as `Pipeline.sample` and `inpaint` return it; a slice of it is one, too."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: Any) -> Any:
        """Return a picture, or of a slice the pictures."""
        found = super().__getitem__(index)
        return Pictures(found) if isinstance(index, slice) else found

    def __add__(self, others: Iterable[Image.Image]) -> Pictures:  # type: ignore[override]
        """Return these and other pictures."""
        return Pictures([*self, *others])

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the pictures to a folder, under the names that the commands give them, or a single one to a file.

        What ends in a picture's suffix is a file, unless it is a folder already. Files of these names are replaced, but
        in a folder never the images that were filled in. Nothing of a picture is lost, see `save` of this module.

        Returns:
            The files.

        Raises:
            UsageError: several pictures and one file, two of one name, the name of an image that was filled in, or a
                format that cannot hold one.
            ResourceError: they cannot be written there.
        """
        target = plain.path("path", path)
        if names_file(path):
            if len(self) != 1:
                raise UsageError(f"{target} is one file for {len(self)} pictures: give a folder, or save their grid()")
            return [save(self[0], target)]
        names = [getattr(picture, "name", "") or f"{i:05d}" for i, picture in enumerate(self)]
        if twice := [name for name, times in Counter(map(os.path.normcase, names)).items() if times > 1]:
            raise UsageError(f"{target}: two of the pictures would be named {twice[0]}; save them one by one")
        files = [target / f"{name}{suffix_for(picture)}" for picture, name in zip(self, names, strict=True)]
        sources = {source.resolve() for picture in self if (source := getattr(picture, "source", None))}
        if kept := [file for file in files if file.resolve() in sources]:
            raise UsageError(f"{kept[0]} is the image that was filled in, and would be replaced; give another folder")
        return [save(picture, file) for picture, file in zip(self, files, strict=True)]

    def grid(self, columns: int | None = None) -> Picture:
        """Return all pictures row by row in one, of 8 bits a colour, with white between them.

        Raises:
            UsageError: there are none, or of several sizes.
        """
        if len(sizes := sorted({picture.size for picture in self})) > 1:
            raise UsageError(f"a grid is of pictures of one size, and these are {sizes[0]} and {sizes[1]} pixels")
        grey = all(picture.mode in ("1", "L", "I", "I;16", "F") for picture in self)
        channels = 4 if any(map(images.has_alpha, self)) else 1 if grey else 3
        tiles = [images.to_array(picture, channels) for picture in self]
        return Picture.of(images.grid(tiles, plain.count("columns", columns)), "grid")

    def _repr_png_(self) -> bytes | None:
        """Return what a notebook shows: the first `SHOWN` pictures."""
        if not self or len({picture.size for picture in self}) > 1:
            return None
        grid = self[:SHOWN].grid()
        grid.thumbnail((WIDTH, WIDTH))
        content = io.BytesIO()
        grid.save(content, "PNG")
        return content.getvalue()
