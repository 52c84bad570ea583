"""Files from the web, which a broken connection does not begin anew, and from buckets."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffunet import files
from diffunet.data.folder import Progress
from diffunet.errors import DataError, Error, ResourceError, UsageError
from diffunet.version import __version__

TIMEOUT = 30.0
"""Seconds without an answer after which a connection counts as broken."""
TRIES = 5
"""How often a download is taken up again without a byte more."""
WAIT = 1.0
"""Seconds before the second try; before each further one it is twice as long."""
_CHUNK = 2**20
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "oss": "ossfs"}


def file_name(address: str) -> str:
    """Return the name of the file at a web address, which is the last part of its path."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rstrip("/").rpartition("/")[2]
    return "".join(c if c.isalnum() or c in "-_. " else "_" for c in name).lstrip(".") or "download"


def place_of(address: str, folder: Path) -> Path:
    """Return where the file at a web address is kept below `folder`: apart from files of that name elsewhere."""
    return folder / hashlib.sha256(address.encode()).hexdigest()[:16] / file_name(address)


def download(address: str, target: Path, *, sha256: str | None = None, progress: Progress | None = None) -> None:
    """Download what is at a web address to the file `target`, unless it is there; `progress` counts bytes.

    What came of it before a break, of this call or of one before, is kept beside it and gone on from, where the server
    says that its file is still the same.

    Raises:
        DataError: the server cannot be reached or has no such file, or the file is not what `sha256` says.
        ResourceError: there is no room for it.
    """
    partial, note = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        tries, had = 0, -1
        while True:
            try:
                if _fetched(address, partial, note, progress):
                    break
                reason = "the connection ends before the file does"
            except urllib.error.HTTPError as error:
                reason = f"the server answers {error.code} ({error.reason})"
                if error.code < 500 and error.code not in (408, 429):
                    raise DataError(f"{address}: {reason}") from None
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise ResourceError(f"{target.parent}: the disk is full; make room, and call this again") from None
                reason = f"cannot be reached: {getattr(error, 'reason', error)}"
            has = partial.stat().st_size if partial.exists() else 0
            tries = tries + 1 if has <= had else 1
            had = max(had, has)
            if tries >= TRIES:
                kept = f"; {has:,} bytes are kept, and the same command goes on from them" if has else ""
                raise DataError(f"{address}: {reason}{kept}")
            time.sleep(WAIT * 2 ** (tries - 1))
        files.replace(partial, target)
        note.unlink(missing_ok=True)
    if sha256 is not None and (found := files.sha256(target)) != sha256.lower():
        target.unlink()
        raise DataError(f"{address}: is not the file that was meant: its SHA-256 is {found}, and not {sha256}")


def _fetched(address: str, partial: Path, note: Path, progress: Progress | None) -> bool:
    """Download what is missing, and return whether the file is whole now."""
    has, headers = partial.stat().st_size if partial.exists() else 0, {"User-Agent": f"diffunet/{__version__}"}
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(note.read_text(encoding="utf-8"))
    if has and known.get("address") == address and known.get("version"):
        headers |= {"Range": f"bytes={has}-", "If-Range": known["version"]}
    request = urllib.request.Request(address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # no such range: it is whole, or another file
            whole = has == known.get("size")
            if not whole:
                partial.unlink()
            return whole
        raise
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DataError(f"{address}: is a web page and no file; give the address of the file itself")
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {has}-")
        has = has if goes_on else 0
        size = _whole(response.headers, has)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        content = {"address": address, "size": size, "version": "" if version.startswith("W/") else version}
        note.write_text(json.dumps(content), encoding="utf-8")
        if size is not None and shutil.disk_usage(partial.parent).free < size - has:
            raise ResourceError(f"{address}: has {size / 1e6:,.1f} MB, for which {partial.parent} has no room")
        with partial.open("ab" if goes_on else "wb") as file:
            while chunk := response.read(_CHUNK):
                has += file.write(chunk)
                if progress is not None:
                    progress(has, size or has)
    return size is None or has == size


def _whole(headers: Mapping[str, str], has: int) -> int | None:
    """Return the size of the whole file, or None where the server does not say it."""
    length = headers.get("Content-Length", "")
    return has + int(length) if length.isdigit() else None


def from_bucket(address: str, folder: Path, wanted: Callable[[list[str], Callable[[str], bytes]], list[str]]) -> None:
    """Copy what is at an address of a bucket (s3://, gs://) to a folder, by fsspec and its driver.

    Args:
        address: of a file, or of a folder.
        folder: for its files; of several, their paths within the address stay.
        wanted: takes the names of the files of a folder, and a function that returns their first bytes, and returns
            those to copy.

    Raises:
        UsageError: the driver is not installed; the message names its package.
        DataError: nothing is there, or it cannot be read.
    """
    protocol = address.partition("://")[0]
    package = _PACKAGES.get(protocol, f"a driver of fsspec for {protocol}://")
    try:
        import fsspec

        system, root = fsspec.core.url_to_fs(address)
    except ImportError:
        raise UsageError(f"{address}: needs a package that is not installed: pip install fsspec {package}") from None
    except ValueError as error:
        raise UsageError(f"{address}: {error}") from None
    try:
        if not system.isdir(root):
            target = folder / file_name(address)
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(root, str(target))
            return
        start = len(root.rstrip("/")) + 1
        found = {str(path)[start:]: str(path) for path in system.find(root)}
        for name in wanted(sorted(found), lambda name: system.cat_file(found[name], start=0, end=32)):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(found[name], str(target))
    except Error:
        raise
    except FileNotFoundError:
        raise DataError(f"{address}: no such file or folder") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{folder}: the disk is full; make room") from None
        raise DataError(f"{address}: cannot be read: {error}") from None
    except Exception as error:  # each driver has errors of its own
        raise DataError(f"{address}: cannot be read: {type(error).__name__}: {error}") from None


def sha256_of(text: str) -> str:
    """Return a SHA-256 in hexadecimal digits as it was given, or raise UsageError for anything else."""
    if len(text) != 2 * hashlib.sha256().digest_size or not all(c in "0123456789abcdefABCDEF" for c in text):
        raise UsageError(f"--sha256 takes 64 hexadecimal digits, not {text!r}")
    return text
