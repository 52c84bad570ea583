"""Images of more than 8 bits; of colours of 16 bits Pillow reads only the high bytes, and writes none.

When an image of mode RGB or RGBA is read from such a file, `info[LOW]` holds a second image of the same mode and size
with the low bytes, or None where they could not be read. Grey images have a mode of their own; where they are stored as
a negative, `info[WHITE_IS_ZERO]` is true.
"""

import io
import re
import struct
import sys
import zlib
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOW = "low bytes"
WHITE_IS_ZERO = "white is zero"

Kind = Literal["integers", "floats"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_OTHER_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def is_deep(image: Image.Image) -> bool:
    """Return whether an image that is opened but not loaded has 16 bits a colour, of which Pillow will keep 8."""
    return ";16" in _raw_mode(image) and not image.mode.startswith("I")


def is_cut(kind: str | None, content: bytes) -> bool:
    """Return whether a file of one of the formats that Pillow cuts to 8 bits a colour has more of them."""
    if kind == "PPM":
        numbers = re.match(rb"P[36](?:\s+|#[^\n]*\n)+" + rb"(\d+)(?:\s+|#[^\n]*\n)+" * 3, content[:10_000])
        return numbers is not None and int(numbers[3]) > 255
    if kind == "JPEG2000":  # the marker of the size has the bits of each component, less one, from its byte 38 on
        place = content.find(b"\xff\x4f\xff\x51") + 2
        components, first = content[place + 38 : place + 40], content[place + 40 : place + 41]
        return place > 1 and int.from_bytes(components, "big") > 1 and bool(first) and first[0] & 0x7F > 7
    if kind == "AVIF":
        place = content.find(b"av1C")
        return place > 0 and bool(content[place + 6 : place + 7]) and bool(content[place + 6] & 0x40)
    return False


def take_low(image: Image.Image) -> Image.Image | None:
    """Return the low bytes of a deep image that is opened but not loaded, or None for a rare layout of its pixels.

    The image that is passed in is of no use afterwards.
    """
    raw = _raw_mode(image)
    if raw == "LA;16B":  # read as RGBA, the four bytes of a pixel are grey high, grey low, alpha high, alpha low
        _set_raw_mode(image, "RGBA")
        image.load()
        _, grey, _, alpha = image.split()
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    if raw[:-1] not in ("RGB;16", "RGBX;16", "RGBA;16"):
        return None
    _set_raw_mode(image, raw[:-1] + _OTHER_BYTES[raw[-1]])
    image.load()
    return image


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the layout of the file's pixels, or "" where it has none."""
    tiles = getattr(image, "tile", None)
    args: Any = tiles[0].args if tiles else ""
    return str(args if isinstance(args, str) else args[0] if args else "")


def _set_raw_mode(image: Any, raw: str) -> None:
    image.tile = [t._replace(args=raw if isinstance(t.args, str) else (raw, *t.args[1:])) for t in image.tile]


def low_of(image: Image.Image) -> Image.Image | None:
    """Return the low bytes of an image, or None where there are none or they no longer fit its mode and size."""
    low = image.info.get(LOW)
    return low if isinstance(low, Image.Image) and (low.mode, low.size) == (image.mode, image.size) else None


def kind_of(image: Image.Image) -> Kind | None:
    """Return what the values of an image of more than 8 bits are, or None for an image that has 8 bits or fewer."""
    if image.mode == "F":
        return "floats"
    return "integers" if image.mode.startswith("I") or low_of(image) is not None else None


def values_of(image: Image.Image) -> NDArray[Any]:
    """Return the values of an image, alpha among them, [H W] or [H W C], in all the bits that are known of them."""
    values = np.asarray(image)
    low = low_of(image)
    return values if low is None else values.astype(np.uint16) << 8 | np.asarray(low)


def from_values(values: NDArray[Any], mode: str) -> Image.Image:
    """Return the values [H W] or [H W C] of a mode as an image of it; those of colours may have 16 bits."""
    if mode not in ("RGB", "RGBA") or values.dtype == np.uint8:
        data = values.astype("<u2") if mode == "I;16" else values
        return Image.frombytes(mode, (values.shape[1], values.shape[0]), data.tobytes())
    image, low = (Image.fromarray(np.ascontiguousarray(part.astype(np.uint8))) for part in (values >> 8, values & 255))
    image.info[LOW] = low
    return image


def crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Return a rectangle (left, top, right, bottom) of an image, with its low bytes."""
    part = image.crop(box)
    if (low := low_of(image)) is not None:
        part.info[LOW] = low.crop(box)
    return part


def paste(image: Image.Image, part: Image.Image, place: tuple[int, int]) -> None:
    """Put `part` into an image in place, left and top at `place`, with its low bytes where both have them."""
    image.paste(part, place)
    if (low := low_of(image)) is not None and (new := low_of(part)) is not None:
        low = image.info[LOW] = low.copy()  # which a copy of the image has, too
        low.paste(new, place)


def png(image: Image.Image, low: Image.Image, options: dict[str, Any]) -> bytes:
    """Return the bytes of a PNG with 16 bits a channel. Pillow writes all but the pixels, with these `options`."""
    frame = io.BytesIO()
    Image.new(image.mode, (1, 1)).save(frame, "PNG", **options)
    rows = np.stack([np.asarray(image), np.asarray(low)], axis=-1).reshape(image.height, -1)
    rows[1:] -= rows[:-1].copy()  # PNG's filter 2: a row is stored as its difference to the one above
    lines = zlib.compress(np.insert(rows, 0, 2, axis=1).tobytes())
    small, place = frame.getvalue(), 8  # behind the signature
    written = [small[:place]]
    while place < len(small):
        (length,), name = struct.unpack_from(">I", small, place), small[place + 4 : place + 8]
        content = small[place + 8 : place + 8 + length]
        place += length + 12
        if name == b"IHDR":
            content = struct.pack(">IIB", *image.size, 16) + content[9:]
        elif name == b"IDAT":
            content = lines
        written.append(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))
    return b"".join(written)
