"""`diffunet sample` generates images by a model."""

from pathlib import Path

from tyro.conf import OmitArgPrefixes

from diffunet.commands import options, outputs
from diffunet.commands.options import Computing, Model, Number, Overwrite, Sampling, Seed
from diffunet.commands.progress import progress, say, tell
from diffunet.errors import UsageError


def sample(
    model: Model, /, *, out: Path, num: Number = 16, seed: Seed = 0, label: str | None = None,
    sampling: OmitArgPrefixes[Sampling], grid: bool = False, batch_size: Number | None = None,
    computing: OmitArgPrefixes[Computing], overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Generate images with a model.

    Example: diffunet sample runs/photos --out samples.png --grid

    Args:
        out: A file for one picture or a grid, else a folder.
        num: How many.
        seed: The same seed gives the same images.
        label: Class, by name or number; without, the classes in turn.
        grid: One picture of them all.
        batch_size: Images at a time.
    """
    is_file = bool(out.suffix)
    if grid and not is_file:
        raise UsageError(f"--out {out} is a folder; a grid is one picture: --out {out}.png")
    if is_file and num > 1 and not grid:
        raise UsageError(f"--out {out} is one file for {num} images: add --grid or --num 1, or give a folder")
    if is_file:
        outputs.lossless(out)  # refuses what is no picture's name
    outputs.claim(out, file=is_file, overwrite=overwrite)

    import numpy as np

    from diffunet.pictures import images

    pipe = options.load(model, computing)
    keywords = options.for_pipeline(sampling, pipe)
    names, size, diffusion = pipe.class_names, pipe.image_size, pipe.config.diffusion
    steps, sampler = sampling.steps or diffusion.sample_steps, sampling.sampler or diffusion.sampler
    say(f"{num} {'image' if num == 1 else 'images'} of {size}x{size}, {steps} steps of {sampler}")
    with progress("sampling") as show:
        pictures = pipe.sample(
            num, seed=seed, labels=label, batch_size=batch_size, on_step=lambda p: show(p.step, p.steps), **keywords
        )  # fmt: skip
    if is_file:
        tiles = [np.atleast_3d(np.asarray(picture)) for picture in pictures]
        outputs.save(images.grid(tiles) if grid else pictures[0], out)
        return
    for i, picture in enumerate(pictures):
        name = "" if not names else "-" + outputs.file_name(label or names[i % len(names)])
        images.save(picture, out / f"{seed}-{i:05d}{name}.png")
    tell(f"{len(pictures)} images in {out}")
