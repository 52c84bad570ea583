"""Commands write pictures: where they may, under which names, in which formats, and several laid out in one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from diffunet.commands.progress import say, tell
from diffunet.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from diffunet.inpainting.part import Masked
    from diffunet.pictures.images import Pixels

SHEET_WIDTH = 2000
"""Pixels; the pictures on a sheet are made smaller where it would be wider."""
HOLE = (255, 0, 255)
"""Colour of a hole on a sheet, which few images have."""


def claim(path: Path, *, file: bool, overwrite: bool, option: str = "--out") -> None:
    """Find out before any work is done that `path` (a file or a folder to be) is taken or cannot be written.

    A file is written and removed again, since permissions do not tell: network drives and read-only mounts refuse what
    they allow. Raises UsageError, or ResourceError for a full disk; both name `option`.
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


def lossless(out: Path, option: str = "--out") -> bool:
    """Return whether a picture of this name keeps every pixel. Raises UsageError for a name that is no picture's."""
    from diffunet.pictures import images

    try:
        return images.is_lossless(out)
    except UsageError as error:
        raise UsageError(f"{option} {error}") from None


def is_file(out: str | Path) -> bool:
    """Return whether --out is one file, or a folder, as `made.names_file` says. Raises UsageError as it does."""
    from diffunet.pictures import made

    try:
        return made.names_file(out)
    except UsageError as error:
        raise UsageError(f"--out {error}; or end it in / for a folder") from None


def is_arrays(out: str | Path) -> bool:
    """Return whether --out is a file of arrays, an .npz, which is not a folder already."""
    return Path(out).suffix.lower() == ".npz" and not Path(out).is_dir() and not str(out).endswith(("/", os.sep))


def save_arrays(
    out: Path, shape: tuple[int, int, int, int], batches: Iterable[Pixels], labels: NDArray[np.int64] | None
) -> None:
    """Write an .npz as numpy does, batch by batch, whole or not at all: arr_0 uint8 [N H W C], arr_1 int64 [N].

    Args:
        out: the file.
        shape, batches: of arr_0, and its parts in order, uint8 [n H W C].
        labels: arr_1; left out where None.

    Raises:
        ResourceError: it cannot be written.
    """
    import numpy as np

    from diffunet import files

    try:
        with files.replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for batch in batches:
                    file.write(np.ascontiguousarray(batch).data)
            if labels is not None:
                with archive.open("arr_1.npy", "w") as file:
                    np.lib.format.write_array(file, labels)
    except OSError as error:
        raise ResourceError(f"{out} cannot be written: {error.strerror or error}; make room") from None


def refuse_misfit(out: Path, channels: int, option: str = "--out") -> None:
    """Refuse a file that cannot hold pictures of so many channels; say it of one that holds fewer colours.

    Raises:
        UsageError: it names the suffix to take.
    """
    from diffunet.pictures import images

    suffix, suffixes = out.suffix.lower(), _HELD_BY.get(images.MODES[channels], ())
    if suffixes and suffix not in suffixes:
        raise UsageError(f"{option} {out}: {suffix} holds no transparency, which these images have; take {suffixes[0]}")
    if suffix == ".gif" and channels > 1:
        say(f"{out}: a GIF has 256 colours, so this is not exactly what the model makes; a .png is")


_DEEP, _CLEAR = (".tif", ".tiff"), (".png", ".webp", ".tif", ".tiff", ".gif")
_HELD_BY = {
    "I;16": (".png", *_DEEP), "I;16B": (".png", *_DEEP), "I": _DEEP, "F": _DEEP, "CMYK": (*_DEEP, ".jpg", ".jpeg"),
    "LA": _CLEAR, "La": _CLEAR, "PA": _CLEAR, "RGBA": _CLEAR, "RGBa": _CLEAR,
}  # fmt: skip


def held_by(path: Path) -> tuple[str, ...]:
    """Return the suffixes of the files that can hold an inpainted image, the usual one first; none where all can.

    Only the header of the image is read. An image that cannot be read gives none: its error comes when it is decoded.
    """
    from diffunet.pictures import deep, opening

    try:
        with opening.own_pixel_cap(), opening.header(path) as image:
            if deep.is_deep(image):
                return (".png",)
            clear = "transparency" in image.info and not image.mode.startswith("I")  # it becomes alpha
            mode = "I;16" if image.format == "PPM" and image.mode == "I" else image.mode
            return _CLEAR if clear else _HELD_BY.get(mode, ())
    except Exception:
        return ()


def save(picture: Image, path: Path) -> None:
    """Write a picture and print its name. A full disk raises ResourceError and replaces nothing."""
    from diffunet.pictures import images

    images.save(picture, path)
    tell(str(path))


def sheet(masked: Masked, fillings: list[Image]) -> Image:
    """Return an RGB picture of the image with its hole in magenta, and then its fillings.

    Up to five pictures stand in one row, more about square. Transparency is laid over white; an RGB profile is kept.
    """
    from PIL.Image import Resampling

    from diffunet.pictures import images

    picture, count = masked.picture, 1 + len(fillings)
    columns = count if count <= 5 else math.ceil(math.sqrt(count))
    scale = min(1.0, SHEET_WIDTH / (columns * picture.width))
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    shown = images.to_array(picture, 3, range=masked.range)
    shown[masked.hole] = HOLE  # before it is made smaller, which would mix erased pixels in beside the hole
    arrays = itertools.chain([shown], (images.to_array(image, 3, range=masked.range) for image in fillings))
    small = (images.from_array(array).resize(size, Resampling.BILINEAR) for array in arrays)
    laid = images.grid([images.to_array(image, 3) for image in small], columns)
    if picture.mode in ("RGB", "RGBA") and "icc_profile" in picture.info:
        laid.info["icc_profile"] = picture.info["icc_profile"]
    return laid
