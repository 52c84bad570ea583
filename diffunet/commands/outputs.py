"""Where a command may write pictures, under which names, and in which formats."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffunet.commands.progress import tell
from diffunet.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


def claim(path: Path, *, file: bool, overwrite: bool = True, option: str = "--out") -> None:
    """Find out before any work is done that `path` (a file or a folder to be) is taken or cannot be written.

    A file is written and removed again, since permissions do not tell: network drives and read-only mounts refuse what
    they allow. Nothing is left behind.

    Raises:
        UsageError: a path that is taken or cannot be written, naming `option`.
        ResourceError: a full disk.
    """
    try:
        if path.is_dir() and file:
            raise UsageError(f"{option} {path} is a folder, and a file is needed here: give it another name")
        if path.exists() and not path.is_dir() and not file:
            raise UsageError(f"{option} {path} is not a folder, and one is needed here")
        if not overwrite and path.exists() and (file or any(path.iterdir())):
            raise UsageError(f"{option} {path} exists; choose another, or say --overwrite")
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise UsageError(f"{option} {path} cannot be written: {above} is not a folder")
        _try_to_write(path.with_name(f".{path.name}.{os.getpid()}.tmp") if file else path / f".{os.getpid()}.tmp")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{option} {path} cannot be written: {error.strerror}; make room") from None
        raise UsageError(f"{option} {path} cannot be written: {error.strerror} ({error.filename})") from None


def _try_to_write(path: Path) -> None:
    """Write a file, with the folders that this takes, and remove all of it again."""
    with contextlib.ExitStack() as undo:
        for folder in reversed([folder for folder in path.parents if not folder.exists()]):
            folder.mkdir()
            undo.callback(folder.rmdir)
        undo.callback(path.unlink, missing_ok=True)
        path.write_bytes(b"x")


def lossless(out: Path) -> bool:
    """Return whether a picture of this name keeps every pixel. Raises UsageError for a name that is no picture's."""
    from diffunet.pictures import images

    try:
        return images.is_lossless(out)
    except UsageError as error:
        raise UsageError(f"--out {error}") from None


_DEEP, _CLEAR = (".tif", ".tiff"), (".png", ".webp", ".tif", ".tiff", ".gif")
_HELD_BY = {
    "I;16": (".png", *_DEEP), "I;16B": (".png", *_DEEP), "I": _DEEP, "F": _DEEP, "CMYK": (*_DEEP, ".jpg", ".jpeg"),
    "LA": _CLEAR, "La": _CLEAR, "PA": _CLEAR, "RGBA": _CLEAR, "RGBa": _CLEAR,
}  # fmt: skip


def held_by(path: Path) -> tuple[str, ...]:
    """Return the suffixes of the files that can hold an inpainted image, the usual one first; none where all can.

    Only the header of the image is read. An image that cannot be read gives none: its error comes when it is decoded.
    """
    from PIL import Image as pillow

    from diffunet.pictures import deep, images

    try:
        with pillow.open(path, formats=images.FORMATS) as image:
            if deep.is_deep(image):
                return (".png",)
            clear = "transparency" in image.info and not image.mode.startswith("I")  # it becomes alpha
            return _CLEAR if clear else _HELD_BY.get(image.mode, ())
    except Exception:
        return ()


def file_name(label: str) -> str:
    """Return a label as part of a file name that every system takes: its letters and digits, 60 characters at most."""
    known = label.encode(sys.getfilesystemencoding(), "replace").decode(sys.getfilesystemencoding())
    return "".join(c if c.isalnum() or c in "-_ ." else "_" for c in known)[:60]


def save(picture: Image, path: Path, *, quiet: bool = False) -> None:
    """Write a picture and, unless `quiet`, its name on standard output.

    Raises:
        ResourceError: a full disk; what was there before is whole.
    """
    from diffunet.pictures import images

    images.save(picture, path)
    if not quiet:
        tell(str(path))
