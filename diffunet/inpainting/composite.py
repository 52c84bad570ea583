"""Putting a filling back into its image: outside the hole every byte stays as it was."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffunet.inpainting.masks import Hole, Mask
from diffunet.pictures import deep, images, notes

SAME = ("L", "RGB", "LA", "RGBA", "I;16", "I", "F", "CMYK")
"""Modes of images that stay as they are. Others become the one of these that can hold the same pixels."""


def editable(image: Image.Image) -> Image.Image:
    """Return the image in a mode whose pixels can be set one by one; what `notes.of` says of it stays.

    Palettes become their colours, 1 bit becomes grey, and a transparent colour becomes alpha.
    """
    converted = _editable(image)
    if converted is not image:
        notes.put(converted, notes.of(image))
        if deep.LOW in image.info:
            converted.info[deep.LOW] = None  # the low bytes of the colours in this mode are not known
    return converted


def _editable(image: Image.Image) -> Image.Image:
    if image.mode in ("1", "L", "RGB") and images.has_alpha(image):
        pixels = images.to_array(image, 4)
        return images.from_array(pixels) if image.mode == "RGB" else Image.fromarray(pixels[..., [0, 3]])
    if image.mode in SAME:
        return image
    if image.mode in ("I;16B", "I;16L", "I;16N"):  # big-endian TIFF; Pillow's own conversion clips at 255
        return from_pixels(np.asarray(image), "I;16")
    colours = "RGBA" if images.has_alpha(image) else "RGB"
    return image.convert({"1": "L", "La": "LA"}.get(image.mode, colours))


def composite(
    image: Image.Image, filled: images.Pixels, hole: Hole, weight: Mask | None = None, white: float | None = None
) -> Image.Image:
    """Return an image with its hole [H W] replaced by `filled`, or lying over it, as far as it stays.

    Of the old image a share (1 - weight) * alpha stays, behind which the filling shows. So a weight of 0 fills in what
    is transparent and keeps soft shadows, and one of 1 (or None) leaves nothing of what was there. What is filled in is
    opaque, unless `filled` has an alpha of its own and the image can hold it; else that is laid over white.

    Args:
        image: an image in one of the modes of `editable`, with the low bytes of its colours, if any; see `deep`.
        filled: uint8 [H W C] with 1, 3 or 4 channels, whatever the mode of the image.
        hole: where pixels change; all others keep every bit.
        weight: float32 [H W] in [0, 1], by which `filled` is blended in; None replaces the pixels.
        white: the value that is white in modes I and F, where the image is a part of a larger one; see `images.white`.
    """
    pixels, low = np.array(image), deep.low_of(image)
    flat = pixels[..., None] if pixels.ndim == 2 else pixels
    clear = image.mode in ("LA", "RGBA")
    new = _in_mode(filled, image.mode, images.white(image) if white is None else white)[hole]  # [n colours]
    old: NDArray[Any] = flat[hole]
    if low is not None:  # 257 times 8 bits are 16
        deeper = np.asarray(low)[hole]
        old, new = old.astype(np.uint16) * 256 + deeper, new * np.uint16(257)
    opaque = 65535 if low is not None else 255
    made: NDArray[Any] | None = filled[hole][:, 3:] / np.float32(255) if clear and filled.shape[2] == 4 else None
    if weight is not None:
        kept = (1 - weight[hole][:, None]) * (old[:, -1:] / np.float32(opaque) if clear else 1)
        colours = np.nan_to_num(old[:, : new.shape[1]], posinf=0, neginf=0)  # floats may be missing in a hole
        if made is None:
            new = colours * kept + new * (1 - kept)
        else:
            alpha = kept + made * (1 - kept)
            over = np.divide(kept, alpha, out=np.zeros_like(kept), where=alpha > 0)
            new, made = colours * over + new * (1 - over), alpha
    if clear:
        new = np.concatenate([new, np.full((len(new), 1), opaque) if made is None else made * opaque], axis=1)
    if image.mode != "F":
        new = np.rint(new).astype(np.uint16 if low is not None else pixels.dtype)
    key = image.info.get("transparency") if image.mode == "I;16" else None  # no mode of 16 bits has alpha
    if isinstance(key, int):
        new[new == key] += -1 if key == 65535 else 1
    if low is not None:
        flat[hole], deeper_pixels = new >> 8, np.array(low)
        deeper_pixels[hole] = new & 255
    else:
        flat[hole] = new
    result = from_pixels(pixels, image.mode)
    notes.put(result, notes.of(image))
    if low is not None:
        result.info[deep.LOW] = from_pixels(deeper_pixels, image.mode)
    if key is not None:
        result.info["transparency"] = key
    return result


def _in_mode(filled: images.Pixels, mode: str, white: float) -> NDArray[Any]:
    """Convert pixels [H W C] to the colours of a mode, without alpha, [H W colours]."""
    if mode in ("LA", "RGBA"):
        filled = filled[..., :3]  # its alpha is kept apart
    grey = mode not in ("RGB", "RGBA", "CMYK")
    colours = images.to_array(images.from_array(filled), 1 if grey else 3)
    if mode == "CMYK":
        return np.asarray(images.from_array(colours).convert("CMYK"))
    return colours * (257.0 if mode == "I;16" else white / 255) if mode in ("I;16", "I", "F") else colours


def from_pixels(pixels: NDArray[Any], mode: str) -> Image.Image:
    """Return an array [H W] or [H W C] of the values of a mode as an image of it."""
    data = pixels.astype("<u2") if mode == "I;16" else pixels
    return Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), data.tobytes())
