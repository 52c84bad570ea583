"""Cutting a batch out of stored images: crop or padding, and a mirror image now and then.

The draws of an image come from its own generator, in a fixed order: the flip, then the crop's row and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffunet.pictures import images as pictures
from diffunet.pictures.images import Pixels


class Images(Protocol):
    """A sequence of uint8 [h w C] of any sizes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pixels: ...


def crop_box(h: int, w: int, size: int, fit: str, generator: np.random.Generator | None) -> tuple[int, int]:
    """(top, left) of a square of `size` in [h w]: anywhere for fit "random" with a generator, else in the middle.

    "random" takes two draws from the generator, whatever the size of the image.
    """
    assert min(h, w) >= size, (h, w, size)
    if fit != "random" or generator is None:
        return (h - size) // 2, (w - size) // 2
    down, right = generator.random(2)
    return int(down * (h - size + 1)), int(right * (w - size + 1))


def square(
    image: Pixels,
    image_size: int,
    fit: str,
    background: tuple[int, int, int],
    generator: np.random.Generator | None = None,
) -> Pixels:
    """One image [h w C] as [image_size image_size C]: cut, or padded with `background` (of alpha 0 with 4 channels)."""
    h, w, channels = image.shape
    if fit != "pad":
        top, left = crop_box(h, w, image_size, fit, generator)
        return image[top : top + image_size, left : left + image_size]
    assert max(h, w) <= image_size, (h, w, image_size)
    if h == w == image_size:
        return image
    padded = np.empty((image_size, image_size, channels), np.uint8)
    padded[:] = pictures.background_of(background, channels)
    top, left = (image_size - h) // 2, (image_size - w) // 2
    padded[top : top + h, left : left + w] = image
    return padded


def gather(
    images: Images,
    indices: Sequence[int] | NDArray[np.int64],
    generators: Sequence[np.random.Generator | None],
    *,
    image_size: int,
    fit: str,
    flip: bool,
    background: tuple[int, int, int] = pictures.WHITE,
) -> Pixels:
    """The images `indices`, in that order, as uint8 [B image_size image_size C].

    `generators` has one entry for each; None means for evaluation: the centre crop, not flipped.
    """
    batch = []
    for index, generator in zip(indices, generators, strict=True):
        mirrored = generator is not None and generator.random() < 0.5  # drawn even where flip is off, to keep the crops
        image = square(images[int(index)], image_size, fit, background, generator)
        batch.append(image[:, ::-1] if flip and mirrored else image)
    return np.stack(batch)
