"""What is black and white in images of more than 8 bits, against quantiles of numpy and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffunet.pictures import ranges
from diffunet.pictures.ranges import Histogram, Range, Ranges, Tally

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (60, 50))


@pytest.mark.parametrize("bits", ranges.BITS)
def test_integers_of_so_many_bits(bits: int) -> None:
    values = (PHOTO * (2**bits - 1) // 255).astype(np.uint16)
    for kind in (np.uint16, np.int32):
        assert ranges.own(Image.fromarray(values.astype(kind))) == (0, 2**bits - 1)
    if bits < 16:
        values[:40] += 1  # the brightest no longer fit
        assert ranges.own(Image.fromarray(values)) == (0, 2 ** min(16, bits + 2) - 1)


def test_a_hot_pixel_is_clipped() -> None:
    values = np.full((200, 200), 4095, np.uint16)
    values[0, :4] = 65535
    assert ranges.own(Image.fromarray(values)) == (0, 4095)
    values[0, :5] = 65535  # one in 8,000
    assert ranges.own(Image.fromarray(values)) == (0, 65535)


@pytest.mark.parametrize(
    ("scale", "offset", "expected"), [(1, 0, (0, 1)), (1.0001, 0, (0, 1)), (1.04, 0, (0, 1)), (2, -1, (-1, 1)),
                                      (2.08, -1.04, (-1, 1)), (0.3, 0, (0, 1)), (1, -0.03, (0, 1))],
)  # fmt: skip
def test_floats_that_are_about_one(scale: float, offset: float, expected: Range) -> None:
    values = (PHOTO / 255 * scale + offset).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    image = Image.fromarray(values)
    assert ranges.own(image) == expected
    inside = ranges.scaled(image, Range(*expected))[0, 3:].astype(float)
    low, high = expected
    assert np.abs(inside - ((values[0, 3:] - low) / (high - low) * 255).clip(0, 255)).max() <= 0.51
    assert ranges.scaled(image, Range(*expected))[0, 0] in (0, 1), "what is missing is black"


@pytest.mark.parametrize("values", [
    RNG.normal(0, 1, (300, 300)).astype(np.float32), RNG.normal(-800, 300, (300, 300)).round().astype(np.int32),
    RNG.random((300, 300)).astype(np.float32) * 255, RNG.integers(0, 10**9, (300, 300)).astype(np.int32),
    -RNG.random((300, 300)).astype(np.float32) * 100 - 1,
])  # fmt: skip
def test_other_values_lie_between_quantiles(values: np.ndarray) -> None:
    low, high = ranges.own(Image.fromarray(values)) or (0, 0)
    expected = np.quantile(values, [1e-4, 1 - 1e-4])
    assert np.allclose([low, high], expected, rtol=0.02, atol=0.002 * np.ptp(values))
    assert values.min() <= low < high <= values.max()


def test_one_value_and_none_at_all() -> None:
    assert ranges.own(Image.fromarray(np.full((3, 3), -7, np.int32))) == (-7, -6)
    assert ranges.own(Image.fromarray(np.full((3, 3), np.nan, np.float32))) == (0, 1)
    assert ranges.own(Image.new("RGB", (3, 3))) is None


def test_a_tally_is_of_all_images() -> None:
    dark, bright = (Image.fromarray((PHOTO * factor).astype(np.uint16)) for factor in (1, 16))
    tally = Tally()
    for image in (dark, bright, Image.fromarray((PHOTO / 200).astype(np.float32))):
        one = ranges.histogram_of(image)
        assert one is not None
        tally.add(*one)
    found = tally.ranges()
    assert found.integers == (0, 4095)
    assert found.floats is not None
    assert found.floats.high == pytest.approx(255 / 200, rel=1e-3)
    assert Ranges(floats=Range(0, 3)).completed(found) == Ranges(found.integers, Range(0, 3))
    assert Tally().ranges() == ranges.UNKNOWN


def test_shares_are_exact_at_powers_of_two() -> None:
    values = RNG.integers(-70_000, 70_000, 50_000).astype(np.int32)
    histogram = Histogram.of(values)
    for bits in (0, 8, 10, 12, 14, 16):
        assert histogram.share_below(2**bits) == pytest.approx((values < 2**bits).mean())
    assert histogram.share_below(0) == pytest.approx((values < 0).mean())


def test_there_and_back() -> None:
    image = Image.fromarray(np.zeros((2, 2), np.uint16))
    grey = np.arange(256, dtype=np.uint8)[None]
    for range in (Range(0, 4095), Range(-1000, 2060), Range(0, 65535)):
        for negative in (False, True):
            image.info["white is zero"] = negative
            values = Image.fromarray(np.rint(ranges.unscaled(grey, image, range)).astype(np.int32))
            values.info["white is zero"] = negative
            assert np.array_equal(ranges.scaled(values, range), grey)


def test_of_very_large_images_some_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.normal(-800, 300, (700, 90)).round().astype(np.int32)
    image, known = Image.fromarray(values), np.ones(values.shape, bool)
    whole = ranges.own(image)
    monkeypatch.setattr(ranges, "_LARGE", 15_000)
    assert whole is not None
    for part in (ranges.own(image), ranges.own(image, known)):
        assert part is not None
        assert np.allclose(part, whole, atol=0.1 * np.ptp(values))
    assert ranges.beyond(image, Range(-2000, -800)) == pytest.approx((values > -740).mean(), abs=0.02)


def test_words() -> None:
    assert ranges.words("integers", Range(0, 4095)) == "nothing above 4,095: taken as 12 bits"
    assert ranges.words("integers", Range(-1000, 2060)) == "-1,000 is taken as black and 2,060 as white"
    assert ranges.words("floats", Range(0, 0.25)) == "0 is taken as black and 0.25 as white"
