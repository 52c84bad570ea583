"""Functions that find the images in a folder, and that read classes from their paths.

A path is relative to the folder, with forward slashes on every system, and the same in every locale: the bytes of the
file's name, read as UTF-8.
"""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from diffunet.data.facts import Facts
from diffunet.errors import DataError
from diffunet.pictures.formats import EXTENSIONS, UNSUPPORTED, unsupported
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


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that cannot be used, and the reason."""

    path: str
    reason: str


def list_images(root: Path) -> tuple[list[str], list[Rejected]]:
    """Return the paths of all candidates below `root` and the image-like files that cannot be candidates, both sorted.

    A candidate has one of `EXTENSIONS`; it is not opened. Hidden files and folders and files of other kinds are left
    out. Linked folders are followed, and each real folder is searched once.

    Raises:
        DataError: `root` is not a folder, or there is no candidate in it.
    """
    shown = printable(str(root))
    if not os.path.exists(root):
        raise DataError(f"{shown}: no such folder")
    if not os.path.isdir(root):
        raise DataError(f"{shown}: is a file; give the folder that holds the images (unpack archives first)")
    paths, rejected, extensions = list[str](), list[Rejected](), Counter[str]()
    for name, problem in _files_below(root):
        if problem is not None and not name:
            raise DataError(f"{shown}: {problem}")
        extension = os.path.splitext(name)[1].lower()
        extensions[extension] += 1
        if problem is None and extension in EXTENSIONS:
            try:
                paths.append(os.fsencode(name).decode())
            except UnicodeError:
                problem = "its name is not valid text (UTF-8); rename it"
        elif problem is None and extension in UNSUPPORTED:
            problem = unsupported(extension)
        if problem is not None:
            rejected.append(Rejected(printable(name), problem))
    if not paths:
        present = ", ".join(f"{n} {extension or 'without extension'}" for extension, n in extensions.most_common(5))
        known = " ".join(EXTENSIONS)
        raise DataError(f"{shown}: holds no images (found: {printable(present) or 'nothing'}); supported are {known}")
    return sorted(paths), sorted(rejected, key=lambda file: file.path)


def _files_below(root: Path) -> Iterator[tuple[str, str | None]]:
    """Yield (name, None) for every file that is not hidden, and (name, problem) for what cannot be read or followed.

    Names are relative to `root`, in the form that this process uses; that of `root` itself is empty.
    """
    visited, pending = set[str](), deque([""])
    while pending:
        folder = pending.popleft()
        if (target := os.path.realpath(root / folder)) in visited:
            continue
        visited.add(target)
        folders, links = list[str](), list[str]()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:  # never all at once: one folder may hold a million
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    try:
                        if entry.is_dir():
                            (links if entry.is_symlink() else folders).append(name)
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


def with_pages(root: Path, paths: Sequence[str], workers: int | None = None) -> list[str]:
    """Return the sorted paths of all pages: those of a file with several end in "#" and their number, as a.tif#0001."""

    def pages(path: str) -> list[str]:
        count = len(page_places(root / native(path)))
        return [path] if count == 1 else [f"{path}#{number:04}" for number in range(1, count + 1)]

    return sorted(page for group in in_order(pages, paths, workers) for page in group)


def native(path: str) -> str:
    """Return the name by which this process opens a path; it differs under a locale that is not UTF-8."""
    return path if path.isascii() else os.fsdecode(path.encode())


def printable(text: str) -> str:
    """Return `text` on one line in every locale: line breaks, control characters and bytes beyond UTF-8 are escaped."""
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeError:  # half a pair of surrogates, as Windows allows in names
        text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def class_of(path: str) -> str | None:
    """Return the first folder of a path, or None for an image that lies directly in the root."""
    first, slash, _ = path.partition("/")
    return first if slash else None


def class_names(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted names of the subfolders, which are the classes of a data set with labels.

    Raises:
        DataError: An image lies in no subfolder, or there are fewer than two classes.
    """
    names: set[str] = set()
    for path in paths:
        if (name := class_of(path)) is None:
            raise DataError(f"{printable(path)}: lies in no class folder; with --classes every image needs one")
        names.add(name)
    if len(names) < 2:
        present = f"only {printable(next(iter(names)))!r}" if names else "none"
        raise DataError(f"--classes needs at least two subfolders with images, and there is {present}")
    return tuple(sorted(names))


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
