"""Crops, flips and padding, and that one draw never shifts another."""

from __future__ import annotations

import numpy as np
import pytest

from diffunet.data.augment import gather, square


def numbered(h: int, w: int, channels: int = 3) -> np.ndarray:
    """A picture in which every pixel tells where it was."""
    rows, columns = np.indices((h, w), dtype=np.uint8)
    return np.dstack([rows, columns, rows * 0 + 7, rows * 0 + 200][:channels]) if channels > 1 else columns[..., None]


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.Generator(np.random.Philox(key=3, counter=n)) for n in range(count)]


def crop_box(h: int, w: int, size: int, fit: str, generator: np.random.Generator | None) -> tuple[int, int]:
    """The row and column in the picture of the first pixel of its crop."""
    row, column, _ = square(numbered(h, w), size, fit, (255, 255, 255), generator)[0, 0].tolist()
    return row, column


IMAGES = [numbered(16, 16), numbered(16, 30), numbered(25, 16), numbered(18, 18)]


def test_centre() -> None:
    assert crop_box(10, 21, 8, "crop", np.random.default_rng(0)) == (1, 6)
    assert crop_box(10, 21, 8, "random", None) == (1, 6)
    batch = gather(IMAGES, [1, 2], [None, None], image_size=16, fit="random", flip=True)
    assert batch[0, 0, 0].tolist() == [0, 7, 7]
    assert batch[1, 0, 0].tolist() == [4, 0, 7]
    assert batch.shape == (2, 16, 16, 3)


def test_random_crops_reach_every_place_equally() -> None:
    boxes = [crop_box(10, 9, 8, "random", generator) for generator in generators(1200)]
    places, counts = np.unique(boxes, axis=0, return_counts=True)
    assert len(places) == 6
    assert abs(counts - 200).max() < 5 * np.sqrt(200)


def test_flips_are_half_of_them_and_mirror() -> None:
    batch = gather(IMAGES, [0] * 400, generators(400), image_size=16, fit="crop", flip=True)
    flipped = batch[:, 0, 0, 1] == 15
    assert 150 < flipped.sum() < 250
    assert np.array_equal(batch[flipped][0], IMAGES[0][:, ::-1])
    assert np.array_equal(batch[~flipped][0], IMAGES[0])


def test_options_do_not_shift_each_others_draws() -> None:
    plain = gather(IMAGES, [1] * 50, generators(50), image_size=16, fit="random", flip=False)
    mirrored = gather(IMAGES, [1] * 50, generators(50), image_size=16, fit="random", flip=True)
    unflipped = np.where(
        (mirrored[:, 0, 0, 1] > mirrored[:, 0, 1, 1])[:, None, None, None], mirrored[:, :, ::-1], mirrored
    )
    assert np.array_equal(plain, unflipped)
    flips = gather(IMAGES, [1] * 50, generators(50), image_size=16, fit="crop", flip=True)
    assert np.array_equal(flips[:, 0, 0, 1] > flips[:, 0, 1, 1], mirrored[:, 0, 0, 1] > mirrored[:, 0, 1, 1])


def test_an_image_depends_on_its_own_generator_only() -> None:
    together = gather(IMAGES, [0, 1, 2, 3], generators(4), image_size=16, fit="random", flip=True)
    alone = [gather(IMAGES, [n], [generators(4)[n]], image_size=16, fit="random", flip=True)[0] for n in range(4)]
    assert np.array_equal(together, alone)


@pytest.mark.parametrize(("channels", "background"), [(1, [180]), (3, [255, 128, 255]), (4, [255, 128, 255, 0])])
def test_padding(channels: int, background: list[int]) -> None:
    image = numbered(5, 8, channels)
    batch = gather([image], [0], [None], image_size=8, fit="pad", flip=True, background=(255, 128, 255))
    assert np.array_equal(batch[0, 1:6], image)
    assert batch[0, 0, 0].tolist() == batch[0, 7, 7].tolist()
    assert np.abs(batch[0, 0, 0].astype(int) - background).max() <= 1
