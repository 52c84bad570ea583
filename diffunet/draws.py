"""Every random draw of the project, each a pure function of a key.

No generator outlives a step and no global random state is touched, so any process can compute any draw of any step, and
a run that is stopped and resumed makes the same draws as one that is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Noise = Callable[[], Tensor]
"""The next [B C H W] standard normal draw, float32, of each image's own stream."""

SLOT = 16
"""Samples of the global batch that share one generator: few enough to waste little, enough to keep launches few."""


def seed_of(*parts: int | str) -> int:
    """A 32-bit seed from a key. Hashed, never packed: torch's CPU generator keeps only 32 bits of what it is given."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def key_of(*parts: int | str) -> int:
    """A 128-bit seed for `streams`: so many that two keys do not meet. An integer of numpy is as Python's."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=16).digest(), "little")


def generator(seed: int, step: int, sample: int) -> np.random.Generator:
    """The small draws (flip, crop, label dropout ...) of one sample of the global batch of one step."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 0, sample]))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, seed_of("epoch", epoch)])).permutation(size)


def order(seed: int, samples: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Which of `size` images is sample n of a run: `perm(seed, n // size)[n % size]`, int64 [len(samples)]."""
    return np.array([_permutation(seed, int(n) // size, size)[int(n) % size] for n in samples], dtype=np.int64)


def levels(seed: int, step: int, batch: int) -> np.ndarray:
    """Stratified u in (0, 1) for the noise levels of a step: `frac(u0 + (j + 0.5) / batch)`, float64 [batch].

    One shared random shift and an even spacing (VDM, Kingma et al. 2021, appendix I.1): the loss of a step varies less
    than with independent draws.
    """
    shift = np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, 0, 1, 0])).random()
    u = (shift + (np.arange(batch) + 0.5) / batch) % 1.0
    return np.clip(u, 1e-9, 1 - 1e-9)


def gaussian(seed: int, step: int, start: int, count: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise for samples `start ... start + count - 1` of a step's batch, float32 [count, *shape].

    Drawn on `device` in whole slots, so that it does not depend on how processes and accumulation divide the batch.
    """
    first, last = start // SLOT, (start + count - 1) // SLOT
    slots = []
    for slot in range(first, last + 1):
        source = torch.Generator(device).manual_seed(seed_of("noise", seed, step, slot))
        slots.append(torch.randn(SLOT, *shape, generator=source, device=device, dtype=torch.float32))
    return torch.cat(slots)[start - first * SLOT :][:count]


def streams(seed: int, images: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """Sampling noise: one stream for each image, keyed by (seed, image), float32 [len(images), *shape] a call.

    Drawn on the CPU whatever the device, so that a seed means the same picture everywhere; by numpy's Philox with a key
    of 128 bits, since of torch's 32 two images of a seed are soon the same.
    """
    sources = [np.random.Generator(np.random.Philox(key=key_of("image", seed, i))) for i in images]

    def draw() -> Tensor:
        drawn = [source.standard_normal(tuple(shape), dtype=np.float32) for source in sources]
        return torch.from_numpy(np.stack(drawn)).to(device)

    return draw
