"""The batches of a run: which images each process takes at each step, a pure function of the seed and the step.

Legend: b images of a pass, N images of the run, C channels, H W height and width.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffunet import build, compute, draws
from diffunet.compute import Compute
from diffunet.config import Config, DataConfig
from diffunet.data import augment, warp
from diffunet.data.dataset import Dataset
from diffunet.data.groups import Groups
from diffunet.diffusion.schedules import Schedule
from diffunet.inpainting import masks
from diffunet.inpainting.own_masks import MaskStore
from diffunet.pictures.images import Pixels

AHEAD = 3
"""The most steps whose batches are read ahead, which bounds their memory. Reading takes longer at one step than at the
next: of photos whose every eighth is 16 times larger, a batch of 32 took 104 to 309 ms of one core. A device that needs
as long as that on the mean then waits 14 ms a step with 1 step ahead, 3 with 2, 0.3 with 3, and no less with 8."""

STORED = 0.05
"""The share of a GPU's free memory that the images of a run may take."""

GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True)
class Batch:
    """What one pass through the net learns from.

    Args:
        start: the place of its first image in the batch of the optimizer step.
        images: uint8 [b H W C]; or, where all images of the run are on the device, int64 [b 2]: the row in `store`, and
            whether the image is mirrored.
        label, sigma: int64 [b], None for a net without classes; and the noise levels, float32 [b].
        augment: float32 [b 9], the augmentation that is still to be applied (see data/warp.py), or None without it.
        keep: bool [b 1 H W], True at known pixels of the augmented image; None where the task is not to inpaint.
        store: all images of the run, uint8 [N H W C], where they are on the device.
    """

    start: int
    images: Tensor
    label: Tensor | None
    sigma: Tensor
    augment: Tensor | None = None
    keep: Tensor | None = None
    store: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`, with its images taken out of the store; this does not synchronise with it."""
        batch = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        if batch.store is None:
            return batch
        rows, mirrored = batch.images.unbind(1)
        images = batch.store[rows]
        images = torch.where(mirrored[:, None, None, None] > 0, images.flip(2), images)
        return replace(batch, images=images, store=None)

    def part(self, first: int, count: int) -> Batch:
        """Return `count` images from `first` on."""
        return replace(self._map(lambda tensor: tensor[first : first + count]), start=self.start + first)

    def pinned(self) -> Batch:
        """Return the batch in memory that a GPU reads from while the CPU goes on."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        optional = (self.label, self.augment, self.keep)
        label, augment, keep = (None if tensor is None else change(tensor) for tensor in optional)
        return Batch(self.start, change(self.images), label, change(self.sigma), augment, keep, self.store)


@dataclass(frozen=True)
class Share:
    """Which images of every step a process takes.

    Args:
        seed, batch_size: the seed of the run, and the images of one optimizer step, over all processes and passes.
        passes: the passes into which the images of one process are divided.
        rank, processes: the number of this process, from 0, and that of all processes.
    """

    seed: int
    batch_size: int
    passes: int = 1
    rank: int = 0
    processes: int = 1

    @property
    def images_per_pass(self) -> int:
        """The number of images that one process sends through the net at a time."""
        return self.batch_size // self.processes // self.passes


def order(
    chosen: NDArray[np.int64], alike: NDArray[np.int64] | None, seed: int
) -> Callable[[Sequence[int] | NDArray[np.int64]], NDArray[np.int64]]:
    """Return what gives the places in `chosen`, int64 [n], of the given n samples of a run; see `draws.order`.

    With `alike`, a number for each of all images, int64 [N], each number comes equally often; see `draws.Turns`.
    """
    if alike is None:
        return lambda samples: draws.order(seed, samples, len(chosen))
    numbers = alike[chosen]
    sizes, places = np.unique(numbers, return_counts=True)[1], np.argsort(numbers, kind="stable")
    turns, starts = draws.Turns(seed, sizes), np.cumsum(sizes) - sizes

    def drawn(samples: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        number, image = turns(samples)
        return places[starts[number] + image]

    return drawn


def drawn_alike(data: DataConfig, labels: NDArray[np.int64] | None, groups: Groups | None) -> NDArray[np.int64] | None:
    """Return what is drawn equally often, a number for each image, int64 [N]: classes or groups; None for images.

    An image in no group is one of its own.
    """
    if data.balance:
        return labels
    if not data.balance_groups or groups is None:
        return None
    return np.where(groups.places < 0, len(groups.names) + np.arange(len(groups.places)), groups.places)


@dataclass(frozen=True)
class Batches:
    """The batches of one process of a run.

    Args:
        dataset, chosen: the images, and the indices of those to train on, int64 [N].
        schedule, share: the schedule that gives the noise levels, and the part of each step that this process takes.
        data: how images are cropped, mirrored and augmented, and the names of their classes.
        label_dropout: the share of images whose label becomes the null label.
        masks: the kind of random masks, see `masks.random_mask`; None for a run that does not learn to inpaint.
        stock: a store of masks in place of random ones: of one's own, or drawn beforehand.
        pin, store: whether batches are in memory that a GPU reads from; and the images on the device, see `stored`.
        labels: the class of each image of the data set, int64 [N]; by default its subfolder among the classes.
        groups: the groups of the images of the data set, if it has any.
    """

    dataset: Dataset
    chosen: NDArray[np.int64]
    schedule: Schedule
    share: Share
    data: DataConfig
    label_dropout: float = 0.0
    masks: str | None = None
    stock: MaskStore | None = None
    pin: bool = False
    store: Tensor | None = None
    labels: NDArray[np.int64] | None = None
    groups: Groups | None = None

    @classmethod
    def of(
        cls, config: Config, dataset: Dataset, chosen: NDArray[np.int64], schedule: Schedule, share: Share,
        how: Compute, own_masks: MaskStore | None = None, labels: NDArray[np.int64] | None = None,
        groups: Groups | None = None,
    ) -> Batches:  # fmt: skip
        """Return the batches of a run with this resolved config, its images on the device where they fit there."""
        kind = config.data.masks if config.diffusion.task == "inpaint" else None
        dropout, pin = config.diffusion.label_dropout, how.device.type == "cuda"
        if kind is not None and own_masks is None and pin:
            own_masks = MaskStore.drawn(kind, config.data.image_size, share.seed)
        batches = cls(
            dataset, chosen, schedule, share, config.data, dropout, kind, own_masks, pin, None, labels, groups
        )
        return batches.stored(how)

    def stored(self, how: Compute) -> Batches:
        """Return the batches with their images on a GPU, where they take little of its memory and have but one crop."""
        room = STORED * how.free_memory() if how.device.type == "cuda" else 0
        shape = (self.data.image_size, self.data.image_size, len(self.dataset.mean))
        if self.data.fit in ("random", "patch") or len(self.chosen) * math.prod(shape) > room:
            return self
        return replace(self, store=self.all_images(how.device))

    def all_images(self, device: torch.device) -> Tensor:
        """Return the chosen images, not mirrored, uint8 [N H W C] on `device`."""
        parts = np.array_split(self.chosen, max(1, len(self.chosen) // 1024))
        with self._readers() as read:
            return torch.cat([torch.from_numpy(self._middles(part, read)).to(device) for part in parts])

    def step(self, step: int, read: augment.Map = map) -> list[Batch]:
        """Return the passes of this process in one optimizer step; `read` is as in `augment.gather`."""
        size, passes = self.share.images_per_pass, self.share.passes
        whole = self._batch(step, self.share.rank * size * passes, size * passes, read)
        return [whole.part(n * size, size) for n in range(passes)]

    def steps(self, first: int) -> Generator[tuple[int, list[Batch]]]:
        """Yield (step, its passes) for all steps from `first` on; a thread reads `AHEAD` steps ahead.

        Closing the generator ends its threads, which takes no longer than the reading of a batch.
        """
        use_device = partial(torch.cuda.set_device, torch.cuda.current_device()) if self.pin else None
        reader = ThreadPoolExecutor(1, thread_name_prefix="batches", initializer=use_device)
        with reader, self._readers() as read:
            ahead = deque(reader.submit(self.step, step, read) for step in range(first, first + AHEAD))
            try:
                for step in itertools.count(first):
                    ready = ahead.popleft().result()
                    ahead.append(reader.submit(self.step, step + AHEAD, read))
                    yield step, ready
            finally:  # else what is waiting would be read before the thread ends
                reader.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _readers(self) -> Iterator[augment.Map]:
        """Yield a function like `map` that reads images: without a cache they are decoded by all cores at a time.

        Pillow decodes and resizes without Python's lock. An image out of the cache is read in some 50 microseconds, for
        which no thread pays.
        """
        if self.data.cache != "off":
            yield map
            return
        with ThreadPoolExecutor(compute.cores(), thread_name_prefix="decoding") as pool:
            try:
                yield pool.map
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def held_out(self, indices: NDArray[np.int64]) -> Batch:
        """Return the images at `indices` as one batch for validation, with labels: the same ones every time."""
        with self._readers() as read:
            images = torch.from_numpy(self._middles(indices, read))
        label = None if self._labels is None else torch.from_numpy(self._labels[indices])
        # Multiples of the golden ratio mod 1 cover (0, 1) evenly, in an order unrelated to that of the images.
        u = (np.arange(len(indices)) * GOLDEN_RATIO + 0.5 / len(indices)) % 1.0
        seed = draws.seed_of("validation", self.share.seed)
        keep = self._keep(seed, 0, range(len(indices)))
        return Batch(0, images, label, self.schedule.sigma(torch.from_numpy(u)).float(), keep=keep)

    def gather(
        self, indices: NDArray[np.int64], where: NDArray[np.float64] | None = None, read: augment.Map = map
    ) -> Pixels:  # fmt: skip
        """Return images, not mirrored, uint8 [b H W C], see `augment.gather`."""
        d = self.data
        return augment.gather(
            self.dataset.images, indices, where, image_size=d.image_size, fit=d.fit, background=d.background,
            scales=d.scales, read=read,
        )  # fmt: skip

    def _middles(self, indices: NDArray[np.int64], read: augment.Map) -> Pixels:
        return self.gather(indices, build.windows(self.data, range(len(indices))), read)

    @cached_property
    def _labels(self) -> NDArray[np.int64] | None:
        if self.labels is None and self.data.class_names:
            return self.dataset.labels(self.data.class_names)
        return self.labels

    @cached_property
    def _order(self) -> Callable[[Sequence[int] | NDArray[np.int64]], NDArray[np.int64]]:
        return order(self.chosen, drawn_alike(self.data, self._labels, self.groups), self.share.seed)

    def _batch(self, step: int, first: int, count: int, read: augment.Map) -> Batch:
        # The order of the draws must not change, since resuming repeats them. All are made for the whole global batch,
        # and optional ones (augmentation) come last, so that the others do not shift.
        share, mine, label, augmentation = self.share, slice(first, first + count), None, None
        generator, of_all = draws.of_step(share.seed, step), share.batch_size
        where = generator.random((of_all, 3))[mine]
        dropped = generator.random(of_all)[mine] < self.label_dropout
        mirrored = generator.random(of_all)[mine] < (0.5 if self.data.flip else 0.0)
        rows = self._order(np.arange(first, first + count) + step * of_all)
        indices = self.chosen[rows]
        if self._labels is not None:
            label = torch.from_numpy(np.where(dropped, len(self.data.class_names), self._labels[indices]))
        sigma = self.schedule.sigma(torch.from_numpy(draws.levels(share.seed, step, of_all)))[mine].float()
        if self.store is None:
            pixels = self.gather(indices, where, read)
            pixels[mirrored] = pixels[mirrored, :, ::-1]
            images = torch.from_numpy(pixels)
        else:
            images = torch.from_numpy(np.stack([rows, mirrored], axis=1))
        if probability := self.data.augment:
            augmentation = torch.from_numpy(warp.draw(generator, probability, of_all)[mine])
        keep = self._keep(draws.seed_of("masks", share.seed), step, range(first, first + count))
        batch = Batch(first, images, label, sigma, augmentation, keep, self.store)
        return batch.pinned() if self.pin else batch

    def _keep(self, seed: int, step: int, places: range) -> Tensor | None:
        """Draw which pixels of each image are known, bool [b 1 H W]; None for a run that does not learn to inpaint."""
        if self.masks is None:
            return None
        known, uniform = draws.of_step(seed, step).random((places.stop, 2))[places.start :].T
        if self.stock is not None:
            holes = self.stock.draw(uniform)
        else:
            kind, size, each = (
                self.masks,
                self.data.image_size,
                (draws.generator(seed, step, place) for place in places),
            )
            holes = np.stack([masks.random_mask(kind, size, size, generator) for generator in each])
        holes[known < self.data.all_hole] = True
        return torch.from_numpy(~holes[:, None])
