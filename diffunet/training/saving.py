"""When a checkpoint is due by the clock; and checkpoints that a thread writes while training goes on, where that pays.

The thread writes a copy of the tensors in the CPU's memory, of the values that they have at that step: 16 bytes for
each weight of the net (itself, its average, the optimizer's two moments), 24 where averages are stored along the run.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic  # which does not move when the clock is set

import torch
from torch import Tensor

from diffunet import compute, storage
from diffunet.compute import Compute

log = logging.getLogger(__name__)

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors by the file of a checkpoint that they belong to and by name."""


class Cadence:
    """Says when a number of minutes has passed since the last checkpoint, or since training began; 0 is never."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes if minutes else math.inf
        self.restart()

    def restart(self) -> None:
        """Count from now on, as a checkpoint is made."""
        self._since = monotonic()

    def due(self) -> bool:
        """Return whether the minutes have passed; they count anew once it has said so, as processes agree later."""
        if monotonic() - self._since < self.seconds:
            return False
        self.restart()
        return True


class Writer:
    """Writes in a thread, one thing at a time. What fails there is raised by `check` or `settle`, whichever is next."""

    def __init__(self) -> None:
        self._under_way: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Let a thread call `write`, once what is under way has ended."""
        self.settle()
        pool = ThreadPoolExecutor(1, thread_name_prefix="saving")
        self._under_way = pool.submit(write)
        pool.shutdown(wait=False)  # the thread ends with it

    def check(self) -> None:
        """Raise the error of what is written, if it has ended with one; nothing is waited for."""
        if self._under_way is not None and self._under_way.done():
            self.settle()

    def settle(self) -> None:
        """Wait until what is under way is written; raise its error."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Settle at the end of this context; if it ends with an error, that of the thread is only logged.

        A second Ctrl-C waits here too: nobody else may write to the run folder before this thread is done.
        """
        try:
            yield
        except BaseException:
            try:
                self.settle()
            except Exception as error:
                log.warning("%s", error)
            raise
        self.settle()


def beside(how: Compute, size: int) -> bool:
    """Return whether a checkpoint of `size` bytes is written beside the steps that follow, which takes a copy of it.

    A GPU goes on while the CPU hashes and writes, so it pays there. On a CPU the thread takes its time from the steps,
    but for that in which it waits for the disk. Measured for the default net at 32 pixels on one core: a checkpoint of
    227 MiB takes 2.0 to 2.6 s, of which 0.7 to 1.0 s are the core's, and a step 5 s or more. What is saved every 1,000
    steps, or every quarter of an hour, would gain 0.2% at most: it is written in place.

    Twice the size has to be free in the CPU's memory, as older versions of safetensors copy what they write.
    """
    if how.device.type != "cuda":
        return False
    free = Compute(torch.device("cpu")).free_memory()
    if 2 * size > free:
        log.info("training waits for its checkpoints: a copy of %s is too large for the memory", storage.size(size))
    return 2 * size <= free


def size(tensors: Tensors) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for part in tensors.values() for tensor in part.values())


def copied(tensors: Tensors) -> Tensors | None:
    """Return a copy of the tensors in the CPU's memory, as it lies in a file, or None if there is no memory for it."""
    try:
        return {
            file: {
                name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                for name, tensor in part.items()
            }
            for file, part in tensors.items()
        }
    except (MemoryError, RuntimeError) as error:
        if not compute.is_out_of_memory(error):
            raise
        compute.give_back(error)
        return None
