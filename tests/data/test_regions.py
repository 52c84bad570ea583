"""Regions and composites: geometry by its definition, and pixels that must not change."""

import numpy as np
import pytest
from PIL import Image

from diffunet.data import composite, masks, regions
from diffunet.errors import UsageError


def hole(height, width, top, left, h, w):
    out = np.zeros((height, width), bool)
    out[top : top + h, left : left + w] = True
    return out


@pytest.mark.parametrize("seed", range(60))
def test_a_crop_holds_the_hole_within_the_image_at_no_less_than_the_models_size(seed):
    g = np.random.default_rng(seed)
    height, width, size = (int(n) for n in g.integers(3, 200, 3))
    h, w = int(g.integers(1, height + 1)), int(g.integers(1, width + 1))
    mask = hole(height, width, int(g.integers(0, height - h + 1)), int(g.integers(0, width - w + 1)), h, w)
    region = regions.choose(mask, size, "crop")
    assert region.top >= 0
    assert region.left >= 0
    assert region.top + region.height <= height
    assert region.left + region.width <= width
    if max(h, w) * regions.CONTEXT <= min(height, width) or max(h, w) <= min(height, width, size):
        assert mask[region.box].sum() == mask.sum()
    assert min(region.rows, region.columns) == size
    assert abs(region.rows / region.columns - region.height / region.width) * min(region.rows, region.columns) <= 2
    pixels, small = regions.cut(np.zeros((height, width, 3), np.uint8), mask, region)
    assert pixels.shape == (region.rows, region.columns, 3)
    assert small.shape == (region.rows, region.columns)
    assert small.any()


def test_a_small_hole_in_a_large_image_is_worked_on_pixel_by_pixel():
    region = regions.choose(hole(500, 700, 100, 300, 20, 30), 64, "crop")
    assert (region.height, region.width, region.rows, region.columns) == (64, 64, 64, 64)
    assert not region.resampled
    assert (region.top, region.left) == (78, 283)


def test_auto_takes_native_for_images_of_about_the_models_size():
    assert regions.choose(hole(64, 64, 1, 1, 5, 5), 64).fit == "native"
    assert regions.choose(hole(64, 100, 1, 1, 5, 5), 64).fit == "native"
    assert regions.choose(hole(512, 768, 1, 1, 5, 5), 64).fit == "crop"
    assert regions.choose(hole(20, 20, 1, 1, 5, 5), 64).fit == "crop"
    with pytest.raises(UsageError, match="native takes images of up to"):
        regions.choose(hole(3000, 3000, 1, 1, 5, 5), 64, "native")


def test_a_thin_stroke_survives_and_what_is_in_it_does_not_leak():
    mask = np.zeros((1024, 1024), bool)
    mask[np.arange(1024), np.arange(1024)] = True
    region = regions.choose(mask, 64, "crop")
    bright, dark = (np.where(mask[..., None], np.uint8(v), np.uint8(100)).repeat(3, 2) for v in (255, 0))
    a, small = regions.cut(bright, mask, region)
    b, _ = regions.cut(dark, mask, region)
    assert small.diagonal().all()
    assert np.array_equal(a[~small], b[~small])
    assert (a[~small] == 100).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "I;16", "P", "1", "CMYK"])
def test_composites_change_the_hole_alone(mode):
    g = np.random.default_rng(0)
    if mode == "I;16":
        picture = Image.fromarray(g.integers(0, 65536, (9, 7)).astype(np.uint16))
    else:
        picture = Image.fromarray(g.integers(0, 256, (9, 7, 4), dtype=np.uint8), "RGBA").convert(mode)
    picture = composite.editable(picture)
    mask = masks.random_mask("stroke", 9, 7, g)
    filled = np.full((9, 7, 3), 200, np.uint8)
    out = composite.composite(picture, filled, mask)
    assert out.mode == picture.mode
    before, after = np.asarray(picture), np.asarray(out)
    assert np.array_equal(before[~mask], after[~mask])
    colours = after[mask] if after.ndim == 2 else after[mask][..., : 3 if after.shape[2] > 2 else 1]
    assert (colours == (200 * 257 if mode == "I;16" else 200)).all()
