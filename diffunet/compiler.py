"""Shared libraries that are built from C++ source by the machine's own compiler, once, and kept in the user's cache."""

import atexit
import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from diffunet import files

log = logging.getLogger(__name__)

COMPILERS = ("c++", "g++", "clang++")
"""The compilers to try where the environment variable CXX names none."""

FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
    "-shared", "-fPIC",
)  # fmt: skip
"""Without the two about mathematics (flags that nobody reads) a compiler makes no vectors of `exp` and `min`."""

SECONDS = 120
"""The seconds that a compiler may take; it takes about four."""


class Unavailable(Exception):
    """A library cannot be built or loaded on this machine; the message says why."""


@cache
def library(source: Path) -> ctypes.CDLL:
    """Return the library of a C++ source file, built for the CPU of this machine and loaded.

    It is kept in the user's folder for caches under a name that depends on the source, the compiler and the CPU, so
    that nothing else is ever loaded. Where that folder cannot be written, it is built again by every process.

    Raises:
        Unavailable: there is no compiler that takes the source, or what it builds cannot be loaded.
    """
    compiler = _compiler()
    # The macros that -march=native defines name the instructions of this CPU: a home may be shared by other machines.
    version, macros = _said(compiler, "--version"), _said(compiler, *FLAGS[:4], "-E", "-dM", "-x", "c++", os.devnull)
    text = source.read_bytes()
    parts = [text, version.encode(), "".join(sorted(macros.splitlines())).encode(), " ".join(FLAGS).encode()]
    name = f"{source.stem}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.so"
    try:
        folder = files.user_cache() / "native"
        files.mkdir(folder)
        if not (target := folder / name).exists():
            _build(compiler, source, target)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="diffunet-"))  # readable by this user alone
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _build(compiler, source, target := folder / name)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise Unavailable(f"what {compiler} built cannot be loaded: {error}") from None


def describe() -> str:
    """Return the compiler and its version in words; raise Unavailable where there is none."""
    return _said(_compiler(), "--version").splitlines()[0]


def _compiler() -> str:
    """Return the path of the C++ compiler."""
    chosen = [name] if (name := os.environ.get("CXX")) else list(COMPILERS)
    for name in chosen:
        if path := shutil.which(name):
            return path
    raise Unavailable(f"there is no C++ compiler ({', '.join(chosen)})")


def _build(compiler: str, source: Path, target: Path) -> None:
    """Build the library of a source file as `target`, all of it or nothing."""
    log.info("building %s for this CPU by %s: some seconds, once", source.name, compiler)
    with files.replacing(target) as temporary:
        _said(compiler, *FLAGS, str(source), "-o", str(temporary))


def _said(compiler: str, *arguments: str) -> str:
    """Return what a compiler prints; raise Unavailable where it fails."""
    try:
        ended = subprocess.run(
            [compiler, *arguments], capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{compiler} does not run: {error}") from None
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if "error" in line.lower()] or ended.stderr.splitlines()
        raise Unavailable(f"{compiler} does not take the kernels: {(lines or ['it says nothing'])[0].strip()}")
    return ended.stdout
