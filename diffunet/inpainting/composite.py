"""Putting a filling back into its image: outside the hole every byte stays as it was."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffunet.inpainting.masks import Hole, Mask
from diffunet.pictures import deep, images, notes, profiles, ranges

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
        return deep.from_values(np.asarray(image), "I;16")
    colours = "RGBA" if images.has_alpha(image) else "RGB"
    return image.convert({"1": "L", "La": "LA"}.get(image.mode, colours))


def composite(
    image: Image.Image, filled: images.Pixels, hole: Hole, weight: Mask | None = None, opaque: bool = False,
    range: ranges.Range | None = None,
) -> Image.Image:  # fmt: skip
    """Return an image with its hole [H W] replaced by `filled`.

    Args:
        image: an image in one of the modes of `editable`.
        filled: uint8 [H W C] with 1, 3 or 4 channels, whatever the mode of the image, in sRGB; it gets the colours of
            the image's profile.
        hole: where pixels change; all others keep every bit.
        weight: float32 [H W] in [0, 1], by which `filled` is blended in; None replaces the pixels.
        opaque: make the hole opaque; alpha stays as it is otherwise.
        range: what is black and white in more than 8 bits, as of a larger image; by default by this image alone.
    """
    pixels = deep.values_of(image).copy()
    flat = pixels[..., None] if pixels.ndim == 2 else pixels
    colours = flat[..., : flat.shape[2] - (image.mode in ("LA", "RGBA"))]
    full = np.iinfo(pixels.dtype).max if image.mode in ("LA", "RGBA") else 0
    new = _as_in(image, filled, range)[hole]  # [n colours]
    if weight is not None:
        w = weight[hole][:, None]
        if opaque and full:  # what could not be seen is not blended in
            seen = flat[..., -1:][hole].astype(np.float32) / full
            w = np.subtract(1, (1 - w) * seen, dtype=np.float32)
        old = np.nan_to_num(colours[hole], posinf=0, neginf=0)  # floats may be missing where they are to be filled in
        new = old * (1 - w) + new * w
    if image.mode != "F":  # a range may be wider than what the image can hold
        new = np.rint(new).clip(np.iinfo(pixels.dtype).min, np.iinfo(pixels.dtype).max)
    colours[hole] = new
    if opaque and full:
        flat[..., -1][hole] = full
    result = deep.from_values(pixels, image.mode)
    notes.put(result, notes.of(image))
    if image.mode == "I;16" and "transparency" in image.info and not opaque:  # no mode of 16 bits has alpha
        result.info["transparency"] = image.info["transparency"]
    return result


def _as_in(image: Image.Image, filled: images.Pixels, range: ranges.Range | None) -> NDArray[Any]:
    """Convert pixels [H W C], without their alpha, to colours as those of an image, [H W colours]."""
    rgb, grey = images.from_array(filled).convert("RGB"), image.mode not in ("RGB", "RGBA", "CMYK")
    if (profile := profiles.of(image, both_ways=True)) is not None:
        rgb = profile.from_srgb(rgb)  # which now has the mode of the profile
    if image.mode == "CMYK":
        return np.asarray(rgb if rgb.mode == "CMYK" else rgb.convert("CMYK"))
    values = np.asarray(rgb.convert("L"))[..., None] if grey else np.asarray(rgb)
    if deep.kind_of(image) is None:
        return values
    range = ranges.own(image) if range is None else range
    assert range is not None, "the image has more than 8 bits"
    return ranges.unscaled(values, image, range)
