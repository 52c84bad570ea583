"""What the commands that load a model and write pictures share."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffunet.commands.progress import progress, say, tell
from diffunet.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from diffunet.inpainting.part import Masked
    from diffunet.sampling.pipeline import Guidance, Pipeline, Progress

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def load(
    model: str, device: str | None, precision: Precision, *, threads: int | None = None, compile: bool = False
) -> Pipeline:
    """The model, after a loud line where a GPU lies idle.

    Raises:
        CheckpointError, UsageError: as `pipeline.load`.
    """
    import torch

    from diffunet import compute
    from diffunet.sampling import pipeline

    loud = compute.warning()
    if loud and device is None:
        say(loud)
    if threads is not None:
        torch.set_num_threads(threads)
    return pipeline.load(model, device, compute.PRECISIONS.get(precision), compile=compile)


def guidance(
    pipe: Pipeline, scale: float, interval: tuple[float, float] | None, rescale: float, weaker: str | None
) -> Guidance:
    """What the options for guidance mean; the `weaker` model runs where `pipe` does.

    Raises:
        UsageError: for options that do nothing at scale 1.
        CheckpointError: as `pipeline.load`.
    """
    if scale == 1 and (interval is not None or rescale or weaker is not None):
        raise UsageError("--guidance is 1, none: --guidance-interval, --guidance-rescale and --weaker need another")
    from diffunet.sampling import pipeline

    worse = None if weaker is None else pipeline.load(weaker, pipe.device, pipe.dtype)
    return pipeline.Guidance(scale, worse, interval, rescale)


@contextlib.contextmanager
def watching(what: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar as an `on_step` of the pipeline."""
    with progress(what) as show:
        yield lambda p: show(p.step, p.steps)


def claim(path: Path, *, file: bool, overwrite: bool = True, option: str = "--out") -> None:
    """Find out before any work is done that `path` (a file or a folder to be) is taken or cannot be written.

    It is tried: what permissions say does not hold on network drives and read-only mounts. Nothing is left behind.

    Raises:
        UsageError: naming `option`.
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
        _try(path.with_name(f".{path.name}.{os.getpid()}.tmp") if file else path / f".{os.getpid()}.tmp")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{option} {path} cannot be written: {error.strerror}; make room") from None
        raise UsageError(f"{option} {path} cannot be written: {error.strerror} ({error.filename})") from None


def _try(path: Path) -> None:
    """Write a file and remove it, with the folders that this takes."""
    missing = [folder for folder in path.parents if not folder.exists()]
    made: list[Path] = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        path.write_bytes(b"x")
        path.unlink()
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    finally:
        for folder in reversed(made):
            folder.rmdir()


def lossless(out: Path) -> bool:
    """Whether a picture of this name keeps every pixel. Raises UsageError for a name that is no picture's."""
    from diffunet.pictures import images

    try:
        return images.is_lossless(out)
    except UsageError as error:
        raise UsageError(f"--out {error}") from None


def grid(pictures: list[Image]) -> Image:
    """One picture of them all."""
    import numpy as np

    from diffunet.pictures import images

    arrays = [np.asarray(picture) for picture in pictures]
    return images.grid([array if array.ndim == 3 else array[..., None] for array in arrays])


SHEET_WIDTH = 2000
"""Pixels; the pictures on a sheet are made smaller where it would be wider."""
HOLE = (255, 0, 255)
"""Colour of a hole on a sheet, which few images have."""


def sheet(masked: Masked, fillings: list[Image]) -> Image:
    """An RGB picture of the image with its hole in magenta, and then its fillings: in one row up to five in all, else
    about square. Transparency is laid over white; a colour profile of RGB is kept.
    """
    import math

    from PIL import Image as pillow

    from diffunet.pictures import images

    picture, count = masked.picture, 1 + len(fillings)
    columns = count if count <= 5 else math.ceil(math.sqrt(count))
    scale = min(1.0, SHEET_WIDTH / (columns * picture.width))
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))

    def tile(image: Image) -> NDArray[np.uint8]:
        return images.to_array(image.resize(size, pillow.Resampling.BILINEAR), 3, white=masked.white)

    shown = images.to_array(picture, 3, white=masked.white)
    shown[masked.hole] = HOLE  # before it is made smaller, which would mix erased pixels in beside the hole
    laid = images.grid([tile(images.from_array(shown)), *map(tile, fillings)], columns)
    if picture.mode in ("RGB", "RGBA") and "icc_profile" in picture.info:
        laid.info["icc_profile"] = picture.info["icc_profile"]
    return laid


_DEEP, _CLEAR = (".tif", ".tiff"), (".png", ".webp", ".tif", ".tiff", ".gif")
_HELD_BY = {
    "I;16": (".png", *_DEEP), "I;16B": (".png", *_DEEP), "I": _DEEP, "F": _DEEP, "CMYK": (*_DEEP, ".jpg", ".jpeg"),
    "LA": _CLEAR, "La": _CLEAR, "PA": _CLEAR, "RGBA": _CLEAR, "RGBa": _CLEAR,
}  # fmt: skip


def held_by(path: Path) -> tuple[str, ...]:
    """Which files can hold what an image becomes, by the ends of their names, the usual one first; empty where all can.

    Only its header is read; what is wrong with it is said when the rest is.
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
    """A label as part of the name of a file, on any system, in its letters, and not too long."""
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
