"""Functions that make a batch of stored images, which are cropped or padded to a square, and some of them mirrored.

The draws of an image come from its own generator in a fixed order: the flip, then the crop's row and column.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from diffunet.pictures import images as pictures
from diffunet.pictures.images import Colour, Pixels

Map = Callable[[Callable[[int], Pixels], Iterable[int]], Iterable[Pixels]]
"""A function like `map`, such as the method of a pool of threads: (what to call, with what each time)."""


class Images(Protocol):
    """A sequence of images, uint8 [h w C], of any sizes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pixels: ...


def square(image: Pixels, size: int, fit: str, background: Colour, generator: Generator | None = None) -> Pixels:
    """Return an image [h w C] as a square of side `size`, [size size C].

    For fit "pad" it is laid on `background`, with 4 channels of alpha 0. For "random" it is cropped anywhere, with two
    draws from the generator whatever the size of the image; for "crop", or without a generator, in the middle.
    """
    h, w, channels = image.shape
    if fit == "pad":
        assert max(h, w) <= size, (h, w, size)
        if h == w == size:
            return image
        padded = np.full((size, size, channels), pictures.background_of(background, channels), np.uint8)
        top, left = (size - h) // 2, (size - w) // 2
        padded[top : top + h, left : left + w] = image
        return padded
    assert min(h, w) >= size, (h, w, size)
    top, left = (h - size) // 2, (w - size) // 2
    if fit == "random" and generator is not None:
        down, right = generator.random(2)
        top, left = int(down * (h - size + 1)), int(right * (w - size + 1))
    return image[top : top + size, left : left + size]


def gather(
    images: Images, indices: Sequence[int] | NDArray[np.int64], generators: Sequence[Generator | None], *,
    image_size: int, fit: str, flip: bool, background: Colour = pictures.WHITE, read: Map = map,
) -> Pixels:  # fmt: skip
    """Return the images at `indices`, in that order, as a batch uint8 [B image_size image_size C].

    `generators` has one entry for each image. With None the image is as for evaluation: its middle, not flipped.
    `read` asks for the images, several at a time where it is that of a pool; the batch is the same.
    """
    batch = []
    for image, generator in zip(read(images.__getitem__, map(int, indices)), generators, strict=True):
        mirrored = generator is not None and generator.random() < 0.5  # drawn even where flip is off, to keep the crops
        image = square(image, image_size, fit, background, generator)
        batch.append(image[:, ::-1] if flip and mirrored else image)
    return np.stack(batch)
