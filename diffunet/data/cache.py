"""The form in which decoded images are stored, and their cache: a folder of memory-mapped pixels, with an index.

    pixels-GENERATION.bin    the images one after the other, each uint8 [h w C]
    index-GENERATION.npz     their paths, hashes, sizes and sums, and the size and time of change of each file when read
    manifest.json            names the current generation; it is written last, so that what it names is whole
    lock                     held by the one process that looks or builds

When the folder is opened, the index is checked against its hash, and the pixels are checked for their length. An image
is checked against its checksum when it is first used, since checking all of a large data set would take minutes.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import index
from diffunet.data.facts import FACTS, Facts, of
from diffunet.data.folder import ImageFile, Rejected, page_of, printable
from diffunet.data.index import Paths
from diffunet.data.sources import Source
from diffunet.errors import DataError, ResourceError, UsageError
from diffunet.names import PagesName
from diffunet.pictures import deep, images, ranges
from diffunet.pictures.images import Pixels
from diffunet.pictures.opening import page_places
from diffunet.pictures.ranges import Ranges

VERSION = 3  # of the files and of how pixels are made; each version has cache folders of its own
MAX_ASPECT = 4  # the largest ratio of the sides: of a longer image the middle is kept, for the fits that crop anyway


@dataclass(frozen=True)
class Layout:
    """The form in which the images of a data set are stored, and how files are read; see `open_dataset` for the fields.

    Without `ranges` each file of more than 8 bits is read by its own values.
    """

    image_size: int
    channels: int
    fit: str
    background: images.Colour
    margin: float
    scales: tuple[float, ...] = (1.0,)
    ranges: Ranges | None = None
    pages: PagesName = "first"
    reading: int = 2

    @property
    def short(self) -> int:
        """The length in pixels of a stored image's short side, or with fit "pad" the most, with "patch" the least."""
        return max(self.image_size, round(self.image_size * self.margin)) if self.fit == "random" else self.image_size

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns that are stored of an image of this size."""
        if self.fit == "pad":
            scale = self.image_size / max(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        scale = self.short / min(height, width)
        if self.fit == "patch":
            scale = max(scale, *self.scales)  # the largest of them, or where a window would not fit, what makes it fit
        else:
            height, width = (min(side, MAX_ASPECT * min(height, width)) for side in (height, width))
        return max(self.short, round(height * scale)), max(self.short, round(width * scale))

    def arrange(self, pixels: Pixels) -> Pixels:
        """Return the pixels of a file, uint8 [H W C], resized to the size that is stored; they are never stretched."""
        h, w, _ = pixels.shape
        rows, columns = self.shape(h, w)
        if self.fit not in ("pad", "patch"):
            cap = MAX_ASPECT * min(h, w)
            top, left = max(0, h - cap) // 2, max(0, w - cap) // 2
            pixels = pixels[top : top + cap, left : left + cap]
        return images.resize(pixels, rows, columns)


class RangeNeeded(Exception):
    """A file has more than 8 bits, and it is not known yet what is black and white in the folder."""


def decode_file(
    source: Source, path: str, layout: Layout, max_pixels: int = images.MAX_PIXELS
) -> tuple[ImageFile, Pixels]:
    """Read a file of a source, or a page of it, and return the facts about it and its pixels as stored.

    Raises:
        DataError: The file cannot be used; the message is the reason.
        RangeNeeded: `layout.ranges` lacks the range of the file.
    """
    content, digest, page = content_of(source, path)
    return decode(content, path, digest, page, layout, max_pixels)


def content_of(source: Source, path: str) -> tuple[bytes, str, int]:
    """Return the bytes of a file, the SHA-256 of what identifies its image, and the place of its page, 0 for the first.

    Of a page that is the SHA-256 of the file's own and of the number of the page.
    """
    name, number = page_of(path)
    if number is None:
        content = source.read(name)
        return content, hashlib.sha256(content).hexdigest(), 0
    with _stack_lock:  # its pages are read one after the other, by several threads
        key = source, name, source.stamp(name)
        if not _stacks or _stacks[0][0] != key:
            content = source.read(name)
            _stacks[:] = [(key, content, hashlib.sha256(content).hexdigest(), page_places(content, name))]
        _, content, digest, places = _stacks[0]
    if number > len(places):
        raise DataError(f"has no page {number} any more")
    return content, hashlib.sha256(f"{digest}#{number}".encode()).hexdigest(), places[number - 1]


_stack_lock = threading.Lock()
_stacks: list[tuple[tuple[Source, str, tuple[int, int]], bytes, str, list[int]]] = []
"""The newest file with several pages, of which all are read."""


def forget_stack() -> None:
    """Free the memory that the newest file with several pages takes."""
    with _stack_lock:
        _stacks.clear()


def decode(
    content: bytes, path: str, digest: str, page: int, layout: Layout, max_pixels: int = images.MAX_PIXELS
) -> tuple[ImageFile, Pixels]:
    """Decode the bytes of a file, and return as `decode_file` does."""
    reading, name = layout.reading, page_of(path)[0]
    # Decoded at twice the size that is wanted at least, so that the better filter of `resize` does the last halving.
    draft = None if layout.fit == "patch" else 2 * layout.short
    with images.decoding(content, name=name, max_pixels=max_pixels, draft=draft, page=page, reading=reading) as decoded:
        image, range = decoded.image, None
        if reading == 1:
            range = ranges.earlier(image)
        elif layout.ranges is not None and (range := layout.ranges.of(image)) is None and deep.kind_of(image):
            raise RangeNeeded
        facts = Facts() if reading == 1 else of(decoded, range, every_page=layout.pages == "all")
        pixels = images.to_array(image, layout.channels, layout.background, range, srgb=reading > 1)
        return ImageFile(path, digest, *decoded[1:5], facts), layout.arrange(pixels)


def folder_of(chosen: Path | None, source: Path, layout: Layout) -> Path:
    """Return the folder for the images of `source` in this layout, inside `home(chosen)`."""
    form = asdict(layout)
    if layout.fit != "patch":
        del form["scales"]  # which say nothing then
    parts = [VERSION, os.fsencode(source).hex(), *form.values()]
    return home(chosen) / hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def home(chosen: Path | None) -> Path:
    """Return the folder in which caches are kept: the `chosen` one, or the user's own, or one among temporary files.

    The environment variable DIFFUNET_CACHE may name the user's own. UsageError is raised where none can be written.
    """
    if chosen is not None:
        if not _writable(chosen):
            raise UsageError(f"--data.cache {chosen}: cannot be written; choose another folder, or off")
        return chosen
    with contextlib.suppress(RuntimeError):  # no home at all, as in some containers
        if _writable(own := files.user_cache()):
            return own
    user = os.getuid() if hasattr(os, "getuid") else "user"
    try:
        return Path(tempfile.gettempdir(), f"diffunet-cache-{user}")
    except FileNotFoundError:
        raise UsageError("no folder for decoded images can be written; choose one with --data.cache, or off") from None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def row_type(channels: int) -> np.dtype:
    """Return the type of an image's row. `total` and `squares` are sums over its middle square, for each channel."""
    sums, stamp = ("<i8", (channels,)), ("<i8", (2,))  # a stamp is the size in bytes and the time of change in ns
    return np.dtype([("file", index.FILE), ("facts", FACTS), ("stamp", *stamp), ("shape", "<i4", (3,)),
                     ("crc32", "<u4"), ("total", *sums), ("squares", *sums)])  # fmt: skip


def statistics(table: NDArray[np.void], area: int) -> tuple[tuple[float, ...], float]:
    """Return each channel's mean and the standard deviation around them, in [-1, 1], of images of `area` pixels."""
    sums = (table[name].sum(axis=0).astype(np.float64) for name in ("total", "squares"))
    mean, square = (values / (len(table) * area) for values in sums)
    variance = float(np.mean(square - mean**2))
    return tuple((mean / 127.5 - 1).tolist()), max(variance, 0.0) ** 0.5 / 127.5


def no_room(folder: Path, error: OSError, progress: str = "") -> ResourceError:
    """Return the error of a folder for decoded images that takes no more; `progress` says how far it came."""
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or error
    return ResourceError(
        f"cannot keep the decoded images in {printable(str(folder))}: {reason}{progress}; "
        "choose another place with --data.cache DIR, or use none with --data.cache off"
    )


class Rows(NamedTuple):
    """The index of a cache: sorted paths, and a table with a row of type `row_type` for each."""

    paths: Paths
    table: NDArray[np.void]


class Damaged(DataError):
    """A stored image is not what was written to the cache."""


class Stored:
    """The images of a generation as a sequence of uint8 [h w C], mapped from `place`; a damaged one raises Damaged."""

    def __init__(self, folder: Path, generation: str, rows: Rows) -> None:
        self.place, self._index = paths_of(folder, generation)
        self._paths = rows.paths
        self._pixels = np.asarray(np.memmap(self.place, np.uint8, "r"))
        self._shapes = rows.table["shape"].copy()
        self._ends = np.cumsum(self._shapes.astype(np.int64).prod(axis=1))
        self._sums = rows.table["crc32"].copy()
        self._checked = np.zeros(len(self._sums), bool)

    def __len__(self) -> int:
        return len(self._sums)

    def __getitem__(self, index: int, /) -> Pixels:
        h, w, c = self._shapes[index].tolist()
        end = int(self._ends[index])
        pixels = self._pixels[end - h * w * c : end]
        if not self._checked[index]:
            if zlib.crc32(pixels.data) != self._sums[index]:
                with contextlib.suppress(OSError):
                    self._index.unlink()  # so that the next start builds anew
                raise Damaged(
                    f"{printable(self._paths[index])}: its decoded form in {printable(str(self.place))} is damaged; "
                    "run the command again (train: with --resume), and the images are decoded anew"
                )
            self._checked[index] = True
        return pixels.reshape(h, w, c)


class Generation(NamedTuple):
    """What a cache folder holds at a time; `rejected` are the paths of the files that could not be decoded."""

    name: str
    rows: Rows
    rejected: Paths
    images: Stored


def paths_of(folder: Path, generation: str) -> tuple[Path, Path]:
    """Return the paths of a generation's pixels and of its index."""
    return folder / f"pixels-{generation}.bin", folder / f"index-{generation}.npz"


def load(folder: Path) -> Generation | None:
    """Return the current generation in `folder`, or None where there is none, or it is incomplete or damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        name = manifest["generation"]
        pixels_path, index_path = paths_of(folder, name)
        whole = VERSION, files.sha256(index_path), pixels_path.stat().st_size
        if whole != (manifest["version"], manifest["index_sha256"], manifest["pixels_bytes"]):
            return None
        with np.load(index_path, allow_pickle=False) as content:
            rows = Rows(Paths(content["paths"].tobytes()), content["table"])
            rejected = Paths(content["rejected"].tobytes())
        return Generation(name, rows, rejected, Stored(folder, name, rows))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def commit(folder: Path, generation: str, rows: Rows, rejected: Sequence[Rejected], source: Path) -> Stored:
    """Write the index of a generation whose pixels are written already, make it current, and return its images."""
    pixels_path, index_path = paths_of(folder, generation)
    files.fsync(pixels_path)
    unusable = np.frombuffer(Paths.of(file.path for file in rejected).blob, np.uint8)
    with files.replacing(index_path) as temporary, temporary.open("wb") as file:
        np.savez(file, paths=np.frombuffer(rows.paths.blob, np.uint8), rejected=unusable, table=rows.table)
    manifest = {
        "version": VERSION, "source": printable(str(source)), "generation": generation,
        "pixels_bytes": pixels_path.stat().st_size, "index_sha256": files.sha256(index_path),
    }  # fmt: skip
    stored = Stored(folder, generation, rows)  # first: what cannot be mapped must not become the current one
    files.write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1))
    return stored


def megabytes(size: int) -> str:
    """Return a number of bytes in words, with two digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:,.3g} TB"


def delete_others(folder: Path, generation: str) -> None:
    """Delete all other generations and what a process that was killed left."""
    for path in (path for pattern in ("pixels-*", "index-*", ".*.tmp") for path in folder.glob(pattern)):
        if path.stem.partition("-")[2] != generation:
            with contextlib.suppress(OSError):  # Windows keeps a file that a process has mapped; it goes next time
                path.unlink()
