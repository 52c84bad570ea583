"""Sampling by several processes, each of which makes every so-manieth batch.

What image i is does not depend on who makes it: its noise is keyed by its number. Where batches are equal, its bytes
are, too; of other batches the last bits may differ.
"""

import itertools
from collections.abc import Container, Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np

from diffunet.pictures import images
from diffunet.pictures.made import Picture
from diffunet.ranks import Ranks
from diffunet.sampling.pipeline import Pipeline

Round = list[list[int]]
"""The numbers of the images of a batch, for each process that has one in this round."""


def rounds(needed: Sequence[int], batch_size: int, count: int) -> list[Round]:
    """Deal the batches that hold the images `needed` (rising) out to `count` processes, one to each in every round."""
    batches = [list(batch) for _, batch in itertools.groupby(needed, lambda i: i // batch_size)]
    return [batches[first : first + count] for first in range(0, len(batches), count)]


def shares(num: int, batch_size: int, count: int) -> list[list[list[int]]]:
    """Return for each of `count` processes the batches of `num` images that `rounds` deals out to it."""
    dealt = rounds(range(num), batch_size, count)
    return [[each[rank] for each in dealt if rank < len(each)] for rank in range(count)]


def batch_size(pipe: Pipeline, num: int, guided: bool, ranks: Ranks) -> int:
    """Return how many of `num` images to make at a time: what fits every process, and leaves none of several idle.

    A process that is alone makes as many as fit, whatever `num`, which may grow when the work is resumed.
    """
    fits = ranks.smallest(pipe.batch(guided))
    return fits if ranks.count == 1 else min(fits, ceil(num / ranks.count))


def divided(
    pipe: Pipeline, num: int, ranks: Ranks, *, batch_size: int, skip: Container[int] = (), **options: Any
) -> Iterator[tuple[Round, list[Picture]]]:
    """Generate this process's share of `num` images; yield every round, with the pictures that are made here in it.

    All processes get all rounds, and none at the end of theirs where it has no batch, so that they can meet in each.
    The options and errors are those of `Pipeline.stream`.
    """
    dealt = rounds([i for i in range(num) if i not in skip], batch_size, ranks.count)
    shares = [each[ranks.rank] if ranks.rank < len(each) else [] for each in dealt]
    others = set(range(num)).difference(*shares)
    made = pipe.stream(num, batch_size=batch_size, skip=others or (), **options)
    for each, share in zip(dealt, shares, strict=True):
        yield each, list(itertools.islice(made, len(share)))


def gathered(pipe: Pipeline, num: int, ranks: Ranks, **options: Any) -> Iterator[images.Pixels]:
    """Generate images as `divided`, and yield them round by round, in order, uint8 [N H W C], on the main process.

    Elsewhere there are none in what is yielded.
    """
    shape = (pipe.image_size, pipe.image_size, pipe.channels)
    for _, pictures in divided(pipe, num, ranks, **options):
        mine = b"".join(images.to_array(picture, pipe.channels).tobytes() for picture in pictures)
        yield np.frombuffer(b"".join(ranks.gather(mine)), np.uint8).reshape(-1, *shape)
