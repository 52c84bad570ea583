"""`diffunet status` says what runs are at, waits for them, and stops them."""

from __future__ import annotations

import contextlib
import json as formats
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffunet import files
from diffunet.commands.naming import RUNS
from diffunet.commands.progress import EVERY, duration, say, tell
from diffunet.errors import ResourceError, UsageError
from diffunet.evaluation import run_reading

SECONDS = 2.0
"""The seconds between two looks with --watch."""

AT_WORK = ("starting", "running", "stopping")
"""The states of a run whose process is there."""


@dataclass(frozen=True)
class Status:
    """What a run is at; None stands for what is not known.

    Args:
        run: its folder, as it was named or found.
        state: starting, running, stopping, done, stopped, diverged or failed, as the run says; died where it says that
            it is at work and no process holds its lock.
        step, steps: the steps that are done, and of how many.
        seconds_left: about how long it still takes.
        loss, images_per_second: the newest that it noted.
        device: what it computes on.
        checkpoint_step, checkpoint_seconds: of the newest checkpoint, the step and the seconds since it was written.
        why: the error or the reason by which it ended.
    """

    run: str
    state: str
    step: int
    steps: int | None
    seconds_left: float | None
    loss: float | None
    images_per_second: float | None
    device: str | None
    checkpoint_step: int | None
    checkpoint_seconds: float | None
    why: str | None


def status(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")] = (), /, *, watch: bool = False,
    stop: bool = False, json: bool = False,
) -> None:  # fmt: skip
    """Say what runs are at: step, time left, loss, speed, device, and how old the newest checkpoint is.

    A run whose process is gone, though it says that it runs, has died; train with --resume goes on with it.

    Example: diffunet status

    Example: diffunet status runs/photos --stop --watch

    Args:
        runs: Run folders, or folders with runs somewhere below them; runs if not given.
        watch: Look again every 2 seconds until none of them is at work.
        stop: Ask those at work to save everything and end after the step they are at, as Ctrl-C does. The file RUN/stop
            asks them, so that it works from another machine, too. With --watch, wait until they have ended.
        json: Print a list of objects, for programs.
    """
    if stop and not runs:
        raise UsageError("--stop needs the RUN to stop, such as: diffunet status runs/photos --stop")
    if watch and json:
        raise UsageError("--watch is for people and --json for programs; take one")
    folders = [folder for place in runs or (RUNS,) for folder in _below(place, needed=bool(runs))]
    if stop:
        _stop(folders)
    if watch:
        _watch(folders)
    elif json:
        tell(formats.dumps([asdict(of(folder)) for folder in folders], indent=1))
    elif not stop:
        tell(text([of(folder) for folder in folders]))


def of(folder: Path) -> Status:
    """Return what a run is at."""
    run, now = run_reading.read(folder), time.time()
    state = run.state
    if state in AT_WORK:
        if files.is_locked(folder / ".lock") is False:
            state = "died"
        elif (folder / "stop").exists():
            state = "stopping"
    losses = (line["loss"] for line in reversed(run.lines) if line.get("loss") is not None)
    environment = run.begun.get("environment")
    saved = max(_checkpoints(folder), default=(None, None))
    return Status(
        run=str(folder), state=state, step=run.step, steps=run.steps,
        seconds_left=run.seconds_left() if state == "running" else None,
        loss=next(losses, None), images_per_second=run.speed,
        device=run_reading.text(environment.get("device")) or None if isinstance(environment, dict) else None,
        checkpoint_step=saved[0], checkpoint_seconds=None if saved[1] is None else max(0.0, now - saved[1]),
        why=run_reading.text(run.status.get("error")) or run_reading.text(run.status.get("reason")) or None,
    )  # fmt: skip


def _checkpoints(folder: Path) -> Iterator[tuple[int, float]]:
    """Yield the step of each whole checkpoint, and when it was written, in seconds since 1970."""
    for manifest in folder.glob("checkpoints/step-*/manifest.json"):
        with contextlib.suppress(OSError, ValueError):
            yield int(manifest.parent.name.removeprefix("step-")), manifest.stat().st_mtime


def text(found: Sequence[Status]) -> str:
    """Return a table of runs, and below it why those ended that did not come to their end."""
    if not found:
        return f"there are no runs in {RUNS}; diffunet train makes them there, and RUN names others"
    head = ("run", "state", "step", "left", "loss", "images/s", "device", "checkpoint")
    rows = [head, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    ended = (f"{each.run}: {'stopped by ' * (each.state == 'stopped')}{each.why}" for each in found if each.why)
    return "\n".join([*lines, *ended])


def _row(one: Status) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    left, saved = one.seconds_left, one.checkpoint_seconds
    return (
        one.run, one.state, f"{one.step:,}" + ("" if one.steps is None else f"/{one.steps:,}"),
        "-" if left is None else duration(left), shown(one.loss, ".4f"), shown(one.images_per_second, ".3g"),
        one.device or "-", "-" if saved is None else f"{duration(saved)} ago",
    )  # fmt: skip


def _below(place: Path, *, needed: bool) -> list[Path]:
    """Return the runs that a folder is or holds somewhere; raise UsageError for none where one is `needed`."""
    if run_reading.is_run(place):
        return [place]
    if needed and not place.is_dir():
        raise UsageError(f"{place}: there is no such folder; name the RUN that diffunet train --out RUN made")
    found = list[Path]()
    for here, folders, _ in os.walk(place):
        of_runs = [name for name in folders if run_reading.is_run(Path(here, name))]
        found += [Path(here, name) for name in of_runs]
        folders[:] = [name for name in folders if name not in of_runs]
    if needed and not found:
        raise UsageError(f"{place}: is no run folder, and there is none below it")
    return sorted(found)


def _stop(folders: Iterable[Path]) -> None:
    """Ask the runs that are at work to stop."""
    states = {folder: of(folder).state for folder in folders}
    if not any(state in AT_WORK for state in states.values()):
        raise UsageError(f"none of these is at work: {', '.join(f'{run} ({state})' for run, state in states.items())}")
    for folder, state in states.items():
        if state not in AT_WORK:
            say(f"{folder} is not at work: {state}")
            continue
        file = folder / "stop"
        try:
            file.touch()
        except OSError as error:
            raise ResourceError(f"{file} cannot be written: {error.strerror}") from None
        if files.is_locked(folder / ".lock") is False:  # it ended meanwhile, and the file would stop its next part
            file.unlink(missing_ok=True)
            say(f"{folder} has just ended by itself")
        else:
            tell(f"{folder}: asked to save everything and end after this step; train --resume goes on with it")


def _watch(folders: Sequence[Path]) -> None:
    """Show the table until no run is at work: in a terminal in one place, elsewhere now and then where it changes."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        told, when = "", -EVERY
        while True:
            found = [of(folder) for folder in folders]
            ended, table = not any(each.state in AT_WORK for each in found), text(found)
            if ended or (table != told and time.monotonic() - when >= EVERY):
                told, when = table, time.monotonic()
                if not tell(table):
                    return
            if ended:
                return
            time.sleep(SECONDS)
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            found = [of(folder) for folder in folders]
            live.update(Text(text(found)), refresh=True)
            if not any(each.state in AT_WORK for each in found):
                return
            time.sleep(SECONDS)
