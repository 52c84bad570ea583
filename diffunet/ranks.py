"""The processes that a launcher (torchrun, accelerate launch) has started: where each of them computes, and how they
share work that needs no gradients, such as sampling.

Training joins its processes by accelerate (training/processes.py), and shares previews and validation like this.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffunet import compute, errors, variables
from diffunet.errors import Error, ResourceError, UsageError

T = TypeVar("T")

SILENCE = timedelta(hours=1)
"""How long a process waits for another: longer than any takes for a batch of images more than the others do."""


def device(name: str | None) -> torch.device:
    """Return the device `name`, or by default the GPU of this process's rank on its machine, or the best there is.

    Raises:
        UsageError: the device is not there, or several processes would all take the same GPU.
    """
    if name is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        name = "cpu"
    several, kind = variables.world_size() > 1, (name or "cuda").partition(":")[0]
    if kind != "cuda" or not torch.cuda.is_available():
        return compute.find_device(name)
    if several and name is not None and ":" in name:
        raise UsageError(f"--device {name} would be the GPU of every process: --device cuda gives each its own")
    if name is None or ":" not in name:  # torch.cuda.set_device takes no device without a number
        rank, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if rank >= gpus:
            raise UsageError(
                f"process {rank + 1} of this machine has no GPU of its own, as torch sees {gpus}: start at most "
                f"{gpus} processes (--num_processes), or let it see more (CUDA_VISIBLE_DEVICES)"
            )
        name = f"cuda:{rank}" if several else f"cuda:{torch.cuda.current_device()}"
    chosen = compute.find_device(name)
    torch.cuda.set_device(chosen)
    return chosen


def lost_contact(error: Exception) -> bool:
    """Return whether a collective operation failed because a process, or the connection to it, is gone."""
    if isinstance(error, getattr(dist, "DistError", ())):
        return True
    if variables.world_size() < 2 or not isinstance(error, RuntimeError):
        return False
    words = str(error).lower()
    return any(sign in words for sign in ("gloo", "nccl", "connection closed", "connection reset", "timed out"))


@dataclass(frozen=True)
class Ranks:
    """This process, the `rank`-th of `count`, and the others; the main one, which writes and prints, is of rank 0.

    All processes call its methods together, in the same order. Where another one is gone they raise torch's error,
    which `together` turns into words. `group` is torch's process group of all of them that they talk in, on the CPU; by
    default the one that is there.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes what is one file, and prints."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            dist.barrier(self.group)

    def gather(self, content: bytes) -> list[bytes]:
        """Return the bytes of all processes, by rank, on the main one; nothing elsewhere."""
        if self.count == 1:
            return [content]
        mine = _tensor(content)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(mine)]), self.group)
        if not self.is_main:
            dist.send(mine, 0, self.group)
            return []
        parts = [mine, *(torch.empty(int(size), dtype=torch.uint8) for size in sizes[1:])]
        for rank in range(1, self.count):
            dist.recv(parts[rank], rank, self.group)
        return [_bytes(part) for part in parts]

    def each(self, work: Callable[[], bytes]) -> list[bytes]:
        """Let every process do its part of some work, and return what they give as `gather` does.

        Raises:
            Error: on all of them what the first by rank raises; one that another process has told is `told`.
        """
        if self.count == 1:
            return [work()]
        content, failed = b"", None
        try:
            content = work()
        except Error as error:
            failed = error
        first = self.smallest(self.count if failed is None else self.rank)
        if first < self.count:
            self._told(first, None, failed)
        return self.gather(content)

    def share(self, work: Callable[[], T]) -> T:
        """Let the main process do some work, and return what it gives, as JSON has it, on all of them.

        Raises:
            Error: as the work does, on all of them; one that another process has told is `told`.
        """
        if self.count == 1:
            return work()
        value, failed = None, None
        if self.is_main:
            try:
                value = work()
            except Error as error:
                failed = error
        return self._told(0, value, failed)  # type: ignore[no-any-return]

    def smallest(self, number: int) -> int:
        """Return the smallest of the processes' numbers, so that all of them make the same choice."""
        found = torch.tensor([number])
        if self.count > 1:
            dist.all_reduce(found, dist.ReduceOp.MIN, self.group)
        return int(found)

    def _told(self, rank: int, value: Any, failed: Error | None) -> Any:
        """Return the value of the process of this rank on all of them, or raise its error."""
        told = json.dumps([value] if failed is None else [type(failed).__name__, str(failed)]).encode()
        size = torch.tensor([len(told)])
        dist.broadcast(size, rank, self.group)
        content = _tensor(told) if self.rank == rank else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(content, rank, self.group)
        if self.rank == rank and failed is not None:
            raise failed
        found = json.loads(_bytes(content))
        if len(found) == 2:
            kind, words = found
            repeated: Error = getattr(errors, kind)(words)
            repeated.told = True
            raise repeated
        return found[0]


ALONE = Ranks()
"""A process that works by itself."""


def of_group(timeout: timedelta) -> Ranks:
    """Return the processes of the process group that there is, which talk in one of their own; ALONE without any.

    All of them call this together. None waits longer than `timeout` for another.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=timeout))


@contextlib.contextmanager
def together() -> Iterator[Ranks]:
    """Join the processes that a launcher has started, and yield them; a process that is alone is `ALONE`.

    They talk on the CPU, by gloo, since a message or two for a batch of images is all that they have to say.

    Raises:
        ResourceError: another process is gone, or has kept silent for an hour.
    """
    if variables.world_size() == 1:
        yield ALONE
        return
    try:
        dist.init_process_group("gloo", timeout=SILENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size())
        dist.destroy_process_group()
    except Exception as error:
        if not lost_contact(error):
            raise
        raise ResourceError(
            "contact with another process was lost, or it kept silent for an hour; what it said last tells why. Start "
            f"all of them again: what is in a folder is gone on with ({compute.first_line(error)[:200]})"
        ) from None


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
