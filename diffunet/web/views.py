"""What a browser shows of pictures and masks: pictures of any mode as PNGs of 8 bits in sRGB, masks as bits."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffunet.errors import Error
from diffunet.inpainting import masks, part
from diffunet.pictures import deep, images, profiles, ranges
from diffunet.pictures.ranges import Range, Ranges
from diffunet.web.limits import MASK_PIXELS

THUMBNAIL = 160
"""Pixels of the longer side of a picture in the list of a folder."""


def opened(path: Path, max_pixels: int) -> Image.Image:
    """Return the picture of a file as it is filled in: turned as its EXIF says, in a mode whose pixels can be set.

    Raises:
        DataError: it cannot be read, is too large, or has bands beside its colours.
        UsageError: it has several pages.
    """
    return part.picture_of(path, max_pixels)


def facts(picture: Image.Image, known: Ranges) -> dict[str, Any]:
    """Return what the page has to know of a picture, and the range of its values, where it has more than 8 bits."""
    width, height = picture.size
    share = min(1.0, math.sqrt(MASK_PIXELS / (width * height)))
    return {
        "width": width, "height": height,
        "mask": {"width": max(1, int(width * share)), "height": max(1, int(height * share))},
        "transparent": masks.alpha_hole(picture) is not None,
        "range": known.of(picture) or ranges.own(picture),
    }  # fmt: skip


def png(picture: Image.Image, width: int, height: int, range: Range | None) -> bytes:
    """Return a picture as a PNG of that size, which any browser shows; `range` is black and white in deep ones."""
    channels = 4 if images.has_alpha(picture) else 3
    srgb = profiles.of(picture) is not None
    array = images.to_array(picture, channels, range=range if deep.kind_of(picture) else None, srgb=srgb)
    content = io.BytesIO()
    images.from_array(images.resize(array, height, width)).save(content, "PNG", compress_level=1)
    return content.getvalue()


def thumbnail(path: Path, max_pixels: int) -> bytes:
    """Return a small picture of a file as a PNG: a grey square where it cannot be read."""
    try:
        with images.decoding(path, draft=THUMBNAIL, max_pixels=max_pixels) as decoded:
            share = min(1.0, THUMBNAIL / max(decoded.image.size))
            width, height = (max(1, round(side * share)) for side in decoded.image.size)
            return png(decoded.image, width, height, None)
    except Error:
        return png(Image.new("RGB", (THUMBNAIL, THUMBNAIL), (128, 128, 128)), THUMBNAIL, THUMBNAIL, None)


def hole(image: Path, mask: Path | None, invert: bool, max_pixels: int, width: int, height: int) -> dict[str, Any]:
    """Return how a mask is understood, or without one what is transparent, as JSON has it, for a mask of that size.

    `bits` has a bit for each pixel, row after row, the most significant one first, in base64; 1 is filled.

    Raises:
        DataError, UsageError: as `part.read`.
    """
    given = mask is not None
    read = part.read(image, mask, invert_mask=invert and given, resize_mask=given, max_pixels=max_pixels)
    found = read.hole
    if found.shape != (height, width):
        found = masks.resize_mask(found.astype(np.float32), height, width) >= 0.5
    bits = base64.b64encode(np.packbits(found.reshape(-1)).tobytes()).decode()
    return {"width": width, "height": height, "bits": bits, "said": list(read.said)}
