"""Reading what a run folder says of itself, for its report. Whatever is missing, torn or foreign is said, and left out.

Files of a run are read as a stranger's: nothing in them is trusted to have the form that this version writes.
"""

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffunet.config import Config, read_toml
from diffunet.diffusion.noise_levels import NOISE
from diffunet.errors import Error, UsageError
from diffunet.names import MASK_KINDS

VERSION = 1
"""Of the form of `BEGUN`."""

BEGUN, IMAGES = "begun.json", "images.png"
"""What a run, or its newest part, began with, and images as its net sees them."""

NEAREST, EVALUATION = "nearest.png", "evaluation.json"
"""Samples beside their nearest training images, and figures of quality by their names, where the run was evaluated."""

FILLINGS = "fillings"
"""The folder of held-out images that `diffunet report` has filled in, step-00001000-wide.png for a kind of mask."""

SIGNS = ("config.toml", "status.json", "metrics.jsonl", "checkpoints")
"""The names of which a run folder has one at least."""

MAX_BYTES = 2**26
"""The most bytes of a text that are read."""

PREVIEW = re.compile(r"step-(\d{1,12})\.png")
FILLING = re.compile(r"step-(\d{1,12})-([a-z]{1,40})\.png")


@dataclass
class Reading:
    """What is known of a run.

    Args:
        folder: the run folder, as it was named.
        status, begun, evaluation: what status.json, begun.json and evaluation.json hold.
        lines: the lines of metrics.jsonl, with ascending steps; values that are no finite number are None.
        previews: the step and the file of each preview.
        fillings: the files of the newest held-out images filled in, by the kind of mask; `filled` is their step.
        config: the resolved config, None where there is none that can be read.
        heard: when the newest line was written, in seconds since 1970.
        missing: a sentence about everything that is not there or cannot be read.
    """

    folder: Path
    status: dict[str, Any] = field(default_factory=dict)
    begun: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    previews: list[tuple[int, Path]] = field(default_factory=list)
    fillings: dict[str, Path] = field(default_factory=dict)
    filled: int = 0
    config: Config | None = None
    heard: float | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name or self.folder.absolute().name

    @property
    def state(self) -> str:
        """How the run is, in the word of status.json."""
        return text(self.status.get("state")) or "unknown"

    @property
    def step(self) -> int:
        """The number of the newest step that anything is known of."""
        steps = [int(number(self.status.get("step")) or 0), *(line["step"] for line in self.lines[-1:])]
        return max(steps)

    @property
    def steps(self) -> int | None:
        """The number of steps that the run takes, None while its end is open."""
        known = number(self.status.get("steps"))
        if known is None and self.config is not None:
            known = self.config.train.steps
        return None if known is None else int(known)

    @property
    def seconds(self) -> float | None:
        """The seconds that the run had taken by its newest line, None where no line says it."""
        return next((line["seconds"] for line in reversed(self.lines) if line.get("seconds") is not None), None)

    @property
    def speed(self) -> float | None:
        """The images a second of the newest line that says them."""
        return next((x["images_per_second"] for x in reversed(self.lines) if x.get("images_per_second")), None)

    def seconds_left(self) -> float | None:
        """Return about how many seconds a run that is at work still takes, None where that is not known.

        It goes by the minutes of a run whose end is open, or else by the pace of the newest lines.
        """
        if self.state != "running" or self.config is None:
            return None
        spent, minutes, steps = self.seconds, self.config.train.minutes, self.steps
        if minutes is not None and spent is not None and self.config.train.steps is None:
            return max(0.0, 60 * minutes - spent)
        if steps is None:
            return None
        timed = [line for line in self.lines if line.get("seconds") is not None][-20:]
        if len(timed) > 1 and timed[-1]["step"] > timed[0]["step"]:
            pace = (timed[-1]["seconds"] - timed[0]["seconds"]) / (timed[-1]["step"] - timed[0]["step"])
            return max(0.0, pace * (steps - self.step))
        batch = self.config.train.batch_size
        return max(0.0, (steps - self.step) * batch / self.speed) if self.speed and isinstance(batch, int) else None


def is_run(folder: Path) -> bool:
    """Return whether a folder holds what a run writes; one that cannot be looked into holds nothing."""
    try:
        return any((folder / name).exists() for name in SIGNS)
    except OSError:
        return False


def brief(folder: Path) -> Reading:
    """Read only how a run is, its status, which takes no time.

    Raises:
        UsageError: there is no such folder, or nothing in it that a run writes.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder; name the RUN that diffunet train --out RUN made")
    if not is_run(folder):
        raise UsageError(f"{folder}: is no run folder: it has none of {', '.join(SIGNS)}")
    run = Reading(folder)
    run.status = _object(run, "status.json", "so the state of the run is not known")
    return run


def read(folder: Path) -> Reading:
    """Read a run folder; raises as `brief`."""
    run = brief(folder)
    run.begun = _object(
        run, BEGUN, "so device and images are not known: the run is of an earlier version, or has not begun"
    )
    if (folder / EVALUATION).exists():
        run.evaluation = _object(run, EVALUATION, "")
    _read_config(run)
    _read_metrics(run)
    _read_previews(run)
    _read_fillings(run)
    return run


def _object(run: Reading, name: str, so: str) -> dict[str, Any]:
    content = _text(run, name, so)
    if content is None:
        return {}
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    run.missing.append(f"{name} is damaged.")
    return {}


def _text(run: Reading, name: str, so: str) -> str | None:
    path = run.folder / name
    try:
        if path.stat().st_size > MAX_BYTES:
            run.missing.append(f"{name} is left out: it is larger than {MAX_BYTES >> 20} MiB.")
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        run.missing.append(f"There is no {name}, {so}.")
    except OSError as error:
        run.missing.append(f"{name} cannot be read: {error.strerror or error}.")
    return None


def _read_config(run: Reading) -> None:
    if not (run.folder / "config.toml").exists():
        run.missing.append("There is no config.toml, so the options of the run are not known.")
        return
    try:
        run.config = read_toml(run.folder / "config.toml")
    except Error as error:
        run.missing.append(f"The options are left out: {error}.")


def _read_metrics(run: Reading) -> None:
    content = _text(run, "metrics.jsonl", "so there are no curves: it comes with the first steps")
    if content is None:
        return
    with contextlib.suppress(OSError):
        run.heard = (run.folder / "metrics.jsonl").stat().st_mtime
    torn = 0
    for each in content.splitlines():
        line = _line(each)
        if line is None:
            torn += 1
        else:
            run.lines.append(line)
    run.lines.sort(key=lambda line: line["step"])
    if torn:
        run.missing.append(
            f"metrics.jsonl: {torn:,} of {torn + len(run.lines):,} lines cannot be read and are left out."
        )
    if not run.lines:
        run.missing.append("metrics.jsonl has no lines yet, so there are no curves.")


def _line(content: str) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl, or None where it is not one."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    step = number(found.get("step")) if isinstance(found, dict) else None
    if step is None or step < 0:
        return None
    by_noise = found.pop("loss_by_noise", None)
    line: dict[str, Any] = {name: number(value) for name, value in found.items()} | {"step": int(step)}
    if isinstance(by_noise, list) and len(by_noise) == len(NOISE) + 1:
        line |= {f"noise{n}": number(value) for n, value in enumerate(by_noise)}
    return line


def _read_previews(run: Reading) -> None:
    with contextlib.suppress(OSError):
        for path in (run.folder / "samples").iterdir():
            if (match := PREVIEW.fullmatch(path.name)) is not None:
                run.previews.append((int(match[1]), path))
    run.previews.sort()
    if not run.previews:
        run.missing.append("There are no previews yet: they come with --train.sample-every steps.")


def _read_fillings(run: Reading) -> None:
    steps = dict[int, dict[str, Path]]()
    with contextlib.suppress(OSError):
        for path in (run.folder / FILLINGS).iterdir():
            if (match := FILLING.fullmatch(path.name)) is not None:
                steps.setdefault(int(match[1]), {})[match[2]] = path
    run.filled = max(steps, default=0)
    newest = steps.get(run.filled, {})
    run.fillings = {kind: newest[kind] for kind in MASK_KINDS if kind in newest}


def number(value: Any) -> float | None:
    """Return a value as a float where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def text(value: Any) -> str:
    """Return a value as it is where it is a text, else nothing."""
    return value if isinstance(value, str) else ""


def thinned(
    lines: Sequence[Mapping[str, Any]], names: Sequence[str], most: int, choose: Callable[[list[float]], float]
) -> dict[str, list[Any]]:
    """Return the curves `names` of lines that have any of them, as lists with at most `most` points, and their `step`.

    Of neighbouring lines that become one point, `choose` makes one value of theirs, and the step is the last.
    """
    some = [line for line in lines if any(line.get(name) is not None for name in names)]
    each = max(1, math.ceil(len(some) / most))
    groups = [some[first : first + each] for first in range(0, len(some), each)]
    curves: dict[str, list[Any]] = {"step": [group[-1]["step"] for group in groups]}
    for name in names:
        values = ([line[name] for line in group if line.get(name) is not None] for group in groups)
        curves[name] = [float(f"{choose(there):.5g}") if there else None for there in values]
    return curves


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` items, evenly chosen, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / max(1, most - 1))] for n in range(most)]


def moment(seconds: float) -> str:
    """Return a time in seconds since 1970 as a date and a time of day, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
