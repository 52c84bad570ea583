"""The parts of an image that inpainting works on: read, cut out, put back; the rest of the image is only copied."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from diffunet.compute import enough_memory
from diffunet.errors import DataError, UsageError
from diffunet.inpainting import composite, masks, regions
from diffunet.pictures import deep, images

log = logging.getLogger(__name__)

_EIGHT_OF_SIXTEEN = "%s has 16 bits a colour, of which 8 can be read"


@dataclass(frozen=True)
class Masked:
    """An image in one of the modes of `composite.editable`, and what of it is to be filled in.

    `hole` bool [H W]; `weight` float32 [H W] blends what is filled in by it, None replaces; `opaque` makes the hole so.
    """

    picture: Image
    hole: masks.Hole
    weight: masks.Mask | None
    opaque: bool

    @cached_property
    def white(self) -> float:
        """See `images.white`."""
        if self.picture.mode not in ("I", "F"):
            return 255.0
        pixels = np.asarray(self.picture)  # what is erased says nothing of the rest
        known = np.where(self.hole, 0, pixels).astype(pixels.dtype)
        return images.white(composite.from_pixels(known, self.picture.mode))


@enough_memory("while the image and its mask are read: smaller ones take less")
def read(
    image: Image | str | Path,
    mask: Image | NDArray[Any] | str | Path | None = None,
    *,
    box: tuple[int, int, int, int] | None = None,
    invert: bool = False,
    soft: bool = False,
    feather: int = 0,
    resize_mask: bool = False,
    max_pixels: int = images.MAX_PIXELS,
) -> Masked:
    """An image and the hole in it: of a mask, of a box, or without both what is not opaque.

    Args:
        image: of any mode and size; a path is opened.
        mask: as `masks.read_mask` takes it; from half on it is hole.
        box: x0, y0, x1, y1, see `masks.box_mask`.
        invert: black = fill; with a box, what is outside.
        soft: the mask's grey is the weight, and all that is not 0 is hole.
        feather: the weight rises over this many pixels inside the hole, see `masks.feather`.
        resize_mask: a mask of another size is taken to the image's.
        max_pixels: larger images and masks are refused, before they are decoded.

    Raises:
        UsageError: arguments that do not go together; no mask; a mask of another size; a box outside.
        DataError: an image or mask that cannot be read, or that is too large.
        ResourceError: out of memory.
    """
    if mask is not None and box is not None:
        raise UsageError("a mask and a box are both given, and one says what to fill in: leave one out")
    if feather < 0:
        raise UsageError(f"feather is a number of pixels from 0 on, not {feather}")
    name = str(image) if isinstance(image, str | Path) else "the image"
    picture = composite.editable(_opened(image, name, max_pixels))
    if picture.info.get(deep.LOW, picture) is None:
        log.warning(_EIGHT_OF_SIXTEEN, name)
    width, height = picture.size
    weight = None
    if box is not None:
        hole = masks.box_mask(box, height, width) != invert
    elif mask is not None:
        given = _mask(mask, name, (height, width), invert, resize_mask, max_pixels)
        weight = masks.without_ringing(given) if soft else None
        hole = masks.hole_of(given) if weight is None else weight > 0
    else:
        clear = masks.alpha_hole(picture)
        if clear is None:
            raise UsageError(f"{name} has no transparent part to fill in: give a mask (white = fill)")
        hole = clear
    if feather:
        risen = masks.feather(hole, feather)
        weight = risen if weight is None else np.minimum(weight, risen)
    return Masked(picture, hole, weight, opaque=mask is None and box is None)


def _mask(
    mask: Image | NDArray[Any] | str | Path,
    name: str,
    shape: tuple[int, int],
    invert: bool,
    resize: bool,
    max_pixels: int,
) -> masks.Mask:
    called = f"mask {mask}" if isinstance(mask, str | Path) else "the mask"
    if not isinstance(mask, np.ndarray):
        mask = _opened(mask, called, max_pixels)
    weight = masks.read_mask(mask, invert=invert)
    if weight.shape == shape:
        return weight
    if resize:
        return masks.resize_mask(weight, *shape)
    (rows, columns), (height, width) = weight.shape, shape
    raise UsageError(
        f"{called} is {columns}x{rows}, and {name} {width}x{height}: make them one size, or have the mask resized "
        "(--resize-mask)"
    )


def _opened(image: Image | str | Path, name: str, max_pixels: int) -> Image:
    """An image, or a file of one, decoded if its header says that it is small enough. Raises DataError with `name`."""
    try:
        if isinstance(image, str | Path):
            return images.open_image(image, max_pixels=max_pixels)
        width, height = image.size
        if width * height > max_pixels:
            raise DataError(f"too large: {width} x {height} pixels, at most {max_pixels:,} are read")
        is_deep = deep.is_deep(image)
        image.load()
        if is_deep:
            log.warning(_EIGHT_OF_SIXTEEN + "; give the file instead", name)
        return image
    except DataError as error:
        hint = "; a higher max_pixels lets it through" if "too large" in str(error) else ""
        raise DataError(f"{name}: {error}{hint}") from None
    except (OSError, SyntaxError, ValueError) as error:  # an Image whose file is damaged, which shows only now
        raise DataError(f"{name}: damaged: {error}") from None


def parts(masked: Masked, size: int, fit: str = "auto") -> list[Part]:
    """What goes through a net of images of `size`, see `regions.choose`; nothing where the hole is empty."""
    if not masked.hole.any():
        return []
    return [Part(masked, region) for region in regions.choose(masked.hole, size, fit)]


@dataclass(frozen=True)
class Part:
    """A region of an image that goes through the net: only it is converted, since an image may have 100 megapixels."""

    masked: Masked
    region: regions.Region

    def cut(self, channels: int) -> tuple[images.Pixels, masks.Hole]:
        """The region's pixels uint8 [rows columns C] and gap bool [rows columns], see `regions.cut`."""
        whole = replace(self.region, top=0, left=0)
        pixels = images.to_array(self._crop(self.masked.picture), channels, white=self.masked.white)
        return regions.cut(pixels, self.masked.hole[self.region.box], whole)

    @enough_memory("while the image is put together: a smaller image, or a smaller num, takes less")
    def paste(self, pictures: Sequence[Image], filled: Sequence[images.Pixels]) -> None:
        """Put filling i, uint8 [rows columns C], into pictures[i], in place; they are copies of the masked picture,
        which other parts may have been put into already."""
        masked, region = self.masked, self.region
        hole = region.own(masked.hole)
        weight = None if masked.weight is None else masked.weight[region.box]
        for picture, one in zip(pictures, filled, strict=True):
            new = images.resize(one, region.height, region.width)
            for layer in (picture, deep.own_low(picture, masked.picture)):
                if layer is not None:  # 257 times 8 bits are 16: high and low bytes are the same
                    part = composite.composite(self._crop(layer), new, hole, weight, masked.opaque, masked.white)
                    layer.paste(part, (region.left, region.top))
            if masked.opaque:
                picture.info.pop("transparency", None)

    def levels(self, size: int) -> list[Part]:
        """This part for a net of images of `size`, after coarser ones of the same region: see `regions.pyramid`."""
        return [replace(self, region=level) for level in regions.pyramid(self.region, self.masked.hole, size)]

    def is_all_hole(self, size: int) -> bool:
        """Whether nothing is known of it, and it is seen by the net as one image of `size`."""
        shape = (self.region.rows, self.region.columns)
        return shape == (size, size) and bool(self.masked.hole[self.region.box].all())

    def _crop(self, picture: Image) -> Image:
        top, left = self.region.top, self.region.left
        return picture.crop((left, top, left + self.region.width, top + self.region.height))
