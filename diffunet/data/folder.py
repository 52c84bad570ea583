"""Functions that find the images in a folder, and that read classes from their paths.

A path is relative to the folder, with forward slashes on every system, and the same in every locale: the bytes of the
file's name, read as UTF-8.
"""

import contextlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from diffunet import files
from diffunet.data import listing
from diffunet.data.facts import Facts
from diffunet.data.listing import LeftOut, Listing
from diffunet.data.listing import Rejected as Rejected
from diffunet.data.listing import printable as printable
from diffunet.errors import DataError
from diffunet.pictures.formats import EXTENSIONS
from diffunet.pictures.opening import page_places

Progress = Callable[[int, int], None]  # (done, total)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that can be used, or with `data.pages` a page of it, whose `path` then ends in "#" and its number.

    `width` and `height` are pixels after its EXIF rotation, `mode` is Pillow's.
    """

    path: str
    sha256: str
    width: int
    height: int
    mode: str
    format: str
    facts: Facts = field(default=Facts(), compare=False)


def list_images(root: Path) -> tuple[list[str], list[Rejected]]:
    """Return the names of all candidates below `root` and the files that cannot be used, both sorted.

    The names are those of the files, whatever their Unicode form; else as `candidates`, with its errors.
    """
    found = candidates(root)
    names = (found.stored.get(path, path) for path in found.paths)
    return sorted(names) if found.stored else list(names), found.rejected


def candidates(root: Path) -> Listing:
    """Return which files below `root` may be images, and what is left out; see `listing.of`.

    A candidate has one of `EXTENSIONS`, or one that says nothing and the first bytes of an image. Hidden files and
    folders are left out, and so are those that systems keep and that diffunet made. Linked folders are followed, and
    each real folder is searched once.

    Raises:
        DataError: `root` is not a folder, or there is no candidate in it.
    """
    shown = printable(str(root))
    if (why := files.absent(root, "no such folder")) is not None:
        raise DataError(f"{shown}: {why}")
    if not os.path.isdir(root):
        raise DataError(f"{shown}: is a file; give the folder that holds the images (unpack archives first)")
    left_out = LeftOut()
    return listing.of(_files_below(root, left_out), lambda name: _head(root, name), _text, left_out, shown)


def _text(name: str) -> str:
    return name if name.isascii() else os.fsencode(name).decode()


def _head(root: Path, name: str) -> bytes:
    with contextlib.suppress(OSError), open(root / name, "rb") as file:
        return file.read(32)
    return b""


def _files_below(root: Path, left_out: LeftOut) -> Iterator[tuple[str, str | None]]:
    """Yield (name, None) for every file that is not hidden, and (name, problem) for what cannot be read or followed.

    Names are relative to `root`, in the form that this process uses; that of `root` itself is empty. Folders that are
    passed over are noted.
    """
    visited, pending, outputs = set[str](), deque([""]), set[str]()
    while pending:
        folder = pending.popleft()
        if (target := os.path.realpath(root / folder)) in visited:
            continue
        visited.add(target)
        if folder and (what := listing.made_here(folder, lambda name: os.path.exists(root / name))):
            left_out.made[folder] = what
            continue
        folders, links = list[str](), list[str]()
        outputs |= _outputs(root, folder)
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:  # never all at once: one folder may hold a million
                    if listing.is_hidden(entry.name):
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    try:
                        if entry.is_dir():
                            if listing.is_kept_by_systems(entry.name):
                                left_out.folders[entry.name] += 1
                            else:
                                (links if entry.is_symlink() else folders).append(name)
                        elif name in outputs:
                            left_out.outputs += 1
                        elif entry.is_file():
                            yield name, None
                        elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                            yield name, "a broken link" if entry.is_symlink() else "not an ordinary file"
                    except OSError as error:
                        yield name, f"cannot be read: {error.strerror}"
        except OSError as error:
            yield folder, f"folder cannot be read: {error.strerror}"
        # Linked folders wait for all real ones, so that a folder that can be reached both ways keeps its own name. Of
        # two links to one folder the first gives the name: sorted, it is the same one on every file system.
        pending.extendleft(sorted(folders, key=os.fsencode))
        pending.extend(sorted(links, key=os.fsencode))


_PAGE = re.compile(r"(.+)#([0-9]{4,})", re.DOTALL)


def page_of(path: str) -> tuple[str, int | None]:
    """Return the file of a path, and the number of the page that it means, from 1 on; None for the file as a whole."""
    match = _PAGE.fullmatch(path)  # no file that is listed ends so, since its ending is one of `EXTENSIONS`
    return (match[1], int(match[2])) if match else (path, None)


def with_pages(read: Callable[[str], bytes], paths: Sequence[str], workers: int | None = None) -> list[str]:
    """Return the sorted paths of all pages: those of a file with several end in "#" and their number, as a.tif#0001.

    `read` returns the bytes of a file, or raises DataError, whose reason is given when the file is read again.
    """

    def pages(path: str) -> list[str]:
        count = 1
        with contextlib.suppress(DataError):
            count = len(page_places(read(path), path))
        return [path] if count == 1 else [f"{path}#{number:04}" for number in range(1, count + 1)]

    return sorted(page for group in in_order(pages, paths, workers) for page in group)


def _outputs(root: Path, folder: str) -> set[str]:
    """Return the names of the pictures that diffunet noted in a folder; none where `root` holds nothing else."""
    path = root / folder / listing.RECORD
    if not os.path.isfile(path):
        return set()
    with contextlib.suppress(OSError):
        names = listing.noted(path.read_bytes())
        others = (name for name in os.listdir(root) if name not in names and not listing.is_hidden(name))
        if folder or any(listing.ending(name) in EXTENSIONS or (root / name).is_dir() for name in others):
            return {f"{folder}/{name}" if folder else name for name in names}
    return set()


def native(path: str) -> str:
    """Return the name by which this process opens a path; it differs under a locale that is not UTF-8."""
    return path if path.isascii() else os.fsdecode(path.encode())


def class_of(path: str) -> str | None:
    """Return the first folder of a path, or None for an image that lies directly in the root."""
    first, slash, _ = path.partition("/")
    return first if slash else None


def threads() -> int:
    """Return how many threads read files where nobody says it: one for each core, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """Yield `function(item)` for each item in order, computed by threads that run only a few items ahead.

    Unlike `Executor.map`, it never holds the results of all items at once.
    """
    with ThreadPoolExecutor(workers := workers or threads()) as pool:
        ahead: deque[Future[R]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
