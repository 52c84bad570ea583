"""`diffunet sample` generates images by a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from tyro.conf import OmitArgPrefixes, arg

from diffunet.commands import naming, options, outputs, viewer
from diffunet.commands.film import Film, refuse_still
from diffunet.commands.options import Computing, Label, Model, Number, Open, Out, Overwrite, Sampling, Seed
from diffunet.commands.progress import progress, say, tell
from diffunet.commands.records import Record, content, fingerprint
from diffunet.commands.signature import Rare
from diffunet.errors import UsageError

if TYPE_CHECKING:
    from diffunet.pictures.images import Pixels
    from diffunet.ranks import Ranks
    from diffunet.sampling.pipeline import Pipeline


def sample(
    model: Model, /, *, out: Out | None = None, num: Number | None = None, seed: Seed = 0, label: Label | None = None,
    sampling: OmitArgPrefixes[Sampling], from_: Annotated[Path | None, arg(name="from", metavar="PICTURE")] = None,
    strength: Annotated[float, Field(gt=0, le=1)] | None = None, grid: bool = False, animate: bool = False,
    batch_size: Rare[Number | None] = None,
    computing: OmitArgPrefixes[Computing], resume: bool = False, overwrite: Overwrite = False, open: Open = False,
) -> None:  # fmt: skip
    """Generate images with a model.

    Example: diffunet sample runs/photos --out samples.png --grid

    Args:
        out: File for one picture or a grid, an .npz file of all pixels, or a folder, in which each picture is written
            as it is made. If not given, it is MODEL-seedS in the current folder: without --num a grid, with --num 1 a
            file.
        num: Number of images. If not given, it is 16.
        seed: Seed of the noise. The same seed gives the same images.
        label: Class to make, by its name or number. If not given, the classes come in turn.
        from_: Picture of which variations are made.
        strength: How far variations go from the picture of --from: the share of the steps that are taken, up to 1. If
            not given, it is 0.5.
        grid: Put all images into one picture.
        animate: Show how the images come out of the noise, in a .gif, .webp or .png with a frame for each step, or of
            more than 60 for every second, third and so on.
        batch_size: Images that are made at a time. If not given, they are as many as suit the device.
        resume: Make what is missing in the folder, after an interrupt or with a larger --num.
    """
    if out is None:
        grid = grid or (num is None and not animate and not resume)
        suffix = ".webp" if animate else ".png" if grid or num == 1 else ""
        out = naming.samples_of(model, seed, suffix)
    num = num or 16
    is_file, target = outputs.is_arrays(out) or outputs.is_file(out), Path(out)
    as_arrays = outputs.is_arrays(out)
    if as_arrays and (grid or animate):
        raise UsageError(f"--out {out} holds the pixels of each image: --grid and --animate make a picture, as a .png")
    if grid and not is_file:
        raise UsageError(f"--out {out} is a folder; a grid is one picture: --out {target}.png")
    if is_file and num > 1 and not grid and not animate and not as_arrays:
        raise UsageError(f"--out {out} is one file for {num} images: add --grid or --num 1, or give a folder")
    if is_file and resume:
        raise UsageError(f"--resume goes with a folder of pictures, and --out {out} is one file")
    if strength is not None and from_ is None:
        raise UsageError("--strength says how far to go from a picture, and there is no --from")
    if animate:
        if not is_file:
            raise UsageError(f"--animate makes one file, and --out {out} is a folder: --out {target}.gif")
        refuse_still(target)
    from diffunet import ranks
    from diffunet.sampling import conditions

    with ranks.together() as processes:
        processes.share(lambda: outputs.claim(target, file=is_file, overwrite=overwrite or not is_file))
        pipe = options.load(model, computing)
        if is_file and not as_arrays:
            outputs.refuse_misfit(target, pipe.channels)
        keywords: dict[str, Any] = {**options.for_pipeline(sampling, pipe), "seed": seed, "labels": label}
        share = 1.0 if from_ is None else strength or 0.5
        if from_ is not None:
            keywords |= {"start": from_, "strength": share}
        chosen = {
            name: getattr(sampling, name) or getattr(pipe.config.diffusion, option) for name, option in CONFIGURED
        }
        say(
            f"{num} {'image' if num == 1 else 'images'} of {pipe.image_size}x{pipe.image_size}, {chosen['steps']} "
            f"steps of {chosen['sampler']}" + ("" if from_ is None else f", {share:g} of them from {from_}")
        )
        with progress("sampling") as show:
            keywords["on_step"] = lambda p: show(p.step, p.steps)
            work = _Work(pipe, processes, target, num, batch_size, keywords)
            if animate:
                work.film(conditions.steps_of(share, chosen["steps"]), show)
            elif as_arrays:
                work.arrays()
            elif is_file:
                work.picture()
            else:
                made_by = {
                    "command": "sample", "seed": seed, "model": fingerprint(pipe), "label": label,
                    "from": None if from_ is None else content(from_), "strength": share,
                    **chosen, **_guidance(keywords["guidance"], pipe), "precision": pipe.how.precision,
                    "compile": computing.compile, "kernels": computing.kernels,
                }  # fmt: skip
                work.folder(made_by, resume, overwrite)
        if open and processes.is_main:
            viewer.show(target)


CONFIGURED = (
    ("steps", "sample_steps"), ("sampler", "sampler"), ("ladder", "ladder"), ("threshold", "threshold")
)  # fmt: skip
"""The options of sampling whose default is in the model's config, with their names there."""


NOTED = 64
"""Pictures that are noted at a time, before they are written: that waits for the disk."""


class _Work:
    """The images that are asked for, of which each of several processes makes a share, and the main one says so.

    Args:
        pipe, ranks: the model, and the processes.
        out, num: where the images go, and how many there are.
        asked, keywords: the batch size that was asked for, and what else `Pipeline.stream` takes.
    """

    def __init__(
        self, pipe: Pipeline, ranks: Ranks, out: Path, num: int, asked: int | None, keywords: dict[str, Any]
    ) -> None:
        from diffunet.sampling import conditions, dividing

        self.pipe, self.ranks, self.out, self.num, self.asked, self.keywords = pipe, ranks, out, num, asked, keywords
        self.batch_size = asked or dividing.batch_size(pipe, num, keywords["guidance"].scale != 1, ranks)
        self.classes = conditions.class_numbers(keywords["labels"], num, pipe.class_names)

    def film(self, steps: int, show: Callable[[int, int], None]) -> None:
        """Write an animation of images that take so many steps; `show` is told how far it is."""
        from diffunet.sampling import dividing

        film = Film(steps)
        for _ in dividing.divided(
            self.pipe, self.num, self.ranks, batch_size=self.batch_size,
            **self.keywords | {"on_step": film.and_tell(show)},
        ):  # fmt: skip
            self.ranks.meet()
        film.gather(self.ranks, (self.pipe.image_size, self.pipe.image_size, self.pipe.channels))
        if self.ranks.is_main:
            film.save(self.out)
        tell(str(self.out))

    def arrays(self) -> None:
        """Write the pixels of all images, with their classes where there are any."""
        shape = (self.num, self.pipe.image_size, self.pipe.image_size, self.pipe.channels)
        labels = None if self.classes is None else self.classes.cpu().numpy()
        if self.ranks.is_main:
            outputs.save_arrays(self.out, shape, self._gathered(), labels)
        else:
            for _ in self._gathered():
                pass
        tell(f"{self.num} images in {self.out}")

    def picture(self) -> None:
        """Write one image, or a grid of all."""
        from diffunet.pictures import images

        arrays = [pixels for batch in self._gathered() for pixels in batch]
        if self.ranks.is_main:
            outputs.save(images.from_array(arrays[0]) if self.num == 1 else images.grid(arrays), self.out)

    def _gathered(self) -> Iterator[Pixels]:
        from diffunet.sampling import dividing

        return dividing.gathered(self.pipe, self.num, self.ranks, batch_size=self.batch_size, **self.keywords)

    def folder(self, made_by: dict[str, Any], resume: bool, overwrite: bool) -> None:
        """Write each picture once its batch is made, and say how many of the run's pictures are there then."""
        from diffunet.pictures import images
        from diffunet.sampling import conditions, dividing

        pipe, seed, num, out = self.pipe, self.keywords["seed"], self.num, self.out
        names = [f"{conditions.picture_name(seed, i, self.classes, pipe.class_names)}.png" for i in range(num)]
        record = Record(out, made_by, batch_size=self.batch_size)  # the main process alone writes to it

        def found() -> tuple[list[int], Any]:
            finished = record.finished(names, resume=resume, overwrite=overwrite)
            there = [i for i, name in enumerate(names) if name in finished]
            return there, record.before("batch_size") if there else None

        there, before = self.ranks.share(found)
        if self.asked and before and self.asked != before:
            say(f"with {self.asked} at a time and not {before}, as before: the last bits of what is missing may differ")
        if there:
            say(f"{len(there)} of {num} are there")
        skip, written = set(there), len(there)
        left = [name for i, name in enumerate(names) if i not in skip]
        noted = made = 0
        try:
            for dealt, pictures in dividing.divided(
                pipe, num, self.ranks, batch_size=self.asked or before or self.batch_size, skip=skip, **self.keywords
            ):
                first_one = self.ranks.is_main and made == 0  # now that there is one, others may go
                if first_one and overwrite and (deleted := record.remove_others(("seed", "label"), names)):
                    say(f"deleted {deleted} other pictures of seed {seed} in {out}, of an earlier run")
                made += sum(map(len, dealt))
                if noted < made:
                    first, noted = noted, max(made, noted + NOTED)
                    if self.ranks.is_main:
                        record.note(left[first:noted])
                self.ranks.meet()  # before anything is written, it is noted
                mine = dealt[self.ranks.rank] if pictures else []
                for i, picture in zip(mine, pictures, strict=True):
                    images.save(picture, out / names[i])
                    written += 1
                written = len(there) + made
            self.ranks.meet()
        except BaseException:
            if 0 < written < num:
                say(f"{written} of {num} images are in {out}; --resume makes the others")
            raise
        tell(f"{written} images in {out}")


def _guidance(guidance: Any, pipe: Pipeline) -> dict[str, Any]:
    from diffunet.sampling import conditions

    found = conditions.chosen(guidance, pipe)
    weaker = None if found.weaker is None or found.scale == 1 else fingerprint(found.weaker)
    return {
        "guidance": found.scale, "weaker": weaker, "guidance interval": found.interval and list(found.interval),
        "guidance rescale": found.rescale,
    }  # fmt: skip
