"""Reading an image and its hole, and files whose known pixels come back exactly, with what was said of them."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from diffunet.errors import DataError, UsageError
from diffunet.inpainting import masks, part, regions
from diffunet.pictures import images
from diffunet.pictures.ranges import Range, Ranges

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def filled(masked: part.Masked, size: int = 8, fit: str = "auto", num: int = 1, value: int = 77) -> list[Image.Image]:
    """The picture with every part of it filled with `value`, plus one for each filling."""
    done = [masked.picture.copy() for _ in range(num)]
    for one in part.parts(masked, size, fit):
        pixels, gap = one.cut(3)
        assert pixels.shape == (one.region.rows, one.region.columns, 3)
        assert gap.shape == pixels.shape[:2]
        one.paste(done, [np.full_like(pixels, value + i) for i in range(num)])
    return done


def test_a_mask_is_read_as_asked() -> None:
    image = Image.fromarray(noise(6, 8, 3))
    grey = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    plain = part.read(image, grey)
    assert np.array_equal(plain.hole, grey >= 0.5)
    assert plain.weight is None
    assert plain.said == ()
    assert np.array_equal(part.read(image, grey, invert_mask=True).hole, grey <= 0.5)
    soft = part.read(image, grey, soft_mask=True)
    assert np.array_equal(soft.hole, grey > masks.RINGING)
    between = (grey > masks.RINGING) & (grey < 1 - masks.RINGING)
    assert soft.weight is not None
    assert np.array_equal(soft.weight[between], grey[between])
    assert np.array_equal(np.unique(soft.weight[~between]), [0, 1])


def test_a_feather_and_a_soft_mask_are_combined_by_the_smaller() -> None:
    image, grey = Image.fromarray(noise(20, 20)), np.zeros((20, 20), np.float32)
    grey[4:16, 4:16] = 1
    grey[4:16, 10:16] = 0.3
    both = part.read(image, grey, soft_mask=True, feather=4)
    assert both.weight is not None
    assert np.array_equal(both.weight, np.minimum(grey, masks.feather(grey > 0, 4)))
    hard = part.read(image, box=(4, 4, 16, 16), feather=4)
    assert hard.weight is not None
    assert np.array_equal(hard.weight, masks.feather(grey > 0, 4))
    with pytest.raises(UsageError, match="feather is at least 0, not -1"):
        part.read(image, grey, feather=-1)


def test_a_box_instead_of_a_mask() -> None:
    image = Image.fromarray(noise(6, 8))
    expected = np.zeros((6, 8), bool)
    expected[2:5, 1:4] = True
    assert np.array_equal(part.read(image, box=(1, 2, 4, 5)).hole, expected)
    assert np.array_equal(part.read(image, box=(1, 2, 4, 5), invert_mask=True).hole, ~expected)
    with pytest.raises(UsageError, match="outside the image, which is 8x6"):
        part.read(image, box=(1, 2, 4, 7))
    with pytest.raises(UsageError, match="a mask and a box are both given"):
        part.read(image, expected, box=(1, 2, 4, 5))


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    image = Image.fromarray(noise(6, 8))
    mask = np.zeros((3, 4), bool)
    mask[1, 1] = True
    Image.fromarray(mask).save(tmp_path / "m.png")
    with pytest.raises(UsageError, match=r"m\.png is 4x3, and the image 8x6: .*resize_mask=True"):
        part.read(image, tmp_path / "m.png")
    hole = part.read(image, tmp_path / "m.png", resize_mask=True).hole
    assert np.array_equal(np.argwhere(hole), [[2, 2], [2, 3], [3, 2], [3, 3]])


def test_a_mask_from_a_jpeg_leaves_known_pixels_alone(tmp_path: Path) -> None:
    truth = np.zeros((60, 70), bool)
    truth[13:41, 19:52] = True
    Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)).save(tmp_path / "m.jpg", quality=50)
    image = Image.fromarray(noise(60, 70, 3))
    [done] = filled(part.read(image, tmp_path / "m.jpg"))
    assert np.array_equal((np.asarray(done) != np.asarray(image)).any(axis=2), truth & (np.asarray(image) != 77).any(2))


def test_the_images_own_transparency(tmp_path: Path) -> None:
    """It is filled in behind what shows of the image: a shadow stays one, and what is almost opaque is no hole."""
    pixels = noise(9, 9, 4)
    pixels[..., 3] = 255
    pixels[2:5, 3:7, 3] = [0, 100, 254, 7]
    Image.fromarray(pixels).save(tmp_path / "x.png")
    own = part.read(tmp_path / "x.png")
    assert np.array_equal(own.hole, pixels[..., 3] < 250)
    after = np.asarray(filled(own)[0])
    share = pixels[..., 3:] / 255
    assert np.abs(after[..., :3] - (pixels[..., :3] * share + 77 * (1 - share)))[own.hole].max() <= 0.51
    assert (after[own.hole][:, 3] == 255).all()
    assert np.array_equal(after[~own.hole], pixels[~own.hole])
    replaced = np.asarray(filled(part.read(tmp_path / "x.png", box=(0, 0, 9, 9)))[0])
    assert (replaced == (77, 77, 77, 255)).all()
    with pytest.raises(UsageError, match="has no transparent part"):
        part.read(Image.fromarray(noise(4, 4)))
    pixels[..., 3] = 251
    with pytest.raises(UsageError, match="has no transparent part"):
        part.read(Image.fromarray(pixels))


def test_a_grown_hole_of_transparency_replaces_its_rim() -> None:
    pixels = noise(20, 20, 4)
    pixels[..., 3] = 255
    pixels[8:12, 8:12, 3] = 0
    pixels[7, 8:12, 3] = 90
    masked = part.read(Image.fromarray(pixels), grow=2)
    assert np.array_equal(masked.hole, masks.grow((pixels[..., 3] < 250).astype(np.float32), 2) > 0)
    assert (np.asarray(filled(masked)[0])[masked.hole] == (77, 77, 77, 255)).all()
    less = part.read(Image.fromarray(pixels), shrink=1)
    assert np.array_equal(less.hole, masks.grow((pixels[..., 3] < 250).astype(np.float32), -1) > 0)


def test_growing_and_shrinking_a_mask_and_a_box() -> None:
    image, hole = Image.fromarray(noise(20, 30)), np.zeros((20, 30), np.float32)
    hole[6:12, 8:20] = 1
    for options, n in (({"grow": 3}, 3), ({"shrink": 2}, -2)):
        expected = masks.grow(hole, n) > 0
        assert np.array_equal(part.read(image, hole, **options).hole, expected)
        assert np.array_equal(part.read(image, box=(8, 6, 20, 12), **options).hole, expected)
        assert np.array_equal(part.read(image, hole, soft_mask=True, **options).hole, expected)
    hole[8, 10] = 0
    assert part.read(image, hole, grow=2, shrink=2).hole[8, 10], "both close a gap"
    with pytest.raises(part.NothingToFill, match="shrink=3 leaves nothing"):
        part.read(image, hole, shrink=3)
    with pytest.raises(UsageError, match="grow is at least 0, not -1"):
        part.read(image, hole, grow=-1)


@pytest.mark.parametrize(
    ("mask", "options", "words"),
    [
        (np.zeros((4, 6)), {}, "the mask is black all over.*invert_mask=True"),
        (np.ones((4, 6)), {"invert_mask": True}, "white all over"),
        (None, {"box": (0, 0, 6, 4), "invert_mask": True}, "the box is all of it"),
        (np.full((4, 6), 0.01), {"soft_mask": True, "mask_values": [0.7]}, "has no pixel of the value 0.7"),
    ],
)
def test_nothing_to_fill_is_an_event(mask: Any, options: Any, words: str) -> None:
    with pytest.raises(part.NothingToFill, match=f"there is nothing to fill in the image: .*{words}") as raised:
        part.read(Image.fromarray(noise(4, 6)), mask, **options)
    assert raised.value.exit_code == 2


def test_what_is_said_of_a_mask(tmp_path: Path) -> None:
    image, hole = Image.fromarray(noise(20, 30, 3)), np.zeros((20, 30), np.uint8)
    hole[3:9, 5:20] = 7
    Image.fromarray(hole).save(tmp_path / "m.png")
    [line] = part.read(image, tmp_path / "m.png").said
    assert line == f"mask {tmp_path / 'm.png'}: its values are 0 and 7, and 7 is filled"
    assert part.read(image, tmp_path / "m.png", mask_values=[7]).said == ()
    [line] = part.read(image, np.ones((20, 30))).said
    assert line == "the mask fills 100% of the image; for masks with black = fill: invert_mask=True"
    [line] = part.read(image, np.zeros((20, 30)), invert_mask=True).said
    assert line == "the mask fills 100% of the image; for masks with white = fill: leave out invert_mask=True"
    assert part.read(image, box=(0, 0, 30, 20)).said == ()
    assert part.read(Image.new("RGBA", (9, 9))).said == ()
    with pytest.raises(DataError, match="the image itself"):
        part.read(image, image)


MODES_EXTENDED = ["L", "RGB", "RGBA", "I;16", "F"]


@pytest.mark.parametrize("mode", MODES_EXTENDED)
def test_an_extended_image_keeps_what_it_has_and_is_filled_around(mode: str, tmp_path: Path) -> None:
    before = written(tmp_path / "x.tif", mode)
    if mode == "RGBA":
        before[..., 3] = 255
        Image.fromarray(before).save(tmp_path / "x.tif")
    masked = part.read(tmp_path / "x.tif", extend=(3, 0, 20, 7), feather=4)
    assert (masked.picture.mode, masked.picture.size) == (mode, (50 + 23, 40 + 7))
    inside = np.zeros((47, 73), bool)
    inside[:40, 3:53] = True
    assert np.array_equal(masked.hole, ~inside)
    [done] = filled(masked)
    after = np.asarray(done)
    assert after[inside].tobytes() == before.tobytes()
    [plain] = filled(part.read(tmp_path / "x.tif", extend=(3, 0, 20, 7)))
    assert np.array_equal(after, np.asarray(plain)), "there is nothing to blend with"
    assert mode != "RGBA" or (after[~inside] == (77, 77, 77, 255)).all()
    both = part.read(tmp_path / "x.tif", box=(5, 5, 9, 9), extend=(3, 0, 20, 7), grow=2)
    assert np.array_equal(both.hole, masks.grow((~inside | box_at(8, 5)).astype(np.float32), 2) > 0)


def box_at(left: int, top: int) -> np.ndarray:
    hole = np.zeros((47, 73), bool)
    hole[top : top + 4, left : left + 4] = True
    return hole


@pytest.mark.parametrize("extend", [(0, 0, 0, 0), (-1, 0, 0, 3), (9_999, 0, 9_999, 99_999)])
def test_extensions_that_cannot_be(extend: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError, match="extend"):
        part.read(Image.fromarray(noise(4, 4)), extend=extend)


def written(path: Path, mode: str) -> np.ndarray:
    """A file of noise, 40 x 50 pixels, and what it holds."""
    values: Any
    if mode == "I;16":
        values = RNG.integers(0, 65536, (40, 50)).astype(np.uint16)
    elif mode == "I":
        values = RNG.integers(0, 2**31 - 1, (40, 50)).astype(np.int32)
    elif mode == "F":
        values = RNG.random((40, 50)).astype(np.float32) * 1000
    else:
        values = noise(40, 50, len(mode)) if len(mode) > 1 else noise(40, 50)
    data = values.astype("<u2") if mode == "I;16" else values
    images.save(Image.frombytes(mode, (50, 40), data.tobytes()), path)
    return np.asarray(values)


HELD = [(".png", ["L", "LA", "RGB", "RGBA", "I;16"]), (".webp", ["RGB", "RGBA"]), (".bmp", ["L", "RGB"]),
        (".tif", ["L", "LA", "RGB", "RGBA", "I;16", "I", "F", "CMYK"])]  # fmt: skip


@pytest.mark.parametrize("fit", regions.FITS)
@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in HELD for mode in modes])
def test_known_pixels_come_back_from_file_to_file(suffix: str, mode: str, fit: str, tmp_path: Path) -> None:
    before = written(tmp_path / f"before{suffix}", mode)
    hole = masks.random_mask("narrow", 40, 50, np.random.default_rng(1)) & (np.arange(50) % 20 < 9)
    masked = part.read(tmp_path / f"before{suffix}", hole)
    for one in filled(masked, fit=fit, num=2):
        images.save(one, tmp_path / f"after{suffix}")
        with Image.open(tmp_path / f"after{suffix}") as file:
            after = np.asarray(file)
            assert file.mode == mode
        assert after.dtype == before.dtype
        assert after[~hole].tobytes() == before[~hole].tobytes()
        changed = (after != before).reshape(40, 50, -1).any(axis=2)
        assert changed[hole].mean() > 0.9


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_part_fills_its_own_and_sees_nothing_of_the_others(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(8, 60)), data.draw(st.integers(8, 60))
    fit = data.draw(st.sampled_from(regions.FITS))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    hole = random.random((height, width)) < data.draw(st.sampled_from([0.003, 0.02, 0.5]))
    hole[-1, -1] |= not hole.any()
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    other = np.where(hole[..., None], 255 - pixels, pixels)
    one, two = (part.parts(part.read(Image.fromarray(each), hole), 8, fit) for each in (pixels, other))
    picture = Image.fromarray(pixels)
    for i, (first, second) in enumerate(zip(one, two, strict=True)):
        (seen, gap), (same, _) = first.cut(3), second.cut(3)
        assert np.array_equal(seen[~gap], same[~gap])
        before = np.asarray(picture).copy()
        first.paste([picture], [np.full_like(seen, i)])
        own = np.zeros_like(hole)
        own[first.region.box] = first.region.own(hole)
        assert np.array_equal(np.asarray(picture)[~own], before[~own])
        assert (np.asarray(picture)[own] == i).all()
    assert np.array_equal(np.asarray(picture)[~hole], pixels[~hole])


def test_wide_values_have_one_white_for_the_whole_image() -> None:
    """A dark part of a bright image is not stretched to white."""
    values = np.full((100, 100), 10.0, np.float32)
    values[:10] = 1000
    masked = part.read(Image.fromarray(values), box=(60, 60, 64, 64))
    assert masked.range == (10, 1000)
    [one] = part.parts(masked, 16, "crop")
    pixels, gap = one.cut(1)
    assert (pixels[~gap] == 0).all()
    done = [masked.picture.copy()]
    one.paste(done, [np.full_like(pixels, 51)])
    assert np.asarray(done[0])[61, 61] == 10 + 990 / 5


def test_damage_and_size_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image")
    for arguments in ((tmp_path / "x.png", np.ones((2, 2))), (Image.new("L", (2, 2)), tmp_path / "x.png")):
        with pytest.raises(DataError, match=r"x\.png: not an image"):
            part.read(*arguments)
    with pytest.raises(DataError, match=r"the image: too large: 20 x 30 pixels.*max_pixels"):
        part.read(Image.new("L", (20, 30)), np.ones((30, 20)), max_pixels=599)


@pytest.mark.parametrize("fit", regions.FITS)
@pytest.mark.parametrize(
    ("mode", "values"), [("F", (1e20, np.nan, np.inf, -np.inf, 0)), ("I", (60_000, -9, 2**31 - 1))]
)
def test_what_is_erased_says_nothing_of_what_is_white(mode: str, values: tuple[float, ...], fit: str) -> None:
    pixels = noise(20, 30).astype(np.float32 if mode == "F" else np.int32)
    hole = np.zeros((20, 30), bool)
    hole[4:12, 5:16] = True
    pixels[0, 0] = 255
    seen, done, seen_least = [], [], float(pixels[~hole].min())
    for value in values:
        pixels[hole] = value
        masked = part.read(Image.fromarray(pixels), hole)
        assert masked.picture.mode == mode
        assert masked.range == ((0, 255) if mode == "I" else (seen_least, 255))
        seen.append([(cut[~gap], gap) for cut, gap in (one.cut(1) for one in part.parts(masked, 8, fit))])
        done.append(np.asarray(filled(masked, fit=fit)[0]))
    for each, after in zip(seen, done, strict=True):
        for (cut, gap), (first_cut, first_gap) in zip(each, seen[0], strict=True):
            assert np.array_equal(gap, first_gap)
            assert np.array_equal(cut, first_cut)
        assert np.allclose(after[hole], 77 if mode == "I" else seen_least + 77 / 255 * (255 - seen_least))
        assert np.array_equal(after[~hole], pixels[~hole])


def test_the_range_is_that_of_the_known_pixels() -> None:
    for mode, values, range in (("F", [0, 0.5], (0, 1)), ("F", [0, 2.0], (0, 2)), ("F", [-1, 1.0], (-1, 1)),
                                ("I", [7], (0, 255)), ("I", [256], (0, 1023)), ("I", [70_000, 3], (3, 70_000)),
                                ("I", [-5, 9], (-5, 9)), ("F", [np.nan], (0, 1))):  # fmt: skip
        pixels = np.resize(np.array(values, np.float32), (6, 6)).astype(np.float32 if mode == "F" else np.int32)
        pixels[2, 2] = 100_000
        assert part.read(Image.fromarray(pixels), box=(2, 2, 3, 3)).range == range
    assert part.read(Image.fromarray(noise(4, 4, 3)), box=(0, 0, 1, 1)).range is None


def test_a_range_that_is_stated_or_of_other_images(caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(np.full((8, 8), 4000, np.uint16))
    stated = part.read(image, box=(1, 1, 5, 5), range=(100, 8100))
    assert not stated.lacks_range
    assert stated.like(Ranges.stated(0, 1)).range == (100, 8100)
    assert np.asarray(filled(stated, value=255)[0])[2, 2] == 8100
    wider = part.read(image, box=(1, 1, 5, 5), range=(-1000, 100_000))
    assert [np.asarray(filled(wider, value=value)[0])[2, 2] for value in (0, 255)] == [0, 65535]
    alone = part.read(image, box=(1, 1, 5, 5))
    assert alone.lacks_range
    assert alone.like(Ranges(floats=Range(0, 1))).range == (0, 4095)
    assert alone.like(Ranges(Range(0, 65535))).range == (0, 65535)
    assert caplog.text == ""
    assert alone.like(Ranges(Range(0, 1023))).range == (0, 1023)
    assert "100% of the image's values lie beyond 0 and 1023" in caplog.text
    with pytest.raises(UsageError, match="LOW below HIGH, not 5 and 5"):
        part.read(image, box=(1, 1, 5, 5), range=(5, 5))
    plain = part.read(Image.new("L", (8, 8)), box=(1, 1, 5, 5), range=(0, 10))
    assert plain.said == ("the image: range=LOW says nothing of an image of 8 bits",)


def test_pages_are_not_dropped_unsaid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [Image.fromarray(noise(8, 8)) for _ in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UsageError, match=r"x\.tif has 3 pages or frames.*page 1 to 3"):
        part.read(tmp_path / "x.tif", box=(1, 1, 3, 3))
    with pytest.raises(UsageError, match="there is no page 4"):
        part.read(tmp_path / "x.tif", box=(1, 1, 3, 3), page=4)
    pages[0].save(tmp_path / "one.tif")
    with pytest.raises(UsageError, match="has 1 page, and there is no page 2"):
        part.read(tmp_path / "one.tif", box=(1, 1, 3, 3), page=2)
    Image.fromarray(np.eye(8) > 0).save(tmp_path / "mask.png")
    assert part.read(tmp_path / "x.tif", tmp_path / "mask.png", page=2).hole.sum() == 8
    for n, page in enumerate(pages, 1):
        assert np.array_equal(part.read(tmp_path / "x.tif", box=(1, 1, 3, 3), page=n).picture, page)
    with Image.open(tmp_path / "x.tif") as image:
        image.seek(1)
        assert np.array_equal(part.read(image, box=(1, 1, 3, 3)).picture, pages[1])
    assert "of the 3 pages of the image only number 2 is filled in" in caplog.text


def test_a_band_of_near_infrared_is_not_dropped_unsaid(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8, 4)).save(tmp_path / "x.tif")
    content = (tmp_path / "x.tif").read_bytes()
    alpha, unspecified = (struct.pack("<HHIH", 338, 3, 1, value) for value in (2, 0))
    assert alpha in content
    (tmp_path / "x.tif").write_bytes(content.replace(alpha, unspecified))
    with pytest.raises(DataError, match="1 more band than its colours, such as near infrared"):
        part.read(tmp_path / "x.tif", box=(1, 1, 3, 3))


def test_zero_stays_white(tmp_path: Path) -> None:
    """A TIFF of 16 bits in which zero is white, as a file and as an image that Pillow has opened."""
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "x.tif", tiffinfo={262: 0})
    for source in (tmp_path / "x.tif", Image.open(tmp_path / "x.tif")):
        masked = part.read(source, box=(2, 2, 4, 4))
        [one] = part.parts(masked, 8, "native")
        pixels, gap = one.cut(1)
        assert (pixels[~gap] == 0).all(), "black"
        after = filled(masked, value=255)[0]
        assert np.asarray(after)[2, 2] == 0
        images.save(after, tmp_path / "y.tif")
        with Image.open(tmp_path / "y.tif") as image:
            assert image.tag_v2[262] == 0  # type: ignore[attr-defined]
            assert image.getpixel((0, 0)) == 65535
    with Image.open(tmp_path / "x.tif") as image:
        part.read(image, box=(2, 2, 4, 4))
        assert "white is zero" not in image.info, "the caller's image is left alone"


def test_the_filling_gets_the_colours_of_the_profile(tmp_path: Path) -> None:
    """Red and blue are exchanged in the profile: the net sees sRGB, and the file gets what its viewers turn into it."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
    before = noise(20, 20, 3)
    before[:] = 200, 30, 60
    Image.fromarray(before).save(tmp_path / "x.png", icc_profile=profile)
    masked = part.read(tmp_path / "x.png", box=(4, 4, 9, 9))
    [one] = part.parts(masked, 16, "native")
    pixels, gap = one.cut(3)
    assert np.abs(pixels[~gap].astype(int) - (60, 30, 200)).max() <= 2
    done = [masked.picture.copy()]
    one.paste(done, [np.broadcast_to(np.uint8([10, 240, 120]), pixels.shape).copy()])
    images.save(done[0], tmp_path / "y.png")
    with Image.open(tmp_path / "y.png") as image:
        assert image.info["icc_profile"] == profile
        after = np.asarray(image)
    assert np.abs(after[5, 5].astype(int) - (120, 240, 10)).max() <= 2
    assert np.array_equal(after[~masked.hole], before[~masked.hole])


def test_a_page_is_that_of_bytes_and_open_files_too(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    content, box = (tmp_path / "x.tif").read_bytes(), (0, 0, 2, 2)
    for source in (tmp_path / "x.tif", content, bytearray(content), memoryview(content), io.BytesIO(content)):
        for page, frame in enumerate(frames, 1):
            assert np.array_equal(part.read(source, box=box, page=page).picture, frame)
        with pytest.raises(UsageError, match="there is no page 9"):
            part.read(source, box=box, page=9)
        with pytest.raises(UsageError, match="has 3 pages or frames"):
            part.read(source, box=box)
    opened = Image.open(tmp_path / "x.tif")
    for source in (opened, np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(UsageError, match="is given as page 1 alone, and page 2 is asked for"):
            part.read(source, box=box, page=2)
    opened.seek(1)
    assert np.array_equal(part.read(opened, box=box, page=2).picture, frames[1])


def test_an_image_of_one_page_goes_with_any_page_of_a_mask(tmp_path: Path) -> None:
    masks_of = [Image.fromarray(np.eye(8) > 0), Image.fromarray(np.ones((8, 8)) > 0)]
    masks_of[0].save(tmp_path / "masks.tif", save_all=True, append_images=masks_of[1:])
    for image in (noise(8, 8, 3), Image.fromarray(noise(8, 8, 3))):
        found = [part.read(image, tmp_path / "masks.tif", page=page).hole.sum() for page in (1, 2)]
        assert found == [8, 64]


def test_a_mask_may_be_bytes_of_any_kind(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8) > 0).save(tmp_path / "mask.png")
    content = (tmp_path / "mask.png").read_bytes()
    for source in (content, bytearray(content), memoryview(content), io.BytesIO(content)):
        assert part.read(Image.fromarray(noise(8, 8, 3)), source).hole.sum() == 8


@pytest.mark.parametrize("option", [{"mask_values": [3]}, {"soft_mask": True}, {"resize_mask": True}], ids=str)
def test_options_of_a_mask_that_is_not_there_are_refused(option: dict[str, Any]) -> None:
    clear = Image.new("LA", (8, 8), (3, 3))
    for more in ({"box": (0, 0, 2, 2)}, {}):
        with pytest.raises(UsageError, match=f"{next(iter(option))} is about a mask, and there is none"):
            part.read(clear, **more, **option)
    with pytest.raises(UsageError, match="invert_mask is about a mask or a box, and there is neither"):
        part.read(clear, invert_mask=True)


def test_a_net_sees_the_background_of_its_images_where_known_pixels_are_transparent() -> None:
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 0
    masked = part.read(Image.fromarray(pixels), box=(0, 0, 2, 2))
    for background in ((255, 255, 255), (0, 10, 20)):
        [one] = part.parts(replace(masked, background=background), 8, "native")
        seen, gap = one.cut(3)
        assert (seen[~gap] == background).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_an_image_is_turned_as_its_file_is(suffix: str, orientation: int, tmp_path: Path) -> None:
    """Image and mask, opened by Pillow or given by their paths; what is written is not turned once more."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "my photo"
    hole = np.zeros((8, 12), np.uint8)
    hole[:3, :5] = 255
    picture, mask = tmp_path / f"x.{suffix}", tmp_path / f"m.{suffix}"
    Image.fromarray(noise(8, 12, 3)).save(picture, exif=exif)
    Image.fromarray(hole).save(mask, exif=exif)
    # Not opened by their paths: Pillow 13 maps a grey TIFF into memory by its turned size, and mixes up its rows.
    opened = (Image.open(io.BytesIO(path.read_bytes())) for path in (picture, mask))
    by_path, by_image = part.read(picture, mask), part.read(*opened)
    assert by_path.picture.size == ((8, 12) if orientation > 4 else (12, 8))
    assert np.array_equal(by_path.picture, by_image.picture)
    assert np.array_equal(by_path.hole, by_image.hole)
    images.save(by_image.picture, tmp_path / "y.png")
    with Image.open(tmp_path / "y.png") as written:
        assert written.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(written), by_path.picture)


def test_a_mask_as_an_open_file_that_cannot_be_read_is_told_in_words(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: Any) -> int:
            raise io.UnsupportedOperation("seek")

    image, path = Image.fromarray(noise(8, 8)), tmp_path / "m.png"
    Image.fromarray(np.eye(8) > 0).save(path)
    assert part.read(image, Pipe(path.read_bytes())).hole.sum() == 8
    with path.open(encoding="utf-8") as text, pytest.raises(UsageError, match="the mask: the file is opened as text"):
        part.read(image, text)
    with path.open("rb") as closed:
        pass
    with pytest.raises(DataError, match=r"^the mask: the file cannot be read: .*closed file"):
        part.read(image, closed)
