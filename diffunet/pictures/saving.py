"""Saving pictures, in the format that the name says, with what their files said beside the pixels."""

import io
import logging
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from diffunet import files
from diffunet.errors import ResourceError, UsageError
from diffunet.pictures import deep, notes
from diffunet.pictures.opening import one_line

log = logging.getLogger(__name__)

_KINDS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF",
}  # fmt: skip
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # exact: colours under alpha 0 are kept too
    "TIFF": {"compression": "tiff_lzw"},
}
_LOSSY = ("JPEG", "GIF")  # a GIF holds 256 colours
_COMMON = ("1", "L", "P", "LA", "RGB", "RGBA")
_HOLDS = {
    "PNG": (*_COMMON, "I;16"), "JPEG": ("1", "L", "RGB", "CMYK"), "WEBP": _COMMON, "BMP": ("1", "L", "P", "RGB"),
    "GIF": _COMMON,
}  # fmt: skip
"""The modes that a format holds; a TIFF holds all. Of some other modes Pillow would silently write less."""


def is_lossless(path: Path) -> bool:
    """Return whether `save` under this name keeps every pixel as it is, or raise UsageError for other extensions."""
    return _kind_of(path) not in _LOSSY


def save(image: Image.Image, path: Path) -> None:
    """Write `image` in the format that the extension names; `path` then holds all of it, or what it held before.

    The colour profile, EXIF, XMP and resolution in `image.info` are written where the format can hold them.

    Raises:
        UsageError: The extension is not known, or the format cannot hold this image: JPEG and BMP hold no
            transparency, and most formats no more than 8 bits a colour and no CMYK.
        ResourceError: The disk is full or the folder cannot be written.
    """
    kind = _kind_of(path)
    if kind in ("JPEG", "BMP") and image.has_transparency_data:  # no reader looks for the alpha of a BMP
        raise UsageError(f"{path}: a {kind} file holds no transparency; use .png, .webp or .tif")
    if kind == "TIFF" and "transparency" in image.info and image.mode == "I;16":
        raise UsageError(f"{path}: a TIFF file holds no transparent colour; use .png")
    if image.mode not in _HOLDS.get(kind, (image.mode,)):
        other = ".png or .tif" if image.mode in _HOLDS["PNG"] else ".tif"
        raise UsageError(f"{path}: a {kind} file holds no image of mode {image.mode}; use {other}")
    if image.info.get(deep.WHITE_IS_ZERO) and kind != "TIFF":  # which alone can say it
        image = _positive(image)
    if kind == "PNG" and len(notes.of(image).get("icc_profile", b"")) > PngImagePlugin.MAX_TEXT_CHUNK:
        log.warning("%s: without the colour profile, which is too long for a PNG; a .tif keeps it", path)
    low = None if kind in _LOSSY else deep.low_of(image)
    if low is not None and kind != "PNG":
        raise UsageError(f"{path}: this image has 16 bits a colour, and would have 8 as {kind}; use .png")
    encoded = io.BytesIO()
    try:
        options = _OPTIONS.get(kind, {}) | notes.options(image, kind)
        if low is None:
            image.save(encoded, kind, **options)
        else:
            encoded.write(deep.png(image, low, options))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: cannot be written as {kind}, use .png: {one_line(error)}") from None
    try:
        files.write_atomic(path, encoded.getvalue())
    except OSError as error:
        size = len(encoded.getvalue()) / 1e6
        raise ResourceError(f"{path}: {size:.2f} MB cannot be written: {one_line(error)}; make room") from None


def _positive(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits, in whose values zero is white, with values in which it is black."""
    positive = deep.from_values(65535 - deep.values_of(image), image.mode)
    positive.info = {name: value for name, value in image.info.items() if name != deep.WHITE_IS_ZERO}
    return positive


def _kind_of(path: Path) -> str:
    if (extension := path.suffix.lower()) not in _KINDS:
        raise UsageError(f"{path}: the name must end in one of {' '.join(_KINDS)}")
    return _KINDS[extension]
