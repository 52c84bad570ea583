"""The checkpoints of a run: a crash at any instant leaves the one before it, and each is checked before it is used.

RUN/checkpoints/step-00010000/ holds model.safetensors, ema.safetensors, optimizer.safetensors and state.json, also
power.safetensors where a run keeps averages for `convert --ema`, and manifest.json with the sizes and hashes of these
files, which is written last.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffunet import files, storage
from diffunet.errors import CheckpointError, ResourceError

log = logging.getLogger(__name__)

STATE, MANIFEST, POWER = "state.json", storage.MANIFEST, "power.safetensors"
NAMES = {"model.safetensors", storage.AVERAGE, "optimizer.safetensors", STATE}
"""The files that every manifest names; `POWER` is beside them where a run stores averages."""

VERSION = 1
"""The version of a checkpoint's format. A later one is refused by its number, and an earlier one loads for ever."""


def folder_of(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def save(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; raise ResourceError if the disk does not take it, which leaves earlier ones whole.

    Args:
        run, step: the run folder, and the number of optimizer steps that are done.
        tensors: the tensors by the name of their file ("model", "ema", "optimizer", "power"), and in it by name.
        state: the plain values for state.json.
    """
    target = folder_of(run, step)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    needed = storage.size(sum(tensor.nbytes for part in tensors.values() for tensor in part.values()))
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process that had the same number
    try:
        temporary.mkdir(parents=True)
        for name, part in tensors.items():
            storage.write_tensors(temporary / f"{name}.safetensors", part, {"step": str(step)})
        files.write_atomic(temporary / STATE, json.dumps({"version": VERSION, **state}, indent=1))
        written = sorted(temporary.iterdir())
        manifest = {path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)} for path in written}
        files.write_atomic(temporary / MANIFEST, json.dumps(manifest, indent=1))
        files.fsync(temporary)
        if target.exists():  # it is damaged, and was skipped when the run was resumed
            _delete(target)
        files.replace(temporary, target)
    except OSError as error:
        raise ResourceError(
            f"the checkpoint of step {step} ({needed}) could not be written to {target.parent}: "
            f"{error.strerror or error}; make room and use --resume: earlier checkpoints are whole"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prune(run: Path, step: int, keep_every: int | None, keep: int | None = None) -> None:
    """Delete checkpoints up to `step`, but the newest 2, multiples of `keep_every`, and the one of the step `keep`.

    What crashes left behind goes, too. Later checkpoints are damaged, else the run would have gone on from them, and
    must not push out a good one.
    """
    for left in (run / "checkpoints").glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    for old in [number for number in steps(run) if number <= step][:-2]:
        if old != keep and (keep_every is None or old % keep_every):
            _delete(folder_of(run, old))


def _delete(folder: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a crash leaves nothing that looks like a checkpoint."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    with contextlib.suppress(OSError):
        files.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def steps(run: Path) -> list[int]:
    """Return the steps of all checkpoints, whole or damaged, in ascending order."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(int(path.name[5:]) for path in folders if path.name[5:].isdigit() and path.is_dir())


def problem(folder: Path) -> str | None:
    """Compare the files of a checkpoint with their sizes and hashes in the manifest; return what is wrong, or None."""
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


def forget_after(run: Path, step: int) -> None:
    """Delete whole checkpoints after a step, from which a run does not go on, as it is made longer from this step on.

    Damaged ones stay: they do no harm, and somebody may want to look at them.
    """
    whole = [later for later in steps(run) if later > step and problem(folder_of(run, later)) is None]
    if whole:
        log.info("going on from step %d: later checkpoints are deleted (%s)", step, ", ".join(map(str, whole)))
    for later in whole:
        _delete(folder_of(run, later))


def newest(run: Path, usable: Callable[[dict[str, Any]], bool] | None = None) -> Path | None:
    """Return the newest whole checkpoint whose plain values are `usable`, None before the first.

    Raises:
        CheckpointError: all are damaged or gone, or none is usable.
    """
    written, others = steps(run), False
    for folder in (folder_of(run, step) for step in reversed(written)):
        if (damage := problem(folder)) is None:
            if usable is None or usable(read_state(folder)):
                return folder
            others = True
        else:
            log.warning("checkpoint %s is not used: %s", folder, damage)
    if others:
        raise CheckpointError(
            f"{run} cannot be made longer: its learning rate has begun to fall, and the checkpoint from before that is "
            f"gone or damaged; start another run from its model by --init {run}"
        )
    if written:
        raise CheckpointError(f"no checkpoint of {run} is whole: nothing to resume from; start anew in another folder")
    if storage.model_step(run / "model") is not None:  # the model is written after the first checkpoint
        raise CheckpointError(
            f"the checkpoints of {run} are gone: nothing to resume from; start anew in another folder, "
            f"from its model by --init {run}"
        )
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """Return the plain values of a whole checkpoint; raise CheckpointError for values that training does not write."""
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
    usual = False
    with contextlib.suppress(KeyError, TypeError):
        counts = [state["step"], *(state["counters"][name] for name in ("skipped", "streak"))]
        usual = isinstance(state["environment"], dict) and isinstance(state["index_hash"], str)
        usual = usual and all(type(count) is int and 0 <= count <= 10**12 for count in counts)
    if not usual:
        raise CheckpointError(f"{path} holds what training does not write: start anew in another folder")
    return state
