"""Commands that make pictures with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional, arg

from diffunet import outputs
from diffunet.commands.values import Finite, Model, Number, Seed, Steps
from diffunet.config import LadderName, SamplerName, ThresholdName
from diffunet.errors import UsageError
from diffunet.outputs import Precision
from diffunet.progress import say, tell


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
