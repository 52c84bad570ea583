"""Opening pictures: from the bytes of a file to an upright image of Pillow, or the reason why there is none."""

from __future__ import annotations

import contextlib
import io
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from diffunet.errors import DataError
from diffunet.pictures import deep, notes
from diffunet.pictures.formats import FORMATS

MAX_PIXELS, MAX_BYTES = 200_000_000, 2**30  # the most of an image and of its file that are read
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes an image upright, by its EXIF orientation; from 5 on, width and height change places."""
LARGE = 2**25  # pixels; larger images are decoded one at a time, see `decoding`
_large, _pillow_cap = threading.Lock(), threading.Lock()


class Decoded(NamedTuple):
    """A decoded image, and the size (after the EXIF rotation, before `draft`), mode and format of its file."""

    image: Image.Image
    width: int
    height: int
    mode: str
    format: str


def open_image(source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, draft: int | None = None) -> Image.Image:
    """Return the first frame of a file (or of its bytes), decoded, turned as its EXIF says, in the mode of the file.

    Without `draft`, its `info` holds what the file says beside the pixels and the low bytes of colours of 16 bits; see
    `notes` and `deep`. With `draft`, which is the short side in pixels that is wanted, a JPEG is decoded at 1/2, 1/4 or
    1/8 of its size where neither side falls below that, which is much faster.

    Raises:
        DataError: The file cannot be decoded; the message is the reason on one line, without the file's name.
    """
    with decoding(source, max_pixels=max_pixels, draft=draft) as decoded:
        return decoded.image


@contextlib.contextmanager
def decoding(
    source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, draft: int | None = None
) -> Iterator[Decoded]:
    """Do as `open_image` for the time of a `with`, and yield the image with the size, mode and format of its file.

    Of large images only one is open at a time in all threads: one of 200 million pixels takes 2 to 4 GiB as an array.
    """
    content = source if isinstance(source, bytes) else read_bytes(Path(source))
    if not content:
        raise DataError("empty file")
    with contextlib.ExitStack() as alone:
        with reasons("decode", "damaged"):
            decoded = _decode(content, max_pixels, draft, alone)
        yield decoded


@contextlib.contextmanager
def reasons(task: str, failure: str) -> Iterator[None]:
    """Raise every error as DataError, since on bad files Pillow raises anything from struct.error to RecursionError."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not an image, or one of an unknown format") from None
    except MemoryError:
        raise DataError(f"too little memory to {task} it") from None
    except Exception as error:
        raise DataError(f"{failure}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """Return what an error says on one line of at most 160 characters."""
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
    return " ".join(text.split())[:160]


def read_bytes(path: Path) -> bytes:
    """Return the content of an ordinary file of at most 1 GiB, or raise DataError with the reason on one line."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError("is a folder")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError("not an ordinary file")
        if status.st_size > MAX_BYTES:
            raise DataError("larger than 1 GiB")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError("no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"cannot be read: {one_line(error)}") from None


def _decode(content: bytes, max_pixels: int, draft: int | None, alone: contextlib.ExitStack) -> Decoded:
    with own_pixel_cap():
        image: Image.Image = Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    (width, height), mode = image.size, image.mode
    if width * height > max_pixels:
        raise DataError(f"too large: {width} x {height} pixels, at most {max_pixels:,} are read")
    if draft is not None:
        image.draft(None, (draft, draft))  # type: ignore[arg-type,unused-ignore]
    drafted, is_deep = image.size, deep.is_deep(image)
    if image.width * image.height > LARGE:
        alone.enter_context(_large)
    with own_pixel_cap() if width * height > LARGE else contextlib.nullcontext():
        image.load()
    if image.mode == "P" and image.palette is None:
        raise DataError("damaged: it has no palette")
    if isinstance(image.info.get("transparency"), str):  # a text of a PNG, which may have that name
        del image.info["transparency"]
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO is several JPEGs in one file, from a phone
    turned_by_pillow = image.size != drafted  # as a TIFF is while it loads
    orientation = 1
    with contextlib.suppress(Exception):  # the picture is sound, only what is said about it is not
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    turn = _TURNS.get(orientation)
    turned = image if turn is None else image.transpose(turn)
    if draft is None:
        notes.put(turned, notes.cleaned(image))
        if is_deep:
            with own_pixel_cap():
                low = deep.take_low(Image.open(io.BytesIO(content), formats=tuple(FORMATS)))
            turned.info[deep.LOW] = low if low is None or turn is None else low.transpose(turn)
    if turned_by_pillow or 5 <= orientation <= 8:
        width, height = height, width
    return Decoded(turned, width, height, mode, kind)


@contextlib.contextmanager
def own_pixel_cap() -> Iterator[None]:
    """Lift Pillow's global limit of pixels for a moment, since `max_pixels` is checked instead."""
    with _pillow_cap:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
