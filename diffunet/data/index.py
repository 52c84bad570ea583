"""The files of a data set in columns, about 100 bytes for each, and as a text that later shows what has changed.

The text has a line for each image, as `sha256sum` writes it; in the folder of images `sha256sum --check` reads it:

    # diffunet index 1
    <sha256 of the content>  <path>
    ...
    # <number of images> images, sha256 <of all that is above this line>

A backslash and a line break in a path are written as escapes, and a backslash then stands before the hash.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data.folder import ImageFile, printable

VERSION = 1
"""The version of the text."""

FILE = np.dtype([("sha256", "u1", (32,)), ("width", "<i4"), ("height", "<i4"), ("mode", "S8"), ("format", "S8")])
"""An `ImageFile` without its path, as a row of a table."""

HELD_OUT_MAX = 1000
"""The most images that training holds out, whatever their share."""

_ESCAPED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_UNESCAPED = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}


class Paths:
    """Sorted paths in one piece of memory: `blob` holds them as UTF-8, each followed by a NUL."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self._ends = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)

    @classmethod
    def of(cls, paths: Iterable[str]) -> Paths:
        """Make it from paths that are sorted already."""
        blob = bytearray()
        for path in paths:
            blob += path.encode()
            blob.append(0)
        return cls(bytes(blob))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        end = self._ends[index]
        return self.blob[self.blob.rfind(b"\0", 0, end) + 1 : end].decode()

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in map(int, self._ends):
            yield self.blob[start:end].decode()
            start = end + 1

    def take(self, places: NDArray[np.int64]) -> Paths:
        """Return the paths at `places`, which ascend."""
        return self if len(places) == len(self) else Paths.of(self[n] for n in places)

    def places_in(self, other: Paths) -> NDArray[np.int64]:
        """Return the place of each path in `other`, or -1 where it is not there, int64 [N]."""
        if self.blob == other.blob:
            return np.arange(len(self), dtype=np.int64)
        places = np.full(len(self), -1, np.int64)
        pairs = enumerate(other)
        place, candidate = next(pairs, (-1, None))
        for n, path in enumerate(self):
            # Both are sorted, so the other's paths are gone through only once.
            while candidate is not None and candidate < path:
                place, candidate = next(pairs, (-1, None))
            if candidate == path:
                places[n] = place
        return places


@dataclass(frozen=True, eq=False)
class Contents:
    """The sorted paths of the files of a data set, and the SHA-256 of the content of each, uint8 [N 32]."""

    paths: Paths
    hashes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield the pairs of path and hash, the hash in hexadecimal digits."""
        paths = iter(self.paths)
        for start in range(0, len(self), 1024):  # converting hashes one by one is many times slower
            digits = self.hashes[start : start + 1024].tobytes().hex()
            for n in range(0, len(digits), 64):
                yield next(paths), digits[n : n + 64]


@dataclass(frozen=True, eq=False)
class Index:
    """Image files sorted by path, whose objects are made only when asked for. `table` is of type `FILE`, [N]."""

    paths: Paths
    table: NDArray[np.void]

    @classmethod
    def of(cls, image_files: Iterable[ImageFile]) -> Index:
        """Make it from files in any order."""
        if isinstance(image_files, Index):
            return image_files
        ordered = sorted(image_files, key=lambda file: file.path)
        return cls(Paths.of(file.path for file in ordered), np.array([row(file) for file in ordered], FILE))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> ImageFile:
        content, width, height, mode, kind = self.table[index].item()
        return ImageFile(self.paths[index], bytes(content).hex(), width, height, mode.decode(), kind.decode())

    def __iter__(self) -> Iterator[ImageFile]:
        columns = (self.table[name].flat for name in ("width", "height", "mode", "format"))
        for (path, sha256), width, height, mode, kind in zip(self.contents, *columns, strict=True):
            yield ImageFile(path, sha256, int(width), int(height), mode.decode(), kind.decode())

    @property
    def contents(self) -> Contents:
        """The paths and the hashes of the contents."""
        return Contents(self.paths, self.table["sha256"])

    def smaller_than(self, size: int) -> int:
        """Return the number of images whose short side is below `size` pixels."""
        return int(np.count_nonzero((self.table["width"] < size) | (self.table["height"] < size)))


def row(file: ImageFile) -> tuple[NDArray[np.uint8], int, int, bytes, bytes]:
    """Return a file as a row of type `FILE`."""
    content = np.frombuffer(bytes.fromhex(file.sha256), np.uint8)
    return content, file.width, file.height, file.mode.encode(), file.format.encode()


def index_hash(image_files: Iterable[ImageFile]) -> str:
    """Return the identity of a data set: the SHA-256 over its sorted pairs of relative path and content hash."""
    digest = hashlib.sha256()
    for path, content in Index.of(image_files).contents:
        digest.update(f"{path}\0{content}\0".encode())
    return digest.hexdigest()


def split(
    image_files: Index | Sequence[ImageFile], fraction: float, cap: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ascending indices (train, held out), with about `fraction` of the images held out and at most `cap`.

    An image is held out where its content hash, as a number in [0, 1), is below `fraction`. It therefore stays on its
    side when other images come and go, and copies are on the same side. Where more would be held out than `cap` allows,
    the lowest hashes are. Of fewer than 20 images none is held out. From 20 on at least one content is, where the cap
    allows it, and one is always left to train on.
    """
    if isinstance(image_files, Index):
        hashes = image_files.table["sha256"].tobytes()
    else:
        hashes = b"".join(bytes.fromhex(file.sha256) for file in image_files)
    contents, group, copies = np.unique(np.frombuffer(hashes, "S32"), return_inverse=True, return_counts=True)
    # A hash as a number: its first 52 bits, which are exact in a float. `contents` ascends, so the lowest come first.
    number = (np.frombuffer(contents.tobytes(), ">u8")[::4] >> 12).astype(np.float64) / 2**52
    below = max(1, int(np.count_nonzero(number < fraction)))
    held = np.zeros(len(contents), bool)
    if len(image_files) >= 20 and fraction > 0:
        room = cap
        for n in range(min(below, len(contents) - 1)):
            if copies[n] <= room:
                held[n] = True
                room -= copies[n]
    chosen = held[group]
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def write_index(path: Path, image_files: Iterable[ImageFile]) -> None:
    """Write paths and content hashes as text; `path` then holds all of it, or what it held before."""
    contents = Index.of(image_files).contents
    digest = hashlib.sha256()
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        for line in _lines(contents):
            digest.update(line)
            file.write(line)
        file.write(f"# {len(contents)} images, sha256 {digest.hexdigest()}\n".encode())


def _lines(contents: Contents) -> Iterator[bytes]:
    escapes = str.maketrans(_ESCAPED)
    yield f"# diffunet index {VERSION}\n".encode()
    for path, content in contents:
        escaped = path.translate(escapes)
        mark = "" if escaped == path else "\\"
        yield f"{mark}{content}  {escaped}\n".encode()


def read_index(path: Path) -> Contents:
    """Return the paths and content hashes that `write_index` wrote.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, of a version that is not known here, or no index at all.
    """
    with path.open("rb") as file:
        head = file.readline(100)
        version = re.fullmatch(rb"# diffunet index (\d+)\n", head)
        if version is None:
            raise ValueError(f"{path}: is damaged, or no index of images")
        if int(version[1]) != VERSION:
            raise ValueError(f"{path}: is an index of version {int(version[1])}, and this diffunet reads {VERSION}")
        try:
            return _parsed(file, head)
        except ValueError:
            raise ValueError(f"{path}: is damaged") from None


def _parsed(lines: BinaryIO, head: bytes) -> Contents:
    digest = hashlib.sha256(head)
    paths, hashes = bytearray(), bytearray()
    last = b""
    for line in lines:
        if line.startswith(b"#"):
            last = line
            break
        digest.update(line)
        escaped = line.startswith(b"\\")
        hashes += bytes.fromhex(line[escaped : 64 + escaped].decode())
        name = line[66 + escaped : -1]
        paths += re.sub(rb"\\([\\nr])", lambda match: _UNESCAPED[match[1]], name) if escaped else name
        paths.append(0)
    contents = Contents(Paths(bytes(paths)), np.frombuffer(bytes(hashes), np.uint8).reshape(-1, 32))
    if last != f"# {len(contents.hashes)} images, sha256 {digest.hexdigest()}\n".encode() or lines.read(1):
        raise ValueError
    return contents


def changes(old: Contents | Iterable[ImageFile], new: Contents | Iterable[ImageFile]) -> list[str]:
    """Return what became of the files of `old` in words, such as "2 new (a.png, b.png)" and "1 missing (c.png)".

    The list is empty where nothing has changed. A path that both have counts as changed where its content differs, and
    a file that is now under another path with the same content counts as renamed.
    """
    before, after = (index if isinstance(index, Contents) else Index.of(index).contents for index in (old, new))
    places = after.paths.places_in(before.paths)
    kept = np.flatnonzero(places >= 0)
    changed = kept[(before.hashes[places[kept]] != after.hashes[kept]).any(axis=1)]
    lost = np.ones(len(before), bool)
    lost[places[kept]] = False

    # A rename shows as a path that was lost and one that was added with the same content. Several files may have the
    # same content, so a lost file answers for one added file only: of three copies that become one elsewhere, one is
    # renamed and two are missing. Files whose path is kept take no part, or a copy of one would count as its rename.
    unmatched: dict[bytes, deque[int]] = {}  # places in `before` of the lost files, by content
    for n in map(int, np.flatnonzero(lost)):
        unmatched.setdefault(before.hashes[n].tobytes(), deque()).append(n)
    added: list[int] = []
    renamed: list[str] = []
    for n in map(int, np.flatnonzero(places < 0)):
        if sources := unmatched.get(after.hashes[n].tobytes()):
            renamed.append(f"{printable(before.paths[sources.popleft()])} to {printable(after.paths[n])}")
        else:
            added.append(n)
    missing = sorted(n for sources in unmatched.values() for n in sources)
    return [
        *_in_words("new", len(added), (printable(after.paths[n]) for n in added)),
        *_in_words("missing", len(missing), (printable(before.paths[n]) for n in missing)),
        *_in_words("changed", len(changed), (printable(after.paths[n]) for n in changed)),
        *_in_words("renamed", len(renamed), iter(renamed)),
    ]


def _in_words(kind: str, count: int, names: Iterator[str]) -> list[str]:
    shown = ", ".join(itertools.islice(names, 3)) + (", ..." if count > 3 else "")
    return [f"{count:,} {kind} ({shown})"] if count else []
