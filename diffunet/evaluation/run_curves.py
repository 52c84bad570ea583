"""The curves of a run's report: which there are, their points, and what they say in words."""

from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from diffunet.diffusion.noise_levels import NOISE
from diffunet.evaluation.run_reading import Reading, thinned

POINTS = 1500
"""The most points of a curve, of all runs together."""

LATER, RISEN = 3, 0.01
"""The validation losses after the least, and how far above it the last one is as a share of it, that make it rising."""


class Chart(NamedTuple):
    """A chart: its key and title, the names of its curves in `Reading.lines` with their labels, and what it shows.

    With `log` the axis is logarithmic where all values are positive and the largest is many times the least.
    """

    key: str
    title: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    about: str
    log: bool = False


_LEVELS = (
    f"below {NOISE[0]:g}", *(f"{low:g} to {high:g}" for low, high in pairwise(NOISE)),
    f"above {NOISE[-1]:g}",
)  # fmt: skip

CHARTS = (
    Chart(
        "held-out", "Validation loss", ("validation_loss",), ("loss",),
        "Of the averaged weights, on images that training does not see, with the same noise every time.", True,
    ),
    Chart("loss", "Training loss", ("loss",), ("loss",), "The mean since the line before.", True),
    Chart(
        "noise", "Training loss by noise level", tuple(f"noise{n}" for n in range(len(_LEVELS))),
        tuple(f"sigma {level}" for level in _LEVELS),
        "Small noise is fine detail, and large noise what the image is of.", True,
    ),
    Chart("norm", "Gradient norm", ("grad_norm",), ("norm",), "Before it is clipped.", True),
    Chart("rate", "Learning rate", ("learning_rate",), ("rate",), "It rises at the start, and falls at the end."),
    Chart("speed", "Speed", ("images_per_second",), ("images a second",), "With all that comes between steps."),
)  # fmt: skip
"""The charts of a report, in their order."""


def curves(run: Reading, runs: int) -> dict[str, dict[str, list[Any]]]:
    """Return the points of all curves by the keys of `CHARTS`; `runs` share the points of a page.

    Of neighbouring validation losses that become one point, the least is taken, else the mean.
    """
    return {
        chart.key: thinned(run.lines, chart.names, POINTS // runs, min if chart.key == "held-out" else fmean)
        for chart in CHARTS
    }


def words(run: Reading) -> Iterator[str]:
    """Yield sentences that say what the curves of a run show."""
    losses = [line["loss"] for line in run.lines if line.get("loss") is not None]
    if losses:
        yield f"The training loss is {losses[-1]:.4g}."
    held_out = [
        (line["step"], line["validation_loss"]) for line in run.lines if line.get("validation_loss") is not None
    ]
    if held_out:
        (step, least), (last_step, last) = min(held_out, key=lambda each: each[1]), held_out[-1]
        later = sum(each > step for each, _ in held_out)
        if step == last_step:
            yield f"The validation loss is {last:.4g}, the least up to now."
        elif later >= LATER and last - least > RISEN * abs(least):
            yield (
                f"The validation loss is rising since step {step:,}, where it was least, {least:.4g}; it is {last:.4g} "
                "now: the images are being learned by heart."
            )
        else:
            yield f"The validation loss is {last:.4g}; it was least at step {step:,}, {least:.4g}."
    skipped = run.lines[-1].get("skipped") if run.lines else None
    if skipped:
        yield f"{int(skipped):,} steps were skipped, since their loss or gradient was not finite."
