"""Writing files so that nobody ever reads half of one: atomic replace, fsync, hash, lock."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from diffunet.errors import CheckpointError

log = logging.getLogger(__name__)

WINDOWS = os.name == "nt"


def fsync(path: Path) -> None:
    """Force a file or folder to the disk. Windows cannot open a folder for this, and does not need it."""
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """`os.replace`, durable, and patient with a virus scanner or viewer that holds `target` open on Windows."""
    for attempt in range(10):
        try:
            os.replace(source, target)
            break
        except PermissionError:
            if not WINDOWS or attempt == 9:
                raise
            time.sleep(0.1 * (attempt + 1))
    fsync(target.parent)


def mkdir(path: Path) -> None:
    """Make a folder, and those above it, so that their names outlast a power cut."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        fsync(folder.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and takes its place, on failure it is removed."""
    mkdir(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync(temporary)
        replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # never instead of the error that it comes from
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what a killed process left in `folder` of `replacing` and of safetensors; only for who holds its lock."""
    for left in [*folder.glob(".*.tmp"), *folder.glob(".tmp*")]:
        with contextlib.suppress(OSError):
            left.unlink()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8, line ends kept) so that `path` holds all of it or what it held before."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, *, wait: bool, message: str = "") -> Iterator[None]:
    """Hold an exclusive lock on `path` that the operating system drops when this process dies.

    Raises:
        CheckpointError: with `message`, where another process holds it and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        while not _try_lock(file.fileno()):
            if not wait:
                raise CheckpointError(message)
            time.sleep(0.2)
        try:
            yield
        finally:
            _unlock(file.fileno())


if WINDOWS:  # pragma: no cover
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]
else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some network file systems have no locks
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            log.warning("this file system has no locks (%s): see that only one process writes here", error.strerror)
        return True

    def _unlock(descriptor: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
