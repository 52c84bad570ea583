"""A folder of images, or another source, as a data set; they are decoded once into a cache, or each time.

Images keep their aspect ratio, since crops and flips are drawn only when a batch is made. A file whose size and time of
change are those of last time is not read again.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import augment, cache, facts, labels, readers, sources
from diffunet.data.arrays import Arrays
from diffunet.data.cache import (
    Layout,
    RangeNeeded,
    Rows,
    Stored,
    content_of,
    decode_file,
    folder_of,
    forget_stack,
    megabytes,
    no_room,
    statistics,
)
from diffunet.data.folder import Progress, Rejected, in_order, page_of, printable, threads, with_pages
from diffunet.data.index import Index, Paths, index_hash, row
from diffunet.data.labels import Labels
from diffunet.data.listing import LeftOut
from diffunet.data.sources import Source
from diffunet.errors import DataError, UsageError
from diffunet.names import FITS, PAGES, PagesName
from diffunet.pictures import images
from diffunet.pictures.deep import KINDS, Kind
from diffunet.pictures.images import Colour, Pixels
from diffunet.pictures.ranges import UNKNOWN, Histogram, Range, Ranges, Tally, histogram

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A folder of images that is ready to make batches from.

    `images[i]` is uint8 [h w C], read-only and nearly of the size of the model (see `augment.gather`), and `files[i]`
    is its file. `mean` (one number for each channel) and `sigma_data`, the standard deviation around it, are in units
    of [-1, 1] and taken over the middle square of every image. `index_hash` depends on relative paths and contents
    alone, and on labels that are not in the paths, `classes`: the class of each path, where the source has such.
    `left_out` says what of the source is passed over. `images[i]` raises DataError for a damaged cached image, or
    without a cache for a file that has changed. `ranges` are what is black and white in images of more than 8 bits,
    `said` has lines about what files say, and `beside` the files at the top of an archive that may say classes.
    """

    images: augment.Images
    files: Index
    rejected: tuple[Rejected, ...]
    mean: tuple[float, ...]
    sigma_data: float
    index_hash: str
    left_out: LeftOut
    classes: dict[str, str] | None = None
    ranges: Ranges = UNKNOWN
    said: tuple[str, ...] = ()
    beside: dict[str, bytes] = field(default_factory=dict)

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
            changed = file.sha256 != expected.sha256
        except DataError as error:
            raise DataError(f"{printable(expected.path)}: {error}") from None
        except RangeNeeded:  # it had 8 bits before
            changed = True
        if changed:
            raise DataError(f"{printable(expected.path)}: has changed since the data was opened")
        pixels.setflags(write=False)
        return pixels


def open_dataset(
    root: Path, *, image_size: int, channels: int, fit: str, background: Colour = images.WHITE, margin: float = 1.125,
    scales: tuple[float, ...] = (1.0,), cache: Path | Literal["off"] | None = None, workers: int | None = None,
    progress: Progress | None = None, ranges: Ranges = UNKNOWN, pages: PagesName = "first", reading: int = 2,
) -> Dataset:  # fmt: skip
    """Return a data set of all usable images of `root`, decoded or taken from the cache; see `sources.open_source`.

    A stored image has `channels` 1 (grey), 3 (RGB) or 4 (RGBA). Its short side is `image_size` pixels for fit "crop",
    and `margin` times that for "random"; for "pad" its long side is `image_size`; for "patch" it has its own size, or
    the largest of `scales` times that, and at least room for a window. Transparent images are laid over `background`
    unless `channels` is 4. `cache` is a folder for caches, None for the user's own, or "off", with which nothing is
    written and `images[i]` decodes the file each time. Of several processes that call this at once, one builds the
    cache and the others wait. `workers` is a number of threads, and `progress(done, total)` counts files. Of images of
    more than 8 bits `ranges` says which values are black and white; where it does not, all of them are read once
    before, to find it. With `pages` "all", every page of a stack or an animation is an image. `reading` 1 is that of
    diffunet 0.1, without colour profiles and ranges.

    Raises:
        DataError: `root` is no source, holds no images, or none of them can be decoded.
        UsageError: `fit`, `channels` or `pages` is not known, or the folder `cache` cannot be written.
        ResourceError: There is no space for the cache.
    """
    if fit not in FITS:
        raise UsageError(f"no fit {fit!r}; there are {', '.join(FITS)}")
    if pages not in PAGES:
        raise UsageError(f"pages are {' or '.join(PAGES)}, not {pages!r}")
    if channels not in images.MODES:
        raise UsageError(f"images have 1, 3 or 4 channels, not {channels}")
    margin = margin if fit == "random" else 1.0
    source, found = sources.open_source(root, ranges)
    known = ranges.completed(source.ranges) if isinstance(source, Arrays) else ranges
    layout = Layout(image_size, channels, fit, background, margin, scales, known, pages, reading)
    rejected, left_out, beside = found.rejected, found.left_out, sources.beside(source, found)
    paths = with_pages(source.read, found.paths, workers) if pages == "all" else found.paths
    job = _Job(source, Paths.of(paths), layout, workers, progress)
    del found, paths  # a million strings are a lot of memory, and `job` has them in one piece
    chosen = None if cache == "off" else (cache, job.stamps())  # not under a lock, which processes take in turn
    try:
        if chosen is not None and (kept := _kept_ranges(job, chosen)) is not None:
            layout = replace(layout, ranges=ranges.completed(kept))
            job = replace(job, layout=layout)
        opened = _opened(job, chosen)
        if opened is None:
            layout = replace(layout, ranges=ranges.completed(_found(job, chosen)))
            job = replace(job, layout=layout)
            opened = _opened(job, chosen)
    finally:
        forget_stack()
    if opened is None:
        raise DataError(f"{printable(str(root))}: changes while it is read; run the command again")
    rows, undecodable, stored = opened
    if not rows.paths:
        raise _nothing_usable(source.root, rejected + undecodable)
    rejected = sorted((Rejected(printable(r.path), r.reason) for r in rejected + undecodable), key=lambda r: r.path)
    mean, sigma_data = statistics(rows.table, layout.image_size**2)
    index = Index(rows.paths, rows.table["file"].copy())  # a copy, which does not keep the rest of the table in memory
    decoded = _Decoding(source, layout, index) if stored is None else stored
    assert layout.ranges is not None, "they are given above"
    said = tuple(facts.said(rows.table["facts"], layout.ranges, UNKNOWN if isinstance(source, Arrays) else ranges))
    identity, classes = index_hash(index, source.classes), source.classes
    return Dataset(
        decoded, index, tuple(rejected), mean, sigma_data, identity, left_out, classes, layout.ranges, said, beside
    )


_Chosen = tuple[Path | None, NDArray[np.int64]]
"""Where decoded images are kept, and the size and time of change of every file."""


def _opened(job: "_Job", chosen: _Chosen | None) -> tuple[Rows, list[Rejected], Stored | None] | None:
    """Return the rows of all images, the files that cannot be decoded, and the stored images, if they are kept; or None
    where it has to be found first what is black and white."""
    with contextlib.suppress(RangeNeeded):  # while it is handled it would keep the images that were being decoded
        if chosen is None:
            return *job.collect(lambda pixels: None, {}), None
        folder = folder_of(chosen[0], job.source.root, job.layout)
        try:
            with files.lock(folder / "lock", wait=True):
                with contextlib.suppress(OSError):
                    os.utime(folder / "lock")  # when it was last used, see kept.py
                return _bring_up_to_date(folder, job, chosen[1])
        except OSError as error:
            raise no_room(folder, error) from error
    return None


def _found(job: "_Job", chosen: _Chosen | None) -> Ranges:
    """Return what is black and white in images of more than 8 bits: all are read for it, once if there is a cache."""
    if chosen is None:
        return job.found()
    folder = folder_of(chosen[0], job.source.root, job.layout)
    try:
        with files.lock(folder / "lock", wait=True):
            if (found := _kept_ranges(job, chosen)) is None:  # else another process was faster
                found = job.found()
                files.write_atomic(folder / "ranges.json", json.dumps({"of": _key(job, chosen), **asdict(found)}))
            return found
    except OSError as error:
        raise no_room(folder, error) from error


def _kept_ranges(job: "_Job", chosen: _Chosen) -> Ranges | None:
    """Return what `_found` has found before, while no file has changed; None where there is nothing."""
    folder = folder_of(chosen[0], job.source.root, job.layout)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((folder / "ranges.json").read_bytes())
        if content["of"] == _key(job, chosen):
            return Ranges(*(None if content[kind] is None else Range(*content[kind]) for kind in KINDS))
    return None


def _key(job: "_Job", chosen: _Chosen) -> str:
    return hashlib.sha256(job.paths.blob + chosen[1].tobytes()).hexdigest()


def _nothing_usable(root: Path, rejected: Sequence[Rejected]) -> DataError:
    example = f"{printable(rejected[0].path)}: {rejected[0].reason}"
    return DataError(f"{printable(str(root))}: none of its {len(rejected)} images can be used; {example}")


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

    def found(self) -> Ranges:
        """Return what is black and white in the images of more than 8 bits."""
        tally = Tally()
        for done, one in enumerate(in_order(self._histogram, self.paths, self.workers), 1):
            if one is not None:
                tally.add(*one)
            if self.progress is not None:
                self.progress(done, len(self.paths))
        return tally.ranges()

    def _histogram(self, path: str) -> tuple[Kind, Histogram] | None:
        with contextlib.suppress(DataError):  # its reason is given when it is read again
            content, _, page = content_of(self.source, path)
            return histogram(content, path, page)
        return None

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
        return float(np.median([self._stamp(path)[0] for path in paths[:: max(1, len(paths) // 100)]])) < SMALL

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
        stamp = self._stamp(path)  # before reading: a file that changes meanwhile is then read again next time
        file, pixels = decode_file(self.source, path, layout, max_pixels)
        pixels = np.ascontiguousarray(pixels)
        sums = augment.sums(pixels, layout.image_size, layout.fit, layout.background, layout.scales)
        return (row(file), file.facts, stamp, pixels.shape, zlib.crc32(pixels.data), *sums), pixels

    def stamps(self) -> NDArray[np.int64]:
        """Return the stamps of all paths, int64 [N 2]; see `Source.stamps`."""
        if self.layout.pages == "first":
            return self.source.stamps(self.paths)
        return np.fromiter(map(self._stamp, self.paths), np.dtype((np.int64, 2)), len(self.paths))

    def _stamp(self, path: str) -> tuple[int, int]:
        return self.source.stamp(page_of(path)[0])


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
        raise no_room(folder, error, f" after {written / 2**20:,.1f} MiB{needed}") from error
    cache.delete_others(folder, generation)
    return rows, rejected, stored
