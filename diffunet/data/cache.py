"""The files of a cache folder: memory-mapped uint8 pixels of nearly the right size, with an index.

    pixels-GENERATION.bin    the images one after the other, each uint8 [h w C]
    index-GENERATION.npz     their paths, hashes, sizes and sums, and the size and time of change of each file when read
    manifest.json            names the current generation; it is written last, so that what it names is whole
    lock                     held by the one process that looks or builds

When the folder is opened, the index is checked against its hash, and the pixels are checked for their length. An image
is checked against its checksum when it is first used, since checking all of a large data set would take minutes.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import index
from diffunet.data.folder import Rejected, printable
from diffunet.data.index import Paths
from diffunet.errors import DataError
from diffunet.pictures.images import Pixels

VERSION = 2  # of the files and of how pixels are made; each version has cache folders of its own


def row_type(channels: int) -> np.dtype:
    """Return the type of an image's row. `total` and `squares` are sums over its middle square, for each channel."""
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
    """The index of a cache: sorted paths, and a table with a row of type `row_type` for each."""

    paths: Paths
    table: NDArray[np.void]

    @classmethod
    def of(cls, paths: Paths, table: NDArray[np.void], usable: NDArray[np.bool_]) -> Rows:
        """Make it from the rows that are `usable`, bool [N]."""
        places = np.flatnonzero(usable)
        return cls(paths.take(places), table if usable.all() else table[places])


class Damaged(DataError):
    """A stored image is not what was written to the cache."""


class Stored:
    """The images of a generation as a sequence of uint8 [h w C], mapped from the file; a damaged one raises Damaged."""

    def __init__(self, folder: Path, generation: str, rows: Rows) -> None:
        self._file, self._index = paths_of(folder, generation)
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
        if (
            manifest["version"] != VERSION
            or files.sha256(index_path) != manifest["index_sha256"]
            or pixels_path.stat().st_size != manifest["pixels_bytes"]
        ):
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
    both = rows.paths, Paths.of(file.path for file in rejected)
    usable, unusable = (np.frombuffer(paths.blob, np.uint8) for paths in both)
    with files.replacing(index_path) as temporary, temporary.open("wb") as file:
        np.savez(file, paths=usable, rejected=unusable, table=rows.table)
    manifest = {
        "version": VERSION,
        "source": printable(str(source)),
        "generation": generation,
        "pixels_bytes": pixels_path.stat().st_size,
        "index_sha256": files.sha256(index_path),
    }
    stored = Stored(folder, generation, rows)  # first: what cannot be mapped must not become the current one
    files.write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1))
    return stored


def delete_others(folder: Path, generation: str) -> None:
    """Delete all other generations and what a process that was killed left.

    Windows refuses where a process still has the file mapped; it is then deleted next time.
    """
    for pattern in ("pixels-*", "index-*", ".*.tmp"):
        for path in folder.glob(pattern):
            if path.stem.partition("-")[2] != generation:
                with contextlib.suppress(OSError):
                    path.unlink()
