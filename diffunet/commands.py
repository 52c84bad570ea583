"""What each command does: call one function, print. They import torch inside, so that `--help` answers at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field
from tyro.conf import Positional, arg

from diffunet import arguments, outputs
from diffunet.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    LadderName,
    ModelConfig,
    SamplerName,
    ThresholdName,
    TrainConfig,
)
from diffunet.errors import UsageError
from diffunet.outputs import Precision
from diffunet.progress import progress, say, tell

Model = Annotated[Positional[str], arg(metavar="MODEL")]
Number = Annotated[int, Field(ge=1, le=10**7)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[int, Field(ge=4, le=4096)]


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
    accept_new_data: bool = False
    """Resume with images that are not those that the run began with."""
    classes: bool = False
    """Subfolders are classes."""
    image_size: int | None = None
    """Short for --data.image-size."""
    steps: int | None = None
    """Short for --train.steps; raising it extends a run."""
    batch_size: int | Literal["auto"] | None = None
    """Short for --train.batch-size: images of one step, over all processes; auto: as many as fit, by trial."""
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

    from diffunet.training.stop import StopFlag, on_signals

    with on_signals(StopFlag()), progress("training", quiet=not main_process()) as show:
        from diffunet.training.loop import TrainProgress
        from diffunet.training.loop import train as run

        def on_step(p: TrainProgress) -> None:
            show(p.step, p.steps, f"loss {p.loss:.4f}" if p.loss == p.loss else "")

        model = run(
            config, chosen.folder, chosen.out, resume=chosen.resume, init=chosen.init,
            accept_new_data=chosen.accept_new_data, on_step=on_step,
        )  # fmt: skip
    if main_process():
        tell(f"done: {model}. Try: diffunet sample {chosen.out} --out samples.png --grid")


def sample(
    model: Model,
    /,
    out: Path,
    num: Number = 16,
    seed: Seed = 0,
    label: str | None = None,
    guidance: Finite = 1.0,
    guidance_interval: tuple[Finite, Finite] | None = None,
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0,
    weaker: str | None = None,
    sampler: SamplerName | None = None,
    steps: Steps | None = None,
    ladder: LadderName | None = None,
    threshold: ThresholdName | None = None,
    grid: bool = False,
    batch_size: Number | None = None,
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
        guidance: How strongly the label counts; 1 is off, 1.5 to 4 usual. Needs a model with classes, or --weaker.
        guidance_interval: Guide only between two noise levels (sigma).
        guidance_rescale: How far colours that guidance made strong are brought back, 0 to 1.
        weaker: Guide away from this worse model instead: an earlier checkpoint, RUN/checkpoints/step-00010000.
        sampler: The model's default if not given; so for the next three.
        steps: Of the sampler.
        ladder: How the steps are spaced.
        threshold: What keeps the predicted image within its range.
        grid: One picture of them all.
        batch_size: Images at a time.
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
        precision: bf16 is faster where it is native.
        overwrite: Replace what exists.
    """
    is_file = bool(out.suffix)
    if grid and not is_file:
        raise UsageError(f"--out {out} is a folder; a grid is one picture: --out {out}.png")
    if is_file and num > 1 and not grid:
        raise UsageError(f"--out {out} is one file for {num} images: add --grid or --num 1, or give a folder")
    if is_file:
        outputs.lossless(out)  # refuses what is no picture's name
    outputs.claim(out, file=is_file, overwrite=overwrite)
    pipe = outputs.load(model, device, precision)
    guide = outputs.guidance(pipe, guidance, guidance_interval, guidance_rescale, weaker)
    names = pipe.class_names
    chosen = steps or pipe.config.diffusion.sample_steps
    size, walker = pipe.image_size, sampler or pipe.config.diffusion.sampler
    say(f"{num} {'image' if num == 1 else 'images'} of {size}x{size}, {chosen} steps of {walker}")
    with outputs.watching("sampling") as on_step:
        pictures = pipe.sample(
            num, seed=seed, labels=label, guidance=guide, sampler=sampler, steps=steps, ladder=ladder,
            threshold=threshold, batch_size=batch_size, on_step=on_step,
        )  # fmt: skip
    if is_file:
        outputs.save(outputs.grid(pictures) if grid else pictures[0], out)
        return
    for i, picture in enumerate(pictures):
        name = "" if not names else "-" + outputs.file_name(label or names[i % len(names)])
        outputs.save(picture, out / f"{seed}-{i:05d}{name}.png", quiet=True)
    tell(f"{len(pictures)} images in {out}")


def inpaint(
    model: Model,
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE")],
    /,
    out: Path,
    mask: Path | None = None,
    method: Literal["auto", "repaint", "replace"] = "auto",
    fit: Literal["auto", "crop", "native"] = "auto",
    steps: Steps | None = None,
    num: Number = 1,
    seed: Seed = 0,
    label: str | None = None,
    guidance: Finite = 1.0,
    invert_mask: bool = False,
    soft_mask: bool = False,
    lossy_ok: bool = False,
    max_pixels: Annotated[int, Field(ge=1, le=10**12)] = 200_000_000,
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
        max_pixels: Larger images are refused, before they are decoded.
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
        precision: bf16 is faster where it is native.
        overwrite: Replace what exists.
    """
    is_file = bool(out.suffix)
    if not images:
        raise UsageError("IMAGE is missing (images of any size; see diffunet inpaint --help)")
    if is_file and len(images) * num > 1:
        raise UsageError(f"--out {out} is one file for {len(images) * num} pictures: give a folder")
    if is_file and not outputs.lossless(out) and not lossy_ok:
        raise UsageError(f"--out {out} is lossy: known pixels would change. Take .png, or say --lossy-ok")
    targets = [
        [out if is_file else out / (f"{path.stem}.png" if num == 1 else f"{path.stem}-{i}.png") for i in range(num)]
        for path in images
    ]
    every = [path for some in targets for path in some]
    if len(set(every)) < len(every):
        raise UsageError(f"several images would be written to {max(every, key=every.count)}: rename one")
    for target in every:
        outputs.claim(target, file=True, overwrite=overwrite)
    pipe = outputs.load(model, device, precision)
    for path, some in zip(images, targets, strict=True):
        with outputs.watching(f"filling {path.name}") as on_step:
            filled = pipe.inpaint(
                path, mask, num=num, seed=seed, method=method, fit=fit, steps=steps, label=label, guidance=guidance,
                invert_mask=invert_mask, soft_mask=soft_mask, max_pixels=max_pixels, on_step=on_step,
            )  # fmt: skip
        for picture, target in zip(filled, some, strict=True):
            outputs.save(picture, target)


def evaluate(
    model: Model,
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    /,
    num: Annotated[int, Field(ge=2, le=10**7)] = 10_000,
    seed: Seed = 0,
    guidance: Finite = 1.0,
    guidance_interval: tuple[Finite, Finite] | None = None,
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0,
    weaker: str | None = None,
    sampler: SamplerName | None = None,
    steps: Steps | None = None,
    ladder: LadderName | None = None,
    threshold: ThresholdName | None = None,
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
        guidance_interval: Of the samples.
        guidance_rescale: Of the samples.
        weaker: Of the samples.
        sampler: Of the samples.
        steps: Of the samples.
        ladder: Of the samples.
        threshold: Of the samples.
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
        precision: bf16 is faster where it is native.
    """
    from diffunet.evaluation.report import evaluate as run

    pipe = outputs.load(model, device, precision)
    guide = outputs.guidance(pipe, guidance, guidance_interval, guidance_rescale, weaker)
    with progress("evaluating") as show:
        report = run(
            pipe, data, num=num, seed=seed, guidance=guide, sampler=sampler, steps=steps, ladder=ladder,
            threshold=threshold, on_step=lambda what, done, total: show(done, total, what),
        )  # fmt: skip
    tell("\n".join(report.lines()))


def check(data: Annotated[Positional[Path], arg(metavar="DATA")], /, image_size: Size = 64) -> None:
    """Say what is in a folder of images, and what cannot be used, and why.

    Example: diffunet check photos

    Args:
        data: Folder, searched recursively.
        image_size: What you mean to train at.
    """
    from diffunet.data.folder import describe, survey

    with progress("reading") as show:
        found = survey(data, progress=lambda done, total: show(done, total, ""))
    tell(describe(found, image_size))


def prepare(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    limit: Number | None = None,
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

    outputs.claim(out, file=False, option="OUT")
    if download_root is not None:
        outputs.claim(download_root, file=False, option="--download-root")
    with progress("writing") as show:
        count = run(
            name, out, download_root=download_root, limit=limit, progress=lambda done, total: show(done, total, "")
        )
    tell(f"{count} images in {out}. Try: diffunet train {out} --out runs/{name} --classes")


def convert(
    source: Annotated[Positional[str], arg(metavar="SOURCE")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    ema: Finite | None = None,
    step: Number | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model folder: of any model, or of another average of a run's weights, chosen after training.

    Example: diffunet convert runs/photos photos-model --ema 0.05

    Args:
        source: A run folder, a model folder, or a checkpoint such as RUN/checkpoints/step-00001000.
        out: Model folder to make.
        ema: Relative width of the average, its spread in time over the length of the run: 0.03 to 0.20 usual, 0.289 is
            the plain mean. Put together from those stored in a run folder (train.ema_every).
        step: With --ema, of a step that averages are stored of; the newest if not given.
        overwrite: Replace what exists.
    """
    if step is not None and ema is None:
        raise UsageError(f"--step goes with --ema; for an earlier checkpoint give {source}/checkpoints/step-{step:08d}")
    for folder in (out, out.absolute().parent):
        if (folder / "config.toml").is_file():
            raise UsageError(f"OUT {out} is in the run folder {folder}, which only training writes to; choose another")
    outputs.claim(out, file=False, overwrite=overwrite, option="OUT")
    from diffunet import storage
    from diffunet.training import snapshots

    if ema is None:
        model = storage.read_model(source)
        config, weights, at = model.config, model.denoiser.net.state_dict(), model.step
    else:
        with progress("averaging") as show:
            config, weights, at = snapshots.put_together(Path(source), ema, step, show)
    storage.export_model(out, config, weights, at)
    tell(f"the weights of step {at} in {out}. Try: diffunet sample {out} --out samples.png --grid")


def info(
    model: Annotated[Positional[str], arg(metavar="MODEL_OR_PRESET")],
    /,
    image_size: Size | None = None,
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
        if not tell(line):
            return


def demo(
    out: Path = Path("demo"),
    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 150.0,
    overwrite: bool = False,
) -> None:
    """Do all of it on built-in data, in minutes, on a CPU: train on handwritten digits, sample, inpaint, judge.

    Example: diffunet demo --out demo

    Args:
        out: Folder for the data, the run and the pictures.
        seconds: Of training.
        overwrite: Replace what exists.
    """
    from diffunet.demo import run

    outputs.claim(out, file=False, overwrite=overwrite)
    run(out, seconds)


def main_process() -> bool:
    """Whether this process is the one of several that prints."""
    return int(os.environ.get("RANK", 0)) == 0
