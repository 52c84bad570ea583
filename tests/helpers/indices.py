"""A helper that puts image files into the columns of an index."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from diffunet.data.folder import ImageFile
from diffunet.data.index import FILE, Index, Paths, row


def index_of(files: Iterable[ImageFile], *, ordered: bool = True) -> Index:
    """Return an index of files sorted by path, or in the order that they have, which `split` accepts as well."""
    listed = sorted(files, key=lambda file: file.path) if ordered else list(files)
    return Index(Paths.of(file.path for file in listed), np.array([row(file) for file in listed], FILE))
