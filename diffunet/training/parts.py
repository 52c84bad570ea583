"""A pass in parts that a CPU computes at once, each with its share of the threads.

Threads that share each single operation wait for one another after each. Those of a small net take microseconds, so
that two threads are hardly faster than one. Parts of a batch wait for one another once in a pass. Numbers do not depend
on whether parts are computed at once or in turn, but on their number, by rounding and by the masks of dropout.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.nn import kernels

Part = TypeVar("Part")


def count(config: Config, how: Compute, *, ours: bool, alone: bool) -> int:
    """Return the parts of a pass of a run: those of its config where a CPU can compute some at once, else 1.

    Args:
        config, how: the resolved config, and how to compute.
        ours: whether net and loss are diffunet's; those of somebody else may keep things from one pass to the next.
        alone: whether the run is one process.
    """
    plain = config.model.net == "unet" and not config.model.checkpointing and config.train.compile != "on"
    at_once = ours and alone and plain and how.device.type == "cpu" and _threads_are_each_ones_own()
    return (config.train.cpu_parts or 1) if at_once else 1


@cache
def _threads_are_each_ones_own() -> bool:
    """Return whether each thread may have a number of threads for its operations, as with OpenMP."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


def bounds(images: int, parts: int) -> list[tuple[int, int]]:
    """Return the first image of each part, and the one after its last, of parts that are as equal as possible."""
    parts = min(images, parts)
    return list(pairwise(images * part // parts for part in range(parts + 1)))


def computed(work: Callable[[int], Part], parts: int, dropout: bool) -> list[Part]:
    """Return `work(part)` for each of so many parts, computed at once.

    With `dropout` it is drawn for each part from a generator of its own, by a seed that torch's global one draws.
    """
    threads = torch.get_num_threads()
    seeds: list[int] = torch.randint(2**63 - 1, (parts,)).tolist() if dropout else []

    def drawing(part: int) -> Part:
        with kernels.drawing_from(torch.Generator().manual_seed(seeds[part]) if dropout else None):
            return work(part)

    return list(_workers(min(parts, threads), threads).map(drawing, range(parts)))


def add(parameters: list[torch.nn.Parameter], gradients: tuple[Tensor | None, ...]) -> None:
    """Add gradients to those of the parameters, with whose layout in memory they lie there."""
    pairs = [(each, gradient) for each, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    first = [(each, gradient) for each, gradient in pairs if each.grad is None]
    others = [(each.grad, gradient) for each, gradient in pairs if each.grad is not None]
    for each, gradient in first:
        each.grad = gradient if gradient.stride() == each.stride() else torch.empty_like(each).copy_(gradient)
    if others:
        torch._foreach_add_(*map(list, zip(*others, strict=True)))


@cache
def _workers(number: int, threads: int) -> ThreadPoolExecutor:
    """Return an executor of so many workers, which share the threads of torch. It is there until the program ends."""
    barrier = Barrier(number + 1)

    def begin() -> None:
        torch.set_num_threads(max(1, threads // number))
        torch.get_num_threads()  # settles it for this thread: what is set below is for threads to come
        barrier.wait()

    workers = ThreadPoolExecutor(number, "diffunet-part", begin)
    for _ in range(number):
        workers.submit(lambda: None)
    barrier.wait()
    torch.set_num_threads(threads)
    return workers
