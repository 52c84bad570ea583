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
    """The image in a mode whose pixels can be set one by one: palettes become their colours, 1 bit becomes grey, and a
    transparent colour becomes alpha."""
    if image.mode in ("1", "L", "RGB") and images.has_alpha(image):
        pixels = images.to_array(image, 4)
        return images.from_array(pixels) if image.mode == "RGB" else Image.fromarray(pixels[..., [0, 3]])
    if image.mode in SAME:
        return image
    if image.mode in ("I;16B", "I;16L", "I;16N"):  # big-endian TIFF; Pillow's own conversion clips at 255
        return _sixteen(np.asarray(image))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("I", "F"):  # 32 bits: Pillow would clip them at 255
        return images.from_array(images.to_array(image, 1))
    if image.mode == "La":
        return image.convert("LA")
    return image.convert("RGBA" if images.has_alpha(image) else "RGB")


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
    if image.mode != "I;16":
        return Image.fromarray(pixels)
    result = _sixteen(pixels)
    if "transparency" in image.info and not opaque:  # there is no mode of 16 bits with alpha
        result.info["transparency"] = image.info["transparency"]
    return result


def _sixteen(pixels: np.ndarray) -> Image.Image:
    return Image.frombytes("I;16", (pixels.shape[1], pixels.shape[0]), pixels.astype("<u2").tobytes())
