"""Functions that open, convert, resize and save pictures. They alone know their files and the nets' range [-1, 1].

Shapes: B images, C channels (1 grey, 3 RGB, 4 RGBA), H rows, W columns. Arrays are uint8 [H W C] or [B H W C] in
0..255, tensors float32 [B C H W] in [-1, 1].
"""

from __future__ import annotations

import contextlib
import io
import math
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from diffunet import files
from diffunet.errors import DataError, ResourceError, UsageError
from diffunet.pictures import deep, notes
from diffunet.pictures.formats import FORMATS

if TYPE_CHECKING:  # what reads a folder of images does without torch, which takes seconds to import
    from torch import Tensor

MAX_PIXELS, MAX_BYTES = 200_000_000, 2**30  # the most of an image and of its file that are read
WHITE = (255, 255, 255)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for each number of channels
Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]  # RGB, 0..255
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What makes an image upright, by its EXIF orientation; from 5 on, width and height change places."""
LARGE = 2**25  # pixels; larger images are decoded one at a time, see `decoding`
_STRIP = 2**22  # pixels that are converted at a time
_large, _pillow_cap = threading.Lock(), threading.Lock()
_KINDS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF",
}  # fmt: skip
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # exact: colours under alpha 0 are kept too
    "TIFF": {"compression": "tiff_lzw"},
}
_LOSSY = ("JPEG", "GIF")  # a GIF holds 256 colours
_COMMON = ("1", "L", "P", "LA", "RGB", "RGBA")
_HOLDS = {
    "PNG": (*_COMMON, "I;16"), "JPEG": ("1", "L", "RGB", "CMYK"), "WEBP": _COMMON, "BMP": ("1", "L", "P", "RGB"),
    "GIF": _COMMON,
}  # fmt: skip
"""The modes that a format holds; a TIFF holds all. Of some other modes Pillow would silently write less."""


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
        with _reasons("decode", "damaged"):
            decoded = _decode(content, max_pixels, draft, alone)
        yield decoded


@contextlib.contextmanager
def _reasons(task: str, failure: str) -> Iterator[None]:
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
        raise DataError(f"{failure}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
    return " ".join(text.split())[:160]


def _converting(image: Image.Image) -> contextlib.AbstractContextManager[None]:
    return _reasons("convert", f"cannot be converted from mode {image.mode}")


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
        raise DataError(f"cannot be read: {_one_line(error)}") from None


def _decode(content: bytes, max_pixels: int, draft: int | None, alone: contextlib.ExitStack) -> Decoded:
    with _own_pixel_cap():
        image: Image.Image = Image.open(io.BytesIO(content), formats=tuple(FORMATS))
    (width, height), mode = image.size, image.mode
    if width * height > max_pixels:
        raise DataError(f"too large: {width} x {height} pixels, at most {max_pixels:,} are read")
    if draft is not None:
        image.draft(None, (draft, draft))  # type: ignore[arg-type,unused-ignore]
    drafted, is_deep = image.size, deep.is_deep(image)
    if image.width * image.height > LARGE:
        alone.enter_context(_large)
    with _own_pixel_cap() if width * height > LARGE else contextlib.nullcontext():
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
            with _own_pixel_cap():
                low = deep.take_low(Image.open(io.BytesIO(content), formats=tuple(FORMATS)))
            turned.info[deep.LOW] = low if low is None or turn is None else low.transpose(turn)
    if turned_by_pillow or 5 <= orientation <= 8:
        width, height = height, width
    return Decoded(turned, width, height, mode, kind)


@contextlib.contextmanager
def _own_pixel_cap() -> Iterator[None]:
    """Lift Pillow's global limit of pixels for a moment, since `max_pixels` is checked instead."""
    with _pillow_cap:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def to_array(image: Image.Image, channels: int, background: Colour = WHITE, white: float | None = None) -> Pixels:
    """Return any Pillow image as uint8 [H W C] with C = `channels`, 1 (grey), 3 (RGB) or 4 (RGBA).

    With 1 or 3 channels a transparent image is laid over `background` (RGB, 0..255), before it is made grey. With 4
    channels alpha is kept; it is 255 where there is none. 16-bit values are divided by 257 and rounded. 32-bit integers
    and floats are scaled so that the value `white` becomes 255; by default it is what the function `white` returns. An
    image that Pillow cannot convert to RGB raises DataError.
    """
    assert channels in MODES, channels
    with _converting(image):
        white = _white(image) if white is None else white
        array = np.empty((image.height, image.width, channels), np.uint8)
        for top, strip in _strips(image):
            array[top : top + strip.height] = _to_array(strip, channels, background, white)
        return array


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the image in strips, each with its first row, since converting a piece takes many times its memory."""
    if (rows := max(1, _STRIP // max(1, image.width))) >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        with _own_pixel_cap():
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        yield top, strip


def _to_array(image: Image.Image, channels: int, background: Colour, white: float) -> Pixels:
    alpha, image = _alpha(image), _eight_bits(image, white)
    if channels == 4:
        colours = np.asarray(_rgb(image))
        return np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8) if alpha is None else np.asarray(alpha)])
    if alpha is not None:
        flat = Image.new("RGB", image.size, background)
        flat.paste(_rgb(image), mask=alpha)
        image = flat
    if channels == 3:
        return np.asarray(_rgb(image))
    return np.asarray((image if image.mode in ("1", "L") else _rgb(image)).convert("L"))[..., None]


def has_alpha(image: Image.Image) -> bool:
    """Return whether any pixel of the image is not opaque, or raise DataError where that cannot be read."""
    with _converting(image):
        alphas = (_alpha(strip) for _, strip in _strips(image))
        return any(alpha is not None and alpha.getextrema()[0] != 255 for alpha in alphas)


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return alpha in mode L, or None where the mode has none and no colour is declared transparent."""
    if not image.has_transparency_data:
        return None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return image.getchannel(len(image.getbands()) - 1)
    if image.mode == "P":
        return image.convert("RGBA").getchannel("A")
    key, values = np.atleast_1d(np.asarray(image.info["transparency"])), np.asarray(image)
    if image.mode == "1":
        key = key > 0
    elif not image.mode.startswith("I") and key.max() > 255:  # the colour has 16 bits, of which Pillow kept 8
        key = key >> 8
    values = values.reshape(*values.shape[:2], -1)
    if key.size != values.shape[2]:
        raise DataError("damaged: its transparent colour does not fit its mode")
    return Image.fromarray(np.where((values == key).all(axis=2), np.uint8(0), np.uint8(255)))


def _eight_bits(image: Image.Image, white: float) -> Image.Image:
    """Return an image of grey with more than 8 bits in mode L. Pillow's own conversion would clip it at 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    return Image.fromarray(np.rint(_finite(image) * (255.0 / white)).clip(0, 255).astype(np.uint8))


def white(image: Image.Image) -> float:
    """Return the value that stands for white in an image of mode I or F, and 255 for other modes.

    It is 1 for floats of which none is above 1, 255 where no pixel is above 255, 65,535 where none is above that, and
    else the largest value in the image. An image that cannot be read raises DataError.
    """
    if image.mode not in ("I", "F"):
        return 255.0
    with _converting(image):
        top = max(float(_finite(strip).max()) for _, strip in _strips(image))
    fulls = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((full for full in fulls if top <= full), top)


_white = white  # for `to_array`, which has a parameter of that name


def _finite(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)


def _rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB. Alpha is dropped, and colours that were multiplied by it are divided by it."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert converted is not None
        return converted
    # P by way of RGBA, or Pillow warns about its transparency, which `_alpha` deals with.
    if between := {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}.get(image.mode):
        image = image.convert(between)
    return image if image.mode == "RGB" else image.convert("RGB")


def from_array(array: Pixels) -> Image.Image:
    """Return uint8 [H W C] with C 1, 3 or 4 as a Pillow image of mode L, RGB or RGBA."""
    assert array.dtype == np.uint8, array.dtype
    assert array.shape[2:] in {(c,) for c in MODES}, array.shape
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def to_float(array: Pixels | Tensor) -> Tensor:
    """Return uint8 [B H W C], an array or a tensor, as float32 [B C H W] in [-1, 1] on the same device."""
    import torch

    if isinstance(array, np.ndarray):
        array = torch.from_numpy(array if array.flags.writeable else array.copy())
    return array.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 127.5 - 1


def to_uint8(x: Tensor) -> Pixels:
    """Return [B C H W] in [-1, 1] as uint8 [B H W C], rounded and clamped."""
    import torch

    scaled = ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def background_of(background: Colour, channels: int) -> tuple[int, ...]:
    """Return `background` (RGB) for an image of 1, 3 or 4 channels: as grey, as it is, or with alpha 0."""
    if channels == 1:
        return (int(to_array(Image.new("RGB", (1, 1), background), 1)[0, 0, 0]),)
    return background if channels == 3 else (*background, 0)


def resize(array: Pixels, height: int, width: int) -> Pixels:
    """Return uint8 [H W C] resized to [height width C] by an antialiased bicubic filter, or itself if it has that size.

    Colours of RGBA are weighted by alpha, so that those of transparent pixels do not bleed into the others.
    """
    if array.shape[:2] == (height, width):
        return array
    resized = from_array(array).resize((width, height), Image.Resampling.BICUBIC)  # Pillow multiplies by alpha itself
    return to_array(resized, array.shape[2])


def grid(images: Sequence[Pixels], columns: int | None = None, pad: int = 2) -> Image.Image:
    """Return equally large images, uint8 [H W C], row by row in one picture, with `pad` white pixels around each.

    Without `columns` it has about as many rows as columns. No images at all raise UsageError.
    """
    if not len(images):
        raise UsageError("there are no images to lay out in a grid")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    height, width, channels = images[0].shape
    canvas = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 255, np.uint8)
    for n, image in enumerate(images):
        top, left = pad + n // columns * (height + pad), pad + n % columns * (width + pad)
        canvas[top : top + height, left : left + width] = image
    return from_array(canvas)


def is_lossless(path: Path) -> bool:
    """Return whether `save` under this name keeps every pixel as it is, or raise UsageError for other extensions."""
    return _kind_of(path) not in _LOSSY


def save(image: Image.Image, path: Path) -> None:
    """Write `image` in the format that the extension names; `path` then holds all of it, or what it held before.

    The colour profile, EXIF, XMP and resolution in `image.info` are written where the format can hold them.

    Raises:
        UsageError: The extension is not known, or the format cannot hold this image: JPEG and BMP hold no
            transparency, and most formats no more than 8 bits a colour and no CMYK.
        ResourceError: The disk is full or the folder cannot be written.
    """
    kind = _kind_of(path)
    if kind in ("JPEG", "BMP") and image.has_transparency_data:  # no reader looks for the alpha of a BMP
        raise UsageError(f"{path}: a {kind} file holds no transparency; use .png, .webp or .tif")
    if kind == "TIFF" and "transparency" in image.info and image.mode == "I;16":
        raise UsageError(f"{path}: a TIFF file holds no transparent colour; use .png")
    if image.mode not in _HOLDS.get(kind, (image.mode,)):
        other = ".png or .tif" if image.mode in _HOLDS["PNG"] else ".tif"
        raise UsageError(f"{path}: a {kind} file holds no image of mode {image.mode}; use {other}")
    low = None if kind in _LOSSY else deep.low_of(image)
    if low is not None and kind != "PNG":
        raise UsageError(f"{path}: this image has 16 bits a colour, and would have 8 as {kind}; use .png")
    encoded = io.BytesIO()
    try:
        options = _OPTIONS.get(kind, {}) | notes.options(image, kind)
        if low is None:
            image.save(encoded, kind, **options)
        else:
            encoded.write(deep.png(image, low, options))
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: cannot be written as {kind}, use .png: {_one_line(error)}") from None
    try:
        files.write_atomic(path, encoded.getvalue())
    except OSError as error:
        size = len(encoded.getvalue()) / 1e6
        raise ResourceError(f"{path}: {size:.2f} MB cannot be written: {_one_line(error)}; make room") from None


def _kind_of(path: Path) -> str:
    if (extension := path.suffix.lower()) not in _KINDS:
        raise UsageError(f"{path}: the name must end in one of {' '.join(_KINDS)}")
    return _KINDS[extension]
