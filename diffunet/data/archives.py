"""Zip and tar files of images, and shards of them, read by offset: nothing is unpacked.

An archive of a folder equals the folder: its members have the same paths, and what is passed over is the same. Where
all of it lies in one folder, which archives usually have, paths begin within that.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffunet.data import listing
from diffunet.data.index import Paths
from diffunet.data.listing import LeftOut, Listing, composed, printable
from diffunet.errors import DataError
from diffunet.pictures.formats import EXTENSIONS
from diffunet.pictures.opening import MAX_BYTES

_PLACE = np.dtype(
    [("file", "<i4"), ("start", "<i8"), ("packed", "<i8"), ("size", "<i8"), ("method", "<i2"), ("crc", "<u4")]
)
"""Where a member is: its archive, the place of its header (zip) or of its content (tar), and how it is packed."""
_TAR = -1  # the method of a tar's members
_LABEL = 2**16  # bytes of a file that says the class of an image, at most
_MUCH, _RATIO = 2**26, 200  # a member of more bytes that was packed by more than this is no image but a trap


class Member(NamedTuple):
    """A member of an archive by its place there, a link to another name, or what cannot be used and why."""

    name: str
    place: tuple[int, int, int, int, int, int] | None
    link: str | None = None
    problem: str | None = None


class Archives:
    """The members of zip and tar files that are candidates, in the order of their paths, and files of labels."""

    in_processes = True

    def __init__(
        self, root: Path, files: Sequence[Path], paths: Paths, places: NDArray[np.void],
        others: dict[str, tuple[int, int, int, int, int, int]], classes: dict[str, str] | None,
    ) -> None:  # fmt: skip
        self.root, self.classes, self._others = root, classes, others
        self._files, self._paths, self._places = files, paths, places
        self._times = [file.stat().st_mtime_ns for file in files]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"classes": None}  # processes that read files need no labels

    def read(self, path: str) -> bytes:
        """Return the bytes of a member, as `Source.read`."""
        number = self._paths.find(path)
        if number is None and path not in self._others:
            raise DataError("no such file in the archive")
        return read_member(self._files, self._others[path] if number is None else self._places[number].item())

    def stamp(self, path: str) -> tuple[int, int]:
        """Return its size and the time of change of its archive, as `Source.stamp`."""
        number = self._paths.find(path)
        if number is None:
            return 0, 0
        place = self._places[number]
        return int(place["size"]), self._times[int(place["file"])]

    def stamps(self, paths: Paths) -> NDArray[np.int64]:
        """Return the stamps of members, as `Source.stamps`."""
        numbers = paths.places_in(self._paths)
        chosen = self._places[np.maximum(numbers, 0)]
        stamps = np.stack([chosen["size"], np.array(self._times, np.int64)[chosen["file"]]], axis=1)
        return np.where((numbers >= 0)[:, None], stamps, 0)


def kind_of(head: bytes) -> str | None:
    """Return zip, tar, or the name of a compression, by the first 512 bytes of a file; None for others."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return "zip"
    if head[257:262] == b"ustar" or _is_old_tar(head):
        return "tar"
    packed = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    return next((name for magic, name in packed.items() if head.startswith(magic)), None)


def _is_old_tar(head: bytes) -> bool:
    with suppress(tarfile.HeaderError):
        return len(head) == 512 and bool(tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape").name)
    return False


def open_archives(root: Path, files: Sequence[Path]) -> tuple[Archives, Listing]:
    """Return the members of archives as one source, and its listing. Raises DataError as `sources.open_source`."""
    left_out, whole, dotted = LeftOut(), printable(str(root)), False
    own = list[dict[str, Member]]()  # of several members of one name the last counts, as where they are unpacked
    for number, file in enumerate(files):
        own.append({})
        for member in _members(number, file, left_out):
            dotted |= member.name.startswith("./")
            own[-1][_plain(member.name)] = member
    together = {name: member for each in own for name, member in each.items()}
    top = None if dotted else _common_folder(together)
    if top is not None:
        together, *own = (
            {name.removeprefix(f"{top}/"): member for name, member in each.items()} for each in (together, *own)
        )
    if listing.made_here("", _Names(together).exists):
        raise DataError(f"{whole}: is a run or a model of diffunet, and no data set; its previews are not trained on")
    kept = set(_without_made(together, left_out))
    # Shards that number their images each from 0 on, or archives of several folders, have names in common.
    counted = Counter(name for each in own for name in each if name in kept and listing.says_of_images(name))
    apart = _apart(files) if max(counted.values(), default=0) > 1 else None
    members, places = dict[str, Member](), dict[str, tuple[int, int, int, int, int, int]]()
    for number, (file, mine) in enumerate(zip(files, own, strict=True)):
        outputs = _outputs(files, mine)
        left_out.outputs += len(outputs & mine.keys() & kept)
        for name in (name for name in mine if name in kept and name not in outputs):
            shown, way = name, apart and apart[file]
            while way and (shown := _within(name, way)) in members:
                way += f"-{number}"  # a folder of another archive has the name of this one
            members[shown] = mine[name]
            if (place := _place(name, mine, top)) is not None:
                places[shown] = place

    def peek(name: str) -> bytes:
        with suppress(DataError, KeyError):
            return read_member(files, places[name], head=32)
        return b""

    def problem(name: str) -> str | None:
        if name in places or listing.ending(name) not in EXTENSIONS:
            return None
        return members[name].problem or "a broken link"

    found = listing.of(((name, problem(name)) for name in members), peek, _text, left_out, whole)
    stored = {path: found.stored.get(path, path) for path in found.paths}
    by_text = {_text(name): name for name in places if not name.isascii()}
    rows = [places[by_text.get(text, text)] for text in stored.values()]
    others, classes = {name: places[name] for name in found.label_files}, _classes(files, places, found.paths)
    source = Archives(root, files, Paths.of(found.paths), np.array(rows, _PLACE), others, classes)
    return source, replace(found, stored={})


def _outputs(files: Sequence[Path], members: dict[str, Member]) -> set[str]:
    """Return the names of the pictures that diffunet noted in the folders of an archive."""
    records = {name: member.place for name, member in members.items() if name.rpartition("/")[2] == listing.RECORD}
    return {
        name.removesuffix(listing.RECORD) + output
        for name, place in records.items() if place for output in listing.noted(read_member(files, place))
    }  # fmt: skip


def _apart(files: Sequence[Path]) -> dict[Path, str]:
    """Return for each archive a path that no other one has, by its name and the folders that differ."""
    above = os.path.commonpath([file.parent for file in files])
    names = {file: Path(os.path.relpath(file, above)).with_suffix("").as_posix() for file in files}
    are_apart = len(set(names.values())) == len(files)  # or else there is an a.tar beside an a.zip
    return names if are_apart else {file: name + file.suffix for file, name in names.items()}


def _within(name: str, apart: str) -> str:
    """Return the name of a member below its own folder, such as a class, in one that is its archive's."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{apart}/{base}"


def _text(name: str) -> str:
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode()


class _Names:
    """The names of files, and of the folders above them."""

    def __init__(self, names: dict[str, Member]) -> None:
        self._files = names
        self._folders: set[str] | None = None

    def exists(self, name: str) -> bool:
        if name in self._files:
            return True
        if "." in name.rpartition("/")[2]:  # none of the folders that are asked for
            return False
        if self._folders is None:
            self._folders = {f"{parent}" for file in self._files for parent in PurePosixPath(file).parents}
        return name in self._folders


def _plain(name: str) -> str:
    return name.removeprefix("./") if "//" not in name and "/./" not in name else str(PurePosixPath(name))


def _common_folder(members: dict[str, Member]) -> str | None:
    """Return the folder in which all lies, but for what systems put beside it; None where there is none."""
    tops: set[str] = set()
    for name in members:
        top, slash, _ = name.partition("/")
        if not slash and not listing.is_hidden(name):
            return None
        if slash and not listing.is_hidden(top) and not listing.is_kept_by_systems(top):
            tops.add(top)
    return tops.pop() if len(tops) == 1 else None


def _without_made(members: dict[str, Member], left_out: LeftOut) -> list[str]:
    """Return the names that are not hidden, kept by systems or made by diffunet; these are counted."""
    names, skipped = _Names(members), dict[str, bool]()

    def is_skipped(folder: str) -> bool:
        if folder in ("", "."):
            return False
        if folder not in skipped:
            above, _, base = folder.rpartition("/")
            skipped[folder] = True
            if is_skipped(above) or (listing.is_hidden(base) and base != ".."):
                pass
            elif listing.is_kept_by_systems(base):
                left_out.folders[base] += 1
            elif what := listing.made_here(folder, names.exists):
                left_out.made[folder] = what
            else:
                skipped[folder] = False
        return skipped[folder]

    return [name for name in members if not listing.is_hidden(name.rpartition("/")[2])
            and not is_skipped(name.rpartition("/")[0])]  # fmt: skip


def _place(name: str, members: dict[str, Member], top: str | None) -> tuple[int, int, int, int, int, int] | None:
    """Return the place of a member, or of the one that it links to."""
    for _ in range(10):  # links to links
        if (member := members.get(name)) is None:
            return None
        if member.link is None:
            return member.place
        name = member.link
        if top is not None:
            name = name.removeprefix(f"{top}/")
    return None


def _members(number: int, file: Path, left_out: LeftOut) -> Iterator[Member]:
    """Yield the files in an archive, with what of them cannot be used."""
    shown = printable(str(file))
    try:
        with file.open("rb") as content:
            kind = kind_of(content.read(512))
        if kind == "zip":
            yield from _zip_members(number, file)
        elif kind == "tar":
            yield from _tar_members(number, file, left_out)
        elif kind is not None:
            raise DataError(
                f"{shown}: is compressed as a whole ({kind}), so that no image in it can be read without all before "
                f"it: uncompress it to a .tar (images do not shrink), or let diffunet prepare {shown} FOLDER unpack it"
            )
        else:
            raise DataError(f"{shown}: is damaged, or neither a zip nor a tar file")
    except DataError:
        raise
    except Exception as error:  # on damaged files zipfile and tarfile raise anything, IndexError among others
        raise DataError(f"{shown}: is damaged or not whole ({error}): copy or download it again") from None


def _zip_members(number: int, file: Path) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            name = info.filename
            if not info.flag_bits & 0x800:  # names without a code page are UTF-8 on all systems but the oldest
                with suppress(UnicodeError):
                    name = name.encode("cp437").decode()
            if info.create_system == 0:
                name = name.replace("\\", "/")
            problem = _leads_out(name)
            place = number, info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC
            if info.flag_bits & 1:
                problem = "is encrypted: unpack the archive with its password, and give the folder"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                how = zipfile.compressor_names.get(info.compress_type, info.compress_type)  # type: ignore[attr-defined]
                problem = f"is packed by a method that is not read here ({how}): unpack the archive, or pack it anew"
            elif info.file_size > MAX_BYTES:
                problem = "larger than 1 GiB"
            elif info.file_size > max(_MUCH, _RATIO * info.compress_size):
                problem = f"unpacks to more than {_RATIO} times its size, as no image does"
            link = None
            if stat.S_ISLNK(info.external_attr >> 16) and problem is None and info.file_size < 4096:
                link = _target(name, read_member([file], (0, *place[1:])).decode("utf-8", "surrogateescape"))
            yield Member(name, None if problem else place, link, problem)


def _tar_members(number: int, file: Path, left_out: LeftOut) -> Iterator[Member]:
    with tarfile.open(file, "r:", encoding="utf-8", errors="surrogateescape") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
            name, problem, link = info.name, _leads_out(info.name), None
            if info.issym():
                link = _target(name, info.linkname)
            elif info.islnk():
                link = _plain(info.linkname)
            elif not info.isreg():
                continue
            elif info.issparse():
                problem = "is stored in pieces (a sparse file): pack the archive anew"
            elif info.size > MAX_BYTES:
                problem = "larger than 1 GiB"
            place = number, info.offset_data, info.size, info.size, _TAR, 0
            yield Member(name, None if problem or link else place, link, problem)
        end = archive.offset
    with file.open("rb") as content:
        content.seek(end)
        mark, rest = content.read(512), b""
        while mark and not rest.strip(b"\0") and (rest := content.read(2**20)):
            pass
    shown = printable(file.name)
    if mark.strip(b"\0"):
        raise DataError(f"{printable(str(file))}: is damaged at byte {end:,}: copy or download it again")
    if rest.strip(b"\0"):
        raise DataError(
            f"{printable(str(file))}: goes on after its end, as archives do that were joined by cat: join them by "
            "tar --concatenate, or give them apart"
        )
    if not mark:
        left_out.notes.append(f"{shown} has no end mark: a part of it may be missing")


def _leads_out(name: str) -> str | None:
    """Return why a name is refused, though nothing is unpacked: its path would mean another file in a folder."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        return "its name leads out of the archive"
    return "its name is no name of a file" if "\0" in name or not name else None


def _target(name: str, link: str) -> str:
    """Return the name that a symbolic link means."""
    parts = [] if link.startswith("/") else list(PurePosixPath(_plain(name)).parent.parts)
    for part in PurePosixPath(link).parts:
        if part == ".." and parts:
            parts.pop()
        elif part not in ("..", "/"):
            parts.append(part)
    return "/".join(parts)


def read_member(files: Sequence[Path], place: tuple[int, int, int, int, int, int], head: int | None = None) -> bytes:
    """Return the content of a member, or of it the first bytes; raise DataError with the reason on one line."""
    number, start, packed, size, method, crc = place
    try:
        with files[number].open("rb") as file:
            file.seek(start)
            if method != _TAR:
                header = file.read(30)
                if len(header) < 30 or header[:4] != b"PK\x03\x04":
                    raise DataError("damaged: the archive has nothing at its place")
                file.seek(sum(struct.unpack("<HH", header[26:])), 1)
            content = file.read(packed if head is None else min(packed, 4 * head + 1024))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from None
    if head is None and len(content) < packed:
        raise DataError("damaged: the archive ends in the middle of it")
    if method == zipfile.ZIP_DEFLATED:
        try:
            content = zlib.decompressobj(-15).decompress(content, head or size + 1)
        except zlib.error as error:
            raise DataError(f"damaged: {error}") from None
    if head is not None:
        return content[:head]
    if len(content) != size or (method != _TAR and zlib.crc32(content) != crc):
        raise DataError("damaged: its checksum is wrong")
    return content


def _classes(
    files: Sequence[Path], places: dict[str, tuple[int, int, int, int, int, int]], paths: Sequence[str]
) -> dict[str, str] | None:
    """Return the class of each image by the file beside it, KEY.cls or KEY.json, as shards for webdataset have."""
    keyed = {name.rpartition(".")[0]: name for name in places if name.endswith((".json", ".cls"))}
    keyed |= {name.removesuffix(".cls"): name for name in places if name.endswith(".cls")}
    found = dict[str, str]()
    for path in paths if keyed else ():
        folder, slash, base = path.rpartition("/")
        if (name := keyed.get(folder + slash + base.partition(".")[0])) is None:
            continue
        with suppress(DataError, ValueError, AttributeError, RecursionError):
            if places[name][3] > _LABEL:
                continue
            text = read_member(files, places[name]).decode()
            value: object = text.strip()
            if name.endswith(".json"):
                content = json.loads(text)
                value = next((content[key] for key in ("label", "cls", "class", "class_name") if key in content), None)
            if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
                found[path] = composed(str(value))
    return found or None
