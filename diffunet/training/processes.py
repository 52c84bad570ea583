"""The processes of a run: where each of them computes, how they are joined, and what they agree on."""

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
from diffunet.data.groups import Split
from diffunet.data.labels import Labels
from diffunet.errors import DataError, Stopped, UsageError


def is_main() -> bool:
    """Return whether this process is the one of the run that writes files and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def device(name: str | None) -> torch.device:
    """Return the device `name`, or by default the GPU of this process's rank on its machine, or the best there is.

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


def free_memory(how: Compute) -> int:
    """Return the bytes that this process may take; the processes of one machine share the memory of its CPU."""
    free = how.free_memory()
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if how.device.type == "cpu" else free


def smallest(number: int, processes: Accelerator) -> int:
    """Return the smallest of the processes' numbers, so that all of them make the same choice."""
    return int(processes.gather(torch.tensor([number], device=processes.device)).min().item())


def refuse_different_images(dataset: Dataset, split: Split, classes: Labels | None, processes: Accelerator) -> None:
    """Raise DataError on every process where processes see different images, as machines with a copy each may."""
    hashes = {"images": dataset.index_hash, "labels": "0" if classes is None else classes.hash()}
    for what, mine in (*hashes.items(), ("groups of images", split.hash())):
        if len(processes.gather(torch.tensor([int(mine[:15], 16)], device=processes.device)).unique()) > 1:
            raise DataError(f"the processes see different {what}: give all of them the same, and leave it alone")


@contextlib.contextmanager
def joined(config: TrainConfig, chosen: torch.device) -> Iterator[Accelerator]:
    """Join the processes of this run, and yield what they communicate by.

    A group which is made here ends with the program, as torch asks for, and not with the run: another run in the same
    program goes on with it, since a second group at the same address would meet what is left of the first. A process
    that is alone has no group, and what accelerate keeps of it is dropped, so that the next run may use another device.
    A group that the caller has made is left alone. Where this process fails, other processes may still wait for it, so
    that no group can be ended in good order.
    """
    ended, is_callers = False, bool(PartialState._shared_state) or dist.is_initialized()
    # DDP sorts its buckets anew after the first step, which would change the order of its sums when a run is resumed,
    # unless it looks for unused parameters. Two processes have but one order.
    exact = (chosen.type == "cpu" or config.deterministic) and int(os.environ.get("WORLD_SIZE", 1)) > 2
    ddp = DistributedDataParallelKwargs(find_unused_parameters=exact, gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=timedelta(minutes=config.timeout))
    try:
        # We apply autocast ourselves, to the net alone: accelerate's is fixed for the life of a process.
        yield Accelerator(mixed_precision="no", cpu=chosen.type == "cpu", kwargs_handlers=[ddp, group])
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
