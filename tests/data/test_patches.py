"""Windows of pictures at their own resolution: they are slices of what Pillow reads, and statistics are theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet import build, draws
from diffunet.config import DataConfig
from diffunet.data import augment
from diffunet.data.cache import Layout
from diffunet.data.dataset import open_dataset
from diffunet.pictures import images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pictures of noise and a checkerboard, larger than a window of 16, and a small one."""
    generator = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for n, (h, w) in enumerate(((40, 60), (90, 33))):
        Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(tmp_path / "p" / f"{n}.png")
    board = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "p" / "board.png")
    Image.new("RGB", (10, 8), (9, 9, 9)).save(tmp_path / "p" / "small.png")
    return tmp_path / "p"


@pytest.mark.parametrize("cache", ["off", None])
def test_windows_are_slices_of_the_pictures(root: Path, cache: None) -> None:
    data = open_dataset(root, image_size=16, channels=3, fit="patch", cache=cache)
    assert [image.shape[:2] for image in data.images] == [(40, 60), (90, 33), (128, 128), (16, 20)]  # type: ignore[attr-defined]
    pictures = [np.asarray(Image.open(root / f"{n}.png").convert("RGB")) for n in ("0", "1", "board")]
    places = set()
    for step in range(30):
        where = draws.of_step(3, step).random((3, 3))
        batch = augment.gather(data.images, range(3), where, image_size=16, fit="patch")
        for window, picture, (down, right, _) in zip(batch, pictures, where, strict=True):
            top, left = int(down * (picture.shape[0] - 15)), int(right * (picture.shape[1] - 15))
            assert np.array_equal(window, picture[top : top + 16, left : left + 16])
            places.add((top, left))
        assert batch[2].std() == 127.5  # the checkerboard is there
        assert np.array_equal(batch[2][1:], 255 - batch[2][:-1])
    assert len(places) > 80


def test_windows_at_other_scales_are_larger_pieces_made_smaller(root: Path) -> None:
    scales = (1.0, 0.5)
    data = open_dataset(root, image_size=16, channels=3, fit="patch", scales=scales, cache="off")
    picture, seen = np.asarray(Image.open(root / "0.png")), set()
    for n in range(20):
        where = draws.of_step(0, n).random((1, 3))
        [window] = augment.gather(data.images, [0], where, image_size=16, fit="patch", scales=scales)
        [(down, right, which)] = where
        side = 32 if which >= 0.5 else 16
        top, left = int(down * (41 - side)), int(right * (61 - side))
        piece = Image.fromarray(picture[top : top + side, left : left + side]).resize(
            (16, 16), Image.Resampling.BICUBIC
        )
        assert np.array_equal(window, np.asarray(piece))
        seen.add(side)
    assert seen == {16, 32}
    half = open_dataset(root, image_size=16, channels=3, fit="patch", scales=(0.5,), cache="off")
    assert [image.shape[:2] for image in half.images] == [(20, 30), (45, 16), (64, 64), (16, 20)]  # type: ignore[attr-defined]


def test_statistics_are_those_of_the_pictures_each_of_which_counts_as_much(root: Path) -> None:
    data = open_dataset(root, image_size=16, channels=3, fit="patch", cache="off")
    x = [image.astype(np.float64).reshape(-1, 3) / 127.5 - 1 for image in data.images]  # type: ignore[attr-defined]
    mean = np.mean([each.mean(0) for each in x], axis=0)
    square = np.mean([(each**2).mean(0) for each in x], axis=0)
    assert data.mean == pytest.approx(mean, abs=1e-4)
    assert data.sigma_data == pytest.approx(np.sqrt((square - mean**2).mean()), abs=1e-3)
    both = open_dataset(root, image_size=16, channels=3, fit="patch", scales=(1.0, 0.5), cache="off")
    assert both.mean == pytest.approx(mean, abs=0.01)
    assert both.sigma_data < 0.9 * data.sigma_data  # noise and a checkerboard are flat from afar


def test_what_is_stored_is_said_beforehand(root: Path) -> None:
    for fit, scales in (
        ("crop", (1.0,)),
        ("random", (1.0,)),
        ("pad", (1.0,)),
        ("patch", (1.0,)),
        ("patch", (0.7, 0.3)),
    ):
        data = open_dataset(root, image_size=16, channels=3, fit=fit, scales=scales, cache="off")
        layout = Layout(16, 3, fit, (255, 255, 255), 1.125, scales)
        shapes = [layout.shape(file.height, file.width) for file in data.files]
        assert shapes == [image.shape[:2] for image in data.images]  # type: ignore[attr-defined]


def test_windows_to_evaluate_are_the_same_every_time_and_others_are_the_middle() -> None:
    patch = DataConfig(fit="patch", image_size=16)
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 1), dtype=np.uint8)

    def windows(data: DataConfig) -> images.Pixels:
        return augment.gather([image] * 4, range(4), build.windows(data, range(4)), image_size=16, fit=data.fit)

    assert np.array_equal(windows(patch), windows(patch))
    assert len({window.tobytes() for window in windows(patch)}) == 4
    for window, place in zip(windows(patch), range(4), strict=True):  # the same ones as those of earlier versions
        generator = draws.generator(draws.seed_of("windows"), 0, place)
        generator.random()
        top, left = (generator.random(2) * 35).astype(int)
        assert np.array_equal(window, image[top : top + 16, left : left + 16])
    assert build.windows(DataConfig(fit="random"), range(3)) is None


def test_scales_go_with_patches_alone() -> None:
    with pytest.raises(ValueError, match="scales are those of fit patch, and fit is crop"):
        DataConfig(scales=(0.5,))
    assert DataConfig(fit="patch", scales=(1, 0.5)).scales == (1.0, 0.5)
