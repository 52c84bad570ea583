"""Archives and arrays as DATA may be, and the same with bytes changed, lost and added, for `fuzz.py` and its tests."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile

import numpy as np
from PIL import Image

KINDS = ("zip", "tar", "npz", "npy")


def photo(seed: int) -> bytes:
    """Return a PNG of 5x5 random pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {f"x/{folder}/{n}.png": photo(n) for folder in "ab" for n in range(3)} | {
    "x/a/0.cls": b"1", "x/a/1.json": b'{"label": 3}', "x/run/config.toml": b"", "x/run/model/x": b"",
    "x/made.jsonl": b'{"pictures": ["a/0.png"]}\n',
}  # fmt: skip
"""What is in the archives: six images, one of them noted as made by diffunet, labels, and a run."""


def whole(kind: str) -> bytes:
    """Return the content of a sound file of one of `KINDS`."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in FILES.items():
                packed.writestr(name, content)
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in FILES.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("x/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "a/1.png"
            archive.addfile(link)
    elif kind == "npz":
        np.savez(buffer, images=np.arange(6 * 5 * 5 * 3).reshape(6, 5, 5, 3), labels=np.arange(6))
    else:
        np.save(buffer, np.arange(6 * 5 * 5 * 3, dtype=np.uint16).reshape(6, 5, 5, 3))
    return buffer.getvalue()


def changed(sound: bytes, draw: random.Random) -> bytes:
    """Return the bytes with a few of them other ones, fewer, more, or moved."""
    content = bytearray(sound)
    for _ in range(draw.choice((1, 1, 2, 5, 30))):
        way, place = draw.randrange(5), draw.randrange(len(content))
        if way == 0:
            content[place] ^= 1 << draw.randrange(8)
        elif way == 1:
            content[place] = draw.choice((0, 255, 47, 46, 80))
        elif way == 2:
            content[place : place + draw.randrange(1, 40)] = b"-"
        elif way == 3:
            content[place:place] = draw.randbytes(draw.randrange(1, 20))
        else:
            other = draw.randrange(len(content))
            content[place : place + 8] = content[other : other + 8] or b"-"
    return bytes(content[: draw.randrange(len(content))] if draw.random() < 0.1 else content)


def broken(sound: dict[str, bytes], seed: str) -> tuple[str, bytes]:
    """Return the name and the content of a broken file, one of those in `sound` by `KINDS`; a seed makes it again."""
    draw = random.Random(seed)
    kind = draw.choice(KINDS)
    return f"data.{kind}", changed(sound[kind], draw)
