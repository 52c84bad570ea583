"""Thousands of broken files through the real command and the readers; and that the script sees what it looks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


def fuzz(tmp_path: Path, *options: str, faults: str = "") -> tuple[int, str]:
    """Exit code and words of the script. `faults` is Python that every process runs as it starts."""
    (tmp_path / "sitecustomize.py").write_text(faults)
    command = [sys.executable, str(SCRIPT), "--keep", str(tmp_path / "kept"), *options]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)} if faults else None
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def counts(said: str, kind: str) -> tuple[int, int]:
    """Accepted and refused."""
    found = re.search(rf"^{kind}: ([\d,]+) accepted, ([\d,]+) refused$", said, re.MULTILINE)
    assert found, said
    accepted, refused = (int(number.replace(",", "")) for number in found.groups())
    return accepted, refused


@pytest.mark.slow
def test_broken_files_are_refused_in_one_line(tmp_path: Path) -> None:
    images, sources, models = 1_000, 400, 200
    code, said = fuzz(tmp_path, f"--images={images}", f"--sources={sources}", f"--models={models}")
    assert code == 0, said[-5000:]
    for kind, total in (("read", images), ("open", sources), ("load", models)):
        accepted, refused = counts(said, kind)
        assert accepted + refused == total
        # Breaking that spoils everything, or nothing, would look at one check only.
        assert 0.1 * total < refused < 0.9 * total, said


OPEN = """
import os, sys, zlib
from PIL import Image
plain = Image.open
def opening(file, *rest, **named):
    if zlib.crc32(file.getvalue()) % 11 == 7:
        {fault}
    return plain(file, *rest, **named)
Image.open = opening
"""
RESIZE = """
import zlib
from PIL import Image
plain = Image.Image.resize
def resizing(self, *rest, **named):
    return plain(self, *rest, **named) if zlib.crc32(self.tobytes()) % 5 else 1 / 0
Image.Image.resize = resizing
"""
FAULTS = {
    "crash": (OPEN.format(fault="os.abort()"), "read ends the process"),
    "crash of the command": (OPEN.format(fault="'check' in sys.argv and os.abort()"), "check ends the process"),
    "exit": (OPEN.format(fault="raise SystemExit(0)"), "read ends the process"),
    "memory": (OPEN.format(fault="bytearray(2**36)"), "too much memory"),
    "exception": (RESIZE, "ZeroDivisionError"),
    "hang": (OPEN.format(fault="while True: pass"), "read hangs"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_what_must_not_be_is_noticed_and_kept(name: str, tmp_path: Path) -> None:
    if name == "memory" and sys.platform != "linux":
        pytest.skip("only there the memory of a process is limited")
    fault, words = FAULTS[name]
    deadline = 5 if name == "hang" else 12  # each file that hangs takes as long
    code, said = fuzz(tmp_path, "--images=24", "--sources=0", "--models=0", f"--deadline={deadline}", faults=fault)
    assert code == 1, said
    assert words in said
    kept = [path for path in (tmp_path / "kept").iterdir() if path.suffix != ".txt"]
    assert kept, said
    for path in kept:
        assert path.with_name(f"{path.name}.txt").is_file()
        assert name == "exception" or zlib.crc32(path.read_bytes()) % 11 == 7, "the right file is found"
