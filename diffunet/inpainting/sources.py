"""What a mask holds, however it came: from a file, its bytes, an image, an array, a tensor or a list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffunet.errors import DataError
from diffunet.pictures import deep, given, images, opening

_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000", "HEIF")
_STRIP = 2**22  # pixels that are looked at together


class Content(NamedTuple):
    """The values of a mask.

    Args:
        colours: [H W] or [H W 3], of any number type; alpha is not in it.
        alpha: uint8 [H W], or None where all is opaque.
        indices: [H W], the numbers of a palette's colours, or None.
        lossless: whether the values are those that were drawn, to the last bit.
        made: whether it is an array or the like, in which 0 and 1 are the usual values.
    """

    colours: NDArray[Any]
    alpha: NDArray[np.uint8] | None = None
    indices: NDArray[Any] | None = None
    lossless: bool = True
    made: bool = False

    def over_black(self) -> Content:
        """Return the same content without alpha: what is transparent is black."""
        if self.alpha is None:
            return self
        colours, step = self.colours.copy(), max(1, _STRIP // self.colours.shape[1])
        for top in range(0, len(colours), step):
            rows = slice(top, top + step)
            alpha = self.alpha[rows] if colours.ndim == 2 else self.alpha[rows, :, None]
            shown = colours[rows] * (alpha / np.float32(255))
            colours[rows] = shown if colours.dtype.kind in "bf" else np.rint(shown)
        return self._replace(colours=colours, alpha=None)


def content_of(source: Any, max_pixels: int, page: int | None = None, name: str = "the mask") -> Content:
    """Return the content of a mask; for the arguments see `reading.read_mask`, which has read an open file.

    Raises:
        DataError: what is no mask.
        UsageError: a file of several pages without `page`.
    """
    filename = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    if isinstance(source, Image.Image):
        lossless = source.format not in _LOSSY and not _holds_jpeg(source)
        return _of_image(given.upright(source), lossless)
    if isinstance(source, str | os.PathLike):
        source = images.read_bytes(Path(source))
    if isinstance(source, bytes):
        place = opening.place_of_page(source, str(filename), page, name, one_for_all=True)
        with images.decoding(source, name=str(filename), max_pixels=max_pixels, page=place) as decoded:
            lossless = decoded.format not in _LOSSY or (decoded.format == "WEBP" and b"VP8L" in source)
            return _of_image(decoded.image, lossless and not _holds_jpeg(decoded.image))
    return _of_array(source)


def _holds_jpeg(image: Image.Image) -> bool:
    return image.info.get("compression") == "jpeg"  # a TIFF may


def _of_image(image: Image.Image, lossless: bool) -> Content:
    if "transparency" not in image.info and image.mode in ("1", "L"):
        return Content(np.asarray(image), lossless=lossless)
    clear = images.has_alpha(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        array = np.asarray(image)
        alpha = images.to_array(image, 4)[..., 3] if clear else None
        return Content(array.astype(array.dtype.newbyteorder("="), copy=False), alpha, lossless=lossless)
    pixels = images.to_array(image, 4)
    colours: NDArray[Any] = pixels[..., :3]
    if (low := deep.low_of(image)) is not None:
        colours = colours.astype(np.uint16) * 256 + images.to_array(low, 4)[..., :3]
    indices = np.asarray(image) if image.mode == "P" else None
    return Content(colours, pixels[..., 3] if clear else None, indices, lossless)


def _of_array(source: Any) -> Content:
    """Take apart an array, a list or a tensor (known by its `detach`, so that torch need not be imported)."""
    if tensor := hasattr(source, "detach"):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    try:
        array = np.asarray(source)
    except (ValueError, TypeError):
        raise DataError("a mask has the shape [H W], and the rows of this one are of different lengths") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"the values of a mask are boolean, integers or floats, and these are {array.dtype}")
    shape = list(array.shape)
    while array.ndim > 3 and len(array) == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] > 4 and (len(array) == 1 or (tensor and len(array) in (2, 3, 4))):
        if array.dtype == bool and (array != array[:1]).any():
            raise DataError(f"it holds {len(array)} masks, {shape}: give one of them, [H W]")
        array = np.moveaxis(array, 0, 2)
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] <= 4)):
        raise DataError(f"a mask has the shape [H W] or [H W C] with 1 to 4 channels, and this one is {shape}")
    if array.dtype.kind == "f" and array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    if array.ndim == 2:
        return Content(array, made=True)
    channels = array.shape[2]
    alpha = None if channels % 2 else _alpha(array[..., -1])
    return Content(array[..., 0] if channels < 3 else array[..., :3], alpha, made=True)


def _alpha(values: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return alpha of any number type as uint8, or None where all is opaque."""
    numbers = np.nan_to_num(values.astype(np.float64))
    top = numbers.max()
    opaque = next((full for full in (1, 255, 65535) if top <= full), top)
    alpha = np.rint((numbers / opaque).clip(0, 1) * 255).astype(np.uint8)
    return None if (alpha == 255).all() else alpha
