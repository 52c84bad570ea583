"""Masks as people have them: the same content is read alike however it comes, and said or refused if not plain."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from diffunet.errors import DataError, UsageError
from diffunet.inpainting import masks
from diffunet.inpainting.reading import read_mask
from diffunet.pictures import deep

H, W = 60, 80
TRUTH = np.zeros((H, W), bool)
TRUTH[15:40, 20:55] = True
LABELS = np.zeros((H, W), np.uint8)
LABELS[15:40, 20:55] = np.arange(25)[:, None] // 5 * 20 + 10


def coloured(colour: tuple[int, ...], ground: tuple[int, ...]) -> np.ndarray:
    return np.where(TRUTH[..., None], np.array(colour, np.uint8), np.array(ground, np.uint8))


def palette(indices: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putpalette(colours)
    return image


def photograph(noise: float = 4) -> np.ndarray:
    y, x = np.mgrid[:H, :W] / H
    waves = np.stack([np.sin(6 * x), np.cos(5 * y), x * y], -1) * 127 + 128
    return (waves + np.random.default_rng(0).normal(0, noise, waves.shape)).clip(0, 255).astype(np.uint8)


def disc(mode: str = "L", colour: Any = 255) -> Image.Image:
    """An antialiased disc on black."""
    large = Image.new(mode, (W * 8, H * 8))
    ImageDraw.Draw(large).ellipse((100, 80, 400, 380), fill=colour)
    return large.resize((W, H), Image.Resampling.LANCZOS)


def as_jpeg(image: Image.Image, quality: int = 75) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def ways(content: Any, folder: Path) -> dict[str, Any]:
    """The same content as an image, a file of each format that holds it, an open file, bytes, an array, and so on."""
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    found: dict[str, Any] = {"image": image}
    for suffix in (".png", ".tif", ".bmp", ".gif"):
        held = {".png": image.mode not in ("F", "I"), ".tif": True, ".bmp": image.mode in ("1", "L", "RGB", "P")}
        if held.get(suffix, image.mode == "P"):
            image.save(folder / f"m{suffix}")
            found[suffix] = folder / f"m{suffix}"
    first = folder / ("m.png" if ".png" in found else "m.tif")
    found |= {"str": str(first), "bytes": first.read_bytes(), "open file": io.BytesIO(first.read_bytes())}
    if image.mode not in ("P", "PA"):  # whose arrays hold indices
        array = np.asarray(content if isinstance(content, np.ndarray) else image)
        found |= {
            "array": array,
            "list": array.tolist(),
            "wide": array.astype(np.float64 if image.mode == "F" else int),
        }
        tensor = torch.from_numpy(array.astype(np.int32) if array.dtype == np.uint16 else array.copy())
        found["tensor"] = tensor if array.ndim == 2 else tensor.permute(2, 0, 1)[None]
        if array.ndim == 2:
            found |= {"[H W 1]": array[..., None], "[1 H W]": tensor[None], "[H W 3]": array[..., None].repeat(3, 2)}
    return found


ARRAYS = ("array", "list", "wide", "tensor", "[H W 1]", "[1 H W]", "[H W 3]")
BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)
VOC = [0, 0, 0, *(c for i in range(1, 256) for c in (128 * (i % 2), 64, 0))]
READ: dict[str, tuple[Any, str]] = {
    "booleans": (TRUTH, ""),
    "white on black": (TRUTH * np.uint8(255), ""),
    "0 and 1": (TRUTH * np.uint8(1), "its values are 0 and 1, and 1 is filled"),
    "0 and 1, 16 bits": (TRUTH * np.uint16(1), "its values are 0 and 1, and 1 is filled"),
    "0 and 1, 32 bits": (TRUTH * np.int32(1), "its values are 0 and 1, and 1 is filled"),
    "0 and 255, 16 bits": (TRUTH * np.uint16(255), "nothing above 255"),
    "0 and 65535": (TRUTH * np.uint16(65535), ""),
    "0 and 70000": (TRUTH * np.int32(70000), "its values are 0 and 70000"),
    "0 and 1 in colour": ((TRUTH * np.uint8(1))[..., None].repeat(3, 2), "its values are 0 and 1, and 1 is filled"),
    "floats": (TRUTH * np.float32(1), ""),
    "floats that overshoot": (np.where(TRUTH, 1.03, -0.02).astype(np.float32), ""),
    "floats to 255": (TRUTH * np.float32(255), "255 is taken as white"),
    "labels": (LABELS, "its values are 0 to 90, below half of white, and what is not 0 is filled"),
    "labels, 16 bits": (LABELS.astype(np.uint16), "its values are 0 to 90, below half of white"),
    "labels, 32 bits": (LABELS.astype(np.int32), "its values are 0 to 90, below half of white"),
    "light grey": (np.where(TRUTH, np.uint8(200), np.uint8(0)), "its values are 0 and 200, and 200 is filled"),
    "red": (coloured(RED, BLACK), "its colours count by their largest channel"),
    "blue": (coloured(BLUE, BLACK), "its colours count by their largest channel"),
    "dark green": (coloured((0, 90, 0), BLACK), "its values are 0 and 90, and 90 is filled"),
    "a black shape on a layer": (coloured((*BLACK, 255), (*BLACK, 0)), "what is opaque in it is filled"),
    "a red shape on a layer": (coloured((*RED, 255), (*WHITE, 0)), "what is opaque in it is filled"),
    "a grey shape on a layer": (np.dstack([LABELS * 0, TRUTH * np.uint8(255)]), "what is opaque in it is filled"),
    "white and black on a layer": (
        np.where((np.arange(W) < 60)[:, None], coloured((*WHITE, 255), (*BLACK, 255)), np.uint8(0)),
        "what is transparent in it counts as black",
    ),
    "a palette of a colour": (palette(TRUTH * 7, VOC), "its values are 0 and 128, and 128 is filled"),
    "a grey palette": (palette(TRUTH * 1, [v for i in range(256) for v in (i, i, i)]), "its values are 0 and 1"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", READ)
def test_the_same_content_is_the_same_mask_however_it_comes(name: str, tmp_path: Path) -> None:
    content, words = READ[name]
    for way, source in ways(content, tmp_path).items():
        read = read_mask(source)
        assert (read.mask.dtype, read.mask.shape) == (np.float32, (H, W)), way
        assert np.array_equal(masks.hole_of(read.mask), TRUTH), way
        usual = way in ARRAYS and name.startswith("0 and")  # as arrays often are
        assert usual or words in read.understood, way
        assert words or not read.understood, way
        assert np.array_equal(masks.hole_of(read_mask(source, invert=True).mask), ~TRUTH), way


def test_a_mask_is_named(tmp_path: Path) -> None:
    Image.fromarray(TRUTH * np.uint8(1)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").understood.startswith(f"mask {tmp_path / 'm.png'}: its values are")
    with pytest.raises(DataError, match=r"mask \S+gone\.png: no such file"):
        read_mask(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"mask \S+m\.png: too large: 80 x 60 pixels.*max_pixels=\.\.\."):
        read_mask(tmp_path / "m.png", max_pixels=4799)


def test_colours_of_16_bits_with_small_numbers(tmp_path: Path) -> None:
    """Pillow keeps their high bytes alone, which are all 0."""
    low = Image.fromarray((TRUTH * np.uint8(1))[..., None].repeat(3, 2))
    (tmp_path / "m.png").write_bytes(deep.png(Image.new("RGB", (W, H)), low, {}))
    assert np.array_equal(masks.hole_of(read_mask(tmp_path / "m.png").mask), TRUTH)


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
@pytest.mark.parametrize("colour", [WHITE, RED, (0, 200, 0)])
def test_edges_in_a_jpeg_are_at_a_half(quality: int, colour: tuple[int, int, int]) -> None:
    """Never all that is not 0, of which there is much beside an edge."""
    for drawn in (Image.fromarray(coloured(colour, BLACK)), disc("RGB", colour)):
        truth = np.asarray(drawn).max(axis=2) >= 128
        hole = masks.hole_of(read_mask(as_jpeg(drawn, quality)).mask)
        grown, shrunk = (masks.grow(truth.astype(np.float32), n) > 0 for n in (2, -2))
        assert (hole[shrunk]).all()
        assert not hole[~grown].any()
        assert (hole != truth).mean() < 0.03


@pytest.mark.parametrize("value", [60, 100])
def test_a_dark_jpeg_is_refused_and_a_black_one_has_nothing_to_fill(value: int) -> None:
    dark = Image.fromarray(TRUTH * np.uint8(value))
    with pytest.raises(DataError, match=r"may be labels .* mask_values=\.\.\."):
        read_mask(as_jpeg(dark))
    chosen = masks.hole_of(read_mask(as_jpeg(dark, 90), values=[value]).mask)
    assert (chosen != TRUTH).mean() < 0.03
    assert not read_mask(as_jpeg(Image.new("L", (W, H)))).mask.any()


def test_soft_edges_and_brushes() -> None:
    edged, truth = disc(), np.asarray(disc()) >= 128
    for source in (edged, np.asarray(edged), np.asarray(edged) / 255, edged.convert("RGB"), edged.convert("P")):
        read = read_mask(source)
        assert np.array_equal(masks.hole_of(read.mask), truth)
        assert np.allclose(read.mask, np.asarray(edged) / 255, atol=1e-6)
        assert read.understood == ""
    layer = Image.new("RGBA", (W, H), RED)
    layer.putalpha(edged)
    assert np.array_equal(read_mask(layer).mask, np.asarray(edged) / np.float32(255))
    both = disc("RGB", RED)
    both.paste(Image.new("RGB", (20, 20), BLUE), (58, 38))
    assert masks.hole_of(read_mask(both.filter(ImageFilter.SMOOTH)).mask).mean() > truth.mean()
    blurred = edged.filter(ImageFilter.GaussianBlur(3))
    assert np.array_equal(masks.hole_of(read_mask(blurred).mask), np.asarray(blurred) >= 128)
    y, x = np.mgrid[:H, :W]
    very = (40 + x + 2 * y).astype(np.uint8)
    with pytest.raises(DataError, match=r"between black and white, as in a photograph.*soft_mask=True"):
        read_mask(very)
    assert np.allclose(read_mask(very, soft=True).mask, very / 255, atol=1e-6)


def test_as_a_weight_grey_is_grey_but_0_and_1() -> None:
    half = TRUTH * np.uint8(128)
    assert np.allclose(read_mask(half, soft=True).mask, TRUTH * (128 / 255))
    assert np.array_equal(read_mask(TRUTH * np.uint8(1), soft=True).mask, TRUTH)
    trimap = np.where(TRUTH, np.uint8(128), np.uint8(255))
    assert set(np.unique(read_mask(trimap, soft=True).mask)) == {np.float32(128 / 255), np.float32(1)}


def scribbled(ground: np.ndarray) -> np.ndarray:
    painted = ground.copy()
    painted[TRUTH] = RED
    return painted


def product() -> np.ndarray:
    """A photograph of something on white, which is most of it."""
    return np.where(TRUTH[..., None], photograph(), np.uint8(255))


GREY = np.asarray(Image.fromarray(photograph()).convert("L"))
HOLED = np.dstack([photograph(), np.where(TRUTH, np.uint8(0), np.uint8(255))])
LARGE = np.asarray(Image.fromarray(photograph(0)).resize((W * 20, H * 20), Image.Resampling.BICUBIC))
REFUSED: dict[str, tuple[Any, str]] = {
    "a photograph": (photograph(), "photograph.*soft_mask=True"),
    "a smooth one": (photograph(0), "photograph.*soft_mask=True"),
    "a large one": (LARGE, "photograph.*soft_mask=True"),
    "a JPEG": (as_jpeg(Image.fromarray(photograph())), "photograph.*soft_mask=True"),
    "a grey one": (GREY, "as in a photograph.*soft_mask=True"),
    "a deep one": (GREY.astype(np.uint16) * 257, "as in a photograph.*soft_mask=True"),
    "with a scribble": (scribbled(photograph()), "photograph"),
    "a grey one with a scribble": (scribbled(GREY[..., None].repeat(3, 2)), "photograph"),
    "on white": (product(), "photograph"),
    "on white, a JPEG": (as_jpeg(Image.fromarray(product())), "photograph"),
    "with a transparent hole": (HOLED, "photograph.*none to fill what is transparent"),
    "a cut-out": (np.dstack([photograph(), TRUTH * np.uint8(255)]), "photograph"),
    "red on white": (coloured(RED, WHITE), "all of it is bright, as red on white"),
    "clear within": (coloured((*WHITE, 0), (*WHITE, 255)), "invert_mask=True fills what is clear, mask_values=255"),
    "labels up to 180": (LABELS * np.uint8(2), r"may be labels \(values 0, 20, 60, 100, 140, 180\); mask_values"),
    "three values": (np.where(TRUTH, np.uint8(128), LABELS * 0 + np.uint8(255)), r"labels \(values 128, 255\)"),
    "labels in colours": (coloured((128, 64, 128), (0, 0, 142)), "may be labels"),
    "palette labels": (palette(TRUTH * 1 + 2, [0, 0, 0, 9, 9, 9, 0, 0, 142, 128, 64, 128]), r"\(values 2, 3\)"),
    "below 0": (np.where(TRUTH, 1, -1), "values below 0.*mask_values"),
    "not finite": (np.where(TRUTH, 1, np.nan), "not finite"),
    "too high": (np.full((H, W), 1e300), "its largest is 1e\\+300"),
    "three masks": (torch.from_numpy(np.stack([TRUTH, ~TRUTH, TRUTH])), "holds 3 masks"),
    "three masks of numpy": (np.stack([TRUTH, ~TRUTH, TRUTH]), r"shape \[H W\].*\[3, 60, 80\]"),
    "five channels": (np.zeros((H, W, 5)), r"shape \[H W\].*\[60, 80, 5\]"),
    "a row": (np.zeros(3), r"shape \[H W\]"),
    "a number": (7, r"shape \[H W\]"),
    "nothing": (np.zeros((0, 3)), r"shape \[H W\]"),
    "rows of different lengths": ([[1, 0], [1]], "different lengths"),
    "words": (np.array([["a"]]), "are boolean, integers or floats"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mask_or_may_be_two_is_refused_with_a_way_round(name: str) -> None:
    source, pattern = REFUSED[name]
    with pytest.raises(DataError, match=f"^the mask: .*{pattern}"):
        read_mask(source)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16", "F"])
def test_the_image_itself_is_no_mask(mode: str) -> None:
    picture = {
        "L": Image.fromarray(GREY), "RGB": Image.fromarray(photograph()), "RGBA": Image.fromarray(HOLED),
        "I;16": Image.fromarray(LABELS.astype(np.uint16)), "F": Image.fromarray(LABELS.astype(np.float32)),
    }[mode]  # fmt: skip
    assert picture.mode == mode
    for source in (picture, np.asarray(picture)):
        with pytest.raises(DataError, match="the image itself"):
            read_mask(source, picture=picture)
    other = np.array(picture)
    other[0, 0] = other[0, 0] // 2 + 1
    if mode in ("L", "RGB", "RGBA"):
        with pytest.raises(DataError, match="photograph"):
            read_mask(other, picture=picture)
    else:
        assert np.array_equal(read_mask(other, picture=picture).mask > 0, other != 0)
    read_mask(picture, picture=picture, soft=True)
    with pytest.raises(DataError, match="give it as the image, without a mask"):
        read_mask(HOLED, picture=Image.fromarray(photograph()))
    white = Image.new("L", (W, H), 255)
    assert read_mask(white, picture=white).mask.all()


def test_values_are_those_of_a_palette_of_a_shape_or_of_a_channel() -> None:
    for source in (LABELS, LABELS.astype(np.uint16), Image.fromarray(LABELS), palette(LABELS, VOC), LABELS / 255):
        scale = 1 if isinstance(source, Image.Image) or source.dtype.kind != "f" else 1 / 255
        for values in ([10], [90], [10, 30, 50]):
            mask = read_mask(source, values=[value * scale for value in values]).mask
            assert np.array_equal(mask, np.isin(LABELS, values))
    frame = coloured((*WHITE, 0), (*WHITE, 255))
    assert np.array_equal(read_mask(frame, values=[0]).mask, TRUTH)
    assert np.array_equal(read_mask(frame, values=255).mask, ~TRUTH)
    assert np.array_equal(read_mask(frame, invert=True).mask, TRUTH)
    assert np.array_equal(read_mask(np.where(TRUTH, 1, -1), values=[-1]).mask, ~TRUTH)
    assert read_mask(photograph(), values=[255]).mask.mean() < 0.9
    with pytest.raises(UsageError, match="mask_values are numbers"):
        read_mask(LABELS, values=["a"])  # type: ignore[list-item]
    assert "has no pixel of the value 3; its values are 0, 10, 30, 50, 70, 90" in read_mask(LABELS, values=[3]).lacking


FAINT = np.linspace(0, 0.4, H * W, dtype=np.float32).reshape(H, W)


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (np.zeros((H, W), np.uint8), {}, r"black all over \(its largest value is 0\).*invert_mask=True"),
        (np.full((H, W), 255, np.uint8), {"invert": True}, "white all over.*leave that out"),
        (np.where(FAINT > 0.3, 0, FAINT / 4), {}, r"its largest is 0\.0[67].*, of 1; soft_mask=True.*mask_values"),
    ],
)
def test_why_there_is_nothing_to_fill(source: Any, options: dict[str, Any], words: str) -> None:
    read = read_mask(source, **options)
    assert not masks.hole_of(read.mask).any()
    assert re.search(words, read.lacking), read.lacking


@pytest.mark.parametrize("name", ["night.png", "night.jpg"])
def test_a_dark_photograph_is_no_mask(tmp_path, name):
    """Most of it is near black, but nowhere flat; a lamp in it is white."""
    night = np.random.default_rng(0).normal(22, 8, (64, 64)).clip(0, 90).astype(np.uint8)
    night[5:9, 5:9] = 250
    Image.fromarray(night).save(tmp_path / name)
    with pytest.raises(DataError, match="as in a photograph"):
        read_mask(tmp_path / name)
