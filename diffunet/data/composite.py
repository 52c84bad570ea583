"""Putting what was filled in back into the image: outside the mask every byte stays as it was."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffunet.data import images
from diffunet.data.images import Pixels
from diffunet.data.masks import Hole, Mask

SAME = ("L", "RGB", "LA", "RGBA", "I;16")
"""Modes that are kept. Others become the one of these that says the same pixels."""


def editable(image: Image.Image) -> Image.Image:
    """The image in a mode whose pixels can be set one by one: palettes become their colours, 1 bit becomes grey."""
    if image.mode in SAME:
        return image
    if image.mode in ("I;16B", "I;16L", "I;16N"):
        return image.convert("I;16")
    if image.mode == "1":
        return image.convert("L")
    if images.has_alpha(image):
        return image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def composite(
    image: Image.Image, filled: Pixels, hole: Hole, weight: Mask | None = None, opaque: bool = False
) -> Image.Image:
    """`image` with its hole [H W] replaced by `filled` uint8 [H W C].

    Args:
        image: in one of the modes of `editable`.
        filled: 1, 3 or 4 channels, whatever the mode of the image.
        hole: where pixels change; all others keep every bit.
        weight: float32 [H W] in [0, 1]: blend by it inside the hole, instead of replacing.
        opaque: make the hole opaque; alpha is untouched otherwise.
    """
    pixels = np.array(image)
    grey = image.mode in ("L", "LA", "I;16")
    new = images.to_array(images.from_array(filled).convert("RGB"), 1 if grey else 3).astype(np.float32)
    if image.mode == "I;16":
        new = new * 257
    flat = pixels[..., None] if pixels.ndim == 2 else pixels
    colours = flat.shape[2] - (image.mode in ("LA", "RGBA"))
    if weight is not None:
        w = weight[..., None]
        new = flat[..., :colours] * (1 - w) + new * w
    flat[..., :colours][hole] = np.rint(new).astype(pixels.dtype)[hole]
    if opaque and colours < flat.shape[2]:
        flat[..., colours][hole] = 255
    return Image.fromarray(pixels) if image.mode != "I;16" else _sixteen(pixels)


def _sixteen(pixels: np.ndarray) -> Image.Image:
    return Image.frombytes("I;16", (pixels.shape[1], pixels.shape[0]), pixels.astype("<u2").tobytes())
