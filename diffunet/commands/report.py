"""`diffunet report` writes the report of a run, or of several runs beside each other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from diffunet.commands import options, outputs, viewer
from diffunet.commands.options import Computing, Overwrite
from diffunet.commands.progress import progress, say, tell
from diffunet.errors import DataError, Error, ResourceError, UsageError

if TYPE_CHECKING:
    from diffunet.evaluation.run_reading import Reading


def report(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")], /, *, out: Path | None = None,
    overwrite: Overwrite = False, data: Path | None = None, open: bool = False,
    computing: OmitArgPrefixes[Computing],
) -> None:  # fmt: skip
    """Write a report of a run as one HTML file: state, previews, curves, images, options; of several runs together.

    Training writes RUN/report.html with every preview. This command writes it anew, and fills in a held-out image for
    each kind of mask where the model has learned to inpaint; RUN/fillings keeps these for later reports. The file asks
    for nothing outside itself.

    Example: diffunet report runs/photos --open

    Example: diffunet report runs/photos runs/other --out both.html

    Args:
        runs: Run folders. The curves of several lie over each other.
        out: File to write, such as both.html. If not given, it is RUN/report.html of the one run.
        overwrite: Replace the file that --out names.
        data: Where the images of the run are now, if they have moved since it was trained.
        open: Open the report in the browser.
    """
    from diffunet.evaluation import run_page, run_reading

    path = _path(runs, out, overwrite)
    if data is not None and len(runs) > 1:
        raise UsageError("--data is where the images of one run are: report on that run alone, and then on all of them")
    filling = [run for run in [run_reading.read(folder) for folder in runs] if _inpaints(run)]
    if data is not None and not filling:
        raise UsageError(f"--data is for a run that has learned to inpaint, which {runs[0]} has not")
    unfilled = {}
    for run in filling:
        if reason := _fill(run, data, computing):
            say(f"no images are filled in: {reason}")
            unfilled[run.folder] = reason
    try:
        run_page.write([run_reading.read(folder) for folder in runs], path, unfilled)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}") from None
    tell(str(path))
    if open:
        viewer.show(path)


def _path(runs: Sequence[Path], out: Path | None, overwrite: bool) -> Path:
    """Return the file to write, once it is known that it may be written."""
    from diffunet.evaluation import run_page

    if not runs:
        raise UsageError("name a run folder, such as: diffunet report runs/photos")
    if len(runs) > run_page.MOST:
        raise UsageError(f"a report has room for {run_page.MOST} runs, not {len(runs)}")
    if len({folder.absolute() for folder in runs}) < len(runs):
        raise UsageError("a run is named twice")
    if out is None:
        if len(runs) > 1:
            raise UsageError("of several runs --out says where the report goes, such as --out both.html")
        return runs[0] / run_page.NAME
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: a report is an HTML file; give it a name that ends in .html")
    outputs.claim(out, file=True, overwrite=overwrite)
    return out


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Leave out what is told of every filling alike."""
    logger = logging.getLogger("diffunet.sampling")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _inpaints(run: Reading) -> bool:
    return run.config is not None and run.config.diffusion.task == "inpaint"


def _fill(run: Reading, data: Path | None, computing: Computing) -> str | None:
    """Keep held-out images, filled in by the model of a run, in its folder; return why that cannot be, or None."""
    from diffunet import storage
    from diffunet.evaluation import fillings
    from diffunet.evaluation.run_reading import text

    folder = data or text(run.begun.get("data_path"))
    if not folder:
        return "the run does not say where its images are, being of an earlier version: --data says it"
    try:
        fillings.make_room(run.folder)
        step = storage.weights_step(storage.find_model(run.folder)) or 0  # before the weights, which may be newer then
        pipe = options.load(str(run.folder), computing)
        with progress("filling in") as show, _quietly():
            rows = fillings.fillings(pipe, Path(folder), on_step=show)
        fillings.keep(run.folder, rows, step)
    except DataError as error:
        if data is not None:
            raise
        return f"{error}; if its images have moved, --data says where they are"
    except (Error, OSError) as error:
        return str(error)
    return None
