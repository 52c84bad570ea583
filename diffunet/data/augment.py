"""Functions that make a batch of stored images, which are cropped or padded to a square.

Where an image is cropped is said by three numbers in [0, 1): the crop's row and column, and for a window its scale.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffunet.pictures import images as pictures
from diffunet.pictures.images import Colour, Pixels

Map = Callable[[Callable[[int], Pixels], Iterable[int]], Iterable[Pixels]]
"""A function like `map`, such as the method of a pool of threads: (what to call, with what each time)."""


class Images(Protocol):
    """A sequence of images, uint8 [h w C], of any sizes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pixels: ...


def square(
    image: Pixels, size: int, fit: str, background: Colour, where: NDArray[np.float64] | None = None,
    scales: Sequence[float] = (1.0,),
) -> Pixels:  # fmt: skip
    """Return an image [h w C] as a square of side `size`, [size size C].

    For fit "pad" it is laid on `background`, with 4 channels of alpha 0. For "random" it is cropped where `where` [3]
    says, see above; for "crop", or without it, in the middle. For "patch" it is a window there at one of the `scales`,
    of which the largest is that of `image`.
    """
    if fit == "patch":
        return _window(image, size, scales, (0.5, 0.5, 0.0) if where is None else where)
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
    if fit == "random" and where is not None:
        down, right, _ = where
        top, left = int(down * (h - size + 1)), int(right * (w - size + 1))
    return image[top : top + size, left : left + size]


def _window(image: Pixels, size: int, scales: Sequence[float], where: Iterable[float]) -> Pixels:
    """Return a window of an image at a scale, or at the nearest larger one at which it fits, [size size C]."""
    h, w, _ = image.shape
    down, right, which = where
    side = min(round(size * max(scales) / scales[int(which * len(scales))]), h, w)
    top, left = int(down * (h - side + 1)), int(right * (w - side + 1))
    return pictures.resize(image[top : top + side, left : left + side], size, size)


def sums(
    image: Pixels, size: int, fit: str, background: Colour, scales: Sequence[float]
) -> tuple[list[int], list[int]]:
    """Return the sums of the values and of their squares, for each channel, of the square that is evaluated.

    For "patch" they are those of a square that is as all windows are on the mean.
    """
    if fit != "patch":
        return _sums(square(image, size, fit, background))
    h, w, _ = image.shape
    means = []
    for scale in scales:
        least = max(scale / max(scales), size / min(h, w))
        whole = pictures.resize(image, max(size, round(h * least)), max(size, round(w * least)))
        means.append(np.array(_sums(whole), np.float64) / (whole.shape[0] * whole.shape[1]))
    total, squares = np.rint(np.mean(means, axis=0) * size**2).astype(np.int64).tolist()
    return total, squares


def _sums(image: Pixels) -> tuple[list[int], list[int]]:
    total, squares = np.zeros((2, image.shape[2]), np.int64)
    at_once = max(1, 2**20 // image.shape[1])  # rows: eight bytes a value are many for an image of 100 megapixels
    for top in range(0, len(image), at_once):
        # Sums along rows take a quarter of the time.
        rows = np.ascontiguousarray(image[top : top + at_once].reshape(-1, image.shape[2]).T, dtype=np.int64)
        total += rows.sum(axis=1)
        squares += (rows * rows).sum(axis=1)
    return total.tolist(), squares.tolist()


def gather(
    images: Images, indices: Sequence[int] | NDArray[np.int64], where: NDArray[np.float64] | None = None, *,
    image_size: int, fit: str, background: Colour = pictures.WHITE, scales: Sequence[float] = (1.0,),
    read: Map = map,
) -> Pixels:  # fmt: skip
    """Return the images at `indices`, in that order, as a batch uint8 [B image_size image_size C].

    `where` [B 3] says which part of each is taken, see above; without it that is the middle.
    `read` asks for the images, several at a time where it is that of a pool; the batch is the same.
    """
    found, places = read(images.__getitem__, map(int, indices)), [None] * len(indices) if where is None else where
    return np.stack(
        [square(image, image_size, fit, background, at, scales) for image, at in zip(found, places, strict=True)]
    )
