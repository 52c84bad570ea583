"""The caches of decoded images, and of features of them, on this machine: listing and clearing them."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffunet import files
from diffunet.data.folder import printable
from diffunet.errors import CheckpointError

_NAME = re.compile(r"[0-9a-f]{24}")
_FILES = re.compile(r"(pixels|index|features)-[0-9a-f]+\.(bin|npz)|manifest\.json|lock|\..*\.tmp")


@dataclass(frozen=True)
class Cache:
    """A folder of decoded images, or their features: of which DATA, the bytes that it takes, when it was last used."""

    folder: Path
    source: str
    size: int
    used: float

    def is_of(self, data: Path) -> bool:
        """Return whether it holds images of the folder or file `data`."""
        return self.source == printable(os.path.realpath(data))


def places() -> list[Path]:
    """Return the folders in which caches are kept unless another one is chosen."""
    found = [Path(tempfile.gettempdir(), f"diffunet-cache-{os.getuid() if hasattr(os, 'getuid') else 'user'}")]
    with contextlib.suppress(RuntimeError):
        found.insert(0, files.user_cache())
    return found


def caches(place: Path | None = None) -> list[Cache]:
    """Return the caches in a folder, or in those where they usually are, the one that was used last first."""
    found = [each for folder in ([place] if place is not None else places()) for each in _in(folder)]
    return sorted(found, key=lambda each: -each.used)


def _in(place: Path) -> Iterator[Cache]:
    try:
        folders = [path for path in place.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    except OSError:
        return
    for folder in folders:
        contents = [path for path in folder.iterdir() if _FILES.fullmatch(path.name)]
        if not any(path.name == "lock" for path in contents) or len(contents) == 1:
            continue  # not a cache, or cleared: the lock is never deleted
        source = "unfinished"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            source = str(json.loads((folder / "manifest.json").read_bytes())["source"])
        sizes, times = [0], [0.0]
        for path in contents:
            with contextlib.suppress(OSError):
                sizes.append((status := path.stat()).st_size)
                times.append(status.st_mtime)
        yield Cache(folder, source, sum(sizes), max(times))


def clear(cache: Cache) -> bool:
    """Delete what a cache holds, but for its lock; return False where a process that makes it holds that.

    A run that has its images mapped goes on with them, since the files stay until it has ended; on Windows what is
    mapped cannot be deleted, and False is returned.
    """
    try:
        with files.lock(cache.folder / "lock", wait=False, message="busy"):
            for path in sorted(cache.folder.iterdir(), key=lambda path: path.name != "manifest.json"):
                if path.name != "lock" and _FILES.fullmatch(path.name):
                    path.unlink()
    except (OSError, CheckpointError):
        return False
    return True
