"""Features of real images, kept beside decoded images in the user's folder for caches: by content, never in DATA.

`diffunet cache` lists and clears them as decoded images; a folder holds features-KEY.npz, a manifest and a lock.
"""

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import cache
from diffunet.data.folder import printable
from diffunet.errors import Error
from diffunet.evaluation.reals import RealImages

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


def features(real: RealImages, chosen: NDArray[np.int64], by: str, measure: Callable[[], Floats]) -> Floats:
    """Return the features of the `chosen` real images, float32 [N D]: those that are kept, or else measured and kept.

    They are kept as `arrays` says; `by` names the network and its weights.
    """

    def fits(found: Arrays) -> bool:
        kept = found["features"]
        return kept.dtype == np.float32 and kept.ndim == 2 and len(kept) == len(chosen)

    return arrays(real, chosen, by, lambda: {"features": measure()}, fits)["features"]


def arrays(
    real: RealImages, chosen: NDArray[np.int64], by: str, measure: Callable[[], Arrays], fits: Callable[[Arrays], bool]
) -> Arrays:  # fmt: skip
    """Return arrays that are known by the `chosen` real images: those that are kept, or else measured and kept.

    They are found by the contents of the images, how these meet the model, and `by`, which says what they are. What is
    kept and does not fit, or cannot be read, is measured anew. Where nothing can be written, or the config says that
    nothing is to be (data.cache off), none are kept.
    """
    d = real.config.data
    if d.cache == "off":
        return measure()
    form = [d.image_size, d.channels, d.fit, d.background, d.scales, d.pages, d.reading, repr(real.dataset.ranges)]
    parts = [real.dataset.index_hash, form, hashlib.sha256(real.places[chosen].tobytes()).hexdigest(), by]
    key = hashlib.sha256(json.dumps([*parts, chosen.tolist() if d.fit == "patch" else None]).encode()).hexdigest()[:24]
    try:
        folder = cache.home(None if d.cache is None else Path(d.cache)) / key
    except Error as error:
        log.info("features of real images are not kept: %s", error)
        return measure()
    path = folder / f"features-{key}.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as archive:
        found: Arrays = dict(archive)  # whose checksums are compared
        if fits(found):
            os.utime(folder / "lock")  # when it was last used, see kept.py
            return found
    found = measure()
    try:
        with files.lock(folder / "lock", wait=True):
            files.write_atomic(folder / "manifest.json", json.dumps({"source": printable(os.path.realpath(real.data))}))
            with files.replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **found)  # type: ignore[arg-type]
    except OSError as error:
        log.info("features of real images are not kept: %s", error.strerror or error)
    return found
