"""The files of a data set in columns, about 100 bytes for each, and as a text that tells later what has changed.

The text has a line for each image, as `sha256sum` writes it; in the folder of images `sha256sum --check` reads it:

    # diffunet index 1
    <sha256 of the content>  <path>
    ...
    # <number of images> images, sha256 <of all that is above this line>

In a path with a backslash or a line break these are escaped, and a backslash stands before the hash.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data.folder import ImageFile, printable

VERSION = 1  # of the text

FILE = np.dtype([("sha256", "u1", (32,)), ("width", "<i4"), ("height", "<i4"), ("mode", "S8"), ("format", "S8")])
"""An `ImageFile` without its path."""

_ESCAPED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
_UNESCAPED = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}


class Paths(Sequence[str]):
    """Sorted paths in one piece of memory. `blob` has them as UTF-8, a NUL after each."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self._ends = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)

    @classmethod
    def of(cls, paths: Iterable[str]) -> Paths:
        """From paths that are sorted already."""
        blob = bytearray()
        for path in paths:
            blob += path.encode()
            blob.append(0)
        return cls(bytes(blob))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        end = self._ends[index]
        return self.blob[self.blob.rfind(b"\0", 0, end) + 1 : end].decode()

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in map(int, self._ends):
            yield self.blob[start:end].decode()
            start = end + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and self.blob == other.blob

    __hash__ = None  # type: ignore[assignment]

    def take(self, places: NDArray[np.int64]) -> Paths:
        """Those at `places`, which ascend."""
        if len(places) == len(self):
            return self
        return Paths.of(self[n] for n in places)

    def places_in(self, other: Paths) -> NDArray[np.int64]:
        """int64 [N]: where each of these is in `other`, -1 where it is not."""
        if self.blob == other.blob:
            return np.arange(len(self), dtype=np.int64)
        places = np.full(len(self), -1, np.int64)
        theirs = enumerate(other)
        there = next(theirs, None)
        for n, path in enumerate(self):
            while there is not None and there[1] < path:
                there = next(theirs, None)
            if there is not None and there[1] == path:
                places[n] = there[0]
        return places


class Contents(Mapping[str, str]):
    """Path -> sha256 (hex) of an index, sorted by path. `hashes` is uint8 [N 32]."""

    def __init__(self, paths: Paths, hashes: NDArray[np.uint8]) -> None:
        self.paths, self.hashes = paths, hashes

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __getitem__(self, path: str) -> str:
        n = bisect_left(self.paths, path)
        if n == len(self) or self.paths[n] != path:
            raise KeyError(path)
        return bytes(self.hashes[n]).hex()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(path, sha256) of each: as `items`, many times faster."""
        paths = iter(self.paths)
        for start in range(0, len(self), 1024):
            digits = self.hashes[start : start + 1024].tobytes().hex()
            for n in range(0, len(digits), 64):
                yield next(paths), digits[n : n + 64]


@dataclass(frozen=True, eq=False)
class Index(Sequence[ImageFile]):
    """Image files sorted by path, each made when it is asked for. `table` is `FILE` [N]."""

    paths: Paths
    table: NDArray[np.void]

    @classmethod
    def of(cls, image_files: Iterable[ImageFile]) -> Index:
        """From files in any order."""
        if isinstance(image_files, Index):
            return image_files
        ordered = sorted(image_files, key=lambda file: file.path)
        return cls(Paths.of(file.path for file in ordered), np.array([row(file) for file in ordered], FILE))

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageFile]: ...
    def __getitem__(self, index: int | slice) -> ImageFile | list[ImageFile]:
        if isinstance(index, slice):
            return [self[n] for n in range(len(self))[index]]
        content, width, height, mode, kind = self.table[index].item()
        return ImageFile(self.paths[index], bytes(content).hex(), width, height, mode.decode(), kind.decode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.paths == other.paths and np.array_equal(self.table, other.table)

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[ImageFile]:
        columns = (self.table[name].flat for name in ("width", "height", "mode", "format"))
        for (path, sha256), width, height, mode, kind in zip(self.contents.pairs(), *columns, strict=True):
            yield ImageFile(path, sha256, int(width), int(height), mode.decode(), kind.decode())

    @property
    def contents(self) -> Contents:
        """Path -> sha256."""
        return Contents(self.paths, self.table["sha256"])

    def smaller_than(self, size: int) -> int:
        """The number of images whose short side is below `size` pixels."""
        return int(np.count_nonzero((self.table["width"] < size) | (self.table["height"] < size)))


def row(file: ImageFile) -> tuple[NDArray[np.uint8], int, int, bytes, bytes]:
    """A file as a row of `FILE`."""
    content = np.frombuffer(bytes.fromhex(file.sha256), np.uint8)
    return content, file.width, file.height, file.mode.encode(), file.format.encode()


def index_hash(image_files: Iterable[ImageFile]) -> str:
    """What a data set is: sha256 over the sorted pairs of relative path and content hash."""
    digest = hashlib.sha256()
    for path, content in Index.of(image_files).contents.pairs():
        digest.update(f"{path}\0{content}\0".encode())
    return digest.hexdigest()


HELD_OUT_MAX = 1000
"""Images that training holds out at most, whatever their share."""


def split(image_files: Sequence[ImageFile], fraction: float, cap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train, held out): ascending indices, about `fraction` of the images held out, at most `cap`.

    An image is held out where its content hash, as a number in [0, 1), is below `fraction`; so it stays on its side
    when others come and go, and copies are on the same side. Where `cap` is short, the lowest hashes are held out.
    Below 20 images none is; from 20 on at least one content is where the cap allows it, and one is always left to
    train on.
    """
    if isinstance(image_files, Index):
        hashes = image_files.table["sha256"].tobytes()
    else:
        hashes = b"".join(bytes.fromhex(file.sha256) for file in image_files)
    contents, group, copies = np.unique(np.frombuffer(hashes, "S32"), return_inverse=True, return_counts=True)
    # The first 52 bits are exact in a float. `contents` ascends, so those below `fraction` come first.
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


def write_index(path: Path, image_files: Sequence[ImageFile]) -> None:
    """Write paths and content hashes as text; `path` holds all of it or what it held before."""
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
    for name, content in contents.pairs():
        escaped = name.translate(escapes)
        mark = "" if escaped == name else "\\"
        yield f"{mark}{content}  {escaped}\n".encode()


def read_index(path: Path) -> Contents:
    """Path -> sha256 (hex), as `write_index` wrote it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, of a version that is not known here, or no index at all.
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


def changes(old: Mapping[str, str] | Sequence[ImageFile], new: Mapping[str, str] | Sequence[ImageFile]) -> list[str]:
    """What became of the files of `old`, in words: "2 new (a.png, b.png)", "1 missing (c.png)" and the like.

    Each is a path -> sha256 or the files of a data set. The list is empty where nothing has changed; a file whose
    content is now under another path is renamed.
    """
    before, after = _contents(old), _contents(new)
    there = after.paths.places_in(before.paths)
    kept = np.flatnonzero(there >= 0)
    changed = kept[(before.hashes[there[kept]] != after.hashes[kept]).any(axis=1)]
    gone = np.ones(len(before), bool)
    gone[there[kept]] = False

    missing: dict[bytes, deque[int]] = {}  # the places in `before` of what has gone, by content
    for n in map(int, np.flatnonzero(gone)):
        missing.setdefault(before.hashes[n].tobytes(), deque()).append(n)
    added: list[int] = []
    renamed: list[str] = []
    for n in map(int, np.flatnonzero(there < 0)):
        if places := missing.get(after.hashes[n].tobytes()):
            renamed.append(f"{printable(before.paths[places.popleft()])} to {printable(after.paths[n])}")
        else:
            added.append(n)
    lost = sorted(n for places in missing.values() for n in places)
    return [
        *_told("new", len(added), (printable(after.paths[n]) for n in added)),
        *_told("missing", len(lost), (printable(before.paths[n]) for n in lost)),
        *_told("changed", len(changed), (printable(after.paths[n]) for n in changed)),
        *_told("renamed", len(renamed), iter(renamed)),
    ]


def _contents(index: Mapping[str, str] | Sequence[ImageFile]) -> Contents:
    if isinstance(index, Contents):
        return index
    if isinstance(index, Mapping):
        ordered = sorted(index.items())
        hashes = b"".join(bytes.fromhex(content) for _, content in ordered)
        return Contents(Paths.of(path for path, _ in ordered), np.frombuffer(hashes, np.uint8).reshape(-1, 32))
    return Index.of(index).contents


def _told(what: str, count: int, names: Iterator[str]) -> list[str]:
    shown = ", ".join(itertools.islice(names, 3)) + (", ..." if count > 3 else "")
    return [f"{count:,} {what} ({shown})"] if count else []
