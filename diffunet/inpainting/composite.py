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
        if deep.LOW in image.info and converted.mode != image.mode:
            converted.info[deep.LOW] = None  # the low bytes of the colours in this mode are not known
    return converted


def _editable(image: Image.Image) -> Image.Image:
    if image.mode in ("1", "L", "RGB") and images.has_alpha(image):
        pixels = images.to_array(image, 4)
        return images.from_array(pixels) if image.mode == "RGB" else Image.fromarray(pixels[..., [0, 3]])
    if image.mode in ("L", "RGB") and "transparency" in image.info:  # a colour that no pixel has, but a filled one may
        image = image.copy()
        del image.info["transparency"]
    if image.mode in SAME:
        return image
    if image.mode in ("I;16B", "I;16L", "I;16N"):  # big-endian TIFF; Pillow's own conversion clips at 255
        return deep.from_values(np.asarray(image), "I;16")
    colours = "RGBA" if images.has_alpha(image) else "RGB"
    converted = image.convert({"1": "L", "La": "LA"}.get(image.mode, colours))
    converted.info.pop("transparency", None)  # an entry of a palette that no pixel has; others may have its colour
    return converted


def composite(
    image: Image.Image, filled: images.Pixels, hole: Hole, weight: Mask | None = None, range: ranges.Range | None = None
) -> Image.Image:
    """Return an image with its hole [H W] replaced by `filled`, or lying over it, as far as it stays.

    Of the old image a share (1 - weight) * alpha stays, behind which the filling shows. So a weight of 0 fills in what
    is transparent and keeps soft shadows, and one of 1 (or None) leaves nothing of what was there. What is filled in is
    opaque, unless `filled` has an alpha of its own and the image can hold it; else that is laid over white.

    Args:
        image: an image in one of the modes of `editable`, with the low bytes of its colours, if any; see `deep`.
        filled: uint8 [H W C] with 1, 3 or 4 channels, whatever the mode of the image, in sRGB; it gets the colours of
            the image's profile.
        hole: where pixels change; all others keep every bit.
        weight: float32 [H W] in [0, 1], by which `filled` is blended in; None replaces the pixels.
        range: what is black and white in more than 8 bits, as of a larger image; by default by this image alone.
    """
    pixels = deep.values_of(image).copy()
    flat = pixels[..., None] if pixels.ndim == 2 else pixels
    clear = image.mode in ("LA", "RGBA")
    opaque = np.iinfo(pixels.dtype).max if clear else 0
    new: NDArray[Any] = _as_in(image, filled, range)[hole]  # [n colours]
    old: NDArray[Any] = flat[hole]
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
    if image.mode != "F":  # a range may be wider than what the image can hold
        new = np.rint(new).clip(np.iinfo(pixels.dtype).min, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    key = image.info.get("transparency") if image.mode == "I;16" else None  # no mode of 16 bits has alpha
    if isinstance(key, int):
        new[new == key] += -1 if key == 65535 else 1
    flat[hole] = new
    result = deep.from_values(pixels, image.mode)
    notes.put(result, notes.of(image))
    if key is not None:
        result.info["transparency"] = key
    return result


def _as_in(image: Image.Image, filled: images.Pixels, range: ranges.Range | None) -> NDArray[Any]:
    """Convert pixels [H W C], without their alpha, to colours as those of an image, [H W colours]."""
    if image.mode in ("LA", "RGBA"):
        filled = filled[..., :3]  # its alpha is kept apart
    rgb = images.from_array(images.to_array(images.from_array(filled), 3))
    if (profile := profiles.of(image, both_ways=True)) is not None:
        rgb = profile.from_srgb(rgb)  # which now has the mode of the profile
    if image.mode == "CMYK":
        return np.asarray(rgb if rgb.mode == "CMYK" else rgb.convert("CMYK"))
    grey = image.mode not in ("RGB", "RGBA")
    values = np.asarray(rgb.convert("L"))[..., None] if grey else np.asarray(rgb)
    if deep.kind_of(image) is None:
        return values
    range = ranges.own(image) if range is None else range
    assert range is not None, "the image has more than 8 bits"
    return ranges.unscaled(values, image, range)
