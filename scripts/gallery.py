"""Pictures of a model's work on images that it has not seen: held-out images, with drawn masks, filled in.

    .venv/bin/python scripts/gallery.py runs/emoji emoji --out samples/emoji-inpainted.png

A column for each image: the original, what is left of it, and the fillings.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import diffunet
from diffunet import build, draws
from diffunet.data import augment, images, masks
from diffunet.data.cache import split


def main() -> None:
    """Parse, fill in, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--fillings", type=int, default=3)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pipe = diffunet.load(options.model, dtype=torch.bfloat16)
    d = pipe.config.data
    dataset = build.dataset(pipe.config, options.data)
    _, held_out = split(dataset.files, d.held_out, 1000)
    chosen = held_out[draws.order(options.seed, range(options.columns), len(held_out))]
    pictures = augment.gather(
        dataset.images, chosen, [None] * len(chosen), image_size=d.image_size, fit=d.fit, flip=False,
        background=d.background,
    )  # fmt: skip
    columns = []
    for i, picture in enumerate(pictures):
        kind = masks.KINDS[i % len(masks.KINDS)]
        hole = masks.random_mask(kind, d.image_size, d.image_size, draws.generator(options.seed, 0, i))
        filled = pipe.inpaint(
            images.from_array(picture), hole, num=options.fillings, seed=options.seed, method=options.method
        )
        left = np.where(hole[..., None], np.uint8(128), picture)
        columns.append([picture, left, *(images.to_array(image, d.channels) for image in filled)])
        print(f"{i + 1} of {len(pictures)}: {kind}, {hole.mean():.0%} of {dataset.files[chosen[i]].path}", flush=True)
    rows = [column[row] for row in range(2 + options.fillings) for column in columns]
    images.save(images.grid(rows, columns=len(columns)), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
