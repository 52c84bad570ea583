"""`diffunet sample` generates images by a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from tyro.conf import OmitArgPrefixes, arg

from diffunet.commands import options, outputs
from diffunet.commands.film import Film, refuse_still
from diffunet.commands.options import Computing, Model, Number, Overwrite, Sampling, Seed
from diffunet.commands.progress import progress, say, tell
from diffunet.commands.records import Record, content, fingerprint
from diffunet.errors import UsageError

if TYPE_CHECKING:
    from diffunet.sampling.pipeline import Pipeline


def sample(
    model: Model, /, *, out: str, num: Number = 16, seed: Seed = 0, label: str | None = None,
    sampling: OmitArgPrefixes[Sampling], from_: Annotated[Path | None, arg(name="from", metavar="PICTURE")] = None,
    strength: Annotated[float, Field(gt=0, le=1)] | None = None, grid: bool = False, animate: bool = False,
    batch_size: Number | None = None,
    computing: OmitArgPrefixes[Computing], resume: bool = False, overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Generate images with a model.

    Example: diffunet sample runs/photos --out samples.png --grid

    Args:
        out: A file for one picture or a grid, else a folder. Files are written as they are made.
        num: How many.
        seed: The same seed gives the same images.
        label: Class, by name or number; without, the classes in turn.
        from_: Make variations of this picture.
        strength: How far they go from it: the share of the steps that are taken, 0.5 if not given.
        grid: One picture of them all.
        animate: The file shows how they come out of the noise: a .gif, .webp or .png with a frame for each step.
        batch_size: Images at a time.
        resume: Make what is missing in the folder, after an interrupt or with a larger --num.
    """
    is_file, target = outputs.is_file(out), Path(out)
    if grid and not is_file:
        raise UsageError(f"--out {out} is a folder; a grid is one picture: --out {target}.png")
    if is_file and num > 1 and not grid:
        raise UsageError(f"--out {out} is one file for {num} images: add --grid or --num 1, or give a folder")
    if is_file and resume:
        raise UsageError(f"--resume goes with a folder of pictures, and --out {out} is one file")
    if strength is not None and from_ is None:
        raise UsageError("--strength says how far to go from a picture, and there is no --from")
    if animate:
        if not is_file:
            raise UsageError(f"--animate makes one file, and --out {out} is a folder: --out {target}.gif")
        refuse_still(target)
    outputs.claim(target, file=is_file, overwrite=overwrite or not is_file)

    pipe = options.load(model, computing)
    if is_file:
        outputs.refuse_misfit(target, pipe.channels)
    keywords: dict[str, Any] = {**options.for_pipeline(sampling, pipe), "seed": seed, "labels": label}
    share = 1.0 if from_ is None else strength or 0.5
    if from_ is not None:
        keywords |= {"start": from_, "strength": share}
    chosen = {name: getattr(sampling, name) or getattr(pipe.config.diffusion, option) for name, option in CONFIGURED}
    say(
        f"{num} {'image' if num == 1 else 'images'} of {pipe.image_size}x{pipe.image_size}, {chosen['steps']} steps of "
        f"{chosen['sampler']}" + ("" if from_ is None else f", {share:g} of them from {from_}")
    )
    with progress("sampling") as show:
        keywords["on_step"] = lambda p: show(p.step, p.steps)
        if animate:
            film = Film(math.ceil(share * chosen["steps"]))
            for _ in pipe.stream(num, batch_size=batch_size, **keywords | {"on_step": film.and_tell(show)}):
                pass
            film.save(target)
            tell(str(target))
            return
        if is_file:
            pictures = pipe.sample(num, batch_size=batch_size, **keywords)
            outputs.save(pictures.grid() if grid else pictures[0], target)
            return
        made_by = {
            "command": "sample", "seed": seed, "model": fingerprint(pipe), "label": label,
            "from": None if from_ is None else content(from_), "strength": share,
            **chosen, **_guidance(keywords["guidance"], pipe), "precision": pipe.how.precision,
            "compile": computing.compile, "kernels": computing.kernels,
        }  # fmt: skip
        count = _to_folder(pipe, target, num, batch_size, made_by, keywords, resume, overwrite)
    tell(f"{count} images in {target}")


CONFIGURED = (
    ("steps", "sample_steps"), ("sampler", "sampler"), ("ladder", "ladder"), ("threshold", "threshold")
)  # fmt: skip
"""The options of sampling whose default is in the model's config, with their names there."""


NOTED = 64
"""Pictures that are noted at a time, before they are written: that waits for the disk."""


def _to_folder(
    pipe: Pipeline, out: Path, num: int, batch_size: int | None, made_by: dict[str, Any], keywords: dict[str, Any],
    resume: bool, overwrite: bool,
) -> int:  # fmt: skip
    """Write each picture once its batch is made, and return how many of the run's pictures are there then."""
    from diffunet.pictures import images
    from diffunet.sampling import conditions

    guided = keywords["guidance"].scale != 1
    record = Record(out, made_by, batch_size=batch_size or pipe.batch(guided))
    classes = conditions.class_numbers(keywords["labels"], num, pipe.class_names)
    names = [f"{conditions.picture_name(keywords['seed'], i, classes, pipe.class_names)}.png" for i in range(num)]
    finished = record.finished(names, resume=resume, overwrite=overwrite)
    before = record.before("batch_size") if finished else None
    if batch_size and before and batch_size != before:
        say(f"with {batch_size} at a time and not {before}, as before: the last bits of what is missing may differ")
    skip = {i for i, name in enumerate(names) if name in finished}
    if skip:
        say(f"{len(skip)} of {num} are there")
    written = len(skip)
    try:
        size = batch_size or before or record.extra["batch_size"]
        made = pipe.stream(num, batch_size=size, skip=skip or (), **keywords)
        left = [name for name in names if name not in finished]
        for i, picture in enumerate(made):
            if i == 0 and overwrite:  # now that there is one
                record.remove_others("seed", names)
            if i % NOTED == 0:
                record.note(left[i : i + NOTED])
            images.save(picture, out / left[i])
            written += 1
    except BaseException:
        if 0 < written < num:
            say(f"{written} of {num} images are in {out}; --resume makes the others")
        raise
    return written


def _guidance(guidance: Any, pipe: Pipeline) -> dict[str, Any]:
    from diffunet.sampling import conditions

    found = conditions.chosen(guidance, pipe)
    weaker = None if found.weaker is None or found.scale == 1 else fingerprint(found.weaker)
    return {
        "guidance": found.scale, "weaker": weaker, "guidance interval": found.interval and list(found.interval),
        "guidance rescale": found.rescale,
    }  # fmt: skip
