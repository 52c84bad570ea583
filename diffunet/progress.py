"""Progress for the person who waits: a bar with the time left in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol


class Update(Protocol):
    """Told how far the work is."""

    def __call__(self, done: int, total: int, words: str = "") -> None: ...


EVERY = 15.0
"""Seconds between lines where there is no terminal."""


@contextlib.contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Update]:
    """Yield a function to call with (done, total, words) as work goes on; nothing is shown where `quiet`."""
    if quiet:
        yield _silent
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar(what) as update:
            yield update
    else:
        yield _lines(what)


def _silent(done: int, total: int, words: str = "") -> None:
    pass


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.fields[words]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, words="")

        def update(done: int, total: int, words: str = "") -> None:
            bar.update(task, completed=done, total=total, words=words)

        yield update


def _lines(what: str) -> Update:
    began = said = time.monotonic()
    first: int | None = None

    def update(done: int, total: int, words: str = "") -> None:
        nonlocal said, first
        first = done - 1 if first is None else first
        now = time.monotonic()
        if now - said < EVERY or done >= total:
            return
        said = now
        left = (now - began) / max(1, done - first) * (total - done)
        print(
            f"{what}: {done} of {total}, {words}{', ' if words else ''}{duration(left)} left",
            file=sys.stderr,
            flush=True,
        )

    return update


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
