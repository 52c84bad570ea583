"""The class of each image: by its folder, by what its source says, by a table or dataset.json, or by its name."""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffunet import names as choices
from diffunet.data import splits, tables
from diffunet.data.folder import class_of, printable
from diffunet.data.index import Paths
from diffunet.data.listing import composed
from diffunet.errors import DataError, UsageError

OPTION = "data.labels"

FOLDERS = "folders"
"""The rule by which subfolders are classes."""

FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "dataset.json")
"""The files in a data folder that may have the labels; the first that has them is taken."""

PATTERNS = (r"(.+)_\d+", r"(.+)-\d+", r"(.+)\.\d+", r"(.+) \(?\d+", r"^([^\W\d]+)\d+\.", r"\d+[-_. ]+(.+)\.")
"""Patterns of names that are tried for an example: cat_1, cat-1, cat.1, cat (1), cat1, 1_cat."""

_PARTS_OF_EDM = re.compile(r"\d{5}")
"""The names of folders that the tools of StyleGAN and EDM divide images into, which are no classes."""


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of images.

    Args:
        names: of the classes, sorted.
        places: of each image the place of its class in `names`, int64 [N].
        rule: what finds them again, as `data.labels`; None for subfolders, and for what a source says.
        note: where they were found, in one line, where that was not asked for and is no subfolder; else None.
    """

    names: tuple[str, ...]
    places: NDArray[np.int64]
    rule: str | None = None
    note: str | None = None

    def numbers(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the place of each image's class in other `names`, or -1 where it is not there, int64 [N]."""
        number = {composed(name): n for n, name in enumerate(names)}
        return np.array([number.get(name, -1) for name in self.names], np.int64)[self.places]

    def known(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return as `numbers`; raise DataError, with counts, where images are of classes that are not in `names`."""
        numbers, number = self.numbers(names), set(map(composed, names))
        if strange := int(np.count_nonzero(numbers < 0)):
            counts = self.counts()
            others = ", ".join(f"{printable(name)} {counts[name]:,}" for name in self.names if name not in number)
            raise DataError(
                f"{strange:,} of {len(numbers):,} images are of none of the {len(names)} classes that are known: "
                + others
            )
        return numbers

    def counts(self) -> Counter[str]:
        """Return the number of images of each class."""
        sizes = np.bincount(self.places, minlength=len(self.names)).tolist()
        return Counter(dict(zip(self.names, sizes, strict=True)))

    def hash(self) -> str:
        """Return the SHA-256 of the names and places; of the same images it is the same where the classes are."""
        return hashlib.sha256("\0".join(self.names).encode() + b"\0" + self.places.astype("<i8").tobytes()).hexdigest()


def find(
    root: Path, paths: Paths | Sequence[str], rule: str | None = None, *, given: Mapping[str, str | None] | None = None,
    least: int = 2, beside: Mapping[str, bytes] | None = None,
) -> Labels:  # fmt: skip
    """Return the classes of the images at `paths`, which are relative to `root`.

    Args:
        root, paths: the data folder, or the file that the images are in, and the images.
        rule: "folders"; FILE or FILE:COLUMN, where FILE ends in .tsv, .csv, .jsonl or .json and is looked for in `root`
            first; or a regular expression for the images' names, or for their paths where it has a slash in it, whose
            first parentheses, or all of it, match the class. By default what the source says, then subfolders, then the
            first of `FILES` with labels in `root`.
        given: what the source of the images says of each path, for sources that know classes.
        least: the fewest classes that there have to be.
        beside: the contents of files of `FILES` at the top of an archive; those of a folder are read from `root`.

    Raises:
        DataError: an image has no class, or there are fewer than two classes.
        UsageError: the file cannot be read, or does not say it; the rule is no regular expression.
    """
    note = None
    if rule is None and given is not None:
        return _labels(paths, [given.get(path) for path in paths], None, None, "the data", root, least)
    if rule is None:
        rule, note = _found(root, paths, beside or {})
    if rule is None or rule == FOLDERS:
        return _labels(paths, [class_of(path) for path in _within(paths)], None, note, FOLDERS, root, least)
    if (table := choices.label_file(rule)) is None:
        return _labels(paths, _by_name(paths, rule), rule, note, f"the pattern {rule!r}", root, least)
    content = (beside or {}).get(table[0])
    file = root / table[0] if content is not None or (root / table[0]).is_file() else Path(table[0])
    rows = tables.read(file, table[1], usual="label", option=OPTION, content=content)
    found = [name and name.strip() for name in tables.matched(paths, file, rows, option=OPTION)]
    if not any(found):
        raise DataError(
            f"{OPTION}: no row of {file} has the class of an image in {printable(str(root))}, which are named like "
            + printable(next(iter(paths), ""))
        )
    strange = len(rows) - len([name for name in found if name is not None])
    if strange > 0:
        note = f"{note or f'labels: {file}'}; {strange:,} of its {len(rows):,} rows are of no image that is there"
    return _labels(paths, found, rule, note, table[0], root, least)


def _labels(
    paths: Paths | Sequence[str], found: Sequence[str | None], rule: str | None, note: str | None, where: str,
    root: Path, least: int,
) -> Labels:  # fmt: skip
    """Return the labels of what was found of each path; raise DataError where that is not enough."""
    _refuse_parts_as_classes(paths, found, where)
    found = [name and composed(name) for name in found]
    names = tuple(sorted({name for name in found if name}))
    missing = [n for n, name in enumerate(found) if not name]
    if missing and not names and where == FOLDERS:
        raise DataError(
            f"--classes: {printable(paths[0])} and all other images lie in no class folder, and none of "
            f"{', '.join(FILES)} is there with labels. {example(paths)}"
        )
    if missing:
        shown = ", ".join(printable(paths[n]) for n in missing[:3]) + (", ..." if len(missing) > 3 else "")
        of = "lie in no class folder" if where == FOLDERS else f"have no class by {where}"
        raise DataError(
            f"{len(missing):,} of {len(found):,} images {of} ({shown}); with --classes every image needs one: give "
            f"them one, or take them out of {printable(str(root))}"
        )
    if len(names) < least:
        present = f"only {printable(names[0])!r}" if names else "none"
        of = "subfolders with images" if where == FOLDERS else f"classes by {where}"
        raise DataError(
            f"--classes needs at least {'two' if least == 2 else 'one of the'} {of}, and there is {present}"
        )
    number = {name: n for n, name in enumerate(names)}
    return Labels(names, np.array([number[name] for name in found if name], np.int64), rule, note)


def _within(paths: Paths | Sequence[str]) -> Iterator[str]:
    """Yield each path; of a divided data set (train/, val/) its path within its part, where classes are."""
    return map(splits.within(paths), paths)


def _refuse_parts_as_classes(paths: Paths | Sequence[str], found: Sequence[str | None], where: str) -> None:
    """Raise DataError where parts of a data set would be classes, or a class would be held out and never learned."""
    names, parts = {name for name in found if name}, splits.find(paths)
    if parts is None:
        if where == FOLDERS and names and all(map(splits.kind_of, names)):
            raise DataError(
                f"the subfolders {', '.join(map(printable, sorted(names)))} are named as parts of a data set, and are "
                "no classes: give the one to train on as DATA"
            )
        return
    learned = {name for name, path in zip(found, paths, strict=True) if path.partition("/")[0] in parts.training}
    if unlearned := sorted(names - learned):
        raise DataError(
            f"the class {printable(unlearned[0])} is in {parts.held_out[0]} and not in {parts.training[0]}: it would "
            "never be learned; move some of its images, or remove it"
        )


def _found(root: Path, paths: Paths | Sequence[str], beside: Mapping[str, bytes]) -> tuple[str | None, str | None]:
    """Return the rule for a folder where none was given, and what to say of it."""
    folders = {class_of(path) for path in _within(paths)}
    are_classes = None not in folders and len(folders) > 1
    for name in FILES:
        with contextlib.suppress(UsageError):  # a file that says other things of the images
            column = None if name.endswith(".json") else "label"
            content = beside.get(name)
            if content is None and not (root / name).is_file():
                continue
            if not any(tables.read(root / name, column, option=OPTION, content=content).values()):
                continue
            if are_classes and not (name == "dataset.json" and all(_PARTS_OF_EDM.fullmatch(str(f)) for f in folders)):
                return (
                    None,
                    f"labels: subfolders are the classes; {name} has labels too: --data.labels {name} takes them",
                )
            return name, f"labels: {name} in {printable(str(root))} has them"
    return None, None


def _by_name(paths: Iterable[str], rule: str) -> list[str | None]:
    try:
        expression = re.compile(rule)
    except choices.NO_EXPRESSION as error:
        raise UsageError(f"{OPTION}: {rule!r} is not a regular expression: {error}") from None
    matches = (expression.search(path if "/" in rule else path.rpartition("/")[2]) for path in paths)
    return [match and match[min(1, expression.groups)] for match in matches]


class Guess(NamedTuple):
    """A pattern of names that finds a class for every image, and the classes."""

    pattern: str
    classes: list[str]


def guess(paths: Iterable[str]) -> Guess | None:
    """Return the first of `PATTERNS` that tells several classes of several images, or None where none does."""
    names = list(paths)
    for pattern in PATTERNS:
        found = _by_name(names, pattern)
        classes = sorted({name for name in found if name})
        if all(found) and 2 <= len(classes) <= max(2, len(names) // 2):
            return Guess(pattern, classes)
    return None


def example(paths: Sequence[str] | Paths) -> str:
    """Return in words how the classes can be said, by an example of the names that the images have."""
    if (made := guess(paths)) is not None:
        some = ", ".join(map(printable, made.classes[:3])) + (", ..." if len(made.classes) > 3 else "")
        return (
            f"Their names may say it: --data.labels '{made.pattern}' makes {len(made.classes)} classes of names such "
            f"as {printable(paths[0])} ({some})"
        )
    return (
        "Put the images of each class into a subfolder, or give --data.labels metadata.csv (columns file_name, label), "
        r"or a pattern of their names, such as --data.labels '(.+)_\d+' for cat_12.png"
    )
