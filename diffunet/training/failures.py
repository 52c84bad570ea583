"""How far a run is, in RUN/status.json, and how one ends that cannot go on: with an error that a person can mend."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffunet import compute, files, ranks
from diffunet.config import Config
from diffunet.errors import DataError, DivergedError, Error, ResourceError, Stopped, UsageError
from diffunet.training.memory import out_of_memory
from diffunet.training.stop import StopFlag


def write_status(run: Path, state: str, step: int | None, **values: Any) -> None:
    """Write RUN/status.json; `state` is starting, running, done, stopped, diverged or failed."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    content = {"state": state, "step": step, **values, "pid": os.getpid(), "time": now}
    files.write_atomic(run / "status.json", json.dumps(content, indent=1))


@dataclass
class Status:
    """How far a run is.

    `step` optimizer steps are done, and the checkpoint of the step `saved` is on the disk. The model of a run that is
    done is of the step `model_step`, if that is not the last. It has `begun` once all is chosen.
    """

    folder: Path
    config: Config
    step: int = 0
    saved: int = 0
    model_step: int | None = None
    begun: bool = False


@contextlib.contextmanager
def explaining(status: Status, flag: StopFlag, main: bool) -> Iterator[None]:
    """Turn an error that a person can mend into a `diffunet.Error`, and write every error to RUN/status.json.

    What does not begin leaves the status of a run that there is: where the command is refused, or the run was done.
    """
    path = status.folder / "status.json"
    before: bytes | None = None
    try:
        if main:
            before = path.read_bytes() if path.exists() else None
            write_status(status.folder, "starting", None)  # replaces what an earlier start has left
        yield
    except Exception as error:
        explained = explain(error, status)
        if main:
            stopped, diverged = isinstance(explained, Stopped), isinstance(explained, DivergedError)
            state = "stopped" if stopped else "diverged" if diverged else "failed"
            details = {"steps": status.config.train.steps, "exit_code": getattr(explained, "exit_code", 1)}
            details |= {"reason": flag.reason} if stopped else {"error": str(explained)}
            with contextlib.suppress(OSError):  # the disk may be full, which the error says already
                if before and not status.begun and (isinstance(explained, UsageError) or _says_done(before)):
                    files.write_atomic(path, before)
                else:
                    write_status(status.folder, state, status.step, **details)
        if explained is error:
            raise
        raise explained from None


def _says_done(content: bytes) -> bool:
    """Return whether the content of a status.json says that its run is done."""
    try:
        return bool(json.loads(content)["state"] == "done")
    except (ValueError, TypeError, KeyError):
        return False


@contextlib.contextmanager
def saved_first(status: Status, save: Callable[[], None]) -> Iterator[None]:
    """Save the steps that are done when images vanish or change, which can only be noticed between two steps."""
    try:
        yield
    except DataError:
        if status.step > status.saved:
            save()
        raise


def refuse_divergence(status: Status, streak: int, spoilt: bool, settle: Callable[[], None]) -> None:
    """Raise DivergedError if too many steps in a row (`streak`) were skipped, or weights are not finite (`spoilt`).

    Before that, `settle` waits for the checkpoint that is being written, and raises its error.
    """
    t = status.config.train
    if streak < t.max_skipped and not spoilt:
        return
    settle()
    what = "weights are not finite" if spoilt else f"no finite loss and gradient in {streak} steps in a row"
    left = f"the checkpoint of step {status.saved} is whole: --resume" if status.saved else "start anew"
    raise DivergedError(f"{what}, at step {status.step}; {left} with --train.learning-rate below {t.learning_rate:g}")


def explain(error: Exception, status: Status) -> Exception:
    """Return the error that a person can mend, or `error` itself where the fault is ours."""
    if isinstance(error, Error):
        return error
    if compute.is_out_of_memory(error):
        return ResourceError(out_of_memory(status.config, status.config.train.batch_size, begun=status.saved > 0))
    if ranks.lost_contact(error):
        first = str(error).strip().splitlines()[0]
        return ResourceError(
            f"contact with another process was lost at step {status.step}, or it kept silent for "
            f"{status.config.train.timeout:g} minutes (--train.timeout); what it said last tells why. Start all of "
            f"them again with --resume ({first[:200]})"
        )
    if isinstance(error, OSError):
        return ResourceError(f"training cannot go on at step {status.step}: {error}; mend that and --resume")
    return error
