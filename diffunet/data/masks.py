"""Masks: reading them, taking them to another resolution, and drawing some.

A mask is float32 [H W] in [0, 1], 1 where the image is to be filled; a hole is its boolean form, True there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffunet.data import images
from diffunet.data.images import Pixels
from diffunet.errors import DataError, UsageError

Mask = NDArray[np.float32]
Hole = NDArray[np.bool_]
KINDS = ("box", "half", "stroke")

_BLACK = (0, 0, 0)


def read_mask(source: str | Path | Image.Image | NDArray[Any], *, invert: bool = False) -> Mask:
    """A mask, float32 [H W] in [0, 1], 1 = fill, from an image of any mode (alpha over black) or from an array.

    Arrays are [H W] or [H W C]: boolean, float in [0, 1], or uint8 (0..255, or 0 and 1). `invert` is for black = fill.

    Raises:
        DataError: a file that is no image, or an array of another shape, type or range; the message names the file.
    """
    if isinstance(source, np.ndarray):
        mask = _from_array(source)
    elif isinstance(source, Image.Image):
        mask = _from_image(source)
    else:
        try:
            mask = _from_image(images.open_image(source))
        except DataError as error:
            raise DataError(f"mask {source}: {error}") from None
    return np.subtract(1, mask, dtype=np.float32) if invert else mask


def _from_image(image: Image.Image) -> Mask:
    return np.divide(images.to_array(image, 1, _BLACK)[..., 0], 255, dtype=np.float32)


def _from_array(array: NDArray[Any]) -> Mask:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] in (3, 4):
        return _from_image(images.from_array(array))
    if array.ndim != 2 or array.size == 0:
        raise DataError(f"a mask has the shape [H W], and this array is {list(array.shape)}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"a mask is boolean, uint8 or float, and this array is {array.dtype}")
    if array.dtype.kind in "iu" and array.max() > 1:
        array = np.divide(array, 65535 if array.dtype == np.uint16 else 255, dtype=np.float32)
    if not (array.min() >= 0 and array.max() <= 1):  # false for NaN, too
        raise DataError("the values of a mask are False and True, 0 to 255 or 0.0 to 1.0, and this array has others")
    return array.astype(np.float32)


def hole_of(mask: Mask) -> Hole:
    """Where a mask [H W] is at least a half."""
    return mask >= 0.5


def alpha_hole(image: Image.Image) -> Hole | None:
    """bool [H W], where the image is less than opaque; None where it is opaque all over."""
    if not images.has_alpha(image):
        return None
    return images.to_array(image, 4)[..., 3] < 255


def shrink(hole: Hole, height: int, width: int) -> Hole:
    """A hole [H W] at another resolution [height width]: a pixel belongs to it as soon as `resize_known` would use any
    pixel of the hole for it. A stroke of one pixel so survives any shrinking, and nothing of what is in the hole leaks.
    """
    return _touches(_touches(hole, height).T, width).T


def _touches(hole: Hole, size: int) -> Hole:
    """bool [n w] to [size w]: whether any of the rows that the triangle filter weighs for an output row is set.

    Pillow weighs row x of n for output row i of m by a triangle around the centre c = (i + 1/2) n/m that reaches
    s = max(n/m, 1) to each side: where |x + 1/2 - c| < s. In integers, multiplied by 2m, it is exact.
    """
    n, m = hole.shape[0], size
    centre, reach = (2 * np.arange(m) + 1) * n, 2 * max(n, m)
    first = np.maximum((centre - reach - m) // (2 * m) + 1, 0)
    end = np.minimum(-((m - centre - reach) // (2 * m)), n)
    counts = np.zeros((n + 1, hole.shape[1]), np.int32)
    np.cumsum(hole, axis=0, out=counts[1:])
    touched: Hole = counts[end] > counts[first]
    return touched


def resize_known(image: Pixels, hole: Hole, height: int, width: int) -> Pixels:
    """uint8 [H W C] to [height width C] by an antialiased triangle filter, with the hole [H W] black.

    What it gives is made of known pixels alone outside `shrink(hole, height, width)`; inside it means nothing.
    """
    known = np.where(hole[..., None], np.uint8(0), image)
    resized = images.from_array(known).resize((width, height), Image.Resampling.BILINEAR)
    return images.to_array(resized, image.shape[2])


def random_mask(kind: str, height: int, width: int, generator: np.random.Generator) -> Hole:
    """bool [height width]: a "box" of 30 to 60% of each side, a "half" (one of four), or a few brush "stroke"s.

    Raises UsageError for another kind.
    """
    hole = np.zeros((height, width), bool)
    if kind == "box":
        h, w = (max(1, round(side * generator.uniform(0.3, 0.6))) for side in (height, width))
        top, left = int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1))
        hole[top : top + h, left : left + w] = True
    elif kind == "half":
        rows, columns = slice(None), slice(None)
        match int(generator.integers(4)):
            case 0:
                rows = slice(height // 2)
            case 1:
                rows = slice(height // 2, None)
            case 2:
                columns = slice(width // 2)
            case _:
                columns = slice(width // 2, None)
        hole[rows, columns] = True
    elif kind == "stroke":
        hole = _strokes(height, width, generator)
    else:
        raise UsageError(f"no mask kind {kind!r}; there are {', '.join(KINDS)}")
    return hole


def _strokes(height: int, width: int, generator: np.random.Generator) -> Hole:
    """One to four brushes that wander and turn, each about a tenth of the image wide."""
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    side = min(height, width)
    for _ in range(int(generator.integers(1, 5))):
        brush = max(1, round(side * generator.uniform(0.05, 0.15)))
        point = generator.random(2) * (width, height)
        angle = generator.uniform(0, 2 * np.pi)
        for _ in range(int(generator.integers(4, 9))):
            angle += generator.normal(0, 0.7)
            step = side * generator.uniform(0.1, 0.3)
            following = (point + step * np.array([np.cos(angle), np.sin(angle)])).clip(0, (width - 1, height - 1))
            draw.line([*point, *following], fill=255, width=brush)
            for x, y in (point, following):  # round ends and joints
                draw.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=255)
            point = following
    return np.asarray(canvas) > 0
