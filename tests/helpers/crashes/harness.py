"""Runs that are crashed on purpose: every operation of theirs on the disk, and what is left when one does not succeed.

A stage is a folder with a run in it, `STAGE/run`. faults.c sees every change below it, and can end the process there or
make the change fail.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from helpers.small import tiny

import diffunet
from diffunet.training import checkpoint

KINDS = ("write", "fsync", "rename", "create", "mkdir", "unlink", "rmdir", "truncate", "allocate", "unknown")
ACTIONS = ("watch", "kill before", "kill half way", "fail once", "fail from", "fail half way")
Action = Literal["watch", "kill before", "kill half way", "fail once", "fail from", "fail half way"]

GROWING = ("write", "create", "mkdir", "truncate", "allocate")
"""The kinds of operations that a full disk refuses."""

THOROUGH = int(os.environ.get("DIFFUNET_EVERY", "24"))
"""The slow tests resume from every so many of the kills, power losses and failures; 1 is all, and takes hours."""

START, EVERY, END = 6, 2, 10
"""The step at which the run to be resumed stands, the steps between its checkpoints, and the step at which it ends."""


def config(steps: int = END, every: int = EVERY) -> dict[str, Any]:
    """Return a config of some thousand weights with all that makes a run write: previews, held-out losses, averages."""
    small = tiny(
        model={"channels": 4, "multipliers": (1,), "attention_resolutions": ()},
        train={
            "steps": steps, "checkpoint_every": every, "validate_every": 4, "sample_every": 4, "previews": 1,
            "precision": "fp32", "ema_every": 5,
        },
    )  # fmt: skip
    return small.model_dump(mode="json", exclude_unset=True)


class Operation(NamedTuple):
    """A system call that changed what is on the disk, or was about to."""

    kind: str
    path: Path
    other: Path | None  # where a rename goes
    result: int
    offset: int
    length: int
    content: bytes

    def __str__(self) -> str:
        return f"{self.kind} {self.path.name}" + (f" -> {self.other.name}" if self.other else "")


def read_log(path: Path) -> list[Operation]:
    """Return the operations that faults.c wrote into its log."""
    content, found, place = path.read_bytes(), [], 0

    def take(size: int) -> bytes:
        nonlocal place
        place += size
        return content[place - size : place]

    while place < len(content):
        numbers = [int.from_bytes(take(8), sys.byteorder, signed=True) for _ in range(7)]
        kind, result, offset, length, *sizes = numbers
        first, second, written = (take(size) for size in sizes)
        other = Path(os.fsdecode(second)) if KINDS[kind] == "rename" else None
        found.append(Operation(KINDS[kind], Path(os.fsdecode(first)), other, result, offset, length, written))
    return found


@dataclass(frozen=True)
class Fault:
    """What happens to a process at one of its operations.

    Args:
        at: the number of the operation, from 0; -1 is none.
        action: see `ACTIONS`.
        error: the errno with which the operation fails, where the action is to fail.
        kinds: the kinds of operations that may fail.
    """

    at: int = -1
    action: Action = "watch"
    error: int = 0
    kinds: tuple[str, ...] = KINDS

    def __str__(self) -> str:
        return f"{self.action} {self.at}"


class Reply(NamedTuple):
    """How a child ended: the signal (0 is none), or its exit code and message; with its output and its `outcome`."""

    signal: int
    code: int | None
    message: str
    output: str
    outcome: dict[str, Any] | None


class Crashes:
    """The process that forks children (child.py), in which faults happen.

    Args:
        place: a folder for stages, the log of operations and the compiled faults.c.
        pictures: the folder of images that is trained on.
    """

    def __init__(self, place: Path, pictures: Path) -> None:
        if sys.platform != "linux" or platform.machine() != "x86_64":
            pytest.skip("faults.c knows the system calls of Linux on x86-64 only")
        compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
        if compiler is None:
            pytest.skip("no C compiler")
        self.place, self.pictures = place, pictures
        self.library, self.log = place / "faults.so", place / "log"
        source = Path(__file__).with_name("faults.c")
        subprocess.run([compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", self.library, source], check=True)
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("child.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(place / "cache"),
        )  # fmt: skip

    def close(self) -> None:
        """End the process that forks."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def ask(self, do: str, *, stage: Path | None = None, fault: Fault | None = None, **words: Any) -> Reply:
        """Let a child call the function `do` of child.py with `words`, with a fault below `stage`."""
        request = {"do": do, **words}
        if fault is not None:
            request["fault"] = {
                "library": str(self.library), "log": str(self.log), "root": str(stage), "at": fault.at,
                "action": ACTIONS.index(fault.action), "error": fault.error,
                "kinds": sum(1 << KINDS.index(kind) for kind in fault.kinds),
            }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Reply(
            answer["signal"], answer.get("code"), answer.get("message", ""), answer["output"], answer.get("outcome")
        )

    def train(self, stage: Path, fault: Fault | None = None, *, resume: bool = True, **words: Any) -> Reply:
        """Train in `STAGE/run`, with a fault."""
        return self.ask("train", stage=stage, fault=fault, **self._training(stage, resume), **words)

    def finish(self, stage: Path, *, resume: bool = True, **words: Any) -> Reply:
        """Train to the end without a fault; the reply has the outcome."""
        return self.ask("finish", step=END, **self._training(stage, resume), **words)

    def _training(self, stage: Path, resume: bool) -> dict[str, Any]:
        return {"config": config(), "data": str(self.pictures), "run": str(stage / "run"), "resume": resume}

    def watched(self, base: Path | None) -> tuple[list[Operation], Path]:
        """Train to the end, from a copy of the stage `base` or from nothing; return every operation, and the stage."""
        stage = fresh(self.place / ("started" if base is None else "resumed"), base)
        reply = self.train(stage, Fault(), resume=base is not None, **own_cache(stage, base))
        if "refuses to watch" in reply.message:
            pytest.skip("this system allows no seccomp filter")
        assert (reply.signal, reply.code) == (0, 0), reply
        operations = read_log(self.log)
        assert [str(operation) for operation in operations if operation.kind == "unknown"] == []
        return operations, stage


def own_cache(stage: Path, base: Path | None) -> dict[str, Any]:
    """Return the environment of a run from nothing, in which it decodes its images too."""
    return {} if base is not None else {"environment": {"DIFFUNET_CACHE": str(stage / "cache")}}


def environment(cache: Path) -> dict[str, str]:
    """Return the environment of a process that uses this very diffunet, installed or not, on one thread."""
    home = Path(diffunet.__file__).parent.parent
    paths = [str(home), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "DIFFUNET_CACHE": str(cache),
    }  # fmt: skip


def fresh(stage: Path, base: Path | None) -> Path:
    """Make `stage` anew, as a copy of the stage `base` or empty, and return it."""
    shutil.rmtree(stage, ignore_errors=True)
    if base is None:
        stage.mkdir(parents=True)
    else:
        shutil.copytree(base, stage)
    return stage


def reported(run: Path) -> int | None:
    """Return the step that RUN/status.json reports as saved."""
    path = run / "status.json"
    status = json.loads(path.read_text()) if path.exists() else {"state": "failed"}
    return status["step"] if status["state"] in ("running", "stopped", "done") else None


def newest(run: Path) -> int | None:
    """Return the step of the checkpoint from which a resume would go on."""
    found = checkpoint.newest(run)
    return None if found is None else int(found.name.removeprefix("step-"))


def litter(run: Path) -> list[str]:
    """Return the temporary files and folders below a run."""
    return sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if (path.name.startswith(".") or path.name.endswith(".tmp")) and path.name != ".lock"
    )


def spread(operations: list[Operation], every: int) -> Iterator[int]:
    """Yield the numbers of every n-th operation, and of each rename of one checkpoint; in thorough tests each fsync."""
    name, kinds = f"step-{START + EVERY:08d}", ("rename",) if every > 100 else ("fsync", "rename")
    for number, operation in enumerate(operations):
        one = any(name in str(path) for path in (operation.path, operation.other))
        if number % every == 0 or (one and operation.kind in kinds):
            yield number


def until(operations: list[Operation], step: int) -> list[Operation]:
    """Return the operations before the first that belongs to the checkpoint of a step."""
    name = f"step-{step:08d}"
    return operations[: next(number for number, operation in enumerate(operations) if name in str(operation.path))]


def troubles(points: Iterable[Any], check: Callable[[Any], str | None]) -> list[str]:
    """Check all of `points` and return all complaints: one that fails does not keep the others from being tried."""
    return [f"{point}: {trouble}" for point in points if (trouble := check(point))]


def differences(wanted: dict[str, Any], reply: Reply, *, but: str = "") -> str | None:
    """Say where the outcome of a run differs from that of the run that was not stopped; `but` names what may differ."""
    if reply.signal or reply.code != 0 or reply.outcome is None:
        last = " ".join(reply.message.strip().splitlines()[-3:])
        return f"resume ended with signal {reply.signal}, code {reply.code}: {last}"
    differing = [name for name, value in wanted.items() if reply.outcome[name] != value and name != but]
    return f"{', '.join(differing)} differ" if differing else None
