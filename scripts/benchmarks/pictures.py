"""Folders of synthetic images, made for a benchmark."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene(height: int, width: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image uint8 [H W 3] of soft colours with fine noise, which JPEG compresses about as a photograph."""
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = generator.integers(-12, 13, (height, width, 1), dtype=np.int16)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def folder(root: Path, count: int, height: int, width: int, *, distinct: int, suffix: str = ".jpg") -> Path:
    """Make `root`/all with so many images of the size, the first `distinct` of which differ; return `root`.

    The others are hard links to these, under names of their own: the pixels of each name are read and decoded anew by
    all that read a folder here.
    """
    images, generator = root / "all", np.random.default_rng(0)
    images.mkdir(parents=True)
    for n in range(count):
        path = images / f"{n:06}{suffix}"
        if n < distinct:
            Image.fromarray(scene(height, width, generator)).save(path, quality=90)
        else:
            os.link(images / f"{n % distinct:06}{suffix}", path)
    return root
