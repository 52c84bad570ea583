"""What lies in a folder of images: the candidates, their classes, and a survey of what can be used and why not.

A path is relative to the root, with forward slashes on every system. It is text, the same in every locale: the name's
bytes as UTF-8. `native` turns it into what this process opens the file by.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import TypeVar

import numpy as np

from diffunet.errors import DataError
from diffunet.pictures import images

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_OTHER_IMAGES = (
    ".heic .heif .avif .svg .psd .jxl .jp2 .j2k .ico .tga .exr .hdr .ppm .pgm .pbm .pnm .pcx .eps .ai .xcf .kra .raw "
    ".cr2 .cr3 .nef .arw .dng .orf .rw2 .raf"
)
UNSUPPORTED = frozenset(_OTHER_IMAGES.split())
_SKIPPED_FOLDERS = ("__MACOSX",)

Progress = Callable[[int, int], None]  # (done, total)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One usable file. `width` and `height` are pixels as it is looked at (EXIF applied), `mode` is Pillow's."""

    path: str
    sha256: str
    width: int
    height: int
    mode: str
    format: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that cannot be used; both fields can be printed as they are."""

    path: str
    reason: str


def list_images(root: Path) -> tuple[list[str], list[Rejected]]:
    """The paths of all candidates below `root`, and the image-like files that cannot be any, both sorted by path.

    A candidate has one of `EXTENSIONS`; it is not opened. Hidden files and folders and files of other kinds are passed
    over. Linked folders are followed, each real folder once.

    Raises:
        DataError: `root` is no folder, or there is no candidate in it.
    """
    if not os.path.exists(root):
        raise DataError(f"{printable(str(root))}: no such folder")
    if not os.path.isdir(root):
        raise DataError(
            f"{printable(str(root))}: is a file; give the folder that holds the images (unpack archives first)"
        )
    found: list[str] = []
    rejected: list[Rejected] = []
    extensions: Counter[str] = Counter()
    for name, problem in _walk(root):
        if problem is not None and not name:
            raise DataError(f"{printable(str(root))}: {problem}")
        extension = os.path.splitext(name)[1].lower()
        extensions[extension] += 1
        path = canonical(name) if extension in EXTENSIONS else None
        if problem is None and extension in UNSUPPORTED:
            problem = f"{extension} is not supported; convert it to PNG or JPEG"
        elif problem is None and extension in EXTENSIONS and path is None:
            problem = "its name is not valid text (UTF-8); rename it"
        if problem is not None:
            rejected.append(Rejected(printable(name), problem))
        elif path is not None:
            found.append(path)
    if not found:
        seen = ", ".join(f"{n} {extension or 'without extension'}" for extension, n in extensions.most_common(5))
        raise DataError(
            f"{printable(str(root))}: holds no images (found: {printable(seen) or 'nothing'}); "
            f"supported are {' '.join(EXTENSIONS)}"
        )
    found.sort()
    return found, sorted(rejected, key=lambda r: r.path)


def _walk(root: Path) -> Iterator[tuple[str, str | None]]:
    """(name, None) of every file that is not hidden, (name, problem) of what cannot be entered or followed.

    Names are relative to `root` and as this process sees them.
    """
    visited = {os.path.realpath(root)}
    folders, links = [""], deque[str]()
    while folders or links:
        # Linked folders wait for all real ones, so that a folder has its own name where it can be reached by both.
        if folders:
            folder = folders.pop()
        else:
            folder = links.popleft()
            real = os.path.realpath(root / folder)
            if real in visited:
                continue
            visited.add(real)
        inside: list[str] = []
        linked: list[str] = []
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:  # never all at once: one folder may hold a million
                    if entry.name.startswith(".") or entry.name in _SKIPPED_FOLDERS:
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    try:
                        if not entry.is_dir():
                            if entry.is_file():
                                yield name, None
                            elif os.path.splitext(name)[1].lower() in EXTENSIONS:
                                yield name, "a broken link" if entry.is_symlink() else "not an ordinary file"
                        elif entry.is_symlink():
                            linked.append(name)
                        elif (real := os.path.realpath(entry.path)) not in visited:  # a junction is no symlink
                            visited.add(real)
                            inside.append(name)
                    except OSError as error:
                        yield name, f"cannot be read: {error.strerror}"
        except OSError as error:
            yield folder, f"folder cannot be read: {error.strerror}"
        # Sorted, since of two links to one folder it is the first that counts.
        folders += sorted(inside, key=os.fsencode)
        links += sorted(linked, key=os.fsencode)


def canonical(name: str) -> str | None:
    """A file name as text that is the same in every locale; None where its bytes are not UTF-8."""
    if name.isascii():
        return name
    try:
        return os.fsencode(name).decode()
    except UnicodeError:
        return None


def native(path: str) -> str:
    """What this process calls the file of a canonical path: under a locale that is not UTF-8, something else."""
    return path if path.isascii() else os.fsdecode(path.encode())


def printable(text: str) -> str:
    """`text` on one line for people: what is no text, newlines and other control characters are written as escapes.

    A name as Python gives it under a locale that is not UTF-8 comes out as it does under one that is.
    """
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeError:  # half a pair of surrogates, as Windows allows in names
        text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def class_of(path: str) -> str | None:
    """The first folder of a path, None for an image that lies directly in the root."""
    first, slash, _ = path.partition("/")
    return first if slash else None


def class_names(paths: Iterable[str]) -> tuple[str, ...]:
    """The classes of a data set whose subfolders are labels, sorted.

    Raises:
        DataError: an image lies in no subfolder, or there are fewer than two classes.
    """
    names: set[str] = set()
    for path in paths:
        name = class_of(path)
        if name is None:
            raise DataError(f"{printable(path)}: lies in no class folder; with --classes every image needs one")
        names.add(name)
    if len(names) < 2:
        found = f"only {printable(next(iter(names)))!r}" if names else "none"
        raise DataError(f"--classes needs at least two subfolders with images, and there is {found}")
    return tuple(sorted(names))


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """`map` over threads: results in the order of `items`, and only a few ahead of the one that is taken."""
    workers = workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[R]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


@dataclass(frozen=True)
class Survey:
    """What `diffunet check` found in `root`. `transparent` and `grey` tell, for each image, whether it is so anywhere
    and everywhere."""

    root: Path
    images: tuple[ImageFile, ...]
    rejected: tuple[Rejected, ...]
    transparent: tuple[bool, ...]
    grey: tuple[bool, ...]

    @property
    def formats(self) -> Counter[str]:
        """Images of each format."""
        return Counter(image.format for image in self.images)

    @property
    def modes(self) -> Counter[str]:
        """Images of each Pillow mode."""
        return Counter(image.mode for image in self.images)

    @property
    def classes(self) -> Counter[str | None]:
        """Images in each subfolder of the root; None counts those that are in none."""
        return Counter(class_of(image.path) for image in self.images)

    def size_range(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(width, height) of the smallest and the largest image by area, and in the middle the median of each side."""
        by_area = sorted(((i.width, i.height) for i in self.images), key=lambda size: (size[0] * size[1], size))
        middle = (median_low(i.width for i in self.images), median_low(i.height for i in self.images))
        return by_area[0], middle, by_area[-1]

    def smaller_than(self, size: int) -> int:
        """The number of images whose short side is below `size` pixels: they would be enlarged."""
        return sum(min(image.width, image.height) < size for image in self.images)

    @property
    def elongated(self) -> int:
        """The number of images whose long side is more than twice the short one."""
        return sum(max(i.width, i.height) > 2 * min(i.width, i.height) for i in self.images)

    @property
    def duplicates(self) -> tuple[tuple[str, ...], ...]:
        """Groups of two or more paths with the same content."""
        groups: dict[str, list[str]] = {}
        for image in self.images:
            groups.setdefault(image.sha256, []).append(image.path)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    @property
    def has_alpha(self) -> int:
        """The number of images with a pixel that is not opaque."""
        return sum(self.transparent)

    @property
    def all_grey(self) -> bool:
        """Whether no image has any colour."""
        return bool(self.grey) and all(self.grey)


def survey(root: Path, *, progress: Progress | None = None) -> Survey:
    """Decode every candidate below `root` in full. Bad files are only listed; DataError as in `list_images`."""
    paths, rejected = list_images(root)
    good: list[tuple[ImageFile, bool, bool]] = []
    for done, result in enumerate(in_order(lambda path: _examine(root, path), paths), 1):
        if isinstance(result, Rejected):
            rejected.append(result)
        else:
            good.append(result)
        if progress is not None:
            progress(done, len(paths))
    return Survey(
        root,
        tuple(image for image, _, _ in good),
        tuple(sorted(rejected, key=lambda r: r.path)),
        tuple(transparent for _, transparent, _ in good),
        tuple(grey for _, _, grey in good),
    )


def _examine(root: Path, path: str) -> tuple[ImageFile, bool, bool] | Rejected:
    try:
        content = images.read_bytes(root / native(path))
        with images.decoding(content) as decoded:
            pixels = images.to_array(decoded.image, 4)
            visible = pixels[..., 3] > 0  # editors leave any colour below what cannot be seen
            red, green, blue = (pixels[..., c] for c in range(3))
            grey = not bool(np.any(((red != green) | (green != blue)) & visible))
            image = ImageFile(
                path, hashlib.sha256(content).hexdigest(), decoded.width, decoded.height, decoded.mode, decoded.format
            )
            return image, images.has_alpha(decoded.image), grey
    except DataError as error:
        return Rejected(printable(path), str(error))


def describe(survey: Survey, image_size: int = 64) -> str:
    """The text that `diffunet check` prints: what is there, what stands out, what to do, and the unusable files."""
    total = len(survey.images)
    lines = [f"{printable(str(survey.root))}: {total:,} images can be used, {len(survey.rejected):,} files cannot"]
    if total:
        small, middle, large = (f"{width} x {height}" for width, height in survey.size_range())
        lines += [
            f"  formats      {_counts(survey.formats)}",
            f"  modes        {_counts(survey.modes)}",
            f"  sizes        smallest {small}, median {middle}, largest {large}",
            f"  below {image_size:<6} {survey.smaller_than(image_size):,} have a shorter side and would be enlarged",
            f"  elongated    {survey.elongated:,} have one side more than twice the other",
            f"  transparent  {survey.has_alpha:,}",
            f"  duplicates   {sum(len(group) - 1 for group in survey.duplicates):,} repeat another file exactly",
            f"  subfolders   {_classes(survey)}",
        ]
    lines += [f"  try          {advice}" for advice in _advice(survey, image_size)]
    if survey.rejected:
        lines.append("Files that cannot be used:")
        lines += [f"  {r.path}: {r.reason}" for r in survey.rejected[:20]]
        if len(survey.rejected) > 20:
            lines.append(f"  ... and {len(survey.rejected) - 20:,} more")
    return "\n".join(lines)


def _counts(counter: Counter[str], limit: int = 8) -> str:
    shown = ", ".join(f"{name} {n:,}" for name, n in counter.most_common(limit))
    return shown + (f", and {len(counter) - limit} others" if len(counter) > limit else "")


def _classes(survey: Survey) -> str:
    named = Counter({printable(name): n for name, n in survey.classes.items() if name is not None})
    loose = survey.classes[None]
    if not named:
        return "none"
    return f"{len(named)}: {_counts(named)}" + (f"; {loose:,} images in none" if loose else "")


def _advice(survey: Survey, image_size: int) -> Iterator[str]:
    total = len(survey.images)
    classes = [name for name in survey.classes if name is not None]
    if not total:
        return
    if len(classes) > 1 and None not in survey.classes:
        yield f"--classes                the {len(classes)} subfolders become labels"
    if survey.has_alpha:
        yield "--data.channels 4        keeps transparency, which is otherwise laid over --data.background"
    elif survey.all_grey:
        yield "--data.channels 1        no image has any colour"
    if survey.elongated > total / 4:
        yield "--data.fit pad           many images are long, and a centre crop loses much of them"
    if survey.smaller_than(image_size) > total / 2:
        smaller = max(8, survey.size_range()[1][0] // 8 * 8)
        yield f"--image-size {smaller:<11} most images are smaller than {image_size}"
    if total < 100:
        yield "--init MODEL             so few images are better learned from a trained model"
