"""What each command does: call one function, print. They import torch inside, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from diffunet import arguments
from diffunet.config import Config, DataConfig, DiffusionConfig, ModelConfig, SamplerName, TrainConfig
from diffunet.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffunet.pipeline import Pipeline, Progress

Model = Annotated[Positional[str], arg(metavar="MODEL")]
Precision = Literal["fp32", "bf16"]


@dataclass
class Train:
    """Train a model on a folder of images.

    Example: diffunet train photos --out runs/photos --image-size 64

    With no other options, the net, the batch and the rest are chosen by the images and the device, and written to
    RUN/config.toml. Stop with Ctrl-C; go on with --resume. Many GPUs: accelerate launch -m diffunet train ...
    """

    folder: Annotated[Positional[Path], arg(metavar="DATA")]
    """Folder of images, searched recursively."""
    out: Path
    """Run folder, made here."""
    preset: str = "default"
    """Config that comes with diffunet, to start from."""
    config: Path | None = None
    """Config file to start from, such as a RUN/config.toml."""
    init: str | None = None
    """Start from the weights of this model, with its architecture."""
    resume: bool = False
    """Go on from the newest checkpoint of the run."""
    classes: bool = False
    """Subfolders are classes."""
    image_size: int | None = None
    """Short for --data.image-size."""
    steps: int | None = None
    """Short for --train.steps; raising it extends a run."""
    batch_size: int | None = None
    """Short for --train.batch-size: images of one step, over all processes."""
    seed: int | None = None
    """Short for --train.seed."""
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def train(args: Sequence[str]) -> None:
    """Train a model on a folder of images."""
    default = arguments.base_config(args)
    missing: Any = tyro.MISSING
    chosen = arguments.parse(
        Train, args, "train",
        Train(missing, missing, **{name: getattr(default, name) for name in Config.model_fields}),
    )  # fmt: skip
    config = Config(model=chosen.model, diffusion=chosen.diffusion, data=chosen.data, train=chosen.train)
    for section, name, value in (
        ("data", "image_size", chosen.image_size),
        ("data", "classes", chosen.classes or None),
        ("train", "steps", chosen.steps),
        ("train", "batch_size", chosen.batch_size),
        ("train", "seed", chosen.seed),
    ):
        if value is not None:
            config = config.changed(section, **{name: value})

    from diffunet.progress import progress
    from diffunet.training.loop import TrainProgress
    from diffunet.training.loop import train as run

    with progress("training", quiet=not main_process()) as show:

        def on_step(p: TrainProgress) -> None:
            show(p.step, p.steps, f"loss {p.loss:.4f}" if p.loss == p.loss else "")

        model = run(config, chosen.folder, chosen.out, resume=chosen.resume, init=chosen.init, on_step=on_step)
    if main_process():
        print(f"done: {model}. Try: diffunet sample {chosen.out} --out samples.png --grid")


def sample(
    model: Model,
    /,
    out: Path,
    num: int = 16,
    seed: int = 0,
    label: str | None = None,
    guidance: float = 1.0,
    sampler: SamplerName | None = None,
    steps: int | None = None,
    grid: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
    precision: Precision = "fp32",
    overwrite: bool = False,
) -> None:
    """Generate images with a model.

    Example: diffunet sample runs/photos --out samples.png --grid

    Args:
        model: A run folder or a model folder.
        out: A file for one picture or a grid, else a folder.
        num: How many.
        seed: The same seed gives the same images.
        label: Class, by name or number; without, the classes in turn.
        guidance: How strongly the label counts; 1 is off, 1.5 to 4 usual. Needs a model with classes.
        sampler: The model's default if not given.
        steps: Of the sampler; the model's default if not given.
        grid: One picture of them all.
        batch_size: Images at a time.
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
        precision: bf16 is faster where it is native.
        overwrite: Replace what exists.
    """
    from diffunet.data.images import is_lossless

    is_file = bool(out.suffix)
    if grid and not is_file:
        raise UsageError(f"--out {out} is a folder; a grid is one picture: --out {out}.png")
    if is_file and num > 1 and not grid:
        raise UsageError(f"--out {out} is one file for {num} images: add --grid or --num 1, or give a folder")
    if is_file:
        is_lossless(out)  # refuses what is no picture's name
    _free(out, overwrite)
    pipe = _load(model, device, precision)
    names = pipe.class_names
    chosen = steps or pipe.config.diffusion.sample_steps
    size, walker = pipe.image_size, sampler or pipe.config.diffusion.sampler
    _say(f"{num} images of {size}x{size}, {chosen} steps of {walker}")
    with _watching("sampling") as on_step:
        pictures = pipe.sample(
            num, seed=seed, labels=label, guidance=guidance, sampler=sampler, steps=steps, batch_size=batch_size,
            on_step=on_step,
        )  # fmt: skip
    if is_file:
        _save(_grid(pictures) if grid else pictures[0], out)
        return
    for i, picture in enumerate(pictures):
        name = "" if not names else "-" + (label or names[i % len(names)])
        _save(picture, out / f"{seed}-{i:05d}{name}.png", quiet=True)
    print(f"{len(pictures)} images in {out}")


def inpaint(
    model: Model,
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE")],
    /,
    out: Path,
    mask: Path | None = None,
    method: Literal["auto", "repaint", "replace"] = "auto",
    fit: Literal["auto", "crop", "native"] = "auto",
    steps: int | None = None,
    num: int = 1,
    seed: int = 0,
    label: str | None = None,
    guidance: float = 1.0,
    invert_mask: bool = False,
    soft_mask: bool = False,
    lossy_ok: bool = False,
    device: str | None = None,
    precision: Precision = "fp32",
    overwrite: bool = False,
) -> None:
    """Fill in the masked part of images; every pixel outside the mask comes back as it was.

    Example: diffunet inpaint runs/photos holiday.png --mask holiday-mask.png --out mended.png

    Args:
        model: A run folder or a model folder.
        images: Images of any size; with several, --out is a folder.
        out: A file for one picture, else a folder.
        mask: White = fill, of the image's size. Without it, what is transparent is filled.
        method: repaint goes up and down (best, 168 calls of the net), replace goes down once (fast).
        fit: crop works on a region round the hole, native on the whole image; auto chooses and says which.
        steps: Of the ladder.
        num: Different fillings of each image.
        seed: The same seed gives the same fillings.
        label: What it should be, for a model with classes.
        guidance: How strongly the label counts; 1 is off.
        invert_mask: Black = fill.
        soft_mask: The mask's grey blends old and new.
        lossy_ok: Allow an output such as .jpg, which changes known pixels.
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
        precision: bf16 is faster where it is native.
        overwrite: Replace what exists.
    """
    from diffunet.data.images import is_lossless

    is_file = bool(out.suffix)
    if not images:
        raise UsageError("give at least one IMAGE")
    if is_file and len(images) * num > 1:
        raise UsageError(f"--out {out} is one file for {len(images) * num} pictures: give a folder")
    if is_file and not is_lossless(out) and not lossy_ok:
        raise UsageError(f"--out {out} is lossy: known pixels would change. Take .png, or say --lossy-ok")
    targets = [
        [out if is_file else out / (f"{path.stem}.png" if num == 1 else f"{path.stem}-{i}.png") for i in range(num)]
        for path in images
    ]
    every = [path for some in targets for path in some]
    if len(set(every)) < len(every):
        raise UsageError(f"several images would be written to {max(every, key=every.count)}: rename one")
    for target in every:
        _free(target, overwrite)
    pipe = _load(model, device, precision)
    for path, some in zip(images, targets, strict=True):
        with _watching(f"filling {path.name}") as on_step:
            filled = pipe.inpaint(
                path, mask, num=num, seed=seed, method=method, fit=fit, steps=steps, label=label, guidance=guidance,
                invert_mask=invert_mask, soft_mask=soft_mask, on_step=on_step,
            )  # fmt: skip
        for picture, target in zip(filled, some, strict=True):
            _save(picture, target)


def evaluate(
    model: Model,
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    /,
    num: int = 10_000,
    seed: int = 0,
    guidance: float = 1.0,
    sampler: SamplerName | None = None,
    steps: int | None = None,
    device: str | None = None,
    precision: Precision = "fp32",
) -> None:
    """Compare generated images with real ones: a feature distance, beside that of real images to real ones.

    Example: diffunet evaluate runs/photos photos --num 1000

    Args:
        model: A run folder or a model folder.
        data: Folder of real images; class subfolders make better features.
        num: Images to compare, at most a third of the real ones.
        seed: Of the samples and the features.
        guidance: Of the samples.
        sampler: Of the samples.
        steps: Of the sampler.
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
        precision: bf16 is faster where it is native.
    """
    from diffunet.evaluation.report import evaluate as run
    from diffunet.progress import progress

    pipe = _load(model, device, precision)
    with progress("evaluating") as show:
        report = run(
            pipe, data, num=num, seed=seed, guidance=guidance, sampler=sampler, steps=steps,
            on_step=lambda what, done, total: show(done, total, what),
        )  # fmt: skip
    print("\n".join(report.lines()))


def check(data: Annotated[Positional[Path], arg(metavar="DATA")], /, image_size: int = 64) -> None:
    """Say what is in a folder of images, and what cannot be used, and why.

    Example: diffunet check photos

    Args:
        data: Folder, searched recursively.
        image_size: What you mean to train at.
    """
    from diffunet.data.folder import describe, survey
    from diffunet.progress import progress

    with progress("reading") as show:
        found = survey(data, progress=lambda done, total: show(done, total, ""))
    print(describe(found, image_size))


def prepare(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    limit: int | None = None,
    download_root: Path | None = None,
) -> None:
    """Write a known data set as a folder of images, a subfolder for each class.

    Example: diffunet prepare digits data/digits

    Args:
        name: digits (built in), mnist, fashion-mnist, cifar10, cifar100, svhn, flowers102, stl10 (downloaded).
        out: Folder to make.
        limit: Write only so many images.
        download_root: Where downloads are kept.
    """
    from diffunet.data.builtin import prepare as run
    from diffunet.progress import progress

    with progress("writing") as show:
        count = run(
            name, out, download_root=download_root, limit=limit, progress=lambda done, total: show(done, total, "")
        )
    print(f"{count} images in {out}. Try: diffunet train {out} --out runs/{name} --classes")


def info(
    model: Annotated[Positional[str], arg(metavar="MODEL_OR_PRESET")],
    /,
    image_size: int | None = None,
    device: str | None = None,
) -> None:
    """Show a net: shapes as an image flows through it, parameters, MACs, memory and time to expect.

    Example: diffunet info default --image-size 64

    Args:
        model: A run folder, a model folder, or the name of a preset.
        image_size: The model's own if not given.
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
    """
    from diffunet.info import describe

    for line in describe(model, image_size, device):
        print(line, flush=True)


def demo(out: Path = Path("demo"), seconds: float = 150.0, overwrite: bool = False) -> None:
    """Do all of it on built-in data, in minutes, on a CPU: train on handwritten digits, sample, inpaint, judge.

    Example: diffunet demo --out demo

    Args:
        out: Folder for the data, the run and the pictures.
        seconds: Of training.
        overwrite: Replace what exists.
    """
    from diffunet.demo import run

    _free(out, overwrite)
    run(out, seconds)


def main_process() -> bool:
    """Whether this process is the one of several that prints."""
    return int(os.environ.get("RANK", 0)) == 0


# What the commands share.


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _load(model: str, device: str | None, precision: Precision) -> Pipeline:
    import torch

    from diffunet import devices
    from diffunet.pipeline import load

    loud = devices.warning()
    if loud and device is None:
        _say(loud)
    return load(model, device, torch.bfloat16 if precision == "bf16" else None)


class _watching:
    """A progress bar as an `on_step` of the pipeline."""

    def __init__(self, what: str) -> None:
        from diffunet.progress import progress

        self.bar = progress(what)

    def __enter__(self) -> Callable[[Progress], None]:
        show = self.bar.__enter__()
        return lambda p: show(p.step, p.steps, "")

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


def _free(path: Path, overwrite: bool) -> None:
    """Refuse to overwrite, and find out that a place cannot be written before any work is done."""
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise UsageError(f"{path} exists; choose another --out, or say --overwrite")
    above = path.parent if path.suffix else path
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"--out {path} cannot be written: {above} is not a writable folder")


def _grid(pictures: list[Image]) -> Image:
    import numpy as np

    from diffunet.data import images

    arrays = [np.asarray(picture) for picture in pictures]
    return images.grid([array if array.ndim == 3 else array[..., None] for array in arrays])


def _save(picture: Image, path: Path, quiet: bool = False) -> None:
    from diffunet.data import images

    path.parent.mkdir(parents=True, exist_ok=True)
    images.save(picture, path)
    if not quiet:
        print(path)
