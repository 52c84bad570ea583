"""Data sets that come divided: train/, val/ and test/ are parts of one, and no classes; classes are one level down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from diffunet.data.index import Index

KINDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "hold-out", "held-out", "heldout"),
    "test": ("test", "testing"),
}
"""The names of folders, and of arrays, that are parts of a data set, by what they are for."""
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


class Splits(NamedTuple):
    """The top folders of a divided data set: those to train on, those to hold out, and those that are left out."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    left_out: tuple[str, ...]


def kind_of(folder: str) -> str | None:
    """Return train, val or test for the name of a part of a data set (Validation, train2017), None for others."""
    return _KIND_OF.get(re.sub(r"[-_ ]?\d*$", "", folder.casefold()))


def find(paths: Iterable[str]) -> Splits | None:
    """Return the parts of a data set, or None where it is not divided.

    It is where every image is in one of its parts, of which one is to train on, and another is not. What is held out is
    val, or test where there is no val; test is left out where there is.
    """
    tops: set[str] = set()
    for path in paths:
        top, slash, _ = path.partition("/")
        if top not in tops:
            if not slash or kind_of(top) is None:
                return None
            tops.add(top)
    kinds = {kind: tuple(sorted(top for top in tops if kind_of(top) == kind)) for kind in KINDS}
    if not kinds["train"] or not (kinds["val"] or kinds["test"]):
        return None
    return Splits(kinds["train"], kinds["val"] or kinds["test"], kinds["test"] if kinds["val"] else ())


def within(paths: Iterable[str]) -> Callable[[str], str]:
    """Return a function that takes a path of these to its path within its part; of no parts it is the path itself."""
    return (lambda path: path) if find(paths) is None else (lambda path: path.partition("/")[2])


def divide(image_files: Index, parts: Splits, cap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ascending indices (train, held out) by the parts, of which `cap` are held out: those of lowest hashes."""
    kept = {top: top in parts.training for top in (*parts.training, *parts.held_out)}
    is_training = np.fromiter((kept[path.partition("/")[0]] for path in image_files.paths), bool, len(image_files))
    held_out = np.flatnonzero(~is_training)
    if len(held_out) > cap:
        hashes = np.frombuffer(image_files.table["sha256"].tobytes(), "S32")[held_out]
        held_out = np.sort(held_out[np.argsort(hashes, kind="stable")[:cap]])
    return np.flatnonzero(is_training), held_out
