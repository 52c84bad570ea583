"""Functions that write files so that nobody ever reads half of one, and a lock between processes."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import filelock

from diffunet.errors import CheckpointError, UsageError

log = logging.getLogger(__name__)

WINDOWS = os.name == "nt"


def user_cache() -> Path:
    """Return the user's folder for caches, which the environment variable DIFFUNET_CACHE may name.

    Raises:
        RuntimeError: there is no home at all, as in some containers.
    """
    if chosen := os.environ.get("DIFFUNET_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "diffunet" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "diffunet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffunet"


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk. Windows cannot open a folder for this, and does not need it."""
    if not (WINDOWS and path.is_dir()):
        descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace(source: Path, target: Path) -> None:
    """Do `os.replace` and make it durable; on Windows wait up to 4.5 s for a program that holds `target` open."""
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
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        fsync(folder.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` on success and is removed on failure."""
    mkdir(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync(temporary)
        replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # an error here would hide the one that led here
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_all(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield a temporary folder from which the files `names` replace those of `folder`, in this order, on success."""
    temporary = folder / f".model.{os.getpid()}.tmp"
    try:
        yield temporary
        for name in names:
            mkdir((folder / name).parent)
            replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def absent(path: str | Path, what: str = "no such file or folder") -> str | None:
    """Return why nothing can be found at a path: `what`, or what the system says; None if there is something."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte in the name
        return what
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    return None


def is_within(path: str) -> bool:
    """Return whether a path that a file or the network gives stays within its folder, on every system."""
    leads_out = re.match(r"[A-Za-z]:|[\\/]", path) or ".." in re.split(r"[\\/]", path)
    return not leads_out and "\0" not in path


MADE = ".diffunet-prepared"
"""The file by which a folder that `making` made is known, and that says what it was made of."""


@contextlib.contextmanager
def making(folder: Path, what: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder, within a temporary one beside `folder`, that becomes `folder` on success, and only then.

    Args:
        folder: must be empty, or not be there.
        what: it is made of.
        overwrite: replace a folder that was made so before.

    Raises:
        UsageError: `folder` is a file or holds something else.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not overwrite:
            raise UsageError(f"{folder}: exists and is not an empty folder; choose another name, or say --overwrite")
        if not (folder / MADE).is_file():
            raise UsageError(f"{folder}: was not made by this command, and is not overwritten; remove it yourself")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as parts:
        made = Path(parts, "made")
        made.mkdir()
        yield made
        (made / MADE).write_text(f"{what}\n", encoding="utf-8")
        if folder.exists():
            os.replace(folder, Path(parts, "before"))
        replace(made, folder)


def sweep(folder: Path) -> None:
    """Delete the temporary files that `replacing` and safetensors left in `folder` in a process that was killed.

    Only the holder of the folder's lock may do this, since the files of a process at work look the same.
    """
    for path in [*folder.glob(".*.tmp"), *folder.glob(".tmp*")]:
        with contextlib.suppress(OSError):
            path.unlink()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` (text as UTF-8, line ends kept) so that `path` holds all of it or what it held before."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(path: Path, *, wait: bool, message: str = "") -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is made if it does not exist and is never deleted.

    It excludes other processes and threads, and the operating system drops it when this process dies. Where the file
    system has no locks a warning is logged. A lock that is held elsewhere raises CheckpointError unless `wait` is set.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `filelock.FileLock`: on Windows it deletes the file, by which training recognises a run folder, and where
    # the file system has no locks it makes one that outlives its process.
    with path.open("a+b") as file:
        try:
            if not filelock.lock_descriptor(file.fileno(), blocking=wait, poll_interval=0.2):
                time.sleep(0.1)  # it may have been `is_locked`, which holds it for an instant
                if not filelock.lock_descriptor(file.fileno(), blocking=False):
                    raise CheckpointError(message)
        except OSError as error:  # some network file systems have no locks
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            log.warning("this file system has no locks (%s): see that only one process writes here", error.strerror)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # closing the file drops the lock as well
                filelock.unlock_descriptor(file.fileno())


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds the `lock` on a file; None where that cannot be told.

    A lock that nobody holds is held for an instant, to find out.
    """
    try:
        with path.open("r+b") as file:
            if not filelock.lock_descriptor(file.fileno(), blocking=False):
                return True
            filelock.unlock_descriptor(file.fileno())
            return False
    except FileNotFoundError:
        return False
    except OSError:  # it is another user's, or the file system has no locks
        return None
