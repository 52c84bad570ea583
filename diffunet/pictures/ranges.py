"""What is black and what is white in images of more than 8 bits, found by their values.

A camera of 12 bits writes files of 16; slices of a scan have a sign; floats may mean [0, 1], [-1, 1] or anything. One
picture alone may be dark, so the values of a whole folder decide, those of integers and those of floats apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffunet.errors import DataError
from diffunet.pictures import deep, opening

BITS = (8, 10, 12, 14, 16)
"""White is the largest integer of so many bits."""
BEYOND = 1e-4
"""The share of pixels that may be above white, and that lie beyond each end of a range which is found as quantiles."""
SLACK = 0.05
"""By how much floats in [0, 1] and [-1, 1] may exceed their range, as those do which a filter has sharpened."""
_MOST, _BINS, _ZERO, _LARGE = 2**20, 2**20, 2**19, 2**23


class Range(NamedTuple):
    """The values that are black and white."""

    low: float
    high: float


@dataclass(frozen=True)
class Ranges:
    """The ranges of integers of more than 8 bits and of floats, each None where it is not known."""

    integers: Range | None = None
    floats: Range | None = None

    @classmethod
    def stated(cls, low: float, high: float) -> Ranges:
        """Return one range for both kinds."""
        return cls(Range(low, high), Range(low, high))

    def of(self, image: Image.Image) -> Range | None:
        """Return the range of the kind of values that an image has, None for an image of 8 bits too."""
        kind = deep.kind_of(image)
        return None if kind is None else getattr(self, kind)

    def completed(self, other: Ranges) -> Ranges:
        """Return these ranges, and where they are not known the other ones."""
        return Ranges(self.integers or other.integers, self.floats or other.floats)


UNKNOWN = Ranges()


@dataclass(frozen=True)
class Histogram:
    """How often values occur: ascending bins, their counts, and the exact least and greatest value.

    A bin is the upper 20 bits of a value as float32, made to ascend. So values in it differ by 0.05% at most, and
    powers of two lie between bins: how many values are below one is exact.
    """

    bins: NDArray[np.uint32]
    counts: NDArray[np.int64]
    least: float
    greatest: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Histogram:
        """Return the histogram of all values, or of a million of them evenly, those that are not finite left out."""
        flat = values.reshape(-1)
        flat = flat[:: max(1, -(-flat.size // _MOST))]
        flat = flat[np.isfinite(flat)]
        bits = (flat.astype(np.float32) + np.float32(0)).view(np.uint32)  # there is no -0.0 then
        bins = np.where(bits >> 31, ~bits, bits | np.uint32(2**31)) >> 12
        found, counts = np.unique(bins, return_counts=True)
        ends = (float(flat.min()), float(flat.max())) if flat.size else (np.inf, -np.inf)
        return cls(found, counts, *ends)

    def share_below(self, value: float) -> float:
        """Return the share of the values that are less than `value`, to within a bin."""
        edges = self._edge(self.bins, upper=False)
        return float(self.counts[edges < value].sum() / max(1, self.counts.sum()))

    def quantile(self, share: float, *, upper: bool) -> float:
        """Return a value that is at or above this share of the values: the upper or lower end of its bin."""
        place = int(np.searchsorted(np.cumsum(self.counts), share * self.counts.sum()))
        edge = self._edge(self.bins[min(place, len(self.bins) - 1) :][:1], upper=upper)[0]
        return float(min(max(float(edge), self.least), self.greatest))

    @staticmethod
    def _edge(bins: NDArray[np.uint32], *, upper: bool) -> NDArray[np.float64]:
        positive = bins >= _ZERO
        bits = (bins.astype(np.uint32) << 12) | np.uint32(0xFFF if upper else 0)
        return np.where(positive, bits ^ np.uint32(2**31), ~bits).astype(np.uint32).view(np.float32).astype(np.float64)


class Tally:
    """Adds up the histograms of the images of a folder."""

    def __init__(self) -> None:
        self._counts: dict[deep.Kind, NDArray[np.int64]] = {}
        self._ends: dict[deep.Kind, tuple[float, float]] = {}

    def add(self, kind: deep.Kind, one: Histogram) -> None:
        """Add the histogram of an image with values of this kind."""
        self._counts.setdefault(kind, np.zeros(_BINS, np.int64))[one.bins] += one.counts
        least, greatest = self._ends.get(kind, (np.inf, -np.inf))
        self._ends[kind] = min(least, one.least), max(greatest, one.greatest)

    def ranges(self) -> Ranges:
        """Return the ranges of the kinds of values that were added."""
        bins = {kind: np.flatnonzero(counts) for kind, counts in self._counts.items()}
        return Ranges(**{
            kind: found(kind, Histogram(bins[kind].astype(np.uint32), counts[bins[kind]], *self._ends[kind]))
            for kind, counts in self._counts.items()
        })  # fmt: skip


def found(kind: deep.Kind, histogram: Histogram) -> Range:
    """Return what is black and white among values.

    Integers: 0, and the least of 2^k - 1 that all but `BEYOND` of them do not exceed, for k in `BITS`. Floats: [0, 1]
    or [-1, 1] where all but `BEYOND` of them lie within it or `SLACK` of it. Else, and where integers have a sign, the
    values that all but `BEYOND` exceed, and do not.
    """
    if not histogram.counts.sum():
        return Range(0.0, 1.0 if kind == "floats" else 65535.0)
    below = histogram.share_below
    if kind == "integers" and below(0) <= BEYOND:
        for bits in BITS:
            if below(2.0**bits) >= 1 - BEYOND:
                return Range(0.0, 2.0**bits - 1)
    if kind == "floats":
        for low in (0.0, -1.0):
            if below(1 + SLACK) - below(low - SLACK) >= 1 - BEYOND:
                return Range(low, 1.0)
    low, high = histogram.quantile(BEYOND, upper=False), histogram.quantile(1 - BEYOND, upper=True)
    if kind == "integers":
        low, high = float(round(low)), float(round(high))
    return Range(low, high if high > low else low + 1)


def colours_of(image: Image.Image) -> NDArray[Any]:
    """Return the values of an image of more than 8 bits without its alpha, [H W] or [H W C]."""
    values = deep.values_of(image)
    return values[..., :3] if image.mode == "RGBA" else values


def histogram(content: bytes, name: str = "", page: int = 0) -> tuple[deep.Kind, Histogram] | None:
    """Return the kind and the histogram of the values of a file, or None for one of 8 bits, which is not decoded.

    Raises:
        DataError: The file cannot be decoded.
    """
    # Pillow raises ValueError for texts and profiles that are too long, which `decoding` passes over.
    with opening.reasons("decode", "damaged"), opening.own_pixel_cap(), contextlib.suppress(ValueError):
        image = opening.header(content, name, page)
        if image.mode[0] not in "IF" and image.format != "TIFF" and not deep.is_deep(image):
            return None
    with opening.decoding(content, name=name, page=page) as decoded:
        return histogram_of(decoded.image)


def histogram_of(image: Image.Image) -> tuple[deep.Kind, Histogram] | None:
    """Return the kind and the histogram of the values of an image, or None for one of 8 bits."""
    kind = deep.kind_of(image)
    return None if kind is None else (kind, Histogram.of(_some(image)[0]))


def of_files(paths: Iterable[Path]) -> Ranges:
    """Return the ranges of the images of files, those left out that cannot be decoded."""
    tally = Tally()
    for path in paths:
        with contextlib.suppress(DataError):
            if (one := histogram(opening.read_bytes(path), path.name)) is not None:
                tally.add(*one)
    return tally.ranges()


def _some(image: Image.Image) -> tuple[NDArray[Any], int]:
    """Return the values of every nth row of an image, and n, which is 1 but for very large ones: they take GiB."""
    if (step := image.width * image.height // _LARGE) < 2:
        return colours_of(image), 1
    rows = [deep.crop(image, (0, row, image.width, row + 1)) for row in range(0, image.height, step)]
    return np.concatenate([colours_of(row) for row in rows]), step


def own(image: Image.Image, known: NDArray[np.bool_] | None = None) -> Range | None:
    """Return the range by the values of one image alone, or by those `known`, bool [H W]; None for one of 8 bits."""
    if (kind := deep.kind_of(image)) is None:
        return None
    values, step = _some(image)
    return found(kind, Histogram.of(values if known is None else values[known[::step]]))


def earlier(image: Image.Image) -> Range | None:
    """Return the range that diffunet 0.1 took for an image, by itself alone.

    It is 0 to 65,535 for unsigned integers of 16 bits. Others end at 1 (floats), 255 or 65,535, the first that no value
    exceeds, or else at the greatest value.
    """
    if image.mode not in ("I", "F"):
        return Range(0.0, 65535.0) if image.mode.startswith("I") else None
    values = np.asarray(image)
    top = float(np.max(values, where=np.isfinite(values), initial=0))
    fulls = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return Range(0.0, next((full for full in fulls if top <= full), top))


def beyond(image: Image.Image, of: Range) -> float:
    """Return the share of an image's values that lie beyond a range by more than `SLACK` of it."""
    values, slack = _some(image)[0], SLACK * (of.high - of.low)
    return float(np.mean((values < of.low - slack) | (values > of.high + slack)))


def scaled(image: Image.Image, of: Range) -> NDArray[np.uint8]:
    """Return the values of an image of more than 8 bits in 0..255, without alpha; what is missing (NaN) is black."""
    values = colours_of(image).astype(np.float64)
    values = np.nan_to_num(values - of.low, nan=0.0, posinf=0.0, neginf=0.0) * (255.0 / (of.high - of.low))
    grey = np.rint(values).clip(0, 255).astype(np.uint8)
    return 255 - grey if image.info.get(deep.WHITE_IS_ZERO) else grey


def unscaled(grey: NDArray[np.uint8], image: Image.Image, of: Range) -> NDArray[np.float64]:
    """Return the values that 0..255 have in an image of more than 8 bits; the inverse of `scaled`."""
    share = grey.astype(np.float64) / 255
    return of.low + (1 - share if image.info.get(deep.WHITE_IS_ZERO) else share) * (of.high - of.low)


def words(kind: deep.Kind, of: Range) -> str:
    """Return a range in words, such as "nothing above 4,095: taken as 12 bits"."""
    named = {Range(0.0, 2.0**bits - 1): bits for bits in BITS} if kind == "integers" else {}
    if bits := named.get(of):
        return f"nothing above {of.high:,.0f}: taken as {bits} bits"
    ends = [f"{end:,.0f}" if float(end).is_integer() else f"{end:,.4g}" for end in of]
    return f"{ends[0]} is taken as black and {ends[1]} as white"
