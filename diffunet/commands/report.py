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
from diffunet.errors import Error, ResourceError, UsageError

if TYPE_CHECKING:
    from diffunet.evaluation.run_page import Fillings
    from diffunet.evaluation.run_reading import Reading


def report(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")], /, *, out: Path | None = None,
    overwrite: Overwrite = False, open: bool = False, computing: OmitArgPrefixes[Computing],
) -> None:  # fmt: skip
    """Write a report of a run as one HTML file: state, previews, curves, images, options; of several runs together.

    Training writes RUN/report.html with every preview. This command writes it anew, and fills in a held-out image for
    each kind of mask where the model has learned to inpaint. The file asks for nothing outside itself.

    Example: diffunet report runs/photos --open

    Example: diffunet report runs/photos runs/other --out both.html

    Args:
        runs: Run folders; of several the curves lie over each other.
        out: The file, such as both.html; RUN/report.html if not given and there is one run.
        overwrite: Replace the file that --out names.
        open: Open the report in the browser.
        computing: These options decide where and how the net computes that fills in.
    """
    from diffunet.evaluation import run_page, run_reading

    path = _path(runs, out, overwrite)
    found = [run_reading.read(folder) for folder in runs]
    filled = {run.folder: _fillings(run, computing) for run in found if _inpaints(run)}
    try:
        run_page.write(found, path, filled)
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


def _fillings(run: Reading, computing: Computing) -> Fillings | str:
    """Return held-out images filled in by the model of a run, or why there are none."""
    from diffunet.evaluation.fillings import fillings
    from diffunet.evaluation.run_reading import text

    data = text(run.begun.get("data_path"))
    if not data:
        return "There are none, since the run does not say where its images are: it is of an earlier version."
    try:
        pipe = options.load(str(run.folder), computing)
        with progress("filling in") as show, _quietly():
            return fillings(pipe, Path(data), on_step=show)
    except Error as error:
        say(f"no images are filled in: {error}")
        return f"There are none: {error}"
