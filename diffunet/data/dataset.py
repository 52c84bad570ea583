"""A folder of images, or another source, as a data set; they are decoded once into a cache, or each time.

Images keep their aspect ratio, since crops and flips are drawn only when a batch is made. A file whose size and time of
change are those of last time is not read again.
"""

import contextlib
import errno
import logging
import os
import secrets
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import augment, cache, labels, readers
from diffunet.data.cache import Layout, Rows, Stored, decode_file, folder_of, megabytes
from diffunet.data.folder import Progress, Rejected, in_order, printable, threads
from diffunet.data.index import Index, Paths, index_hash, row
from diffunet.data.labels import Labels
from diffunet.data.listing import LeftOut
from diffunet.data.sources import Source, open_source
from diffunet.errors import DataError, ResourceError, UsageError
from diffunet.names import FITS
from diffunet.pictures import images
from diffunet.pictures.images import Colour, Pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A folder of images that is ready to make batches from.

    `images[i]` is uint8 [h w C], read-only and nearly of the size of the model (see `augment.gather`), and `files[i]`
    is its file. `mean` (one number for each channel) and `sigma_data`, the standard deviation around it, are in units
    of [-1, 1] and taken over the middle square of every image. `index_hash` depends on relative paths and contents
    alone, and on labels that are not in the paths, `classes`: the class of each path, where the source has such.
    `left_out` says what of the source is passed over. `images[i]` raises DataError for a damaged cached image, or
    without a cache for a file that has changed.
    """

    images: augment.Images
    files: Index
    rejected: tuple[Rejected, ...]
    mean: tuple[float, ...]
    sigma_data: float
    index_hash: str
    left_out: LeftOut
    classes: dict[str, str] | None = None

    def class_names(self) -> tuple[str, ...]:
        """Return the sorted names of the classes, by the source's labels or else the subfolders; see `labels.find`."""
        return self._classes(2).names

    def labels(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the label of each image, the place of its class in `names`, int64 [N]; see `labels.Labels.known`."""
        return self._classes(1).known(names)

    def _classes(self, least: int) -> Labels:
        return labels.find(
            Path(), self.files.paths, labels.FOLDERS if self.classes is None else None, given=self.classes, least=least
        )


class _Decoding:
    """The images of a data set without a cache, decoded from their files each time."""

    def __init__(self, source: Source, layout: Layout, image_files: Index) -> None:
        self._source, self._layout, self._files = source, layout, image_files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> Pixels:
        expected = self._files[index]
        try:
            file, pixels = decode_file(self._source, expected.path, self._layout)
        except DataError as error:
            raise DataError(f"{printable(expected.path)}: {error}") from None
        if file.sha256 != expected.sha256:
            raise DataError(f"{printable(expected.path)}: has changed since the data was opened")
        pixels.setflags(write=False)
        return pixels


def open_dataset(
    root: Path, *, image_size: int, channels: int, fit: str, background: Colour = images.WHITE, margin: float = 1.125,
    scales: tuple[float, ...] = (1.0,),
    cache: Path | Literal["off"] | None = None, workers: int | None = None, progress: Progress | None = None,
) -> Dataset:  # fmt: skip
    """Return a data set of all usable images of `root`, decoded or taken from the cache; see `sources.open_source`.

    A stored image has `channels` 1 (grey), 3 (RGB) or 4 (RGBA). Its short side is `image_size` pixels for fit "crop",
    and `margin` times that for "random"; for "pad" its long side is `image_size`; for "patch" it has its own size, or
    the largest of `scales` times that, and at least room for a window. Transparent images are laid over `background`
    unless `channels` is 4. `cache` is a folder for caches, None for the user's own, or "off", with which
    nothing is written and `images[i]` decodes the file each time. Of several processes that call this at once, one
    builds the cache and the others wait. `workers` is a number of threads, and `progress(done, total)` counts files.

    Raises:
        DataError: `root` is no source, holds no images, or none of them can be decoded.
        UsageError: `fit` or `channels` is not known, or the folder `cache` cannot be written.
        ResourceError: There is no space for the cache.
    """
    if fit not in FITS:
        raise UsageError(f"no fit {fit!r}; there are {', '.join(FITS)}")
    if channels not in images.MODES:
        raise UsageError(f"images have 1, 3 or 4 channels, not {channels}")
    layout = Layout(image_size, channels, fit, background, margin if fit == "random" else 1.0, scales)
    source, found = open_source(root)
    rejected, left_out = found.rejected, found.left_out
    job = _Job(source, Paths.of(found.paths), layout, workers, progress)
    del found  # a million strings are a lot of memory, and `job` has them in one piece
    stored = None
    if cache == "off":
        rows, undecodable = job.collect(lambda pixels: None, {})
    else:
        folder = folder_of(cache, source.root, layout)
        stamps = source.stamps(job.paths)  # not under the lock, which every process of a node takes in turn
        try:
            with files.lock(folder / "lock", wait=True):
                with contextlib.suppress(OSError):
                    os.utime(folder / "lock")  # when it was last used, see kept.py
                rows, undecodable, stored = _bring_up_to_date(folder, job, stamps)
        except OSError as error:
            raise _no_room(folder, error) from error
    rejected += undecodable
    if not rows.paths:
        raise _nothing_usable(source.root, rejected)
    rejected = sorted((Rejected(printable(r.path), r.reason) for r in rejected), key=lambda r: r.path)
    mean, sigma_data = _statistics(rows.table, layout.image_size**2)
    index = Index(rows.paths, rows.table["file"].copy())  # a copy, which does not keep the rest of the table in memory
    pixels = _Decoding(source, layout, index) if stored is None else stored
    identity, classes = index_hash(index, source.classes), source.classes
    return Dataset(pixels, index, tuple(rejected), mean, sigma_data, identity, left_out, classes)


def _no_room(folder: Path, error: OSError, progress: str = "") -> ResourceError:
    reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or error
    return ResourceError(
        f"cannot keep the decoded images in {printable(str(folder))}: {reason}{progress}; "
        "choose another place with --data.cache DIR, or use none with --data.cache off"
    )


def _nothing_usable(root: Path, rejected: Sequence[Rejected]) -> DataError:
    example = f"{printable(rejected[0].path)}: {rejected[0].reason}"
    return DataError(f"{printable(str(root))}: none of its {len(rejected)} images can be used; {example}")


def _statistics(table: NDArray[np.void], area: int) -> tuple[tuple[float, ...], float]:
    """Return each channel's mean and the standard deviation around them, in [-1, 1], of images of `area` pixels."""
    sums = (table[name].sum(axis=0).astype(np.float64) for name in ("total", "squares"))
    mean, square = (values / (len(table) * area) for values in sums)
    variance = float(np.mean(square - mean**2))
    return tuple((mean / 127.5 - 1).tolist()), max(variance, 0.0) ** 0.5 / 127.5


TELLING = 20
"""The number of pictures after which it is told how much room all of them take, as large ones may take much."""

MANY, SMALL, CHUNK = 2000, 2**16, 64
"""Of at least so many files, whose median is below so many bytes, processes read so many at a time: of the half
millisecond that a JPEG of 32x32 pixels takes Python has most, and of threads one at a time."""

_Read = tuple[tuple[Any, ...], Pixels]
"""The row of an image in the index, and its pixels."""


@dataclass(frozen=True)
class _Job:
    """The files to read, and how to read them."""

    source: Source
    paths: Paths
    layout: Layout
    workers: int | None
    progress: Progress | None

    def collect(
        self, keep: Callable[[Pixels | None], object], undecodable: dict[int, Rejected],
        old: cache.Generation | None = None, kept: NDArray[np.int64] | None = None,
    ) -> tuple[Rows, list[Rejected]]:  # fmt: skip
        """Return the rows of all images and the files that cannot be decoded.

        Args:
            keep: is called for every path in order, with the pixels of its image or None where it cannot be decoded.
            undecodable: the files that have just been tried in vain, by the place of their path.
            old: the generation that holds the images of the paths for which `kept`, int64 [N], is a place and not -1.
        """
        kept = np.full(len(self.paths), -1, np.int64) if kept is None else kept
        table, usable = np.zeros(len(kept), cache.row_type(self.layout.channels)), kept >= 0
        if old is not None:
            table[usable] = old.rows.table[kept[usable]]
        rejected: list[Rejected] = []
        unread = np.array([n for n in np.flatnonzero(~usable) if n not in undecodable], np.int64)
        with contextlib.closing(self.read(unread)) as fresh:
            for n, place in enumerate(kept):
                pixels: Pixels | None = None
                if old is not None and place >= 0:
                    pixels = old.images[place]
                elif isinstance(result := undecodable.get(n) or next(fresh), Rejected):
                    rejected.append(result)
                else:
                    table[n], pixels = result
                    usable[n] = True
                keep(pixels)
        places = np.flatnonzero(usable)
        return Rows(self.paths.take(places), table if usable.all() else table[places]), rejected

    def read(self, places: NDArray[np.int64]) -> Generator[_Read | Rejected]:
        """Yield (row, pixels) of the paths at `places`, in order; for `progress` the other paths are done already."""
        skipped, paths = len(self.paths) - len(places), [self.paths[int(place)] for place in places]
        results = self._by_processes(paths) if self._are_small(paths) else in_order(self._read_one, paths, self.workers)
        for done, result in enumerate(results, 1):
            if self.progress is not None:
                self.progress(skipped + done, len(self.paths))
            yield result

    def _are_small(self, paths: Sequence[str]) -> bool:
        """Return whether so many files are so small that processes read them faster than threads do."""
        workers = self.workers or threads()
        if len(paths) < MANY or workers == 1 or not self.source.in_processes or not readers.available():
            return False
        return float(np.median([self.source.stamp(path)[0] for path in paths[:: max(1, len(paths) // 100)]])) < SMALL

    def _by_processes(self, paths: Sequence[str]) -> Iterator[_Read | Rejected]:
        """Yield as `_read_one` for each path, read by as many processes as there are cores."""
        job = replace(self, paths=Paths.of(()), progress=None)
        chunks = [paths[first : first + CHUNK] for first in range(0, len(paths), CHUNK)]
        with readers.readers(job._read) as read:
            for chunk, results in zip(chunks, in_order(read, chunks, self.workers), strict=True):
                for path, result in zip(chunk, results, strict=True):
                    # What a process could not read, this one reads again, for the reason, or for it is too large.
                    yield self._read_one(path) if result is None else result

    def _read_one(self, path: str) -> _Read | Rejected:
        try:
            return self._read(path, images.MAX_PIXELS)
        except DataError as error:
            return Rejected(path, str(error))

    def _read(self, path: str, max_pixels: int = images.LARGE) -> _Read:
        """Return the row and the pixels of a file; processes read none that may be opened only one at a time."""
        layout = self.layout
        stamp = self.source.stamp(path)  # before reading: a file that changes meanwhile is then read again next time
        file, pixels = decode_file(self.source, path, layout, max_pixels)
        pixels = np.ascontiguousarray(pixels)
        sums = augment.sums(pixels, layout.image_size, layout.fit, layout.background, layout.scales)
        return (row(file), stamp, pixels.shape, zlib.crc32(pixels.data), *sums), pixels


def _bring_up_to_date(folder: Path, job: _Job, stamps: NDArray[np.int64]) -> tuple[Rows, list[Rejected], Stored]:
    """Return the rows of the images, the files that cannot be decoded, and the images, from the cache in `folder`.

    It is read where it is whole and the files still have these `stamps`, else built anew from what is still good.
    """
    old = cache.load(folder)
    undecodable: dict[int, Rejected] = {}
    if old is not None:
        places = job.paths.places_in(old.rows.paths)
        same = (places >= 0) & (old.rows.table["stamp"][places] == stamps).all(axis=1)
        # Files that could not be decoded last time are tried again: one that could not be read may be readable now.
        retried = np.flatnonzero(job.paths.places_in(old.rejected) >= 0)
        results = zip(map(int, retried), replace(job, progress=None).read(retried), strict=True)
        undecodable = {n: result for n, result in results if isinstance(result, Rejected)}
        if same.sum() == len(old.rows.paths) and same.sum() + len(undecodable) == len(job.paths):
            cache.delete_others(folder, old.name)  # a process that was killed may have left something since
            return old.rows, list(undecodable.values()), old.images
        with contextlib.suppress(cache.Damaged):
            return _build(folder, job, undecodable, old, np.where(same, places, -1))
    return _build(folder, job, undecodable)


def _build(
    folder: Path, job: _Job, undecodable: dict[int, Rejected],
    old: cache.Generation | None = None, kept: NDArray[np.int64] | None = None,
) -> tuple[Rows, list[Rejected], Stored]:  # fmt: skip
    """Write a new generation beside the old one, which other processes may still have mapped into their memory.

    The arguments are as for `_Job.collect`.
    """
    generation = secrets.token_hex(8)
    done = written = 0
    try:
        with cache.paths_of(folder, generation)[0].open("xb") as file:

            def keep(pixels: Pixels | None) -> None:
                nonlocal done, written
                written += 0 if pixels is None else file.write(pixels.data)
                done += 1
                if job.layout.fit == "patch" and done == min(TELLING, len(job.paths)):
                    whole = megabytes(round(written / done * len(job.paths)))
                    log.info("decoded pictures take about %s in %s", whole, printable(str(folder)))

            rows, rejected = job.collect(keep, undecodable, old, kept)
        if not rows.paths:
            raise _nothing_usable(job.source.root, rejected)
        stored = cache.commit(folder, generation, rows, rejected, job.source.root)
    except BaseException as error:
        cache.delete_others(folder, old.name if old else "")
        if not isinstance(error, OSError):
            raise
        needed = f" of about {written / done * len(job.paths) / 2**20:,.1f} MiB" if done else ""
        raise _no_room(folder, error, f" after {written / 2**20:,.1f} MiB{needed}") from error
    cache.delete_others(folder, generation)
    return rows, rejected, stored
