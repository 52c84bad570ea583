"""What a run records about itself: metrics.jsonl, curves for tensorboard, and status.json."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from diffunet import files
from diffunet.errors import ResourceError


def write_status(run: Path, state: str, step: int | None, **values: Any) -> None:
    """Write RUN/status.json; `state` is starting, running, done, stopped, diverged or failed."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    content = {"state": state, "step": step, **values, "pid": os.getpid(), "time": now}
    files.write_atomic(run / "status.json", json.dumps(content, indent=1))


class Record:
    """Writes RUN/metrics.jsonl (one JSON object a line), RUN/tensorboard and RUN/status.json, on the main process.

    Args:
        run: the run folder.
        step: the step that the run goes on from; lines of metrics.jsonl for later steps are deleted.
        tensorboard: whether to write curves for tensorboard, where it is installed.
    """

    def __init__(self, run: Path, step: int, tensorboard: bool) -> None:
        self.run = run
        self._truncate(step)
        self._metrics = (run / "metrics.jsonl").open("a", encoding="utf-8", newline="\n")
        self._curves: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._curves = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def _truncate(self, step: int) -> None:
        path = self.run / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a crash left half a line
            if isinstance(entry, dict) and entry.get("step", 0) <= step:
                kept.append(line + "\n")
        files.write_atomic(path, "".join(kept))

    def metrics(self, step: int, **values: float) -> None:
        """Write a line of numbers; those which are not finite are written as null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._metrics.write(json.dumps({"step": step, **finite}) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise ResourceError(
                f"{self.run / 'metrics.jsonl'} takes no more lines: {error.strerror or error}; make room and use "
                "--resume: checkpoints are whole"
            ) from None
        if self._curves is not None:
            for name, value in values.items():
                self._curves.add_scalar(name, value, step)

    def status(self, state: str, step: int, **values: Any) -> None:
        """Write RUN/status.json, see `write_status`."""
        write_status(self.run, state, step, **values)

    def close(self) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):  # a full disk, which `metrics` has reported already
            self._metrics.close()
        with contextlib.suppress(OSError):
            if self._curves is not None:
                self._curves.close()
