"""What jobs do: fill in a picture, generate pictures, fill in all pictures of a folder.

A job gives, byte for byte, what a command line gives, and knows that command line. Options are checked by the
annotations of the commands themselves.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffunet.commands import arguments, inpaint, outputs, records, sample
from diffunet.commands import options as shared
from diffunet.commands.inpaint import as_typed
from diffunet.errors import DataError, Error, ResourceError, UsageError
from diffunet.inpainting import methods, part
from diffunet.pictures import images
from diffunet.sampling import conditions
from diffunet.web.jobs import Job
from diffunet.web.limits import Limits
from diffunet.web.store import Item, Store

if TYPE_CHECKING:
    from diffunet.sampling.pipeline import Pipeline
    from diffunet.sampling.watching import OnStep

FILLING = ("num", "seed", "method", "fit", "steps", "jump_length", "jump_n_sample", "label", "guidance")
READING = ("grow", "shrink", "feather", "soft_mask", "resize_mask", "invert_mask", "mask_values")
GENERATING = ("num", "seed", "label", "guidance", "guidance_rescale", "steps", "sampler", "ladder", "threshold")
"""The options that a page may give, by their names in Python."""

IMAGE, MASK, OUT = "{image}", "{mask}", "{out}"
"""Words of a command in whose place the page puts names of files, which it alone knows."""

USUAL_PIXELS = inspect.signature(inpaint.inpaint).parameters["max_pixels"].default


@dataclass(frozen=True)
class Workshop:
    """All that jobs work with.

    Args:
        pipe, model: the model, and the word by which the command line names it.
        computing: the words of a command line that say how it computes.
        store, limits: where files are, and what may be asked for.
        out: the folder where results are saved, if any.
        folder: the folder of pictures, if any.
    """

    pipe: Pipeline
    model: str
    store: Store
    limits: Limits
    computing: tuple[str, ...] = ()
    out: Path | None = None
    folder: Path | None = None

    def fill(self, page: str, image: Item, mask: Item | None, given: Mapping[str, Any]) -> Job:
        """Return the job that fills in a picture, where a mask is white or, without one, where it is transparent.

        Raises:
            UsageError: wrong options.
        """
        options = self.checked_filling(given)
        filling, reading = _of(options, FILLING), _of(options, READING)
        methods.choose(self.pipe.config.diffusion, self.pipe.denoiser.schedule, _choice(filling))
        conditions.class_number(filling.get("label"), self.pipe.class_names)
        if mask is None:
            reading = {name: value for name, value in reading.items() if name in ("grow", "shrink", "feather")}

        def run(job: Job) -> None:
            with _plainly(image, mask):
                masked = part.read(image.path, mask and mask.path, max_pixels=self.limits.max_pixels, **reading)
                job.said = [as_typed(named(line, image, mask)) for line in masked.said]
                filled = self.pipe.inpaint(masked, on_step=job.on_step, **filling)
            suffix = (outputs.held_by(image.path) or (".png",))[0]
            stem = Path(image.name).stem if image.name else "picture"
            for number, picture in enumerate(filled):
                end = "" if len(filled) == 1 else f"-{number}"
                about = {"range": image.about.get("range"), "mask": image.about["mask"]}
                self._keep(job, number, picture, f"{stem}-filled{end}{suffix}", **about)

        words = [
            IMAGE,
            *(() if mask is None else ("--mask", MASK)),
            "--out",
            OUT,
            *_words(inpaint.inpaint, filling | reading),
        ]
        if self.limits.max_pixels > USUAL_PIXELS:
            words += ["--max-pixels", str(self.limits.max_pixels)]
        about = {"image": image.id, "mask": mask and mask.id, "options": dict(given)}
        return self._job("fill", page, run, ["inpaint", self.model, *words], about, image, mask)

    def generate(self, page: str, given: Mapping[str, Any]) -> Job:
        """Return the job that generates pictures. Raises UsageError for wrong options."""
        options = self._checked(sample.sample, given, GENERATING)
        num, seed, label = options.get("num", 16), options.get("seed", 0), options.get("label")
        sampling = shared.Sampling(**_of(options, [name for name in GENERATING if name in vars(shared.Sampling())]))
        conditions.class_number(label, self.pipe.class_names)
        keywords = shared.for_pipeline(sampling, self.pipe)

        def run(job: Job) -> None:
            made = self.pipe.stream(num, seed=seed, labels=label, on_step=job.on_step, **keywords)
            for number, picture in enumerate(made):
                self._keep(job, number, picture, f"{picture.name}.png")

        command = ["sample", self.model, "--out", OUT, *_words(sample.sample, options)]
        return self._job("generate", page, run, command, {"options": dict(given)})

    def fill_folder(self, mask: Item, given: Mapping[str, Any]) -> Job:
        """Return the job that fills in all pictures of the folder with one mask, and goes on without a page.

        Raises:
            UsageError: wrong options, or no folder to read or to write.
        """
        if self.folder is None or self.out is None:
            raise UsageError("all pictures of a folder are filled where the command names it, and --out another")
        options = self.checked_filling(given) | {"num": 1}
        folder, out = self.folder, self.out
        methods.choose(self.pipe.config.diffusion, self.pipe.denoiser.schedule, _choice(options))

        def run(job: Job) -> None:
            # The very same as of the command line, so that either goes on with what the other has begun.
            defaults = {name: parameter.default for name, parameter in _optional(inpaint.inpaint).items()}
            made_by = records.asked(defaults | options, *inpaint.UNSEEN) | {
                "command": "inpaint", "model": records.fingerprint(self.pipe), "precision": self.pipe.how.precision
            }  # fmt: skip
            jobs = inpaint.jobs_of((folder,), mask.path, out, False, 1, True)
            job.files = {"total": len(jobs), "done": 0, "failed": 0}
            job.changed(job)

            @contextlib.contextmanager
            def watching(path: Path) -> Iterator[OnStep]:
                yield job.on_step
                assert job.files is not None
                job.files["done"] += 1
                job.changed(job)

            reading: Any = _of(options, READING) | {"max_pixels": self.limits.max_pixels}
            filling = {name: defaults[name] for name in FILLING} | _of(options, FILLING)
            with _plainly(None, mask):
                failed = inpaint.fill_each(
                    self.pipe, jobs, reading, filling, records.Record(out, made_by), watching, resume=True
                )
            job.files |= {"failed": len(failed), "done": len(jobs) - len(failed)}
            if failed:
                raise DataError(f"{len(failed)} of {len(jobs)} pictures could not be filled: {', '.join(failed[:5])}")

        words = [str(folder), "--mask", MASK, "--out", str(out), *_words(inpaint.inpaint, options)]
        about = {"mask": mask.id, "options": dict(given)}
        return self._job("folder", None, run, ["inpaint", self.model, *words], about, mask)

    def save(self, result: Item) -> str:
        """Copy a result into the folder of --out, under its name or the next that is free; return the name.

        Raises:
            UsageError: there is no --out.
            ResourceError: it cannot be written.
        """
        if self.out is None:
            raise UsageError("nothing is saved here: the command names no --out")
        name = Path(result.name or "picture.png")
        number = 1
        while True:
            target = self.out / (f"{name.stem}-{number}{name.suffix}" if number > 1 else name.name)
            number += 1
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file, result.path.open("rb") as source:
                    shutil.copyfileobj(source, file)
                return target.name
            except FileExistsError:
                continue
            except OSError as error:
                with contextlib.suppress(OSError):
                    target.unlink(missing_ok=True)
                raise ResourceError(f"{target} cannot be written: {error.strerror}; make room") from None

    def checked_filling(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return options of filling in, checked as the command checks them. Raises UsageError."""
        return self._checked(inpaint.inpaint, given, FILLING + READING)

    def _checked(
        self, command: Callable[..., None], given: Mapping[str, Any], names: tuple[str, ...]
    ) -> dict[str, Any]:
        if others := [name for name in given if name not in names]:
            raise UsageError(f"there is no option {others[0]!r} here")
        options = arguments.checked(command, {name: value for name, value in given.items() if value is not None})
        most = self.limits.max_generated if command is sample.sample else self.limits.max_fillings
        if options.get("num", 1) > most:
            raise UsageError(f"--num is at most {most} here, not {options['num']}")
        return options

    def _keep(self, job: Job, number: int, picture: Any, name: str, **about: Any) -> None:
        """Write a result as a command does, and tell of it."""
        path = self.store.new_path(Path(name).suffix)
        images.save(picture, path)
        item = self.store.add("result", path, name, width=picture.width, height=picture.height, **about)
        result = {"id": item.id, "number": number, "name": name, "width": picture.width, "height": picture.height}
        job.results.append(result)
        job.changed(job)

    def _job(
        self, kind: str, page: str | None, run: Callable[[Job], None], command: list[str], about: dict[str, Any],
        *items: Item | None,
    ) -> Job:  # fmt: skip
        """Return a job that keeps the items that it needs until it has ended."""
        self.store.hold(*items)
        words = ["diffunet", *command, *self.computing]
        return Job(kind, page, run, words, about, ended=lambda: self.store.release(*items))


def _optional(command: Callable[..., None]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a command that have a default, by name."""
    parameters = inspect.signature(command).parameters
    return {name: each for name, each in parameters.items() if each.default is not inspect.Parameter.empty}


def _of(options: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _choice(options: Mapping[str, Any]) -> methods.Choice:
    return methods.Choice(**{"method": "auto"} | _of(options, ("method", "steps", "jump_length", "jump_n_sample")))


def _words(command: Callable[..., None], options: Mapping[str, Any]) -> list[str]:
    """Return options as they are typed after a command, but those that have their default there."""
    words = list[str]()
    usual = vars(shared.Sampling()) | {name: each.default for name, each in _optional(command).items()}
    for name, value in options.items():
        if value is None or value == usual[name]:
            continue
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif isinstance(value, tuple):
            words += [option, *map(str, value)]
        elif (text := str(value)).startswith("-"):  # a number below 0 or a class of such a name, which is no option
            words.append(f"{option}={text}")
        else:
            words += [option, text]
    return words


def named(line: str, image: Item | None, mask: Item | None) -> str:
    """Return a line with what a person calls the files, in place of where they are here."""
    for item, name in ((mask, "the mask"), (image, (image and image.name) or "the picture")):
        if item is not None:
            line = line.replace(f"mask {item.path}", name).replace(str(item.path), name)
    return line


@contextlib.contextmanager
def _plainly(image: Item | None, mask: Item | None) -> Iterator[None]:
    """Have errors name the files as a person does, and options as they are typed."""
    try:
        yield
    except Error as error:
        raise type(error)(as_typed(named(str(error), image, mask))) from None
