"""Composites: pixels that must not change, and what is put where they may, worked out by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from diffunet.inpainting import composite, masks
from diffunet.pictures import deep
from diffunet.pictures.ranges import Range

MODES = ["L", "RGB", "LA", "RGBA", "I;16", "I", "F", "CMYK", "P", "1", "PA", "RGBX", "YCbCr", "HSV", "LAB"]
FILL = (200, 100, 50)
LUMA = 124  # 0.299 * 200 + 0.587 * 100 + 0.114 * 50


def picture(mode: str, height: int = 9, width: int = 7) -> Image.Image:
    random = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(random.integers(-5, 10**6, (height, width)).astype(np.int32))
    if mode == "F":
        values = random.random((height, width)).astype(np.float32)
        values[0, 0], values[0, 1] = np.nan, -3
        return Image.fromarray(values)
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), random.bytes(3 * width * height))
    rgba = Image.fromarray(random.integers(0, 256, (height, width, 4), dtype=np.uint8))
    return rgba.convert({"HSV": "RGB", "P": "RGB", "PA": "P"}.get(mode, "RGBA")).convert(mode)


def expected_fill(mode: str, before: np.ndarray) -> np.ndarray:
    """The colours of `FILL` in a mode, of [n colours]."""
    return {
        "L": [LUMA],
        "LA": [LUMA],
        "RGB": FILL,
        "RGBA": FILL,
        "CMYK": [55, 155, 205, 0],
        "I;16": [LUMA * 257],
        "I": [np.rint(np.nanmin(before) + LUMA / 255 * (float(np.nanmax(before)) - np.nanmin(before)))],
        "F": [np.nanmin(before) + LUMA / 255 * (np.nanmax(before) - np.nanmin(before))],
    }[mode]


@pytest.mark.parametrize("mode", MODES)
def test_composites_change_the_hole_alone(mode: str) -> None:
    image = composite.editable(picture(mode))
    assert image.mode == {"P": "RGB", "1": "L", "PA": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "HSV": "RGB",
                          "LAB": "RGB"}.get(mode, mode) or image.mode == "RGBA"  # fmt: skip
    mask = masks.random_mask("wide", 9, 7, np.random.default_rng(0))
    mask[0, :2] = False
    filled = np.full((9, 7, 3), FILL, np.uint8)
    out = composite.composite(image, filled, mask)
    assert (out.mode, out.size) == (image.mode, image.size)
    before, after = np.asarray(image), np.asarray(out)
    assert before[~mask].tobytes() == after[~mask].tobytes()
    new = after[mask].reshape(mask.sum(), -1)
    if image.mode in ("LA", "RGBA"):
        assert (new[:, -1] == 255).all(), "what was filled in is opaque"
        new = new[:, :-1]
    assert np.allclose(new, expected_fill(image.mode, before), rtol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "I;16", "I", "F", "CMYK"])
def test_a_weight_blends(mode: str) -> None:
    image = picture(mode)
    random = np.random.default_rng(1)
    weight = random.random((9, 7)).astype(np.float32)
    weight[random.random((9, 7)) < 0.3] = 0
    weight[4:6] = 1
    hole = weight > 0
    hole[0, :2] = weight[0, :2] = False
    out = composite.composite(image, np.full((9, 7, 3), FILL, np.uint8), hole, weight)
    before, after = (np.asarray(one).astype(float).reshape(9, 7, -1) for one in (image, out))
    clear = mode in ("LA", "RGBA")
    colours = before.shape[2] - clear
    w = 1 - (1 - weight[..., None]) * (before[..., -1:] / 255 if clear else 1)
    expected = before[..., :colours] * (1 - w) + np.array(expected_fill(mode, np.asarray(image))) * w
    assert np.allclose(after[..., :colours][hole], expected[hole], rtol=1e-6, atol=0.51 if mode != "F" else 1e-6)
    assert np.array_equal(after[~hole], before[~hole], equal_nan=True)
    assert not clear or (after[hole][:, -1] == 255).all()


def test_missing_floats_are_filled_in() -> None:
    image = Image.fromarray(np.full((2, 3), np.nan, np.float32))
    weight = np.array([[1, 1, 1], [0.5, 0.5, 0.5]], np.float32)
    out = np.asarray(
        composite.composite(image, np.full((2, 3, 1), 255, np.uint8), weight > 0, weight, range=Range(0, 2))
    )
    assert out.tolist() == [[2, 2, 2], [1, 1, 1]]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_alpha_that_a_model_makes_lies_behind_what_stays(mode: str, weighed: bool) -> None:
    """By Porter and Duff's "over", in premultiplied colours; where nothing stays it is the model's, to the bit."""
    image, random = picture(mode), np.random.default_rng(2)
    hole = random.random((9, 7)) < 0.7
    weight = random.choice(np.array([0, 0.25, 1], np.float32), (9, 7)) if weighed else None
    made = random.integers(0, 256, (9, 7, 4), dtype=np.uint8)
    made[0, :, 3] = 0
    out = composite.composite(image, made, hole, weight)
    before, after = (np.asarray(one).astype(float) for one in (image, out))
    assert np.array_equal(after[~hole], before[~hole])
    colours = made[..., :3] if mode == "RGBA" else np.asarray(Image.fromarray(made[..., :3]).convert("L"))[..., None]
    if weight is None:
        assert np.array_equal(after[hole], np.concatenate([colours, made[..., 3:]], axis=2)[hole])
        return
    kept = (1 - weight) * before[..., -1] / 255
    alpha = kept + made[..., 3] / 255 * (1 - kept)
    assert np.abs(after[..., -1] - 255 * alpha)[hole].max() <= 0.51
    shown = before[..., :-1] * kept[..., None] + colours * (alpha - kept)[..., None]
    assert np.abs(after[..., :-1] * alpha[..., None] - shown)[hole].max() <= 0.51


def test_the_alpha_of_a_model_is_laid_over_white_where_an_image_holds_none() -> None:
    made = np.full((9, 7, 4), (200, 100, 50, 51), np.uint8)
    out = composite.composite(picture("RGB"), made, np.ones((9, 7), bool))
    assert np.abs(np.asarray(out).astype(int) - (244, 224, 214)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_of_16_bits_are_blended_as_such(mode: str) -> None:
    random, channels = np.random.default_rng(3), len(mode)
    deeps = random.integers(0, 65536, (9, 7, channels))
    image, low = (Image.fromarray(one.astype(np.uint8), mode) for one in (deeps >> 8, deeps & 255))
    image.info[deep.LOW] = low
    weight, hole = random.random((9, 7)).astype(np.float32), random.random((9, 7)) < 0.5
    out = composite.composite(image, np.full((9, 7, 3), FILL, np.uint8), hole, weight)
    lower = deep.low_of(out)
    assert lower is not None
    after = np.asarray(out).astype(int) * 256 + np.asarray(lower)
    assert np.array_equal(after[~hole], deeps[~hole])
    kept = ((1 - weight) * (deeps[..., -1] / 65535 if channels == 4 else 1))[..., None]
    expected = deeps[..., :3] * kept + 257 * np.array(FILL) * (1 - kept)
    assert np.abs(after[..., :3] - expected)[hole].max() < 0.6
    assert channels == 3 or (after[hole][:, -1] == 65535).all()


def test_a_filling_never_has_the_colour_that_is_transparent() -> None:
    image = Image.fromarray(np.full((9, 7), LUMA * 257, np.uint16))
    image.info["transparency"] = LUMA * 257
    out = composite.composite(image, np.full((9, 7, 3), FILL, np.uint8), np.eye(9, 7, dtype=bool))
    assert set(np.asarray(out)[np.eye(9, 7, dtype=bool)].tolist()) == {LUMA * 257 + 1}
    assert out.info["transparency"] == LUMA * 257


def test_palettes_bits_and_byte_orders_say_the_same_pixels() -> None:
    palette = picture("P")
    assert np.array_equal(composite.editable(palette), palette.convert("RGB"))
    clear = picture("P")
    clear.info["transparency"] = clear.getpixel((0, 0))
    assert np.array_equal(composite.editable(clear), clear.convert("RGBA"))
    bits = picture("1")
    assert np.array_equal(composite.editable(bits), np.asarray(bits) * np.uint8(255))
    values = np.asarray(picture("I;16"))
    big = Image.frombytes("I;16B", (7, 9), values.astype(">u2").tobytes())
    assert composite.editable(big).mode == "I;16"
    assert np.array_equal(composite.editable(big), values)


def test_what_a_mode_of_its_own_says_is_kept() -> None:
    said = {"icc_profile": b"profile", "exif": b"exif", "xmp": b"xmp", "dpi": (300.0, 200.0)}
    for mode in MODES:
        image = picture(mode)
        image.info |= said | {"other": 1}
        edited = composite.editable(image)
        out = composite.composite(edited, np.zeros((9, 7, 3), np.uint8), np.eye(9, 7, dtype=bool))
        assert out.info == said


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_could_not_be_seen_is_not_blended_in(mode: str) -> None:
    """What shows of the old colour is what its weight leaves, times its alpha; at a weight of 0 it lies in front."""
    alpha = np.array([[0, 51, 128, 255]] * 4, np.uint8)
    weight = np.array([[0] * 4, [0.25] * 4, [0.5] * 4, [1] * 4], np.float32)
    hole, outs = np.ones((4, 4), bool), []
    for hidden in (0, 255):
        colours = np.full((4, 4, len(mode) - 1), hidden, np.uint8)
        image = Image.fromarray(np.concatenate([colours, alpha[..., None]], axis=2), mode)
        out = np.asarray(composite.composite(image, np.full((4, 4, 3), 100, np.uint8), hole, weight))
        shown = ((1 - weight) * alpha / 255)[..., None]
        assert np.abs(out[..., :-1] - (hidden * shown + 100 * (1 - shown))).max() <= 0.51
        assert (out[..., -1] == 255).all()
        outs.append(out)
    assert np.array_equal(outs[0][:, 0], outs[1][:, 0])
    assert not np.array_equal(outs[0][:3, 1], outs[1][:3, 1])


def test_a_transparent_colour_that_no_pixel_has_makes_nothing_transparent():
    """A palette often has the colour of its transparent entry twice; and a filled pixel may be of that colour."""
    palette = Image.fromarray(np.tile(np.array([0, 1], np.uint8), (8, 4)), "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 0])
    grey = Image.fromarray(np.full((8, 8), 7, np.uint8))
    colours = Image.fromarray(np.full((8, 8, 3), 7, np.uint8))
    for image, key in ((palette, 2), (grey, 255), (colours, (255, 255, 255))):
        content = io.BytesIO()
        image.save(content, "PNG", transparency=key)
        with Image.open(content) as found:
            found.load()
            assert "transparency" in found.info
            made = composite.editable(found)
        assert made.mode == ("L" if image is grey else "RGB")
        assert np.array_equal(np.asarray(made), np.asarray(image.convert(made.mode)))
        assert masks.alpha_hole(made) is None
        assert "transparency" not in made.info
        hole = np.zeros((8, 8), bool)
        hole[2:4] = True
        filled = composite.composite(made, np.full((8, 8, 3), 255, np.uint8), hole)
        again = io.BytesIO()
        filled.save(again, "PNG")
        with Image.open(again) as written:
            assert (np.asarray(written.convert("RGBA"))[..., 3] == 255).all()
