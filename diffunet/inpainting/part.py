"""An image with a hole: reading it, cutting out the parts that go through the net, and putting the fillings back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL.Image import Image

from diffunet import plain
from diffunet.compute import enough_memory
from diffunet.errors import DataError, UsageError
from diffunet.inpainting import composite, masks, regions
from diffunet.pictures import deep, given, images

log = logging.getLogger(__name__)
_EIGHT_OF_SIXTEEN = "%s has 16 bits a colour, of which 8 can be read"


@dataclass(frozen=True)
class Masked:
    """An image in one of the modes of `composite.editable`, the hole in it, bool [H W], and how to fill it.

    For `weight` and `opaque` see `composite.composite`.
    """

    picture: Image
    hole: masks.Hole
    weight: masks.Mask | None
    opaque: bool

    @cached_property
    def white(self) -> float:
        """The value that is white, see `images.white`, judged by the known pixels: what is erased is not looked at."""
        if self.picture.mode not in ("I", "F"):
            return 255.0
        pixels = np.asarray(self.picture)
        known = np.where(self.hole, 0, pixels).astype(pixels.dtype)
        return images.white(composite.from_pixels(known, self.picture.mode))


class ReadingOptions(TypedDict, total=False):
    """How an image and its mask are read: keywords of `read` and of `Pipeline.inpaint`."""

    box: tuple[int, int, int, int] | None
    """(x0, y0, x1, y1) in pixels, x1 and y1 not included: the hole, in place of a mask. None by default."""
    invert_mask: bool
    """The mask is black where it is to be filled; with a box, what is outside of it is the hole."""
    soft_mask: bool
    """The mask's grey is the weight of the filling, and all that is not 0 is hole."""
    feather: int
    """Over how many pixels inside the edge of the hole the image turns into the filling; see `masks.feather`."""
    resize_mask: bool
    """A mask of another size than the image is resized to it, in place of an error."""
    max_pixels: int
    """Larger images and masks are refused, before they are decoded; `images.MAX_PIXELS` by default."""


@enough_memory("while the image and its mask are read: smaller ones take less")
def read(
    image: Any, mask: Any = None, *,
    box: tuple[int, int, int, int] | None = None, invert_mask: bool = False, soft_mask: bool = False, feather: int = 0,
    resize_mask: bool = False, max_pixels: int = images.MAX_PIXELS,
) -> Masked:  # fmt: skip
    """Read an image of any mode and size, in any form of `given.picture`, such as a file's path, and the hole in it.

    A file is turned as its EXIF says, and keeps its EXIF but for thumbnails, which show the erased content; an
    Image keeps its `info`. The hole is that of a mask of the image's size (from half on it is hole, see
    `masks.read_mask`), or of a box, or without both what is not opaque. The other arguments are `ReadingOptions`.

    Raises:
        UsageError: arguments that do not go together; no mask; a mask of another size; a box outside of the image.
        DataError: an image or mask that cannot be read, or that is too large.
        ResourceError: out of memory.
    """
    max_pixels, feather = plain.integer("max_pixels", max_pixels), plain.integer("feather", feather, least=0)
    invert_mask, soft_mask = plain.flag("invert_mask", invert_mask), plain.flag("soft_mask", soft_mask)
    resize_mask, box = plain.flag("resize_mask", resize_mask), plain_box(box)
    image, mask = given.picture(image, max_pixels=max_pixels), given.opened(mask, "the mask", max_pixels)
    if mask is not None and box is not None:
        raise UsageError("a mask and a box are both given, and one says what to fill in: leave one out")
    name = str(image) if isinstance(image, str | Path) else "the image"
    picture = composite.editable(_opened(image, name, max_pixels))
    if picture.info.get(deep.LOW, picture) is None:
        log.warning(_EIGHT_OF_SIXTEEN, name)
    width, height = picture.size
    weight = None
    if box is not None:
        hole = masks.box_mask(box, height, width) != invert_mask
    elif mask is not None:
        mask_name = f"mask {mask}" if isinstance(mask, str | Path) else "the mask"
        source = mask if isinstance(mask, np.ndarray) else _opened(mask, mask_name, max_pixels)
        grey = masks.read_mask(source, invert=invert_mask)
        del source  # it may be large, and there are copies to come
        if grey.shape != (height, width):
            if not resize_mask:
                raise UsageError(
                    f"{mask_name} is {grey.shape[1]}x{grey.shape[0]}, and {name} {width}x{height}: make them one size, "
                    "or have the mask resized (--resize-mask)"
                )
            grey = masks.resize_mask(grey, height, width)
        weight = masks.without_ringing(grey) if soft_mask else None
        hole = masks.hole_of(grey) if weight is None else weight > 0
    elif (clear := masks.alpha_hole(picture)) is not None:
        hole = clear
    else:
        raise UsageError(f"{name} has no transparent part to fill in: give a mask (white = fill)")
    if feather:
        rising = masks.feather(hole, feather)
        weight = rising if weight is None else np.minimum(weight, rising)
    return Masked(picture, hole, weight, opaque=mask is None and box is None)


def plain_box(box: Any) -> tuple[int, int, int, int] | None:
    """Return a box in Python's integers. Raises UsageError for anything but four whole numbers, or None."""
    if box is None:
        return None
    try:
        corners = [] if isinstance(box, str | bytes | dict | set) else list(box)
    except TypeError:
        corners = []
    if len(corners) != 4:
        raise UsageError(f"box is four whole numbers (x0, y0, x1, y1), not {plain.shown(box)}")
    x0, y0, x1, y1 = (plain.integer("a corner of box", corner, least=-(2**31)) for corner in corners)
    return x0, y0, x1, y1


def _opened(image: Image | str | Path, name: str, max_pixels: int) -> Image:
    """Return a decoded image, if its header says that it is small enough. Raises DataError that begins with `name`."""
    try:
        if isinstance(image, str | Path):
            return images.open_image(image, max_pixels=max_pixels)
        width, height = image.size
        if width * height > max_pixels:
            raise DataError(f"too large: {width} x {height} pixels, at most {max_pixels:,} are read")
        is_deep = deep.is_deep(image)  # before it is loaded, which forgets it
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
    """Return the parts that go through a net of images of `size`, see `regions.choose`; none if nothing is missing."""
    chosen = regions.choose(masked.hole, size, fit) if masked.hole.any() else []
    return [Part(masked, region) for region in chosen]


@dataclass(frozen=True)
class Part:
    """A region of an image that goes through the net: only it is converted, since an image may have 100 megapixels."""

    masked: Masked
    region: regions.Region

    def cut(self, channels: int) -> tuple[images.Pixels, masks.Hole]:
        """Return the region's pixels, uint8 [rows columns C], and its hole, bool [rows columns], as the net sees them.

        Outside the hole that it returns, no pixel has a trace of what is in the hole of the image.
        """
        size, hole = (self.region.rows, self.region.columns), self.masked.hole[self.region.box]
        pixels = images.to_array(self._crop(self.masked.picture), channels, white=self.masked.white)
        if not self.region.resampled:
            return pixels, hole
        return masks.resize_known(pixels, hole, *size), masks.shrink(hole, *size)

    @enough_memory("while the image is put together: a smaller image, or a smaller num, takes less")
    def paste(self, pictures: Sequence[Image], filled: Sequence[images.Pixels]) -> None:
        """Put filling i, uint8 [rows columns C], into pictures[i], a copy of the masked picture, in place."""
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
        """Return coarser versions of this part, the coarsest first, and last the part itself: see `regions.pyramid`."""
        return [replace(self, region=level) for level in regions.pyramid(self.region, self.masked.hole, size)]

    def _crop(self, picture: Image) -> Image:
        rows, columns = self.region.box
        return picture.crop((columns.start, rows.start, columns.stop, rows.stop))
