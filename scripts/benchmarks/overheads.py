"""The share of a training step that averages, clipping, metrics, previews, held-out losses and checkpoints take.

A real `diffunet.train` of the default net at 32 pixels, batch 32, in which the functions that do these things are timed
where they are called (`PARTS`); on a GPU the device has to finish before and after each of them. Previews, checkpoints
and the like come every few steps in this run. What a part takes of a step is the median of its calls times its calls a
step; of a part that comes every so many steps, one call divided by the default number of steps between two. The whole,
which the shares are of, is `Learner.step` and all parts that lie outside of it. "the rest of the loop" is the median
time between two steps that is none of these, such as waiting for images; it is not an overhead of the list.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks import nets, pictures
from benchmarks.measure import Lap, Measure, Options, Row, Wanted
from diffunet import compute
from diffunet.config import Config
from diffunet.training import defaults, ema, failures, learner, loop, meters, run, snapshots

NAME = "overheads"

PARTS: dict[str, list[tuple[Any, str]]] = {
    "averages": [(ema.Average, "update")],
    "clipping": [(torch.nn.utils, "get_total_norm"), (torch, "_foreach_mul_")],
    "metrics, every step": [(meters.Meters, "add")],
    "metrics, lines": [(meters.Meters, "report"), (meters.Record, "metrics")],
    "checkpoints": [(run.Run, "save"), (failures, "write_status")],
    "stored averages": [(snapshots, "write")],
    "held-out loss": [(loop, "validate")],
    "previews": [(loop, "preview")],
}
"""Part -> the functions, by where they are looked up, that do it."""

EVERY_STEP = ("averages", "clipping", "metrics, every step")
"""The parts of each step; the first two are within `Learner.step`."""

ALL, REST = "all of these", "the rest of the loop"


def measures(options: Options) -> list[Measure]:
    """Return the measure."""
    shares: dict[str, float] = {}

    def share(part: str) -> float:
        if part not in shares:  # all parts come from one run, and each is taken once
            shares.update(trained(options))
        return shares.pop(part)

    def made(part: str) -> tuple[Lap, Row]:
        return partial(share, part), {}

    ways = {part: partial(made, part) for part in (ALL, *PARTS, REST)}
    return [Measure("default 32, batch 32: share of a step", "%", ways, {ALL: Wanted("median", most=3.0)})]


def trained(options: Options) -> dict[str, float]:
    """Train, and return the share of each part in percent."""
    data, chosen, often = options.work / "data", Config().train, 2 if options.tiny else 6
    if not data.exists():
        pictures.folder(data, 64, 32, 32, distinct=64, suffix=".png")
    config = Config().changed("data", image_size=8 if options.tiny else 32).changed(
        "train", steps=2 * often, batch_size=8 if options.tiny else 32, log_every=2, validate_every=often,
        sample_every=often, checkpoint_every=often, ema_every=often,
        kernels="on" if nets.with_kernels(compute.choose(options.device)).native else "off",
    )  # fmt: skip
    if options.tiny:
        config = config.changed("model", channels=16, multipliers=(1,), num_blocks=1)
    how = compute.choose(options.device)
    long = nets.resolved("default", 32, how, batch_size=32)
    stored = defaults.stored_every(long, long.train.steps or 0)
    every = {
        "metrics, lines": chosen.log_every, "checkpoints": chosen.checkpoint_every,
        "previews": long.train.sample_every or 0, "held-out loss": long.train.validate_every or 0,
        "stored averages": stored or float("inf"),
    }  # fmt: skip
    clock = Clock(how)
    with clock:
        loop.train(config, data, options.folder("run") / "run", device=options.device)
    steps = len(clock.steps)
    cost = {}
    for part, functions in PARTS.items():
        calls = [clock.calls[part, name] for _, name in functions]
        if not all(calls):
            raise RuntimeError(f"{part}: {functions} were not all called")
        if part in EVERY_STEP:
            cost[part] = sum(median(each) * len(each) / steps for each in calls)
        else:
            cost[part] = sum(map(median, calls)) / every[part]
    step = median(end - begin for begin, end in clock.steps)
    whole = step + sum(cost.values()) - cost["averages"] - cost["clipping"]
    shares = {part: 100 * seconds / whole for part, seconds in cost.items()}
    return shares | {ALL: sum(shares.values()), REST: 100 * clock.between() / whole}


class Clock:
    """Times `PARTS` and the steps of whatever is trained within this context.

    `calls` are the seconds of each call by part and function, `steps` the beginning and end of each step.
    """

    def __init__(self, how: compute.Compute) -> None:
        self.how = how
        self.calls: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.steps: list[tuple[float, float]] = []
        self._outside: list[float] = []  # the seconds of parts after each step
        self._before: list[tuple[Any, str, Any]] = []

    def between(self) -> float:
        """Return the median of the seconds between two steps that are of no part."""
        gaps = zip(self.steps[:-1], self.steps[1:], self._outside[:-1], strict=True)
        return max(0.0, median(later[0] - sooner[1] - parts for sooner, later, parts in gaps))

    def __enter__(self) -> None:
        for part, functions in PARTS.items():
            for where, name in functions:
                self._replace(where, name, partial(self._add, part, name))
        self._replace(learner.Learner, "step", self._step)

    def __exit__(self, *error: object) -> None:
        for where, name, function in self._before:
            setattr(where, name, function)

    def _replace(self, where: Any, name: str, note: Callable[[float, float], None]) -> None:
        function = getattr(where, name)
        self._before.append((where, name, function))

        def timed(*arguments: Any, **options: Any) -> Any:
            self.how.synchronize()
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.how.synchronize()
                note(began, time.perf_counter())

        setattr(where, name, timed)

    def _add(self, part: str, name: str, began: float, ended: float) -> None:
        self.calls[part, name].append(ended - began)
        if part not in ("averages", "clipping") and self._outside:
            self._outside[-1] += ended - began

    def _step(self, began: float, ended: float) -> None:
        self.steps.append((began, ended))
        self._outside.append(0.0)
