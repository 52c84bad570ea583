"""What each process reads at each step, a pure function of (seed, step), and a thread that reads it ahead of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffunet import draws
from diffunet.compute import Compute
from diffunet.data import augment, warp
from diffunet.data.dataset import Dataset
from diffunet.diffusion.schedules import Schedule
from diffunet.inpainting import masks

STORED = 0.05
"""Share of a GPU's free memory that the images of a run may take."""

EMPTY = 0.1
"""Share of the images of which a net that learns to inpaint is told nothing, so that it generates too."""


@dataclass(frozen=True)
class Batch:
    """What one pass through the net learns from; `start` is its first sample's place in the global batch of the step.

    `images` uint8 [b H W C], `label` int64 [b] (None for a net without labels), `sigma` float32 [b]; `augment` float32
    [b 9], what is still to be done to the images (see data/warp.py; None for a run without it); `keep` bool [b 1 H W],
    True where pixels are known once that is done (None for a run that does not learn to inpaint).

    Where the images of the run are on the device already, `store` uint8 [N H W C] is all of them, and `images` int64
    [b 2]: which one, and whether it is mirrored.
    """

    start: int
    images: Tensor
    label: Tensor | None
    sigma: Tensor
    augment: Tensor | None = None
    keep: Tensor | None = None
    store: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """On `device`, without waiting for it; what is in the store is taken out."""
        batch = self._each(lambda part: part.to(device, non_blocking=True))
        if batch.store is None:
            return batch
        rows, mirrored = batch.images.unbind(1)
        images = batch.store[rows]
        images = torch.where(mirrored[:, None, None, None] > 0, images.flip(2), images)
        return replace(batch, images=images, store=None)

    def pinned(self) -> Batch:
        """In memory that a GPU reads from while the CPU goes on."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        optional = (self.label, self.augment, self.keep)
        label, augment, keep = (None if part is None else change(part) for part in optional)
        return Batch(self.start, change(self.images), label, change(self.sigma), augment, keep, self.store)


@dataclass(frozen=True)
class Batches:
    """The batches of one process of a run.

    Args:
        dataset: the images.
        chosen: indices of those to train on, int64 [N].
        labels: of all images of `dataset`, int64, or None.
        null_label: what a dropped label becomes.
        label_dropout: share of the labels dropped.
        schedule: from u to sigma.
        seed: of the run.
        batch_size: of one optimizer step, over all processes and passes.
        passes: of one process in one step.
        rank, processes: which process this is, of how many.
        image_size, fit, flip, background: see `augment.gather`.
        pin: put them in memory that a GPU reads from.
        augment: probability of each change that the net is told of, see `warp.draw`.
        masks: kind of the random masks, see `masks.random_mask`; None for a run that does not learn to inpaint.
        store: the chosen images as the net sees them, uint8 [N H W C], where they lie on the device; see `stored`.
    """

    dataset: Dataset
    chosen: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    null_label: int
    label_dropout: float
    schedule: Schedule
    seed: int
    batch_size: int
    passes: int
    rank: int
    processes: int
    image_size: int
    fit: str
    flip: bool
    background: tuple[int, int, int]
    pin: bool
    augment: float = 0.0
    masks: str | None = None
    store: Tensor | None = None

    def stored(self, how: Compute) -> Batches:
        """The same batches out of images that lie on a GPU, where they take little of its memory: nothing is then cut
        out and sent at each step. Random crops are of too many kinds for it."""
        room = STORED * how.free_memory() if how.device.type == "cuda" else 0
        shape = (self.image_size, self.image_size, len(self.dataset.mean))
        if self.fit == "random" or len(self.chosen) * math.prod(shape) > room:
            return self
        return replace(self, store=self.all_images(how.device))

    def all_images(self, device: torch.device) -> Tensor:
        """The chosen images, not mirrored, uint8 [N H W C] on `device`."""
        parts = np.array_split(self.chosen, max(1, len(self.chosen) // 1024))
        return torch.cat([torch.from_numpy(self.gather(part, [None] * len(part))).to(device) for part in parts])

    def step(self, step: int) -> list[Batch]:
        """The passes of this process in one step."""
        u = draws.levels(self.seed, step, self.batch_size)
        size = self.batch_size // self.processes // self.passes
        first = self.rank * size * self.passes
        return [self._batch(step, first + n * size, size, u) for n in range(self.passes)]

    def _batch(self, step: int, start: int, size: int, u: NDArray[np.float64]) -> Batch:
        places = range(start, start + size)
        generators = [draws.generator(self.seed, step, place) for place in places]
        dropped = [generator.random() < self.label_dropout for generator in generators]
        samples = np.arange(start, start + size) + step * self.batch_size
        rows = draws.order(self.seed, samples, len(self.chosen))
        indices = self.chosen[rows]
        label = None
        if self.labels is not None:
            label = torch.from_numpy(np.where(dropped, self.null_label, self.labels[indices]))
        sigma = self.schedule.sigma(torch.from_numpy(u[start : start + size])).float()
        if self.store is None:
            pictures = torch.from_numpy(self.gather(indices, generators))
        else:  # the same draw as in `augment.gather`
            mirrored = [generator.random() < 0.5 and self.flip for generator in generators]
            pictures = torch.from_numpy(np.stack([rows, mirrored], axis=1).astype(np.int64))
        told = None
        # From here on the last draws of each generator, so that all others are those of a run without it.
        if self.augment:
            told = torch.from_numpy(np.stack([warp.draw(generator, self.augment) for generator in generators]))
        batch = Batch(start, pictures, label, sigma, told, self._keep(generators), self.store)
        return batch.pinned() if self.pin else batch

    def _keep(self, generators: list[np.random.Generator]) -> Tensor | None:
        """What is known of each image, bool [b 1 H W]."""
        if self.masks is None:
            return None
        size = self.image_size
        holes = [
            np.ones((size, size), bool)
            if generator.random() < EMPTY
            else masks.random_mask(self.masks, size, size, generator)
            for generator in generators
        ]
        return torch.from_numpy(~np.stack(holes)[:, None])

    def gather(
        self, indices: NDArray[np.int64], generators: list[np.random.Generator] | list[None]
    ) -> NDArray[np.uint8]:
        """uint8 [b H W C]; a generator of None is the plain centre crop."""
        return augment.gather(
            self.dataset.images,
            indices,
            generators,
            image_size=self.image_size,
            fit=self.fit,
            flip=self.flip,
            background=self.background,
        )

    def held_out(self, indices: NDArray[np.int64]) -> Batch:
        """A fixed batch for validation: centre crops as they are, their own labels, the same noise levels and masks."""
        pictures = torch.from_numpy(self.gather(indices, [None] * len(indices)))
        label = None if self.labels is None else torch.from_numpy(self.labels[indices])
        u = (np.arange(len(indices)) * 0.6180339887498949 + 0.5 / len(indices)) % 1.0  # spread evenly, in no order
        seed = draws.seed_of("validation", self.seed)
        keep = self._keep([draws.generator(seed, 0, place) for place in range(len(indices))])
        return Batch(0, pictures, label, self.schedule.sigma(torch.from_numpy(u)).float(), keep=keep)

    def walk(self, first: int, end: int) -> Iterator[tuple[int, list[Batch]]]:
        """(step, its passes) for first ... end - 1, each read by a thread while the one before is in use."""
        ready_device = partial(torch.cuda.set_device, torch.cuda.current_device()) if self.pin else None
        with ThreadPoolExecutor(1, thread_name_prefix="batches", initializer=ready_device) as reader:
            ahead = reader.submit(self.step, first)
            for step in range(first, end):
                ready = ahead.result()
                if step + 1 < end:
                    ahead = reader.submit(self.step, step + 1)
                yield step, ready
