"""Draw excess and held-out loss over minutes, of several runs of `benchmark.py quality`, in one picture.

    python scripts/quality_curves.py q1/quality.json q3/quality.json q10/quality.json --out samples/quality-minutes.png

There is a column of panels for each image size, above the excess of the feature distance and below the held-out loss,
less is better of both; each way has one line, with a point for each number of minutes that was measured.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEASURE = re.compile(r"after (?P<minutes>[\d.]+) minutes at (?P<size>\d+) pixels")

FIGURES = {"median": "excess of the feature distance", "loss": "held-out loss, nats"}
"""What is drawn of a row of the benchmark, and how it is called."""

Points = dict[int, dict[str, dict[float, dict[str, Any]]]]
"""Rows of the benchmark by image size, way and minutes."""


def points(paths: Sequence[Path]) -> Points:
    """Return what the files of the benchmark say of ways that were trained.

    Raises:
        SystemExit: a file is none of `benchmark.py quality`.
    """
    found: Points = {}
    for path in paths:
        try:
            rows = json.loads(path.read_text())["parts"]["quality"]["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path}: no result of benchmark.py quality ({error!r})") from None
        for row in rows:
            where = MEASURE.match(row["measure"])
            if where is not None and "steps" in row:  # real images take no steps, and missing packages say nothing
                ways = found.setdefault(int(where["size"]), {})
                ways.setdefault(row["way"], {})[float(where["minutes"])] = row
    return found


def draw(found: Points, out: Path) -> None:
    """Draw all panels into a file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    ways = list(dict.fromkeys(way for each in found.values() for way in each))
    figure, axes = pyplot.subplots(
        len(FIGURES), len(found), figsize=(1 + 4.5 * len(found), 7), squeeze=False, layout="constrained", sharex="col"
    )
    for column, size in enumerate(sorted(found)):
        for line, (name, title) in enumerate(FIGURES.items()):
            panel = axes[line, column]
            for way in ways:
                rows = {minutes: row for minutes, row in sorted(found[size].get(way, {}).items()) if name in row}
                panel.plot(
                    list(rows), [row[name] for row in rows.values()], color=f"C{ways.index(way)}", label=way,
                    marker="o", linewidth=3 if way == "diffunet" else 1.5,
                )  # fmt: skip
            if name == "median":
                panel.set_yscale("log")
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_formatter("{x:g}")
            panel.set_title(f"{size} x {size} pixels: {title}", fontsize=9, loc="left")
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=8)
        axes[-1, column].set_xlabel("minutes of training", fontsize=8)
    axes[-1, 0].legend(fontsize=7)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="quality.json of benchmark.py quality")
    parser.add_argument("--out", type=Path, required=True, help="the picture, such as quality-minutes.png")
    options = parser.parse_args(words)
    found = points(options.results)
    if not found:
        raise SystemExit("there is no trained way in these results")
    draw(found, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
