"""Averages that are stored along a run, and others put together from them afterwards (Karras et al. 2024; see ema.py).

RUN/ema/step-00001000-0.050.safetensors is the power average of relative width 0.05 after step 1000. It is in float16,
which takes half the disk and has a relative error of 2e-4 in the weights.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffunet import build, files, storage
from diffunet.config import Config
from diffunet.errors import CheckpointError, ResourceError, UsageError
from diffunet.training.checkpoint import POWER
from diffunet.training.ema import WIDEST, Average, mismatch, posthoc

log = logging.getLogger(__name__)

MISMATCH, AMPLIFIED = 0.1, 16.0
"""The largest `mismatch` of an average that is put together, and the largest norm of its coefficients, which multiply
the rounding of float16. With these limits 16 pairs of averages give widths from 0.022 to 0.257."""


@dataclass(frozen=True)
class Snapshot:
    """A stored average: its file, the step after which it was written, its relative width, its updates and its hash."""

    path: Path
    step: int
    width: float
    updates: int
    sha256: str


def write(run: Path, step: int, averages: Sequence[Average]) -> None:
    """Store the averages after a step; raise ResourceError if the disk does not take them."""
    for average in averages:
        path = run / "ema" / f"step-{step:08d}-{average.name}.safetensors"
        tensors = average.net.state_dict()
        weights = {name: (t.half() if t.is_floating_point() else t).cpu() for name, t in tensors.items()}
        needed = storage.size(sum(tensor.nbytes for tensor in weights.values()))
        about = {"step": step, "updates": average.time, "sha256": _digest(weights)}
        try:  # one key alone, as safetensors writes several in any order and a resumed run has to write the same bytes
            storage.write_tensors(path, weights, {"average": json.dumps(about)})
        except OSError as error:
            raise ResourceError(
                f"the average {path} ({needed}) could not be written: {error.strerror or error}; make room and use "
                "--resume, with --train.ema-every 0 if you do without: checkpoints are whole"
            ) from None


def only_where_kept(config: Config, checkpoint: Path) -> Config:
    """Return `config` without stored averages if the checkpoint to go on from has none, as those of diffunet 0.1."""
    # The average by a power function starts with the run and cannot be begun in the middle.
    if config.train.ema_every == 0 or (checkpoint / POWER).is_file():
        return config
    log.info("this run goes on without stored averages (train.ema_every 0): its checkpoint has none to go on with")
    return config.changed("train", ema_every=0)


def forget_after(run: Path, step: int) -> None:
    """Delete averages of steps after the one that a run goes on from, and what a crash has left behind."""
    files.sweep(run / "ema")
    for path, written, _ in _named(run):
        if written > step:
            path.unlink()


def thin(run: Path, every: int) -> None:
    """Delete averages between the multiples of `every`, for which a run that is made longer has no room."""
    between = [path for path, step, _ in _named(run) if step % every]
    for path in between:
        path.unlink()
    if between:
        log.info("stored averages are now %d steps apart: %d files between them are deleted", every, len(between))


def find(run: Path) -> list[Snapshot]:
    """Return the stored averages of a run by step and width; raise CheckpointError for none, or a file that is bad."""
    every = storage.run_config(run).train.ema_every
    stored = [Snapshot(path, step, width, **_about(path)) for path, step, width in _named(run)]
    if not stored:
        why = f"the first comes after step {every}" if every else "it was trained without (train.ema_every)"
        raise CheckpointError(
            f"{run} has no stored averages, from which --ema puts one together: {why}; see diffunet train --help train"
        )
    return stored


def put_together(
    run: Path, width: float, step: int | None = None, on_step: Callable[[int, int], None] | None = None
) -> tuple[Config, dict[str, Tensor], int]:
    """Return the config, weights in float32, and the step of an average put together from those stored up to a step.

    Args:
        run, width: the run folder, and the relative width.
        step: the step after which the average is taken; the last one with stored averages by default.
        on_step: called with (files that are read, files in all).

    Raises:
        UsageError: no average is stored after this step, or those which are stored cannot give this width.
        CheckpointError: this is no run folder, nothing is stored in it, or a file is damaged.
    """
    averages = find(run)
    steps = sorted({average.step for average in averages})
    step = steps[-1] if step is None else step
    if step not in steps:
        shown = ", ".join(map(str, steps)) if len(steps) < 20 else f"{steps[0]}, {steps[1]} ... {steps[-1]}"
        raise UsageError(f"no average is stored of step {step} in {run}; there are {shown}")
    # In diffunet 0.1 skipped steps were no updates: of averages with as many updates one will do, and 0 is no average.
    stored = {(one.updates, one.width): one for one in averages if one.step <= step and one.updates}
    if not stored:
        raise CheckpointError(f"all steps of {run} up to {step} were skipped: there is nothing to average")
    updates = max(average.updates for average in averages if average.step == step)
    coefficients = _coefficients(list(stored), updates, width)

    config = storage.run_config(run)
    with torch.device("meta"):
        like = build.net(config).state_dict()
    total = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in like.items()}
    used = [(average, float(c)) for average, c in zip(stored.values(), coefficients, strict=True) if c]
    for number, (average, coefficient) in enumerate(used):  # one file is in memory at a time, beside the sum
        weights, _ = storage.read_tensors(average.path, {name: tensor.half() for name, tensor in like.items()})
        if _digest(weights) != average.sha256:
            raise CheckpointError(f"{average.path} is damaged (its hash differs): delete it, and --ema does without")
        for name, tensor in weights.items():
            total[name].add_(tensor, alpha=coefficient)
        if on_step is not None:
            on_step(number + 1, len(used))
    return config, {name: tensor.to(like[name].dtype) for name, tensor in total.items()}, step


def _coefficients(stored: Sequence[tuple[int, float]], updates: int, width: float) -> NDArray[np.float64]:
    """Return the coefficients of `posthoc`; raise UsageError for a width that the stored averages do not give well."""
    if 0 < width <= WIDEST and (good := _good(stored, updates, width)) is not None:
        return good
    can = [k / 1000 for k in range(1, 289) if _good(stored, updates, k / 1000) is not None]
    raise UsageError(
        f"--ema {width:g} is not a relative width that the {len(stored)} stored averages give; they give {can[0]:.3f} "
        f"to {can[-1]:.3f} (more of them give more: train.ema_every; above {WIDEST:.3f} none is a power function)"
    )


def _good(stored: Sequence[tuple[int, float]], updates: int, width: float) -> NDArray[np.float64] | None:
    coefficients = posthoc(stored, updates, width)
    close = mismatch(stored, coefficients, updates, width) <= MISMATCH
    return coefficients if close and np.linalg.norm(coefficients) <= AMPLIFIED else None


def _named(run: Path) -> list[tuple[Path, int, float]]:
    """Return the files of stored averages in the order of their names, with the step and the width in each name."""
    paths = sorted((run / "ema").glob("step-*.safetensors"))
    matches = [(path, re.fullmatch(r"step-(\d{8,12})-(0\.\d{3})\.safetensors", path.name)) for path in paths]
    return [(path, int(match[1]), float(match[2])) for path, match in matches if match]


def _about(path: Path) -> dict[str, Any]:
    """Return the updates and the hash of an average, which are in the header of its file."""
    try:
        about = json.loads(storage.read_header(path)[1]["average"])
        return {"updates": int(about["updates"]), "sha256": str(about["sha256"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is not a stored average: delete it, and --ema does without") from None


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the weights in the order of their names."""
    hashed = hashlib.sha256()
    for _, tensor in sorted(weights.items()):
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
