"""Pictures in the forms that programs have, against what Pillow makes of the same pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from diffunet.errors import DataError, UsageError
from diffunet.pictures import deep, given

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
CHW = np.ascontiguousarray(RGB.transpose(2, 0, 1))


def encoded(kind="PNG"):
    content = io.BytesIO()
    Image.fromarray(RGB).save(content, kind)
    return content.getvalue()


def rewound():
    content = io.BytesIO(encoded())
    content.seek(0, io.SEEK_END)  # as after it was written
    return content


SAME = {
    "array": RGB, "channels first": CHW, "tensor": torch.from_numpy(CHW), "channels last": torch.from_numpy(RGB),
    "floats": RGB / 255, "float32": (RGB / 255).astype(np.float32), "float tensor": torch.from_numpy(CHW).float() / 255,
    "grad": (torch.from_numpy(CHW).float() / 255).requires_grad_(), "int64": RGB.astype(np.int64),
    "not contiguous": RGB[::-1][::-1], "bytes": encoded(), "bytearray": bytearray(encoded()), "file": rewound(),
    "Pillow": Image.fromarray(RGB),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_picture_in_every_form(name):
    found = given.picture(SAME[name])
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), RGB)


def test_files(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    assert given.picture(path) == given.picture(str(path)) == path
    with path.open("rb") as file:
        assert np.array_equal(np.asarray(given.picture(file)), RGB)
    (tmp_path / "a.txt").write_text("words")
    for name in ("a.txt", "a.png"):
        with (tmp_path / name).open(encoding="utf-8") as file, pytest.raises(UsageError, match="mode 'rb'"):
            given.picture(file)
    with path.open("rb") as file:
        file.close()
        with pytest.raises(DataError, match="closed file"):
            given.picture(file)


@pytest.mark.parametrize(
    ("array", "mode", "pixels"),
    [
        (RGB[..., 0], "L", RGB[..., 0]),
        (RGB[..., :1], "L", RGB[..., 0]),
        (torch.from_numpy(CHW[:1]), "L", RGB[..., 0]),
        (RGB[..., 0] > 99, "L", np.where(RGB[..., 0] > 99, 255, 0)),
        (RGB[..., :2], "LA", RGB[..., :2]),
        (np.dstack([RGB, RGB[..., 0]]), "RGBA", np.dstack([RGB, RGB[..., 0]])),
        (RGB[..., 0].astype(np.uint16) * 257, "I;16", RGB[..., 0].astype(np.uint16) * 257),
        (RGB[..., 0].astype(np.int64) * 300 - 5, "I", RGB[..., 0].astype(np.int64) * 300 - 5),
        (torch.rand(3, 4, 5).bfloat16() * 0 + 1, "RGB", np.full((4, 5, 3), 255)),
        (torch.zeros(3, 4, 4), "RGB", np.zeros((4, 4, 3))),  # either order could be meant: torch's
    ],
)
def test_modes(array, mode, pixels):
    found = given.picture(array)
    assert found.mode == mode
    assert np.array_equal(np.asarray(found), pixels)


@pytest.mark.parametrize("channels", [[0, 1, 2], [0, 1, 2, 3], [0, 0, 0, 3]])
def test_colours_of_16_bits_keep_them(channels):
    """Grey with alpha becomes colours with alpha, as there is no mode for it."""
    wide = np.random.default_rng(0).integers(0, 2**16, (5, 7, 4)).astype(np.uint16)[..., channels]
    found = given.picture(wide[..., [0, 3]] if channels == [0, 0, 0, 3] else wide)
    low = np.asarray(deep.low_of(found)).astype(np.uint16)
    assert np.array_equal(np.asarray(found).astype(np.uint16) * 256 + low, wide)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (None, UsageError, "a picture is a path, a Pillow image, an array"),
        (3, UsageError, "not 3"),
        ([[0, 1], [1, 0]], UsageError, "a picture is a path"),
        (b"no image", DataError, "not an image"),
        (b"", DataError, "empty"),
        ("", UsageError, "empty"),
        (np.zeros((2, 5, 6, 3)), UsageError, "one picture at a time"),
        (np.zeros((0, 5)), UsageError, r"this is \[0, 5\]"),
        (np.zeros((5, 6, 7)), UsageError, "1 to 4 channels"),
        (RGB.astype(float), DataError, r"from 0 to 1, and these are \d+ to 2\d\d"),
        (np.full((4, 4), np.nan), DataError, "NaN"),
        (RGB / 127.5 - 1, DataError, "these are -"),
        (RGB.astype(np.int32) * 300, DataError, "says not what is white"),
        ((RGB > 99).astype(np.int64), DataError, "says not what is white"),
        (np.array([["a"]]), UsageError, "no picture"),
        (torch.zeros(3, 4, 4, device="meta"), UsageError, "cannot be made an array"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(value, error, words):
    with pytest.raises(error, match=words):
        given.picture(value)


def test_large_ones_are_refused_before_they_are_decoded():
    with pytest.raises(DataError, match="too large"):
        given.picture(encoded(), max_pixels=53)


def test_a_picture_whose_orientation_is_in_its_xmp_is_turned_once():
    """Pillow looks for an orientation in the XMP of a PNG, too."""
    said = PngImagePlugin.PngInfo()
    said.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "PNG", pnginfo=said)
    turned = given.picture(file.getvalue())
    assert turned.size == (4, 6)
    assert given.upright(turned).size == (4, 6)
