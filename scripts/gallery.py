"""Pictures of a model's work on images that it has not seen: held-out images, with drawn masks, filled in.

    .venv/bin/python scripts/gallery.py runs/emoji emoji --out samples/emoji-inpainted.png --method repaint mmps

A column for each image: the original, what is left of it, and the fillings, of one method after the other. The kinds of
masks are dealt in turn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL.Image import Image

import diffunet
from diffunet import build, compute, draws
from diffunet.data import augment
from diffunet.inpainting import masks
from diffunet.names import JUMPING
from diffunet.pictures import images


def main() -> None:
    """Parse, fill in, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--fillings", type=int, default=3)
    parser.add_argument("--method", nargs="+", default=["auto"], help="as `diffunet inpaint`, one or several")
    parser.add_argument("--masks", nargs="+", default=list(masks.KINDS), choices=list(masks.KINDS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--jump-length", type=int, help="of repaint and ddnm")
    parser.add_argument("--jump-n-sample", type=int, help="of repaint and ddnm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    options = parser.parse_args()

    pipe = diffunet.load(options.model, dtype=compute.PRECISIONS[options.precision])
    d = pipe.config.data
    dataset = build.dataset(pipe.config.data, options.data)
    held_out = build.split(d, dataset.files).held_out
    chosen = held_out[draws.order(options.seed, range(options.columns), len(held_out))]
    pictures = augment.gather(dataset.images, chosen, image_size=d.image_size, fit=d.fit, background=d.background)
    columns = []
    for i, picture in enumerate(pictures):
        kind = options.masks[i % len(options.masks)]
        hole = masks.random_mask(kind, d.image_size, d.image_size, draws.generator(options.seed, 0, i))
        filled: list[Image] = []
        for method in options.method:
            jumps = {"jump_length": options.jump_length, "jump_n_sample": options.jump_n_sample}
            filled += pipe.inpaint(
                images.from_array(picture), hole, num=options.fillings, seed=options.seed, method=method,
                fit="native", steps=options.steps, **(jumps if method in ("auto", *JUMPING) else {}),
            )  # fmt: skip
        left = np.where(hole[..., None], np.uint8(128), picture)
        columns.append([picture, left, *(images.to_array(image, d.channels) for image in filled)])
        print(f"{i + 1} of {len(pictures)}: {kind}, {hole.mean():.0%} of {dataset.files[chosen[i]].path}", flush=True)
    rows = [column[row] for row in range(len(columns[0])) for column in columns]
    images.save(images.grid(rows, columns=len(columns)), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
