"""Colours of 16 bits, from files put together by hand, and read back without Pillow."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from diffunet.errors import UsageError
from diffunet.inpainting import part
from diffunet.pictures import deep, images

RNG = np.random.default_rng(0)
HOLE = np.zeros((40, 50), bool)
HOLE[10:20, 10:30] = HOLE[35:, 45:] = True


def png(values: np.ndarray, extra: bytes = b"") -> bytes:
    """Of [H W C]; 2 channels are grey and alpha, 3 RGB, 4 RGBA."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in ((b"IHDR", header), *([(b"tRNS", extra)] if extra else []),
                              (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    )  # fmt: skip


def tiff(values: np.ndarray, order: str = "<", packed: bool = False, extra: int = 2) -> bytes:
    """Of [H W C]; `extra`: alpha is 1 multiplied in, 2 not."""
    height, width, channels = values.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II" if order == "<" else b"MM")
    content = values.astype(f"{order}u2").tobytes()
    content = zlib.compress(content) if packed else content
    said = {256: width, 257: height, 258: (16,) * channels, 259: 8 if packed else 1, 262: 2, 273: 0, 277: channels,
            278: height, 279: len(content), 284: 1}  # fmt: skip
    for tag, value in said.items():
        tags[tag] = value
    if channels == 4:
        tags[338] = extra
    out = io.BytesIO()
    out.write(b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08")
    tags.save(out)
    return out.getvalue() + content


def unpacked(content: bytes) -> np.ndarray:
    """What a PNG of 16 bits whose rows are all less the one above holds, [H W C]."""
    place, pixels = 8, b""
    while place < len(content):
        (length,), name = struct.unpack_from(">I", content, place), content[place + 4 : place + 8]
        inside = content[place + 8 : place + 8 + length]
        assert struct.unpack_from(">I", content, place + 8 + length)[0] == zlib.crc32(name + inside)
        if name == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", inside[:10])
        pixels += inside if name == b"IDAT" else b""
        place += length + 12
    assert depth == 16
    lines = np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(height, -1)
    assert (lines[:, 0] == 2).all()
    rows = np.cumsum(lines[:, 1:], axis=0, dtype=np.uint8)
    return rows.copy().view(">u2").reshape(height, width, {2: 3, 6: 4}[colour])


def filled(masked: part.Masked, values: tuple[int, ...]) -> list[Image.Image]:
    done = [masked.picture.copy() for _ in values]
    for one in part.parts(masked, 8, "crop"):
        pixels, _ = one.cut(3)
        one.paste(done, [np.full_like(pixels, value) for value in values])
    return done


KINDS = ["png", "tif", "big.tif", "packed.tif", "big-packed.tif"]


@pytest.mark.parametrize(("channels", "kind"), [(2, "png"), *((n, kind) for n in (3, 4) for kind in KINDS)])
def test_all_sixteen_bits_of_known_pixels_come_back(channels: int, kind: str, tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (40, 50, channels))
    order = ">" if "big" in kind else "<"
    (tmp_path / f"x.{kind}").write_bytes(png(values) if kind == "png" else tiff(values, order, "packed" in kind))
    masked = part.read(tmp_path / f"x.{kind}", HOLE)
    expected = np.dstack([values[..., :1]] * 3 + [values[..., 1:]]) if channels == 2 else values
    for i, one in enumerate(filled(masked, (50, 51))):
        images.save(one, tmp_path / "y.png")
        after = unpacked((tmp_path / "y.png").read_bytes())
        assert np.array_equal(after[~HOLE], expected[~HOLE])
        assert (after[HOLE][:, :3] == (50 + i) * 257).all()
        assert np.array_equal(after[~HOLE][:, 3:], expected[~HOLE][:, 3:])
        assert (after[HOLE][:, 3:] == 65535).all(), "what is filled in is opaque"
        again = images.open_image(tmp_path / "y.png")
        assert np.array_equal(np.asarray(again).astype(int) * 256 + np.asarray(again.info[deep.LOW]), after)
    untouched = masked.picture
    assert np.array_equal(np.asarray(untouched).astype(int) * 256 + np.asarray(untouched.info[deep.LOW]), expected)


def test_a_picture_that_lies_on_its_side(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (40, 50, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = png(values)
    inside = exif.tobytes()[6:]
    noted = struct.pack(">I", len(inside)) + b"eXIf" + inside + struct.pack(">I", zlib.crc32(b"eXIf" + inside))
    image = images.open_image(content[:33] + noted + content[33:])
    assert image.size == (40, 50)
    images.save(image, tmp_path / "y.png")
    assert np.array_equal(unpacked((tmp_path / "y.png").read_bytes()), np.rot90(values, -1))


def test_formats_of_eight_bits(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (40, 50, 3))
    image = images.open_image(png(values))
    for suffix in (".tif", ".webp", ".bmp"):
        with pytest.raises(UsageError, match=r"16 bits a colour.*use \.png"):
            images.save(image, tmp_path / f"x{suffix}")
    images.save(image, tmp_path / "x.jpg")
    images.save(image.resize((5, 4)), tmp_path / "small.png")  # another image, and its low bytes are not known
    assert np.asarray(Image.open(tmp_path / "small.png")).shape == (4, 5, 3)


def test_where_only_eight_bits_are_read_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = RNG.integers(0, 65536, (40, 50, 4))
    (tmp_path / "x.png").write_bytes(png(values))
    (tmp_path / "key.png").write_bytes(png(values[..., :3], extra=struct.pack(">HHH", *values[0, 0, :3])))
    (tmp_path / "multiplied.tif").write_bytes(tiff(values, extra=1))
    with caplog.at_level(logging.WARNING):
        part.read(tmp_path / "x.png", HOLE)
        assert caplog.text == ""
        for name in ("key.png", "multiplied.tif"):
            masked = part.read(tmp_path / name, HOLE)
            assert f"{name} has 16 bits a colour, of which 8 can be read" in caplog.text
            images.save(filled(masked, (9,))[0], tmp_path / "y.tif")
        caplog.clear()
        part.read(Image.open(tmp_path / "x.png"), HOLE)
    assert "the image has 16 bits a colour, of which 8 can be read; give the file instead" in caplog.text
