"""How seconds grow with size: the exponent p of seconds = c size^p, fitted by least squares of the logarithms.

- over the image size: a training step of the default net of 32 pixels, batch 4, at 32, 64 and 128 pixels. Attention is
  on the same levels, so that its maps grow;
- over the batch: a training step of the same net at 32 pixels, 1 to 32 images;
- over the steps of sampling: 8 images of 32 pixels in 5 to 40 steps;
- over the files of a folder: 100 to 100,000 (`--files`), each of the parts in `folders`.

The figure is the median exponent over the rounds, of which folders have one. "seconds" are the medians by size. Of
folders, "MiB above" is the peak of resident memory less that of a process that only imports.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import cache, partial
from statistics import median
from typing import Any

from benchmarks import children, folders, nets
from benchmarks.measure import Lap, Make, Measure, Options, Row, exponent
from diffunet import compute
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.sampling.pipeline import Pipeline
from diffunet.training.learner import Learner

NAME = "growth"

SIZES, BATCHES, STEPS, IMAGES = (32, 64, 128), (1, 2, 4, 8, 16, 32), (5, 10, 20, 40), 8

AFTER_MORE = ("more", "use", "write", "read")
"""The parts of `folders` that meet one file more."""

FEWEST = 100
"""The files of the smallest folder."""

LEAST = 0.2
"""The seconds that a lap of one point takes at least."""


def measures(options: Options) -> list[Measure]:
    """Return a measure for each curve."""
    how = compute.choose(options.device)
    config = nets.resolved("default", 32, how, tiny=options.tiny, batch_size=4, ema_every=0)
    sizes, batches, steps = ((8, 16), (1, 2), (2, 4)) if options.tiny else (SIZES, BATCHES, STEPS)
    curves: dict[str, Make] = {
        "training over image size": partial(
            fitted, {size: partial(step, config.changed("data", image_size=size), how) for size in sizes}, options
        ),
        "training over batch": partial(
            fitted, {batch: partial(step, config.changed("train", batch_size=batch), how) for batch in batches}, options
        ),
        "sampling over steps": partial(
            fitted, {count: partial(sampling, config, how, count) for count in steps}, options
        ),
    }
    found = [Measure(name, "(exponent)", {"fitted": make}) for name, make in curves.items()]
    looked = cache(partial(look, options))
    for part, what in folders.PARTS.items():
        if part != "bare":
            ways = {"fitted": partial(of_folders, part, looked)}
            found.append(Measure(f"files of a folder: {what}", "(exponent)", ways, least=1, most=1))
    return found


Point = Callable[[], tuple[nets.Once, Compute]]
"""Makes ready what is timed at one size."""


def step(config: Config, how: Compute) -> tuple[nets.Once, Compute]:
    """Return a training step."""
    learner = Learner(config, nets.model(config), how)
    how.prepare(learner.alone)
    batch = learner.imagined(nets.batch_of(config))
    return lambda: learner.step(0, [batch]), how


def sampling(config: Config, how: Compute, steps: int) -> tuple[nets.Once, Compute]:
    """Return sampling in so many steps."""
    denoiser = nets.model(config)
    how.prepare(denoiser, frozen=True)
    pipeline = Pipeline(config, denoiser, how)
    return lambda: pipeline.sample(IMAGES, batch_size=IMAGES, steps=steps), how


def fitted(points: Mapping[int, Point], options: Options) -> tuple[Lap, Row]:
    """Return a lap that times all points of a curve, and fits."""
    facts: Row = {}
    speeds = {x: nets.speed(*make(), 1, 0.0 if options.tiny else LEAST)[0] for x, make in points.items()}
    rounds: list[dict[int, float]] = []

    def lap() -> float:
        rounds.append({x: 1 / speed() for x, speed in speeds.items()})
        facts["seconds"] = {x: median(each[x] for each in rounds) for x in points}
        return exponent(rounds[-1])

    return lap, facts


def look(options: Options) -> dict[int, dict[str, Any]]:
    """Return, by the number of files, what `folders` finds for each of its parts."""
    counts = [50, 200] if options.tiny else [options.files]
    while not options.tiny and counts[0] >= 10 * FEWEST:
        counts.insert(0, counts[0] // 10)
    found = {}
    for count in counts:
        work = options.folder(f"folder-{count}")
        folders.make(work, count)
        found[count] = {part: children.ask("folders", part, work) for part in folders.PARTS}
        shutil.rmtree(work)
    return found


def of_folders(part: str, looked: Callable[[], dict[int, dict[str, Any]]]) -> tuple[Lap, Row]:
    """Return a lap that fits one of the parts."""
    facts: Row = {}

    def lap() -> float:
        found = looked()
        for count, parts in found.items():
            wanted = count + (part in AFTER_MORE)
            if parts[part]["images"] != wanted:
                raise RuntimeError(f"met {parts[part]['images']} images of {wanted}")
        facts["seconds"] = {count: parts[part]["seconds"] for count, parts in found.items()}
        facts["MiB above"] = {
            count: max(0.0, parts[part]["peak_mib"] - parts["bare"]["peak_mib"]) for count, parts in found.items()
        }
        return exponent(facts["seconds"])

    return lap, facts
