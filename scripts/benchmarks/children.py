"""Processes of their own: for peaks of memory, for the time to start, for folders that nothing has read yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def ask(module: str, *words: object, **variables: str) -> Any:
    """Run `python -m benchmarks.MODULE WORDS`, and return what it has answered.

    Args:
        module, words: whose `answer` is called, see below, and its arguments.
        variables: further environment variables.

    Raises:
        ImportError: a package that it needs is missing.
        RuntimeError: it failed; the message is the last line that it wrote to standard error.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)
    if ended.returncode != 0:
        raise RuntimeError(f"exit code {ended.returncode}: {(ended.stderr.strip().splitlines() or ['silent'])[-1]}")
    answered = json.loads(ended.stdout.splitlines()[-1])
    if "missing" in answered:
        raise ImportError(answered["missing"])
    return answered["answer"]


def answer(function: Callable[..., Any]) -> None:
    """Call a function with the words of the command line, and print what it returns for `ask`."""
    try:
        found = {"answer": function(*sys.argv[1:])}
    except ImportError as error:
        found = {"missing": str(error)}
    print(json.dumps(found), flush=True)


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Return the most bytes of this process that were ever in memory at a time."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    # On Linux ru_maxrss would count the memory that the parent had when it started this process.
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
