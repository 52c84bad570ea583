"""Whether mirrored images would be wrong: by a closed form, by chance, and on digits."""

import logging

import numpy as np
import pytest
from PIL import Image

from diffunet.config import Config
from diffunet.data import builtin, symmetry
from diffunet.data.dataset import open_dataset
from diffunet.training import defaults


def pictures(count, slope, seed=0):
    """Noise on a ramp from left to right, uint8 [count 8 8 1]; the ramp has the sum of squares 8 * 42 * slope^2."""
    ramp = slope * (np.arange(8) - 3.5)[None, None, :, None]
    noise = np.random.default_rng(seed).normal(128, 20, (count, 8, 8, 1))
    return (noise + ramp).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_ramp_is_found_where_its_share_is_large_enough(sign):
    """Of x - mirror(x) the ramp has the square 4 * 8 * 42 * slope^2, and noise of deviation 20 has 2 * 64 * 400."""
    share = symmetry.SHARE + symmetry.CHANCE / 2000
    slope = (share / (1 - share) * 2 * 64 * 400 / (4 * 8 * 42)) ** 0.5
    assert not symmetry.one_sided(pictures(2000, sign * 0.9 * slope))
    assert symmetry.one_sided(pictures(2000, sign * 1.1 * slope))


@pytest.mark.parametrize("count", [1, 2, 5, 20, 100])
def test_few_images_differ_by_chance(count):
    assert not any(symmetry.one_sided(pictures(count, 0.0, seed)) for seed in range(20))


def test_nothing_is_one_sided_of_no_or_flat_images():
    assert not symmetry.one_sided(np.zeros((0, 8, 8, 3), np.uint8))
    assert not symmetry.one_sided(np.full((30, 8, 8, 3), 7, np.uint8))


def test_digits_are_not_mirrored_and_their_like_with_both_sides_are(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    builtin.prepare("digits", tmp_path / "digits", limit=400)
    for path in sorted((tmp_path / "digits").rglob("*.png")):
        both = tmp_path / "both"
        both.mkdir(exist_ok=True)
        image, name = Image.open(path), "-".join(path.parts[-2:])
        image.save(both / name)
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(both / f"mirrored-{name}")
    data = Config().changed("data", image_size=16, channels=1).data
    for name, found in (("digits", True), ("both", False)):
        caplog.clear()
        dataset = open_dataset(tmp_path / name, image_size=16, channels=1, fit="crop", cache="off")
        assert defaults.one_sided(data, dataset, np.arange(len(dataset.files))) is found
        assert ("left and right differ" in caplog.text) is found


def test_of_many_images_none_would_be_mirrored_anyway(monkeypatch, tmp_path):
    monkeypatch.setattr(defaults, "SMALL", 10)
    assert not defaults.one_sided(Config().data, None, np.arange(10))
