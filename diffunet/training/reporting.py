"""What a run notes for its report when it begins, and RUN/report.html, which is written anew with every preview.

All of it is for people: none of it draws a random number that training would, and where it fails training goes on.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffunet import files
from diffunet.data import summary, warp
from diffunet.evaluation import run_page, run_reading
from diffunet.pictures import images
from diffunet.pictures.images import Pixels
from diffunet.training.batches import Batch, Batches

if TYPE_CHECKING:
    from diffunet.training.run import Run

log = logging.getLogger(__name__)

SHOWN = 36
"""The images of RUN/images.png."""

HOLE, HOLE_SHARE = (214, 40, 120), 0.75
"""The colour, RGB, that lies over what is hole in RUN/images.png, and how much of each pixel is that colour."""

COST = 0.01
"""The most of the time of training that the report may take: where the last one took long, the next ones wait."""


class Reports:
    """Writes the report of a run, on its main process; an error is said once, and ends nothing.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._said = folder, False
        self._took, self._written = 0.0, time.monotonic()

    def begin(self, run: "Run", batches: Batches, data: Path) -> None:
        """Note what the run, or this part of it, begins with: RUN/begun.json and RUN/images.png."""
        with self._spared():
            content = {
                "version": run_reading.VERSION, "data": str(data), "data_path": str(data.absolute()),
                "environment": run.environment(),
                "images": summary.summary(run.dataset, run.split, run.classes),
            }  # fmt: skip
            files.write_atomic(self.folder / run_reading.BEGUN, json.dumps(content, indent=1))
            images.save(images.grid(seen(batches, run.how.device), 6), self.folder / run_reading.IMAGES)

    def write(self) -> None:
        """Write RUN/report.html, unless that would take more than `COST` of the time since it was written last."""
        if COST * (time.monotonic() - self._written) >= self._took:
            self._write()

    def end(self) -> None:
        """Write it once more, with how the run has ended, if it was written before."""
        if (self.folder / run_page.NAME).exists():
            self._write()

    def _write(self) -> None:
        began = time.monotonic()
        with self._spared():
            run_page.write([run_reading.read(self.folder)], self.folder / run_page.NAME)
        self._written = time.monotonic()
        self._took = self._written - began

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, it is no reason to lose a step
            if not self._said:
                self._said = True
                log.warning("the report in %s is not written, training goes on: %s", self.folder, error)


def seen(batches: Batches, device: torch.device, many: int = SHOWN) -> list[Pixels]:
    """Return the images of the first steps of a run as the net sees them, uint8 [H W C] each, `many` at most.

    They are cropped, mirrored and augmented as in training; where the net learns to inpaint, what is hole is coloured.
    """
    found, step = list[Pixels](), 0
    while len(found) < min(many, len(batches.chosen)):
        for batch in batches.step(step):
            found += _pictures(batch.to(device))
        step += 1
    return found[:many]


def _pictures(batch: Batch) -> list[Pixels]:
    pixels = batch.images.cpu().numpy()
    if batch.augment is not None:
        pixels = images.to_uint8(warp.warp(images.to_float(batch.images), batch.augment))
    if batch.keep is None:
        return list(pixels)
    if pixels.shape[3] == 1:
        pixels = pixels.repeat(3, axis=3)
    colour = np.array([*HOLE, 255][: pixels.shape[3]])
    covered = (HOLE_SHARE * colour + (1 - HOLE_SHARE) * pixels).astype(np.uint8)
    return list(np.where(batch.keep.cpu().numpy().transpose(0, 2, 3, 1), pixels, covered))
