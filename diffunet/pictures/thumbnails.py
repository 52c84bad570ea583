"""Small copies of pictures that lie within a page, as `data:` addresses."""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from diffunet.errors import DataError
from diffunet.pictures import images

SIDE = 1024
"""The longest side of a thumbnail, in pixels."""

QUALITY = 80
"""WebP's, from 0 to 100."""


class Thumbnail(NamedTuple):
    """A picture as a `data:` address, and its size in pixels."""

    address: str
    width: int
    height: int


def thumbnail(path: Path, most: int) -> Thumbnail:
    """Return a picture file in at most about `most` bytes (base64 makes a third more of them), at least 16 pixels wide.

    A PNG that is small enough comes as it is; of others there is a WebP, made as much smaller as it takes. What has
    been made is kept for as long as the file does not change, since a page is written often.

    Raises:
        DataError: the file is missing, is no picture, or is damaged.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from None
    return _made(path, status.st_mtime_ns, status.st_size, most)


@lru_cache(256)
def _made(path: Path, changed: int, size: int, most: int) -> Thumbnail:
    content = images.read_bytes(path)
    with images.decoding(content, name=path.name) as decoded:
        return _encoded(decoded.image, decoded.format, content, most)


def _encoded(image: Image.Image, kind: str, content: bytes, most: int) -> Thumbnail:
    width, height = image.size
    if kind == "PNG" and len(content) <= most and max(width, height) <= SIDE:
        return Thumbnail(_address("png", content), width, height)
    pixels = images.to_array(image, 4 if image.has_transparency_data else 3)
    side = min(max(width, height), SIDE)
    while True:
        scale = side / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture, small = images.from_array(images.resize(pixels, size[1], size[0])), io.BytesIO()
        picture.save(small, "WEBP", quality=QUALITY, method=2)
        if len(small.getvalue()) <= most or side <= 16:
            return Thumbnail(_address("webp", small.getvalue()), *size)
        side = max(16, int(side * min(0.9, (most / len(small.getvalue())) ** 0.5)))


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
