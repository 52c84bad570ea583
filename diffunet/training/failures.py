"""How a run ends that cannot go on: the error that a person can mend, and what RUN/status.json says."""

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
class Where:
    """How far a run is, for what is said when it ends."""

    run: Path
    config: Config
    step: int = 0
    saved: int = 0


@contextlib.contextmanager
def told(where: Where, flag: StopFlag, main: bool) -> Iterator[None]:
    """Turn what ends a run into a `diffunet.Error` where a person can mend it, and write it to RUN/status.json."""
    try:
        if main:
            record.write_status(where.run, "starting", None)  # what it says of an earlier run is over
        yield
    except Exception as error:
        said = explained(error, where)
        if main:
            stopped, diverged = isinstance(said, Stopped), isinstance(said, DivergedError)
            state = "stopped" if stopped else "diverged" if diverged else "failed"
            details = {"reason": flag.reason} if stopped else {"error": str(said)}
            with contextlib.suppress(OSError):  # the disk is full, perhaps; that is said already
                record.write_status(
                    where.run, state, where.step, steps=where.config.train.steps,
                    exit_code=getattr(said, "exit_code", 1), **details,
                )  # fmt: skip
        if said is error:
            raise
        raise said from None


@contextlib.contextmanager
def saved_first(where: Where, save: Callable[[], None]) -> Iterator[None]:
    """Images that vanish or change while they are read again and again end a run between two steps: nothing is lost."""
    try:
        yield
    except DataError:
        if where.step > where.saved:
            save()
        raise


def refuse_divergence(where: Where, streak: int, spoilt: bool) -> None:
    """End a run that does not learn any more: `streak` steps in a row were skipped, or weights are not finite.

    Raises:
        DivergedError: naming the checkpoint that is left, and what to try.
    """
    t = where.config.train
    if streak < t.max_skipped and not spoilt:
        return
    what = "weights are not finite" if spoilt else f"no finite loss and gradient in {streak} steps in a row"
    left = f"the checkpoint of step {where.saved} is whole: --resume" if where.saved else "start anew"
    raise DivergedError(f"{what}, at step {where.step}; {left} with --train.learning-rate below {t.learning_rate:g}")


def explained(error: Exception, where: Where) -> Exception:
    """`error` as a person can mend it, or itself where it is our fault."""
    if isinstance(error, Error):
        return error
    if compute.is_out_of_memory(error):
        return ResourceError(out_of_memory(where.config, where.config.train.batch_size, begun=where.saved > 0))
    if lost_contact(error):
        first = str(error).strip().splitlines()[0]
        return ResourceError(
            f"contact with another process was lost at step {where.step}, or it kept silent for "
            f"{where.config.train.timeout:g} minutes (--train.timeout); what it said last tells why. Start all of them "
            f"again with --resume ({first[:200]})"
        )
    if isinstance(error, OSError):
        return ResourceError(f"training cannot go on at step {where.step}: {error}; mend that and --resume")
    return error


def lost_contact(error: Exception) -> bool:
    """Whether a collective operation failed because a process, or the way to it, is gone."""
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or not isinstance(error, RuntimeError):
        return False
    words = str(error).lower()
    return any(sign in words for sign in ("gloo", "nccl", "connection closed", "connection reset", "timed out"))
