"""All random draws of the project. Each is a pure function of a key.

No generator outlives a step and no global random state is used, so any process can compute any draw of any step, and a
run that is stopped and resumed makes the same draws as one that is not.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Noise = Callable[[], Tensor]  # returns the next standard normal draw of each image's own stream, float32 [B C H W]

SLOT = 16
"""The number of samples of the global batch that share a generator: more waste draws, fewer launch more kernels."""


def seed_of(*parts: int | str) -> int:
    """Return a 32-bit seed for a key, which is hashed since torch's CPU generator uses only 32 bits of its seed."""
    _refuse_others(parts)
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "little")


def key_of(*parts: int | str) -> int:
    """Return a 128-bit seed for `streams`, so that no two keys have the same."""
    _refuse_others(parts)
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "little")


def _refuse_others(parts: tuple[int | str, ...]) -> None:
    # A key is hashed as it is written, and numpy's 3 is written np.int64(3): what a program gives is made plain before.
    assert all(type(part) in (int, str) for part in parts), parts


def generator(seed: int, step: int, sample: int) -> np.random.Generator:
    """Return the generator of a sample of a step's global batch, for draws of which nobody knows how many they are."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, sample]))


def of_step(seed: int, step: int) -> np.random.Generator:
    """Return the generator of a step, for draws (flips, crops, label dropout ...) that are made for its global batch.

    Each process makes them for all images and uses those of its own, so that it does not matter how they are divided.
    """
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 2, 0]))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, seed_of("epoch", epoch)])).permutation(size)


def order(seed: int, samples: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Return the images, numbers below `size`, that are the given samples of a run, int64 [len(samples)].

    The samples of a run are numbered through all its batches. Those of an epoch, `size` samples, are a permutation of
    the images which depends on the seed and the epoch alone, so that sample n is `permutation(n // size)[n % size]`.
    """
    # A batch that reaches beyond an epoch's end continues in the next permutation, so no image is left out, and a run
    # can be resumed, or its batches divided among processes, at any n without the draws before it.
    epochs, places = np.divmod(np.asarray(samples, np.int64), size)
    for epoch in np.unique(epochs).tolist():
        these = epochs == epoch
        places[these] = _permutation(seed, epoch, size)[places[these]]
    return places


class Turns:
    """The order of the samples of a run that draws classes equally often: of each class the same number, but for one.

    The classes follow each other in permutations, as the images do in `order`, and so do the images of each class. What
    a sample is depends on the seed and its number alone. Classes of one size come to new permutations at the same time,
    which are drawn together, and the newest are kept.
    """

    def __init__(self, seed: int, sizes: Sequence[int] | np.ndarray) -> None:
        self._seed, self._sizes = seed, np.asarray(sizes, np.int64)
        self._alike = {size: np.flatnonzero(self._sizes == size) for size in np.unique(self._sizes).tolist()}
        self._kept = dict[int, tuple[int, np.ndarray]]()  # by size: an epoch, and its permutation for each such class

    def __call__(self, samples: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each sample its class, and its image among those of the class, int64 [len(samples)] both."""
        samples, count = np.asarray(samples, np.int64), len(self._sizes)
        classes = order(seed_of("classes", self._seed), samples, count)
        sizes = self._sizes[classes]
        epochs, places = np.divmod(samples // count, sizes)
        for size, epoch in sorted({*zip(sizes.tolist(), epochs.tolist(), strict=True)}):
            these = (sizes == size) & (epochs == epoch)
            rows = np.searchsorted(self._alike[size], classes[these])
            places[these] = self._permutations(size, epoch)[rows, places[these]]
        return classes, places

    def _permutations(self, size: int, epoch: int) -> np.ndarray:
        if size not in self._kept or self._kept[size][0] != epoch:
            source = np.random.Generator(np.random.Philox(key=[seed_of("turns", self._seed, size), epoch]))
            rows = np.tile(np.arange(size), (len(self._alike[size]), 1))
            self._kept[size] = epoch, source.permuted(rows, axis=1)
        return self._kept[size][1]


def levels(seed: int, step: int, batch: int) -> np.ndarray:
    """Return stratified u in (0, 1) for the noise levels of a step, `frac(u0 + (j + 0.5) / batch)`, float64 [batch].

    They are evenly spaced, with one random shift u0 for all (VDM, Kingma et al. 2021, appendix I.1). The loss of a step
    therefore varies less than with independent draws.
    """
    shift = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 1, 0])).random()
    return np.clip((shift + (np.arange(batch) + 0.5) / batch) % 1.0, 1e-9, 1 - 1e-9)


def gaussian(seed: int, step: int, start: int, count: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return standard normal noise for `count` samples of a step's batch from `start` on, float32 [count, *shape].

    It is drawn on `device` in whole slots, so it does not depend on how processes and accumulation divide the batch.
    """
    first, last = start // SLOT, (start + count - 1) // SLOT
    noise = torch.empty((last + 1 - first) * SLOT, *shape, device=device, dtype=torch.float32)
    source = torch.Generator(device)
    for n, slot in enumerate(noise.split(SLOT), first):
        slot.normal_(generator=source.manual_seed(seed_of("noise", seed, step, n)))
    return noise[start - first * SLOT :][:count]


def seed_global(device: torch.device, seed: int) -> None:
    """Seed torch's global generators of the CPU and of `device`'s kind, for what can use no other.

    `torch.manual_seed` does so for every kind of device that torch knows, and for each that is not in use it writes
    down from where it was called, which takes 200 microseconds in all.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(seed)


def streams(seed: int, images: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """Return the noise of sampling, float32 [len(images), *shape] a call: a stream for each key (seed, image).

    It is drawn on the CPU whatever the device, so that a seed means the same picture everywhere. It comes from numpy's
    Philox with a key of 128 bits, since with torch's 32 bits two images of a seed are soon the same.
    """
    sources = [np.random.Generator(np.random.Philox(key=key_of("image", seed, i))) for i in images]

    def draw() -> Tensor:
        noise = np.stack([source.standard_normal(tuple(shape), dtype=np.float32) for source in sources])
        return torch.from_numpy(noise).to(device)

    return draw
