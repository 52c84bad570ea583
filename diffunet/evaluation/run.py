"""A run as Python has it: what was measured of it, what it has drawn, and its model."""

from pathlib import Path
from typing import Any

from diffunet import plain
from diffunet.config import Config
from diffunet.errors import DataError, UsageError
from diffunet.evaluation import run_page, run_reading
from diffunet.evaluation.markup import tag
from diffunet.pictures import images
from diffunet.pictures.made import Picture, Pictures
from diffunet.pictures.thumbnails import thumbnail
from diffunet.sampling.pipeline import Pipeline, load

SHOWN = 400_000
"""The most bytes, about, of the preview that a notebook shows."""

WIDTH = 512
"""The pixels up to which a small preview is shown larger."""


def open_run(folder: str | Path) -> "Run":
    """Read a run folder, of a run that is over or still at work, as it is at this moment.

    Raises:
        UsageError: there is no such folder, or nothing in it that a run writes.
    """
    return Run(run_reading.read(plain.path("folder", folder)))


class Run:
    """What a run folder holds, as `open_run` has read it. A notebook shows its state and its newest preview.

    Args:
        reading: what was read of the folder.
    """

    def __init__(self, reading: run_reading.Reading) -> None:
        self._reading = reading

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._reading.folder

    @property
    def model(self) -> Path:
        """The folder of the newest model, all that sampling needs."""
        return self.folder / "model"

    @property
    def config(self) -> Config | None:
        """Every option of the run, resolved; None where there is none that can be read."""
        return self._reading.config

    @property
    def state(self) -> str:
        """How the run is: starting, running, done, stopped, diverged, failed or unknown."""
        return self._reading.state

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self._reading.step

    @property
    def steps(self) -> int | None:
        """How many steps the run takes; None while its end is open."""
        return self._reading.steps

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        """The lines of metrics.jsonl, by ascending steps, with None for what was not finite.

        The losses at eight noise levels, from the least to the most noise, are `noise0` to `noise7`. What is measured
        more seldom, such as `validation_loss`, is in lines of its own.
        """
        return [dict(line) for line in self._reading.lines]

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps at which a number of `metrics`, such as loss, was measured, and its values, equally many.

        Raises:
            UsageError: nothing of this name was measured.
        """
        names = sorted({each for line in self._reading.lines for each in line} - {"step"})
        if plain.text("name", name) not in names:
            there = ", ".join(names) or "nothing yet"
            raise UsageError(f"{self.folder}: no {name!r} was measured of this run; there is {there}")
        points = [(line["step"], line[name]) for line in self._reading.lines if line.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    @property
    def previews(self) -> Pictures:
        """The samples drawn on the way, oldest first, a sheet for each step, by whose files they are named.

        Raises:
            DataError: one of them cannot be read.
        """
        return Pictures(self._preview(path) for _, path in self._reading.previews)

    @property
    def missing(self) -> list[str]:
        """A sentence about everything that is not there or cannot be read."""
        return list(self._reading.missing)

    def load(self, **options: Any) -> Pipeline:
        """Return the model, ready to sample and to inpaint; options and errors are those of `diffunet.load`."""
        return load(self.folder, **options)

    def _preview(self, path: Path) -> Picture:
        try:
            return Picture.of(images.open_image(path), path.stem)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        """Return the run in one line."""
        of = "" if self.steps is None else f" of {self.steps:,}"
        return f"<Run {self._reading.name}: {self.state}, step {self.step:,}{of}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the state, the losses, the newest preview, and what is missing."""
        run = self._reading
        rows, missing, figure = run_page.facts(run), self.missing, []
        for name, title in (("loss", "Loss"), ("validation_loss", "Validation loss")):
            measured = [line[name] for line in run.lines if line.get(name) is not None]
            rows += [(title, f"{value:.4g}") for value in measured[-1:]]
        if run.previews:
            step, path = run.previews[-1]
            try:
                shown = thumbnail(path, SHOWN)
                larger = max(1, WIDTH // max(shown.width, shown.height))
                picture = tag(
                    "img", src=shown.address, width=larger * shown.width, height=larger * shown.height,
                    alt=f"samples after step {step:,}", style="image-rendering:pixelated" if larger > 1 else None,
                )  # fmt: skip
                figure = [tag("figure", picture, tag("figcaption", f"Samples after step {step:,}"), style="margin:0")]
            except DataError as error:
                missing.append(f"The newest preview is left out: {error}.")
        state = tag("p", tag("b", run.name), f": {self.state[:80]}")
        table = tag("table", *(tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows))
        left_out = [tag("ul", *(tag("li", each) for each in missing))] if missing else []
        return str(tag("div", state, tag("div", table, *figure, style="display:flex;gap:2em"), *left_out))
