"""The U-Net of 2015 at the job that it was made for: cells in microscope images, those that touch kept apart.

    .venv/bin/python scripts/segment.py --out samples/segment.png

draws images of cells that touch, of many shapes and brightnesses, unevenly lit, blurred and noisy, trains on some of
them for `--minutes` on a CPU, and prints how the others come out, beside thresholds: the mean intersection over union
(IoU) of the cells' pixels, and the share of cells that are found apart from their neighbours (a connected part of the
answer has an IoU above a half with it). `--images DIR --masks DIR` takes grey images of yours instead, and masks of the
same names, white for what is wanted, or with labels; they are read as those of `diffunet inpaint` are.

Thresholds are chosen on the images that the net learns from: one for all, Otsu's of each image, and one of what is left
when a blurred copy is taken off, against uneven light. The picture has a row for each of some held-out images: image,
truth, the best threshold, net; what was missed is red, what is too much is blue.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from diffunet.errors import DataError, Error, UsageError
from diffunet.inpainting.masks import hole_of
from diffunet.inpainting.pairs import pairs
from diffunet.inpainting.reading import read_mask
from diffunet.nn.overlap_tile import mirrored, overlap_tile
from diffunet.nn.unet2015 import UNet2015, input_size, margin, output_size
from diffunet.pictures import images
from diffunet.pictures.images import Pixels

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

NEIGHBOURS = np.ones((3, 3), bool)


class Example(NamedTuple):
    """Grey `pixels` uint8 [H W], and which of them are wanted, bool [H W]."""

    pixels: Pixels
    mask: Mask


def main() -> None:
    """Parse, train, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--num", type=int, default=40, help="of images that are drawn")
    parser.add_argument("--size", type=int, default=192, help="of images that are drawn")
    parser.add_argument("--held-out", type=float, default=0.25)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--steps", type=int, help="stop after so many, if that is sooner")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--base-channels", type=int, default=16)
    parser.add_argument("--tile", type=int, default=100, help="pixels of a tile's answer, or a few more")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--border-weight", type=float, default=10, help="w0 of the paper's equation 2")
    parser.add_argument("--rows", type=int, default=4, help="of the picture")
    options = parser.parse_args()
    images.is_lossless(options.out)  # refuses a name that is no picture's, before the work
    for name in ("minutes", "tile", "batch_size", "rows", "layers", "base_channels"):
        if getattr(options, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} is to be above 0")
    if options.masks is not None and options.images is None:
        raise UsageError("--masks goes with --images")

    generator = np.random.default_rng(options.seed)
    if options.images is not None:
        examples = read(options.images, options.masks)
    else:
        examples = [draw_cells(generator, options.size) for _ in range(options.num)]
    order = generator.permutation(len(examples))
    num_held_out = round(len(examples) * options.held_out)
    if not 0 < num_held_out < len(examples):
        raise UsageError(f"--held-out: {num_held_out} of {len(examples)} images; some are to learn from, and some not")
    held_out, learned = [[examples[i] for i in part] for part in (order[:num_held_out], order[num_held_out:])]
    for part, words in ((learned, "to learn from"), (held_out, "held out")):
        for wanted in (True, False):
            if not any((x.mask == wanted).any() for x in part):
                what = "has anything that is wanted" if wanted else "has a pixel that is not wanted"
                raise DataError(f"no mask of the {len(part)} images {words} {what}: there are not two classes")

    torch.manual_seed(options.seed)
    net = UNet2015(1, 2, options.layers, options.base_channels, dropout=0.1).to(memory_format=torch.channels_last)
    tile = input_size(options.tile, options.layers)
    print(
        f"{len(learned)} images to learn from, {len(held_out)} held out; {sum(p.numel() for p in net.parameters()):,}"
        f" parameters, tiles of {tile} pixels with answers of {output_size(tile, options.layers)}",
        flush=True,
    )
    steps = train(net, learned, tile, options, generator)

    answers = {name: [segment(x.pixels) for x in held_out] for name, segment in thresholds(learned).items()}
    best = max(answers, key=lambda name: mean(iou, answers[name], held_out))
    answers[f"UNet2015, {steps} steps"] = by_net = [segmented(net, x.pixels, tile) for x in held_out]
    print("\n| on held-out images | IoU | cells found apart |\n|---|---|---|")
    for name, masks in answers.items():
        print(f"| {name} | {mean(iou, masks, held_out):.3f} | {mean(found, masks, held_out):.3f} |")
    draw(options.out, held_out[: options.rows], answers[best], by_net)
    print(f"\n{options.out}: image, truth, {best}, net")


def read(folder: Path, masks: Path | None) -> list[Example]:
    """The images of a folder as grey, each with its mask, see `reading.read_mask`; others are named and left out.

    Raises:
        UsageError: no folder of masks.
        DataError: images without masks, or none that can be used.
    """
    if masks is None or not masks.is_dir():
        raise UsageError("--images DIR needs --masks DIR, a folder with a mask for each image, by its name")
    examples, understood = [], Counter[str]()
    for image, mask, name in pairs([folder], masks):
        assert mask is not None
        try:
            picture = images.open_image(image)
            read = read_mask(mask, picture=picture)
            pixels, wanted = images.to_array(picture, 1)[..., 0], hole_of(read.mask)
        except DataError as error:
            print(f"left out: {name}: {error}")
            continue
        if pixels.shape != wanted.shape:
            print(f"left out: {name}: the image is {pixels.shape[::-1]}, its mask {wanted.shape[::-1]} pixels")
            continue
        examples.append(Example(pixels, wanted))
        understood[read.understood.partition(": ")[2]] += 1
    for words, times in understood.items():
        if words:
            print(f"{times} of the masks: {words}")
    if not examples:
        raise DataError(f"no image of {folder} can be used with its mask")
    return examples


def draw_cells(generator: np.random.Generator, size: int) -> Example:
    """An image of cells, many of which touch; in the mask a line of one pixel or more is left between them."""
    y, x = np.mgrid[:size, :size]
    cells = np.zeros((size, size), bool)
    light = np.zeros((size, size), np.float32)
    placed: list[tuple[float, float, float]] = []
    texture = smooth(generator, size, 3)
    for _ in range(round(size**2 / 900)):
        radius = generator.uniform(7, 15)
        top, left = generator.uniform(0, size, 2)
        if placed and generator.random() < 0.7:  # touches one that is there
            other_top, other_left, other = placed[generator.integers(len(placed))]
            angle = generator.uniform(0, 2 * np.pi)
            top, left = (
                at + 0.9 * (other + radius) * f(angle) for at, f in ((other_top, np.sin), (other_left, np.cos))
            )
        around = np.arctan2(y - top, x - left)
        outline = np.full_like(around, radius)
        for k in (2, 3, 4):  # waves around it; the first makes it long
            outline += radius * generator.normal(0, 0.4 / k) * np.cos(k * around + generator.uniform(0, 2 * np.pi))
        inside = (np.hypot(y - top, x - left) < outline) & ~ndimage.binary_dilation(cells, NEIGHBOURS)
        if inside.sum() < 0.6 * np.pi * radius**2:  # mostly behind others, or out of the image
            continue
        cells |= inside
        light += inside * generator.uniform(0.25, 0.8) * (1 + 0.25 * texture)
        placed.append((top, left, radius))
    lamp = 0.65 + 0.2 * smooth(generator, size, size / 5).clip(-2, 2)
    scene = ndimage.gaussian_filter(lamp * (0.3 + light), 1.2) + generator.normal(0, 0.06, (size, size))
    return Example((255 * scene.clip(0, 1)).round().astype(np.uint8), cells)


def smooth(generator: np.random.Generator, size: int, sigma: float) -> Floats:
    """Noise blurred by `sigma` pixels, of mean 0 and deviation 1, [size size]."""
    noise = ndimage.gaussian_filter(generator.normal(size=(size, size)), sigma, mode="wrap")
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def border_weights(mask: Mask, w0: float, sigma: float = 5.0) -> Floats:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) [H W] of the background, d1 and d2 the distances to the nearest two cells.

    Ronneberger et al. 2015, equation 2, without w_c. Cells are the connected parts of the mask; beyond 4 sigma of one
    its distance is not looked at.
    """
    near = np.full((2, *mask.shape), np.inf)
    labels, _ = ndimage.label(mask, NEIGHBOURS)
    reach = int(4 * sigma)
    for n, box in enumerate(ndimage.find_objects(labels), 1):
        part = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in box)
        distance = ndimage.distance_transform_edt(labels[part] != n)
        near[:, *part] = np.sort(np.stack([*near[:, *part], distance]), axis=0)[:2]
    return np.where(mask, 0, w0 * np.exp(-(near.sum(0) ** 2) / (2 * sigma**2))).astype(np.float32)


def train(
    net: UNet2015,
    examples: Sequence[Example],
    tile: int,
    options: argparse.Namespace,
    generator: np.random.Generator,
) -> int:
    """Learn for `options.minutes` from tiles, deformed and weighted as the paper says; the number of steps.

    By Adam, where the paper has momentum: it has hours, and a GPU.
    """
    share = np.mean([x.mask.mean() for x in examples])
    balance = np.array([0.5 / (1 - share), 0.5 / share])  # w_c, to balance the classes
    stacks = []  # image, class and weight of each example, [1 3 H W]
    for x in examples:
        weight = balance[x.mask.astype(int)] + border_weights(x.mask, options.border_weight)
        stack = np.stack([x.pixels / 127.5 - 1, x.mask, weight])
        stacks.append(mirrored(torch.from_numpy(stack).float()[None], net.layers))
    m = margin(net.layers)
    optimizer = torch.optim.Adam(net.parameters(), options.learning_rate)
    net.train()
    began = said = time.monotonic()
    step, losses = 0, []
    while (spent := (time.monotonic() - began) / (60 * options.minutes)) < 1 and step != options.steps:
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1, (step + 1) / 50, 4 * (1 - spent))
        chosen = generator.integers(len(stacks), size=options.batch_size)
        tiles = torch.cat([deformed(stacks[i], tile, generator) for i in chosen])
        image, truth = tiles[:, :1], tiles[:, 1:, m:-m, m:-m]
        loss = F.cross_entropy(net(image), truth[:, 0].round().long(), reduction="none").mul(truth[:, 1]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        step += 1
        if time.monotonic() - said > 20:
            said = time.monotonic()
            print(f"step {step}, {said - began:.0f} s: loss {np.mean(losses):.3f}", flush=True)
            losses.clear()
    return step


def deformed(stack: Tensor, size: int, generator: np.random.Generator, sigma: float = 10.0) -> Tensor:
    """A random piece [1 C size size] of a `mirrored` image, flipped, turned, and bent (section 3.1 of the paper).

    Displacements on a grid of 3x3 are Gaussian, of a deviation of `sigma` pixels, and bicubic in between.
    """
    drawn = torch.from_numpy(generator.normal(0, sigma, (1, 2, 3, 3))).float()
    shift = F.interpolate(drawn, size=(size, size), mode="bicubic", align_corners=True)
    ends = [n - size for n in stack.shape[-2:]]
    top, left = (int(generator.integers(max(1, end + 1))) for end in ends)
    at = torch.arange(size).float()
    y, x = at[:, None] + top + shift[0, 0], at + left + shift[0, 1]
    height, width = stack.shape[-2:]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    piece = F.grid_sample(stack, grid[None], padding_mode="reflection", align_corners=True)
    turned = piece.rot90(int(generator.integers(4)), (2, 3))
    return turned.flip(3) if generator.random() < 0.5 else turned


@torch.no_grad()
def segmented(net: UNet2015, pixels: Pixels, tile: int) -> Mask:
    """The net's answer [H W] of a whole image, by overlapping tiles."""
    x = images.to_float(pixels[None, ..., None])
    return overlap_tile(net.eval(), x, tile)[0].argmax(0).numpy() == 1


def thresholds(examples: Sequence[Example]) -> dict[str, Callable[[Pixels], Mask]]:
    """Ways to segment by a threshold, each the best on `examples` of a few."""

    def flattened(pixels: Pixels, sigma: float) -> Floats:
        smoothed = ndimage.gaussian_filter(pixels.astype(np.float32), 1)
        return smoothed - ndimage.gaussian_filter(smoothed, sigma)

    def score(segment: Callable[[Pixels], Mask]) -> float:
        return mean(iou, [segment(x.pixels) for x in examples], examples)

    def best(ways: Sequence[Callable[[Pixels], Mask]]) -> Callable[[Pixels], Mask]:
        return max(ways, key=score)

    def above(limit: float, sign: int) -> Callable[[Pixels], Mask]:
        return lambda pixels: sign * pixels.astype(np.float32) > sign * limit

    def above_around(limit: float, sign: int, sigma: float) -> Callable[[Pixels], Mask]:
        return lambda pixels: sign * flattened(pixels, sigma) > limit

    def above_otsu(sign: int) -> Callable[[Pixels], Mask]:
        return lambda pixels: sign * pixels.astype(np.float32) > sign * otsu(pixels)

    return {
        "one threshold for all": best([above(t, s) for t in range(0, 256, 4) for s in (1, -1)]),
        "Otsu's threshold": best([above_otsu(s) for s in (1, -1)]),
        "a threshold above the blurred image": best(
            [above_around(t, s, sigma) for t in range(-6, 26, 4) for s in (1, -1) for sigma in (10, 20, 40)]
        ),
    }


def otsu(pixels: Pixels) -> float:
    """The threshold with the largest variance between the classes (Otsu 1979); the brighter is above it."""
    counts = np.bincount(pixels.ravel(), minlength=256) / pixels.size
    below, moment = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    spread = below * (1 - below)
    between = np.divide((moment[-1] * below - moment) ** 2, spread, where=spread > 1e-12, out=np.zeros(256))
    return float(between.argmax())


def iou(answer: Mask, truth: Mask) -> float:
    """Intersection over union; 1 where both are empty."""
    union = np.count_nonzero(answer | truth)
    return np.count_nonzero(answer & truth) / union if union else 1.0


def found(answer: Mask, truth: Mask) -> float:
    """The share of the truth's cells that a connected part of the answer has an IoU above a half with; 1 of none."""
    (cells, num), (parts, _) = (ndimage.label(mask, NEIGHBOURS) for mask in (truth, answer))
    sizes, right = np.bincount(parts.ravel()), 0
    for cell in range(1, num + 1):
        shared = np.bincount(parts[cells == cell], minlength=2)
        part = shared[1:].argmax() + 1
        union = np.count_nonzero(cells == cell) + (sizes[part] if part < len(sizes) else 0) - shared[part]
        right += shared[part] > union / 2
    return right / num if num else 1.0


def mean(score: Callable[[Mask, Mask], float], answers: Sequence[Mask], examples: Sequence[Example]) -> float:
    """Over images."""
    return float(np.mean([score(answer, x.mask) for answer, x in zip(answers, examples, strict=True)]))


def draw(out: Path, examples: Sequence[Example], *answers: Sequence[Mask]) -> None:
    """A picture with a row for each example: image, truth, answers; as large as the smallest of them."""
    height, width = (min(n) for n in zip(*(x.pixels.shape for x in examples), strict=True))
    cells = []
    for i, x in enumerate(examples):
        given = [coloured(each[i], x.mask) for each in answers]
        cells += [np.stack([x.pixels] * 3, axis=-1), coloured(x.mask, x.mask), *given]
    images.save(images.grid([cell[:height, :width] for cell in cells], columns=2 + len(answers)), out)


def coloured(answer: Mask, truth: Mask) -> Pixels:
    """RGB [H W 3]: right is black and white, what was missed red, what is too much blue."""
    colours = np.array([[0, 0, 0], [220, 60, 40], [60, 120, 255], [255, 255, 255]], np.uint8)
    return colours[2 * answer.astype(int) + truth]


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"segment: {error}")
