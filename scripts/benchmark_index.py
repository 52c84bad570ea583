"""Time and memory to look through a large folder of images, to open it as a data set, and to write down its index.

    .venv/bin/python scripts/benchmark_index.py --files 1000000

The files are hard links to a thousand small images in a temporary folder, which is removed at the end. Every part runs
in a process of its own; "above" is its peak of resident memory less that of a process that only imports. Not for
Windows, which does not tell a process its peak in this way.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PARTS = {
    "bare": "import, and nothing else",
    "list": "list_images",
    "first": "first open_dataset, building the cache at image_size 8",
    "second": "second open_dataset, from the cache",
    "more": "one file more: open_dataset, which rebuilds the cache",
    "use": "class_names, labels and split of an open data set",
    "write": "write_index of an open data set",
    "read": "read_index, and changes between it and itself",
}


def main() -> None:
    """Make the folder, run each part in a process of its own, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        print(json.dumps(measured(options.run[0], Path(options.run[1]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        began = time.perf_counter()
        make(Path(temporary), options.files, options.folders)
        print(f"{options.files:,} files in {options.folders:,} folders, made in {time.perf_counter() - began:.0f} s")
        print(f"{'':55} {'seconds':>8} {'peak MB':>8} {'above':>8}")
        bare = 0.0
        for part in options.parts:
            command = [sys.executable, __file__, "--run", part, temporary]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            bare = result["peak"] if part == "bare" else bare
            numbers = f"{result['seconds']:8.1f} {result['peak']:8.0f} {result['peak'] - bare:8.0f}"
            print(f"{PARTS[part]:55} {numbers}", *result["notes"], flush=True)


def make(temporary: Path, files: int, folders: int) -> None:
    """`temporary`/data with so many hard links to a thousand pictures."""
    import numpy as np
    from PIL import Image

    (temporary / "pictures").mkdir()
    (temporary / "data").mkdir()
    generator = np.random.default_rng(0)
    pictures = []
    for n in range(min(files, 1000)):
        pictures.append(temporary / "pictures" / f"{n}.png")
        height, width = generator.integers(8, 17, 2)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(pictures[-1])
    for n in range(files):
        folder = temporary / "data" / f"class-{n % folders:06}"
        if n < folders:
            folder.mkdir()
        os.link(pictures[n % len(pictures)], folder / f"photograph-{n:08}.png")


def measured(part: str, temporary: Path) -> dict[str, Any]:
    """Seconds, the peak of resident memory in MB, and notes."""
    from diffunet.data import folder, index
    from diffunet.data.dataset import Dataset, open_dataset

    data, text = temporary / "data", temporary / "index.txt"

    def opened() -> Dataset:
        return open_dataset(data, image_size=8, channels=3, fit="crop", cache=temporary / "cache")

    dataset = opened() if part in ("use", "write") else None
    notes: list[str] = []
    began = time.perf_counter()
    if part == "list":
        notes.append(f"{len(folder.list_images(data)[0]):,} images")
    elif part in ("first", "second"):
        notes.append(opened().index_hash[:8])
    elif part == "more":
        os.link(temporary / "pictures" / "0.png", data / "class-000000" / "one more.png")
        notes.append(f"{len(opened().files):,} images")
    elif part == "use" and dataset is not None:
        dataset.labels(folder.class_names(dataset.files.paths))
        train, held = index.split(dataset.files, 0.1, 1000)
        notes.append(f"{len(train):,} to train on, {len(held):,} held out")
    elif part == "write" and dataset is not None:
        index.write_index(text, dataset.files)
        notes.append(f"{text.stat().st_size / 2**20:.0f} MiB")
    elif part == "read":
        contents = index.read_index(text)
        assert index.changes(contents, contents) == []
    seconds = time.perf_counter() - began
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, "notes": notes}


if __name__ == "__main__":
    main()
