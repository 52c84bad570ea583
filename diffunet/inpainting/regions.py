"""How an image of any size meets a model of one size: which regions go through the net, and at what resolution.

Holes that lie far from each other are filled in one by one: one region round all of them could be as large as the
image, and would be shrunk to the size of the model or cost as many windows as all of it, although pixels far away say
little about a hole. So the pixels of a hole, bool [H W], are divided into groups, and each has a region of its own: in
it the pixels of all groups count as unknown, but only its own are filled in.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, isqrt, log2

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffunet.errors import UsageError
from diffunet.inpainting.masks import Hole
from diffunet.names import INPAINT_FITS as FITS

CONTEXT = 1.5
"""The least size of a crop, as a multiple of its hole: what is filled in has to go with something."""
COARSEST = 2.0
"""The most that fit auto shrinks an image for a crop; where it would have to shrink more, it takes tiles."""
NATIVE_PIXELS = 2_000_000
"""The most pixels that go through the net at once: above, memory runs out before the first step ends."""
TILE_PIXELS = 16_000_000
"""The most pixels of a region of tiles, of which the sampler holds several float32 copies: 200 MB each."""
GROUPS = 1000
"""The most regions of an image: each takes a whole run of the sampler."""
_CELLS = 2**22  # of the grid on which groups are found, at most
Box = tuple[slice, slice]
"""Rows and columns of an image."""


@dataclass(frozen=True)
class Groups:
    """The groups of a hole [H W], on a grid of cells of `cell` x `cell` pixels.

    `labels` has the number of each cell's group, from 1 on, or 0 for none: [ceil(H / cell) ceil(W / cell)].
    """

    labels: NDArray[np.integer]
    cell: int

    def member(self, number: int, box: Box) -> Hole:
        """Return which pixels of a box of the image lie in cells of a group, bool [height width]."""
        cells = tuple(slice(side.start // self.cell, ceil(side.stop / self.cell)) for side in box)
        pixels = (self.labels[cells] == number).repeat(self.cell, axis=0).repeat(self.cell, axis=1)
        offsets = (side.start % self.cell for side in box)
        return pixels[tuple(slice(a, a + side.stop - side.start) for a, side in zip(offsets, box, strict=True))]


@dataclass(frozen=True)
class Region:
    """The part of an image from (top, left), `height` x `width`, which goes through the net as `rows` x `columns`.

    Its own pixels are those of group `number` of `groups`, or without groups all pixels of the hole in it.
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
    def box(self) -> Box:
        """The region as an index of an image [H W ...]."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """The region as (x0, y0, x1, y1), in pixels of the image, x1 and y1 not included."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def resampled(self) -> bool:
        """Whether the net works at another resolution than the image."""
        return (self.rows, self.columns) != (self.height, self.width)

    def own(self, hole: Hole) -> Hole:
        """Return the pixels of a hole [H W] that this region fills in, bool [height width]."""
        own = hole[self.box]
        return own if self.groups is None else own & self.groups.member(self.number, self.box)

    def __str__(self) -> str:
        text = f"{self.fit}: {self.width}x{self.height} at ({self.left}, {self.top})"
        return f"{text}, through the net as {self.columns}x{self.rows}" if self.resampled else text


def summary(regions: Sequence[Region]) -> str:
    """Describe regions on one line."""
    counts = sorted(Counter(region.fit for region in regions).items())
    several = f"{len(regions)} regions: " + ", ".join(f"{n} {fit}" for fit, n in counts)
    return str(regions[0]) if len(regions) == 1 else several


def choose(hole: Hole, size: int, fit: str = "auto", scale: float | None = None) -> list[Region]:
    """Return the regions to work on. Each pixel of the hole is a region's own, and of one region only.

    Args:
        hole: bool [H W], with at least one True.
        size: height and width that the model was trained at.
        fit: how images meet the size of the model:
            native: the whole image at its own resolution, whatever its size.
            crop: a region round each group, at least `size` wide and high where the image is, with room for context,
            shrunk to `size` where it is larger, enlarged where the image is smaller.
            tile: a region round each group with size/2 of context to each side, at the image's own resolution, for
            windows of `size` that overlap.
            auto: native for images of about the model's size; else crop, or tile where a crop would shrink the image by
            more than `COARSEST` and tiles are possible.
        scale: of a model that learned windows of pictures, the scale of these; None for one that learned whole images.
            Its tiles are at that scale, and auto takes them wherever they are possible.

    Raises:
        UsageError: an unknown `fit`, or one that an image of this size does not go with.
    """
    if fit not in FITS:
        raise UsageError(f"unknown fit {fit!r}; there are {', '.join(FITS)}")
    height, width = hole.shape
    # Near the size that it was trained at, a net sees all of the image at once, at the right resolution. Further away
    # it draws shapes of the size, in pixels, that they had in training.
    near = min(height, width) >= 0.75 * size and max(height, width) <= 2 * size
    most = max(NATIVE_PIXELS, size * size)
    if fit == "auto" and near and height * width <= most and scale in (None, 1):
        fit = "native"
    if fit == "native":
        if height * width > most:
            raise UsageError(
                f"fit native takes images of up to {most:,} pixels, not {width}x{height}; take tile or crop"
            )
        return [Region("native", 0, 0, height, width, height, width)]
    groups = group(hole, size)
    boxes = enumerate(ndimage.find_objects(groups.labels), 1)
    regions = [
        _region(_extent(hole, groups, number, cells), (height, width), size, fit, scale) for number, cells in boxes
    ]
    return regions if len(regions) == 1 else [replace(r, number=n, groups=groups) for n, r in enumerate(regions, 1)]


def group(hole: Hole, size: int) -> Groups:
    """Divide a hole [H W] into groups, at most `GROUPS`.

    Pixels of two groups are more than a cell apart: cells (of size/4, or less if groups get too large) that have a
    pixel of the hole belong together where they touch, also by a corner. This is cheap even for 100 megapixels.
    """
    finest = max(1, isqrt(hole.size // _CELLS))
    cell = max(finest, size // 4)
    # Specks all over an image may lie so densely that they are one group which is too large for tiles, and would be
    # filled in coarsely, as one crop. Smaller cells find gaps between them.
    while True:
        labels, _ = ndimage.label(_pooled(hole, cell), structure=np.ones((3, 3)))
        boxes = ndimage.find_objects(labels)
        largest = max((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in boxes)
        if cell == finest or largest * cell**2 <= TILE_PIXELS:
            break
        cell = max(finest, cell // 2)
    if len(boxes) <= GROUPS:
        return Groups(labels, cell)
    # Each region takes a run of the sampler, so too many groups are joined again, with neighbours: those whose top left
    # corners share a square. The square is doubled until at most GROUPS remain.
    starts, side = np.array([[rows.start, columns.start] for rows, columns in boxes]) * cell, 4 * size
    while len(np.unique(starts // side, axis=0)) > GROUPS:
        side *= 2
    _, numbers = np.unique(starts // side, axis=0, return_inverse=True)
    return Groups(np.concatenate([[0], numbers.ravel() + 1])[labels], cell)


def _pooled(hole: Hole, cell: int) -> Hole:
    """Return whether any pixel of a cell is set, bool [ceil(H / cell) ceil(W / cell)]."""
    rows = np.stack([hole[top : top + cell].any(axis=0) for top in range(0, hole.shape[0], cell)])
    return np.logical_or.reduceat(rows, np.arange(0, hole.shape[1], cell), axis=1)


def _extent(hole: Hole, groups: Groups, number: int, cells: Box) -> Box:
    """Return the rows and columns from a group's first pixel to its last, given the box of its cells in the grid.

    Only the outermost cells are looked at, since a group may be as large as an image of 100 megapixels.
    """
    cell = groups.cell
    whole = [slice(s.start * cell, min(s.stop * cell, length)) for s, length in zip(cells, hole.shape, strict=True)]

    def side(axis: int) -> slice:
        start, stop = whole[axis].start, whole[axis].stop
        lines: list[NDArray[np.int64]] = []  # the rows (axis 0) or columns of both edges that have a pixel of the group
        for edge in (slice(start, min(start + cell, stop)), slice((cells[axis].stop - 1) * cell, stop)):
            box = (edge, whole[1]) if axis == 0 else (whole[0], edge)
            lines.append(np.flatnonzero((hole[box] & groups.member(number, box)).any(axis=1 - axis)) + edge.start)
        return slice(int(lines[0][0]), int(lines[1][-1]) + 1)

    return side(0), side(1)


def _region(extent: Box, shape: tuple[int, int], size: int, fit: str, scale: float | None) -> Region:
    """Return the region of a group of this extent in an image of this shape, for fit crop, tile or auto.

    auto prefers a crop, in which the net sees the whole hole with its context at once. But a crop that is shrunk much
    loses detail which shows beside the sharp pixels round it; then tiles keep the resolution, as long as the image has
    room for a window, and memory for the region. A model that learned windows knows pictures by them.
    """
    crop, tile = _crop(extent, shape, size), _tile(extent, shape, size, scale or 1.0)
    (height, width), (rows, columns) = shape, (side.stop - side.start for side in extent)
    too_long = crop.rows * crop.columns > max(NATIVE_PIXELS, 2 * size * size)
    too_large, too_small = tile.rows * tile.columns > TILE_PIXELS, min(tile.rows, tile.columns) < size
    if fit == "auto":
        too_coarse = max(crop.height / crop.rows, crop.width / crop.columns) > COARSEST
        fit = "tile" if (too_long or too_coarse or scale is not None) and not (too_large or too_small) else "crop"
    if fit == "crop" and too_long:
        raise UsageError(
            f"an image of {width}x{height} pixels with a hole of {columns}x{rows} is too long for its short side; "
            "mask and fill it piece by piece"
        )
    least = ceil(size / (scale or 1.0))
    if fit == "tile" and too_small:
        raise UsageError(
            f"fit tile takes images of at least {least}x{least} pixels, the model's size, not {width}x{height}; take "
            "crop"
        )
    if fit == "tile" and too_large:
        raise UsageError(
            f"fit tile takes up to {TILE_PIXELS:,} pixels, and a hole of {columns}x{rows} needs "
            f"{tile.width}x{tile.height} with its context; take crop, or mask and fill it piece by piece"
        )
    return tile if fit == "tile" else crop


def _crop(extent: Box, shape: tuple[int, int], size: int) -> Region:
    side = max(size, ceil(CONTEXT * max(side.stop - side.start for side in extent)))
    (top, height), (left, width) = (_place(at, side, length) for at, length in zip(extent, shape, strict=True))
    scale = size / min(height, width)
    rows, columns = max(size, round(height * scale)), max(size, round(width * scale))
    return Region("crop", top, left, height, width, rows, columns)


def _tile(extent: Box, shape: tuple[int, int], size: int, scale: float) -> Region:
    window = ceil(size / scale)  # in pixels of the image
    sides = (max(window, at.stop - at.start + 2 * (window // 2)) for at in extent)
    (top, height), (left, width) = map(_place, extent, sides, shape)
    return Region("tile", top, left, height, width, round(height * scale), round(width * scale))


def _place(at: slice, length: int, limit: int) -> tuple[int, int]:
    """Return start and length of a stretch that has `at` in its middle, as far as it stays within 0 ... limit."""
    length = min(length, limit)
    return min(max(0, (at.start + at.stop - length) // 2), limit - length), length


def pyramid(region: Region, hole: Hole, size: int) -> list[Region]:
    """Return a region of tiles, last, after coarser versions of it, each at most twice as large as the one before.

    A window in the middle of a wide hole sees little that is known, so windows alone would fill in shapes that do not
    go together: what is filled in at one level is what the next, finer one starts from. At the coarsest level
    the widest hole [H W] spans a quarter of a window (with half of it, colours did not match), but the region never
    gets smaller than one window.
    """
    if region.fit != "tile":
        return [region]
    within = hole[region.box]
    scale = region.rows / region.height
    wide = inf if within.all() else 2 * scale * float(ndimage.distance_transform_edt(within).max())
    shrink = min(wide / (size / 4), min(region.rows, region.columns) / size)
    steps = max(0, ceil(log2(shrink)))
    sides = [(region.rows / shrink ** (i / steps), region.columns / shrink ** (i / steps)) for i in range(steps, 0, -1)]
    return [*(replace(region, rows=max(size, round(h)), columns=max(size, round(w))) for h, w in sides), region]
