"""Files as people have them: their formats, wrong names, pages, bands and negatives, each against what was written."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from diffunet.errors import DataError
from diffunet.pictures import deep, formats, images, opening, saving

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff(values: np.ndarray, photometric: int, *, kind: int = 1, extra: tuple[int, ...] = ()) -> bytes:
    """A TIFF made by hand from [H W C]; `kind` is 1 unsigned, 2 signed, 3 float."""
    height, width, bands = values.shape
    out, tags = bytearray(b"II*\0\0\0\0\0") + values.tobytes(), []
    said: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [values.itemsize * 8] * bands), (259, "H", [1]),
        (262, "H", [photometric]), (273, "I", [8]), (277, "H", [bands]), (278, "I", [height]),
        (279, "I", [values.nbytes]), *([(338, "H", list(extra))] if extra else []), (339, "H", [kind] * bands),
    ]  # fmt: skip
    for tag, letter, numbers in said:
        content = struct.pack(f"<{len(numbers)}{letter}", *numbers)
        if len(content) > 4:
            out, content = out + content, struct.pack("<I", len(out))
        tags.append(struct.pack("<HHI", tag, {"H": 3, "I": 4}[letter], len(numbers)) + content.ljust(4, b"\0"))
    out[4:8] = struct.pack("<I", len(out))
    return bytes(out) + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


@pytest.mark.parametrize("kind", ["PPM", "TGA", "JPEG2000", "AVIF"])
def test_formats_that_pillow_reads(kind: str) -> None:
    options: dict[str, Any] = {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
    content = encoded(Image.fromarray(NOISE), kind, **options)
    with images.decoding(content) as decoded:
        assert decoded.format == kind
        assert np.abs(images.to_array(decoded.image, 3).astype(int) - NOISE).max() <= (6 if kind == "AVIF" else 0)


@pytest.mark.parametrize("most", [1, 15, 255, 1000, 65535])
def test_grey_maps(most: int) -> None:
    values = RNG.integers(0, most + 1, (5, 7))
    for content in (
        b"P2 7 5 %d\n" % most + " ".join(map(str, values.ravel())).encode(),
        b"P5 7 5 %d\n" % most + values.astype(">u2" if most > 255 else "u1").tobytes(),
    ):
        image = images.open_image(content)
        assert image.mode == ("I;16" if most > 255 else "L")
        expected = values / most * 255
        assert np.abs(images.to_array(image, 1, range=images.Range(0, 65535))[..., 0] - expected).max() <= 1


def test_bit_maps() -> None:
    assert images.to_array(images.open_image(b"P1 3 1\n1 0 1"), 1).ravel().tolist() == [0, 255, 0]


def test_tga_is_told_by_its_name_where_it_has_no_footer(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(NOISE), "TGA")[:-26]
    (tmp_path / "a.tga").write_bytes(content)
    assert np.array_equal(images.to_array(images.open_image(tmp_path / "a.tga"), 3), NOISE)
    with pytest.raises(DataError, match="not an image"):
        images.open_image(content)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    for kind in ("AVIF", "WEBP", "PNG", "PPM", "TIFF"):
        (tmp_path / "x.jpg").write_bytes(encoded(Image.fromarray(NOISE), kind))
        with images.decoding(tmp_path / "x.jpg") as decoded:
            assert decoded.format == kind


OTHERS = {
    b"\0\0\0\x18ftypheic" + bytes(99): "pillow-heif",
    b"\0\0\0\x18ftypisom" + bytes(99): "video",
    b"<!DOCTYPE html><html></html>": "web page",
    b"\n <html lang=en>": "web page",
    b"<?xml version='1.0'?>\n<svg xmlns='x'/>": "SVG",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n": "git lfs pull",
    b"/annex/objects/SHA256E-s1--00.png": "git annex get",
    b"../../.git/annex/objects/1/2/a.png": "git annex get",
    b"%PDF-1.7": "PDF", b"PK\3\4abcd": "ZIP", b"8BPS": "Photoshop", b"\x1f\x8b\x08": "gzip",
    bytes(5000): "nothing but zeros", b"": "empty file", b"hello": "not an image",
    encoded(Image.fromarray(NOISE), "PNG")[:20]: "damaged",
    encoded(Image.fromarray(NOISE), "JPEG")[:20]: "damaged",
    tiff(np.zeros((4, 4, 5), np.uint16), 1, extra=(0,) * 4): "5 bands of 16 bits",
    tiff(np.zeros((4, 4, 3), np.uint8), 2)[:20]: "damaged: a TIFF that is cut off",
    tiff(np.zeros((4, 4, 3), np.float32), 2, kind=3): "3 bands of 32 floating-point bits",
}  # fmt: skip


@pytest.mark.skipif(formats.HAS_HEIF, reason="pillow-heif is installed, and gives another reason")
@pytest.mark.parametrize("content", OTHERS)
def test_every_reason_is_told_apart(content: bytes) -> None:
    with pytest.raises(DataError, match=OTHERS[content]):
        images.open_image(content)


def large_notes() -> dict[str, bytes]:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    long = PngImagePlugin.PngInfo()
    long.add_itxt("note", "y" * 3_000_000, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(1_500_000)
    image = Image.fromarray(NOISE)
    late = encoded(image, "PNG")
    packed = zlib.compress(bytes(3_000_000))
    note = b"zTXtname\0\0" + packed
    chunk = struct.pack(">I", len(note) - 4) + note + struct.pack(">I", zlib.crc32(note))
    return {
        "text": encoded(image, "PNG", pnginfo=text), "international": encoded(image, "PNG", pnginfo=long),
        "profile": encoded(image, "PNG", icc_profile=profile), "behind the pixels": late[:-12] + chunk + late[-12:],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["text", "international", "profile", "behind the pixels"])
def test_large_notes_are_no_damage(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = large_notes()[name]
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(content)).load()
    for draft in (None, 4):
        with images.decoding(content, draft=draft) as decoded:
            assert np.array_equal(np.asarray(decoded.image), NOISE)
    jpeg = images.open_image(encoded(Image.fromarray(NOISE), "JPEG", icc_profile=bytes(1_500_000)))
    images.save(jpeg, tmp_path / "x.png")
    Image.open(tmp_path / "x.png").load()
    assert "without the colour profile, which is too long for a PNG" in caplog.text


def stack(kind: str) -> list[bytes]:
    """The frames, and the file of all of them."""
    frames = [Image.fromarray(RNG.integers(0, 256, (12, 9), dtype=np.uint8)).convert("RGB") for _ in range(4)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    return [*(frame.tobytes() for frame in frames), content]


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_pages_are_counted_and_each_can_be_read(kind: str) -> None:
    *frames, content = stack(kind)
    places = opening.page_places(content)
    assert len(places) == 4
    with images.decoding(content) as decoded:
        assert decoded.pages == 4
    for place, frame in zip(places, frames, strict=True):
        assert images.to_array(images.open_image(content, page=place), 3).tobytes() == frame
    assert opening.page_places(encoded(Image.fromarray(NOISE), kind)) == [0]


def test_previews_are_no_pages() -> None:
    small = Image.fromarray(NOISE).resize((4, 3))
    phone = encoded(Image.fromarray(NOISE), "MPO", save_all=True, append_images=[small])
    assert opening.page_places(phone) == [0]
    pyramid = encoded(
        Image.fromarray(NOISE), "TIFF", save_all=True, append_images=[Image.fromarray(NOISE[::3])], tiffinfo={254: 1}
    )
    whole, reduced = (struct.pack("<HHII", 254, 4, 1, value) for value in (0, 1))
    assert pyramid.count(reduced) == 2
    pyramid = pyramid.replace(reduced, whole, 1)
    assert Image.open(io.BytesIO(pyramid)).n_frames == 2  # type: ignore[attr-defined]
    assert opening.page_places(pyramid) == [0]


def test_where_zero_is_white(tmp_path: Path) -> None:
    values = (RNG.integers(0, 256, (12, 9, 1)) * 257).astype(np.uint16)
    floats = (values / 65535).astype(np.float32)
    for one, other in (
        (tiff(values, 0), tiff(65535 - values, 1)), (tiff(floats, 0, kind=3), tiff(1 - floats, 1, kind=3)),
        (tiff((values >> 8).astype(np.uint8), 0), tiff((255 - (values >> 8)).astype(np.uint8), 1)),
    ):  # fmt: skip
        negative, positive = (images.open_image(content) for content in (one, other))
        pair = [images.to_array(image, 1).astype(int) for image in (negative, positive)]
        assert np.abs(pair[0] - pair[1]).max() <= (1 if negative.mode == "F" else 0)
        for name in ("x.tif", "x.png") if negative.mode != "F" else ("x.tif",):
            images.save(negative, tmp_path / name)
            assert np.array_equal(images.to_array(images.open_image(tmp_path / name), 1), pair[0])
    images.save(images.open_image(tiff(values, 0)), tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        assert image.tag_v2[262] == 0  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(image), values[..., 0]), "the values that are stored stay"


@pytest.mark.parametrize("extra", [(), (0,)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_near_infrared_is_no_alpha(kind: Any, extra: tuple[int, ...]) -> None:
    values = RNG.integers(0, np.iinfo(kind).max + 1, (12, 9, 4)).astype(kind)
    with images.decoding(tiff(values, 2, extra=extra)) as decoded:
        assert decoded.bands == 1
        assert not images.has_alpha(decoded.image)
        assert np.array_equal(deep.values_of(decoded.image), values[..., :3])
    with images.decoding(tiff(values, 2, extra=(2,))) as decoded:
        assert decoded.bands == 0
        assert images.has_alpha(decoded.image)
        assert np.array_equal(deep.values_of(decoded.image), values)


def test_more_bands() -> None:
    values = RNG.integers(0, 256, (12, 9, 6), dtype=np.uint8)
    with images.decoding(tiff(values, 2, extra=(0, 0, 0))) as decoded:
        assert decoded.bands == 3
        assert np.array_equal(images.to_array(decoded.image, 3), values[..., :3])


def test_eight_bits_with_a_sign() -> None:
    values = RNG.integers(-128, 128, (12, 9, 1)).astype(np.int8)
    values[0, :2, 0] = -128, 127
    image = images.open_image(tiff(values, 1, kind=2))
    assert np.array_equal(np.asarray(image), values[..., 0])
    assert images.to_array(image, 1)[0, :2, 0].tolist() == [0, 255]


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("draft", [None, 4])
def test_colours_of_twelve_bits(bits: int, draft: int | None) -> None:
    eight = RNG.integers(0, 256, (12, 9, 3))
    eight[0, 0] = 255
    values = (eight * (2**bits - 1) // 255).astype(np.uint16)
    with images.decoding(tiff(values, 2), draft=draft) as decoded:
        assert np.abs(images.to_array(decoded.image, 3).astype(int) - eight).max() <= 1


def test_reading_one_is_that_of_before() -> None:
    values = RNG.integers(0, 4096, (12, 9, 1)).astype(np.uint16)
    with images.decoding(tiff(values, 0), draft=4, reading=1) as decoded:
        assert deep.WHITE_IS_ZERO not in decoded.image.info
    with images.decoding(tiff(values.repeat(4, 2), 2), draft=4, reading=1) as decoded:
        assert decoded.image.mode == "RGBA"
        assert deep.LOW not in decoded.image.info


def test_what_is_written_has_known_endings() -> None:
    assert set(saving._KINDS) <= set(formats.EXTENSIONS)


def test_where_pillow_cuts_colours_to_eight_bits_it_is_known() -> None:
    colours = RNG.integers(0, 4096, (12, 9, 3)).astype(">u2").tobytes()
    for content, cut in (
        (b"P6\n# words\n9 12 4095\n" + colours, True),
        (encoded(Image.fromarray(NOISE), "PPM"), False),
    ):
        assert (deep.LOW in images.open_image(content).info) == cut
    for kind in ("JPEG2000", "AVIF", "PNG"):
        assert not deep.is_cut(kind, encoded(Image.fromarray(NOISE), kind))
    content = bytearray(encoded(Image.fromarray(NOISE), "JPEG2000"))
    place = content.index(b"\xff\x4f\xff\x51") + 2
    assert content[place + 40] == 7, "eight bits, less one"
    content[place + 40] = 11
    assert deep.is_cut("JPEG2000", bytes(content))
    content = bytearray(encoded(Image.fromarray(NOISE), "AVIF"))
    content[content.index(b"av1C") + 6] |= 0x40
    assert deep.is_cut("AVIF", bytes(content))


def test_a_damaged_number_of_frames_takes_no_memory(tmp_path: Path) -> None:
    """The four bytes of acTL that say how many frames there are may say four billion."""
    frames = [Image.new("RGB", (4, 4), (n, 0, 0)) for n in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    content = (tmp_path / "a.png").read_bytes()
    assert opening.page_places(content, "a.png") == [0, 1, 2]
    at = content.index(b"acTL") + 4
    chunk = b"acTL" + (2**31 - 1).to_bytes(4, "big") + content[at + 4 : at + 8]
    damaged = content[: at - 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[at + 12 :]
    (tmp_path / "b.png").write_bytes(damaged)
    for source in (damaged, tmp_path / "b.png"):
        assert len(opening.page_places(source, "b.png")) <= 1 + len(damaged) // 38
    assert opening.open_image(tmp_path / "b.png").size == (4, 4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_a_png_is_that_of_its_own_bits(bits: int) -> None:
    """A PNG of one row, put together by hand, whose greatest value is declared transparent."""
    values = [0, 2**bits - 1]
    row = np.packbits([[int(digit) for digit in f"{value:0{bits}b}"] for value in values]).tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", values[1]))
    content += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    with images.decoding(content) as decoded:
        assert images.to_array(decoded.image, 4)[0, :, 3].tolist() == [255, 0]
