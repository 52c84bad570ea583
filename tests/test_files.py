"""Atomic writes and locks, tried with real files and a real second process."""

import errno
import logging
import subprocess
import sys
import threading

import filelock
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


def test_a_look_whether_it_is_locked_refuses_nobody(tmp_path, monkeypatch):
    """`is_locked` holds the lock for an instant, in which another one may want it."""
    path, tried, real = tmp_path / "lock", [], filelock.lock_descriptor

    def looked_at(descriptor, **options):
        tried.append(options)
        return len(tried) > 1 and real(descriptor, **options)

    monkeypatch.setattr(filelock, "lock_descriptor", looked_at)
    with files.lock(path, wait=False, message="in use"):
        assert len(tried) == 2


def test_a_lock_holds_against_another_thread_and_leaves_its_file(tmp_path):
    path = tmp_path / "folder" / "lock"
    entered = threading.Event()

    def second():
        with files.lock(path, wait=True):
            entered.set()

    thread = threading.Thread(target=second)
    with files.lock(path, wait=True):
        thread.start()
        assert not entered.wait(0.5)
        with pytest.raises(CheckpointError, match="in use"), files.lock(path, wait=False, message="in use"):
            pass
    thread.join(30)
    assert entered.is_set()
    assert path.exists()


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, caplog, reason):
    def fail(descriptor, **_):
        raise OSError(reason, "no locks here")

    for name in ("lock_descriptor", "unlock_descriptor"):
        monkeypatch.setattr(filelock, name, fail)
    with caplog.at_level(logging.WARNING), files.lock(tmp_path / "lock", wait=False, message="in use"):
        done = True
    assert done
    assert "this file system has no locks (no locks here)" in caplog.text


def test_other_errors_of_a_lock_are_raised(tmp_path, monkeypatch):
    def fail(descriptor, **_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(filelock, "lock_descriptor", fail)
    with pytest.raises(OSError, match="broken"), files.lock(tmp_path / "lock", wait=True):
        pass
