"""Groups of images that are variants of one picture, and the split that keeps each group on one side.

A rule says which images are of one group: a table of them, or a regular expression that finds a name in their paths.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffunet import names
from diffunet.data import index, splits, tables
from diffunet.data.folder import printable
from diffunet.data.index import Index, Paths
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

    def groups_hash(self) -> str:
        """Return the SHA-256 of the groups; nothing where there are none."""
        if self.groups is None:
            return ""
        return hashlib.sha256(
            "\0".join(self.groups.names).encode() + self.groups.places.astype("<i8").tobytes()
        ).hexdigest()


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
        rows = tables.read(Path(table[0]), table[1], option="data.group")
        found = list(tables.matched(paths, Path(table[0]), rows, option="data.group"))
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


def divide(
    image_files: Index, rule: str | None, fraction: float, cap: int, classes: NDArray[np.int64] | None = None
) -> Split:
    """Return which images are trained on and which are held out: by their folders, by groups, or each by its content.

    Args:
        image_files: the images. Where their folders are parts of a data set (`splits.find`), these decide.
        rule: what finds the groups, see `find`, or None.
        fraction, cap: the share of the images to hold out, and how many at most.
        classes: the class of each image, int64 [N]: of each, one image at least is trained on.

    Raises:
        UsageError: `rule` finds no groups, see `find`, or is given for a divided data set.
    """
    if (parts := splits.find(image_files.paths)) is not None:
        if rule is not None:
            raise UsageError("data.group: the folders of the data set say what is held out; leave out --data.group")
        return Split(*splits.divide(image_files, parts, cap if fraction else 0), None)
    if rule is None:
        return Split(*index.split(image_files, fraction, cap, classes), None)
    return split(image_files, find(image_files.paths, rule), fraction, cap, classes)


def split(
    image_files: Index, groups: Groups, fraction: float, cap: int, classes: NDArray[np.int64] | None = None
) -> Split:
    """Return the split of images whose groups stay together, with about `fraction` held out and at most `cap`.

    Exact copies are together as well: where they lie in several groups, these are one. A group is held out where the
    SHA-256 of its name, as a number in [0, 1), is below `fraction`; of several that are one, the first name in order
    counts; and of an image in no group its content does, as in `index.split`. The name is what stays when images of a
    group come and go, while the lowest hash of its contents would change with them, and the group would move.

    Groups differ in size, and of a few large ones chance would hold out far more or far less than was asked for. So
    they are taken from the lowest number on; one that would exceed `cap` or twice the share is left out; and further
    ones are taken below half of the share. From 20 images on at least one group is held out if `cap` allows it, the
    smallest where none keeps to twice the share. One group is always left to train on, and one image of each of the
    `classes`, as in `index.split`.
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
    place = np.argsort(order)[part[content]]  # of each image's part in the order
    held = held[order]
    index.leave_every_class(held, place, classes, cap)
    is_held = held[place]
    return Split(np.flatnonzero(~is_held), np.flatnonzero(is_held), groups)
