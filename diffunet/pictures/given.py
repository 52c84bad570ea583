"""Pictures as Python programs have them: arrays, tensors, open files and bytes become Pillow images."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from diffunet import plain
from diffunet.errors import DataError, UsageError
from diffunet.pictures import deep, images, opening

TAKES = (
    "a picture is a path, a Pillow image, an array [H W] or [H W C], a tensor [C H W], an open binary file or its bytes"
)
CHANNELS = (1, 2, 3, 4)
"""How many channels a picture has: grey, grey and alpha, RGB, RGBA."""


def picture(
    given: Any, name: str = "the image", max_pixels: int = images.MAX_PIXELS, *, page: int | None = 1
) -> Image.Image | Path:
    """Return any form of a picture as a Pillow image, or as the path of its file, which is not opened.

    Arrays are [H W] or [H W C], tensors [C H W], of 1 to 4 channels (grey, grey and alpha, RGB, RGBA); where only the
    other order can be meant, it is taken. Booleans are black and white, uint8 is 0 to 255, uint16 0 to 65,535, floats
    are 0 to 1 and are rounded to 8 bits; other integers are 0 to 255 with colours, and stay what they are without.
    Of an open file, or its bytes, `page` is taken, from 1 on; None is the only one.

    Raises:
        UsageError: something else, an array of another shape, or a file of several pages of which none is chosen.
        DataError: a file that cannot be decoded, or an array whose values are no colours.
    """
    given = opened(given, name, max_pixels, page)
    if isinstance(given, Image.Image | Path):
        return given
    is_tensor = hasattr(given, "detach") and hasattr(given, "numpy")
    if not is_tensor and not hasattr(given, "__array__"):
        raise UsageError(f"{name}: {TAKES}, not {plain.shown(given)}")
    return _from_array(_channels_last(_array(given, name), is_tensor, name), name)


def opened(given: Any, name: str, max_pixels: int = images.MAX_PIXELS, page: int | None = 1) -> Any:
    """Return a path as a Path, and what an open binary file or bytes hold as a Pillow image; all else as it is.

    Raises:
        UsageError: a file that is opened as text, or one without such a `page`, see `picture`.
        DataError: no image, or a damaged one.
    """
    if isinstance(given, str | os.PathLike):
        return plain.path(name, given)
    if isinstance(given, Image.Image):
        return given
    content = bytes_of(given, name)
    if content is None:
        return given
    try:
        place = opening.place_of_page(content, "", page, name)
        return images.open_image(content, max_pixels=max_pixels, page=place)
    except DataError as error:
        hint = "; a higher max_pixels lets it through" if "too large" in str(error) else ""
        raise DataError(f"{name}: {error}{hint}") from None


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF says, as that of a path is, and without that mark; itself if it is upright."""
    with contextlib.suppress(Exception):  # the picture is sound, only what is said about it is not
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def bytes_of(file: Any, name: str) -> bytes | None:
    """Return bytes, or all that an open file holds, from its start where it can go there, as Pillow does; else None.

    Raises:
        UsageError: a file that is opened as text.
        DataError: one that cannot be read, or of more than 1 GiB.
    """
    if isinstance(file, bytes | bytearray | memoryview):
        return bytes(file)
    if not callable(getattr(file, "read", None)):
        return None
    try:
        if callable(getattr(file, "seek", None)) and getattr(file, "seekable", lambda: True)():
            file.seek(0)
        content = file.read(opening.MAX_BYTES + 1)
    except UnicodeDecodeError:
        content = ""  # of a text, which a picture is not
    except Exception as error:
        raise DataError(f"{name}: the file cannot be read: {error or type(error).__name__}") from None
    if not isinstance(content, bytes):
        raise UsageError(f"{name}: the file is opened as text; open it with mode 'rb'")
    if len(content) > opening.MAX_BYTES:
        raise DataError(f"{name}: larger than 1 GiB")
    return content


def _array(given: Any, name: str) -> NDArray[Any]:
    try:
        if hasattr(given, "detach"):
            given = given.detach().cpu()
            given = given.float() if given.is_floating_point() else given  # numpy has no bfloat16
            given = given.numpy()
        array = np.asarray(given)
    except Exception as error:
        raise UsageError(
            f"{name}: {plain.shown(given)} cannot be made an array: {' '.join(str(error).split())}"
        ) from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{name}: an array of {array.dtype} is no picture; give booleans, uint8, uint16 or floats")
    return array


def _channels_last(array: NDArray[Any], is_tensor: bool, name: str) -> NDArray[Any]:
    """Return an array [H W] or [H W C] of any of the shapes that `picture` takes."""
    shape = [*array.shape]
    if array.ndim == 2 and array.size:
        return array
    if array.ndim != 3 or not array.size:
        one = "; give one picture at a time, such as x[0]" if array.ndim == 4 else ""
        raise UsageError(f"{name}: a picture is [H W], [H W C] or, as a tensor, [C H W], and this is {shape}{one}")
    first, last = (array.shape[axis] in CHANNELS for axis in (0, 2))
    if not first and not last:
        raise UsageError(f"{name}: a picture has 1 to 4 channels, first or last, and this is {shape}")
    leads = first and (is_tensor or not last)
    array = array.transpose(1, 2, 0) if leads else array
    return array[..., 0] if array.shape[2] == 1 else array


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    """Return [H W] or [H W C] as an image of a mode that holds its values."""
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN, too
            found = "NaN" if np.isnan(low) or np.isnan(high) else f"{low:g} to {high:g}"
            raise DataError(
                f"{name}: floats of a picture are from 0 to 1, and these are {found}: scale them, or give uint8; a "
                "Pillow image of mode F may have any"
            )
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype.kind == "b":
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype not in (np.uint8, np.uint16):
        if array.ndim == 2 and (low < 0 or high > 255):
            if low < -(2**31) or high >= 2**31:
                raise DataError(f"{name}: integers of a picture have 32 bits, and these are {low} to {high}")
            return Image.fromarray(np.ascontiguousarray(array.astype(np.int32)))
        if low < 0 or high > 255 or high == 1:  # 0 and 1 may be black and white, or almost black
            raise DataError(f"{name}: {array.dtype} from {low} to {high} says not what is white; give uint8 or uint16")
        array = array.astype(np.uint8)
    if array.dtype == np.uint16:
        if array.ndim == 2:
            return Image.frombytes("I;16", array.shape[::-1], array.astype("<u2").tobytes())
        if array.shape[2] == 2:  # there is no grey with alpha of 16 bits
            array = array[..., [0, 0, 0, 1]]
        image, rest = _eight_bits(array >> 8), _eight_bits(array & 255)
        image.info[deep.LOW] = rest
        return image
    return _eight_bits(array)


def _eight_bits(array: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))
