"""The choice of the folder in which decoded images are kept."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from diffunet.errors import UsageError


def cache_root(chosen: Path | None) -> Path:
    """Return a folder that can be written: the chosen one, else the user's, else one among temporary files.

    Raises:
        UsageError: The chosen folder cannot be written, or without a choice no folder can.
    """
    if chosen is not None:
        if not _writable(chosen):
            raise UsageError(f"--data.cache {chosen}: cannot be written; choose another folder, or off")
        return chosen
    with contextlib.suppress(RuntimeError):  # no home at all, as in some containers
        if _writable(home := _user_cache()):
            return home
    user = os.getuid() if hasattr(os, "getuid") else "user"
    try:
        return Path(tempfile.gettempdir()) / f"diffunet-cache-{user}"
    except FileNotFoundError:
        raise UsageError("no folder for decoded images can be written; choose one with --data.cache, or off") from None


def _user_cache() -> Path:
    """Return the folder for caches of this system, or what the environment variable DIFFUNET_CACHE names."""
    if chosen := os.environ.get("DIFFUNET_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "diffunet" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "diffunet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffunet"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
