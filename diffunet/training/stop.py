"""Stopping on request: by a signal, a call, the clock or a file; processes agree on the step after which they stop.

This module imports torch, which takes seconds, only when training begins, since a signal may come before.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from diffunet.errors import Stopped

if TYPE_CHECKING:
    from torch import Tensor, distributed

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGHUP is what a closed terminal sends; Windows has none."""


class Agreed(NamedTuple):
    """What all processes do after a step: stop, save, or, in a run whose end is open, cool down or go to full size."""

    stop: bool = False
    save: bool = False
    cool: bool = False
    grow: bool = False


class StopFlag:
    """A flag that a signal or a call sets, and on which all processes agree.

    Every process asks `agreed()` once a step, and all of them get the same answer at the same step: to save as well,
    where one of them wants it, since all take part in what is measured and checked before, and to begin the cool-down.
    Before `begin` is called there is no step to wait for, and setting the flag ends the run at once.
    """

    def __init__(self) -> None:
        self.wanted, self.reason, self._stepping = False, "", False
        self._pending: tuple[Tensor, distributed.Work] | None = None
        self._group: Any = None

    def set(self, reason: str) -> None:
        """Ask the run to stop; raise Stopped where no step has begun."""
        self.wanted, self.reason = True, reason
        if not self._stepping:
            raise Stopped(f"stopped by {reason} before a step was done; nothing is lost: start it again, with --resume")

    def begin(self, timeout: timedelta) -> None:
        """Let requests wait for the end of a step from now on. Every process calls this once process groups exist."""
        import torch.distributed as dist

        many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        # The flag has a group of its own on the CPU, so that it waits neither for a GPU nor behind gradients.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if many else None
        self._stepping = True

    def agreed(self, save: bool = False, cool: bool = False, grow: bool = False) -> Agreed:
        """Return what to do after this step; with several processes the answer is that of one step ago.

        `save` says that this process wants a checkpoint, `cool` that it wants the cool-down to begin, and `grow` that
        it wants to go on at full size. They are asked for once, and not until they are there.
        """
        if self._group is None:
            return Agreed(self.wanted, save, cool, grow)
        import torch
        import torch.distributed as dist

        before, wishes = self._pending, torch.tensor([float(each) for each in (self.wanted, save, cool, grow)])
        work = dist.all_reduce(wishes, group=self._group, async_op=True)
        assert work is not None
        self._pending = (wishes, work)
        if before is None:
            return Agreed()
        before[1].wait()
        return Agreed(*(before[0] > 0).tolist())

    def settle(self) -> None:
        """Finish the communication under way, so that no process waits for one that is gone."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None


class Limits:
    """The reasons beside signals for which a run stops: its minutes are over, or somebody made the file RUN/stop.

    Args:
        file, minutes: the file to look for, once a second, and the minutes that the run may take; None is for ever.
    """

    def __init__(self, file: Path, minutes: float | None) -> None:
        self.file, self._look = file, time.monotonic()  # changes of the clock do not move it
        self._end = math.inf if minutes is None else self._look + 60 * minutes

    def reason(self) -> str | None:
        """Return why the run has to stop, or None."""
        now = time.monotonic()
        if now >= self._end:
            return "--train.stop-after"
        if now >= self._look:
            self._look = now + 1.0
            if self.file.exists():
                return f"the file {self.file}"
        return None

    def done(self) -> None:
        """Delete the file once the run has stopped, or else the next run would stop at its first step."""
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)


@contextlib.contextmanager
def on_signals(flag: StopFlag) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP set `flag` within this context; a second SIGINT ends the program at once.

    Signals that are ignored, as by nohup, stay ignored. Only the main thread of a program can handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def listen(number: int, frame: FrameType | None) -> None:
        if flag.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set(signal.Signals(number).name)

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, listen) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
