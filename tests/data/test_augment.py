"""Crops and padding."""

from __future__ import annotations

import numpy as np
import pytest

from diffunet.data.augment import gather, square


def numbered(h: int, w: int, channels: int = 3) -> np.ndarray:
    """A picture in which every pixel tells where it was."""
    rows, columns = np.indices((h, w), dtype=np.uint8)
    return np.dstack([rows, columns, rows * 0 + 7, rows * 0 + 200][:channels]) if channels > 1 else columns[..., None]


def crop_box(h: int, w: int, size: int, fit: str, where: np.ndarray | None) -> tuple[int, int]:
    """The row and column in the picture of the first pixel of its crop."""
    row, column, _ = square(numbered(h, w), size, fit, (255, 255, 255), where)[0, 0].tolist()
    return row, column


def anywhere(count: int) -> np.ndarray:
    return np.random.default_rng(3).random((count, 3))


IMAGES = [numbered(16, 16), numbered(16, 30), numbered(25, 16), numbered(18, 18)]


def test_centre() -> None:
    assert crop_box(10, 21, 8, "crop", np.random.default_rng(0)) == (1, 6)
    assert crop_box(10, 21, 8, "random", None) == (1, 6)
    batch = gather(IMAGES, [1, 2], image_size=16, fit="random")
    assert batch[0, 0, 0].tolist() == [0, 7, 7]
    assert batch[1, 0, 0].tolist() == [4, 0, 7]
    assert batch.shape == (2, 16, 16, 3)


def test_random_crops_reach_every_place_equally() -> None:
    boxes = [crop_box(10, 9, 8, "random", where) for where in anywhere(1200)]
    places, counts = np.unique(boxes, axis=0, return_counts=True)
    assert len(places) == 6
    assert abs(counts - 200).max() < 5 * np.sqrt(200)


def test_an_image_depends_on_its_own_numbers_only() -> None:
    where = anywhere(4)
    together = gather(IMAGES, [0, 1, 2, 3], where, image_size=16, fit="random")
    alone = [gather(IMAGES, [n], where[n : n + 1], image_size=16, fit="random")[0] for n in range(4)]
    assert np.array_equal(together, alone)
    assert np.array_equal(
        together[1:3], [IMAGES[1][:, int(where[1, 1] * 15) :][:, :16], IMAGES[2][int(where[2, 0] * 10) :][:16]]
    )


@pytest.mark.parametrize(("channels", "background"), [(1, [180]), (3, [255, 128, 255]), (4, [255, 128, 255, 0])])
def test_padding(channels: int, background: list[int]) -> None:
    image = numbered(5, 8, channels)
    batch = gather([image], [0], image_size=8, fit="pad", background=(255, 128, 255))
    assert np.array_equal(batch[0, 1:6], image)
    assert batch[0, 0, 0].tolist() == batch[0, 7, 7].tolist()
    assert np.abs(batch[0, 0, 0].astype(int) - background).max() <= 1
