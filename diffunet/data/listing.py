"""What a list of names, of the files in a folder or in an archive, means as a data set.

Which are images, which of them cannot be used, and what is passed over: that is decided here for all sources alike, by
names and, where a name says nothing, by the first bytes.
"""

import contextlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from diffunet.errors import DataError
from diffunet.pictures.formats import EXTENSIONS, UNSUPPORTED, unsupported

RAW = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".k25", ".kdc", ".mef",
    ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
"""Endings of what cameras write beside a JPEG or in place of it."""
SIDECARS = (".aae", ".mov", ".mp4", ".thm", ".xmp")
"""Endings of what cameras and editors write beside an image: changes, notes, the film of a live photo."""
_COMPANIONS = frozenset((*UNSUPPORTED, *RAW, *SIDECARS, ".heic", ".heif"))
_OTHERS = frozenset((
    ".7z", ".avi", ".bak", ".bat", ".bin", ".bz2", ".c", ".caption", ".cfg", ".ckpt", ".cls", ".cpp",
    ".crdownload", ".csv", ".db", ".dcm", ".doc", ".docx", ".download", ".flac", ".geojson", ".gz", ".h5",
    ".hdf5", ".htm", ".html", ".idx", ".ini", ".ipynb", ".jpgw", ".js", ".json", ".jsonl", ".key", ".lock",
    ".log", ".lnk", ".m4a", ".mat", ".md", ".mha", ".mkv", ".mp3", ".mpg", ".nfo", ".nii", ".npy", ".npz",
    ".onnx", ".orig", ".old", ".parquet", ".part", ".partial", ".pdf", ".pgw", ".pickle", ".pkl", ".ppt", ".pptx",
    ".pt", ".pth", ".py", ".pyc", ".rar", ".rtf", ".safetensors", ".sh", ".sql", ".sqlite", ".swp", ".tar",
    ".tgz", ".tfrecord", ".tfw", ".tmp", ".toml", ".tsv", ".txt", ".url", ".wav", ".webm", ".xls", ".xlsx",
    ".xml", ".xz", ".yaml", ".yml", ".zip", ".zst",
))  # fmt: skip
"""Endings that say that a file is no image, or half of one. Files with an ending of no list are looked into."""
LABELS = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "dataset.json")
"""Names of files that may say the classes of images."""
_SYSTEM = frozenset((
    "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "#recycle", "#snapshot", "$recycle.bin",
    "recycler", "recycled", "system volume information", "lost+found", "found.000", "__macosx",
    "network trash folder", "temporary items", "__pycache__",
))  # fmt: skip
"""Folders that network disks and systems keep, in small letters; others (.Trashes, .thumbnails) are hidden."""
RECORD = "made.jsonl"
"""The file in which diffunet notes the pictures that it writes to a folder."""
_MOST = 2**26  # bytes of it that are read
_NOISE = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", RECORD)
_TEXTS = ("license", "licence", "readme", "copying", "authors", "changelog", "makefile")
_SHOWN = 5  # kinds that are named in a line

Exists = Callable[[str], bool]  # whether there is a file or folder of this name


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that cannot be used, and the reason."""

    path: str
    reason: str


class NoImages(DataError):
    """A source holds no candidate; `rejected` has the images of it that cannot be used."""

    def __init__(self, message: str, rejected: Sequence[Rejected]) -> None:
        super().__init__(message)
        self.rejected = rejected


@dataclass
class LeftOut:
    """What is passed over, by kind: it is none of the data set, where what is `Rejected` would be if it could be read.

    `others` and `twins` count files by their ending: those that are no images, and those beside an image of the same
    name. `folders` counts by their names those that systems keep, `made` names the runs and models of diffunet, and
    `outputs` counts pictures that it noted as its own. `test` counts the images of a divided data set that are neither
    trained on nor held out, by folder. `notes` are lines that say how the source was understood.
    """

    others: Counter[str] = field(default_factory=Counter)
    twins: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    made: dict[str, str] = field(default_factory=dict)
    outputs: int = 0
    test: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def lines(self, *, others: bool = True) -> Iterator[str]:
        """Yield a line for each kind, with counts; without `others` none for files that are no images."""
        yield from self.notes
        yield from self.of_other_kinds() if others else ()
        if self.twins:
            beside = _files(self.twins, "file", " beside an image of the same name")
            yield f"{beside} passed over ({_kinds(self.twins)})"
        if self.folders:
            named = ", ".join(f"{n:,} {printable(name)}" for name, n in _most(self.folders))
            yield f"folders that systems keep are passed over ({named}{_more(self.folders)})"
        if self.made:
            named = ", ".join(f"{printable(name)}, {what}" for name, what in list(self.made.items())[:_SHOWN])
            what = "1 folder" if len(self.made) == 1 else f"{len(self.made):,} folders"
            yield f"{what} of diffunet's own {_are(len(self.made))} passed over ({named}{_more(self.made)})"

        if self.outputs:
            what = (
                "1 picture that diffunet made is"
                if self.outputs == 1
                else f"{self.outputs:,} pictures that diffunet made are"
            )
            yield f"{what} passed over"

    def plain(self) -> dict[str, object]:
        """Return all of it for programs, as JSON can express it."""
        counted = {name: dict(getattr(self, name)) for name in ("others", "twins", "folders", "test", "made")}
        return {**counted, "outputs": self.outputs, "notes": self.notes}

    def of_other_kinds(self) -> Iterator[str]:
        """Yield the line that counts the files that are no images, where there are any."""
        if self.others:
            yield f"{_files(self.others, 'other file', '')} passed over ({_kinds(self.others)})"


@dataclass(frozen=True)
class Listing:
    """The candidates of a source, what of it cannot be used, and what is passed over.

    `paths` are sorted, and each is in Unicode's composed form (NFC), so that a file has one name on all systems;
    `stored` has the name by which the source knows it, for those where that is another. `label_files` are the names of
    files of `LABELS`.
    """

    paths: list[str]
    rejected: list[Rejected]
    stored: dict[str, str]
    left_out: LeftOut
    label_files: list[str] = field(default_factory=list)


def printable(text: str) -> str:
    """Return `text` on one line in every locale: line breaks, control characters and bytes beyond UTF-8 are escaped."""
    try:
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeError:  # half a pair of surrogates, as Windows allows in names
        text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def composed(path: str) -> str:
    """Return a name in the one form in which names are compared: Macs write é as e and an accent, others as é."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name, without its folder, is hidden or none of a person's."""
    return name.startswith(".") or name.casefold() in _NOISE


def is_kept_by_systems(folder: str) -> bool:
    """Return whether a folder of this name, without the folders above it, is one that a disk or a system keeps."""
    return folder.casefold() in _SYSTEM


def made_here(folder: str, exists: Exists) -> str | None:
    """Return what of diffunet a folder is, a run or a model, by the files in it; None for other folders."""
    within = f"{folder}/" if folder else ""
    if exists(f"{within}config.toml") and (exists(f"{within}checkpoints") or exists(f"{within}model")):
        return "a run"
    if exists(f"{within}config.json") and exists(f"{within}model.safetensors"):
        return "a model"
    if exists(f"{within}model_index.json") and (exists(f"{within}unet") or exists(f"{within}scheduler")):
        return "a model"
    return None


def noted(record: bytes) -> set[str]:
    """Return the names of the pictures that a `RECORD` notes, within its folder."""
    names = set[str]()
    for line in record[:_MOST].splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):  # torn by a kill
            names |= {str(name) for name in json.loads(line).get("pictures", ())}
    return names


def of(
    names: Iterable[tuple[str, str | None]], peek: Callable[[str], bytes], decode: Callable[[str], str],
    left_out: LeftOut, whole: str,
) -> Listing:  # fmt: skip
    """Return the listing of files whose names come with None, or with a reason for which they cannot be used.

    Args:
        names: of files relative to the source, with forward slashes; no hidden ones. An empty name is the source.
        peek: returns the first bytes of a file.
        decode: returns a name as text; UnicodeError says that it is none.
        left_out: what is known to be passed over; it is completed.
        whole: the source, for messages.

    Raises:
        DataError: the source cannot be read, or there is no candidate.
    """
    candidates, rejected, companions, label_files = list[str](), list[Rejected](), list[str](), list[str]()
    for name, problem in names:
        kind = ending(name)
        if problem is not None:
            if not name:
                raise DataError(f"{whole}: {problem}")
            rejected.append(Rejected(printable(name), problem))
        elif kind in _COMPANIONS:
            companions.append(name)
        elif kind in EXTENSIONS or (may_be_image(name, kind) and is_image(peek(name))):
            candidates.append(name)
        elif name.rpartition("/")[2].casefold() in LABELS:
            label_files.append(name)
        else:
            left_out.others[kind] += 1
    stems = set(map(_stem, candidates)) if companions else set()
    for name in companions:
        kind, stem = ending(name), _stem(name)
        if stem in stems or (ending(stem) in EXTENSIONS and _stem(stem) in stems):
            left_out.twins[kind] += 1
        elif kind in SIDECARS:
            left_out.others[kind] += 1
        elif kind in EXTENSIONS or peek(name).startswith(_PLAIN):
            candidates.append(name)
        else:
            rejected.append(Rejected(printable(name), unsupported(kind)))
    paths, stored = _named(candidates, decode, rejected)
    if not paths:
        raise NoImages(f"{whole}: {_nothing(rejected, left_out)}", rejected)
    return Listing(sorted(paths), sorted(rejected, key=lambda file: file.path), stored, left_out, sorted(label_files))


def _named(
    names: Iterable[str], decode: Callable[[str], str], rejected: list[Rejected]
) -> tuple[list[str], dict[str, str]]:
    """Return the paths of names, and the text of those that are not in the composed form; complete `rejected`."""
    paths, variants = list[str](), list[tuple[str, str]]()
    for name in names:
        try:
            text = decode(name)
        except UnicodeError:
            rejected.append(Rejected(printable(name), "its name is not valid text (UTF-8); rename it"))
            continue
        if (path := composed(text)) == text:
            paths.append(path)
        else:
            variants.append((path, text))
    stored, taken = dict[str, str](), set(paths if variants else ())
    for path, text in sorted(variants):
        if path in taken:
            reason = "its name is that of another file but for its Unicode form (NFC, NFD); rename one of them"
            rejected.append(Rejected(printable(text), reason))
        else:
            taken.add(path)
            stored[path] = text
            paths.append(path)
    return paths, stored


def _nothing(rejected: Sequence[Rejected], left_out: LeftOut) -> str:
    passed = ". ".join(left_out.lines())
    if rejected:
        example = f"{rejected[0].path}: {rejected[0].reason}"
        return f"holds no images that can be used, and {len(rejected):,} that cannot ({example}). {passed}"
    found = f"found: {_kinds(left_out.others) or 'nothing'}"
    made = f"; {passed}" if left_out.made or left_out.folders or left_out.outputs else ""
    return f"holds no images ({found}{made}); supported are {' '.join(EXTENSIONS)}"


def may_be_image(name: str, kind: str) -> bool:
    """Return whether a file with an ending of no list is looked into; names like a.tif#0001 are those of pages."""
    return kind not in _OTHERS and not name.endswith("~") and re.search("#[0-9]{4,}$", name) is None


def says_of_images(name: str) -> bool:
    """Return whether a file may be an image, or say the class of one, by its name alone."""
    kind, base = ending(name), name.rpartition("/")[2].casefold()
    return kind in EXTENSIONS or kind in (".cls", ".json") or base in LABELS or (not kind and base not in _TEXTS)


def ending(name: str) -> str:
    """Return the ending of a name, in small letters and with its dot, or nothing."""
    return os.path.splitext(name.rpartition("/")[2])[1].lower()


def _stem(name: str) -> str:
    folder, slash, base = composed(name).rpartition("/")
    return (folder + slash + os.path.splitext(base)[0]).casefold()


_PLAIN = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_MAGIC = (*_PLAIN, b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")


def is_image(head: bytes) -> bool:
    """Return whether the first 32 bytes of a file are those of an image, be it one that can be read or not."""
    if head.startswith(_MAGIC):
        return True
    if head[:2] == b"BM":
        return head[6:10] == bytes(4) and head[14:18] in (b"\x28\0\0\0", b"\x0c\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0")
    is_webp, is_heif = head[:4] == b"RIFF" and head[8:12] == b"WEBP", head[4:8] == b"ftyp"
    return is_webp or (is_heif and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1"))


def _files(counts: Counter[str], what: str, where: str) -> str:
    total = counts.total()
    return f"{total:,} {what}{'' if total == 1 else 's'}{where} {_are(total)}"


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _kinds(counts: Counter[str]) -> str:
    named = ", ".join(f"{n:,} {printable(kind) or 'without extension'}" for kind, n in _most(counts))
    return named + _more(counts)


def _more(counts: Counter[str] | dict[str, str]) -> str:
    return f" and {len(counts) - _SHOWN:,} more kinds" if len(counts) > _SHOWN else ""
