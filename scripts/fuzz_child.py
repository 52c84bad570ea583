"""The processes of `fuzz.py` that read broken files, and say in lines of JSON what becomes of each:

    ["begin", NAME]   ["end", NAME, SECONDS, "accepted" | "refused" | "failed", WORDS]   ["done", WHAT FAILED LAST]

`fuzz_child.py size` says how many bytes of addresses a process takes without any file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import diffunet
from diffunet.config import read_toml
from diffunet.data import cache
from diffunet.data.dataset import open_dataset
from diffunet.data.index import Paths
from diffunet.data.sources import Folder, open_source
from diffunet.errors import DataError, Error
from diffunet.inpainting import composite, masks
from diffunet.inpainting.reading import read_mask
from diffunet.pictures import images
from diffunet.training import checkpoint

LONGEST = 1000
"""Characters of a complaint."""
LARGE = 2**24
"""Pixels of an image that is read in one way only, for it takes seconds."""


def judge(work: Callable[[], Any]) -> tuple[str, str]:
    """("accepted" | "refused" | "failed", words) of a call."""
    try:
        work()
    except Error as error:
        words = str(error)
        if not words or not words.isprintable() or len(words) > LONGEST:
            return "failed", f"{type(error).__name__}, which is not a line for people: {words[: 2 * LONGEST]!r}"
        if "memory" in words:
            return "failed", f"takes too much memory: {words}"
        return "refused", words
    except Exception:
        return "failed", traceback.format_exc()
    return "accepted", ""


def read_image(path: Path) -> None:
    """An image in the ways that training, masks and inpainting read it; they have to agree on whether it is one."""
    source, name = Folder(path.parent), path.name
    file, _ = cache.decode_file(source, name, cache.Layout(16, 3, "crop", (255, 255, 255), 1.0))
    if file.width * file.height > LARGE:
        return
    for channels, fit in ((1, "pad"), (4, "random")):
        _, pixels = cache.decode_file(source, name, cache.Layout(16, channels, fit, (1, 2, 3), 1.125))
        assert pixels.dtype == np.uint8, pixels.dtype
        assert pixels.shape[2] == channels, pixels.shape
    with contextlib.suppress(DataError):  # not every image may be a mask
        for soft in (False, True):
            mask = read_mask(path, soft=soft).mask
            assert mask.shape == (file.height, file.width), (mask.shape, file)
            assert mask.min() >= 0, mask.min()
            assert mask.max() <= 1, mask.max()
    try:
        picture = composite.editable(images.open_image(path))
        masks.alpha_hole(picture)
        hole = np.zeros((file.height, file.width), bool)
        hole[0, 0] = True
        filled = composite.composite(picture, np.zeros((*hole.shape, 3), np.uint8), hole)
        assert filled.size == picture.size == (file.width, file.height), (filled, picture, file)
    except DataError as error:
        raise AssertionError(f"training takes this image, and inpainting does not: {error}") from error


def read_together(folder: Path) -> None:
    """All images of a folder as a data set: each is in it or refused."""
    count = sum(1 for _ in folder.iterdir())
    with contextlib.suppress(DataError):  # none of them can be used
        data = open_dataset(folder, image_size=16, channels=3, fit="crop", cache="off")
        found = len(data.files) + len(data.rejected)
        assert found == count, f"{found} files and rejected, of {count}"
        assert all(data.images[i].shape[2] == 3 for i in range(0, len(data.images), 50))


def open_data(path: Path) -> None:
    """An archive or arrays as DATA: listed, every image read, and all together as a data set."""
    source, found = open_source(path)
    list(found.left_out.lines())
    assert source.stamps(Paths.of(found.paths)).shape == (len(found.paths), 2)
    for name in found.paths:
        with contextlib.suppress(DataError):  # one damaged image among others
            source.read(name)
    with contextlib.suppress(DataError):  # none of them can be used
        data = open_dataset(path, image_size=16, channels=3, fit="crop", cache="off")
        assert len(data.files) + len(data.rejected) == len(found.paths) + len(found.rejected)
        assert all(data.images[i].shape[2] == 3 for i in range(len(data.images)))


def load_model(path: Path) -> None:
    """A model as one who wants to sample loads it, a run as one who wants to resume it."""
    if (path / "checkpoints").is_dir():
        newest = checkpoint.newest(path)
        if newest is not None:
            checkpoint.read_state(newest)
        read_toml(path / "config.toml")
    pipe = diffunet.load(path, device="cpu")
    if pipe.image_size <= 64:
        pipe.sample(1, steps=1)


def say(*message: Any) -> None:
    """At once, since the process may end any time."""
    print(json.dumps(message), flush=True)


def main(what: str, folder: Path, after: str, deadline: float) -> None:
    """Read each of a folder whose name comes after `after`; where one takes `deadline` seconds, say where and exit."""
    logging.disable()
    work = {"read": read_image, "open": open_data, "load": load_model}[what]
    sound = not after
    for path in sorted(path for path in folder.iterdir() if path.name > after):
        say("begin", path.name)
        faulthandler.dump_traceback_later(deadline, exit=True)
        start = time.monotonic()
        outcome, words = judge(lambda path=path: work(path))  # type: ignore[misc]
        say("end", path.name, time.monotonic() - start, outcome, words)
        sound &= outcome != "failed"
    problem = ""
    if what == "read" and sound:
        faulthandler.dump_traceback_later(2 * deadline, exit=True)
        problem = judge(lambda: read_together(folder))[1]
    faulthandler.cancel_dump_traceback_later()
    say("done", problem)


def address_space() -> int:
    """Bytes of addresses, in use at most until now; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmPeak")).split()[1]) * 1024
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "size":
        importlib.import_module("diffunet.training.loop")  # and with it all that is needed
        print(address_space())
    else:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
