"""Broken images for `fuzz.py`: small pictures of every kind that diffunet reads, and ways to break them.

All is drawn from the generator that is given, so that a seed and a number make the same file again.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Draw = np.random.Generator
Mutation = Callable[[bytes, Draw], bytes]

SIZE = (24, 16)
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
PNG_NAMES = (
    b"tRNS PLTE gAMA cHRM sRGB iCCP pHYs tEXt zTXt iTXt eXIf acTL fcTL fdAT tIME bKGD sBIT hIST IDAT IHDR IEND abCd"
).split()
# Pillow puts texts into the same dict as its own findings.
PNG_KEYS = (
    b"transparency,exif,dpi,gamma,icc_profile,duration,loop,background,aspect,interlace,srgb,default_image,blend,jfif,"
    b"XML:com.adobe.xmp,Raw profile type exif"
).split(b",")
TIFF_TAGS = (
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 292, 293, 296, 317, 320, 322, 323, 324, 325,
    330, 338, 339, 347, 512, 513, 514, 529, 530, 532, 700, 33723, 34377, 34665, 34675, 34853,
)  # fmt: skip


# Sound ones.


def sound() -> dict[str, bytes]:
    """Name, with its extension, and content: every format, and of each the modes, compressions and extras."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (SIZE[1], SIZE[0], 4), np.uint8)
    smooth = np.add.outer(np.arange(SIZE[1]) * 9, np.arange(SIZE[0]) * 5).astype(np.uint8)
    rgb = Image.fromarray(np.dstack([smooth, smooth[::-1], noise[..., 0] // 8]))
    rgba = Image.fromarray(np.dstack([np.asarray(rgb), noise[..., 3]]))
    grey, wide = rgb.convert("L"), Image.fromarray(smooth.astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [rgb.rotate(180), rgb.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    return (
        _pngs(rgb, rgba, grey, wide, frames, exif)
        | _tiffs(rgb, rgba, grey, wide, smooth, frames, exif)
        | _others(rgb, rgba, grey, frames, exif)
    )


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _pngs(
    rgb: Image.Image, rgba: Image.Image, grey: Image.Image, wide: Image.Image, frames: dict[str, Any], exif: Image.Exif
) -> dict[str, bytes]:
    found = {
        f"{image.mode.replace(';', '')}.png": _saved(image, "PNG")
        for image in (grey.convert("1"), grey, rgba.convert("LA"), rgb.quantize(16), rgb, rgba, wide)
    }
    texts = (
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"words " * 50))
        + chunk(b"tEXt", b"Author\0somebody")
        + chunk(b"iTXt", b"Title\0\0\0en\0\0something")
        + chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(128)))
        + chunk(b"gAMA", struct.pack(">I", 45455))
        + chunk(b"pHYs", struct.pack(">IIB", 3000, 3000, 1))
    )
    plain = found["RGB.png"]
    depth = np.asarray(wide).astype(">u2")
    colours = np.dstack([depth, depth[::-1], depth[:, ::-1]])
    found |= {
        "texts.png": plain[:33] + texts + plain[33:],
        "exif.png": _saved(rgb, "PNG", exif=exif.tobytes()),
        "key-L.png": _saved(grey, "PNG", transparency=9),
        "key-RGB.png": _saved(rgb, "PNG", transparency=(1, 2, 3)),
        "key-P.png": _saved(rgb.quantize(16), "PNG", transparency=bytes(range(0, 256, 16))),
        "key-1.png": _saved(grey.convert("1"), "PNG", transparency=0),
        "key-I16.png": png(depth[..., None], 0, 16, chunk(b"tRNS", struct.pack(">H", 257))),
        "RGB16.png": png(colours, 2, 16),
        "RGBA16.png": png(np.dstack([colours, depth]), 6, 16),
        "interlaced-RGB.png": png(np.asarray(rgb), 2, 8, interlaced=True),
        "interlaced-L16.png": png(depth[..., None], 0, 16, interlaced=True),
        "animated.png": _saved(rgb, "PNG", **frames),
    }
    return found


def _tiffs(
    rgb: Image.Image,
    rgba: Image.Image,
    grey: Image.Image,
    wide: Image.Image,
    smooth: np.ndarray,
    frames: dict[str, Any],
    exif: Image.Exif,
) -> dict[str, bytes]:
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")
    found = {f"{mode}.tif": _saved(rgba.convert("RGB").convert(mode), "TIFF") for mode in modes}
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_lzma", "zstd", "jpeg"):
        for image in (rgb, grey) if name == "jpeg" else (rgb, grey, rgba):
            with contextlib.suppress(OSError):  # libtiff may be built without lzma or zstd
                found[f"{name}-{image.mode}.tif"] = _saved(image, "TIFF", compression=name)
    for name in ("group3", "group4"):
        found[f"{name}.tif"] = _saved(grey.convert("1"), "TIFF", compression=name)
    depth = smooth.astype(np.uint16) * 257
    return found | {
        "I16.tif": _saved(wide, "TIFF"),
        "I16-lzw.tif": _saved(wide, "TIFF", compression="tiff_lzw"),
        "I16B.tif": _saved(Image.frombytes("I;16B", SIZE, depth.astype(">u2").tobytes()), "TIFF"),
        "I.tif": _saved(Image.fromarray(smooth.astype(np.int32) * 1000), "TIFF"),
        "F.tif": _saved(Image.fromarray(smooth.astype(np.float32) / 255), "TIFF"),
        "F-deflate.tif": _saved(Image.fromarray(smooth.astype(np.float32)), "TIFF", compression="tiff_adobe_deflate"),
        "big.tif": _saved(rgb, "TIFF", big_tiff=True),
        "pages.tif": _saved(rgb, "TIFF", **frames),
        "turned.tif": _saved(rgb, "TIFF", exif=exif),
    }


def _others(
    rgb: Image.Image, rgba: Image.Image, grey: Image.Image, frames: dict[str, Any], exif: Image.Exif
) -> dict[str, bytes]:
    palette, wide = rgb.quantize(16), np.asarray(grey).astype(np.uint16) * 16
    return {
        "RGB.ppm": _saved(rgb, "PPM"),
        "L16.pgm": b"P5 %d %d 4095\n" % SIZE + wide.astype(">u2").tobytes(),
        "words.pgm": b"P2 # words\n%d %d 255\n" % SIZE + b" ".join(b"%d" % value for value in grey.tobytes()),
        "1.pbm": _saved(grey.convert("1"), "PPM"),
        "RGB.tga": _saved(rgb, "TGA"),
        "RGBA.tga": _saved(rgba, "TGA", compression="tga_rle"),
        "RGB.jp2": _saved(rgb, "JPEG2000"),
        "L16.j2k": _saved(Image.fromarray(wide), "JPEG2000", no_jp2=True),
        "RGB.avif": _saved(rgb, "AVIF", exif=exif.tobytes()),
        "animated.avif": _saved(rgb, "AVIF", **frames),
        "profile.jpg": _saved(rgb, "JPEG", icc_profile=_profile()),
        "profile.png": _saved(rgba, "PNG", icc_profile=_profile()),
        "grey.jpg": _saved(grey, "JPEG"),
        "RGB.jpg": _saved(rgb, "JPEG", dpi=(72, 72), comment=b"a comment"),
        "CMYK.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True, subsampling=2),
        "turned.jpg": _saved(rgb, "JPEG", exif=exif.tobytes(), icc_profile=bytes(200)),
        "restarts.jpg": _saved(rgb, "JPEG", restart_marker_blocks=1, quality=95, subsampling=0),
        "large.jpg": _saved(rgb.resize((400, 300)), "JPEG", quality=30),
        "phone.jpg": _saved(rgb, "MPO", **frames),
        "lossy.webp": _saved(rgb, "WEBP", quality=50),
        "lossless.webp": _saved(rgba, "WEBP", lossless=True, exact=True),
        "alpha.webp": _saved(rgba, "WEBP", quality=50, exif=exif.tobytes(), icc_profile=bytes(200)),
        "animated.webp": _saved(rgb, "WEBP", **frames),
        "1.bmp": _saved(grey.convert("1"), "BMP"),
        "P.bmp": _saved(palette, "BMP"),
        "RGB.bmp": _saved(rgb, "BMP"),
        "RGBA.bmp": _saved(rgba, "BMP"),
        "runs.bmp": _run_length_bmp(),
        "P.gif": _saved(palette, "GIF"),
        "transparent.gif": _saved(palette, "GIF", transparency=3, interlace=1, comment=b"words"),
        "animated.gif": _saved(rgb, "GIF", duration=100, loop=0, **frames),
    }


def _profile() -> bytes:
    """A colour profile that is not sRGB: red and blue are exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")


def chunk(name: bytes, content: bytes) -> bytes:
    """A PNG chunk with its right checksum."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(values: np.ndarray, colour: int, depth: int, extra: bytes = b"", *, interlaced: bool = False) -> bytes:
    """A PNG from [H W C], uint8 or big-endian uint16, of the kinds that Pillow reads and does not write."""
    height, width = values.shape[:2]
    passes = (
        [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        if interlaced
        else [(0, 0, 1, 1)]
    )  # Adam7: first row and column, steps
    rows = [row for y, x, down, right in passes for row in values[y::down, x::right]]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    pixels = zlib.compress(b"".join(b"\0" + np.ascontiguousarray(row).tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _run_length_bmp() -> bytes:
    """A BMP with 8-bit run lengths: each row one run and an absolute stretch."""
    width, height = SIZE
    row = bytes([width - 4, 7, 0, 4, 1, 2, 3, 4, 0, 0])
    pixels = row * height + b"\0\1"
    palette = bytes(v for i in range(256) for v in (i, 255 - i, i // 2, 0))
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + palette + pixels


# Breaking any bytes.


def _ranges(size: int, draw: Draw) -> tuple[int, int]:
    start = int(draw.integers(size + 1))
    return start, min(size, start + int(2 ** draw.uniform(0, 10)))


def _place(content: bytes, draw: Draw) -> int:
    """A quarter of the time in the first 64 bytes, where most formats say how large everything is."""
    limit = min(len(content), 64) if draw.random() < 0.25 else len(content)
    return int(draw.integers(max(1, limit)))


def flip_bits(content: bytes, draw: Draw) -> bytes:
    """1 to 16 bits."""
    changed = bytearray(content)
    for _ in range(int(draw.integers(1, 17)) if changed else 0):
        changed[_place(content, draw)] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def replace_bytes(content: bytes, draw: Draw) -> bytes:
    """1 to 16 bytes."""
    changed = bytearray(content)
    for _ in range(int(draw.integers(1, 17)) if changed else 0):
        changed[_place(content, draw)] = int(draw.integers(256))
    return bytes(changed)


def truncate(content: bytes, draw: Draw) -> bytes:
    """Cut short."""
    return content[: int(draw.integers(len(content) + 1))]


def zero(content: bytes, draw: Draw) -> bytes:
    """A range of zeros, as a disk that failed leaves it."""
    start, end = _ranges(len(content), draw)
    return content[:start] + bytes(end - start) + content[end:]


def duplicate(content: bytes, draw: Draw) -> bytes:
    """A range twice."""
    start, end = _ranges(len(content), draw)
    return content[:end] + content[start:]


def delete(content: bytes, draw: Draw) -> bytes:
    """A range gone."""
    start, end = _ranges(len(content), draw)
    return content[:start] + content[end:]


def insert(content: bytes, draw: Draw) -> bytes:
    """A range of noise."""
    start, end = _ranges(len(content), draw)
    return content[:start] + draw.bytes(end - start) + content[start:]


def extreme(content: bytes, draw: Draw) -> bytes:
    """A number of 1, 2, 4 or 8 bytes, of either order, becomes an extreme one."""
    size, order = 2 ** int(draw.integers(4)), ("little", "big")[int(draw.integers(2))]
    value = EXTREMES[int(draw.integers(len(EXTREMES)))] % 256**size
    start = _place(content, draw)
    return content[:start] + value.to_bytes(size, order) + content[start + size :]  # type: ignore[arg-type]


ANY: tuple[Mutation, ...] = (
    flip_bits, replace_bytes, truncate, zero, duplicate, delete, insert, extreme, extreme,
)  # fmt: skip


def any_way(content: bytes, draw: Draw) -> bytes:
    """One of `ANY`."""
    return ANY[int(draw.integers(len(ANY)))](content, draw)


# Breaking what the formats are made of, so that more than the first check of a decoder is reached.


def break_png(content: bytes, draw: Draw) -> bytes:
    """A chunk is changed, moved, added or dropped, and the checksums are right."""
    chunks: list[tuple[bytes, bytes]] = []
    place = 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return content
    n = int(draw.integers(len(chunks)))
    name, inside = chunks[n]
    match int(draw.integers(7)):
        case 0:
            chunks[n] = name, any_way(inside, draw)
        case 1:
            chunks[0] = chunks[0][0], extreme(chunks[0][1], draw)
        case 2:  # noise below the compression
            try:
                chunks[n] = name, zlib.compress(any_way(zlib.decompress(inside), draw))
            except zlib.error:
                chunks[n] = name, zlib.compress(any_way(bytes(SIZE[0] * SIZE[1]), draw))
        case 3:
            chunks.insert(int(draw.integers(len(chunks) + 1)), chunks[n])
        case 4:
            del chunks[n]
        case 5:
            noise = draw.bytes(int(draw.choice([0, 1, 2, 4, 6, 8, 9, 13, 26, 30, 768])))
            new = PNG_NAMES[int(draw.integers(len(PNG_NAMES)))]
            chunks.insert(1 + int(draw.integers(len(chunks))), (new, noise))
        case _:
            key = PNG_KEYS[int(draw.integers(len(PNG_KEYS)))]
            text = [b"", b"1", b"\xff\xfe", b"12", b"words", bytes(40)][int(draw.integers(6))]
            kind = int(draw.integers(3))
            entry = (
                (b"tEXt", key + b"\0" + text),
                (b"zTXt", key + b"\0\0" + zlib.compress(text)),
                (b"iTXt", key + b"\0\0\0\0\0" + text),
            )[kind]
            chunks.insert(1 + int(draw.integers(len(chunks))), entry)
    return content[:8] + b"".join(chunk(name, inside) for name, inside in chunks)


def break_jpeg(content: bytes, draw: Draw) -> bytes:
    """A segment is changed, renamed, repeated, moved, dropped, or lies about its length."""
    segments: list[bytes] = []
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        length = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        segments.append(content[place : place + length])
        place += length
        if segments[-1][1] == 0xDA:  # after the scan's header come its pixels
            break
    if not segments:
        return content
    n = int(draw.integers(len(segments)))
    segment = segments[n]
    match int(draw.integers(7)):
        case 0:
            segments[n] = segment[:4] + any_way(segment[4:], draw)
        case 1:
            segments[n] = segment[:4] + extreme(segment[4:], draw)
        case 2:
            segments[n] = segment[:1] + bytes([0xC0 + int(draw.integers(0x40))]) + segment[2:]
        case 3:
            segments[n] = segment[:2] + draw.bytes(2) + segment[4:]
        case 4:
            segments.insert(int(draw.integers(len(segments) + 1)), segment)
        case 5:
            del segments[n]
        case _:  # right lengths again
            inside = any_way(segment[4:], draw)[:65533]
            segments[n] = segment[:2] + struct.pack(">H", len(inside) + 2) + inside
    return content[:2] + b"".join(segments) + content[place:]


def break_tiff(content: bytes, draw: Draw) -> bytes:
    """An entry of the first directory gets another tag, type, count or value."""
    order = "<" if content[:2] == b"II" else ">"
    if len(content) < 8 or content[2:4] in (b"+\0", b"\0+"):  # a big TIFF: its directory looks otherwise
        return extreme(content, draw)
    start: int = struct.unpack_from(order + "I", content, 4)[0]
    if start + 2 > len(content):
        return extreme(content, draw)
    count: int = struct.unpack_from(order + "H", content, start)[0]
    place = start + 2 + 12 * int(draw.integers(max(1, count)))
    if place + 12 > len(content):
        return extreme(content, draw)
    tag, kind, number, value = struct.unpack_from(order + "HHII", content, place)
    large = EXTREMES[int(draw.integers(len(EXTREMES)))]
    match int(draw.integers(6)):
        case 0:
            tag = TIFF_TAGS[int(draw.integers(len(TIFF_TAGS)))]
        case 1:
            kind = int(draw.integers(0, 19))
        case 2:
            number = large
        case 3:
            value = large
        case 4:
            value = int(draw.integers(len(content)))
        case _:  # small values: compressions, photometric interpretations, bits
            small = int(
                draw.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 24, 32, 64, 32773, 32946, 34712, 34925, 50000, 50001])
            )
            value = small if kind == 4 or order == "<" else small << 16
    return content[:place] + struct.pack(order + "HHII", tag, kind, number, value) + content[place + 12 :]


OF_FORMAT: dict[str, Mutation] = {"png": break_png, "jpg": break_jpeg, "tif": break_tiff}


def broken(sound: Mapping[str, bytes], draw: Draw) -> tuple[str, bytes]:
    """One to three mutations of one of `sound`, or its first half before the second of another; name and content."""
    name = list(sound)[int(draw.integers(len(sound)))]
    content = sound[name]
    if draw.random() < 0.03:
        other = list(sound.values())[int(draw.integers(len(sound)))]
        return name, content[: int(draw.integers(len(content)))] + other[int(draw.integers(len(other))) :]
    of_format = OF_FORMAT.get(name.rpartition(".")[2])
    for _ in range(int(draw.choice([1, 1, 1, 2, 3]))):
        content = of_format(content, draw) if of_format and draw.random() < 0.6 else any_way(content, draw)
    return name, content
