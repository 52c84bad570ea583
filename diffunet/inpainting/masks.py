"""Masks: resizing them, growing them, softening their edges, and drawing random ones; `reading` reads them.

A mask is float32 [H W] in [0, 1], 1 where the image is to be filled; a hole is its boolean form, True there.
"""

from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from diffunet.errors import UsageError
from diffunet.names import MASK_KINDS
from diffunet.pictures import images

Mask = NDArray[np.float32]
Hole = NDArray[np.bool_]
RINGING = 1 / 16
"""Values of a soft mask this near to 0 or 1 count as 0 or 1: JPEG leaves such ripples beside edges."""
OPAQUE = 250
"""From this alpha on, of 255, a pixel counts as opaque: what an editor or a filter left almost so is no hole."""
_STRIP = 2**22  # pixels whose distances, float64, are measured at a time


def box_mask(box: tuple[int, int, int, int], height: int, width: int) -> Hole:
    """Return a hole [height width] that is a box (x0, y0, x1, y1): columns x0 to x1 and rows y0 to y1, ends left out.

    Raises:
        UsageError: a box that is empty or reaches outside the image.
    """
    x0, y0, x1, y1 = box
    name = f"the box {x0},{y0},{x1},{y1}"
    if x0 >= x1 or y0 >= y1:
        raise UsageError(f"{name} is empty: it is x0,y0,x1,y1 with x0 below x1 and y0 below y1")
    if min(x0, y0) < 0 or x1 > width or y1 > height:
        raise UsageError(f"{name} reaches outside the image, which is {width}x{height}")
    hole = np.zeros((height, width), bool)
    hole[y0:y1, x0:x1] = True
    return hole


def hole_of(mask: Mask) -> Hole:
    """Return the hole of a mask [H W]: where it is at least a half."""
    return mask >= 0.5


def without_ringing(mask: Mask) -> Mask:
    """Return a soft mask [H W] with its values near 0 and 1 set to 0 and 1; see `RINGING`."""
    return np.select([mask <= RINGING, mask >= 1 - RINGING], [np.float32(0), np.float32(1)], mask)


def alpha_hole(image: Image.Image) -> Hole | None:
    """Return where an image is less than opaque, see `OPAQUE`, bool [H W]; None if it is so nowhere."""
    hole = images.to_array(image, 4)[..., 3] < OPAQUE if images.has_alpha(image) else None
    return None if hole is None or not hole.any() else hole


def shrink(hole: Hole, height: int, width: int) -> Hole:
    """Resize a hole [H W] to [height width]: a pixel is hole as soon as `resize_known` would use a pixel of it there.

    So a stroke of one pixel survives any shrinking, and nothing of what is in the hole leaks into known pixels.
    """
    return _largest(_largest(hole, height).T, width).T


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """Resize a mask [H W] to [height width].

    Along a side that shrinks, a pixel takes the largest of the values that `shrink` looks at, so that thin strokes
    survive and soft ones stay soft; along a side that grows, values are interpolated.
    """
    pooled = _largest(mask, height) if height < mask.shape[0] else mask
    pooled = _largest(pooled.T, width).T if width < mask.shape[1] else pooled
    if pooled.shape == (height, width):
        return pooled
    resized = Image.fromarray(np.ascontiguousarray(pooled)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32).clip(0, 1)


def _largest(values: NDArray[Any], size: int) -> NDArray[Any]:
    """Resize [n w] to [size w], by the largest of the rows that Pillow's triangle filter weighs for each output row.

    For output row i it weighs row x by a triangle around the centre c = (i + 1/2) n/m, m = `size`, that reaches
    s = max(n/m, 1) to each side: where |x + 1/2 - c| < s. This is computed in integers, multiplied by 2m, to be exact.
    """
    n, m = len(values), size
    centre, reach = (2 * np.arange(m) + 1) * n, 2 * max(n, m)
    first, end = np.maximum((centre - reach - m) // (2 * m) + 1, 0), np.minimum(-((m - centre - reach) // (2 * m)), n)
    rows = np.ascontiguousarray(values)
    return np.stack([rows[a:b].max(axis=0) for a, b in zip(first, end, strict=True)])


def grow(mask: NDArray[Any], n: int) -> NDArray[Any]:
    """Return a mask or hole [H W] of which each pixel has the largest value within `n` pixels (Euclidean distance).

    A negative `n` shrinks it: each pixel has the smallest value. The border of the image is no edge.
    """
    if mask.dtype == bool:
        return grow(mask.view(np.uint8), n).view(bool)
    if n < 0:
        return np.subtract(1, grow(np.subtract(1, mask, dtype=mask.dtype), -n), dtype=mask.dtype)
    there = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    if n == 0 or not len(there[0]):
        return mask
    box = tuple(slice(max(0, at[0] - n), at[-1] + 1 + n) for at in there)
    before = mask[box]
    after, (height, width) = before.copy(), before.shape
    for up in range(min(n, height - 1) + 1):  # the rows of the disc, of which those above and below are equally long
        side = min(isqrt(n * n - up * up), width - 1)
        wide = ndimage.maximum_filter1d(before, 2 * side + 1, axis=1, mode="constant")
        for source, target in ((wide[: height - up], after[up:]), (wide[up:], after[: height - up])):
            np.maximum(source, target, out=target)
    grown = mask.copy()
    grown[box] = after
    return grown


def feather(hole: Hole, n: int) -> Mask:
    """Return the weight [H W] of a filling: 0 outside the hole, and rising inside it to 1 at `n` pixels from its edge.

    It is proportional to the Euclidean distance to the nearest known pixel. The border of the image is no edge.
    """
    weight, step = hole.astype(np.float32), max(1, _STRIP // hole.shape[1])
    for top in range(0, len(hole), step):  # with n more rows to each side: what is further away does not matter
        rows = slice(max(0, top - n), top + step + n)
        within = np.flatnonzero(hole[rows].any(axis=0))
        columns = slice(max(0, within[0] - n), within[-1] + 1 + n) if len(within) else slice(0)
        if not hole[rows, columns].all():  # else nothing is near an edge, or there is no hole
            near = ndimage.distance_transform_edt(hole[rows, columns])[top - rows.start :][:step]
            weight[top : top + step, columns] = np.minimum(near / max(n, 1), 1)
    return weight


def resize_known(image: images.Pixels, hole: Hole, height: int, width: int) -> images.Pixels:
    """Resize an image, uint8 [H W C], to [height width C] by an antialiased triangle filter, with the hole [H W] black.

    Outside `shrink(hole, height, width)` the result is made of known pixels alone; inside it means nothing.
    """
    known = np.where(hole[..., None], np.uint8(0), image)
    resized = images.from_array(known).resize((width, height), Image.Resampling.BILINEAR)
    return images.to_array(resized, image.shape[2])


def random_mask(kind: str, height: int, width: int, generator: np.random.Generator) -> Hole:
    """Draw a random hole [height width]; of two pixels or more, at least one is hole and one is known.

    Args:
        kind: box (30 to 60% of each side), half (one of four), wide and narrow (a few strokes of a brush, about a tenth
            and a fortieth of the image wide), scratches (thin lines, straight or bent, of 1 to 3 pixels), lines (every
            second row or column), grid (all but every second pixel of every second row: super-resolution in RePaint,
            Lugmayr et al. 2022), or mixed (any of these).
        generator: makes all random choices.

    Raises:
        UsageError: another kind.
    """
    if kind != "mixed" and kind not in KINDS:
        raise UsageError(f"no mask kind {kind!r}; there are mixed, {', '.join(KINDS)}")
    drawn = MASK_KINDS[int(generator.integers(len(MASK_KINDS)))] if kind == "mixed" else kind
    hole = KINDS[drawn](height, width, generator)
    if not hole.any() or (hole.all() and hole.size > 1):
        place = np.unravel_index(int(generator.integers(hole.size)), hole.shape)
        hole[place] = not hole[place]
    return hole


def _box(height: int, width: int, generator: np.random.Generator) -> Hole:
    h, w = (max(1, round(side * generator.uniform(0.3, 0.6))) for side in (height, width))
    top, left = int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1))
    return box_mask((left, top, left + w, top + h), height, width)


def _half(height: int, width: int, generator: np.random.Generator) -> Hole:
    hole = np.zeros((height, width), bool)
    halves = np.s_[: height // 2], np.s_[height // 2 :], np.s_[:, : width // 2], np.s_[:, width // 2 :]
    hole[halves[int(generator.integers(4))]] = True
    return hole


def _strokes(height: int, width: int, generator: np.random.Generator, brush: tuple[float, float], most: int) -> Hole:
    """Draw one to `most` strokes that wander and turn. `brush` is the range of widths, as shares of the short side."""
    canvas, side = Image.new("L", (width, height)), min(height, width)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(generator.integers(1, most + 1))):
        thick = max(1, round(side * generator.uniform(*brush)))
        point, angle = generator.random(2) * (width, height), generator.uniform(0, 2 * np.pi)
        for _ in range(int(generator.integers(4, 9))):
            angle += generator.normal(0, 0.7)
            step = side * generator.uniform(0.1, 0.3)
            following = (point + step * np.array([np.cos(angle), np.sin(angle)])).clip(0, (width - 1, height - 1))
            draw.line([*point, *following], fill=255, width=thick)
            if thick > 1:  # round ends and joints
                for x, y in (point, following):
                    draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
            point = following
    return np.array(canvas) > 0


def _scratches(height: int, width: int, generator: np.random.Generator) -> Hole:
    """Draw two to six scratches, half of them parabolas (quadratic Bézier curves) between two random points."""
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    t = np.linspace(0, 1, 17)[:, None]
    for _ in range(int(generator.integers(2, 7))):
        start, bend, end = generator.random((3, 2)) * (width, height)
        bend = (start + end) / 2 if generator.random() < 0.5 else bend
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        draw.line([float(value) for value in curve.ravel()], fill=255, width=int(generator.integers(1, 4)))
    return np.array(canvas) > 0


def _lines(height: int, width: int, generator: np.random.Generator) -> Hole:
    hole = np.zeros((height, width), bool)
    along, phase = generator.integers(2, size=2)
    (hole if along else hole.T)[phase::2] = True
    return hole


def _grid(height: int, width: int, generator: np.random.Generator) -> Hole:
    hole = np.ones((height, width), bool)
    top, left = generator.integers(2, size=2)
    hole[top::2, left::2] = False
    return hole


KINDS: dict[str, Callable[[int, int, np.random.Generator], Hole]] = {
    "box": _box,
    "half": _half,
    "wide": partial(_strokes, brush=(0.05, 0.15), most=4),
    "narrow": partial(_strokes, brush=(0.015, 0.04), most=8),
    "scratches": _scratches,
    "lines": _lines,
    "grid": _grid,
}
"""The kinds of random masks, each with what draws one of a height and width by a generator; see `random_mask`."""
