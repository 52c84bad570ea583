"""Atomic writes and locks, tried with real files and a real second process."""

import subprocess
import sys

import pytest

from diffunet import files
from diffunet.errors import CheckpointError


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomic(path, "old")

    def write_half():
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sha256_is_that_of_the_system(tmp_path):
    files.write_atomic(tmp_path / "x", b"abc")
    assert files.sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_lock_holds_against_another_process_and_dies_with_its_own(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from diffunet import files\n"
        f"with files.lock(Path({str(path)!r}), wait=True):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="in use"), files.lock(path, wait=False, message="in use"):
            pass
        holder.kill()
    with files.lock(path, wait=True):
        pass
