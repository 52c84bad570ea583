"""A training step of the default net at 32 pixels, images a second: alone, and beside one busy process.

The busy process is a loop of Python at this process's own priority, which is started before each lap beside it and
killed after it. Laps are at least two seconds long, so that the system moves threads between cores as it would.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

from benchmarks import nets, step
from benchmarks.measure import Lap, Measure, Options, Row, Wanted
from diffunet import compute

NAME = "busy"

LEAST = 2.0
"""The seconds that a lap takes at least."""


@contextlib.contextmanager
def busy_process() -> Iterator[subprocess.Popen[str]]:
    """Keep a process busy within this context."""
    loop = subprocess.Popen(
        [sys.executable, "-S", "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert loop.stdout is not None
        loop.stdout.readline()  # it runs
        yield loop
    finally:
        loop.kill()
        loop.wait()


def measures(options: Options) -> list[Measure]:
    """Return the measure."""
    how = nets.with_kernels(compute.choose(options.device))
    config = step.config_of("default 32", how, options)

    @cache
    def lap() -> Lap:
        once, _ = nets.ours(config, how, True, options.folder("net"))
        return nets.speed(once, how, nets.batch_of(config), 0.0 if options.tiny else LEAST)[0]

    def alone() -> tuple[Lap, Row]:
        return lap(), {}

    def beside() -> tuple[Lap, Row]:
        def timed() -> float:
            with busy_process() as other:
                speed = lap()()
                if other.poll() is not None:
                    raise RuntimeError("the busy process ended")
            return speed

        nice = os.nice(0) if hasattr(os, "nice") else 0
        return timed, {"priority of both": f"nice {nice}"}

    ways = {"alone": alone, "beside a busy process": beside}
    wanted = {"beside a busy process": Wanted("ratio", least=0.5)}
    name = f"default 32, batch {nets.batch_of(config)}: a training step"
    return [Measure(name, "images/s", ways, wanted, more_is_better=True)]
