"""Ways of filling in, on images that a model did not train on: likeness, feature distance, diversity, calls and time.

    .venv/bin/python scripts/benchmark_inpainting.py runs/cifar10 cifar10 --out samples/inpainting-cifar10.json \
        --methods repaint repaint:steps=250,jump_length=10,jump_n_sample=10 mmps:steps=15 --masks mixed

A method is a name and its options. Of this project: auto, trained, repaint, ddnm, mmps, replace, with steps,
jump_length, jump_n_sample (of repaint and ddnm), sampler and ladder (of the others), iterations (of mmps); trained uses
the model of `--trained`, if there is one. `diffusers-repaint` is the RePaint pipeline of diffusers (`pip install
diffusers`) with the same net, its options steps, jump_length, jump_n_sample and eta. `mean` fills each hole with the
mean of the known pixels, to see what the numbers are worth.

Masks are those of RePaint's paper and the others of `masks.KINDS`; "mixed" deals RePaint's in turn. Every method has
the same images and holes. Figures are kept in OUT (.json) row by row, and rows that are there, of the same weights and
holes, are not measured again, so a long run may be stopped; after a change of a method, name another OUT. The tables
are printed, and written beside it as .md; `--table --out OUT` does that alone. Net calls and seconds are of one filling
of one image, in batches of `--batch-size`; a pass backwards through the net, which mmps makes, is counted as one more
call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from inpainting_scores import HeldOut, fill
from torch import Tensor, nn

import diffunet
from diffunet import build, compute, draws, files
from diffunet.diffusion import samplers
from diffunet.diffusion.denoiser import Denoise, Denoiser, bind
from diffunet.diffusion.known_pixels import mmps
from diffunet.diffusion.samplers import Step, sample
from diffunet.errors import UsageError
from diffunet.inpainting import masks, methods
from diffunet.inpainting.masks import Hole
from diffunet.pictures import images
from diffunet.pictures.images import Pixels
from diffunet.sampling.pipeline import Pipeline

REPAINT_KINDS = ("box", "half", "wide", "narrow", "lines", "grid")
"""Of masks, as in RePaint's paper: its "expand" is all but a box, and not among them."""

METHODS = ("mean", "replace", "ddnm", "mmps", "repaint")

Fill = Callable[[Pixels, Hole, int], Pixels]
"""(pictures uint8 [N H W C], holes bool [N H W], which filling) -> the pictures with their holes filled in."""

Row = dict[str, Any]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME[:OPTION=VALUE,...]")
    parser.add_argument("--masks", nargs="+", default=REPAINT_KINDS, choices=(*masks.KINDS, "mixed"))
    parser.add_argument("--trained", help="a model of the same images, trained with --task inpaint")
    parser.add_argument("--num", type=int, default=200, help="images, of those held out")
    parser.add_argument("--fillings", type=int, default=2, help="of each hole; 1 says nothing of their diversity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what OUT holds")
    options = parser.parse_args()

    kept = options.out.with_suffix(".json")
    if not options.table:
        if options.data is None:
            parser.error("MODEL and DATA are needed, but for --table")
        try:
            run(options, kept)
        except diffunet.Error as error:
            parser.exit(2, f"{error}\n")
    text = table(json.loads(kept.read_text()))
    files.write_atomic(kept.with_suffix(".md"), text)
    print(text)


def run(options: argparse.Namespace, kept: Path) -> None:
    """Measure what `kept` does not hold yet, and keep it there.

    Raises:
        UsageError: a method that there is not; figures there of other images or settings.
    """
    dtype = compute.PRECISIONS[options.precision]
    pipe = diffunet.load(options.model, dtype=dtype)
    trained = diffunet.load(options.trained, dtype=dtype) if options.trained else pipe
    if alike(trained) != alike(pipe):
        raise UsageError(f"{options.trained} is not of the same images, or holds out others: {alike(trained)}")
    fills = {text: method(text, pipe, trained, options.seed, options.batch_size) for text in options.methods}
    held_out = HeldOut(pipe.config, options.data, options.num, options.seed, pipe.device)
    settings = {
        "data": held_out.dataset.index_hash, "num": len(held_out.pictures), "fillings": options.fillings,
        "seed": options.seed, "precision": options.precision,
    }  # fmt: skip
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"settings": settings, "rows": []}
    if found["settings"] != settings:
        raise UsageError(f"{kept} holds figures of {found['settings']}, and these are {settings}: name another --out")
    rows: list[Row] = found["rows"]
    for text, (source, filler) in fills.items():
        for kind in options.masks:
            holes = holes_of(kind, held_out)
            drawn = hashlib.sha256(holes.tobytes()).hexdigest()[:12]
            key = {"method": text, "masks": kind, "holes": drawn, "weights": weights(source.denoiser)}
            if any(key.items() <= row.items() for row in rows):
                continue
            row = key | measure(filler, source.denoiser.net, held_out, holes, options.fillings)
            rows.append(row | {"device": compute.describe(source.device), "batch": options.batch_size})
            files.write_atomic(kept, json.dumps(found, indent=1))
            print(
                f"{text}, {kind}: PSNR {row['psnr']:.2f}, SSIM {row['ssim']:.3f}, excess {row['excess']:.4f} "
                f"+- {row['error']:.4f}, {row['calls']:.0f} calls, {row['seconds']:.2f} s an image",
                flush=True,
            )


def alike(pipe: Pipeline) -> dict[str, Any]:
    """What two models that are to be compared have in common."""
    d = pipe.config.data
    return {"image_size": d.image_size, "channels": d.channels, "fit": d.fit, "held_out": d.held_out}


def weights(denoiser: Denoiser) -> str:
    """What tells a model from others: the start of a hash of its weights."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def holes_of(kind: str, held_out: HeldOut) -> Hole:
    """A hole for each image, bool [N H W]: of `kind`, or of RePaint's kinds in turn."""
    n, height, width = held_out.pictures.shape[:3]
    kinds = REPAINT_KINDS if kind == "mixed" else (kind,)
    return np.stack([
        masks.random_mask(kinds[i % len(kinds)], height, width, draws.generator(held_out.seed, 0, i)) for i in range(n)
    ])  # fmt: skip


def measure(filler: Fill, net: nn.Module, held_out: HeldOut, holes: Hole, fillings: int) -> Row:
    """Fill in all images, `fillings` times each, and judge."""
    with counted(net) as calls:
        start, worked = time.perf_counter(), time.process_time()
        filled = np.stack([filler(held_out.pictures, holes, n) for n in range(fillings)])
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    score = held_out.score(filled, holes)
    made = len(held_out.pictures) * fillings
    return asdict(score) | {
        "excess": score.excess, "calls": (calls.forward + calls.backward) / made, "backward": calls.backward / made,
        "seconds": seconds / made, "cpu_seconds": worked / made,
        "learned": held_out.trained.learned, "accuracy": held_out.trained.accuracy,
    }  # fmt: skip


@dataclass
class Calls:
    """Of a net, one for each image of a batch."""

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(net: nn.Module) -> Iterator[Calls]:
    """Counts how many images pass through `net`, forwards and backwards."""
    calls = Calls()

    def backward(gradient: Tensor) -> None:
        calls.backward += len(gradient)

    def forward(_module: nn.Module, _inputs: Any, answer: Tensor) -> None:
        calls.forward += len(answer)
        if answer.requires_grad:
            answer.register_hook(backward)

    handle = net.register_forward_hook(forward)
    try:
        yield calls
    finally:
        handle.remove()


# Methods


def method(text: str, pipe: Pipeline, trained: Pipeline, seed: int, batch_size: int) -> tuple[Pipeline, Fill]:
    """The model that a method "name:option=value,..." is of, and the method; `trained` is what "trained" is of.

    Raises:
        UsageError: a method or an option that there is not.
    """
    name, _, rest = text.partition(":")
    options = {option: value for option, _, value in (each.partition("=") for each in rest.split(",") if each)}

    def numbers(*names: str) -> dict[str, int]:
        return {option: _number(text, option, options.pop(option)) for option in names if option in options}

    source = trained if name == "trained" else pipe
    if name == "mean":
        filler: Fill = mean
    elif name == "diffusers-repaint":
        walked, eta = numbers("steps", "jump_length", "jump_n_sample"), float(options.pop("eta", 0))
        filler = partial(diffusers_repaint, pipe, walked, eta, seed, batch_size)
    else:
        chosen = {option: options.pop(option) for option in ("sampler", "ladder") if option in options}
        section, schedule = build.sampling(source.config.diffusion, **chosen), source.denoiser.schedule
        way = methods.choose(
            section, schedule, methods.Choice(name, **numbers("steps", "jump_length", "jump_n_sample"))
        )
        if name == "mmps" and "iterations" in options:
            way = with_iterations(way, build.step(section), **numbers("iterations"))
        filler = partial(ours, source, way, seed, batch_size)
    if options:
        raise UsageError(f"{text}: {name} has no option {next(iter(options))!r}")
    return source, filler


def with_iterations(way: methods.Method, step: Step, iterations: int) -> methods.Method:
    """mmps with other than the usual number of iterations."""

    def walk(denoise: Denoise, known: Tensor, keep: Tensor, x: Tensor, noise: draws.Noise) -> samplers.Walk:
        return sample(mmps(denoise, known, keep, iterations), x, way.ladder, step, noise)

    return replace(way, walk=walk)


def _number(text: str, option: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"{text}: {option} is a number of at least 1, not {value!r}")
    return int(value)


def ours(
    pipe: Pipeline, way: methods.Method, seed: int, batch_size: int, pictures: Pixels, holes: Hole, filling: int
) -> Pixels:
    """A method of this project."""
    return fill(pipe, pictures, holes, way, seed=seed, filling=filling, batch_size=batch_size)


def mean(pictures: Pixels, holes: Hole, filling: int) -> Pixels:
    """Each hole in the one colour that is the mean of what is known of its image."""
    known = ~holes[..., None]
    colour = np.where(known, pictures, 0).sum((1, 2), dtype=np.float64) / known.sum((1, 2))
    return np.where(known, pictures, colour.round().astype(np.uint8)[:, None, None])


class AsUnet(nn.Module):
    """A denoiser as a `unet` of diffusers that predicts the noise of its DDPM schedule.

    Their x_t is sqrt(alpha_bar) x with sigma = sqrt((1 - alpha_bar) / alpha_bar): epsilon = (x - D(x, sigma)) / sigma.

    Args:
        denoise: with what it is told bound.
        alpha_bar: of their scheduler, [T].
        device: of the net.
    """

    dtype = torch.float32

    def __init__(self, denoise: Denoise, alpha_bar: Tensor, device: torch.device) -> None:
        super().__init__()
        self.denoise, self.alpha_bar, self.device = denoise, alpha_bar.double(), device

    def forward(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
        """x_t [B C H W], t [] -> an object whose `sample` is epsilon [B C H W]."""
        alpha_bar = self.alpha_bar[int(t)]
        x, sigma = x_t / alpha_bar.sqrt(), ((1 - alpha_bar) / alpha_bar).sqrt()
        return SimpleNamespace(sample=(x - self.denoise(x, sigma).x0) / sigma)


def diffusers_repaint(
    pipe: Pipeline, numbers: dict[str, int], eta: float, seed: int, batch_size: int, pictures: Pixels, holes: Hole,
    filling: int,
) -> Pixels:  # fmt: skip
    """RePaint as diffusers has it: its pipeline and scheduler, on the linear schedule, with this model's net.

    Raises:
        UsageError: diffusers is not installed.
    """
    try:
        from diffusers import RePaintPipeline, RePaintScheduler
    except ImportError:
        raise UsageError("diffusers-repaint needs diffusers: pip install diffusers") from None
    scheduler: Any = RePaintScheduler()
    theirs: Any = RePaintPipeline(AsUnet(bind(pipe.denoiser), scheduler.alphas_cumprod, pipe.device), scheduler)
    theirs.set_progress_bar_config(disable=True)
    names = {"steps": "num_inference_steps", "jump_length": "jump_length", "jump_n_sample": "jump_n_sample"}
    filled = []
    for first in range(0, len(pictures), batch_size):
        some = slice(first, first + batch_size)
        keep = torch.from_numpy(~holes[some, None])
        generator = torch.Generator().manual_seed(draws.seed_of("diffusers", seed, filling, first))
        with pipe.working("in diffusers' pipeline: a smaller --batch-size takes less"):
            answer = theirs(
                image=images.to_float(pictures[some]).where(keep, 0), mask_image=keep.float(), eta=eta,
                generator=generator, output_type="np", **{names[name]: value for name, value in numbers.items()},
            )  # fmt: skip
        filled.append((answer.images * 255).round().astype(np.uint8))
    return np.where(holes[..., None], np.concatenate(filled), pictures)


# Tables


def table(found: dict[str, Any]) -> str:
    """Markdown: a table for each kind of mask, and one of the excess of all."""
    rows: list[Row] = found["rows"]
    s = found["settings"]
    if not rows:
        return "nothing measured yet\n"
    kinds = list(dict.fromkeys(row["masks"] for row in rows))
    lines = [
        f"{s['num']} held-out images, {s['fillings']} fillings of each hole, seed {s['seed']}, {s['precision']}, "
        f"{rows[0]['device']}, batches of {rows[0]['batch']}. Features: a small classifier of {rows[0]['learned']} "
        f"({rows[0]['accuracy']:.1%} right); floor (the originals) {rows[0]['floor']:.4f}. Excess: feature distance of "
        "completed images above the floor, with its standard error over images. Paired: feature distance to their own "
        "originals, above that of one filling to another. Diversity: RMS difference of two fillings in the hole, of "
        "255; of features: as a share of that of two different images. Seconds: for one filling of one image.",
    ]
    for kind in kinds:
        lines += [
            "", f"### {kind}", "",
            "| method | net calls | PSNR | SSIM | excess | paired | diversity | of features | seconds |",
            "|---" * 9 + "|",
        ]  # fmt: skip
        lines += [
            f"| {row['method']} | {row['calls']:.0f} | {row['psnr']:.2f} | {row['ssim']:.3f} "
            f"| {row['excess']:.3f} ± {row['error']:.3f} | {_figure(row['paired'], '.3f')} "
            f"± {_figure(row['paired_error'], '.3f')} | {_figure(row['diversity'], '.1f')} "
            f"| {_figure(row['feature_diversity'], '.2f')} | {row['seconds']:.3f} |"
            for row in rows
            if row["masks"] == kind
        ]
    for figure in ("excess", "paired") if len(kinds) > 1 else ():
        lines += ["", f"### {figure}", "", f"| method | {' | '.join(kinds)} | mean |", "|---" * (len(kinds) + 2) + "|"]
        for name, source in dict.fromkeys((row["method"], row["weights"]) for row in rows):
            each = {row["masks"]: row[figure] for row in rows if (row["method"], row["weights"]) == (name, source)}
            average = (
                sum(each.values()) / len(kinds) if each.keys() == set(kinds) and None not in each.values() else None
            )
            cells = [_figure(value, ".3f") for value in (*map(each.get, kinds), average)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
