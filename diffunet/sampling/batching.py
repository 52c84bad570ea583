"""Work in batches that become smaller where memory runs out."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from diffunet import compute

T = TypeVar("T")
log = logging.getLogger(__name__)


def batches(
    num: int, count: int, make: Callable[[int, int], T], smaller: Callable[[], bool] | None = None
) -> Iterator[T]:
    """Call `make(first, count)` for batch after batch until `num` images are made, and yield what it returns.

    A batch is made when it is asked for. Where memory runs out, `count` is halved from then on. With one image at a
    time `smaller`, which makes the work on each image smaller and returns whether it could, is the last resort.
    """
    first = 0
    while first < num:
        try:
            made = make(first, count)
        except (MemoryError, RuntimeError) as error:
            halved = count > 1
            if not compute.is_out_of_memory(error) or not (halved or (smaller is not None and smaller())):
                raise
            count = max(1, count // 2)
            log.warning("out of memory; going on with %s", f"{count} at a time" if halved else "smaller pieces")
            compute.give_back(error)
        else:
            yield made
            first += count


def in_batches(
    num: int, count: int, make: Callable[[int, int], None], smaller: Callable[[], bool] | None = None
) -> None:
    """Call `make(first, count)` for batch after batch until `num` images are made; see `batches`."""
    for _ in batches(num, count, make, smaller):
        pass
