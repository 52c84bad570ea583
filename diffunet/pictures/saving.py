"""Functions that write pictures, in the format that the extension names and as far as it can hold them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image

from diffunet import files
from diffunet.errors import ResourceError, UsageError
from diffunet.pictures import deep, notes

_SAVED_AS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True}),  # exact: colours under alpha 0 are kept too
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".gif": ("GIF", {}),
}
_LOSSY = (".jpg", ".jpeg", ".gif")  # a GIF holds 256 colours
_OPAQUE = ("JPEG", "BMP")  # Pillow writes alpha into a BMP, but no reader looks for it there
_HOLDS = {
    "PNG": ("1", "L", "P", "LA", "RGB", "RGBA", "I;16"),
    "JPEG": ("1", "L", "RGB", "CMYK"),
    "WEBP": ("1", "L", "P", "LA", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P", "LA", "RGB", "RGBA"),
}
"""The modes that a format holds; a TIFF holds all. Of some other modes Pillow would silently write less."""


def is_lossless(path: Path) -> bool:
    """Return whether `save` under this name keeps every pixel as it is, or raise UsageError for other extensions."""
    _format_of(path)
    return path.suffix.lower() not in _LOSSY


def save(image: Image.Image, path: Path) -> None:
    """Write `image` in the format that the extension names; `path` then holds all of it, or what it held before.

    The colour profile, EXIF, XMP and resolution in `image.info` are written where the format can hold them.

    Raises:
        UsageError: The extension is not known, or the format cannot hold this image: JPEG and BMP hold no
            transparency, and most formats no more than 8 bits a colour and no CMYK.
        ResourceError: The disk is full or the folder cannot be written.
    """
    kind, options = _format_of(path)
    if kind in _OPAQUE and image.has_transparency_data:
        raise UsageError(f"{path}: a {kind} file holds no transparency; use .png, .webp or .tif")
    if kind == "TIFF" and "transparency" in image.info and image.mode == "I;16":
        raise UsageError(f"{path}: a TIFF file holds no transparent colour; use .png")
    if image.mode not in _HOLDS.get(kind, (image.mode,)):
        other = ".png or .tif" if image.mode in _HOLDS["PNG"] else ".tif"
        raise UsageError(f"{path}: a {kind} file holds no image of mode {image.mode}; use {other}")
    low = None if path.suffix.lower() in _LOSSY else deep.low_of(image)
    if low is not None and kind != "PNG":
        raise UsageError(f"{path}: this image has 16 bits a colour, and would have 8 as {kind}; use .png")
    encoded = io.BytesIO()
    try:
        options = options | notes.options(image, kind)
        if low is None:
            image.save(encoded, kind, **options)
        else:
            encoded.write(deep.png(image, low, options))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: cannot be written as {kind}, use .png: {one_line(error)}") from None
    try:
        files.write_atomic(path, encoded.getvalue())
    except OSError as error:
        needed = f"{len(encoded.getvalue()) / 1e6:.2f} MB"
        raise ResourceError(f"{path}: {needed} cannot be written: {one_line(error)}; make room") from None


def _format_of(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        return _SAVED_AS[path.suffix.lower()]
    except KeyError:
        raise UsageError(f"{path}: the name must end in one of {' '.join(_SAVED_AS)}") from None


def one_line(error: Exception) -> str:
    """Return the message of an exception on one line of at most 160 characters."""
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
    return " ".join(text.split())[:160]
