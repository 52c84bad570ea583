"""Masks against brute force, and against what Pillow's own filter does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data import masks
from diffunet.errors import DataError, UsageError

VALUES = np.array([[0, 127, 128, 255]], np.uint8)


def test_any_mode_reads_as_grey_over_255(tmp_path: Path) -> None:
    grey = Image.fromarray(VALUES)
    sixteen = Image.fromarray(VALUES.astype(np.uint16) * 257)
    for image in (grey, grey.convert("RGB"), grey.convert("RGBA"), grey.convert("LA"), grey.convert("P"), sixteen):
        mask = masks.read_mask(image)
        assert mask.dtype == np.float32
        assert np.allclose(mask, VALUES / 255, atol=1e-6), image.mode
    assert masks.read_mask(grey.convert("1", dither=Image.Dither.NONE)).tolist() == [[0, 0, 1, 1]]
    grey.save(tmp_path / "m.png")
    assert np.allclose(masks.read_mask(tmp_path / "m.png"), VALUES / 255)
    assert np.allclose(masks.read_mask(str(tmp_path / "m.png"), invert=True), 1 - VALUES / 255, atol=1e-6)
    assert masks.hole_of(masks.read_mask(grey)).tolist() == [[False, False, True, True]]


def test_transparent_parts_of_a_mask_are_black() -> None:
    rgba = Image.fromarray(np.array([[[255, 255, 255, 0], [255, 255, 255, 255]]], np.uint8))
    assert masks.read_mask(rgba).tolist() == [[0, 1]]


@pytest.mark.filterwarnings("error")
def test_arrays() -> None:
    for array in (
        VALUES,
        VALUES / 255,
        (VALUES / 255).astype(np.float32),
        VALUES[..., None],
        VALUES[..., None].repeat(3, 2),
    ):
        assert np.allclose(masks.read_mask(array), VALUES / 255, atol=1e-6)
    truth = np.array([[True, False]])
    for flags in (truth, truth.astype(np.uint8), truth.astype(np.int64), truth.astype(float)):
        mask = masks.read_mask(flags)
        assert mask.tolist() == [[1, 0]]
        assert mask.dtype == np.float32
    wrong = [
        np.zeros(3),
        np.zeros((2, 2, 2)),
        np.full((2, 2), np.nan),
        np.full((2, 2), 7.0),
        np.full((2, 2), 1e300),
        np.full((2, 2), -1),
        np.zeros((0, 3)),
    ]
    for bad in (*wrong, np.array([["a"]])):
        with pytest.raises(DataError):
            masks.read_mask(bad)


def test_a_file_that_is_no_mask_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        masks.read_mask(tmp_path / "gone.png")


def test_alpha_hole() -> None:
    alpha = np.array([[0, 254, 255]], np.uint8)
    rgba = np.dstack([np.zeros((1, 3, 3), np.uint8), alpha])
    hole = masks.alpha_hole(Image.fromarray(rgba))
    assert hole is not None
    assert hole.tolist() == [[True, True, False]]
    rgba[..., 3] = 255
    assert masks.alpha_hole(Image.fromarray(rgba)) is None
    assert masks.alpha_hole(Image.new("RGB", (2, 2))) is None


SIZES = [
    ((13, 17), (5, 4)),
    ((8, 8), (8, 8)),
    ((6, 5), (13, 9)),
    ((9, 30), (18, 7)),
    ((64, 1), (16, 1)),
    ((7, 7), (1, 20)),
]


def footprint(n: int, m: int) -> np.ndarray:
    """bool [m n]: which inputs the triangle filter weighs for each output, from real numbers, one by one."""
    scale = max(n / m, 1.0)
    return np.array([[1 - abs(x + 0.5 - (i + 0.5) * n / m) / scale > 1e-9 for x in range(n)] for i in range(m)])


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_shrink_is_the_footprint_of_the_filter(source: tuple[int, int], target: tuple[int, int]) -> None:
    rows, columns = footprint(source[0], target[0]), footprint(source[1], target[1])
    generator = np.random.default_rng(0)
    for share in (0.02, 0.3):
        hole = generator.random(source) < share
        expected = np.array([[hole[np.ix_(r, c)].any() for c in columns] for r in rows])
        assert np.array_equal(masks.shrink(hole, *target), expected)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_shrink_covers_everything_that_pillow_lets_through(source: tuple[int, int], target: tuple[int, int]) -> None:
    for y, x in np.ndindex(source):
        hole = np.zeros(source, bool)
        hole[y, x] = True
        light = Image.fromarray(hole.astype(np.float32)).resize(target[::-1], Image.Resampling.BILINEAR)
        assert not (np.asarray(light)[~masks.shrink(hole, *target)] > 1e-7).any()


def test_thin_strokes_survive() -> None:
    hole = np.zeros((1024, 1024), bool)
    hole[np.arange(1024), np.arange(1024)] = True
    small = masks.shrink(hole, 64, 64)
    assert small.diagonal().all()
    assert small.mean() < 0.06
    assert not masks.shrink(np.zeros((1024, 1024), bool), 64, 64).any()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("target", [(16, 16), (23, 11), (90, 64)])
def test_nothing_of_the_hole_leaks(channels: int, target: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (64, 48, channels), dtype=np.uint8)
    hole = masks.random_mask("box", 64, 48, generator)
    other = np.where(hole[..., None], generator.integers(0, 256, image.shape, dtype=np.uint8), image)
    one, two = masks.resize_known(image, hole, *target), masks.resize_known(other, hole, *target)
    assert one.shape == (*target, channels)
    assert np.array_equal(one, two)
    keep = ~masks.shrink(hole, *target)
    assert keep.any()
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    plain = Image.fromarray(image[..., 0] if channels == 1 else image).resize(target[::-1], Image.Resampling.BILINEAR)
    assert plain.mode == mode
    expected = np.asarray(plain).reshape(*target, channels)
    assert np.array_equal(one[keep], expected[keep])


@pytest.mark.parametrize("kind", masks.KINDS)
def test_random_masks(kind: str) -> None:
    shares = []
    for seed in range(30):
        hole = masks.random_mask(kind, 32, 48, np.random.default_rng(seed))
        assert hole.shape == (32, 48)
        assert hole.dtype == bool
        assert np.array_equal(hole, masks.random_mask(kind, 32, 48, np.random.default_rng(seed)))
        shares.append(hole.mean())
    assert min(shares) > 0.005
    assert max(shares) < 0.9
    if kind == "half":
        assert set(shares) == {0.5}
    else:
        assert len(set(shares)) > 20


def test_random_masks_of_tiny_images_and_unknown_kinds() -> None:
    for kind in ("box", "stroke"):
        assert masks.random_mask(kind, 1, 1, np.random.default_rng(0)).shape == (1, 1)
    with pytest.raises(UsageError, match="stroke"):
        masks.random_mask("circle", 8, 8, np.random.default_rng(0))
