"""A run's checkpoints: a crash at any instant leaves the one before, and none is trusted without a look.

RUN/checkpoints/step-00010000/ holds model, ema and optimizer .safetensors and state.json, power.safetensors where a run
keeps averages for `convert --ema`, and manifest.json with the sizes and hashes of these, written last.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffunet import files, storage
from diffunet.errors import CheckpointError, ResourceError

log = logging.getLogger(__name__)

STATE, MANIFEST = "state.json", "manifest.json"

NAMES = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", STATE}

POWER = "power.safetensors"
"""Only of a run that stores averages."""

VERSION = 1
"""Of a checkpoint. A later one is refused by its number, and an earlier one loads for ever."""


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def save(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint: `tensors` by file name ("model", "ema", "optimizer", "power") and `state`, plain values.

    Raises:
        ResourceError: where the disk does not take it; what was there before is whole.
    """
    target = folder_of(run, step)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    needed = storage.size(sum(tensor.nbytes for part in tensors.values() for tensor in part.values()))
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process of the same number
    try:
        temporary.mkdir(parents=True)
        for name, part in tensors.items():
            storage.write_tensors(temporary / f"{name}.safetensors", part, {"step": str(step)})
        files.write_atomic(temporary / STATE, json.dumps({"version": VERSION, **state}, indent=1))
        manifest = {
            path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
            for path in sorted(temporary.iterdir())
        }
        files.write_atomic(temporary / MANIFEST, json.dumps(manifest, indent=1))
        files.fsync(temporary)
        if target.exists():  # a damaged one that was skipped on resume
            _delete(target)
        files.replace(temporary, target)
    except OSError as error:
        raise ResourceError(
            f"the checkpoint of step {step} ({needed}) could not be written to {target.parent}: "
            f"{error.strerror or error}; make room and use --resume: earlier checkpoints are whole"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def prune(run: Path, step: int, keep_every: int | None) -> None:
    """Delete all up to `step` but the newest 2 and those at multiples of `keep_every`, and what crashes left behind.

    Later ones are damaged, or the run would not be at `step`: they are no reason to delete a good one, and are
    written anew in their time.
    """
    for left in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    for old in [found for found in steps(run) if found <= step][:-2]:
        if keep_every is None or old % keep_every:
            _delete(folder_of(run, old))


def _delete(folder: Path) -> None:
    """Out of sight first, and then file by file: a crash half-way leaves no half checkpoint."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    with contextlib.suppress(OSError):
        files.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def steps(run: Path) -> list[int]:
    """Steps of all checkpoints, good or bad, ascending."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(int(path.name[5:]) for path in found if path.name[5:].isdigit() and path.is_dir())


def problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file against its size and hash in the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            path = folder / name
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}"
            if files.sha256(path) != entry["sha256"]:
                return f"{name} is damaged (its hash differs)"
        if set(manifest) - {POWER} != NAMES:
            return f"{MANIFEST} does not name {' '.join(sorted(NAMES))}"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"it cannot be read ({type(error).__name__}: {error})"
    return None


def newest(run: Path) -> Path | None:
    """The newest valid checkpoint; bad ones are named in the log and skipped. None where none was ever written.

    Raises:
        CheckpointError: where there are only bad ones.
    """
    found = steps(run)
    for step in reversed(found):
        folder = folder_of(run, step)
        trouble = problem(folder)
        if trouble is None:
            return folder
        log.warning("checkpoint %s is not used: %s", folder, trouble)
    if found:
        raise CheckpointError(f"no checkpoint of {run} is whole: nothing to resume from; start anew in another folder")
    if storage.model_step(run / "model") is not None:  # which is only written after a checkpoint
        raise CheckpointError(
            f"the checkpoints of {run} are gone: nothing to resume from; start anew in another folder, "
            f"from its model by --init {run}"
        )
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint that is whole.

    Raises:
        CheckpointError: for one that a later diffunet wrote, or that holds what training does not write.
    """
    path = folder / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = state.get("version", VERSION)
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if version != VERSION:
        raise CheckpointError(
            f"the checkpoint {folder} is of version {version}; this diffunet reads {VERSION}: update it"
        )
    if not _usual(state):
        raise CheckpointError(f"{path} holds what training does not write: start anew in another folder")
    return state


def _usual(state: dict[str, Any]) -> bool:
    """Whether the values that a run goes on from are there and of their kinds."""
    try:
        counts = [state["step"], *(state["counters"][name] for name in ("skipped", "streak"))]
        return (
            all(type(count) is int and 0 <= count <= 10**12 for count in counts)
            and isinstance(state["environment"], dict)
            and isinstance(state["index_hash"], str)
        )
    except (KeyError, TypeError):
        return False
