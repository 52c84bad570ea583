"""A folder of images as a data set: decoded once into a cache, or each time.

Images keep their aspect, so crops and flips are drawn when a batch is made. A file whose size and time of change are
the same is not read again. What a data set *is* (`index_hash`), though, depends on relative paths and contents alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import augment, cache
from diffunet.data.cache import Rows
from diffunet.data.cache_folder import cache_root
from diffunet.data.folder import Progress, Rejected, class_of, in_order, list_images, native, printable
from diffunet.data.index import Index, Paths, index_hash, row
from diffunet.data.index import split as split
from diffunet.data.layout import Layout, read
from diffunet.errors import DataError, ResourceError, UsageError
from diffunet.names import FITS
from diffunet.pictures import images
from diffunet.pictures.images import Pixels


@dataclass(frozen=True)
class Dataset:
    """A folder of images, ready to make batches from.

    `images[i]` is uint8 [h w C], read-only and nearly of the size of the model (see `augment.gather`). `mean` (one for
    each channel) and `sigma_data`, the standard deviation around it, are in units of [-1, 1] and taken over the middle
    square of every image. `index_hash` changes with any path or content.

    `images[i]` raises DataError where the file of an image that is decoded each time has changed or gone, or where the
    stored image is damaged.
    """

    images: augment.Images
    files: Index
    rejected: tuple[Rejected, ...]
    mean: tuple[float, ...]
    sigma_data: float
    index_hash: str

    def labels(self, names: Sequence[str]) -> NDArray[np.int64]:
        """int64 [N]: the place of each image's subfolder in `names`. DataError where it is not among them."""
        number = {name: n for n, name in enumerate(names)}
        try:
            labels = (number[class_of(path) or ""] for path in self.files.paths)
            return np.fromiter(labels, np.int64, len(self.files))
        except KeyError:
            stray = next(path for path in self.files.paths if (class_of(path) or "") not in number)
            raise DataError(f"{printable(stray)}: its folder is none of the {len(number)} classes") from None


class _Decoding:
    """Images that are decoded each time, for those who want no cache."""

    def __init__(self, root: Path, layout: Layout, image_files: Index) -> None:
        self._root, self._layout, self._files = root, layout, image_files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> Pixels:
        expected = self._files[index]
        try:
            file, pixels = read(self._root, expected.path, self._layout)
        except DataError as error:
            raise DataError(f"{printable(expected.path)}: {error}") from None
        if file.sha256 != expected.sha256:
            raise DataError(f"{printable(expected.path)}: has changed since the data was opened")
        pixels.setflags(write=False)
        return pixels


def open_dataset(
    root: Path,
    *,
    image_size: int,
    channels: int,
    fit: str,
    background: tuple[int, int, int] = images.WHITE,
    margin: float = 1.125,
    cache: Path | Literal["off"] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """All usable images below `root`, from the cache where it has them.

    The short side is `image_size` pixels for fit "crop" and `margin` times that for "random"; for "pad" the long side
    is `image_size`. Transparent images are laid over `background` unless `channels` is 4. `cache` is a folder for
    caches, None for the user's own, or "off": then nothing is written, and `images[i]` decodes anew. Of several
    processes one builds, and the others wait for it. `progress(done, total)` counts files.

    Raises:
        DataError: no folder, no images in it, or none that can be decoded.
        UsageError: a `fit` or a number of channels that there is not, or a `cache` folder that cannot be written.
        ResourceError: no space for the cache.
    """
    if fit not in FITS:
        raise UsageError(f"no fit {fit!r}; there are {', '.join(FITS)}")
    if channels not in images.MODES:
        raise UsageError(f"images have 1, 3 or 4 channels, not {channels}")
    layout = Layout(image_size, channels, fit, background, margin if fit == "random" else 1.0)
    root = Path(os.path.realpath(root))
    found, rejected = list_images(root)
    job = _Job(root, Paths.of(found), layout, workers, progress)
    del found
    if cache == "off":
        rows, bad = _read_all(job)
        return _dataset(root, _Decoding(root, layout, rows.files), rows, rejected + bad, layout)
    folder = cache_root(cache) / _key(root, layout)
    stamps = job.stamps()  # not under the lock, which every process of a node takes in turn
    try:
        with files.lock(folder / "lock", wait=True):
            rows, bad, stored = _bring_up_to_date(folder, job, stamps)
    except OSError as error:
        raise _no_room(folder, error) from error
    return _dataset(root, stored, rows, rejected + bad, layout)


def _no_room(folder: Path, error: OSError, how_far: str = "") -> ResourceError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ResourceError(
        f"cannot keep the decoded images in {printable(str(folder))}: "
        f"{'the disk is full' if full else error.strerror or error}{how_far}; "
        "choose another place with --data.cache DIR, or use none with --data.cache off"
    )


def _dataset(root: Path, pixels: augment.Images, rows: Rows, rejected: Sequence[Rejected], layout: Layout) -> Dataset:
    if not rows.paths:
        raise _nothing_usable(root, rejected)
    mean, sigma_data = _statistics(rows.table, layout.image_size**2)
    told = [Rejected(printable(r.path), r.reason) for r in rejected]
    return Dataset(
        pixels, rows.files, tuple(sorted(told, key=lambda r: r.path)), mean, sigma_data, index_hash(rows.files)
    )


def _nothing_usable(root: Path, rejected: Sequence[Rejected]) -> DataError:
    first = rejected[0]
    example = f"{printable(first.path)}: {first.reason}"
    return DataError(f"{printable(str(root))}: none of its {len(rejected)} images can be used; {example}")


def _statistics(table: NDArray[np.void], area: int) -> tuple[tuple[float, ...], float]:
    """(mean of each channel, deviation around it over all) in units of [-1, 1], from sums that are exact."""
    count = len(table) * area
    total, squares = (table[name].sum(axis=0).astype(np.float64) for name in ("total", "squares"))
    mean = total / count
    variance = float(np.mean(squares / count - mean**2))
    return tuple((mean / 127.5 - 1).tolist()), max(variance, 0.0) ** 0.5 / 127.5


@dataclass(frozen=True)
class _Job:
    """The files to read, and how."""

    root: Path
    paths: Paths
    layout: Layout
    workers: int | None
    progress: Progress | None

    def read(
        self, places: NDArray[np.int64], *, quiet: bool = False
    ) -> Generator[tuple[tuple[Any, ...], Pixels] | Rejected]:
        """(row, pixels) of the paths at `places`, in order, decoded by threads, only a few ahead.

        The other paths count as done already.
        """
        skipped = len(self.paths) - len(places)
        for done, result in enumerate(in_order(self._one, map(int, places), self.workers), 1):
            if self.progress is not None and not quiet:
                self.progress(skipped + done, len(self.paths))
            yield result

    def _one(self, place: int) -> tuple[tuple[Any, ...], Pixels] | Rejected:
        path, layout = self.paths[place], self.layout
        stamp = self._stamp(path)  # before the content is read: if that changes now, it is read again next time
        try:
            file, pixels = read(self.root, path, layout)
        except DataError as error:
            return Rejected(path, str(error))
        pixels = np.ascontiguousarray(pixels)
        middle = augment.square(pixels, layout.image_size, layout.fit, layout.background).reshape(-1, layout.channels)
        total = middle.sum(axis=0, dtype=np.int64)
        squares = np.square(middle, dtype=np.int64).sum(axis=0)
        return (row(file), stamp, pixels.shape, zlib.crc32(pixels.data), total, squares), pixels

    def stamps(self) -> NDArray[np.int64]:
        """[N 2]: size and time of change of every path, 0 where there is no such file any more."""
        return np.fromiter(map(self._stamp, self.paths), np.dtype((np.int64, 2)), len(self.paths))

    def _stamp(self, path: str) -> tuple[int, int]:
        try:
            status = os.stat(f"{self.root}{os.sep}{native(path)}")
        except OSError:
            return 0, 0
        return status.st_size, status.st_mtime_ns

    def empty(self) -> NDArray[np.void]:
        """A row for every path, of zeros."""
        return np.zeros(len(self.paths), cache.row_type(self.layout.channels))


def _read_all(job: _Job) -> tuple[Rows, list[Rejected]]:
    """The rows of all files, for those who want no cache."""
    table, rejected = job.empty(), list[Rejected]()
    usable = np.ones(len(table), bool)
    for n, result in enumerate(job.read(np.arange(len(table)))):
        if isinstance(result, Rejected):
            rejected.append(result)
            usable[n] = False
        else:
            table[n] = result[0]
    return Rows.of(job.paths, table, usable), rejected


def _bring_up_to_date(folder: Path, job: _Job, stamps: NDArray[np.int64]) -> tuple[Rows, list[Rejected], cache.Stored]:
    """(index, files that cannot be used, images), read from `folder` where it is whole and nothing has changed."""
    nothing = np.full(len(job.paths), -1, np.int64)
    old = cache.load(folder)
    if old is None:
        return _build(folder, job, None, nothing, {})
    places = job.paths.places_in(old.rows.paths)
    same = (places >= 0) & (old.rows.table["stamp"][places] == stamps).all(axis=1)
    # What could not be used last time is tried again: a file that could not be read may be readable now.
    again = np.flatnonzero(job.paths.places_in(old.rejected) >= 0)
    results = zip(again, job.read(again, quiet=True), strict=True)
    bad = {int(n): result for n, result in results if isinstance(result, Rejected)}
    if same.sum() == len(old.rows.paths) and same.sum() + len(bad) == len(job.paths):
        cache.delete_others(folder, old.name)  # a killed process may have left something since
        return old.rows, list(bad.values()), old.images
    try:
        return _build(folder, job, old, np.where(same, places, -1), bad)
    except cache.Damaged:
        return _build(folder, job, None, nothing, bad)


def _build(
    folder: Path, job: _Job, old: cache.Generation | None, kept: NDArray[np.int64], bad: dict[int, Rejected]
) -> tuple[Rows, list[Rejected], cache.Stored]:
    """Write a new generation beside the old one, which other processes may still have mapped.

    `kept` [N] is where the image of each path is in `old`, -1 where it is to be read; `bad` are the places of those
    that were just found unusable.
    """
    generation = secrets.token_hex(8)
    table, usable, rejected = job.empty(), kept >= 0, list[Rejected]()
    if old is not None:
        table[usable] = old.rows.table[kept[usable]]
    fresh = job.read(np.array([n for n in np.flatnonzero(~usable) if n not in bad], np.int64))
    done = written = 0
    try:
        with cache.pixels_of(folder, generation).open("xb") as file, contextlib.closing(fresh):
            for n, place in enumerate(kept):
                if n in bad:
                    rejected.append(bad[n])
                elif old is not None and place >= 0:
                    written += file.write(old.images[place].data)
                elif isinstance(result := next(fresh), Rejected):
                    rejected.append(result)
                else:
                    table[n], pixels = result
                    usable[n] = True
                    written += file.write(pixels.data)
                done += 1
        rows = Rows.of(job.paths, table, usable)
        if not rows.paths:
            raise _nothing_usable(job.root, rejected)
        new = cache.commit(folder, generation, rows, rejected, job.root)
    except OSError as error:
        cache.delete_others(folder, old.name if old else "")
        needed = f" of about {written / done * len(kept) / 2**20:,.1f} MiB" if done else ""
        raise _no_room(folder, error, f" after {written / 2**20:,.1f} MiB{needed}") from error
    except BaseException:
        cache.delete_others(folder, old.name if old else "")
        raise
    cache.delete_others(folder, generation)
    return new.rows, rejected, new.images


def _key(root: Path, layout: Layout) -> str:
    parts = [cache.VERSION, os.fsencode(root).hex(), *asdict(layout).values()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
