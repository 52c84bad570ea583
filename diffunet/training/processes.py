"""The processes of a run: where each of them computes, how they are joined, and what they agree on."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from diffunet import compute
from diffunet.compute import Compute
from diffunet.config import TrainConfig
from diffunet.data.dataset import Dataset
from diffunet.errors import DataError, Stopped, UsageError


def is_main() -> bool:
    """Return whether this process is the one of the run that writes files and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def device(name: str | None) -> torch.device:
    """Return the device on which this process trains.

    Args:
        name: the device that was asked for. By default it is the GPU of this process's rank on its machine, or the best
            device there is.

    Raises:
        UsageError: the device is not there, or several processes would all take the same GPU.
    """
    if name is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        name = "cpu"
    several, kind = int(os.environ.get("WORLD_SIZE", 1)) > 1, (name or "cuda").partition(":")[0]
    if kind != "cuda" or not torch.cuda.is_available():
        return compute.find_device(name)
    if several and name is not None and ":" in name:
        raise UsageError(f"--device {name} would be the GPU of every process: --device cuda gives each its own")
    if several or name is None:
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


def free_memory(how: Compute) -> int:
    """Return the bytes that this process may take; the processes of one machine share the memory of its CPU."""
    free = how.free_memory()
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if how.device.type == "cpu" else free


def join(config: TrainConfig, chosen: torch.device) -> Accelerator:
    """Join the processes of this run, and return what they communicate by."""
    # DDP sorts its buckets anew after the first step, which would change the order of its sums when a run is resumed,
    # unless it looks for unused parameters. Two processes have but one order.
    exact = (chosen.type == "cpu" or config.deterministic) and int(os.environ.get("WORLD_SIZE", 1)) > 2
    # We apply autocast ourselves, to the net alone: accelerate's is fixed for the life of a process.
    return Accelerator(
        mixed_precision="no",
        cpu=chosen.type == "cpu",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=exact, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout)),
        ],
    )


def smallest(number: int, processes: Accelerator) -> int:
    """Return the smallest of the processes' numbers, so that all of them make the same choice."""
    return int(processes.gather(torch.tensor([number], device=processes.device)).min().item())


def refuse_different_images(dataset: Dataset, processes: Accelerator) -> None:
    """Refuse to begin where processes see different images, such as on machines with a copy of the folder each.

    Raises:
        DataError: the images differ; every process raises it.
    """
    mine = torch.tensor([int(dataset.index_hash[:15], 16)], device=processes.device)
    if len(processes.gather(mine).unique()) > 1:
        raise DataError("the processes see different images: give all of them the same folder, and leave it alone")


@contextlib.contextmanager
def end_of_group() -> Iterator[None]:
    """See to it that a process group which is made within this context ends with the program, as torch asks for.

    The group does not end with the run: another run in the same program goes on with it, since a second group at the
    same address would meet what is left of the first. A process that is alone has no group, and what accelerate keeps
    of it is dropped, so that the next run may use another device. A group that the caller has made is left alone.
    Where this process fails, other processes may still wait for it, so that no group can be ended in good order.
    """
    ended, is_callers = False, bool(PartialState._shared_state) or dist.is_initialized()
    try:
        yield
        ended = True
    except Stopped:
        ended = True
        raise
    finally:
        if ended and not is_callers and dist.is_initialized():
            atexit.register(_destroy_group)
        if not ended:
            atexit.unregister(_destroy_group)
        if not is_callers and not dist.is_initialized():
            AcceleratorState._reset_state(reset_partial_state=True)


def _destroy_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
