"""Real processes: `diffunet train` in several that belong together, Python code in a child, and waiting for them."""

import os
import socket
import subprocess
import sys
import time

PATIENCE = 300
"""Seconds after which a process that has not done what a test waits for is taken to hang."""


def launch(processes, arguments, *, code=None, **variables):
    """Start several processes that train together on this machine, with the variables that a launcher sets.

    Args:
        processes: their number.
        arguments: of `diffunet train`, or of `code`.
        code: Python to run in place of `diffunet train`.
        variables: further environment variables.

    Returns:
        The processes in the order of their ranks, with pipes for their output.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    start = ["-m", "diffunet", "train"] if code is None else ["-c", code]
    return [
        subprocess.Popen(
            [sys.executable, *start, *map(str, arguments)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | variables,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip


def finish(workers):
    """Wait for processes to end; return their exit codes and, in one text, all that they wrote to standard error."""
    errors = [worker.communicate(timeout=PATIENCE)[1] for worker in workers]
    return [worker.returncode for worker in workers], "\n".join(errors)


def start(code, *arguments, **variables):
    """Start `python -c CODE ARGUMENTS`, with pipes for its output and further environment variables."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, *processes):
    """Wait until `condition()` holds; fail where one of the processes ends first, or after `PATIENCE`."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
