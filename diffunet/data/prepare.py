"""Writing a data set from elsewhere as a folder of images: from the web, a bucket, the hub, or a file here."""

from __future__ import annotations

import bz2
import gzip
import itertools
import logging
import lzma
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from diffunet import files
from diffunet.data import archives, builtin, download, emoji, listing, parquet, sources, splits
from diffunet.data.folder import Progress
from diffunet.data.listing import LeftOut, printable
from diffunet.errors import DataError, ResourceError, UsageError

log = logging.getLogger(__name__)

SHOWN = 3
"""The files that cannot be used that are named; all are counted."""

Written = tuple[str, bytes]  # the path in the folder, and the content of the file
_ENDINGS = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
}
_ENDINGS |= {b"MM\0*": ".tif"}
_OPENERS: dict[str | None, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}


def prepare(
    address: str, out: Path, *, download_root: Path | None = None, limit: int | None = None, overwrite: bool = False,
    sha256: str | None = None, progress: Progress | None = None,
) -> int:  # fmt: skip
    """Write what is at `address` to the folder `out` and return the number of images.

    The folder appears only when all is written. Images are written as they are, under the paths that they have, or
    under folders of their classes where these are known otherwise.

    Args:
        address: the name of a known data set; a web address of an archive, an array or an image; that of a bucket; the
            name of a data set on the hub, owner/name or owner/name:config; or a file or folder here.
        out: the folder to make.
        download_root: where downloads are kept; without it they are deleted once they are used.
        limit: write only so many images, spread evenly.
        overwrite: replace the folder, if this function has made it.
        sha256: of the file at a web address, in hexadecimal digits.
        progress: counts bytes of a download, then images.

    Raises:
        UsageError: there is no such name, `out` holds something, or a package is not installed.
        DataError: nothing can be had from there, or it is no data set.
        ResourceError: there is no room.
    """
    if out.resolve() == Path.cwd():
        raise UsageError(f"{out}: is the current folder, which cannot be replaced by a new one; name another")
    if sha256 is not None and not address.startswith(("http://", "https://")):
        raise UsageError("--sha256 is that of a file at a web address")
    if address in builtin.DATASETS:
        return builtin.prepare(
            address, out, download_root=download_root, limit=limit, overwrite=overwrite, progress=progress
        )
    kept = download_root or out.parent / f".{out.name}.download"
    try:
        with files.making(out, address, overwrite=overwrite) as made:
            found = _found(address, kept, made.parent, sha256, progress)
            count = _write(*found, made, limit, progress)
            if not count:
                raise DataError(f"{address}: holds no images")
    except OSError as error:
        at, temporary = str(error.filename or ""), str(out.with_name(f".{out.name}."))
        if Path(address) in (Path(at), *Path(at).parents) and not at.startswith(temporary):
            raise DataError(f"{printable(at)}: cannot be read: {error.strerror}") from None
        raise ResourceError(f"{printable(str(out))}: cannot be written: {error.strerror or error}") from error
    if download_root is None:
        shutil.rmtree(kept, ignore_errors=True)
    return count


def _found(
    address: str, kept: Path, temporary: Path, sha256: str | None, progress: Progress | None
) -> tuple[int, Iterable[Written | None]]:
    """Return the number of images at an address, and each with its path; None for one that is not there."""
    if address == emoji.NAME:
        target = kept / download.file_name(emoji.ADDRESS)
        download.download(emoji.ADDRESS, target, progress=progress)
        return emoji.read(target)
    if parquet.is_name(address):
        return _of_parquet(parquet.from_hub(address)[0])
    if address.startswith(("http://", "https://")):
        target = download.place_of(address, kept)
        download.download(address, target, sha256=sha256, progress=progress)
        return _local(target, temporary)
    if re.match(r"[A-Za-z0-9+.-]{2,}://", address):
        folder = temporary / "bucket"
        folder.mkdir()
        download.from_bucket(address, folder, _wanted)
        content = list(folder.iterdir())
        return _local(content[0] if len(content) == 1 and content[0].is_file() else folder, temporary)
    if Path(address).exists():
        return _local(Path(address), temporary)
    builtin.refuse(address)
    raise AssertionError


def _wanted(names: list[str], peek: Callable[[str], bytes]) -> list[str]:
    """Return the names of the images in a bucket, or of its archives and parquet files where it has no images."""
    visible = [name for name in names if not any(map(listing.is_hidden, name.split("/")))]
    visible = [name for name in visible if not any(map(listing.is_kept_by_systems, name.split("/")))]
    visible = [name for name in visible if files.is_within(name)]
    labels = [name for name in visible if name.rpartition("/")[2].casefold() in listing.LABELS]
    try:
        found = listing.of(((name, None) for name in visible), peek, lambda name: name, LeftOut(), "the bucket")
        return [found.stored.get(path, path) for path in found.paths] + labels
    except DataError:
        return [name for name in visible if name.endswith((".tar", ".zip", ".parquet"))]


def _local(path: Path, temporary: Path) -> tuple[int, Iterable[Written | None]]:
    """Return the images of a file or folder here, as `_found`."""
    if path.is_dir():
        tables = sorted(file for file in path.rglob("*.parquet") if file.is_file())
        if tables:
            parts = parquet.parts_of([file.relative_to(path).as_posix() for file in tables])
            return _of_parquet([(file, part) for file, (_, _, part) in zip(tables, parts, strict=True)])
        return _of_source(path)
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PAR1"):
        return _of_parquet([(path, None)])
    if listing.is_image(head):
        return 1, [(path.name if listing.ending(path.name) else path.name + _ending(head), path.read_bytes())]
    kind = archives.kind_of(head)
    if kind in _OPENERS:
        plain = temporary / "plain.tar"
        try:
            with _OPENERS[kind](path) as packed, plain.open("wb") as target:
                shutil.copyfileobj(packed, target, 2**20)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, ValueError) as error:
            raise DataError(f"{path}: is damaged or not whole ({error}): copy or download it again") from None
        return _of_source(plain)
    return _of_source(path)


def _of_source(path: Path) -> tuple[int, Iterable[Written | None]]:
    source, found = sources.undivided(path)
    for line in found.left_out.lines():
        log.info("%s", line)
    if found.rejected:
        many = len(found.rejected)
        log.warning("%d %s: %s", many, "file is not written" if many == 1 else "files are not written", "; ".join(
            f"{file.path}: {file.reason}" for file in found.rejected[:SHOWN]
        ) + ("; ..." if len(found.rejected) > SHOWN else ""))  # fmt: skip
    classes, parts, folders = source.classes, splits.find(found.paths), ClassFolders()

    def written() -> Iterator[Written | None]:
        for name in found.paths:
            target = name
            if classes is not None and name in classes:
                top, _, rest = name.partition("/") if parts is not None else ("", "", name)
                target = "/".join(filter(None, (top, folders.of(classes[name]), rest)))
            try:
                yield target, source.read(name)
            except DataError as error:
                raise DataError(f"{printable(name)}: {error}") from None
        for name in found.label_files:
            yield name, source.read(name)

    return len(found.paths), written()


def _of_parquet(tables: list[tuple[Path, str | None]]) -> tuple[int, Iterable[Written | None]]:
    count, several, of_classes = parquet.count(tables), len({part for _, part in tables}) > 1, ClassFolders()

    def written() -> Iterator[Written | None]:
        for n, row in enumerate(parquet.rows(tables)):
            if row is None:
                yield None
                continue
            folders = [row.part or "other" if several else "", "" if row.label is None else of_classes.of(row.label)]
            name = f"{n:0{len(str(count - 1))}}{_ending(row.image)}"
            yield "/".join(filter(None, (*folders, name))), row.image

    return count, written()


def _ending(content: bytes) -> str:
    return next((ending for magic, ending in _ENDINGS.items() if content.startswith(magic)), ".img")


class ClassFolders:
    """The folders of classes: names that every system takes, another for each class, and none that means a part."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def of(self, label: str) -> str:
        """Return the folder of a class; where its name is taken by another class, it gets a number."""
        if label not in self._of:
            plain = re.sub(r"[^\w\- ]", "_", label).strip() or "_"
            plain = plain if splits.kind_of(plain) is None else f"class {plain}"
            taken, name = {folder.casefold() for folder in self._of.values()}, plain
            for number in itertools.count(2):
                if name.casefold() not in taken:
                    break
                name = f"{plain}-{number}"
            self._of[label] = name
        return self._of[label]


def _write(
    total: int, found: Iterable[Written | None], folder: Path, limit: int | None, progress: Progress | None
) -> int:
    """Write images, or as many of them as `limit` says, spread evenly, and return how many these are."""
    count = min(total, limit or total)
    chosen = {n * total // count for n in range(count)} if count else set()
    written, made = 0, set[Path]()
    for n, item in enumerate(found):
        if (n not in chosen and n < total) or item is None:
            continue
        path, content = item
        if not files.is_within(path):
            raise DataError(f"{printable(path)}: its name leads out of the folder")
        target = folder / path
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        if target.exists():
            raise DataError(
                f"{printable(path)}: two images would have this name here, where small and large letters are one"
            )
        target.write_bytes(content)
        written += n < total  # what comes after the images says their classes
        if progress is not None:
            progress(written, count)
    return written
