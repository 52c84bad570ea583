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

import numpy as np
from numpy.typing import NDArray

from diffunet import files
from diffunet.data import cache
from diffunet.data.folder import printable
from diffunet.errors import Error
from diffunet.evaluation.reals import RealImages

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]


def features(real: RealImages, chosen: NDArray[np.int64], by: str, measure: Callable[[], Floats]) -> Floats:
    """Return the features of the `chosen` real images, float32 [N D]: those that are kept, or else measured and kept.

    They are found by the contents of the images, how these meet the model, and `by`, which names the network and its
    weights. Where nothing can be written, or the config says that nothing is to be (data.cache off), none are kept.
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
        found: Floats = archive["features"]  # whose checksum is compared
        if found.dtype == np.float32 and found.ndim == 2 and len(found) == len(chosen):
            os.utime(folder / "lock")  # when it was last used, see kept.py
            return found
    found = measure()
    try:
        with files.lock(folder / "lock", wait=True):
            files.write_atomic(folder / "manifest.json", json.dumps({"source": printable(os.path.realpath(real.data))}))
            with files.replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, features=found)
    except OSError as error:
        log.info("features of real images are not kept: %s", error.strerror or error)
    return found
