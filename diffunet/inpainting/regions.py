"""How an image of any size meets a model of one size: which parts go through the net, and at what resolution.

A hole is bool [H W]. Its pixels fall into groups that lie too far apart to be of use to each other; each group has a
region of its own, in which the pixels of all groups are missing and only its own are filled in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, isqrt, log2

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffunet.errors import UsageError
from diffunet.inpainting import masks
from diffunet.inpainting.masks import Hole
from diffunet.names import INPAINT_FITS as FITS
from diffunet.pictures.images import Pixels

CONTEXT = 1.5
"""A cropped region is at least this many times the hole: what is filled in has to go with something."""

COARSEST = 2.0
"""Where a crop would shrink the image by more than this, auto takes tiles."""

NATIVE_PIXELS = 2_000_000
"""Most pixels that go through the net at once: above, memory runs out before anything is seen."""

TILE_PIXELS = 16_000_000
"""Most pixels of a region of tiles, of which the sampler holds several float32 copies: 200 MB each."""

GROUPS = 1000
"""Most regions of an image."""

_CELLS = 2**22  # of the grid on which groups are told apart


@dataclass(frozen=True)
class Groups:
    """The groups of a hole [H W]: `labels` [ceil(H / cell) ceil(W / cell)] numbers each cell's, from 1; 0 is none."""

    labels: NDArray[np.integer]
    cell: int
    count: int


@dataclass(frozen=True)
class Region:
    """The part of an image from (top, left), `height` x `width`, which goes through the net as `rows` x `columns`.

    It is that of group `number` of `groups`, or of all that is in it.
    """

    fit: str
    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int
    number: int = 0
    groups: Groups | None = field(default=None, compare=False, repr=False)

    @property
    def box(self) -> tuple[slice, slice]:
        """To index an image [H W ...] with."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def resampled(self) -> bool:
        """Whether the net works at another resolution than the image."""
        return (self.rows, self.columns) != (self.height, self.width)

    @property
    def shrinks(self) -> float:
        """How many pixels of the image's side are one of the net's."""
        return max(self.height / self.rows, self.width / self.columns)

    def own(self, hole: Hole) -> Hole:
        """bool [height width]: the pixels of a hole [H W] that are this region's to fill in."""
        own = hole[self.box]
        return own if self.groups is None else own & _member(self.groups, self.number, self.box)

    def __str__(self) -> str:
        text = f"{self.fit}: {self.width}x{self.height} at ({self.left}, {self.top})"
        return f"{text}, through the net as {self.columns}x{self.rows}" if self.resampled else text


def summary(regions: Sequence[Region]) -> str:
    """What was chosen, on one line."""
    if len(regions) == 1:
        return str(regions[0])
    counts = Counter(region.fit for region in regions)
    return f"{len(regions)} regions: " + ", ".join(f"{n} {fit}" for fit, n in sorted(counts.items()))


def choose(hole: Hole, size: int, fit: str = "auto") -> list[Region]:
    """The regions to work on, whose own pixels are together those of the hole, each of one region.

    native: the whole image at its own resolution, whatever its size.
    crop: for each group a region round it, at least `size` wide and high where the image is, with room for context,
    resampled to `size` where it is larger (or the image smaller).
    tile: for each group a region round it with size/2 of context to each side, at the image's own resolution, for
    windows of `size` that overlap.
    auto: native for images of about the model's size; else, for each group, crop, or tile where a crop would shrink
    the image by more than `COARSEST` and tiles are possible.

    Args:
        hole: bool [H W], with at least one True.
        size: of the images that the model was trained on.

    Raises:
        UsageError: an unknown `fit`, or one that an image of this size does not go with.
    """
    if fit not in FITS:
        raise UsageError(f"unknown fit {fit!r}; there are {', '.join(FITS)}")
    height, width = hole.shape
    if fit == "auto" and min(height, width) >= 0.75 * size and max(height, width) <= 2 * size:
        fit = "native"
    if fit == "native":
        if height * width > NATIVE_PIXELS:
            raise UsageError(
                f"fit native takes images of up to {NATIVE_PIXELS:,} pixels, not {width}x{height}; take tile or crop"
            )
        return [Region("native", 0, 0, height, width, height, width)]
    groups = group(hole, size)
    found = [
        _region(_extent(hole, groups, number, cells), (height, width), size, fit)
        for number, cells in enumerate(ndimage.find_objects(groups.labels), 1)
    ]
    return found if groups.count == 1 else [replace(r, number=n, groups=groups) for n, r in enumerate(found, 1)]


def group(hole: Hole, size: int) -> Groups:
    """The groups of a hole [H W], at most `GROUPS`.

    The hole is looked at in cells of size/4, which belong together where they touch: pixels of two groups are more than
    size/4 apart. Specks that are dense enough to be one group that is too large for tiles are told apart by smaller
    cells. Where there are too many groups, those that begin in the same square of the image are one.
    """
    finest = max(1, isqrt(hole.size // _CELLS))
    cell = max(finest, size // 4)
    while True:
        labels, _ = ndimage.label(_pooled(hole, cell), structure=np.ones((3, 3)))
        found = ndimage.find_objects(labels)
        largest = max((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in found)
        if cell == finest or largest * cell**2 <= TILE_PIXELS:
            break
        cell = max(finest, cell // 2)
    if len(found) <= GROUPS:
        return Groups(labels, cell, len(found))
    starts, side = np.array([[rows.start, columns.start] for rows, columns in found]) * cell, 4 * size
    while len(squares := np.unique(starts // side, axis=0)) > GROUPS:
        side *= 2
    squares, numbers = np.unique(starts // side, axis=0, return_inverse=True)
    return Groups(np.concatenate([[0], numbers.ravel() + 1])[labels], cell, len(squares))


def _pooled(hole: Hole, cell: int) -> Hole:
    """bool [ceil(H / cell) ceil(W / cell)]: whether any pixel of a cell is set."""
    rows = np.stack([hole[top : top + cell].any(axis=0) for top in range(0, hole.shape[0], cell)])
    return np.logical_or.reduceat(rows, np.arange(0, hole.shape[1], cell), axis=1)


def _member(groups: Groups, number: int, box: tuple[slice, slice]) -> Hole:
    """bool [height width] of a box of the image: what lies in cells of the group."""
    cell = groups.cell
    first = [side.start // cell for side in box]
    cells = groups.labels[tuple(slice(a, ceil(side.stop / cell)) for a, side in zip(first, box, strict=True))]
    whole = (cells == number).repeat(cell, axis=0).repeat(cell, axis=1)
    within: Hole = whole[
        tuple(slice(side.start - a * cell, side.stop - a * cell) for a, side in zip(first, box, strict=True))
    ]
    return within


Extent = tuple[slice, slice]
"""The rows and columns from the first to the last pixel of a group."""


def _extent(hole: Hole, groups: Groups, number: int, cells: tuple[slice, slice]) -> Extent:
    """Of the group whose cells lie in `cells`; only those at the edges are looked into."""
    cell = groups.cell
    rows, columns = (
        slice(side.start * cell, min(side.stop * cell, length)) for side, length in zip(cells, hole.shape, strict=True)
    )

    def own(box: tuple[slice, slice], axis: int) -> NDArray[np.int64]:
        """Which lines along `axis` have a pixel of the group, in this box."""
        return np.flatnonzero((hole[box] & _member(groups, number, box)).any(axis=axis))

    low, right = (cells[0].stop - 1) * cell, (cells[1].stop - 1) * cell
    top = own((slice(rows.start, min(rows.start + cell, rows.stop)), columns), 1)[0] + rows.start
    bottom = own((slice(low, rows.stop), columns), 1)[-1] + low
    first = own((rows, slice(columns.start, min(columns.start + cell, columns.stop))), 0)[0] + columns.start
    last = own((rows, slice(right, columns.stop)), 0)[-1] + right
    return slice(int(top), int(bottom) + 1), slice(int(first), int(last) + 1)


def _region(extent: Extent, shape: tuple[int, int], size: int, fit: str) -> Region:
    """Of a hole, or a group of it, in an image of this shape."""
    crop, tile = _crop(extent, shape, size), _tile(extent, shape, size)
    (height, width), (rows, columns) = shape, (side.stop - side.start for side in extent)
    too_long = crop.rows * crop.columns > max(NATIVE_PIXELS, 2 * size * size)
    too_large = tile.rows * tile.columns > TILE_PIXELS
    too_small = min(height, width) < size
    if fit == "auto":
        fit = "tile" if (too_long or crop.shrinks > COARSEST) and not (too_large or too_small) else "crop"
    if fit == "crop" and too_long:
        raise UsageError(
            f"an image of {width}x{height} pixels with a hole of {columns}x{rows} is too long for its short side; "
            "mask and fill it piece by piece"
        )
    if fit == "tile" and too_small:
        raise UsageError(
            f"fit tile takes images of at least {size}x{size} pixels, the model's size, not {width}x{height}; take crop"
        )
    if fit == "tile" and too_large:
        raise UsageError(
            f"fit tile takes up to {TILE_PIXELS:,} pixels, and a hole of {columns}x{rows} needs "
            f"{tile.width}x{tile.height} with its context; take crop, or mask and fill it piece by piece"
        )
    return tile if fit == "tile" else crop


def _crop(extent: Extent, shape: tuple[int, int], size: int) -> Region:
    side = max(size, ceil(CONTEXT * max(side.stop - side.start for side in extent)))
    (top, height), (left, width) = (_place(at, side, length) for at, length in zip(extent, shape, strict=True))
    scale = size / min(height, width)
    rows, columns = max(size, round(height * scale)), max(size, round(width * scale))
    return Region("crop", top, left, height, width, rows, columns)


def _tile(extent: Extent, shape: tuple[int, int], size: int) -> Region:
    (top, height), (left, width) = (
        _place(at, max(size, at.stop - at.start + 2 * (size // 2)), length)
        for at, length in zip(extent, shape, strict=True)
    )
    return Region("tile", top, left, height, width, height, width)


def _place(at: slice, length: int, limit: int) -> tuple[int, int]:
    """Where a stretch of `length`, or of `limit` if that is shorter, begins that has `at` in its middle and stays
    within 0 ... limit; and how long it is."""
    length = min(length, limit)
    return min(max(0, (at.start + at.stop - length) // 2), limit - length), length


def pyramid(region: Region, hole: Hole, size: int) -> list[Region]:
    """A region of tiles, last, after smaller pictures of all of it, each at most twice as large as the one before.

    A window in the middle of a wide hole sees little that is known. So the first level shrinks the widest hole [H W]
    to a quarter of a window (with half of it, colours did not go with what is around), if the region is not less than
    one window then: what is filled in there is what the next level starts from.
    """
    if region.fit != "tile":
        return [region]
    within = hole[region.box]
    wide = inf if within.all() else 2 * float(ndimage.distance_transform_edt(within).max())
    shrink = min(wide / (size / 4), min(region.height, region.width) / size)
    steps = max(0, ceil(log2(shrink)))
    sides = [(region.height / shrink ** (i / steps), region.width / shrink ** (i / steps)) for i in range(steps, 0, -1)]
    return [*(replace(region, rows=max(size, round(h)), columns=max(size, round(w))) for h, w in sides), region]


def cut(pixels: Pixels, hole: Hole, region: Region) -> tuple[Pixels, Hole]:
    """The region's pixels [rows columns C] and hole [rows columns], at the resolution of the net.

    Outside the hole that it gives, no pixel has a trace of what is in the hole of the image.
    """
    pixels, hole = pixels[region.box], hole[region.box]
    if not region.resampled:
        return pixels, hole
    small = masks.shrink(hole, region.rows, region.columns)
    return masks.resize_known(pixels, hole, region.rows, region.columns), small
