"""The decoded cache: a folder of images as memory-mapped uint8 pixels of nearly the right size, with an offset index.

Images keep their aspect, so crops and flips are drawn when a batch is made. A cache folder holds

    pixels-GENERATION.bin    the images, one after the other, uint8 [h w C] each
    index-GENERATION.json    their paths, hashes, sizes and statistics, and what a file looked like when it was read
    manifest.json            names the generation; written last, so that what it names is whole
    lock                     held by the one process that looks or builds

A file whose size and time of change are the same is not read again. What a data set *is* (`index_hash`), though,
depends on relative paths and contents alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import augment, images
from diffunet.data.folder import ImageFile, Progress, Rejected, class_of, in_order, list_images, printable
from diffunet.data.images import Pixels
from diffunet.data.layout import Layout, read
from diffunet.data.user_cache import cache_root
from diffunet.errors import DataError, ResourceError, UsageError

VERSION = 1  # of the files, and of how pixels are made; another one makes another cache folder


@dataclass(frozen=True)
class Entry:
    """An image in the index. `total` and `squares` are sums over the pixels of its middle square, per channel."""

    file: ImageFile
    stamp: tuple[int, int]  # size in bytes, time of change in ns
    shape: tuple[int, int, int]
    total: tuple[int, ...]
    squares: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes in the store."""
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True)
class Dataset:
    """A folder of images, ready to make batches from.

    `images[i]` is uint8 [h w C], read-only and nearly of the size of the model (see `augment.gather`). `mean` (one for
    each channel) and `sigma_data`, the standard deviation around it, are in units of [-1, 1] and taken over the middle
    square of every image. `index_hash` changes with any path or content.
    """

    images: augment.Images
    files: tuple[ImageFile, ...]
    rejected: tuple[Rejected, ...]
    mean: tuple[float, ...]
    sigma_data: float
    index_hash: str

    def labels(self, names: Sequence[str]) -> NDArray[np.int64]:
        """int64 [N]: the place of each image's subfolder in `names`. DataError where it is not among them."""
        number = {name: n for n, name in enumerate(names)}
        try:
            return np.array([number[class_of(file.path) or ""] for file in self.files], np.int64)
        except KeyError:
            stray = next(file.path for file in self.files if (class_of(file.path) or "") not in number)
            raise DataError(f"{printable(stray)}: its folder is none of the {len(number)} classes") from None


class _Stored:
    """Images in a memory-mapped file."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self._pixels = np.asarray(np.memmap(path, np.uint8, "r"))
        self._shapes = [entry.shape for entry in entries]
        self._ends = np.cumsum([entry.size for entry in entries])

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int, /) -> Pixels:
        shape = self._shapes[index]
        end = int(self._ends[index])
        return self._pixels[end - shape[0] * shape[1] * shape[2] : end].reshape(shape)


class _Decoding:
    """Images that are decoded each time, for those who want no cache."""

    def __init__(self, root: Path, layout: Layout, entries: Sequence[Entry]) -> None:
        self._root, self._layout, self._files = root, layout, [entry.file for entry in entries]

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
    if fit not in augment.FITS:
        raise UsageError(f"no fit {fit!r}; there are {', '.join(augment.FITS)}")
    if channels not in images.MODES:
        raise UsageError(f"images have 1, 3 or 4 channels, not {channels}")
    layout = Layout(image_size, channels, fit, background, margin if fit == "random" else 1.0)
    root = root.resolve()
    paths, rejected = list_images(root)
    job = _Job(root, paths, layout, workers, progress)
    if cache == "off":
        entries = []
        for result in job.read(paths):
            if isinstance(result, Rejected):
                rejected.append(result)
            else:
                entries.append(result[0])
        return _dataset(root, _Decoding(root, layout, entries), entries, rejected, layout)
    folder = cache_root(cache) / _key(root, layout)
    try:
        with files.lock(folder / "lock", wait=True):
            entries, bad, pixels = _bring_up_to_date(folder, job)
            return _dataset(root, _Stored(pixels, entries), entries, rejected + bad, layout)
    except OSError as error:
        advice = "choose another place with --data.cache DIR, or use none with --data.cache off"
        problem = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise ResourceError(f"cannot keep the decoded images in {folder}: {problem}; {advice}") from error


def _dataset(
    root: Path, pixels: augment.Images, entries: Sequence[Entry], rejected: list[Rejected], layout: Layout
) -> Dataset:
    if not entries:
        raise _nothing_usable(root, rejected)
    mean, sigma_data = _statistics(entries, layout.image_size**2)
    image_files = tuple(entry.file for entry in entries)
    return Dataset(
        pixels, image_files, tuple(sorted(rejected, key=lambda r: r.path)), mean, sigma_data, index_hash(image_files)
    )


def _nothing_usable(root: Path, rejected: Sequence[Rejected]) -> DataError:
    first = rejected[0]
    example = f"{printable(first.path)}: {first.reason}"
    return DataError(f"{printable(str(root))}: none of its {len(rejected)} images can be used; {example}")


def _statistics(entries: Sequence[Entry], area: int) -> tuple[tuple[float, ...], float]:
    """(mean of each channel, deviation around it over all) in units of [-1, 1], from sums that are exact."""
    count = len(entries) * area
    total, squares = (
        np.array([sum(column) for column in zip(*sums, strict=True)], np.float64)
        for sums in ((entry.total for entry in entries), (entry.squares for entry in entries))
    )
    mean = total / count
    variance = float(np.mean(squares / count - mean**2))
    return tuple((mean / 127.5 - 1).tolist()), max(variance, 0.0) ** 0.5 / 127.5


def index_hash(image_files: Iterable[ImageFile]) -> str:
    """What a data set is: sha256 over the sorted pairs of relative path and content hash."""
    digest = hashlib.sha256()
    for path, content in sorted((file.path, file.sha256) for file in image_files):
        digest.update(f"{path}\0{content}\0".encode())
    return digest.hexdigest()


def split(image_files: Sequence[ImageFile], fraction: float, cap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train, held out): ascending indices, about `fraction` of the images held out, at most `cap`.

    An image is held out where its content hash, as a number in [0, 1), is below `fraction`; so it stays on its side
    when others come and go, and copies are on the same side. Where `cap` is short, the lowest hashes are held out.
    Below 20 images none is; from 20 on at least one content is where the cap allows it, and one is always left to
    train on.
    """
    groups: dict[str, list[int]] = {}
    for n, file in enumerate(image_files):
        groups.setdefault(file.sha256, []).append(n)
    hashes = sorted(groups)
    below = [h for h in hashes if int(h[:13], 16) / 16**13 < fraction]  # 13 digits are exact in a float
    held: list[int] = []
    if len(image_files) >= 20 and fraction > 0:
        for h in (below or hashes[:1])[: len(hashes) - 1]:
            if len(held) + len(groups[h]) <= cap:
                held += groups[h]
    chosen = set(held)
    train = [n for n in range(len(image_files)) if n not in chosen]
    return np.array(train, np.int64), np.array(sorted(held), np.int64)


@dataclass(frozen=True)
class _Job:
    """The files to read, and how."""

    root: Path
    paths: Sequence[str]
    layout: Layout
    workers: int | None
    progress: Progress | None

    def read(self, paths: Sequence[str], *, quiet: bool = False) -> Generator[tuple[Entry, Pixels] | Rejected]:
        """Each of `paths` in order, decoded by threads, only a few ahead; the other files count as done already."""
        skipped = len(self.paths) - len(paths)
        for done, result in enumerate(in_order(self._one, paths, self.workers), 1):
            if self.progress is not None and not quiet:
                self.progress(skipped + done, len(self.paths))
            yield result

    def _one(self, path: str) -> tuple[Entry, Pixels] | Rejected:
        layout = self.layout
        stamp = _stamp(self.root / path)  # before the content is read: if that changes now, it is read again next time
        try:
            file, pixels = read(self.root, path, layout)
        except DataError as error:
            return Rejected(path, str(error))
        middle = augment.square(pixels, layout.image_size, layout.fit, layout.background).reshape(-1, layout.channels)
        total = middle.sum(axis=0, dtype=np.int64)
        squares = np.square(middle, dtype=np.int64).sum(axis=0)
        h, w, c = pixels.shape
        return Entry(file, stamp or (0, 0), (h, w, c), tuple(total.tolist()), tuple(squares.tolist())), pixels


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _bring_up_to_date(folder: Path, job: _Job) -> tuple[list[Entry], list[Rejected], Path]:
    """(index, files that cannot be used, pixel file), read from `folder` where it is whole and nothing has changed."""
    old = _load(folder)
    if old is None:
        return _build(folder, job, None, {}, {})
    number = {entry.file.path: n for n, entry in enumerate(old.entries)}
    kept = {p: number[p] for p in job.paths if p in number and _stamp(job.root / p) == old.entries[number[p]].stamp}
    # What could not be used last time is tried again: a file that could not be read may be readable now.
    again = [p for p in job.paths if p in old.rejected]
    bad = {result.path: result for result in job.read(again, quiet=True) if isinstance(result, Rejected)}
    if len(kept) == len(old.entries) and len(kept) + len(bad) == len(job.paths):
        return old.entries, list(bad.values()), old.pixels
    return _build(folder, job, old, kept, bad)


def _build(
    folder: Path, job: _Job, old: _Cache | None, kept: dict[str, int], bad: dict[str, Rejected]
) -> tuple[list[Entry], list[Rejected], Path]:
    """Write a new generation beside the old one, which other processes may still have mapped.

    `kept` are the paths that are taken over, with their place in `old`; `bad` those that were just found unusable.
    """
    fresh = job.read([p for p in job.paths if p not in kept and p not in bad])
    stored = _Stored(old.pixels, old.entries) if old else None
    generation = f"{time.time_ns():x}"
    pixels_path, index_path = folder / f"pixels-{generation}.bin", folder / f"index-{generation}.json"
    entries: list[Entry] = []
    rejected: list[Rejected] = []
    try:
        with pixels_path.open("xb") as file, contextlib.closing(fresh):
            for path in job.paths:
                if path in bad:
                    rejected.append(bad[path])
                elif path in kept and old and stored:
                    entries.append(old.entries[kept[path]])
                    file.write(stored[kept[path]].data)
                else:
                    result = next(fresh)
                    if isinstance(result, Rejected):
                        rejected.append(result)
                        continue
                    entries.append(result[0])
                    file.write(np.ascontiguousarray(result[1]).data)
        if not entries:
            raise _nothing_usable(job.root, rejected)
        files.fsync(pixels_path)
        index = json.dumps({"entries": [asdict(e) for e in entries], "rejected": [r.path for r in rejected]})
        files.write_atomic(index_path, index)
        manifest = {
            "version": VERSION,
            "source": str(job.root).encode("utf-8", "backslashreplace").decode(),
            "generation": generation,
            "pixels_bytes": pixels_path.stat().st_size,
            "index_sha256": hashlib.sha256(index.encode()).hexdigest(),
        }
        files.write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1))
    except BaseException:
        _delete_others(folder, old.generation if old else "")
        raise
    _delete_others(folder, generation)
    return entries, rejected, pixels_path


def _delete_others(folder: Path, generation: str) -> None:
    """Other generations, and what a killed process left. Windows keeps those that are still mapped until next time."""
    for pattern in ("pixels-*.bin", "index-*.json", ".*.tmp"):
        for path in folder.glob(pattern):
            if path.stem.partition("-")[2] != generation:
                with contextlib.suppress(OSError):
                    path.unlink()


@dataclass(frozen=True)
class _Cache:
    """What a cache folder holds."""

    generation: str
    pixels: Path
    entries: list[Entry]
    rejected: frozenset[str]


def _load(folder: Path) -> _Cache | None:
    """The cache in `folder`, or None where there is none or any of it is missing, cut short or changed."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        pixels = folder / f"pixels-{manifest['generation']}.bin"
        content = (folder / f"index-{manifest['generation']}.json").read_bytes()
        if (
            manifest["version"] != VERSION
            or hashlib.sha256(content).hexdigest() != manifest["index_sha256"]
            or pixels.stat().st_size != manifest["pixels_bytes"]
        ):
            return None
        index = json.loads(content)
        entries = [_entry(fields) for fields in index["entries"]]
        return _Cache(manifest["generation"], pixels, entries, frozenset(index["rejected"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entry(fields: dict[str, Any]) -> Entry:
    tuples = {name: tuple(fields[name]) for name in ("stamp", "shape", "total", "squares")}
    return Entry(ImageFile(**fields["file"]), **tuples)


def _key(root: Path, layout: Layout) -> str:
    parts = [VERSION, str(root), *asdict(layout).values()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
