"""The part of an image that inpainting works on: read, cut out, put back; the rest of the image is only copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from diffunet.data import composite, images, masks, regions
from diffunet.devices import enough_memory
from diffunet.errors import DataError, UsageError


@enough_memory("while the image and its mask are read: smaller ones take less")
def read(
    image: Image | str | Path,
    mask: Image | NDArray[Any] | str | Path | None,
    invert: bool,
    soft: bool,
    max_pixels: int,
) -> tuple[Image, masks.Hole, masks.Mask | None]:
    """The image in an editable mode, the hole [H W], and where it is soft its weight [H W]."""
    name = str(image) if isinstance(image, str | Path) else "the image"
    picture = composite.editable(_opened(image, name, max_pixels))
    if mask is None:
        hole = masks.alpha_hole(picture)
        if hole is None:
            raise UsageError(f"{name} has no transparent part to fill in: give a mask (white = fill)")
        return picture, hole, None
    if not isinstance(mask, np.ndarray):
        mask = _opened(mask, f"mask {mask}" if isinstance(mask, str | Path) else "the mask", max_pixels)
    weight = masks.read_mask(mask, invert=invert)
    (width, height), (rows, columns) = picture.size, weight.shape
    if (rows, columns) != (height, width):
        raise UsageError(f"the mask is {columns}x{rows}, and {name} {width}x{height}: make them one size")
    return (picture, weight > 0, weight) if soft else (picture, masks.hole_of(weight), None)


def _opened(image: Image | str | Path, name: str, max_pixels: int) -> Image:
    """An image, or a file of one, decoded if its header says that it is small enough. Raises DataError with `name`."""
    try:
        if isinstance(image, str | Path):
            return images.open_image(image, max_pixels=max_pixels)
        width, height = image.size
        if width * height > max_pixels:
            raise DataError(f"too large: {width} x {height} pixels, at most {max_pixels:,} are read")
        image.load()
        return image
    except DataError as error:
        hint = "; a higher max_pixels lets it through" if "too large" in str(error) else ""
        raise DataError(f"{name}: {error}{hint}") from None
    except (OSError, SyntaxError, ValueError) as error:  # an Image whose file is damaged, which shows only now
        raise DataError(f"{name}: damaged: {error}") from None


@dataclass(frozen=True)
class Part:
    """The region of an image that goes through the net: only it is converted, since an image may have 100 megapixels.

    `hole` and `weight` [H W] are of the whole `picture`; `opaque` makes the hole so.
    """

    picture: Image
    hole: masks.Hole
    weight: masks.Mask | None
    region: regions.Region
    opaque: bool

    @property
    def alone(self) -> regions.Region:
        """The region, in an image that is nothing else."""
        return replace(self.region, top=0, left=0)

    def crop(self) -> Image:
        top, left = self.region.top, self.region.left
        return self.picture.crop((left, top, left + self.region.width, top + self.region.height))

    def cut(self, channels: int) -> tuple[images.Pixels, masks.Hole]:
        """See `regions.cut`."""
        return regions.cut(images.to_array(self.crop(), channels), self.hole[self.region.box], self.alone)

    @enough_memory("while the image is put together: a smaller image, or a smaller num, takes less")
    def paste(self, filled: Sequence[images.Pixels]) -> list[Image]:
        """The picture with each of these fillings [rows columns C]."""
        part, hole = self.crop(), self.hole[self.region.box]
        weight = None if self.weight is None else self.weight[self.region.box]
        done = []
        for one in filled:
            changed = composite.composite(part, regions.paste(one, self.alone, *hole.shape), hole, weight, self.opaque)
            whole = self.picture.copy()
            whole.info = changed.info
            whole.paste(changed, (self.region.left, self.region.top))
            done.append(whole)
        return done
