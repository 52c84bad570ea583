"""Opening pictures: from the bytes of a file to an upright image of Pillow, or the reason why there is none."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from diffunet.errors import DataError, UsageError
from diffunet.pictures import deep, formats, notes

MAX_PIXELS, MAX_BYTES = 200_000_000, 2**30  # the most of an image and of its file that are read
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes an image upright, by its EXIF orientation; from 5 on, width and height change places."""
LARGE = 2**25  # pixels; larger images are decoded one at a time, see `decoding`
_FRAME = 38  # bytes of the chunk fcTL, which each frame of an APNG has
_PHOTOMETRIC, _BANDS, _EXTRA, _SAMPLES, _SUBFILE = 262, 277, 338, 339, 254  # tags of a TIFF
_ALPHA = (1, 2, 999)  # values of `_EXTRA`; 999 is Corel Draw's
_PNG, _TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt")
_large, _pillow_cap = threading.Lock(), threading.Lock()


class TooLarge(DataError):
    """An image has more pixels than are read."""


class Decoded(NamedTuple):
    """A decoded image, and what its header says.

    That is the size (after the EXIF rotation, before `draft`), the mode and the format of its file; how many pages the
    file has; and how many bands the image has beside colours and alpha, which are not read.
    """

    image: Image.Image
    width: int
    height: int
    mode: str
    format: str
    pages: int
    bands: int


def open_image(
    source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, draft: int | None = None, page: int = 0
) -> Image.Image:
    """Return the first frame of a file (or of its bytes), or `page`, decoded, turned as its EXIF says, in its mode.

    Without `draft`, its `info` holds what the file says beside the pixels; see `notes`. It also holds the low bytes of
    colours of 16 bits, see `deep`. With `draft`, which is the short side in pixels that is wanted, a JPEG is decoded at
    1/2, 1/4 or 1/8 of its size where neither side falls below that, which is much faster.

    Raises:
        DataError: The file cannot be decoded; the message is the reason on one line, without the file's name.
    """
    with decoding(source, max_pixels=max_pixels, draft=draft, page=page) as decoded:
        return decoded.image


@contextlib.contextmanager
def decoding(
    source: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, draft: int | None = None, page: int = 0,
    name: str = "", reading: int = 2,
) -> Iterator[Decoded]:  # fmt: skip
    """Do as `open_image` for the time of a `with`, and yield the image with what its header says.

    Of large images only one is open at a time in all threads: one of 200 million pixels takes 2 to 4 GiB as an array.

    Args:
        source, max_pixels, draft, page: as for `open_image`. Pages are counted from 0, as `pages_of` gives them.
        name: of the file, where `source` is its bytes; only TGA is told by it.
        reading: 1 reads as diffunet 0.1 did: without low bytes where there is `draft`, and without a look at what a
            TIFF says of its bands.
    """
    content = source if isinstance(source, bytes) else read_bytes(Path(source))
    if not content:
        raise DataError("empty file")
    name = name if isinstance(source, bytes) else str(source)
    with contextlib.ExitStack() as alone:
        with reasons("decode", "damaged"):
            decoded = _first_readable(content, alone, max_pixels, draft, page, name, reading)
        yield decoded


@contextlib.contextmanager
def reasons(task: str, failure: str) -> Iterator[None]:
    """Raise every error as DataError, since on bad files Pillow raises anything from struct.error to RecursionError."""
    try:
        yield
    except DataError:
        raise
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


def header(source: bytes | Path, name: str = "", page: int = 0) -> Image.Image:
    """Return an image that is opened but not decoded, from its bytes or its file.

    It raises UnidentifiedImageError, or anything else, for other files. The global limit of pixels, see
    `own_pixel_cap`, has to be lifted.
    """
    content, name = (source, name) if isinstance(source, bytes) else (_ends(source), source.name)
    file = io.BytesIO(content) if isinstance(source, bytes) else source
    image: Image.Image = Image.open(file, formats=formats.to_try(content, name))
    if page:
        image.seek(page)
    return image


def _ends(path: Path) -> bytes:
    """Return the beginning and the end of a file, by which its format is told."""
    with path.open("rb") as file:
        start = file.read(64)
        file.seek(-min(18, len(start)), 2)
        return start + file.read()


def pages_of(image: Image.Image) -> list[int]:
    """Return the places of the pages of an image that was just opened: frames, layers of a stack, pages of a scan.

    Previews and smaller copies are none: those of a TIFF that says so, and what phones put behind a JPEG (MPO).
    """
    count = int(getattr(image, "n_frames", 1)) if image.format in ("GIF", "TIFF", "WEBP", "PNG", "AVIF") else 1
    file: Any = getattr(image, "fp", None)
    if image.format == "PNG" and count > 1 and file is not None:
        # A number in the header, which may be damaged and then mean billions: each frame takes so many bytes at least.
        place, size = file.tell(), file.seek(0, 2)
        file.seek(place)
        count = min(count, 1 + size // _FRAME)
    if image.format != "TIFF" or count == 1:
        return list(range(count))
    places = []
    for place in range(count):
        image.seek(place)
        tags: Any = image
        if not int(tags.tag_v2.get(_SUBFILE, 0)) & 0b101:  # reduced, or a mask of transparency
            places.append(place)
    image.seek(0)
    return places or [0]


def page_places(source: Path | bytes, name: str = "") -> list[int]:
    """Return the places of the pages of a file or of its bytes, see `pages_of`; [0] where it cannot be opened."""
    with contextlib.suppress(Exception):
        if isinstance(source, Path):  # of which most formats read the header alone
            try:
                with own_pixel_cap(), header(source) as image:
                    return pages_of(image)
            except ValueError:
                return page_places(read_bytes(source), source.name)
        for content in _tries(source):
            with contextlib.suppress(ValueError), own_pixel_cap():
                return pages_of(header(content, name))
    return [0]


def _pages(image: Image.Image, content: bytes, name: str) -> int:
    """Return how many pages the file of an image has."""
    if image.format not in ("GIF", "TIFF"):  # of which the header does not say it
        return len(pages_of(image))
    return len(page_places(content, name))


def _tries(content: bytes) -> Iterator[bytes]:
    """Yield the content of a file, then of a PNG less its texts, and less its profile: they may be too long to read."""
    yield content
    if content.startswith(_PNG):
        for left_out in (_TEXTS, (*_TEXTS, b"iCCP")):
            place, kept = len(_PNG), [_PNG]
            while place + 8 <= len(content):
                (length,), kind = struct.unpack_from(">I", content, place), content[place + 4 : place + 8]
                if kind not in left_out:
                    kept.append(content[place : place + length + 12])
                place += length + 12
            yield b"".join(kept)


def _first_readable(content: bytes, alone: contextlib.ExitStack, *arguments: Any) -> Decoded:
    """Return the first of `_tries` that can be decoded, or raise the error of the last."""
    failure: ValueError | None = None
    try:
        for each in _tries(content):
            try:
                with contextlib.ExitStack() as stack:
                    decoded = _decode(each, stack, *arguments)
                    alone.enter_context(stack.pop_all())
                    return decoded
            except ValueError as error:  # what Pillow raises for a text or a profile that is too long
                failure = error
    except UnidentifiedImageError:
        raise DataError(formats.reason(content)) from None
    assert failure is not None
    raise failure


def _decode(
    content: bytes, alone: contextlib.ExitStack, max_pixels: int, draft: int | None, page: int, name: str, reading: int
) -> Decoded:
    with own_pixel_cap():
        image = header(content, name, page)
    (width, height), mode = image.size, image.mode
    if width * height > max_pixels:
        raise TooLarge(f"too large: {width} x {height} pixels, at most {max_pixels:,} are read")
    pages = 1 if page else _pages(image, content, name)
    if draft is not None:
        image.draft(None, (draft, draft))  # type: ignore[arg-type,unused-ignore]
    drafted, is_deep = image.size, deep.is_deep(image)
    if image.width * image.height > LARGE:
        alone.enter_context(_large)
    with own_pixel_cap() if page or width * height > LARGE else contextlib.nullcontext():
        image.load()
    if image.mode == "P" and image.palette is None:
        raise DataError("damaged: it has no palette")
    if isinstance(image.info.get("transparency"), str):  # a text of a PNG, which may have that name
        del image.info["transparency"]
    if (
        reading > 1
        and mode == "L"
        and image.format == "PNG"
        and (bits := content[24]) < 8
        and "transparency" in image.info
    ):
        image.info["transparency"] *= 255 // (2**bits - 1)  # as Pillow has multiplied the pixels
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO is several JPEGs in one file, from a phone
    turned_by_pillow = image.size != drafted  # as a TIFF is while it loads
    orientation = 1
    with contextlib.suppress(Exception):  # the picture is sound, only what is said about it is not
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    turn = _TURNS.get(orientation)
    turned = image if turn is None else image.transpose(turn)
    if draft is None:
        notes.put(turned, notes.cleaned(image))
    if is_deep and (draft is None or reading > 1):
        with own_pixel_cap():
            low = deep.take_low(header(content, name, page))
        turned.info[deep.LOW] = low if low is None or turn is None else low.transpose(turn)
    elif draft is None and deep.is_cut(image.format, content):
        turned.info[deep.LOW] = None
    bands = 0
    if reading > 1:
        turned, bands = as_its_tags_say(turned, image)
    if kind == "PPM" and turned.mode == "I":  # Pillow gives 16 bits as 32
        turned = _changed(turned, Image.fromarray(np.asarray(turned).astype(np.uint16)))
    if turned_by_pillow or 5 <= orientation <= 8:
        width, height = height, width
    return Decoded(turned, width, height, mode, kind, pages, bands)


def as_its_tags_say(image: Image.Image, opened: Image.Image) -> tuple[Image.Image, int]:
    """Return an image that was `opened` as a TIFF says, and how many bands it has beside colours and alpha.

    A fourth band that is not said to be alpha, such as near infrared, is none. Eight bits with a sign get their sign.
    Where zero is white, which Pillow sees to for up to 8 bits alone, that is noted.
    """
    tags: Any = getattr(opened, "tag_v2", None)
    if opened.format != "TIFF" or tags is None:
        return image, 0
    photometric, extra = tags.get(_PHOTOMETRIC), tags.get(_EXTRA, ())
    bands = int(tags.get(_BANDS, 1)) - {2: 3, 5: 4, 6: 3, 8: 3}.get(photometric, 1)
    alpha = any(what in _ALPHA for what in extra)
    if image.mode == "RGBA" and not alpha:
        low = deep.low_of(image)
        image = _changed(image, image.convert("RGB"))
        if low is not None:
            image.info[deep.LOW] = low.convert("RGB")
    if image.mode == "L" and tags.get(_SAMPLES, (1,))[0] == 2:
        image = _changed(image, Image.fromarray(np.asarray(image).view(np.int8).astype(np.int32)))
    if photometric == 0 and deep.kind_of(image):
        image.info[deep.WHITE_IS_ZERO] = True
    return image, max(0, bands - alpha)


def _changed(image: Image.Image, converted: Image.Image) -> Image.Image:
    """Return the `converted` image with what is said of the other."""
    converted.info = dict(image.info)
    return converted


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


def place_of_page(content: bytes, filename: str, page: int | None, name: str, *, one_for_all: bool = False) -> int:
    """Return the place of the page that is meant in a file: its only one, or number `page`, from 1 on.

    With `one_for_all` the only page is meant whatever number is given, as of a mask for each page of an image.

    Raises:
        UsageError: the file, which messages call `name`, has several pages and none is given, or not so many.
    """
    places = page_places(content, filename)
    if page is None and len(places) > 1:
        raise UsageError(
            f"{name} has {len(places)} pages or frames, and one picture is filled in at a time: page 1 to "
            f"{len(places)} (--page) takes one of them, and the result is that one alone"
        )
    if one_for_all and len(places) == 1:
        page = None
    if page is not None and not 1 <= page <= len(places):
        raise UsageError(f"{name} has {len(places)} page{'s' * (len(places) > 1)}, and there is no page {page}")
    return places[(page or 1) - 1]
