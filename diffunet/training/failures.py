"""How a run ends that cannot go on: the error that a person can mend, and what is written to RUN/status.json."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from diffunet import compute
from diffunet.config import Config
from diffunet.errors import DataError, DivergedError, Error, ResourceError, Stopped
from diffunet.training import record
from diffunet.training.memory import out_of_memory
from diffunet.training.stop import StopFlag


@dataclass
class Status:
    """How far a run is: `step` optimizer steps are done, and the checkpoint of the step `saved` is on the disk."""

    folder: Path
    config: Config
    step: int = 0
    saved: int = 0


@contextlib.contextmanager
def explaining(status: Status, flag: StopFlag, main: bool) -> Iterator[None]:
    """Turn an error that a person can mend into a `diffunet.Error`, and write every error to RUN/status.json."""
    try:
        if main:
            record.write_status(status.folder, "starting", None)  # replaces what an earlier start has left
        yield
    except Exception as error:
        explained = explain(error, status)
        if main:
            stopped, diverged = isinstance(explained, Stopped), isinstance(explained, DivergedError)
            state = "stopped" if stopped else "diverged" if diverged else "failed"
            details = {"reason": flag.reason} if stopped else {"error": str(explained)}
            with contextlib.suppress(OSError):  # the disk may be full, which the error says already
                record.write_status(
                    status.folder, state, status.step, steps=status.config.train.steps,
                    exit_code=getattr(explained, "exit_code", 1), **details,
                )  # fmt: skip
        if explained is error:
            raise
        raise explained from None


@contextlib.contextmanager
def saved_first(status: Status, save: Callable[[], None]) -> Iterator[None]:
    """Save the steps that are done when images vanish or change, which can only be noticed between two steps."""
    try:
        yield
    except DataError:
        if status.step > status.saved:
            save()
        raise


def refuse_divergence(status: Status, streak: int, spoilt: bool) -> None:
    """End a run that no longer learns: `streak` steps in a row were skipped, or weights are not finite (`spoilt`).

    Raises:
        DivergedError: it names the checkpoint that is left, and what to try.
    """
    t = status.config.train
    if streak < t.max_skipped and not spoilt:
        return
    what = "weights are not finite" if spoilt else f"no finite loss and gradient in {streak} steps in a row"
    left = f"the checkpoint of step {status.saved} is whole: --resume" if status.saved else "start anew"
    raise DivergedError(f"{what}, at step {status.step}; {left} with --train.learning-rate below {t.learning_rate:g}")


def explain(error: Exception, status: Status) -> Exception:
    """Return the error that a person can mend, or `error` itself where the fault is ours."""
    if isinstance(error, Error):
        return error
    if compute.is_out_of_memory(error):
        return ResourceError(out_of_memory(status.config, status.config.train.batch_size, begun=status.saved > 0))
    if lost_contact(error):
        first = str(error).strip().splitlines()[0]
        return ResourceError(
            f"contact with another process was lost at step {status.step}, or it kept silent for "
            f"{status.config.train.timeout:g} minutes (--train.timeout); what it said last tells why. Start all of "
            f"them again with --resume ({first[:200]})"
        )
    if isinstance(error, OSError):
        return ResourceError(f"training cannot go on at step {status.step}: {error}; mend that and --resume")
    return error


def lost_contact(error: Exception) -> bool:
    """Return whether a collective operation failed because a process, or the connection to it, is gone."""
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or not isinstance(error, RuntimeError):
        return False
    words = str(error).lower()
    return any(sign in words for sign in ("gloo", "nccl", "connection closed", "connection reset", "timed out"))
