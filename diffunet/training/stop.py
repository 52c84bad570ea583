"""Stopping on request: a signal sets a flag, and all processes agree on the step after which they stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist


class StopFlag:
    """Set by a signal or a call; `agreed()`, asked once a step by every process, is true for all of them at once."""

    def __init__(self) -> None:
        self.wanted = False
        self.reason = ""
        self._pending: tuple[torch.Tensor, dist.Work] | None = None
        many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        # Its own group on the CPU: the flag never waits for a GPU, nor behind gradients.
        self._group: Any = dist.new_group(backend="gloo") if many else None

    def set(self, reason: str) -> None:
        """Ask for a stop."""
        self.wanted, self.reason = True, reason

    def agreed(self) -> bool:
        """Whether to stop after this step. With many processes the answer is that to the question of one step ago."""
        if self._group is None:
            return self.wanted
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


@contextlib.contextmanager
def on_signals(flag: StopFlag) -> Iterator[None]:
    """SIGINT and SIGTERM set `flag`; a second SIGINT ends at once. Only in the main thread can a program listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def listen(number: int, frame: FrameType | None) -> None:
        if flag.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set(signal.Signals(number).name)

    before = {number: signal.signal(number, listen) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
