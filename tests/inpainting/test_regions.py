"""Regions: geometry by its definition, groups by brute force."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffunet.errors import UsageError
from diffunet.inpainting import part, regions


def hole(height, width, top, left, h, w):
    out = np.zeros((height, width), bool)
    out[top : top + h, left : left + w] = True
    return out


def cut(pixels, mask, region):
    return part.Part(part.Masked(Image.fromarray(pixels), mask, None, False), region).cut(3)


@pytest.mark.parametrize("seed", range(60))
def test_a_crop_holds_the_hole_within_the_image_at_no_less_than_the_models_size(seed):
    g = np.random.default_rng(seed)
    height, width, size = (int(n) for n in g.integers(3, 200, 3))
    h, w = int(g.integers(1, height + 1)), int(g.integers(1, width + 1))
    mask = hole(height, width, int(g.integers(0, height - h + 1)), int(g.integers(0, width - w + 1)), h, w)
    [region] = regions.choose(mask, size, "crop")
    assert region.top >= 0
    assert region.left >= 0
    assert region.top + region.height <= height
    assert region.left + region.width <= width
    if max(h, w) * regions.CONTEXT <= min(height, width) or max(h, w) <= min(height, width, size):
        assert mask[region.box].sum() == mask.sum()
    assert min(region.rows, region.columns) == size
    assert abs(region.rows / region.columns - region.height / region.width) * min(region.rows, region.columns) <= 2
    pixels, small = cut(np.zeros((height, width, 3), np.uint8), mask, region)
    assert pixels.shape == (region.rows, region.columns, 3)
    assert small.shape == (region.rows, region.columns)
    assert small.any()


def test_a_small_hole_in_a_large_image_is_worked_on_pixel_by_pixel():
    [region] = regions.choose(hole(500, 700, 100, 300, 20, 30), 64, "crop")
    assert (region.height, region.width, region.rows, region.columns) == (64, 64, 64, 64)
    assert not region.resampled
    assert (region.top, region.left) == (78, 283)


def fits(mask, size, fit="auto"):
    return [region.fit for region in regions.choose(mask, size, fit)]


def test_auto_takes_native_for_images_of_about_the_models_size():
    assert fits(hole(64, 64, 1, 1, 5, 5), 64) == ["native"]
    assert fits(hole(64, 100, 1, 1, 5, 5), 64) == ["native"]
    assert fits(hole(512, 768, 1, 1, 5, 5), 64) == ["crop"]
    assert fits(hole(20, 20, 1, 1, 5, 5), 64) == ["crop"]
    with pytest.raises(UsageError, match=r"native takes images of up to 2,000,000 pixels, not 3000x3000; take"):
        regions.choose(hole(3000, 3000, 1, 1, 5, 5), 64, "native")


def test_auto_takes_native_only_where_there_is_memory_for_it_and_a_large_model_its_own_size():
    for size, shape in ((1024, (2048, 2048)), (1024, (1300, 1600)), (768, (1400, 1500)), (1500, (2000, 2500))):
        assert fits(hole(*shape, 1, 1, 5, 5), size) == ["crop"]
    assert fits(hole(1500, 1500, 1, 1, 5, 5), 1500) == ["native"]
    assert fits(hole(1500, 1500, 1, 1, 5, 5), 1500, "native") == ["native"]


def test_auto_takes_tiles_where_a_crop_would_lose_too_much():
    side = int(regions.COARSEST * 64 / regions.CONTEXT)
    assert fits(hole(512, 768, 100, 100, side, side), 64) == ["crop"]
    assert fits(hole(512, 768, 100, 100, side + 2, 9), 64) == ["tile"]
    assert fits(hole(50, 768, 0, 100, 50, 500), 64) == ["crop"], "no tile fits into 50 rows"
    two = hole(512, 768, 10, 10, 20, 20) | hole(512, 768, 200, 200, 250, 250)
    assert fits(two, 64) == ["crop", "tile"]
    assert regions.summary(regions.choose(two, 64)) == "2 regions: 1 crop, 1 tile"


def test_tiles_have_context_and_the_images_resolution():
    [region] = regions.choose(hole(512, 768, 100, 200, 150, 160), 64, "tile")
    assert (region.top, region.left, region.height, region.width) == (68, 168, 214, 224)
    assert (region.rows, region.columns) == (214, 224)
    [region] = regions.choose(hole(512, 768, 0, 760, 3, 8), 64, "tile")
    assert (region.top, region.left, region.height, region.width) == (0, 696, 67, 72)
    [region] = regions.choose(np.ones((64, 80), bool), 64, "tile")
    assert (region.height, region.width) == (64, 80)
    with pytest.raises(UsageError, match=r"at least 64x64 pixels.*not 80x63; take crop"):
        regions.choose(np.ones((63, 80), bool), 64, "tile")
    with pytest.raises(UsageError, match=r"fit tile takes up to 16,000,000 pixels.*piece by piece"):
        regions.choose(np.ones((4100, 4100), bool), 64, "tile")
    assert fits(np.ones((4100, 4100), bool), 64) == ["crop"]


def together(mask, size):
    """The sets of hole pixels that a chain of steps, each to a cell next to it, leads through."""
    cell = max(1, size // 4)
    cells = {}
    for y, x in np.argwhere(mask):
        cells.setdefault((y // cell, x // cell), set()).add((y, x))
    found = []
    while cells:
        group, edge = set(), [next(iter(cells))]
        while edge:
            y, x = edge.pop()
            if (y, x) in cells:
                group |= cells.pop((y, x))
                edge += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        found.append(frozenset((int(y), int(x)) for y, x in group))
    return set(found)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_share_the_hole_out(data):
    """Each pixel belongs to one region, each region has those of one group, and their box fits closely."""
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    size = data.draw(st.sampled_from([4, 8, 16]))
    share = data.draw(st.sampled_from([0.002, 0.02, 0.3]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = random.random((height, width)) < share
    mask[random.integers(height), random.integers(width)] = True
    fit = data.draw(st.sampled_from(["crop", "tile"] if min(height, width) >= size else ["crop"]))
    found = regions.choose(mask, size, fit)
    own = set()
    for region in found:
        inside = region.own(mask)
        assert inside.shape == (region.height, region.width)
        ys, xs = np.nonzero(inside)
        own.add(frozenset((int(y) + region.top, int(x) + region.left) for y, x in zip(ys, xs, strict=True)))
        margin = size // 2 if fit == "tile" else 0
        for at, start, length, limit in (
            (ys, region.top, region.height, height), (xs, region.left, region.width, width),
        ):  # fmt: skip
            assert at.min() >= min(margin, at.min() + start)
            assert length - 1 - at.max() >= min(margin, limit - 1 - start - at.max())
            needed = np.ptp(at) + 1 + 2 * margin if fit == "tile" else regions.CONTEXT * max(np.ptp(ys), np.ptp(xs)) + 3
            assert length <= max(size, needed)
    assert own == together(mask, size)
    assert sum(map(len, own)) == mask.sum()


@pytest.mark.parametrize(("specks", "size"), [(3000, 64), (40_000, 64), (40_000, 16)])
def test_thousands_of_specks_are_a_bounded_number_of_regions_at_full_resolution(specks, size, monkeypatch):
    monkeypatch.setattr(regions, "GROUPS", 100)
    monkeypatch.setattr(regions, "TILE_PIXELS", 2_000_000)
    mask = np.zeros((2000, 3000), bool)
    places = np.random.default_rng(0).integers(0, (1996, 2996), (specks, 2))
    for y, x in places:
        mask[y : y + 4, x : x + 4] = True
    found = regions.choose(mask, size)
    assert len(found) <= 100
    assert not any(region.resampled for region in found)
    covered = np.zeros(mask.shape, np.int32)
    for region in found:
        assert region.rows * region.columns <= 2_000_000
        covered[region.box] += region.own(mask)
    assert np.array_equal(covered, mask)


def test_groups_of_100_megapixels_take_little_memory():
    mask = np.zeros((10_000, 10_000), bool)
    for y, x in np.random.default_rng(0).integers(0, 9000, (200, 2)):
        mask[y : y + 5, x : x + 900] = True
    tracemalloc.start()
    found = regions.choose(mask, 64)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) > 10
    assert most < mask.nbytes


def test_a_thin_stroke_survives_and_what_is_in_it_does_not_leak():
    mask = np.zeros((1024, 1024), bool)
    mask[np.arange(1024), np.arange(1024)] = True
    [region] = regions.choose(mask, 64, "crop")
    bright, dark = (np.where(mask[..., None], np.uint8(v), np.uint8(100)).repeat(3, 2) for v in (255, 0))
    a, small = cut(bright, mask, region)
    b, _ = cut(dark, mask, region)
    assert small.diagonal().all()
    assert np.array_equal(a[~small], b[~small])
    assert (a[~small] == 100).all()


def levels(mask, size, fit="tile"):
    """Of an image with one group: what its region goes through the net as, level by level."""
    [region] = regions.choose(mask, size, fit)
    found = regions.pyramid(region, mask, size)
    assert found[-1] == region
    assert all((each.fit, each.box) == (region.fit, region.box) for each in found)
    return [(each.rows, each.columns) for each in found]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        # With 32 of context to each side 364, which is 5.7 windows: three steps, of the third root of that each.
        (hole(768, 512, 200, 100, 300, 300), [(64, 64), (114, 114), (204, 204), (364, 364)]),
        (hole(768, 512, 200, 100, 66, 200), [(64, 130), (91, 185), (130, 264)]),
        (hole(768, 512, 200, 100, 64, 200), [(64, 132), (128, 264)]),
        # Narrower ones until they are a quarter of a window: 20 / 16 is 1.25. At an edge of the image twice as far.
        (hole(768, 512, 200, 100, 20, 140), [(67, 163), (84, 204)]),
        (hole(768, 512, 0, 100, 20, 140), [(64, 155), (84, 204)]),
        # What a window sees round has one level.
        (hole(768, 512, 200, 100, 16, 300), [(80, 364)]),
        (hole(768, 512, 200, 100, 1, 300), [(65, 364)]),
        (np.eye(300, dtype=bool), [(300, 300)]),
    ],
)
def test_a_wide_hole_is_filled_in_at_a_quarter_of_a_window_first(mask, expected):
    assert levels(mask, 64) == expected


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_pyramid_grows_by_two_at_most_from_about_a_window(data):
    size = data.draw(st.sampled_from([4, 8, 16]))
    height, width = data.draw(st.integers(size, 150)), data.draw(st.integers(size, 150))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    found = levels(hole(height, width, top, left, h, w), size)
    for (rows, columns), (finer_rows, finer_columns) in pairwise(found):
        assert size <= rows <= finer_rows
        assert size <= columns <= finer_columns
        assert (rows, columns) != (finer_rows, finer_columns)
        assert finer_rows <= 2 * rows + 1
        assert finer_columns <= 2 * columns + 1


def test_a_hole_that_is_all_of_the_image_is_first_filled_in_as_one_window():
    assert levels(np.ones((64, 64), bool), 64) == [(64, 64)]
    assert levels(np.ones((128, 256), bool), 64) == [(64, 128), (128, 256)]
    assert levels(np.ones((256, 256), bool), 64) == [(64, 64), (128, 128), (256, 256)]


def test_what_is_not_tiled_has_one_level():
    mask = hole(512, 768, 100, 100, 300, 300)
    for fit, through in (("crop", (64, 64)), ("native", (512, 768))):
        assert levels(mask, 64, fit) == [through]


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_a_model_of_windows_takes_tiles_at_the_scale_that_it_knows(scale):
    mask = hole(300, 400, 100, 120, 20, 30)
    [region] = regions.choose(mask, 32, "auto", scale)
    assert region.fit == "tile"
    assert abs(region.rows - scale * region.height) <= 0.5
    assert abs(region.columns - scale * region.width) <= 0.5
    assert min(region.rows, region.columns) >= 32
    assert mask[region.box].sum() == mask.sum()
    levels = regions.pyramid(region, mask, 32)
    assert levels[-1] == region
    assert all(level.rows <= region.rows for level in levels)
    assert regions.choose(mask, 32, "auto")[0].fit == "crop"  # a model of whole images
    small = hole(20, 24, 5, 5, 4, 4)
    assert regions.choose(small, 32, "auto", scale)[0].fit == "crop"  # where there is no room for a window
    with pytest.raises(UsageError, match=f"at least {-(-32 // scale):.0f}x"):
        regions.choose(small, 32, "tile", scale)
