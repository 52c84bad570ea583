"""What is said to the person who waits: lines, and progress as a bar in a terminal or a line now and then elsewhere.

Messages never end the work that they are about: where nobody reads any more (a closed pipe, a terminal that is gone),
they go nowhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from typing import IO, Any, Protocol

from diffunet.errors import ResourceError


def say(words: str) -> None:
    """A message: a line on standard error, or nowhere."""
    try:  # sys.stderr is looked up each time: a progress bar puts its own there, to print above itself
        print(words, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def tell(words: str) -> bool:
    """A result: a line on standard output. Whether somebody may still read: False once `| head` has enough.

    Raises:
        ResourceError: a file that takes no more, as on a full disk.
    """
    with writing_results():
        print(words, flush=True)
        return True
    return False


@contextlib.contextmanager
def writing_results() -> Iterator[None]:
    """For what writes to standard output: a closed pipe ends the block, and is no error.

    Raises:
        ResourceError: as `tell`.
    """
    try:
        yield
    except OSError as error:
        silence(sys.stdout)
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EINVAL:  # EINVAL: a closed pipe on Windows
            raise ResourceError(f"standard output cannot be written: {error.strerror}") from None


def silence(stream: Any) -> None:
    """Send what is still to come nowhere, so that neither another line nor the end of the process stumbles over it."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class Update(Protocol):
    """Told how far the work is."""

    def __call__(self, done: int, total: int, words: str = "") -> None: ...


EVERY = 15.0
"""Seconds between lines where there is no terminal."""


@contextlib.contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Update]:
    """Yield a function to call with (done, total, words) as work goes on; nothing is shown where `quiet`."""
    if quiet or sys.stderr is None:
        yield _silent
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(what, sys.stderr) as update:
            yield update
    else:
        yield _lines(what)


def _silent(done: int, total: int, words: str = "") -> None:
    pass


class _Terminal:
    """A terminal that may go away while something is drawn on it."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def _bar(what: str, stream: IO[str]) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    terminal: Any = _Terminal(stream)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[words]}", markup=False),
    )  # fmt: skip
    both = sys.stdout.isatty()  # results that go to a file go there, and not above the bar
    with Progress(*columns, console=Console(file=terminal), transient=True, redirect_stdout=both) as bar:
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
        say(f"{what}: {done} of {total}, {words}{', ' if words else ''}{duration(left)} left")

    return update


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main_process() -> bool:
    """Whether this process is the one of several that prints."""
    return int(os.environ.get("RANK", 0)) == 0
