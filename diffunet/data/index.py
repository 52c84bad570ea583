"""The list of a data set's files: a compact table in memory, and a text by which a resumed run detects changes.

The text has a line for each image, as `sha256sum` writes it; in the folder of images `sha256sum --check` reads it:

    # diffunet index 1
    <sha256 of the content>  <path>
    ...
    # <number of images> images, sha256 <of all that is above this line>

A backslash and a line break in a path are written as escapes, and a backslash then stands before the hash.
"""

import bisect
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data.folder import ImageFile, printable
from diffunet.data.listing import composed

VERSION = 1  # of the text
FILE = np.dtype([("sha256", "u1", (32,)), ("width", "<i4"), ("height", "<i4"), ("mode", "S8"), ("format", "S8")])
"""An `ImageFile` without its path, as a row of a table."""
HELD_OUT_MAX = 1000  # the most images that training holds out, whatever their share
TRIED = 1000  # the most images that are tried for one that can be held out where each class is to keep one
_ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})
_UNESCAPED = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}


class Paths:
    """Sorted paths in one piece of memory: `blob` holds them as UTF-8, each followed by a NUL."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self._ends = np.flatnonzero(np.frombuffer(blob, np.uint8) == 0)

    @classmethod
    def of(cls, paths: Iterable[str]) -> Self:
        """Make it from paths that are sorted already."""
        blob = bytearray()
        for path in paths:
            blob += path.encode() + b"\0"
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

    def find(self, path: str) -> int | None:
        """Return the place of a path, or None where it is not there."""
        place = bisect.bisect_left(self, path)
        return place if place < len(self) and self[place] == path else None

    def take(self, places: NDArray[np.int64]) -> Self:
        """Return the paths at `places`, which ascend."""
        return self if len(places) == len(self) else self.of(self[n] for n in places)

    def places_in(self, other: Self) -> NDArray[np.int64]:
        """Return the place of each path in `other`, or -1 where it is not there, int64 [N]."""
        if self.blob == other.blob:
            return np.arange(len(self), dtype=np.int64)
        places, pairs = np.full(len(self), -1, np.int64), enumerate(other)
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

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> ImageFile:
        content, width, height, mode, kind = self.table[index].item()
        return ImageFile(self.paths[index], bytes(content).hex(), width, height, mode.decode(), kind.decode())

    def __iter__(self) -> Iterator[ImageFile]:
        return map(self.__getitem__, range(len(self)))

    @property
    def contents(self) -> Contents:
        """The paths and the hashes of the contents."""
        return Contents(self.paths, self.table["sha256"])

    def smaller_than(self, size: int, fit: str) -> int:
        """Return the number of images whose short side, or with fit "pad" whose long side, is below `size` pixels."""
        either = np.logical_and if fit == "pad" else np.logical_or
        return int(np.count_nonzero(either(self.table["width"] < size, self.table["height"] < size)))


def row(file: ImageFile) -> tuple[NDArray[np.uint8], int, int, bytes, bytes]:
    """Return a file as a row of type `FILE`."""
    content = np.frombuffer(bytes.fromhex(file.sha256), np.uint8)
    return content, file.width, file.height, file.mode.encode(), file.format.encode()


def index_hash(image_files: Contents | Index, classes: Mapping[str, str] | None = None) -> str:
    """Return the identity of a data set: the SHA-256 over its sorted pairs of relative path and content hash.

    Where `classes` has the class of each path, they count as well.
    """
    digest = hashlib.sha256()
    for path, content in image_files.contents if isinstance(image_files, Index) else image_files:
        digest.update(f"{path}\0{content}\0".encode())
        if classes is not None:
            digest.update(f"{classes.get(path, '')}\0".encode())
    return digest.hexdigest()


def split(
    image_files: Index, fraction: float, cap: int, classes: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ascending indices (train, held out), with about `fraction` of the images held out and at most `cap`.

    An image is held out where its content hash, as a number in [0, 1), is below `fraction`. It therefore stays on its
    side when other images come and go, and copies are on the same side. Where more would be held out than `cap` allows,
    the lowest hashes are. Of fewer than 20 images none is held out. From 20 images on at least one image, with
    its copies, is held out, if the cap allows it, and one is always left to train on. Where `classes`, the number of
    each image's class, int64 [N], are given, at least one image of each is left to train on: of a class that would have
    none, the content with the highest hash is, with its copies; where then none is held out, another one is.
    """
    hashes = image_files.table["sha256"].tobytes()
    contents, group, copies = np.unique(np.frombuffer(hashes, "S32"), return_inverse=True, return_counts=True)
    # A hash as a number: its first 52 bits, which are exact in a float. `contents` ascends, so the lowest come first.
    number = (np.frombuffer(contents.tobytes(), ">u8")[::4] >> 12).astype(np.float64) / 2**52
    below = max(1, int(np.count_nonzero(number < fraction)))
    held, allowed = np.zeros(len(contents), bool), cap
    if len(image_files) >= 20 and fraction > 0:
        for n in range(min(below, len(contents) - 1)):
            if copies[n] <= cap:
                held[n] = True
                cap -= copies[n]
    leave_every_class(held, group, classes, allowed)
    return np.flatnonzero(~held[group]), np.flatnonzero(held[group])


def leave_every_class(
    held: NDArray[np.bool_], parts: NDArray[np.int64], classes: NDArray[np.int64] | None, cap: int
) -> None:
    """Take out of `held` what some class needs to have an image to train on, in place.

    Where nothing is held out any more, the first part without which each class keeps an image is, if it has at most
    `cap` images.

    Args:
        held: whether each part of the images is held out, bool [P]; the last ones are taken out first.
        parts, classes: the part and the class of each image, int64 [N]; without classes nothing is taken out.
        cap: see above.
    """
    if classes is None or not held.any():
        return
    everything = np.unique(classes)
    trained = set(np.unique(classes[~held[parts]]).tolist())
    for name in everything.tolist():
        if name not in trained:
            last = int(parts[classes == name].max())
            held[last] = False
            trained |= set(np.unique(classes[parts == last]).tolist())
    if held.any():
        return
    sizes = np.bincount(parts, minlength=len(held))
    for part in np.flatnonzero(sizes[:-1] <= cap)[:TRIED].tolist():
        if len(np.unique(classes[parts != part])) == len(everything):
            held[part] = True
            return


def write_index(path: Path, image_files: Index) -> None:
    """Write paths and content hashes as text; `path` then holds all of it, or what it held before."""
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        digest = hashlib.sha256(head := f"# diffunet index {VERSION}\n".encode())
        file.write(head)
        for name, content in image_files.contents:
            escaped = name.translate(_ESCAPED)
            mark = "" if escaped == name else "\\"
            line = f"{mark}{content}  {escaped}\n".encode()
            digest.update(line)
            file.write(line)
        file.write(f"# {len(image_files)} images, sha256 {digest.hexdigest()}\n".encode())


def read_index(path: Path) -> Contents:
    """Return the paths and content hashes that `write_index` wrote, each path in Unicode's composed form.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is damaged, of a version that is not known here, or no index at all.
    """
    with path.open("rb") as file:
        head = file.readline(100)
        if (version := re.fullmatch(rb"# diffunet index (\d+)\n", head)) is None:
            raise ValueError(f"{path}: is damaged, or no index of images")
        if int(version[1]) != VERSION:
            raise ValueError(f"{path}: is an index of version {int(version[1])}, and this diffunet reads {VERSION}")
        try:
            contents = _parsed(file, head)
        except ValueError:
            raise ValueError(f"{path}: is damaged") from None
    names = list(map(composed, contents.paths))
    if names == list(contents.paths):
        return contents
    order = sorted(range(len(names)), key=names.__getitem__)
    return Contents(Paths.of(names[n] for n in order), contents.hashes[order])


def _parsed(lines: BinaryIO, head: bytes) -> Contents:
    digest = hashlib.sha256(head)
    paths, hashes, line = bytearray(), bytearray(), b""
    for line in lines:
        if line.startswith(b"#"):
            break
        digest.update(line)
        escaped = line.startswith(b"\\")
        hashes += bytes.fromhex(line[escaped : 64 + escaped].decode())
        name = line[66 + escaped : -1]
        paths += (re.sub(rb"\\([\\nr])", lambda match: _UNESCAPED[match[1]], name) if escaped else name) + b"\0"
    contents = Contents(Paths(bytes(paths)), np.frombuffer(bytes(hashes), np.uint8).reshape(-1, 32))
    if line != f"# {len(contents.hashes)} images, sha256 {digest.hexdigest()}\n".encode() or lines.read(1):
        raise ValueError
    return contents


def changes(old: Contents | Index, new: Contents | Index) -> list[str]:
    """Return what became of the files of `old` in words, such as "2 new (a.png, b.png)" and "1 missing (c.png)".

    The list is empty where nothing has changed. A path that both have counts as changed where its content differs, and
    a file that is now under another path with the same content counts as renamed.
    """
    before, after = (files.contents if isinstance(files, Index) else files for files in (old, new))
    places = after.paths.places_in(before.paths)
    kept = np.flatnonzero(places >= 0)
    changed = kept[(before.hashes[places[kept]] != after.hashes[kept]).any(axis=1)]
    lost = np.setdiff1d(np.arange(len(before)), places[kept])
    # A rename shows as a path that was lost and one that was added with the same content. Several files may have the
    # same content, so each lost file is matched with at most one added file: of three copies that become one elsewhere,
    # one is renamed and two are missing. Files still in place are not matched, or their copies would be renames.
    unmatched: dict[bytes, deque[int]] = {}  # places in `before` of the lost files, by content
    for n in map(int, lost):
        unmatched.setdefault(before.hashes[n].tobytes(), deque()).append(n)
    added, renamed = list[int](), list[str]()
    for n in map(int, np.flatnonzero(places < 0)):
        if sources := unmatched.get(after.hashes[n].tobytes()):
            renamed.append(f"{printable(before.paths[sources.popleft()])} to {printable(after.paths[n])}")
        else:
            added.append(n)
    missing = sorted(n for sources in unmatched.values() for n in sources)
    kinds: dict[str, tuple[Any, Paths]] = {
        "new": (added, after.paths), "missing": (missing, before.paths), "changed": (changed, after.paths),
    }  # fmt: skip
    named = {kind: (len(chosen), [printable(paths[n]) for n in chosen[:3]]) for kind, (chosen, paths) in kinds.items()}
    named["renamed"] = len(renamed), renamed[:3]
    return [f"{n:,} {kind} ({', '.join(names)}{', ...' * (n > 3)})" for kind, (n, names) in named.items() if n]
