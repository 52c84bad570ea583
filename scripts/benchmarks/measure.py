"""Measures: several ways to do one thing, taken in turns (A B A B ...), so that a change of the machine meets them all.

A row is a plain dict: `measure`, `way`, `unit`, `better` ("more" or "less"), `reference` (the way that ratios are to),
`median`, `from_to`, `rounds` (all values, in order), `ratio` and `ratio_from_to` (of the value of a round to that of
the reference in the same round: the median, the least and the most), `wanted`, and what else is known of the way.
A row has "failed" or "missing" (a peer that is not installed) in place of figures where there are none.
"""

from __future__ import annotations

import contextlib
import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]

Lap = Callable[[], float]
"""Measures a way once, and returns the figure in the unit of the measure."""

Make = Callable[[], tuple[Lap, Row]]
"""Makes a way ready, and returns its lap with facts for its row, which laps may still add to."""


@dataclass(frozen=True)
class Options:
    """What every sub-benchmark is told.

    Args:
        device: as `compute.choose`; None is the best there is.
        tiny: whether nets have a few channels, folders a few files, and measures two rounds: to see that it works.
        seconds: the time for all rounds of a sub-benchmark. Making ways ready comes on top, and the least rounds that
            a measure has are taken however long they last.
        files: the files of the largest folder in `growth`.
        work: a folder for files, removed afterwards.
        quality: what `quality.Wish` is told; only that sub-benchmark looks at it.
    """

    device: str | None
    tiny: bool
    seconds: float
    files: int
    work: Path
    quality: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Return a new folder in `work`."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.work))


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a way: its "ratio" or "median" is to be at least or at most a number."""

    of: str
    least: float | None = None
    most: float | None = None

    def row(self) -> Row:
        """Return it as a plain dict."""
        return {"of": self.of} | {k: v for k, v in (("least", self.least), ("most", self.most)) if v is not None}


class DifferError(Exception):
    """Two ways that should compute the same do not."""


def refuse_difference(difference: float, tolerance: float) -> Row:
    """Return both numbers as facts of a row.

    Raises:
        DifferError: the difference is above the tolerance, or is not a number.
    """
    if not difference <= tolerance:
        raise DifferError(f"computes something else: off by {difference:.1e}, where {tolerance:.1e} is allowed")
    return {"difference": difference, "tolerance": tolerance}


@dataclass(frozen=True)
class Measure:
    """One measure.

    Args:
        name: what is measured, in words that are the same on all machines.
        unit: of its figures, such as "images/s", "s", "MiB".
        ways: the name of each way -> what makes it ready. The first one is what others are compared to.
        wanted: what is wanted of ways, by name.
        more_is_better: whether a larger figure is the better one.
        least, most: the least and the most rounds.
    """

    name: str
    unit: str
    ways: Mapping[str, Make]
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    more_is_better: bool = False
    least: int = 3
    most: int = 25

    def rows(self, seconds: float, tiny: bool = False) -> Iterator[Row]:
        """Make all ways ready, take them in turns for so many seconds, and yield a row for each way."""
        rows = {way: self._row(way) for way in self.ways}
        laps: dict[str, Lap] = {}
        facts: dict[str, Row] = {}
        for way, make in self.ways.items():
            with noting(rows[way]):
                laps[way], facts[way] = make()
        began, least = time.monotonic(), min(2, self.least) if tiny else self.least
        most = least if tiny else self.most
        values: dict[str, list[float]] = {way: [] for way in laps}
        for done in range(most):
            if done >= least and (time.monotonic() - began) * (done + 1) / done > seconds:
                break
            for way in list(laps):
                with noting(rows[way]):
                    values[way].append(laps[way]())
                if "failed" in rows[way] or "missing" in rows[way]:
                    del laps[way]
        first = next(iter(self.ways))
        reference = values[first] if first in laps else []
        for way, row in rows.items():
            yield row | facts.get(way, {}) | (summary(values[way], reference) if way in laps else {})
        laps.clear()
        gc.collect()

    def _row(self, way: str) -> Row:
        row: Row = {"measure": self.name, "way": way, "unit": self.unit, "reference": next(iter(self.ways))}
        row["better"] = "more" if self.more_is_better else "less"
        return row | ({"wanted": self.wanted[way].row()} if way in self.wanted else {})


def said(error: Exception) -> str:
    """Return an error in one line."""
    line = next(iter(str(error).strip().splitlines()), "")
    return (line if isinstance(error, DifferError) else f"{type(error).__name__}: {line}")[:300]


@contextlib.contextmanager
def noting(row: Row, words: Callable[[Exception], str] = said) -> Iterator[None]:
    """Note an exception within the context in a row, as "missing" or (in `words`) "failed", and go on."""
    try:
        yield
    except ImportError as error:
        row["missing"] = str(error)
    except Exception as error:
        row["failed"] = words(error)


def summary(values: list[float], reference: list[float]) -> Row:
    """Return median, least and most of the values, and of their ratios to the reference of the same round."""
    row: Row = {"median": median(values), "from_to": [min(values), max(values)], "rounds": values}
    if reference and all(reference):
        ratios = [value / base for value, base in zip(values, reference, strict=True)]
        row |= {"ratio": median(ratios), "ratio_from_to": [min(ratios), max(ratios)]}
    return row


def exponent(points: Mapping[int, float]) -> float:
    """Return p of the y = c x^p that fits points x -> y best, by least squares of the logarithms."""
    xs, ys = [math.log(x) for x in points], [math.log(y) for y in points.values()]
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / sum((x - x0) ** 2 for x in xs)


def elapsed(once: Callable[[], object]) -> float:
    """Return the seconds of wall clock that a call takes."""
    began = time.perf_counter()
    once()
    return time.perf_counter() - began
