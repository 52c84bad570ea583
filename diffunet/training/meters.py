"""What training measures from one line of metrics.jsonl to the next, and the file which that is written to."""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffunet import files
from diffunet.compute import Compute
from diffunet.diffusion.noise_levels import NOISE
from diffunet.errors import ResourceError
from diffunet.training.learner import Outcome
from diffunet.training.tracking import Trackers

COUNTERS = ("skipped", "streak", "overflows")
"""Optimizer steps which were skipped for lack of a finite loss and gradient: those of the whole run, and those in a row
up to now; and steps which were skipped because float16's loss scale was too large."""


class Meters:
    """Counts the outcomes of optimizer steps on the device, so that nobody waits.

    Args:
        counters: the counts of `COUNTERS` in the checkpoint that the run goes on from; a missing one is 0.
        how, batch_size: how to compute, and the images of an optimizer step, of all processes.
    """

    def __init__(self, counters: Mapping[str, int], how: Compute, batch_size: int) -> None:
        self.batch_size, self.with_overflows = batch_size, how.precision == "fp16"
        self.counted = {name: torch.tensor(float(counters.get(name, 0)), device=how.device) for name in COUNTERS}
        self._longest = self.counted["streak"].clone()  # the longest streak since the last report
        self._window = torch.zeros(3, device=how.device)  # sums of loss and gradient norm, and the number of good steps
        self._by_noise = torch.zeros(2, len(NOISE) + 1, device=how.device)
        self._steps, self._began = 0, time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """Count one step; nothing waits for the device."""
        loss, norm, bad, overflow, by_noise = outcome
        counted, skipped = self.counted, bad + overflow
        counted["skipped"] += bad
        counted["overflows"] += overflow
        counted["streak"] = (counted["streak"] + bad) * torch.where(overflow > 0, 1.0, bad)
        self._longest = torch.maximum(self._longest, counted["streak"])
        self._window += torch.where(skipped > 0, 0.0, torch.stack([loss, norm, torch.ones_like(norm)]))
        self._by_noise += torch.where(skipped > 0, 0.0, by_noise)
        self._steps += 1

    def report(self, processes: Accelerator) -> tuple[dict[str, Any], int]:
        """Return the metrics of the steps since the last report, and the longest streak of skipped steps among them.

        All processes call it together. The means are over the steps that were not skipped, NaN where there are none.
        """
        loss, norm, good = processes.reduce(self._window).tolist()
        losses, counts = processes.reduce(self._by_noise).tolist()
        metrics: dict[str, Any] = {
            "loss": loss / (good / processes.num_processes) if good else math.nan,
            "grad_norm": norm / good if good else math.nan,
            "images_per_second": self._steps * self.batch_size / (time.monotonic() - self._began),
            "skipped": int(self.counted["skipped"].item()),
            "loss_by_noise": [each / count if count else math.nan for each, count in zip(losses, counts, strict=True)],
        }
        if self.with_overflows:
            metrics["overflows"] = int(self.counted["overflows"].item())
        longest = int(self._longest.item())
        self._longest = self.counted["streak"].clone()
        self._window.zero_()
        self._by_noise.zero_()
        self._steps, self._began = 0, time.monotonic()
        return metrics, longest

    def state(self) -> dict[str, int]:
        """Return the counts for a checkpoint; this waits for the device."""
        return {name: int(number.item()) for name, number in self.counted.items()}


class Record:
    """Writes RUN/metrics.jsonl (one JSON object a line) on the main process.

    Args:
        run, step: the run folder, and the step that the run goes on from; lines for later steps are deleted.
        trackers: note what is written, if there are any.

    `validated` is the step of the newest validation loss that the run goes on with, 0 where there is none.
    """

    def __init__(self, run: Path, step: int, trackers: Trackers | None = None) -> None:
        self.path, self.trackers, self.validated = run / "metrics.jsonl", trackers, 0
        if self.path.exists():
            self._truncate(step)
        self._metrics = self.path.open("a", encoding="utf-8", newline="\n")

    def _truncate(self, step: int) -> None:
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # a crash left half a line
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("step", 0) <= step:
                    kept.append(line + "\n")
                    self.validated = entry.get("step", 0) if "validation_loss" in entry else self.validated
        files.write_atomic(self.path, "".join(kept))

    def metrics(self, step: int, **values: float | list[float]) -> None:
        """Write a line of numbers and lists of them; numbers that are not finite are written as null."""
        finite = {
            name: [_finite(each) for each in value] if isinstance(value, list) else _finite(value)
            for name, value in values.items()
        }
        try:
            self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise ResourceError(
                f"{self.path} takes no more lines: {error.strerror or error}; make room and use "
                "--resume: checkpoints are whole"
            ) from None
        if self.trackers is not None:
            self.trackers.note(step, values)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a full disk, which `metrics` has reported already
            self._metrics.close()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
