"""`diffunet inpaint` fills in the masked part of images."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from tyro.conf import OmitArgPrefixes, Positional, arg

from diffunet.commands import naming, options, outputs, records, viewer
from diffunet.commands.options import Computing, Finite, Label, Model, Number, Open, Out, Overwrite, Seed, Steps
from diffunet.commands.progress import progress, say, tell
from diffunet.commands.signature import Rare
from diffunet.errors import DataError, UsageError
from diffunet.names import JUMPING, InpaintFitName, MethodChoice

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffunet.inpainting import part
    from diffunet.inpainting.pairs import Pair
    from diffunet.ranks import Ranks
    from diffunet.sampling.pipeline import Pipeline
    from diffunet.sampling.watching import OnStep

    Job = tuple[Pair, list[Path]]
    """An image with its mask, and the files to write: one for each filling, then a sheet if there are several."""
    Told = dict[str, Any]
    """What a process tells the main one of an image: why it could not be filled, or what to say and note of it."""

Pixels = Annotated[int, Field(ge=0, le=10_000)]

UNSEEN = ("model", "images", "out", "mask", "computing", "max_pixels", "resume", "overwrite", "open")
"""What is not noted of how pictures were made: it does not change them, or is noted by what it holds."""


def inpaint(
    model: Model, images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE")], /, *,
    out: Out | None = None,
    mask: Path | None = None, box: Annotated[str | None, arg(metavar="X0,Y0,X1,Y1")] = None,
    method: MethodChoice = "auto",
    fit: Rare[InpaintFitName] = "auto", steps: Steps | None = None, jump_length: Rare[Steps | None] = None,
    jump_n_sample: Rare[Steps | None] = None, num: Number = 1, seed: Seed = 0, label: Label | None = None,
    guidance: Finite = 1.0, invert_mask: bool = False, soft_mask: Rare[bool] = False,
    mask_values: Rare[tuple[Finite, ...] | None] = None, resize_mask: Rare[bool] = False, grow: Pixels = 0,
    shrink: Rare[Pixels] = 0, feather: Pixels = 0, extend: Annotated[str | None, arg(metavar="L,T,R,B")] = None,
    range: Annotated[Rare[tuple[Finite, Finite] | None], arg(metavar="LOW HIGH")] = None,
    page: Rare[Annotated[int, Field(ge=1, le=10**9)] | None] = None, lossy_ok: Rare[bool] = False,
    max_pixels: Rare[Annotated[int, Field(ge=1, le=10**12)]] = 200_000_000,
    computing: OmitArgPrefixes[Computing], resume: bool = False, overwrite: Overwrite = False, open: Open = False,
) -> None:  # fmt: skip
    """Fill in the masked part of images; every pixel outside the mask comes back as it was.

    Example: diffunet inpaint runs/photos holiday.png --mask holiday-mask.png --out mended.png

    Args:
        images: Images of any size, or folders of them.
        out: File for one picture, or a folder, which several need. If not given, it is IMAGE-filled in the current
            folder.
        mask: Mask of the image's size, white = fill; or a folder of masks with the images' names, or with these and
            "mask" (a_mask.png). If neither it nor --box is given, what is transparent is filled.
        box: Rectangle to fill, x0,y0,x1,y1 in pixels from the top left corner; x1 and y1 are the first outside.
        method: Method of filling in. trained is for a model trained with --task inpaint; for any model there are mmps
            (by gradients), repaint (up and down), ddnm and replace (once down, plain). auto is trained where the model
            is, else mmps.
        fit: What the net is shown: a region round each hole at the model's size (crop), windows at the image's own
            resolution (tile), or the whole image (native). auto chooses, and says which.
        steps: Steps of the sampler; more take longer. If not given, they are what suits the method.
        jump_length: Steps that repaint and ddnm go back. RePaint as published is --steps 250 --jump-length 10
            --jump-n-sample 10, which takes 2,410 calls of the net.
        jump_n_sample: Times that repaint and ddnm walk each stretch.
        num: Fillings of each image. Several come with a sheet that shows them side by side.
        seed: Seed of the noise. The same seed gives the same fillings.
        label: Class to fill in, by its name or number, for a model with classes.
        guidance: How strongly the label counts, or without classes how far to go from the weaker model beside it; 1 is
            off.
        invert_mask: Fill what is black in the mask, or with --box what is outside.
        soft_mask: Blend old and new by the mask's grey.
        mask_values: Values of the mask that are filled, where it holds labels; of a palette they are the indices.
        resize_mask: Take a mask of another size to the image's.
        grow: Pixels by which the hole is grown, over the rim of what is masked.
        shrink: Pixels by which the hole is shrunk, after it was grown.
        feather: Pixels inside the edge of the hole over which old and new are blended.
        extend: Pixels to add to the image and fill in, as left,top,right,bottom.
        range: Values that are black and white in images of more than 8 bits. If not given, they are those of the
            model's images, else of these.
        page: Page or frame to take of a file with several, from 1 on; the result is that one alone. If not given,
            there may be only one.
        lossy_ok: Allow an output such as .jpg, which changes known pixels.
        max_pixels: Pixels of the largest image that is taken. Larger ones are refused before they are decoded.
        resume: Fill only the images that a run which was broken off has not filled.
    """
    made_by = records.asked(locals(), *UNSEEN)
    if out is None:
        suffix = next(iter(outputs.held_by(images[0])), ".png") if len(images) == 1 else ""
        out = naming.fillings_of(images, num, suffix)
    is_file, target = outputs.is_file(out), Path(out)
    jumps = jump_length is not None or jump_n_sample is not None
    for refused, message in (
        (not images, "IMAGE is missing (images of any size; see diffunet inpaint --help)"),
        (box is not None and mask is not None, "--box and --mask both say what to fill; take one"),
        (soft_mask and mask is None, "--soft-mask is about a mask, and there is no --mask"),
        (resize_mask and mask is None, "--resize-mask is about a mask, and there is no --mask"),
        (mask_values is not None and mask is None, "--mask-values is about a mask, and there is no --mask"),
        (invert_mask and mask is None and box is None, "--invert-mask goes with --mask or --box, and there is neither"),
        (jumps and method not in ("auto", *JUMPING),
         f"--method {method} does not jump back: --jump-length and --jump-n-sample go with repaint, ddnm"),
        (is_file and resume, f"--resume goes with a folder of pictures, and --out {out} is one file"),
    ):  # fmt: skip
        if refused:
            raise UsageError(message)
    if is_file and not outputs.lossless(target) and not lossy_ok:
        raise UsageError(f"--out {out} is lossy: known pixels would change. Take .png, or say --lossy-ok")
    corners = None if box is None else _corners(box)
    sides = None if extend is None else _numbers("--extend", extend, "left,top,right,bottom, such as 0,0,64,0")
    reading: part.ReadingOptions = {
        "box": corners, "invert_mask": invert_mask, "soft_mask": soft_mask, "mask_values": mask_values, "grow": grow,
        "shrink": shrink, "feather": feather, "extend": sides, "resize_mask": resize_mask, "max_pixels": max_pixels,
        "range": range, "page": page,
    }  # fmt: skip
    filling = {
        "num": num, "seed": seed, "method": method, "fit": fit, "steps": steps, "jump_length": jump_length,
        "jump_n_sample": jump_n_sample, "label": label, "guidance": guidance,
    }  # fmt: skip
    from diffunet import ranks

    with ranks.together() as processes:
        jobs = _agreed(processes, lambda: jobs_of(images, mask, target, is_file, num, overwrite or resume))
        pipe = options.load(model, computing)
        made_by |= {"command": "inpaint", "model": records.fingerprint(pipe), "precision": pipe.how.precision}
        record = None if is_file else records.Record(target, made_by)
        failed = fill_each(
            pipe, jobs, reading, filling, record, _shown, resume=resume, overwrite=overwrite, ranks=processes
        )

        def ended() -> None:
            if len(jobs) > 1 or any(path.is_dir() for path in images):
                count = len(jobs) - len(failed)
                tell(f"{count} {'image' if count == 1 else 'images'} in {out}")
            if failed:
                raise DataError(f"{len(failed)} of {len(jobs)} images could not be filled: {', '.join(failed)}")

        processes.share(ended)
        if open and processes.is_main:
            viewer.show(target if len(jobs) > 1 else jobs[0][1][-1])  # the last of one image is the sheet of several


def _agreed(ranks: Ranks, jobs: Callable[[], list[Job]]) -> list[Job]:
    """Return the jobs that the main process finds, which claims their files, on all processes."""
    from diffunet.inpainting.pairs import Pair

    def found() -> Any:
        named = ((pair, map(str, targets)) for pair, targets in jobs())
        return [[str(pair.image), pair.mask and str(pair.mask), pair.name, *files] for pair, files in named]

    return [
        (Pair(Path(image), mask and Path(mask), name), [Path(file) for file in files])
        for image, mask, name, *files in ranks.share(found)
    ]


@contextlib.contextmanager
def _shown(path: Path) -> Iterator[OnStep]:
    """Show how far the filling of an image is."""
    with progress(f"filling {path.name}") as show:
        yield lambda p: show(p.step, p.steps)


def fill_each(
    pipe: Pipeline, jobs: list[Job], reading: part.ReadingOptions, filling: dict[str, Any],
    record: records.Record | None, watching: Callable[[Path], AbstractContextManager[OnStep]], *,
    resume: bool = False, overwrite: bool = False, ranks: Ranks | None = None,
) -> list[str]:  # fmt: skip
    """Fill in image after image, write each once it is made, and return the names of those that could not be filled.

    Args:
        pipe, jobs: the model, and what `jobs_of` returns.
        reading, filling: keywords of `part.read` and of `Pipeline.inpaint`.
        record: what is noted in the folder of the results; None where they are one file.
        watching: is entered with the path of each image, and gives what is called after every step.
        resume, overwrite: whether files that are there stay, as `Record.finished` says, or are replaced.
        ranks: the processes, if there are several: each fills an image in every round. The main one notes and says what
            is to be said of them, and it alone gets the names.

    Raises:
        DataError, UsageError: of the only image, where there is one.
        Cancelled: what `watching` gave has returned False.
    """
    from diffunet import build
    from diffunet.inpainting import part
    from diffunet.pictures import ranges
    from diffunet.ranks import ALONE

    ranks = ranks or ALONE

    def missing() -> list[int]:
        filled = (record is not None and _is_filled(job, record, resume, overwrite) for job in jobs)
        return [i for i, is_filled in enumerate(filled) if not is_filled]

    left = [jobs[i] for i in ranks.share(missing)]
    if len(left) < len(jobs):
        say(f"{len(jobs) - len(left)} of {len(jobs)} images are filled")
    album = functools.cache(lambda: ranges.of_files(path for (path, _, _), _ in jobs))

    def fill(job: Job) -> tuple[Told, part.Masked | None, list[Image]]:
        (path, mask_path, _), targets = job
        try:  # errors of one image are raised here; those of the options, by the pipeline
            masked = part.read(path, mask_path, **reading).like(build.ranges(pipe.config.data))
            if masked.lacks_range and len(jobs) > 1:
                masked = masked.like(album(), "these images")
            part.parts_for(pipe.config.data, masked, filling["fit"])
        except (DataError, UsageError) as error:
            words = as_typed(str(error))
            if len(jobs) == 1:
                raise type(error)(words) from None
            return {"failed": str(path), "words": words, "empty": isinstance(error, part.NothingToFill)}, None, []
        if ranks.is_main:  # before it takes its time; what others found is said once they have filled it
            notes.say(masked.said, len(jobs) == 1)
        with watching(path) as on_step:
            filled = pipe.inpaint(masked, **filling, on_step=on_step)
        told: Told = {"said": [] if ranks.is_main else [*masked.said]}
        if record is not None:
            told |= {"names": record.names(targets), "of": records.content(path, mask_path)}
        return told, masked, filled

    failed, empty, notes = list[str](), list[tuple[str, str]](), _Notes()
    for first in range(0, len(left), ranks.count):
        mine = left[first + ranks.rank : first + ranks.rank + 1]
        done = [(targets, *fill((pair, targets))) for pair, targets in mine]
        for told in map(json.loads, ranks.gather(json.dumps([told for _, told, _, _ in done]).encode())):
            for one in told:
                if "failed" in one:
                    failed.append(one["failed"])
                    if one["empty"]:
                        empty.append((one["failed"], one["words"]))
                    else:
                        say(one["words"])
                    continue
                notes.say(one["said"], len(jobs) == 1)
                if record is not None:
                    record.note(one["names"], one["of"])
        ranks.meet()  # before anything is written, it is noted
        for targets, _, masked, filled in done:
            for picture, file in zip(filled, targets, strict=False):
                outputs.save(picture, file)
            if masked is not None and filling["num"] > 1:  # the target that is left is of the sheet
                outputs.save(outputs.sheet(masked, filled), targets[-1])
    ranks.meet()
    notes.count()
    if empty:
        say(f"nothing was to be filled in {len(empty)} of {len(jobs)} images; the first: {empty[0][1]}")
    return failed


def _is_filled(job: Job, record: records.Record, resume: bool, overwrite: bool) -> bool:
    """Return whether all pictures of an image are there, by this run. Raises UsageError where they are another's."""
    (path, mask, _), targets = job
    if not any(target.exists() for target in targets):
        return False
    of, names = records.content(path, mask), record.names(targets)
    return len(record.finished(names, resume=resume, overwrite=overwrite, of=of)) == len(names)


def as_typed(message: str) -> str:
    """Return a message with options as they are typed on the command line, in place of Python's keywords."""
    from diffunet.inpainting.part import ReadingOptions

    named = "|".join(ReadingOptions.__annotations__)

    def option(match: re.Match[str]) -> str:
        value = "" if match[2] == "=True" else match[2].replace("=", " ", 1)
        return f"--{match[1].replace('_', '-')}{value}"

    return re.sub(rf"\b({named})(=(?:True|[-\w.]+))", option, message)


class _Notes:
    """What is said of images and masks: the first of each kind when it is read, and in the end how many there were."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def say(self, lines: Sequence[str], alone: bool) -> None:
        for line in lines:
            kind = line.partition(": ")[2] or line.partition(" fills ")[2]
            kind = re.sub(r"[0-9][0-9.,]*", "N", kind)
            self.kinds[kind] += 1
            if self.kinds[kind] == 1:
                say(as_typed(line) + ("" if alone else " (others like it are counted)"))

    def count(self) -> None:
        """Say how often each kind came that came more than once."""
        for kind, times in self.kinds.items():
            if times > 1:
                say(f"{times} times: {as_typed(kind)}")


def jobs_of(
    images: tuple[Path, ...], mask: Path | None, out: Path, is_file: bool, num: int, overwrite: bool
) -> list[Job]:
    """Return each image with its mask and the files to write: one for each filling, then a sheet if there are several.

    Raises DataError for an image without a mask, UsageError for files that exist, clash, cannot be written or cannot
    hold their image.
    """
    from diffunet.inpainting.pairs import pairs

    outputs.claim(out, file=is_file, overwrite=overwrite or not is_file)
    masked = pairs(images, mask, None if is_file else out)
    if is_file and len(masked) * num > 1:
        raise UsageError(f"--out {out} is one file for {len(masked) * num} pictures: give a folder")
    jobs = []
    for pair in masked:
        held_by = outputs.held_by(pair.image)
        if is_file and held_by and out.suffix.lower() not in held_by:
            raise UsageError(f"--out {out}: {out.suffix} cannot hold {pair.image} as it is; take {held_by[0]}")
        stem, suffix = out / pair.name, held_by[0] if held_by else ".png"
        ends = [suffix] if num == 1 else [*(f"-{i}{suffix}" for i in range(num)), "-sheet.png"]
        jobs.append((pair, [out] if is_file else [stem.with_name(stem.name + end) for end in ends]))
    targets = [target for _, files in jobs for target in files]
    if several := [name for name, times in Counter(map(os.path.normcase, targets)).items() if times > 1]:
        raise UsageError(f"several images would be written to {several[0]}: rename one")
    masks = {pair.mask.resolve() for pair in masked if pair.mask is not None}
    images_of = {pair.image.resolve() for pair in masked}
    for pair, files in jobs:
        for target in files:
            outputs.claim(target, file=True, overwrite=overwrite)
            if (place := target.resolve()) in masks:
                raise UsageError(f"--out {out}: {target} is a mask, and would be replaced; choose another folder")
            if place in images_of and place != pair.image.resolve():
                raise UsageError(f"--out {out}: {target} is an image, and would be replaced; choose another folder")
    return jobs


def _corners(box: str) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of --box, in pixels. Raises UsageError for anything else, and for an empty box."""
    x0, y0, x1, y1 = _numbers("--box", box, "x0,y0,x1,y1, such as 40,30,120,90")
    if x0 >= x1 or y0 >= y1:
        raise UsageError(f"--box {box} is empty: x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


def _numbers(option: str, text: str, example: str) -> tuple[int, int, int, int]:
    if re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9}){3}", text) is None:
        raise UsageError(f"{option} takes four whole numbers {example}, not {text!r}")
    first, second, third, fourth = map(int, text.split(","))
    return first, second, third, fourth
