"""Pictures of every mode and format against values worked out here, and files that are broken in every way."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.errors import DataError
from diffunet.pictures import images, opening
from diffunet.pictures.formats import FORMATS

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(
    values: np.ndarray, colour: int, depth: int = 16, extra: bytes = b"", size: tuple[int, int] | None = None
) -> bytes:
    """A PNG made by hand from [H W C]: Pillow writes few of 16 bits. Colour 0 grey, 2 RGB, 4 grey, alpha, 6 RGBA."""
    rows = values.astype(">u2" if depth == 16 else "u1")
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def over(colours: np.ndarray, alpha: np.ndarray, background: tuple[int, ...]) -> np.ndarray:
    a = alpha[..., None] / 255
    return np.asarray(colours * a + np.array(background) * (1 - a))


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    image = images.open_image(encoded(Image.fromarray(NOISE), kind))
    assert np.array_equal(images.to_array(image, 3), NOISE)
    assert image.mode == "RGB"


def test_webp_gif_and_jpeg() -> None:
    lossless = images.open_image(encoded(Image.fromarray(NOISE), "WEBP", lossless=True))
    assert np.array_equal(images.to_array(lossless, 3), NOISE)
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    frames = [Image.fromarray(flat), Image.fromarray(255 - flat)]
    gif = images.open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.array_equal(images.to_array(gif, 3), flat), "the first frame"
    jpeg = images.open_image(encoded(Image.fromarray(flat), "JPEG", quality=95))
    assert np.abs(images.to_array(jpeg, 3).astype(int) - flat).max() <= 4


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "LA", "La", "PA", "RGBA", "RGBa"]
)
def test_every_mode_has_the_right_shape(mode: str, channels: int) -> None:
    array = images.to_array(Image.new(mode, (5, 3)), channels)
    assert array.shape == (3, 5, channels)
    assert array.dtype == np.uint8


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "P", "RGBX"])
def test_opaque_modes_keep_their_colour(mode: str) -> None:
    colour = (200, 40, 120)
    image = Image.new("RGB", (4, 4), colour)
    image = image.quantize() if mode == "P" else image.convert(mode)
    assert np.abs(images.to_array(image, 3).astype(int) - colour).max() <= 3
    assert np.abs(images.to_array(image, 1).astype(int) - luma(np.array(colour))).max() <= 3
    assert (images.to_array(image, 4)[..., 3] == 255).all()


def test_lab_white_black_and_red() -> None:
    # CIELAB (D50) of sRGB red is (54.3, 80.8, 69.9); TIFF stores L * 2.55 and a, b as signed bytes
    lab = np.array([[[255, 0, 0], [0, 0, 0], [138, 81, 70]]], np.uint8)
    image = images.open_image(encoded(Image.frombytes("LAB", (3, 1), lab.tobytes()), "TIFF"))
    assert image.mode == "LAB"
    assert np.abs(images.to_array(image, 3)[0].astype(int) - [[255] * 3, [0] * 3, [255, 0, 0]]).max() <= 12


def test_cmyk_jpeg() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    image = images.open_image(encoded(cmyk, "JPEG", quality=95))
    assert image.mode == "CMYK"
    assert np.abs(images.to_array(image, 3).astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 60)])
def test_alpha_is_composited_over_the_background(background: tuple[int, int, int]) -> None:
    alpha = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
    alpha[0, :2] = 0, 255
    rgba = Image.fromarray(np.dstack([NOISE, alpha]))
    expected = over(NOISE, alpha, background)
    for image in (rgba, images.open_image(encoded(rgba, "PNG")), images.open_image(encoded(rgba, "TIFF"))):
        assert np.abs(images.to_array(image, 3, background) - expected).max() <= 1
        assert np.abs(images.to_array(image, 1, background)[..., 0] - luma(expected)).max() <= 1.5
        assert np.array_equal(images.to_array(image, 4, background), np.dstack([NOISE, alpha]))
    grey = Image.fromarray(np.dstack([NOISE[..., 0], alpha]))
    assert grey.mode == "LA"
    assert np.abs(images.to_array(grey, 3) - over(NOISE[..., :1].repeat(3, 2), alpha, (255,) * 3)).max() <= 1
    assert np.array_equal(images.to_array(grey, 4)[..., 3], alpha)
    assert np.array_equal(images.to_array(grey, 4)[..., 1], NOISE[..., 0])


def test_premultiplied_modes() -> None:
    rgba = np.full((2, 2, 4), (200, 100, 50, 128), np.uint8)
    image = Image.fromarray(rgba).convert("RGBa")
    assert np.abs(images.to_array(image, 4).astype(int) - rgba).max() <= 2
    assert np.abs(images.to_array(image, 3) - over(rgba[..., :3], rgba[..., 3], (255,) * 3)).max() <= 2
    grey = Image.fromarray(rgba[..., [0, 3]]).convert("La")
    assert np.abs(images.to_array(grey, 4)[..., [0, 3]].astype(int) - rgba[..., [0, 3]]).max() <= 2


def test_palette_transparency_and_colour_keys() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    for transparency in (0, bytes([0, 255])):
        image = images.open_image(encoded(palette, "PNG", transparency=transparency))
        assert image.mode == "P"
        assert images.to_array(image, 3, (9, 8, 7)).tolist() == [[[9, 8, 7], [0, 0, 255]]]
        assert images.to_array(image, 4)[..., 3].tolist() == [[0, 255]]
    key = images.open_image(encoded(Image.fromarray(NOISE), "PNG", transparency=tuple(NOISE[0, 0].tolist())))
    alpha = images.to_array(key, 4)[..., 3]
    assert alpha[0, 0] == 0
    assert np.array_equal(alpha == 0, np.equal(NOISE, NOISE[0, 0]).all(axis=2))
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert images.to_array(images.open_image(encoded(bilevel, "PNG", transparency=0)), 4)[0, :, 3].tolist() == [255, 0]


SIXTEEN = np.array([[0, 128, 129, 255, 256, 40000, 65406, 65535]])
EIGHT = [0, 0, 1, 1, 1, 156, 254, 255]  # round(v / 257)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    little = Image.fromarray(SIXTEEN.astype("<u2"))
    big = Image.fromarray(SIXTEEN.astype(">u2"))
    files = [
        png(SIXTEEN[..., None], 0),
        encoded(little, "PNG"),
        encoded(little, "TIFF"),
        encoded(big, "TIFF"),
        encoded(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"),
    ]
    assert files[3][:2] == b"MM" or images.open_image(files[3]).mode == "I;16B"
    for file in files:
        image = images.open_image(file)
        for channels in (1, 3, 4):
            assert images.to_array(image, channels)[0, :, 0].tolist() == EIGHT, (image.mode, channels)


def test_sixteen_bit_colour_and_alpha() -> None:
    rgb = np.repeat(SIXTEEN[..., None], 3, 2)
    alpha = np.full((1, 8, 1), 65535)
    for colour, values in ((2, rgb), (4, np.dstack([SIXTEEN, alpha])), (6, np.dstack([rgb, alpha]))):
        image = images.open_image(png(values, colour))
        assert np.abs(images.to_array(image, 3)[0, :, 1].astype(int) - EIGHT).max() <= 1
        assert (images.to_array(image, 4)[..., 3] == 255).all()
    half = images.open_image(png(np.full((1, 1, 4), 32768), 6))
    assert abs(int(images.to_array(half, 3)[0, 0, 0]) - 191) <= 2


def test_sixteen_bit_colour_key() -> None:
    file = png(SIXTEEN[..., None], 0, extra=chunk(b"tRNS", struct.pack(">H", 40000)))
    array = images.to_array(images.open_image(file), 4)
    assert array[0, :, 3].tolist() == [255, 255, 255, 255, 255, 0, 255, 255]
    assert images.to_array(images.open_image(file), 1)[0, 5, 0] == 255, "white shows through"


def test_wide_integers_and_floats() -> None:
    def grey(values: list[float], kind: str) -> list[int]:
        image = images.open_image(encoded(Image.fromarray(np.array([values], kind)), "TIFF"))
        return [int(value) for value in images.to_array(image, 1)[0, :, 0]]

    assert grey([0, 100, 255], "int32") == [0, 100, 255]
    assert grey([0, 500000, 1000000], "int32") == [0, 128, 255]
    assert grey([-1, 0, 0.5, 1], "float32") == [0, 128, 191, 255]
    assert grey([0, 100, 255], "float32") == [0, 100, 255]
    assert grey([0, 257, 65535], "float32") == [0, 1, 255]
    assert grey([float("nan"), float("inf"), 1], "float32") == [0, 0, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    # Corners of the picture as it should be seen, stored so that the orientation undoes it.
    seen = np.zeros((32, 64), np.uint8)
    seen[:16, :32], seen[:16, 32:], seen[16:, :32] = 255, 170, 85
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1],
        5: seen.T, 6: np.rot90(seen, 1), 7: seen[::-1, ::-1].T, 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    special: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}
    options = special.get(kind, {})
    content = encoded(
        Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif.tobytes() if kind != "TIFF" else exif, **options
    )
    with images.decoding(content) as decoded:
        pass
    assert (decoded.width, decoded.height) == (64, 32)
    assert decoded.format == kind
    assert np.abs(images.to_array(decoded.image, 1)[..., 0].astype(int) - seen).max() <= 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture() -> None:
    content = encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert images.open_image(content).size == (9, 6)


def test_draft_decodes_smaller_but_reports_the_size() -> None:
    content = encoded(Image.new("RGB", (800, 400), (10, 20, 30)), "JPEG")
    with images.decoding(content, draft=100) as decoded:
        pass
    assert decoded.image.size == (200, 100)
    assert (decoded.width, decoded.height) == (800, 400)
    assert images.open_image(content, draft=250).size == (800, 400)


def test_phone_pictures_of_several_frames_are_jpeg() -> None:
    frames = [Image.new("RGB", (40, 20), c) for c in ("red", "blue")]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    with images.decoding(content, draft=10) as decoded:
        pass
    assert decoded.format == "JPEG"
    assert np.abs(images.to_array(decoded.image, 3).astype(int) - (255, 0, 0)).max() <= 3


GOOD_PNG = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG")
BROKEN = {
    "empty": b"",
    "text": b"hello, I am no image\n" * 10,
    "signature only": GOOD_PNG[:8],
    "truncated header": GOOD_PNG[:20],
    "truncated png": GOOD_PNG[: len(GOOD_PNG) // 2],
    "truncated jpeg": encoded(Image.fromarray(NOISE).resize((64, 64)), "JPEG")[:-200],
    "truncated webp": encoded(Image.fromarray(NOISE), "WEBP", lossless=True)[:40],
    "truncated tiff": encoded(Image.fromarray(NOISE), "TIFF")[:60],
    "truncated gif": encoded(Image.fromarray(NOISE), "GIF")[:30],
    "bad checksum": GOOD_PNG[:40] + bytes([GOOD_PNG[40] ^ 255]) + GOOD_PNG[41:],
    "zero size": png(NOISE, 2, 8, size=(0, 0)),
    "other format": b"8BPS" + bytes(40),
}


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_have_a_reason_on_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(BROKEN[name])
    for source in (BROKEN[name], path, str(path)):
        with pytest.raises(DataError) as caught:
            images.open_image(source)
        assert str(caught.value)
        assert "\n" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_never_escapes() -> None:
    sources = [encoded(Image.fromarray(NOISE), kind) for kind in FORMATS]
    generator = np.random.default_rng(1)
    reasons: list[str] = []
    for source in sources:
        for _ in range(60):
            content = bytearray(source)
            for place in generator.integers(0, len(content), 4):
                content[place] = generator.integers(256)
            try:
                images.to_array(images.open_image(bytes(content)), 3)
            except DataError as error:
                reasons.append(str(error))
    assert len(reasons) > 50
    assert not any("\n" in reason for reason in reasons)


def without(content: bytes, name: bytes) -> bytes:
    """A PNG less its chunk `name`."""
    start = content.index(name) - 4
    return content[:start] + content[start + 12 + int.from_bytes(content[start : start + 4], "big") :]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
@pytest.mark.parametrize("kind", [b"tEXt", b"iTXt"])
def test_a_text_called_transparency_is_none(mode: str, kind: bytes) -> None:
    grey = Image.fromarray(NOISE[..., 0])
    image = Image.fromarray(SIXTEEN.astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    plain = encoded(image, "PNG")
    text = chunk(kind, b"transparency\0" + bytes(4 * (kind == b"iTXt")) + b"words")
    assert images.open_image(plain).mode == mode
    marked = images.open_image(plain[:33] + text + plain[33:])
    assert not images.has_alpha(marked)
    for channels in (1, 3, 4):
        assert np.array_equal(images.to_array(marked, channels), images.to_array(image, channels))


def test_a_palette_that_is_missing() -> None:
    content = without(encoded(Image.fromarray(NOISE).quantize(8), "PNG"), b"PLTE")
    with pytest.raises(DataError, match="no palette"):
        images.open_image(content)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("value", ["words", b"", (1, 2), 2.5, None])
def test_odd_transparency_of_a_callers_image(mode: str, value: Any) -> None:
    image = Image.new(mode, (3, 2))
    image.info["transparency"] = value
    for use in (images.has_alpha, lambda image: images.to_array(image, 3)):
        with contextlib.suppress(DataError):
            use(image)


STRIPPED = ["1", "L", "P", "RGB", "CMYK", "LA", "PA", "RGBA", "RGBa", "LAB", "I;16", "I", "F", "key", "palette key"]


@pytest.mark.seconds
@pytest.mark.parametrize("mode", STRIPPED)
def test_large_images_are_converted_in_strips(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.integers(0, 256, (23, 10), dtype=np.uint8)
    values[:3] = 0
    image = Image.fromarray(np.dstack([values] * 4))
    if mode == "key":
        image = image.convert("RGB")
        image.info["transparency"] = (0, 0, 0)
    elif mode == "palette key":
        image = Image.fromarray(values).convert("P")
        image.info["transparency"] = 0
    elif mode in ("I;16", "I", "F"):
        image = Image.fromarray((values * 200.0).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    elif mode == "LAB":
        image = Image.frombytes("LAB", (10, 23), np.dstack([values] * 3).tobytes())
    else:
        image = (image.convert("L").convert("P") if mode in ("P", "PA") else image).convert(mode)
    whole = [images.to_array(image, channels) for channels in (1, 3, 4)]
    alpha = images.has_alpha(image)
    for size in (1, 10, 47, 100, 229):
        monkeypatch.setattr(images, "_STRIP", size)
        for channels, expected in zip((1, 3, 4), whole, strict=True):
            assert np.array_equal(images.to_array(image, channels), expected), size
        assert images.has_alpha(image) == alpha
    assert alpha == (mode in ("LA", "RGBA", "RGBa", "key", "palette key"))


def test_of_large_images_there_is_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "LARGE", 50)
    large, small = encoded(Image.fromarray(NOISE), "PNG"), encoded(Image.fromarray(NOISE[:3]), "PNG")
    broken = large[: len(large) // 2]
    inside: list[int] = []
    most: list[int] = []
    begun = threading.Barrier(4)

    def work() -> None:
        begun.wait()
        for _ in range(20):
            with pytest.raises(DataError):
                images.open_image(broken)
            with images.decoding(large):
                inside.append(1)
                most.append(len(inside))
                images.open_image(small)  # is not kept waiting
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 80


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process by its address space")
@pytest.mark.parametrize("kind", ["float", "bits"])
def test_memory_of_the_largest_images(kind: str, tmp_path: Path) -> None:
    """Files of a few MB with 200 million pixels each go through `check` and training in threads within 4 GiB."""
    files = 2 if kind == "float" else 3  # of floats one takes half a minute
    if kind == "float":
        Image.new("F", (14142, 14142), 0.5).save(tmp_path / "0.tif", compression="tiff_lzw")
    else:
        Image.new("1", (14142, 14142)).save(tmp_path / "0.tif", compression="group4")
    for n in range(1, files):
        shutil.copy(tmp_path / "0.tif", tmp_path / f"{n}.tif")
    code = f"""
import os, resource
from pathlib import Path
from diffunet.data import dataset, survey
os.cpu_count = lambda: {files}
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30,) * 2)
root = Path({str(tmp_path)!r})
assert survey.survey(root).rejected == ()
assert dataset.open_dataset(root, image_size=64, channels=3, fit="crop", cache="off").rejected == ()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_size_cap_is_ours_and_read_from_the_header() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match="too large: 30000 x 30000"):
        images.open_image(png(NOISE, 2, 8, size=(30000, 30000)))
    with pytest.raises(DataError, match="too large: 9 x 6"):
        images.open_image(encoded(Image.fromarray(NOISE), "PNG"), max_pixels=53)
    assert images.open_image(encoded(Image.fromarray(NOISE), "PNG"), max_pixels=54).size == (9, 6)
    assert before == Image.MAX_IMAGE_PIXELS


def test_pillows_own_cap_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert images.open_image(encoded(Image.fromarray(NOISE), "PNG")).size == (9, 6)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        images.open_image(tmp_path / "gone.png")
    with pytest.raises(DataError, match="folder"):
        images.open_image(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        images.open_image("a\0b.png")


def test_threads_put_the_global_cap_back() -> None:
    before = Image.MAX_IMAGE_PIXELS
    content = encoded(Image.fromarray(NOISE), "PNG")
    threads = [threading.Thread(target=lambda: [images.open_image(content) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert before == Image.MAX_IMAGE_PIXELS


def test_arrays_and_images_round_trip() -> None:
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        array = RNG.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        image = images.from_array(array)
        assert image.mode == mode
        assert np.array_equal(images.to_array(image, channels), array)


def test_float_range_is_exact_for_every_value() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    x = images.to_float(values)
    assert x.shape == (1, 1, 16, 16)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert torch.allclose(x.flatten().double(), torch.arange(256).double() * 2 / 255 - 1, atol=1e-6)
    assert x.min() == -1
    assert x.max() == 1
    assert np.array_equal(images.to_uint8(x), values)
    assert np.array_equal(images.to_uint8(images.to_float(torch.from_numpy(values)).double()), values)
    assert images.to_uint8(torch.tensor([-7.0, 7.0, 0.003]).reshape(1, 1, 1, 3)).ravel().tolist() == [0, 255, 128]


def test_to_float_takes_read_only_arrays_and_orders_axes() -> None:
    batch = RNG.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    batch.setflags(write=False)
    x = images.to_float(batch)
    assert x.shape == (2, 3, 4, 5)
    assert x[1, 2, 3, 4] == pytest.approx(batch[1, 3, 4, 2] / 127.5 - 1, abs=1e-6)
