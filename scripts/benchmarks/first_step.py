"""Seconds from a folder of images to the first training step, beside one epoch of torchvision's ImageFolder.

Two folders: small JPEGs of 32 pixels, all different, read at 32 pixels; and photographs of 12 megapixels (4000 x 3000),
hard links to a few that differ, read at 64 pixels. Ways, each in a process of its own, whose libraries are imported
when the clock starts, and each time with an empty cache:

- diffunet: from the call of `diffunet.train`, with the default config, to where its first step begins: images are read
  and decoded, net, optimizer and averages are made, and the first batch is there;
- torchvision: ImageFolder with Resize, CenterCrop and ToTensor in a DataLoader of two workers, one epoch.

Both read every file once. The means of all pixels are compared, of each channel, in units of [0, 1]. Files are in the
system's cache for both, as they have just been written.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import children, pictures
from benchmarks.measure import Lap, Measure, Options, Row, Wanted, refuse_difference

NAME = "first-step"

SMALL, PHOTOGRAPHS, DISTINCT = 50_000, 1_000, 40
"""The small images, the photographs, and how many of these differ."""

TOLERANCE = 0.01
"""The largest difference of means: the two halve large images by filters of their own."""

WAYS = ("diffunet", "torchvision")


def measures(options: Options) -> list[Measure]:
    """Make both folders, and return a measure for each."""
    small, many, height, width = (200, 10, 300, 400) if options.tiny else (SMALL, PHOTOGRAPHS, 3000, 4000)
    few = min(DISTINCT, many // 2)
    found = []
    for name, count, size, root in (
        (
            f"{small:,} images of 32 pixels", small, 32,
            pictures.folder(options.work / "s", small, 32, 32, distinct=small),
        ),
        (
            f"{many:,} photographs of {height * width / 1e6:.2g} megapixels", many, 64,
            pictures.folder(options.work / "p", many, height, width, distinct=few),
        ),
    ):  # fmt: skip
        told: dict[str, list[float]] = {}
        ways = {way: partial(made, way, root, count, size, options, told) for way in WAYS}
        wanted = (
            {"torchvision": Wanted("ratio", least=2.0)} if size == 64 else {"diffunet": Wanted("median", most=10.0)}
        )
        found.append(Measure(name, "s", ways, wanted, least=1 if options.tiny else 3))
    return found


def made(
    way: str, root: Path, count: int, size: int, options: Options, told: dict[str, list[float]]
) -> tuple[Lap, Row]:
    """Return a lap that asks a process, whose mean is compared with that of diffunet in `told`."""
    facts: Row = {}

    def lap() -> float:
        work = options.folder("first")
        found = children.ask(
            "first_step", way, root, size, work / "run", options.device or "", DIFFUNET_CACHE=str(work / "cache")
        )
        shutil.rmtree(work)
        if found["images"] != count:
            raise RuntimeError(f"{found['images']} images were read, not {count}")
        mine = told.setdefault(way, found["mean"])
        off = max(abs(a - b) for a, b in zip(mine, told.get(WAYS[0], mine), strict=True))
        facts.update(refuse_difference(off, TOLERANCE))
        return float(found["seconds"])

    return lap, facts


def measured(way: str, root: str, size: str, run: str, device: str) -> dict[str, Any]:
    """Return the seconds, the number of images and their mean; this is what the process does."""
    function = diffunet if way == "diffunet" else torchvision
    return function(Path(root), int(size), Path(run), device or None)


def diffunet(root: Path, size: int, run: Path, device: str | None) -> dict[str, Any]:
    """Train until the first step."""
    from diffunet import config, storage
    from diffunet.data.index import read_index
    from diffunet.training import loop, run_folder
    from diffunet.training.learner import Learner

    class FirstStep(Exception):
        """The first step begins."""

    def reached(*arguments: Any) -> Any:
        raise FirstStep

    Learner.step = reached  # type: ignore[method-assign, assignment]
    chosen = config.Config().changed("data", image_size=size)
    chosen = chosen.changed("train", steps=1000)  # by minutes, steps would be tried first, to choose the net
    began = time.perf_counter()
    with contextlib.suppress(FirstStep):
        loop.train(chosen, root, run, device=device)
    seconds = time.perf_counter() - began
    mean = [(value + 1) / 2 for value in storage.run_config(run).diffusion.mean or ()]
    return {"seconds": seconds, "images": len(read_index(run / run_folder.IMAGES)), "mean": mean}


def torchvision(root: Path, size: int, run: Path, device: str | None) -> dict[str, Any]:
    """Read for an epoch."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    began = time.perf_counter()
    ways = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    data = datasets.ImageFolder(str(root), transforms.Compose(ways))
    total, images = torch.zeros(3, dtype=torch.float64), 0
    for batch, _ in DataLoader(data, batch_size=32, shuffle=True, num_workers=2):
        total += batch.mean((2, 3)).sum(0)
        images += len(batch)
    return {"seconds": time.perf_counter() - began, "images": images, "mean": (total / images).tolist()}


if __name__ == "__main__":
    children.answer(measured)
