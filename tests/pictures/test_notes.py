"""What a file says beside its pixels, written by Pillow, taken through us, and read by Pillow again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from diffunet.inpainting import part
from diffunet.pictures import images

RNG = np.random.default_rng(0)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" b="c"/></x:xmpmeta>'
UPRIGHT = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a  b="c"/></x:xmpmeta>'
CAMERA, TURNED, WIDTH, TABLE, GPS, MAKER, TAKEN = 0x010F, 0x0112, 0x0100, 0x8769, 0x8825, 0x927C, 0x9003


def notes(**more: Any) -> dict[str, Any]:
    exif = Image.Exif()
    exif[CAMERA] = "A camera"
    exif[TURNED] = 6
    exif[TABLE] = {TAKEN: "2026:01:01 00:00:00", MAKER: b"a thumbnail of what was erased"}
    exif[GPS] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return {"exif": exif.tobytes(), "icc_profile": ICC, "dpi": (300, 300), "xmp": XMP} | more


def written(image: Image.Image, path: Path, said: dict[str, Any]) -> None:
    kind = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF"}[path.suffix]
    options = dict(said)
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", said["xmp"].decode())
    if kind == "TIFF":
        options["exif"] = Image.Exif()
        options["exif"].load(said["exif"])
        options["exif"][700] = said["xmp"]
    image.save(path, kind, **options)


@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
def test_what_a_file_says_goes_into_the_next(source: str, target: str, tmp_path: Path) -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    written(picture, tmp_path / f"a{source}", notes())
    masked = part.read(tmp_path / f"a{source}", box=(2, 3, 7, 8))
    assert masked.picture.size == (20, 30)
    done = masked.picture.copy()
    for one in part.parts(masked, 8):
        one.paste([done], [np.zeros_like(one.cut(3)[0])])
    images.save(done, tmp_path / f"b{target}")
    with Image.open(tmp_path / f"b{target}") as after:
        after.load()
        exif = after.getexif()
        assert after.size == (20, 30)
        assert after.info["icc_profile"] == ICC
        assert exif[CAMERA] == "A camera"
        assert TURNED not in exif, "it is upright now"
        assert exif.get_ifd(TABLE) == {TAKEN: "2026:01:01 00:00:00"}
        assert exif.get_ifd(GPS) == {1: "N", 2: (1.0, 2.0, 3.0)}
        assert after.info["xmp"] == UPRIGHT
        if ".webp" not in (source, target):
            assert after.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        if target != ".jpg":
            assert np.array_equal(after, done)


def test_a_camera_that_says_how_large_its_picture_is_does_not_break_a_tiff(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[CAMERA], exif[WIDTH], exif[0x0102] = "A camera", 999, (4, 4, 4)
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    images.save(images.open_image(tmp_path / "a.jpg"), tmp_path / "b.tif")
    with Image.open(tmp_path / "b.tif") as after:
        assert after.size == (30, 20)
        assert after.getexif()[CAMERA] == "A camera"


def test_a_thumbnail_is_left_out(tmp_path: Path) -> None:
    """EXIF's second directory, as cameras write it, put together by hand; and what Photoshop puts into XMP."""
    thumbnail = b"a small picture of what was erased"
    make = b"A camera\0\0"
    first = b"\0\1" + b"\1\x0f\0\2\0\0\0\x09\0\0\0\x1a" + b"\0\0\0\x24"  # one tag, ASCII, 9 long, at 26; next at 36
    second = b"\0\2" + b"\2\1\0\4\0\0\0\1\0\0\0\x42" + b"\2\2\0\4\0\0\0\1" + len(thumbnail).to_bytes(4) + b"\0" * 4
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + first + make + second + thumbnail
    said = notes(exif=exif, xmp=b"<xmpGImg:image>a small picture</xmpGImg:image>")
    written(Image.new("RGB", (30, 20), "red"), tmp_path / "a.jpg", said)
    assert Image.open(tmp_path / "a.jpg").getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(thumbnail)
    images.save(images.open_image(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    content = (tmp_path / "b.jpg").read_bytes()
    assert b"A camera" in content
    assert b"small picture" not in content


@pytest.mark.parametrize(
    ("space", "mode", "suffix", "kept"),
    [
        (b"RGB ", "RGB", ".png", True),
        (b"GRAY", "L", ".png", True),
        (b"GRAY", "L", ".webp", False),  # which is written as RGB
        (b"GRAY", "RGB", ".png", False),
        (b"CMYK", "CMYK", ".tif", True),
        (b"CMYK", "RGB", ".png", False),
        (b"Lab ", "RGB", ".tif", False),
    ],
)
def test_a_profile_is_of_the_images_colours(space: bytes, mode: str, suffix: str, kept: bool, tmp_path: Path) -> None:
    image = Image.new(mode, (4, 4))
    profile = ICC[:16] + space + ICC[20:]
    image.info["icc_profile"] = profile
    images.save(image, tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as after:
        assert after.info.get("icc_profile") == (profile if kept else None)


def test_texts_that_are_named_like_notes_are_none(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    for name in ("icc_profile", "dpi", "xmp", "exif"):
        text.add_text(name, "words")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    image = images.open_image(tmp_path / "a.png")
    for suffix in (".png", ".jpg", ".tif", ".webp", ".bmp", ".gif"):
        images.save(image, tmp_path / f"b{suffix}")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_damaged_and_endless_notes_do_not_cost_the_picture(suffix: str, tmp_path: Path) -> None:
    broken = io.BytesIO()
    Image.new("RGB", (9, 6)).save(broken, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    images.save(images.open_image(broken.getvalue()), tmp_path / f"a{suffix}")
    image = Image.new("RGB", (9, 6))
    image.info |= {"exif": b"no exif", "xmp": bytes(100_000), "icc_profile": b"short", "dpi": (float("nan"), 0)}
    if suffix != ".webp":  # which takes anything
        images.save(image, tmp_path / f"b{suffix}")


def test_pictures_of_our_own_say_nothing(tmp_path: Path) -> None:
    images.save(images.grid([np.zeros((4, 4, 3), np.uint8)] * 3), tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as after:
        assert not {"exif", "icc_profile", "xmp"} & after.info.keys()
