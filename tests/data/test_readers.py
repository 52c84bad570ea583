"""Processes that read small files: the same data set as by threads, whatever becomes of them."""

import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image

from diffunet.data import dataset, readers
from diffunet.data.dataset import open_dataset
from diffunet.errors import DataError

pytestmark = pytest.mark.seconds


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """150 pictures of many sizes and kinds, a few of which cannot be used, and one that is large beside the others."""
    root, generator = tmp_path_factory.mktemp("small"), np.random.default_rng(0)
    for n in range(150):
        height, width = generator.integers(8, 40, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{n:03}.{('png', 'jpg', 'webp')[n % 3]}")
    (root / "empty.png").write_bytes(b"")
    (root / "text.jpg").write_text("no picture")
    (root / "half.png").write_bytes((root / "000.png").read_bytes()[:200])
    Image.new("RGB", (6000, 6000), (9, 99, 199)).save(root / "large.png")
    return root


def opened(root, cache, workers=2, progress=None):
    found = open_dataset(
        root, image_size=8, channels=3, fit="crop", cache=cache, workers=workers, progress=progress
    )  # fmt: skip
    pixels = [found.images[n].copy() for n in range(len(found.files))]
    return found, pixels


@pytest.fixture
def by_processes(monkeypatch):
    """Let folders of a few files be read by processes, and note those."""
    began, popen = [], subprocess.Popen

    def noted(*arguments, **options):
        began.append(popen(*arguments, **options))
        return began[-1]

    monkeypatch.setattr(dataset, "MANY", 10)
    monkeypatch.setattr(dataset, "CHUNK", 16)
    monkeypatch.setattr(readers.subprocess, "Popen", noted)
    return began


def same(a, b):
    (left, left_pixels), (right, right_pixels) = a, b
    assert left.index_hash == right.index_hash
    assert left.rejected == right.rejected
    assert (left.mean, left.sigma_data) == (right.mean, right.sigma_data)
    assert all(np.array_equal(x, y) for x, y in zip(left_pixels, right_pixels, strict=True))


@pytest.fixture(scope="module")
def by_threads(small, tmp_path_factory):
    return opened(small, tmp_path_factory.mktemp("threads"))


def test_processes_read_what_threads_read(small, by_threads, by_processes, tmp_path):
    found = opened(small, tmp_path)
    same(found, by_threads)
    assert len(by_processes) == 2
    assert [process.returncode is None for process in by_processes] == [False, False]
    assert [file.path for file in found[0].rejected] == ["empty.png", "half.png", "text.jpg"]


@pytest.mark.long
def test_few_large_or_single_threaded_are_read_by_threads(small, by_threads, by_processes, tmp_path, monkeypatch):
    same(opened(small, tmp_path / "one", workers=1), by_threads)
    monkeypatch.setattr(dataset, "SMALL", 10)
    same(opened(small, tmp_path / "large"), by_threads)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(dataset, "SMALL", 2**16)
    same(opened(small, tmp_path / "frozen"), by_threads)
    assert by_processes == []


def test_processes_that_die_are_replaced_by_this_one(small, by_threads, by_processes, tmp_path, caplog):
    def progress(done, total):
        for process in by_processes if done == 1 else []:  # most have not been asked for yet
            process.kill()
            process.wait()

    same(opened(small, tmp_path, progress=progress), by_threads)
    assert "a process that reads files has died" in caplog.text


def test_a_process_that_cannot_start(small, by_threads, by_processes, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(readers.sys, "executable", "/no/such/python")
    same(opened(small, tmp_path), by_threads)
    assert "has died (FileNotFoundError)" in caplog.text


def test_an_error_in_the_middle_ends_the_processes(small, by_processes, tmp_path):
    def progress(done, total):
        raise DataError("enough")

    with pytest.raises(DataError, match="enough"):
        open_dataset(
            small, image_size=8, channels=3, fit="crop", cache=tmp_path, workers=2, progress=progress
        )  # fmt: skip
    assert by_processes
    assert all(process.returncode is not None for process in by_processes)


SCRIPT = """
import sys
from pathlib import Path
print("once")
from diffunet.data import dataset
dataset.MANY = 10
found = dataset.open_dataset(
    Path(sys.argv[1]), image_size=8, channels=3, fit="crop", cache=Path(sys.argv[2]), workers=2
)
print(len(found.files))
"""


def test_a_script_without_a_guard_runs_once(small, tmp_path):
    """As multiprocessing would not have it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", small, tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("once\n151\n", "")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="a terminal sends Ctrl-C to a group of processes")
def test_ctrl_c_is_the_parents_alone(small, tmp_path):
    stop = "import time\ndef stop(done, total):\n    print('reading', flush=True)\n    time.sleep(60)\n"
    (tmp_path / "script.py").write_text(stop + SCRIPT.replace("workers=2", "workers=2, progress=stop"))
    command = [sys.executable, tmp_path / "script.py", small, tmp_path / "cache"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout.readline() == "once\n"
        assert child.stdout.readline() == "reading\n"
        readers_of_it = psutil.Process(child.pid).children()
        os.killpg(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert len(readers_of_it) == 2
    assert err.count("KeyboardInterrupt") == 1
    _, alive = psutil.wait_procs(readers_of_it, timeout=20)
    assert alive == []


def test_readers_end_with_a_parent_that_is_killed(small, tmp_path):
    code = (
        "from diffunet.data import readers\nimport time\n"
        "with readers.readers(len) as read:\n    print(read(['a', 'bc']), flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "[1, 2]\n"
        (reader,) = psutil.Process(child.pid).children()
        child.kill()
        _, alive = psutil.wait_procs([reader], timeout=20)
    assert alive == []
