"""Real processes: `diffunet train` in several that belong together, Python code in a child, and waiting for them.

Processes that belong together are forked from one that has imported torch and diffunet (multiprocessing's fork server),
since importing takes each of them seconds, and there are many. Where a system cannot fork, each imports for itself.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

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
    words = [*(["train"] if code is None else []), *map(str, arguments)]
    return [
        _begun(code, words, os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | variables)
        for rank in range(processes)
    ]


def _begun(code, words, environment):
    """Start `diffunet WORDS`, or `python -c CODE WORDS`, with pipes or files for its output."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        return Forked(code, words, environment)
    begin = ["-m", "diffunet"] if code is None else ["-c", code]
    return subprocess.Popen(
        [sys.executable, *begin, *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


class Forked:
    """A process that is forked from one that has imported what it needs, with what tests use of subprocess.Popen."""

    IMPORTED = ("accelerate", "diffunet.commands.cli", "diffunet.sampling.pipeline", "diffunet.training.loop")
    IMPORTED += ("torch._dynamo", "torch.distributed.tensor")  # which the first optimizer imports

    def __init__(self, code, words, environment):
        self.folder = tempfile.TemporaryDirectory()
        self.written = [Path(self.folder.name, name) for name in ("output", "errors")]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*self.IMPORTED])
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported; threads would not outlive a fork
        forkserver.ensure_running()
        del os.environ["OMP_NUM_THREADS"]
        os.environ |= {} if threads is None else {"OMP_NUM_THREADS": threads}
        self.process = context.Process(target=_run, args=(code, words, dict(environment), self.written, os.getcwd()))
        self.process.start()

    @property
    def returncode(self):
        """The exit code, or minus the signal that ended it, or None while it runs."""
        return self.process.exitcode

    def poll(self):
        """Return the same."""
        return self.process.exitcode

    def communicate(self, timeout=None):
        """Wait until it ends; return what it wrote to standard output and to standard error."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it hangs"
        return tuple(path.read_text() for path in self.written)

    def send_signal(self, number):
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def kill(self):
        """Kill it."""
        self.process.kill()


def _run(code, words, environment, written, folder):
    """Do in a forked process what a new one would do."""
    for number, path in enumerate(written, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["diffunet" if code is None else "-c", *words]
    try:
        if code is None:
            runpy.run_module("diffunet", run_name="__main__", alter_sys=True)
        else:
            exec(code, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out


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
