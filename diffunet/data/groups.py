"""Groups of images that are variants of one picture, and the split that keeps each group on one side.

A rule says which images are of one group: a table of them, or a regular expression that finds a name in their paths.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffunet import names
from diffunet.data.folder import printable
from diffunet.data.index import Index, Paths
from diffunet.data.listing import composed
from diffunet.errors import UsageError


@dataclass(frozen=True, eq=False)
class Groups:
    """The sorted `names` of groups, and of each image the place of its group there, or -1 for none, int64 [N]."""

    names: tuple[str, ...]
    places: NDArray[np.int64]


class Split(NamedTuple):
    """Ascending indices of the images to train on and of those held out, int64 [N], and the groups kept together."""

    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    groups: Groups | None

    def hash(self) -> str:
        """Return the SHA-256 of what is held out; of the same images it is the same where the split is."""
        return hashlib.sha256(self.held_out.astype("<i8").tobytes()).hexdigest()


def find(paths: Paths, rule: str) -> Groups:
    """Return the groups of the images at `paths`, which are relative to the data folder.

    Args:
        paths: of the images.
        rule: FILE or FILE:COLUMN, where FILE ends in .tsv or .csv, or else a regular expression.

    A file has a header. Its column `file` or `file_name`, or else its first one, has an image's path, or its bare name
    where only one folder has it; COLUMN, or else the first of the others, has its group. A regular expression is
    searched in the path; its first capturing group, or all that it matches, is the name of the image's group. An image
    that has no row or no match, or an empty name, is in no group.

    Raises:
        UsageError: the file cannot be read, has no such column, gives an image two groups or does not say which image
            it means; the expression is none; or no image is in a group.
    """
    if (table := names.group_file(rule)) is not None:
        found = list(_in_table(paths, table[0], _read(*table)))
        nothing = f"no row of {table[0]} has the group of an image in the folder, which are named like"
    else:
        try:
            expression = re.compile(rule)
        except names.NO_EXPRESSION as error:
            raise UsageError(f"data.group: {rule!r} is not a regular expression: {error}") from None
        found = [match and match[min(1, expression.groups)] for match in map(expression.search, paths)]
        nothing = f"the regular expression {rule!r} (a table ends in .tsv or .csv) finds no name in any path, such as"
    if not any(found):
        raise UsageError(f"data.group: {nothing} {printable(next(iter(paths), ''))}")
    places = {name: n for n, name in enumerate(sorted({name for name in found if name}))}
    return Groups(tuple(places), np.array([places[name] if name else -1 for name in found], np.int64))


def _in_table(paths: Paths, file: str, rows: dict[str, str]) -> Iterator[str | None]:
    """Yield the name of each image's group in the rows of a table, or None."""
    listed = set(paths)
    # A bare name means the image at the top of the folder, if there is one, or else the only one of that name.
    bare = Counter(path.rpartition("/")[2] for path in paths if path not in rows)
    for path in paths:
        name = path.rpartition("/")[2]
        if path not in rows and name in rows and name not in listed:
            if bare[name] > 1:
                raise UsageError(
                    f"data.group: {file} names {printable(name)}, which {bare[name]} folders have: name it with its "
                    "folder, such as " + printable(path)
                )
            yield rows[name]
        else:
            yield rows.get(path)


def _read(file: str, column: str | None) -> dict[str, str]:
    """Return the name of the group of each image that a table names; that of a row without one is empty."""
    # In text with tabs a quotation mark is a character like others.
    tabs: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if file.lower().endswith(".tsv") else {}
    found: dict[str, str] = {}
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as lines:
            table = csv.reader(lines, strict=True, **tabs)
            header = next(table, [])
            key = next((n for n, name in enumerate(header) if name in ("file", "file_name")), 0)
            others = (n for n, name in enumerate(header) if n != key and column in (None, name))
            if (value := next(others, None)) is None:
                raise UsageError(
                    f"data.group: {file} has no column {'' if column is None else f'{column!r} '}of groups; its "
                    f"columns are {', '.join(header)}"
                )
            for row in table:
                if not row:
                    continue
                image = composed(row[key].removeprefix("./")) if key < len(row) else ""
                name = "".join(row[value : value + 1])
                if found.setdefault(image, name) != name:
                    raise UsageError(f"data.group: {file} has {image} in the groups {found[image]} and {name}")
    except OSError as error:
        raise UsageError(f"data.group: {file} cannot be read: {error.strerror or error}") from None
    except (ValueError, csv.Error) as error:  # ValueError: no UTF-8
        raise UsageError(f"data.group: {file} cannot be read: {error}") from None
    return found


def split(image_files: Index, groups: Groups, fraction: float, cap: int) -> Split:
    """Return the split of images whose groups stay together, with about `fraction` held out and at most `cap`.

    Exact copies are together as well: where they lie in several groups, these are one. A group is held out where the
    SHA-256 of its name, as a number in [0, 1), is below `fraction`; of several that are one, the first name in order
    counts; and of an image in no group its content does, as in `index.split`. The name is what stays when images of a
    group come and go, while the lowest hash of its contents would change with them, and the group would move.

    Groups differ in size, and of a few large ones chance would hold out far more or far less than was asked for. So
    they are taken from the lowest number on; one that would exceed `cap` or twice the share is left out; and further
    ones are taken below half of the share. From 20 images on at least one group is held out if `cap` allows it, the
    smallest where none keeps to twice the share. One group is always left to train on.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    contents, content = np.unique(np.frombuffer(image_files.table["sha256"].tobytes(), "S32"), return_inverse=True)
    named = np.flatnonzero(groups.places >= 0)
    nodes = len(contents) + len(groups.names)  # of a graph, whose edges join the content of an image with its group
    edges = content[named], len(contents) + groups.places[named]
    count, part = connected_components(coo_array((np.ones(len(named), bool), edges), (nodes, nodes)), directed=False)
    keys = np.zeros(count, "S32")
    keys[part[: len(contents)]] = contents  # a part without a name is a single content
    hashes = np.array([hashlib.sha256(name.encode()).digest() for name in groups.names], "S32")
    keys[part[len(contents) :][::-1]] = hashes[::-1]  # backwards, so that the first name of a part comes last and stays
    sizes = np.bincount(part[content], minlength=count)

    number = (np.frombuffer(keys.tobytes(), ">u8")[::4] >> 12).astype(np.float64) / 2**52
    order = np.argsort(keys, kind="stable")
    room = most = min(cap, int(2 * fraction * len(image_files)))
    held = np.zeros(count, bool)
    if len(image_files) >= 20 and fraction > 0 and count > 1:
        for n in order[:-1]:
            if room == 0 or (number[n] >= fraction and 4 * (most - room) >= most):
                break
            if sizes[n] <= room:
                held[n] = True
                room -= sizes[n]
        if not held.any() and len(fitting := order[sizes[order] <= cap]):
            held[fitting[np.argmin(np.maximum(sizes[fitting], most))]] = True
    is_held = held[part[content]]
    return Split(np.flatnonzero(~is_held), np.flatnonzero(is_held), groups)
