"""How an image of any size meets a model of one size: which part goes through the net, and at what resolution."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from diffunet.data import images, masks
from diffunet.data.images import Pixels
from diffunet.data.masks import Hole
from diffunet.errors import UsageError

FITS = ("auto", "crop", "native")

CONTEXT = 1.5
"""A cropped region is at least this many times the hole: what is filled in has to go with something."""

NATIVE_PIXELS = 2_000_000
"""Most pixels that go through the net at once: above, memory runs out before anything is seen."""


@dataclass(frozen=True)
class Region:
    """The part of an image from (top, left), `height` x `width`, which goes through the net as `rows` x `columns`."""

    fit: str
    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int

    @property
    def box(self) -> tuple[slice, slice]:
        """To index an image [H W ...] with."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def resampled(self) -> bool:
        """Whether the net works at another resolution than the image."""
        return (self.rows, self.columns) != (self.height, self.width)

    def __str__(self) -> str:
        text = f"{self.fit}: {self.width}x{self.height} at ({self.left}, {self.top})"
        return f"{text}, through the net as {self.columns}x{self.rows}" if self.resampled else text


def choose(hole: Hole, size: int, fit: str = "auto") -> Region:
    """The region to work on.

    native: the whole image at its own resolution, whatever its size.
    crop: a region round the hole, at least `size` wide and high where the image is, with room for context, resampled to
    `size` where it is larger (or the image smaller).
    auto: native for images of about the model's size, else crop.

    Args:
        hole: bool [H W], with at least one True.
        size: of the images that the model was trained on.

    Raises:
        UsageError: an unknown `fit`, or an image too large for native.
    """
    if fit not in FITS:
        raise UsageError(f"unknown fit {fit!r}; there are {', '.join(FITS)}")
    height, width = hole.shape
    if fit == "auto":
        fit = "native" if min(height, width) >= 0.75 * size and max(height, width) <= 2 * size else "crop"
    if fit == "native":
        if height * width > NATIVE_PIXELS:
            raise UsageError(
                f"fit native takes images of up to {NATIVE_PIXELS} pixels, not {width}x{height}; take crop"
            )
        return Region("native", 0, 0, height, width, height, width)
    ys, xs = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    side = max(size, ceil(CONTEXT * max(ys[-1] - ys[0] + 1, xs[-1] - xs[0] + 1)))
    region_h, region_w = min(side, height), min(side, width)
    top = _place(ys[0], ys[-1], region_h, height)
    left = _place(xs[0], xs[-1], region_w, width)
    scale = size / min(region_h, region_w)
    rows, columns = max(size, round(region_h * scale)), max(size, round(region_w * scale))
    if rows * columns > max(NATIVE_PIXELS, 2 * size * size):
        raise UsageError(
            f"an image of {width}x{height} pixels with a hole of {xs[-1] - xs[0] + 1}x{ys[-1] - ys[0] + 1} is too long "
            "for its short side; mask and fill it piece by piece"
        )
    return Region("crop", top, left, region_h, region_w, rows, columns)


def _place(first: int, last: int, length: int, limit: int) -> int:
    """Where a stretch of `length` begins that has first ... last in its middle and stays within 0 ... limit."""
    middle = (int(first) + int(last) + 1 - length) // 2
    return min(max(0, middle), limit - length)


def cut(pixels: Pixels, hole: Hole, region: Region) -> tuple[Pixels, Hole]:
    """The region's pixels [rows columns C] and hole [rows columns], at the resolution of the net.

    Outside the hole that it gives, no pixel has a trace of what is in the hole of the image.
    """
    pixels, hole = pixels[region.box], hole[region.box]
    if not region.resampled:
        return pixels, hole
    small = masks.shrink(hole, region.rows, region.columns)
    return masks.resize_known(pixels, hole, region.rows, region.columns), small


def paste(filled: Pixels, region: Region, height: int, width: int) -> Pixels:
    """What the net made [rows columns C], at the image's resolution and place, in an empty [height width C]."""
    if region.resampled:
        filled = images.resize(filled, region.height, region.width)
    whole = np.zeros((height, width, filled.shape[2]), np.uint8)
    whole[region.box] = filled
    return whole
