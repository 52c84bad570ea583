"""What is done to a folder of many images, each part in a process of its own: `python -m benchmarks.folders`.

The files are hard links to a thousand small images (8 to 16 pixels), which are read at 8 pixels.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks import children

PARTS = {
    "bare": "import, and nothing else",
    "list": "list the images",
    "first": "open the data set, building the cache",
    "second": "open it again, from the cache",
    "more": "open it with one file more, rebuilding the cache",
    "use": "classes, labels and split of an open data set",
    "write": "write the index of an open data set",
    "read": "read the index, and compare it with itself",
}
"""Part -> what it is, in the order in which they have to come."""


def make(work: Path, files: int) -> None:
    """Make `work`/data with so many hard links to a thousand pictures, in subfolders of a thousand or fewer."""
    import numpy as np
    from PIL import Image

    folders = max(2, files // 1000)
    (work / "pictures").mkdir(parents=True)
    (work / "data").mkdir()
    generator = np.random.default_rng(0)
    pictures = []
    for n in range(min(files, 1000)):
        pictures.append(work / "pictures" / f"{n}.png")
        height, width = generator.integers(8, 17, 2)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(pictures[-1])
    for n in range(files):
        folder = work / "data" / f"class-{n % folders:06}"
        if n < folders:
            folder.mkdir()
        os.link(pictures[n % len(pictures)], folder / f"photograph-{n:08}.png")


def measured(part: str, work: str) -> dict[str, Any]:
    """Return the seconds of a part, the peak of memory in MiB, and the images that it met."""
    import time

    from diffunet.data import folder, index, labels
    from diffunet.data.dataset import Dataset, open_dataset

    root, more = Path(work), part == "more"
    data, text = root / "data", root / "index.txt"

    def opened() -> Dataset:
        return open_dataset(data, image_size=8, channels=3, fit="crop", cache=root / "cache")

    dataset = opened() if part in ("use", "write") else None
    if more:
        os.link(root / "pictures" / "0.png", data / "class-000000" / "one more.png")
    images = 0
    began = time.perf_counter()
    if part == "list":
        images = len(folder.list_images(data)[0])
    elif part in ("first", "second", "more"):
        images = len(opened().files)
    elif part == "use" and dataset is not None:
        labels.find(data, dataset.files.paths)
        images = sum(map(len, index.split(dataset.files, 0.1, 1000)))
    elif part == "write" and dataset is not None:
        index.write_index(text, dataset.files)
        images = len(dataset.files)
    elif part == "read":
        contents = index.read_index(text)
        assert index.changes(contents, contents) == []
        images = len(contents)
    return {"seconds": time.perf_counter() - began, "peak_mib": children.peak() / 2**20, "images": images}


if __name__ == "__main__":
    children.answer(measured)
