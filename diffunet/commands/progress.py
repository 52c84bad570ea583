"""Commands talk to the person who waits by lines and by progress: a bar in a terminal, now and then a line elsewhere.

Where nobody reads any more (a closed pipe, a terminal that is gone) a message is dropped, and the work goes on.
"""

import contextlib
import errno
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from diffunet import variables
from diffunet.errors import ResourceError


def say(message: str) -> None:
    """Print a message as a line on standard error, on the main process of several alone."""
    if variables.is_main():
        complain(message)


def complain(message: str) -> None:
    """Print a message as a line on standard error, or nowhere if that is closed; of an error every process may."""
    try:  # sys.stderr is looked up each time: a progress bar puts its own there, to print above itself
        print(message, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def tell(result: str) -> bool:
    """Print a result on standard output, on the main process of several; return False once nobody reads any more."""
    with writing_results():
        if variables.is_main():
            print(result, flush=True)
        return True
    return False


@contextlib.contextmanager
def writing_results() -> Iterator[None]:
    """Guard a block that prints results: a closed pipe, as after `| head`, ends it; a full disk is a ResourceError."""
    try:
        yield
    except OSError as error:
        silence(sys.stdout)
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EINVAL:  # EINVAL: a closed pipe on Windows
            raise ResourceError(f"standard output cannot be written: {error.strerror}") from None


def silence(stream: Any) -> None:
    """Send all further output of a stream nowhere, so that neither a later line nor the exit fails on it."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class Update(Protocol):
    """A function that is told how much of the work is done, and a few words to show beside it."""

    def __call__(self, done: int, total: int, words: str = "") -> None: ...


EVERY = 15.0
"""Seconds between lines where there is no terminal."""


interruptions: list[int] = []
"""The numbers of the signals that were to end this command.

A signal raises KeyboardInterrupt wherever the program happens to be. In a finaliser, in a callback of C++ code or in a
library that catches all there is, it is lost, and the work would go on. So every update of progress raises it again.
"""


FEWEST, SOONEST, RECENT = 3, 3.0, 120.0
"""The updates and the seconds after the first update before time left is told, and the seconds that it goes by."""


class Pace:
    """How long the rest of some work takes, by the pace of about the last two minutes.

    Before the first update there is what comes only once (compiling, reading images, the first use of memory), and a
    run that is resumed begins at a step of thousands: so it is measured from the first update on, and nothing is said
    until enough has been measured.

    Args:
        clock: returns seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._points: deque[tuple[float, int]] = deque()  # (seconds, done), a hundredth of RECENT apart or more
        self._began, self._updates, self._last = 0.0, 0, (0, 0)

    def left(self, done: int, total: int) -> float | None:
        """Take note that `done` of `total` units are done; return the seconds that are left, None if not yet known.

        Work that starts over, as the next part of an evaluation does, is measured anew.
        """
        now, points = self.clock(), self._points
        if not points or done < self._last[0] or total != self._last[1]:
            points.clear()
            self._began, self._updates = now, -1
        self._last = done, total
        self._updates += 1
        seconds, before = points[0] if points else (now, done)
        if not points or now - points[-1][0] >= RECENT / 100:
            points.append((now, done))
            # However slow the work is, it goes by as many updates as are asked for at the start.
            while len(points) > FEWEST + 1 and now - points[1][0] >= RECENT:
                points.popleft()
        if self._updates < FEWEST or now - self._began < SOONEST or done <= before:
            return None
        return (now - seconds) / (done - before) * (total - done)


@contextlib.contextmanager
def progress(title: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Update]:
    """Yield a function to call with (done, total, words) as work goes on, which the main process of several shows.

    The function raises KeyboardInterrupt after a signal that was lost, as `interruptions` says.
    """
    with _shown(title, clock) as show:

        def update(done: int, total: int, words: str = "") -> None:
            if interruptions:
                raise KeyboardInterrupt(interruptions[-1])
            show(done, total, words)

        yield update


@contextlib.contextmanager
def _shown(title: str, clock: Callable[[], float]) -> Iterator[Update]:
    if not variables.is_main() or sys.stderr is None:
        yield lambda done, total, words="": None
    elif not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield _lines(title, clock)
    else:
        from rich import progress as bars
        from rich.console import Console

        terminal: Any = _Terminal(sys.stderr)
        columns = (
            bars.TextColumn("{task.description}", markup=False), bars.BarColumn(), bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(), bars.TextColumn("{task.fields[left]}", markup=False),
            bars.TextColumn("{task.fields[words]}", markup=False),
        )  # fmt: skip
        both = sys.stdout.isatty()  # results that go to a file go there, and not above the bar
        with bars.Progress(*columns, console=Console(file=terminal), transient=True, redirect_stdout=both) as bar:
            task, pace = bar.add_task(title, total=None, words="", left=""), Pace(clock)

            def update(done: int, total: int, words: str = "") -> None:
                left = _left(pace.left(done, total))
                bar.update(task, completed=done, total=total, words=words, left=left)

            yield update


class _Terminal:
    """A stream to a terminal, which may go away while something is drawn on it."""

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


def _lines(title: str, clock: Callable[[], float]) -> Update:
    last, pace = clock(), Pace(clock)

    def update(done: int, total: int, words: str = "") -> None:
        nonlocal last
        left = _left(pace.left(done, total))  # noted at every update, told now and then
        if (now := clock()) - last >= EVERY and done < total:
            last = now
            say(", ".join(filter(None, (f"{title}: {done} of {total}", words, left))))

    return update


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """Return seconds in words: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
