"""What DATA may be, found by looking: a folder, an archive of images, shards, or arrays; each gives bytes by a path.

What the bytes of an image mean is no matter of a source, nor is what is kept of it: see `cache.decode_file`.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import archives, arrays, folder, listing, splits
from diffunet.data.folder import native
from diffunet.data.index import Paths
from diffunet.data.listing import Listing, printable
from diffunet.errors import DataError
from diffunet.pictures import images
from diffunet.pictures.formats import EXTENSIONS
from diffunet.pictures.ranges import UNKNOWN, Ranges

SMALL_PARTS = ("samples", "best", "model", "checkpoints")
"""The folders of a run that are no data set."""


class Source(Protocol):
    """The files of a data set, each known by its path; it can be pickled where `in_processes` is set.

    `root` is its address. `classes` has the class of each path where the source has labels that are not in the paths.
    """

    root: Path
    in_processes: bool
    classes: dict[str, str] | None

    def read(self, path: str) -> bytes:
        """Return the bytes of a file, or raise DataError with the reason on one line."""

    def stamp(self, path: str) -> tuple[int, int]:
        """Return what changes when a file does: its size in bytes and the time of its change in ns; 0, 0 if gone."""

    def stamps(self, paths: Paths) -> NDArray[np.int64]:
        """Return the stamps of files, int64 [N 2]."""


class Folder:
    """The files of a folder. `stored` has the names of those that are not named by their path, see `Listing`."""

    in_processes = True
    classes: dict[str, str] | None = None

    def __init__(self, root: Path, stored: dict[str, str] | None = None) -> None:
        self.root, self._stored = root, stored or {}

    def read(self, path: str) -> bytes:
        """Return the bytes of a file, as `Source.read`."""
        return images.read_bytes(self.root / native(self._stored.get(path, path)))

    def stamp(self, path: str) -> tuple[int, int]:
        """Return its size and the time of its change, as `Source.stamp`."""
        with contextlib.suppress(OSError):
            status = os.stat(f"{self.root}{os.sep}{native(self._stored.get(path, path))}")
            return status.st_size, status.st_mtime_ns
        return 0, 0

    def stamps(self, paths: Paths) -> NDArray[np.int64]:
        """Return the stamps of files, as `Source.stamps`."""
        return np.fromiter(map(self.stamp, paths), np.dtype((np.int64, 2)), len(paths))


def open_source(data: Path, ranges: Ranges = UNKNOWN) -> tuple[Source, Listing]:
    """Return what `data` is, and the listing of what is in it.

    It is a folder; a zip or tar file of one; a pattern of several (shard-{0000..0003}.tar, photos-*.zip), or a folder
    that holds nothing else; or an .npz or .npy file of arrays, of whose values `ranges` may say which are black and
    white. Of a divided data set what is left out is not listed.

    Raises:
        DataError: there is nothing, it is none of these, it is a run or a model, or holds no candidate.
    """
    source, found = undivided(data, ranges)
    parts = splits.find(found.paths)
    if parts is None:
        return source, found
    left_out, kept = found.left_out, found.paths
    for top in parts.left_out:
        left_out.test[top] = sum(path.startswith(f"{top}/") for path in kept)
        kept = [path for path in kept if not path.startswith(f"{top}/")]
    rejected = [file for file in found.rejected if file.path.partition("/")[0] not in parts.left_out]
    words = f"{_listed(parts.training)} is trained on, {_listed(parts.held_out)} is held out"
    words += "".join(f", {printable(top)} ({n:,} images) is neither" for top, n in left_out.test.items())
    left_out.notes.append(f"its folders are parts of a data set and no classes: {words}; classes are one level down")
    return source, replace(found, paths=kept, rejected=rejected)


def beside(source: Source, found: Listing) -> dict[str, bytes]:
    """Return the files at the top of archives that may say classes, but for damaged ones; none of other sources."""
    contents = dict[str, bytes]()
    for name in found.label_files if isinstance(source, archives.Archives) else ():
        with contextlib.suppress(DataError):
            contents |= {name: source.read(name)} if "/" not in name else {}
    return contents


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(map(printable, names))


def undivided(data: Path, ranges: Ranges = UNKNOWN) -> tuple[Source, Listing]:
    """Return the same without a look at parts (train, val, test): all images are listed."""
    shown = printable(str(data))
    if not os.path.exists(data):
        found = _matching(data)
        if any(listing.ending(path.name) in EXTENSIONS for path in found):
            raise DataError(f"{shown}: a pattern names archives, and here it names images: give their folder")
        if found:
            return archives.open_archives(Path(os.path.abspath(data)), found)
        raise DataError(f"{shown}: {files.absent(data, 'no such folder or file')}")
    data = Path(os.path.realpath(data))
    if os.path.isdir(data):
        return _folder(data)
    if not data.is_file():
        raise DataError(f"{shown}: is neither a folder nor an ordinary file")
    with _reading(shown), data.open("rb") as file:
        head = file.read(512)
    kind = archives.kind_of(head)
    if head.startswith(b"\x93NUMPY") or (kind == "zip" and arrays.is_npz(data)):
        return arrays.open_arrays(data, ranges)
    if kind is not None:
        return archives.open_archives(data, [data])
    if listing.is_image(head) or listing.ending(data.name) in EXTENSIONS:
        raise DataError(f"{shown}: is one image; give the folder that holds the images")
    hint = {
        ".parquet": "; diffunet prepare writes a folder from a parquet file",
        ".7z": "; unpack it", ".rar": "; unpack it", ".zip": "; it is damaged, or no zip file",
        ".tar": "; it is damaged, or no tar file", ".npz": "; it is damaged, or no file of numpy",
        ".npy": "; it is damaged, or no file of numpy",
    }.get(listing.ending(data.name), "")  # fmt: skip
    raise DataError(f"{shown}: is a file, and none of the data: a folder, .zip, .tar, .npz or .npy{hint}")


def _folder(root: Path) -> tuple[Source, Listing]:
    shown = printable(str(root))
    if what := listing.made_here("", lambda name: os.path.exists(root / name)):
        raise DataError(f"{shown}: is {what} of diffunet, and no folder of images; its previews are not trained on")
    if root.name in SMALL_PARTS and listing.made_here("", lambda name: os.path.exists(root.parent / name)) == "a run":
        raise DataError(f"{shown}: is part of a run of diffunet; its previews are not trained on")
    try:
        found = folder.candidates(root)
    except listing.NoImages as error:
        if not (packed := [path for path in sorted(root.rglob("*")) if _is_archive(path, root)]):
            raise
        source, inside = archives.open_archives(root, packed)
        return source, replace(inside, rejected=sorted([*inside.rejected, *error.rejected], key=lambda file: file.path))
    return Folder(root, found.stored), found


def _is_archive(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    passed_over = any(map(listing.is_hidden, parts)) or any(map(listing.is_kept_by_systems, parts))
    return path.suffix.lower() in (".tar", ".zip") and not passed_over and path.is_file()


def _matching(pattern: Path) -> list[Path]:
    """Return the files of a pattern such as shard-{0000..0003}.tar or photos-*.zip; DataError is raised for a gap."""
    text = str(pattern)
    if span := re.search(r"\{(\d+)\.\.(\d+)\}", text):
        first, last, width = int(span[1]), int(span[2]), len(span[1])
        if not first <= last < first + 100_000:
            raise DataError(f"{printable(text)}: {span[0]} is no range of shards")
        files = [Path(f"{text[: span.start()]}{n:0{width}}{text[span.end() :]}") for n in range(first, last + 1)]
        if missing := [file for file in files if not file.is_file()]:
            raise DataError(
                f"{printable(text)}: {len(missing)} of {len(files)} files are missing, such as {missing[0]}"
            )
        return files
    return sorted(map(Path, glob.glob(text))) if glob.has_magic(text) else []


@contextlib.contextmanager
def _reading(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror or error}") from None
