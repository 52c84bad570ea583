"""Processes that read files for this one: threads are no help for small files, of whose time Python takes the most.

They are started as programs of their own and not by multiprocessing, which would run the caller's script once more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

CODE = "from diffunet.data.readers import main; main()"


@contextlib.contextmanager
def readers(function: Callable[[T], R]) -> Iterator[Callable[[Sequence[T]], Sequence[R | None]]]:
    """Yield a function that has `function` applied to items by a process of the calling thread; see `available`.

    Its results are None for items that `function` raised an exception for, and for all where the process has died. The
    processes end with the context, and also if this process dies.

    Args:
        function: what can be pickled, and does not need torch, which would take each process seconds to import.
    """
    mine, path = threading.local(), os.pathsep.join(each or os.getcwd() for each in sys.path)
    all_of_them: list[subprocess.Popen[bytes]] = []

    def child() -> subprocess.Popen[bytes]:
        if not hasattr(mine, "child"):
            mine.child = subprocess.Popen(
                [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
            all_of_them.append(mine.child)
            pickle.dump(function, mine.child.stdin)
        return mine.child

    def read(items: Sequence[T]) -> Sequence[R | None]:
        if not hasattr(mine, "dead"):
            try:
                process = child()
                assert process.stdin is not None
                assert process.stdout is not None
                pickle.dump(items, process.stdin)
                process.stdin.flush()
                return pickle.load(process.stdout)  # type: ignore[no-any-return]  # our own process wrote it
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                mine.dead = True
                log.warning("a process that reads files has died (%s): this one reads on", type(error).__name__)
        return [None] * len(items)

    try:
        yield read
    finally:
        for process in all_of_them:
            process.kill()
            process.communicate()


def available() -> bool:
    """Return whether `readers` can start: not in a frozen program, whose executable is no Python."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def main() -> None:
    """Read pickled functions and items from standard input, and write results to standard output, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too; the parent ends us
    warnings.simplefilter("ignore")  # they would not name the file; what cannot be read, the parent says
    source, target, sys.stdout = sys.stdin.buffer, sys.stdout.buffer, sys.stderr
    with contextlib.suppress(EOFError, BrokenPipeError):
        function = pickle.load(source)
        while True:
            pickle.dump([_result(function, item) for item in pickle.load(source)], target)
            target.flush()
    os._exit(0)  # without a try to flush into a pipe that is closed


def _result(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception:
        return None
