"""The processes of a run: how they are joined, and what they agree on."""

import atexit
import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from diffunet import variables
from diffunet.config import TrainConfig
from diffunet.data.dataset import Dataset
from diffunet.data.groups import Split
from diffunet.data.labels import Labels
from diffunet.errors import DataError, Stopped


def smallest(number: int, processes: Accelerator) -> int:
    """Return the smallest of the processes' numbers, so that all of them make the same choice."""
    return int(processes.gather(torch.tensor([number], device=processes.device)).min().item())


def refuse_different_images(dataset: Dataset, split: Split, classes: Labels | None, processes: Accelerator) -> None:
    """Raise DataError on every process where processes see different images, as machines with a copy each may."""
    hashes = {"images": dataset.index_hash, "labels": "0" if classes is None else classes.hash()}
    for what, mine in (*hashes.items(), ("groups of images", split.hash()), ("groups", split.groups_hash() or "0")):
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
    exact = (chosen.type == "cpu" or config.deterministic) and variables.world_size() > 2
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
