"""Stopping on request: by a signal, a call, the clock or a file; processes agree on the step after which they stop.

torch, which takes seconds to import, is imported when training begins: a signal may come before.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from diffunet.errors import Stopped

if TYPE_CHECKING:
    from torch import Tensor, distributed

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGHUP is what a closed terminal sends; Windows has none."""


class StopFlag:
    """Set by a signal or a call; `agreed()`, asked once a step by every process, is true for all of them at once.

    Until `begin` is called there is no step to wait for, and a request ends the run there and then.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.reason = ""
        self._stepping = False
        self._pending: tuple[Tensor, distributed.Work] | None = None
        self._group: Any = None

    def set(self, reason: str) -> None:
        """Ask for a stop.

        Raises:
            Stopped: before `begin`.
        """
        self.wanted, self.reason = True, reason
        if not self._stepping:
            raise Stopped(f"stopped by {reason} before a step was done; nothing is lost: start it again, with --resume")

    def begin(self, timeout: timedelta) -> None:
        """From now on a request waits for the end of a step. Every process calls this, with process groups made."""
        import torch.distributed as dist

        many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        # Its own group on the CPU: the flag never waits for a GPU, nor behind gradients.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if many else None
        self._stepping = True

    def agreed(self) -> bool:
        """Whether to stop after this step. With many processes the answer is that to the question of one step ago."""
        if self._group is None:
            return self.wanted
        import torch
        import torch.distributed as dist

        before = self._pending
        flag = torch.tensor([float(self.wanted)])
        work = dist.all_reduce(flag, group=self._group, async_op=True)
        assert work is not None
        self._pending = (flag, work)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0].item())

    def settle(self) -> None:
        """Finish what is under way, so that no process waits for one that is gone."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None


class Limits:
    """What ends a run beside signals: its minutes are over, or somebody made the file RUN/stop. Asked once a step.

    Args:
        file: the one to look for, once a second.
        minutes: from now on; None is for ever.
    """

    def __init__(self, file: Path, minutes: float | None) -> None:
        self.file = file
        now = time.monotonic()  # which no change of the clock moves
        self._end = None if minutes is None else now + 60 * minutes
        self._look = now

    def reason(self) -> str | None:
        """Why to stop, or None."""
        now = time.monotonic()
        if self._end is not None and now >= self._end:
            return "--train.stop-after"
        if now >= self._look:
            self._look = now + 1.0
            if self.file.exists():
                return f"the file {self.file}"
        return None

    def done(self) -> None:
        """The request is fulfilled: the file goes, or the next run would stop at its first step."""
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)


@contextlib.contextmanager
def on_signals(flag: StopFlag) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set `flag`; a second SIGINT ends at once.

    A signal that was ignored before (nohup) stays so. Only in the main thread can a program listen.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def listen(number: int, frame: FrameType | None) -> None:
        if flag.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set(signal.Signals(number).name)

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, listen) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
