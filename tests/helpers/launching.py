"""Real processes for tests: `diffunet` in several at once, scripts in a child, and waiting for what they do."""

import os
import socket
import subprocess
import sys
import time

PATIENCE = 300
"""Seconds after which a test takes a process for hanging."""


def launch(processes, arguments, *, code=None, **variables):
    """`diffunet train ARGUMENTS`, or `python -c CODE ARGUMENTS`, in several processes, as launchers start them."""
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
    """(exit codes, what all of them said on standard error)."""
    said = [worker.communicate(timeout=PATIENCE)[1] for worker in workers]
    return [worker.returncode for worker in workers], "\n".join(said)


def start(code, *arguments, **variables):
    """`python -c CODE ARGUMENTS`, with its output as pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, *processes):
    """Until `condition()`; fails where a process ends before, or after a long time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
