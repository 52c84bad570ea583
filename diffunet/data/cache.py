"""What lies in a cache folder: memory-mapped uint8 pixels of nearly the right size, with an index.

    pixels-GENERATION.bin    the images, one after the other, uint8 [h w C] each
    index-GENERATION.npz     their paths, hashes, sizes and statistics, and what a file looked like when it was read
    manifest.json            names the generation; written last, so that what it names is whole
    lock                     held by the one process that looks or builds

The index is checked against its hash when it is opened, and the length of the pixels is. Each image is checked against
its checksum when it is first used: all of them before the start would take minutes for a large data set.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import index
from diffunet.data.folder import Rejected, printable
from diffunet.data.index import Index, Paths
from diffunet.errors import DataError
from diffunet.pictures.images import Pixels

VERSION = 2  # of the files, and of how pixels are made; another one makes another cache folder


def row_type(channels: int) -> np.dtype:
    """What is known of an image. `total` and `squares` are sums over its middle square, for each channel."""
    return np.dtype(
        [
            ("file", index.FILE),
            ("stamp", "<i8", (2,)),  # size in bytes, time of change in ns
            ("shape", "<i4", (3,)),
            ("crc32", "<u4"),  # of the pixels
            ("total", "<i8", (channels,)),
            ("squares", "<i8", (channels,)),
        ]
    )


@dataclass(frozen=True)
class Rows:
    """An index: paths, and of type `row_type` a row for each."""

    paths: Paths
    table: NDArray[np.void]

    @classmethod
    def of(cls, paths: Paths, table: NDArray[np.void], usable: NDArray[np.bool_]) -> Rows:
        """Of all that was looked at, what is `usable`."""
        if usable.all():
            return cls(paths, table)
        places = np.flatnonzero(usable)
        return cls(paths.take(places), table[places])

    @cached_property
    def files(self) -> Index:
        """The files of the images."""
        return Index(self.paths, self.table["file"].copy())


class Damaged(DataError):
    """A stored image is not what was written."""


class Stored:
    """The images of a generation."""

    def __init__(self, folder: Path, generation: str, rows: Rows) -> None:
        self._file, self._index = pixels_of(folder, generation), index_of(folder, generation)
        self._paths = rows.paths
        self._pixels = np.asarray(np.memmap(self._file, np.uint8, "r"))
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
                    f"{printable(self._paths[index])}: its decoded form in {printable(str(self._file))} is damaged; "
                    "run the command again (train: with --resume), and the images are decoded anew"
                )
            self._checked[index] = True
        return pixels.reshape(h, w, c)


@dataclass(frozen=True)
class Generation:
    """What a cache folder holds; `rejected` are the files that could not be used."""

    name: str
    rows: Rows
    rejected: Paths
    images: Stored


def pixels_of(folder: Path, generation: str) -> Path:
    """The file of its pixels."""
    return folder / f"pixels-{generation}.bin"


def index_of(folder: Path, generation: str) -> Path:
    """The file of its index."""
    return folder / f"index-{generation}.npz"


def load(folder: Path) -> Generation | None:
    """What is in `folder`, or None where there is nothing or any of it is missing, cut short or changed."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        name = manifest["generation"]
        if (
            manifest["version"] != VERSION
            or files.sha256(index_of(folder, name)) != manifest["index_sha256"]
            or pixels_of(folder, name).stat().st_size != manifest["pixels_bytes"]
        ):
            return None
        with np.load(index_of(folder, name), allow_pickle=False) as content:
            rows = Rows(Paths(content["paths"].tobytes()), content["table"])
            rejected = Paths(content["rejected"].tobytes())
        return Generation(name, rows, rejected, Stored(folder, name, rows))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def commit(folder: Path, generation: str, rows: Rows, rejected: Sequence[Rejected], source: Path) -> Generation:
    """Write the index of a generation whose pixels are written, and make it the one that counts."""
    pixels_path, index_path = pixels_of(folder, generation), index_of(folder, generation)
    files.fsync(pixels_path)
    unusable = Paths.of(r.path for r in rejected)
    with files.replacing(index_path) as temporary, temporary.open("wb") as file:
        paths, others = (np.frombuffer(part.blob, np.uint8) for part in (rows.paths, unusable))
        np.savez(file, paths=paths, rejected=others, table=rows.table)
    manifest = {
        "version": VERSION,
        "source": printable(str(source)),
        "generation": generation,
        "pixels_bytes": pixels_path.stat().st_size,
        "index_sha256": files.sha256(index_path),
    }
    new = Generation(generation, rows, unusable, Stored(folder, generation, rows))
    files.write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1))
    return new


def delete_others(folder: Path, generation: str) -> None:
    """Other generations, and what a killed process left. Windows keeps those that are still mapped until next time."""
    for pattern in ("pixels-*", "index-*", ".*.tmp"):
        for path in folder.glob(pattern):
            if path.stem.partition("-")[2] != generation:
                with contextlib.suppress(OSError):
                    path.unlink()
