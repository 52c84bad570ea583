"""Runs that are crashed on purpose: what they do to the disk, call by call, and what is left after each.

A stage is a folder with a run in it, `STAGE/run`, below which every change is seen (faults.c).
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
"""What a disk without room refuses."""

THOROUGH = int(os.environ.get("DIFFUNET_EVERY", "12"))
"""Of power losses and failures the slow tests resume from every so many; 1 is all. Kills are always all tried."""

START, EVERY, END = 6, 2, 10
"""Steps: where the run to be resumed stands, between checkpoints, and where it ends."""


def config(steps: int = END, every: int = EVERY) -> dict[str, Any]:
    """A net of some thousand weights, with everything that makes a run write: previews, held-out loss, metrics."""
    small = tiny(
        model={"channels": 4, "multipliers": (1,), "attention_resolutions": ()},
        train={
            "steps": steps, "checkpoint_every": every, "validate_every": 4, "sample_every": 4, "previews": 1,
            "precision": "fp32", "ema_every": 5,
        },
    )  # fmt: skip
    return small.model_dump(mode="json", exclude_unset=True)


class Operation(NamedTuple):
    """A call that changed, or would have changed, what is on the disk."""

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
    """The operations that faults.c wrote down."""
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
    """What befalls a process at its operation number `at`."""

    at: int = -1
    action: Action = "watch"
    error: int = 0
    kinds: tuple[str, ...] = KINDS

    def __str__(self) -> str:
        return f"{self.action} {self.at}"


class Reply(NamedTuple):
    """How a child ended: by a signal, or with an exit code and a message."""

    signal: int
    code: int | None
    message: str
    said: str  # on standard output and error
    outcome: dict[str, Any] | None


class Crashes:
    """Forks trainings (child.py), and makes them fail."""

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
        """Let a child do something, with a fault below `stage`."""
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
            answer["signal"], answer.get("code"), answer.get("message", ""), answer["said"], answer.get("outcome")
        )

    def train(self, stage: Path, fault: Fault | None = None, *, resume: bool = True, **words: Any) -> Reply:
        """Train in `STAGE/run`."""
        return self.ask("train", stage=stage, fault=fault, **self._training(stage, resume), **words)

    def finish(self, stage: Path, *, resume: bool = True, **words: Any) -> Reply:
        """Train to the end, with nothing in the way."""
        return self.ask("finish", step=END, **self._training(stage, resume), **words)

    def _training(self, stage: Path, resume: bool) -> dict[str, Any]:
        return {"config": config(), "data": str(self.pictures), "run": str(stage / "run"), "resume": resume}

    def watched(self, base: Path | None) -> tuple[list[Operation], Path]:
        """Every operation of a training to the end, from a copy of the stage `base` or from nothing; and its stage."""
        stage = fresh(self.place / ("started" if base is None else "resumed"), base)
        reply = self.train(stage, Fault(), resume=base is not None, **own_cache(stage, base))
        if "refuses to watch" in reply.message:
            pytest.skip("this system allows no seccomp filter")
        assert (reply.signal, reply.code) == (0, 0), reply
        operations = read_log(self.log)
        assert [str(operation) for operation in operations if operation.kind == "unknown"] == []
        return operations, stage


def own_cache(stage: Path, base: Path | None) -> dict[str, Any]:
    """A run from nothing decodes its images too."""
    return {} if base is not None else {"environment": {"DIFFUNET_CACHE": str(stage / "cache")}}


def environment(cache: Path) -> dict[str, str]:
    """For processes that use this very diffunet, installed or not, on one thread."""
    home = Path(diffunet.__file__).parent.parent
    paths = [str(home), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "DIFFUNET_CACHE": str(cache),
    }  # fmt: skip


def fresh(stage: Path, base: Path | None) -> Path:
    """`stage` as a copy of `base`, or empty."""
    shutil.rmtree(stage, ignore_errors=True)
    if base is None:
        stage.mkdir(parents=True)
    else:
        shutil.copytree(base, stage)
    return stage


def reported(run: Path) -> int | None:
    """The step that RUN/status.json says is saved."""
    path = run / "status.json"
    status = json.loads(path.read_text()) if path.exists() else {"state": "failed"}
    return status["step"] if status["state"] in ("running", "stopped", "done") else None


def newest(run: Path) -> int | None:
    """The step of the checkpoint that a resume would go on from."""
    found = checkpoint.newest(run)
    return None if found is None else int(found.name.removeprefix("step-"))


def litter(run: Path) -> list[str]:
    """Temporary files and folders below a run."""
    return sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if (path.name.startswith(".") or path.name.endswith(".tmp")) and path.name != ".lock"
    )


def spread(operations: list[Operation], every: int) -> Iterator[int]:
    """Numbers of operations: every n-th, and of one checkpoint each fsync and rename."""
    name = f"step-{START + EVERY:08d}"
    for number, operation in enumerate(operations):
        one = any(name in str(path) for path in (operation.path, operation.other))
        if number % every == 0 or (one and operation.kind in ("fsync", "rename")):
            yield number


def until(operations: list[Operation], step: int) -> list[Operation]:
    """Those before anything is written of the checkpoint of a step."""
    name = f"step-{step:08d}"
    return operations[: next(number for number, operation in enumerate(operations) if name in str(operation.path))]


def troubles(points: Iterable[Any], check: Callable[[Any], str | None]) -> list[str]:
    """What `check` complains of, for all of `points`: one that fails keeps no other from being tried."""
    return [f"{point}: {trouble}" for point in points if (trouble := check(point))]


def differences(wanted: dict[str, Any], reply: Reply, *, but: str = "") -> str | None:
    """Where a finished run differs from the one that was not stopped, `but` for one thing."""
    if reply.signal or reply.code != 0 or reply.outcome is None:
        last = " ".join(reply.message.strip().splitlines()[-3:])
        return f"resume ended with signal {reply.signal}, code {reply.code}: {last}"
    differing = [name for name, value in wanted.items() if reply.outcome[name] != value and name != but]
    return f"{', '.join(differing)} differ" if differing else None
