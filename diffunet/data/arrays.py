"""Images in the arrays of an .npz or .npy file. As files they are PNGs, whose bytes depend on the pixels alone."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from diffunet.data import splits
from diffunet.data.index import Paths
from diffunet.data.listing import LeftOut, Listing, composed, printable
from diffunet.errors import DataError
from diffunet.pictures.images import Pixels
from diffunet.pictures.ranges import UNKNOWN, Range, Ranges

_PARTS = "|".join(name for names in splits.KINDS.values() for name in names)
_NAME = r"(?:(?P<before>{parts})[_-])?(?:{what})(?:[_-](?P<after>{parts}))?"
_IMAGES = re.compile(_NAME.format(parts=_PARTS, what="images?|imgs?|x|data|pixels|samples|arr_0"), re.IGNORECASE)
_LABELS = re.compile(_NAME.format(parts=_PARTS, what="labels?|y|targets?|class(?:es)?|fine_labels"), re.IGNORECASE)
_NAMES = ("class_names", "label_names", "names")
_COLOURS = (1, 3, 4)
_BITS = (8, 10, 12, 14, 16)
_CLIPPED = 1e-4  # the share of values that may be beyond white, or at each end of a range that is none of the usual
_SAMPLE = 10_000_000  # values of which a range is found
_NOT_USED = "; --data.range has no effect on them"


class Part(NamedTuple):
    """The images of one array, [N H W C] of its own type, the range that becomes 0 to 255, and the prefix of paths."""

    images: NDArray[Any]
    low: float
    high: float
    prefix: str


class Arrays:
    """Images in arrays: image 17 of 2,000 is 0017.png, and that of an array for training train/0017.png.

    `ranges` has which of their values are black and white, where these are not 0 and 255.
    """

    in_processes = False  # each would read all of the file

    def __init__(self, root: Path, parts: list[Part], classes: dict[str, str] | None, ranges: Ranges) -> None:
        self.root, self.classes, self.ranges = root, classes, ranges
        self._parts = {part.prefix: part for part in parts}
        self._time = root.stat().st_mtime_ns

    def read(self, path: str) -> bytes:
        """Return an image as a PNG, as `Source.read`."""
        folder, slash, name = path.rpartition("/")
        try:
            part, number = self._parts[folder + slash], int(name.removesuffix(".png"))
            if number < 0:
                raise IndexError
            return png(eight_bits(part.images[number], part.low, part.high))
        except (KeyError, ValueError, IndexError):
            raise DataError("no such image in the array") from None

    def stamp(self, path: str) -> tuple[int, int]:
        """Return its size and the time of change of the file, as `Source.stamp`."""
        folder, slash, _ = path.rpartition("/")
        part = self._parts.get(folder + slash)
        return (0, 0) if part is None else (part.images[0].nbytes, self._time)

    def stamps(self, paths: Paths) -> NDArray[np.int64]:
        """Return the stamps of images, as `Source.stamps`."""
        return np.fromiter(map(self.stamp, paths), np.dtype((np.int64, 2)), len(paths))


def is_npz(path: Path) -> bool:
    """Return whether a zip file holds arrays of numpy and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged, which is said where it is read as an archive
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def open_arrays(root: Path, ranges: Ranges = UNKNOWN) -> tuple[Arrays, Listing]:
    """Return the images of an .npz or .npy file, and their listing. Raises DataError as `sources.open_source`.

    Where `ranges` does not say which values are black and white, they are found, see `range_of`.
    """
    shown, left_out = printable(str(root)), LeftOut()
    try:
        found = _loaded(root)
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{shown}: takes more memory than there is; write its images as files") from None
    except Exception as error:  # on damaged files numpy raises anything, from TokenError to RecursionError
        raise DataError(f"{shown}: is damaged or not whole ({error}): copy or download it again") from None
    chosen = _by_part(_IMAGES, found, least=2)
    if not chosen:
        large = [name for name, array in found.items() if array.ndim >= 3]
        chosen = dict.fromkeys(large, "") if len(large) == 1 else {}
    if not chosen or len(set(chosen.values())) < len(chosen):
        kinds = ", ".join(f"{name} {list(array.shape)}" for name, array in list(found.items())[:8])
        raise DataError(f"{shown}: no single array of it is the images: name it images (it has {kinds or 'nothing'})")
    arrays = {prefix: _arranged(found[name], f"{shown}: {name}") for name, prefix in chosen.items()}
    low, high, words = range_of(list(arrays.values()), shown, ranges)
    parts = [Part(array, low, high, prefix) for prefix, array in arrays.items()]
    paths, classes = list[str](), dict[str, str]()
    labels = {prefix: name for name, prefix in _by_part(_LABELS, found, least=1).items()}
    for part in parts:
        own = [f"{part.prefix}{n:0{len(str(len(part.images) - 1))}}.png" for n in range(len(part.images))]
        if (name := labels.get(part.prefix)) is not None:
            classes |= zip(own, _classes(found[name], found, len(own), f"{shown}: {name}"), strict=True)
        paths += own
    if not paths:
        raise DataError(f"{shown}: holds no images")
    count, (height, width, colours) = len(paths), parts[0].images.shape[1:]
    left_out.notes.append(f"{count:,} images of {width}x{height}, {colours} channels, in arrays{words}")
    kind, black_to_white = parts[0].images.dtype, Range(low, high)
    is_deep = kind.kind in "ui" and kind != np.uint8
    used = Ranges(black_to_white if is_deep else None, black_to_white if kind.kind == "f" else None)
    return Arrays(root, parts, classes or None, used), Listing(sorted(paths), [], {}, left_out)


def _loaded(root: Path) -> dict[str, NDArray[Any]]:
    with root.open("rb") as file:
        is_one = file.read(6) == b"\x93NUMPY"
    if is_one:
        return {"images": np.load(root, mmap_mode="r", allow_pickle=False)}
    with zipfile.ZipFile(root) as archive:
        if sum(info.file_size for info in archive.infolist()) > 0.8 * psutil.virtual_memory().total:
            raise MemoryError
    found, objects = dict[str, NDArray[Any]](), list[str]()
    with np.load(root, allow_pickle=False) as content:
        for name in content.files:
            try:
                found[name] = content[name]
            except ValueError as error:
                if "Object arrays" not in str(error):
                    raise
                objects.append(name)
    # Labels that are left out would be no labels at all, without a word; nobody misses other arrays.
    if named := [name for name in objects if _IMAGES.fullmatch(name) or _LABELS.fullmatch(name)]:
        raise DataError(
            f"{printable(str(root))}: {', '.join(named)} has objects of Python, which are not read from files, since "
            "they may run a program: save it as numbers or as text, such as by .astype(str)"
        )
    return found


def _by_part(what: re.Pattern[str], found: dict[str, NDArray[Any]], least: int) -> dict[str, str]:
    """Return the arrays whose names say what they are, each with the prefix of paths that it has, such as train/."""
    matches = ((name, what.fullmatch(name)) for name in found if found[name].ndim >= least)
    parts = {name: match["before"] or match["after"] for name, match in matches if match is not None}
    return {name: f"{part.lower()}/" if part else "" for name, part in parts.items()}


def _arranged(array: NDArray[Any], shown: str) -> NDArray[Any]:
    """Return an array of images as [N H W C]; which of its sides are which is known by their lengths."""
    if array.dtype.kind not in "buif":
        raise DataError(f"{shown}: images are numbers, and this array is of type {array.dtype}")
    shape = list(array.shape)
    if 0 in shape:
        raise DataError(f"{shown}: the array is empty: {shape}")
    if array.ndim == 2:  # rows as those of CIFAR: all of red, then green, then blue
        for colours in (3, 1):
            side = round((shape[1] / colours) ** 0.5)
            if side > 3 and colours * side * side == shape[1]:
                return array.reshape(-1, colours, side, side).transpose(0, 2, 3, 1)
        raise DataError(f"{shown}: the rows of an array {shape} are no square images")
    if array.ndim == 3:
        if shape[2] in _COLOURS and min(shape[:2]) > 4:
            raise DataError(f"{shown}: an array {shape} is one image, and a data set is [N H W] or [N H W C]")
        return array[..., None]
    if array.ndim == 4:
        last, first = shape[3] in _COLOURS, shape[1] in _COLOURS
        if last and not (first and shape[2] not in _COLOURS and shape[3] != shape[1]):
            return array
        if first:
            return array.transpose(0, 2, 3, 1)
    raise DataError(f"{shown}: images are [N H W], [N H W C] or [N C H W] with 1, 3 or 4 channels, not {shape}")


def range_of(images: list[NDArray[Any]], shown: str, stated: Ranges = UNKNOWN) -> tuple[float, float, str]:
    """Return the values that become 0 and 255, and what was understood, in words.

    uint8 is as it is, and booleans are black and white. Else `stated` counts, where it knows the kind of values. Of
    integers white is the least 2^k - 1 (k = 8, 10, 12, 14, 16) that holds all but a ten-thousandth of the values;
    floats are in [0, 1] or [-1, 1], or as integers; else, and where integers are negative, a ten-thousandth at each
    end is cut off.
    """
    kinds = {array.dtype for array in images}
    if len(kinds) > 1:
        raise DataError(f"{shown}: its arrays are of several types: {', '.join(sorted(map(str, kinds)))}")
    kind = kinds.pop()
    if kind == np.uint8:
        dark = max(int(array.max()) for array in images) <= 1
        words = "; no value is above 1, so that they are almost black: multiply them by 255" if dark else ""
        return 0.0, 255.0, words + (_NOT_USED if stated != UNKNOWN else "")
    if kind.kind == "b":
        return 0.0, 1.0, _NOT_USED if stated != UNKNOWN else ""
    step = max(1, sum(array.size for array in images) // _SAMPLE)
    values = np.concatenate([array.reshape(-1)[::step] for array in images]).astype(np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        raise DataError(f"{shown}: no value of it is finite")
    if (given := stated.floats if kind.kind == "f" else stated.integers) is not None:
        beyond = float(((values < given.low) | (values > given.high)).mean())
        clipped = f", and {beyond:.1%} of the values are beyond that and clipped" if beyond > _CLIPPED else ""
        return *given, f"; {kind}, {given.low:.6g} is black and {given.high:.6g} white, as given{clipped}"
    low, high = np.quantile(values, [_CLIPPED, 1 - _CLIPPED])
    if kind.kind == "f" and high <= 1.05 and low >= -0.05:
        return 0.0, 1.0, "; floats in [0, 1]"
    if kind.kind == "f" and high <= 1.05 and low >= -1.05:
        return -1.0, 1.0, "; floats in [-1, 1]"
    if low >= 0 and high <= 65535 and (kind.kind != "f" or (values == np.rint(values)).all()):
        bits = next(bits for bits in _BITS if high <= 2**bits - 1)
        return 0.0, 2.0**bits - 1, f"; {kind}, almost nothing above {2**bits - 1:,}: taken as {bits} bits"
    if high <= low:
        low, high = float(values.min()), max(float(values.max()), float(values.min()) + 1)
    return float(low), float(high), f"; {kind}, {low:.4g} is taken for black and {high:.4g} for white"


def eight_bits(image: NDArray[Any], low: float, high: float) -> Pixels:
    """Return an image, [H W C], as uint8, where `low` and what is below it is 0, and `high` is 255."""
    if image.dtype == np.uint8:
        return image
    values = np.nan_to_num(image.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def _classes(labels: NDArray[Any], found: dict[str, NDArray[Any]], count: int, shown: str) -> Iterator[str]:
    """Yield the name of each image's class: that of its number, where the file names them, or else the number."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not ((labels == 0) | (labels == 1)).all() or not (labels.sum(axis=1) == 1).all():
            raise DataError(f"{shown}: has several labels for an image, and one is needed")
        labels = labels.argmax(axis=1)
    labels = labels.reshape(len(labels), -1)
    if labels.shape != (count, 1):
        raise DataError(f"{shown}: has {labels.size:,} labels for {count:,} images")
    if labels.dtype.kind not in "iuUSb" and not (labels.dtype.kind == "f" and (labels == np.rint(labels)).all()):
        raise DataError(f"{shown}: labels are whole numbers or names, and these are of type {labels.dtype}")
    values = labels[:, 0].astype(np.int64).tolist() if labels.dtype.kind in "iubf" else labels[:, 0].tolist()
    names = next((found[name].tolist() for name in _NAMES if name in found and found[name].ndim == 1), None)
    for value in values:
        if names is not None and isinstance(value, int):
            if not 0 <= value < len(names):
                raise DataError(f"{shown}: has the label {value}, and there are {len(names)} names")
            value = names[value]
        yield composed(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def png(image: Pixels) -> bytes:
    """Return uint8 [H W C] with C 1, 3 or 4 as a PNG that is not compressed.

    It is written here, and not by Pillow, whose bytes change with the version of its library: their hash is what an
    image is known by when a run goes on.
    """
    height, width, colours = image.shape
    rows = np.zeros((height, 1 + width * colours), np.uint8)  # the first byte of a row says that it is not filtered
    rows[:, 1:] = image.reshape(height, -1)
    raw = rows.tobytes()
    blocks = [raw[start : start + 65535] for start in range(0, len(raw), 65535)]
    stored = b"".join(
        struct.pack("<BHH", n == len(blocks) - 1, len(block), 65535 - len(block)) + block
        for n, block in enumerate(blocks)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[colours], 0, 0, 0)
    packed = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
