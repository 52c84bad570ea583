"""Averages stored along a run, and any other put together from them afterwards (Karras et al. 2024; see ema.py).

RUN/ema/step-00001000-0.050.safetensors is the power average of relative width 0.05 after step 1000, in float16,
which takes half the disk: a relative error of 2e-4 in the weights.
"""

from __future__ import annotations

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
"""Limits for what is put together: of the error of its power function, and of the norm of the coefficients, by which
float16's rounding is multiplied. 16 pairs give widths from 0.022 to 0.257."""


@dataclass(frozen=True)
class Snapshot:
    """A stored average: its file, the step that it was written after, relative width, updates averaged over, hash."""

    path: Path
    step: int
    width: float
    updates: int
    sha256: str


def write(run: Path, step: int, averages: Sequence[Average]) -> None:
    """Store the averages after a step.

    Raises:
        ResourceError: where the disk does not take it; what was there before is whole.
    """
    for average in averages:
        path = run / "ema" / f"step-{step:08d}-{average.name}.safetensors"
        weights = {name: tensor.half().cpu() for name, tensor in average.net.state_dict().items()}
        needed = storage.size(sum(tensor.nbytes for tensor in weights.values()))
        about = {"step": step, "updates": average.updates, "sha256": _digest(weights)}
        try:  # one name: safetensors writes several in any order, and a resumed run writes the same bytes
            storage.write_tensors(path, weights, {"average": json.dumps(about)})
        except OSError as error:
            raise ResourceError(
                f"the average {path} ({needed}) could not be written: {error.strerror or error}; make room and use "
                "--resume, with --train.ema-every 0 if you do without: checkpoints are whole"
            ) from None


def only_where_kept(config: Config, checkpoint: Path) -> Config:
    """`config` without stored averages where the checkpoint to go on from has none, as one of an earlier diffunet.

    The average of a power function starts with a run: it cannot be begun in the middle.
    """
    if config.train.ema_every == 0 or (checkpoint / POWER).is_file():
        return config
    log.info("this run goes on without stored averages (train.ema_every 0): its checkpoint has none to go on with")
    return config.changed("train", ema_every=0)


def forget_after(run: Path, step: int) -> None:
    """Delete what was stored after the step that a run goes on from, and what a crash left: it is written anew."""
    files.sweep(run / "ema")
    for path in (run / "ema").glob("step-*.safetensors"):
        if (named := _name(path)) is not None and named[0] > step:
            path.unlink()


def thin(run: Path, every: int) -> None:
    """Delete what was stored between the multiples of `every`, which a run that is made longer has no room for."""
    between = [path for path in (run / "ema").glob("step-*.safetensors") if (n := _name(path)) and n[0] % every]
    for path in between:
        path.unlink()
    if between:
        log.info("stored averages are now %d steps apart: %d files between them are deleted", every, len(between))


def find(run: Path) -> list[Snapshot]:
    """The stored averages of a run, by step and width.

    Raises:
        CheckpointError: for a file that cannot be read, or a folder without any, saying why.
    """
    config = storage.run_config(run)
    found = []
    for path in sorted((run / "ema").glob("step-*.safetensors")):
        if (named := _name(path)) is not None:
            found.append(Snapshot(path, *named, **_about(path)))
    if not found:
        every = config.train.ema_every
        why = f"the first comes after step {every}" if every else "it was trained without (train.ema_every)"
        raise CheckpointError(
            f"{run} has no stored averages, from which --ema puts one together: {why}; see diffunet train --help"
        )
    return found


def put_together(
    run: Path, width: float, step: int | None = None, on_step: Callable[[int, int], None] | None = None
) -> tuple[Config, dict[str, Tensor], int]:
    """The average of a relative width after `step`, or the last that is stored, from what was stored up to it.

    One file is in memory at a time, beside the sum in float64.

    Args:
        on_step: told (files read, files).

    Returns:
        The run's config, the weights (float32), the step.

    Raises:
        UsageError: for a step that none is stored of, and a width that these cannot give, saying which they can.
        CheckpointError: no run folder, nothing stored in it, or a damaged file, named.
    """
    found = find(run)
    steps = sorted({each.step for each in found})
    if step is None:
        step = steps[-1]
    if step not in steps:
        shown = ", ".join(map(str, steps)) if len(steps) < 20 else f"{steps[0]}, {steps[1]} ... {steps[-1]}"
        raise UsageError(f"no average is stored of step {step} in {run}; there are {shown}")
    # Steps that were all skipped store the same again, or before the first update nothing.
    stored = {(each.updates, each.width): each for each in found if each.step <= step and each.updates}
    if not stored:
        raise CheckpointError(f"all steps of {run} up to {step} were skipped: there is nothing to average")
    updates = max(each.updates for each in found if each.step == step)
    coefficients = _coefficients(list(stored), updates, width)

    config = storage.run_config(run)
    with torch.device("meta"):
        like = build.net(config).state_dict()
    total = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in like.items()}
    used = [(each, float(c)) for each, c in zip(stored.values(), coefficients, strict=True) if c]
    for number, (each, coefficient) in enumerate(used):
        for name, tensor in _read(each, like).items():
            total[name].add_(tensor, alpha=coefficient)
        if on_step is not None:
            on_step(number + 1, len(used))
    return config, {name: tensor.to(like[name].dtype) for name, tensor in total.items()}, step


def _coefficients(stored: Sequence[tuple[int, float]], updates: int, width: float) -> NDArray[np.float64]:
    """As `posthoc`, for a width that `stored` gives well.

    Raises:
        UsageError: with the widths that they do give.
    """
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


def _name(path: Path) -> tuple[int, float] | None:
    """Step and width by a file's name."""
    match = re.fullmatch(r"step-(\d{8,12})-(0\.\d{3})\.safetensors", path.name)
    return None if match is None else (int(match[1]), float(match[2]))


def _about(path: Path) -> dict[str, Any]:
    """What the header of a file says, beside what its name does."""
    try:
        about = json.loads(storage.read_metadata(path)["average"])
        return {"updates": int(about["updates"]), "sha256": str(about["sha256"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is not a stored average: delete it, and --ema does without") from None


def _read(stored: Snapshot, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights, _ = storage.read_tensors(stored.path, {name: tensor.half() for name, tensor in like.items()})
    if _digest(weights) != stored.sha256:
        raise CheckpointError(f"{stored.path} is damaged (its hash differs): delete it, and --ema does without")
    return weights


def _digest(weights: Mapping[str, Tensor]) -> str:
    """sha256 of the numbers, in the order of their names."""
    hashed = hashlib.sha256()
    for _, tensor in sorted(weights.items()):
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
