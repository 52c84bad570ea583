"""Functions that convert and resize pictures. They alone know the nets' range [-1, 1].

Shapes: B images, C channels (1 grey, 3 RGB, 4 RGBA), H rows, W columns. Arrays are uint8 [H W C] or [B H W C] in
0..255, tensors float32 [B C H W] in [-1, 1]. What opens and saves pictures has its own rooms and is found here, too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from diffunet.errors import DataError, UsageError
from diffunet.pictures import deep, profiles, ranges
from diffunet.pictures.opening import LARGE as LARGE
from diffunet.pictures.opening import MAX_PIXELS as MAX_PIXELS
from diffunet.pictures.opening import decoding as decoding
from diffunet.pictures.opening import open_image as open_image
from diffunet.pictures.opening import own_pixel_cap, reasons
from diffunet.pictures.opening import read_bytes as read_bytes
from diffunet.pictures.ranges import Range
from diffunet.pictures.saving import is_lossless as is_lossless
from diffunet.pictures.saving import save as save

if TYPE_CHECKING:  # what reads a folder of images does without torch, which takes seconds to import
    from torch import Tensor

WHITE = (255, 255, 255)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for each number of channels
Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]  # RGB, 0..255
_STRIP = 2**22  # pixels that are converted at a time


def _converting(image: Image.Image) -> contextlib.AbstractContextManager[None]:
    return reasons("convert", f"cannot be converted from mode {image.mode}")


def to_array(
    image: Image.Image, channels: int, background: Colour = WHITE, range: Range | None = None, *, srgb: bool = False
) -> Pixels:
    """Return any Pillow image as uint8 [H W C] with C = `channels`, 1 (grey), 3 (RGB) or 4 (RGBA).

    With 1 or 3 channels a transparent image is laid over `background` (RGB, 0..255), before it is made grey. With 4
    channels alpha is kept; it is 255 where there is none. Of more than 8 bits, `range` says which values become 0 and
    255; by default the image's own values do, see `ranges.own`. With `srgb` the colours are converted from the image's
    colour profile to sRGB. An image that Pillow cannot convert to RGB raises DataError.
    """
    assert channels in MODES, channels
    with _converting(image):
        range = ranges.own(image) if range is None else range
        profile = profiles.of(image) if srgb else None
        array = np.empty((image.height, image.width, channels), np.uint8)
        for top, strip in _strips(image):
            array[top : top + strip.height] = _to_array(strip, channels, background, range, profile)
        return array


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the image in strips, each with its first row, since converting a piece takes many times its memory."""
    if (rows := max(1, _STRIP // max(1, image.width))) >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        with own_pixel_cap():
            strip = deep.crop(image, (0, top, image.width, min(top + rows, image.height)))
        yield top, strip


def _to_array(
    image: Image.Image, channels: int, background: Colour, range: Range | None, profile: profiles.Profile | None
) -> Pixels:
    alpha = _alpha(image)
    if range is not None and deep.kind_of(image):
        image = Image.fromarray(ranges.scaled(image, range))  # Pillow's own conversion would clip values at 255
    if profile is not None:
        image = profile.to_srgb({"RGB": _rgb, "L": _grey}.get(profile.mode, lambda cmyk: cmyk)(image))
    if channels == 4:
        colours = np.asarray(_rgb(image))
        return np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8) if alpha is None else np.asarray(alpha)])
    if alpha is not None:
        flat = Image.new("RGB", image.size, background)
        flat.paste(_rgb(image), mask=alpha)
        image = flat
    if channels == 3:
        return np.asarray(_rgb(image))
    return np.asarray(_grey(image))[..., None]


def _grey(image: Image.Image) -> Image.Image:
    return (image if image.mode in ("1", "L") else _rgb(image)).convert("L")


def has_alpha(image: Image.Image) -> bool:
    """Return whether any pixel of the image is not opaque, or raise DataError where that cannot be read."""
    with _converting(image):
        alphas = (_alpha(strip) for _, strip in _strips(image))
        return any(alpha is not None and alpha.getextrema()[0] != 255 for alpha in alphas)


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return alpha in mode L, or None where the mode has none and no colour is declared transparent."""
    if not image.has_transparency_data:
        return None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return image.getchannel(len(image.getbands()) - 1)
    if image.mode == "P":
        return image.convert("RGBA").getchannel("A")
    key, values = np.atleast_1d(np.asarray(image.info["transparency"])), np.asarray(image)
    if image.mode == "1":
        key = key > 0
    elif not image.mode.startswith("I") and key.max() > 255:  # the colour has 16 bits, of which Pillow kept 8
        key = key >> 8
    values = values.reshape(*values.shape[:2], -1)
    if key.size != values.shape[2]:
        raise DataError("damaged: its transparent colour does not fit its mode")
    return Image.fromarray(np.where((values == key).all(axis=2), np.uint8(0), np.uint8(255)))


def _rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB. Alpha is dropped, and colours that were multiplied by it are divided by it."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None
        return converted
    # P by way of RGBA, or Pillow warns about its transparency, which `_alpha` deals with.
    if between := {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}.get(image.mode):
        image = image.convert(between)
    return image if image.mode == "RGB" else image.convert("RGB")


def from_array(array: Pixels) -> Image.Image:
    """Return uint8 [H W C] with C 1, 3 or 4 as a Pillow image of mode L, RGB or RGBA."""
    assert array.dtype == np.uint8, array.dtype
    assert array.shape[2:] in {(c,) for c in MODES}, array.shape
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def to_float(array: Pixels | Tensor) -> Tensor:
    """Return uint8 [B H W C], an array or a tensor, as float32 [B C H W] in [-1, 1] on the same device."""
    import torch

    if isinstance(array, np.ndarray):
        array = torch.from_numpy(array if array.flags.writeable else array.copy())
    return array.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1


def to_uint8(x: Tensor) -> Pixels:
    """Return [B C H W] in [-1, 1] as uint8 [B H W C], rounded and clamped."""
    import torch

    scaled = ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def background_of(background: Colour, channels: int) -> tuple[int, ...]:
    """Return `background` (RGB) for an image of 1, 3 or 4 channels: as grey, as it is, or with alpha 0."""
    if channels == 1:
        return (int(to_array(Image.new("RGB", (1, 1), background), 1)[0, 0, 0]),)
    return background if channels == 3 else (*background, 0)


def resize(array: Pixels, height: int, width: int) -> Pixels:
    """Return uint8 [H W C] resized to [height width C] by an antialiased bicubic filter, or itself if it has that size.

    Colours of RGBA are weighted by alpha, so that those of transparent pixels do not bleed into the others.
    """
    if array.shape[:2] == (height, width):
        return array
    resized = from_array(array).resize((width, height), Image.Resampling.BICUBIC)  # Pillow multiplies by alpha itself
    return to_array(resized, array.shape[2])


def grid(images: Sequence[Pixels], columns: int | None = None, pad: int = 2) -> Image.Image:
    """Return equally large images, uint8 [H W C], row by row in one picture, with `pad` white pixels around each.

    Without `columns` it has about as many rows as columns. No images at all raise UsageError.
    """
    if not len(images):
        raise UsageError("there are no images to lay out in a grid")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    canvas = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 255, np.uint8)
    for n, image in enumerate(images):
        top, left = pad + n // columns * (height + pad), pad + n % columns * (width + pad)
        canvas[top : top + height, left : left + width] = image
    return from_array(canvas)
