"""Masks against brute force, and against what Pillow's own filter does."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from diffunet.errors import UsageError
from diffunet.inpainting import masks
from diffunet.inpainting.reading import read_mask


def test_alpha_hole() -> None:
    alpha = np.array([[0, 249, 250, 254, 255]], np.uint8)
    rgba = np.dstack([np.zeros((1, 5, 3), np.uint8), alpha])
    hole = masks.alpha_hole(Image.fromarray(rgba))
    assert hole is not None
    assert hole.tolist() == [[True, True, False, False, False]]
    rgba[..., 3] = 250  # almost opaque is no hole
    assert masks.alpha_hole(Image.fromarray(rgba)) is None
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


@pytest.mark.parametrize("kind", [*masks.KINDS, "mixed"])
def test_random_masks(kind: str) -> None:
    seen = []
    for seed in range(30):
        hole = masks.random_mask(kind, 32, 48, np.random.default_rng(seed))
        assert hole.shape == (32, 48)
        assert hole.dtype == bool
        assert np.array_equal(hole, masks.random_mask(kind, 32, 48, np.random.default_rng(seed)))
        assert 0.005 < hole.mean() < 0.9
        seen.append(hole)
    different = len({hole.tobytes() for hole in seen})
    assert different == {"half": 4, "lines": 4, "grid": 4}.get(kind, different)
    assert different >= 4 if kind in ("half", "lines", "grid") else different > 20


def runs(line: np.ndarray) -> list[int]:
    """How long each run of True is."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    return [int(n) for n in edges[1::2] - edges[::2]]


@pytest.mark.parametrize("seed", range(20))
def test_what_random_masks_look_like(seed: int) -> None:
    def draw(kind: str, height: int, width: int) -> np.ndarray:
        return masks.random_mask(kind, height, width, np.random.default_rng(seed))

    box = draw("box", 100, 200)
    ys, xs = np.nonzero(box)
    assert box.sum() == (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
    assert 29 <= np.ptp(ys) <= 60
    assert 59 <= np.ptp(xs) <= 120
    half = draw("half", 10, 12)
    assert half.mean() == 0.5
    assert sorted({len(runs(line)) for line in (*half, *half.T)}) in ([0, 1], [1])
    lines = draw("lines", 10, 12)
    lines = lines if (lines == lines[:, :1]).all() else lines.T
    assert (lines == lines[:, :1]).all()
    assert (lines[:-1, 0] != lines[1:, 0]).all()
    grid = draw("grid", 10, 12)
    assert ((~grid).reshape(5, 2, 6, 2).sum(axis=(1, 3)) == 1).all()
    assert np.array_equal(grid[:-2, :-2], grid[2:, 2:])
    scratches = draw("scratches", 300, 300)
    thinned = scratches
    for _ in range(3):  # what is 3 pixels thick is gone after two peelings; a few remain where lines cross
        inner = thinned.copy()
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            inner &= np.roll(thinned, step, axis)
        thinned = inner
    assert thinned.sum() < 0.03 * scratches.sum()
    wide, narrow = (np.mean([masks.random_mask(kind, 256, 256, np.random.default_rng(100 * seed + i)).mean()
                             for i in range(10)]) for kind in ("wide", "narrow"))  # fmt: skip
    assert wide > 1.5 * narrow


@pytest.mark.parametrize("kind", [*masks.KINDS, "mixed"])
def test_random_masks_of_small_images_have_something_known_and_something_missing(kind: str) -> None:
    for height, width, seed in np.ndindex(6, 6, 8):
        hole = masks.random_mask(kind, height + 1, width + 1, np.random.default_rng(seed))
        assert hole.shape == (height + 1, width + 1)
        assert hole.any()
        assert hole.size == 1 or not hole.all()


def test_unknown_kinds() -> None:
    with pytest.raises(UsageError, match="'circle'; there are mixed, box, half, wide"):
        masks.random_mask("circle", 8, 8, np.random.default_rng(0))


def test_boxes() -> None:
    expected = np.zeros((5, 7), bool)
    expected[1:3, 2:7] = True
    assert np.array_equal(masks.box_mask((2, 1, 7, 3), 5, 7), expected)
    assert masks.box_mask((0, 0, 7, 5), 5, 7).all()
    for outside in ((-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 8, 5), (0, 0, 7, 6)):
        with pytest.raises(UsageError, match=r"reaches outside the image, which is 7x5"):
            masks.box_mask(outside, 5, 7)
    for empty in ((2, 1, 2, 3), (2, 1, 7, 1), (5, 1, 2, 3)):
        with pytest.raises(UsageError, match=rf"box {empty[0]},1,{empty[2]},{empty[3]} is empty"):
            masks.box_mask(empty, 5, 7)


def as_jpeg(pixels: np.ndarray, quality: int) -> Image.Image:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return Image.open(out)


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_jpeg_ringing(quality: int) -> None:
    """A disc and a box off the grid of blocks, with what JPEG leaves round them."""
    y, x = np.mgrid[:120, :160]
    truth = (y - 40) ** 2 + (x - 50) ** 2 < 30**2
    truth[71:102, 93:150] = True
    mask = read_mask(as_jpeg(np.where(truth, 255, 0).astype(np.uint8), quality)).mask
    assert len(np.unique(mask)) > 10, "it does ring"
    assert np.array_equal(masks.hole_of(mask), truth)
    settled = masks.without_ringing(mask)
    assert (np.abs(settled - mask) <= masks.RINGING).all()
    between = (settled > 0) & (settled < 1)
    assert between.mean() < (0.03 if quality == 50 else 0.01)
    away = ndimage.distance_transform_edt(truth) + ndimage.distance_transform_edt(~truth) > 8 * 2**0.5 + 1
    assert np.array_equal(settled[away], truth[away])
    half = np.full((2, 2), 0.5, np.float32)
    assert np.array_equal(masks.without_ringing(half), half)


def test_a_resized_mask_keeps_what_is_thin() -> None:
    """A stroke of one pixel on 2000 x 1500, and a soft one, whose largest value stays."""
    mask = np.zeros((1500, 2000), np.float32)
    mask[700] = 1
    mask[:, 333] = 0.4
    for height, width in ((64, 64), (48, 64), (1500, 100)):
        small = masks.resize_mask(mask, height, width)
        assert small.shape == (height, width)
        assert small.dtype == np.float32
        assert np.array_equal(small == 1, masks.shrink(mask == 1, height, width))
        assert np.array_equal(small > 0, masks.shrink(mask > 0, height, width))
        assert set(np.unique(small)) == {np.float32(0), np.float32(0.4), np.float32(1)}


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_a_shrunk_mask_is_the_largest_in_the_footprint(source: tuple[int, int], target: tuple[int, int]) -> None:
    smaller = (min(source[0], target[0]), min(source[1], target[1]))
    rows, columns = footprint(source[0], smaller[0]), footprint(source[1], smaller[1])
    mask = np.random.default_rng(0).random(source).astype(np.float32)
    expected = np.array([[mask[np.ix_(r, c)].max() for c in columns] for r in rows])
    assert np.array_equal(masks.resize_mask(mask, *smaller), expected)
    other = masks.resize_mask(mask, *target)
    assert other.shape == target
    assert mask.min() <= other.min() <= other.max() <= mask.max()


def test_an_enlarged_mask_covers_what_it_did() -> None:
    mask = np.zeros((8, 10), np.float32)
    mask[2:5, 3:7] = 1
    large = masks.resize_mask(mask, 80, 100)
    middle, all_of_it = np.zeros((80, 100), bool), np.zeros((80, 100), bool)
    middle[22:48, 32:68] = True  # its corners are rounded
    all_of_it[20:50, 30:70] = True
    assert masks.hole_of(large)[middle].all()
    assert not masks.hole_of(large)[~all_of_it].any()
    assert 0 < large[18, 50] < 0.5


def nearest_known(hole: np.ndarray) -> np.ndarray:
    """From each pixel to the nearest that is known, one by one."""
    known = np.argwhere(~hole)
    return np.array([[np.hypot(*(known - (y, x)).T).min() for x in range(hole.shape[1])] for y in range(len(hole))])


@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_feather_is_the_distance_to_what_is_known(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, strip in ((0, 2**22), (1, 40), (2, 1)):  # in one strip, in some, row by row
        monkeypatch.setattr(masks, "_STRIP", strip)
        hole = masks.random_mask("wide", 23, 31, np.random.default_rng(seed)) | (np.arange(31) > 24)
        weight = masks.feather(hole, n)
        assert weight.dtype == np.float32
        assert np.allclose(weight, np.minimum(nearest_known(hole) / n, 1), atol=1e-6)
        assert np.array_equal(weight > 0, hole)
        assert weight[11, -1] == pytest.approx(min(1, 6 / n)), "the border is no known pixel"


def test_feather_of_all_and_of_none() -> None:
    assert (masks.feather(np.ones((5, 6), bool), 3) == 1).all()
    assert (masks.feather(np.zeros((5, 6), bool), 3) == 0).all()
    hole = np.eye(6, dtype=bool)
    assert np.array_equal(masks.feather(hole, 0), hole)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 40])
def test_growing_and_shrinking_by_discs(n: int) -> None:
    """Each pixel has the largest, or the smallest, of those within n of it, looked for one by one."""
    random = np.random.default_rng(n)
    mask = (random.random((23, 17)) * (random.random((23, 17)) < 0.03)).astype(np.float32)
    rest = (1 - mask).astype(np.float32)
    rows, columns = np.mgrid[:23, :17]
    grown, shrunk = masks.grow(mask, n), masks.grow(rest, -n)
    for y, x in np.ndindex(23, 17):
        near = (rows - y) ** 2 + (columns - x) ** 2 <= n * n
        assert grown[y, x] == mask[near].max()
        assert shrunk[y, x] == pytest.approx(rest[near].min(), abs=1e-6)
    for amount in (n, -n):
        assert np.array_equal(masks.grow(mask > 0.2, amount), masks.grow((mask > 0.2).astype(np.float32), amount) > 0)
    assert not masks.grow(np.zeros((5, 6), np.float32), n).any()
    assert (masks.grow(np.ones((5, 6), np.float32), -n) == 1).all(), "the border is no edge"
