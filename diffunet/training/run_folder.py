"""The folder of a run: who may write to it, and which options may change when the run goes on."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffunet import files
from diffunet.config import Config, read_toml
from diffunet.errors import UsageError
from diffunet.training import best, checkpoint, transfer

IMAGES = "images.index"
"""The file of a run folder that lists the images which the run began with."""

MASKS = "masks.index"
"""The file of a run folder that lists the masks of one's own which the run began with."""

FREE_ON_RESUME = {
    "model": {"checkpointing"},
    "diffusion": {"sampler", "sample_steps", "ladder", "threshold"},
    "data": {"cache", "max_rejected"},
    "train": {
        "steps", "grad_accumulation", "cpu_parts", "log_every", "validate_every", "sample_every", "previews",
        "checkpoint_every", "checkpoint_minutes", "keep_every", "track", "max_skipped", "learning_rate", "precision",
        "deterministic", "stop_after", "timeout", "ema_every", "compile", "kernels", "cuda_graph", "threads", "minutes",
        "cooldown", "cooldown_from",
    },
}  # fmt: skip
"""Options which may change when a run is resumed. All others decide what the weights mean, or which draws were made."""


@contextlib.contextmanager
def claimed(config: Config, run: Path, *, resume: bool, init: str | Path | None, main: bool) -> Iterator[Config]:
    """Make the run folder, hold its lock within this context, and yield the config that the run goes on with.

    Raises:
        UsageError: the folder exists and `resume` is False, it cannot be written, or `config` contradicts the config of
            the run or of the model `init`.
        CheckpointError: another process writes to the folder.
    """
    with contextlib.ExitStack() as stack:
        if main:
            try:
                stack.enter_context(_locked(run, resume))
            except OSError as error:
                raise UsageError(f"--out {run} cannot be written: {error.strerror or error}") from None
        if resume and checkpoint.steps(run) and (run / "config.toml").is_file():
            config = _same_run(config, read_toml(run / "config.toml"), checkpoint.steps(run)[-1])
        elif init is not None:
            config = transfer.like_model(config, init)
        yield config


def is_taken(run: Path) -> bool:
    """Return whether no new run may begin in a folder, since it holds a run that has begun, or something else."""
    if not run.is_dir():
        return run.exists()
    names = {path.name for path in run.iterdir()}
    # A run that failed before its first step leaves these, which are no reason to refuse another try.
    left = {".lock", "checkpoints", "status.json"} if ".lock" in names else set()
    return bool(names - left) or ("checkpoints" in names and any((run / "checkpoints").iterdir()))


@contextlib.contextmanager
def _locked(run: Path, resume: bool) -> Iterator[None]:
    """Hold the lock of the run folder, which is made if it does not exist, once it is known to be writable."""
    exists = UsageError(f"--out {run} exists; go on with it by --resume, or choose another folder")
    lock = run / ".lock"
    if not resume and is_taken(run) and not lock.exists():
        raise exists
    files.mkdir(run / "checkpoints")
    busy = f"another process is writing to {run}; wait for it, or choose another --out"
    with files.lock(lock, wait=False, message=busy):
        if not resume and is_taken(run):
            raise exists
        for folder in (run, run / "model", run / "samples", run / best.FOLDER):
            files.sweep(folder)
        tempfile.TemporaryFile(dir=run).close()  # the lock file may exist already in a folder that takes no new files
        yield


def _same_run(asked: Config, stored: Config, done: int) -> Config:
    """Return the `stored` config of a run of `done` steps with the options that were `asked` for.

    Raises:
        UsageError: one of them may not change.
    """
    if stored.train.half_size is None:  # of a version that did not know of it
        stored = stored.changed("train", half_size=0.0)
    if stored.train.optimizer is None:  # likewise
        stored = stored.changed("train", optimizer="adamw")
    content, changed = stored.changed("train", stop_after=None).model_dump(), set[str]()  # it was of that part alone
    for section, values in asked.model_dump(exclude_unset=True).items():
        for name, value in values.items():
            before = content[section][name]
            is_free = name in FREE_ON_RESUME[section]
            if value in (before, None, "auto") or (value == () and not is_free):
                continue
            if not is_free:
                raise UsageError(
                    f"--resume goes on with {section}.{name} = {before!r}; it cannot become {value!r}"
                    + _way_round(section, name, value, stored)
                )
            content[section][name] = value
            changed.add(name)
    content["train"] |= _other_end(changed, stored, done)
    return Config.model_validate(content)


def _way_round(section: str, name: str, value: Any, stored: Config) -> str:
    """Return what to do in place of changing an option of a run that goes on, as the end of a sentence."""
    if (section, name) == ("train", "batch_size") and isinstance(value, int) and type(stored.train.batch_size) is int:
        batch, passes = stored.train.batch_size, stored.train.grad_accumulation or 1
        each = max(1, value // passes)
        more = next((n for n in range(passes + 1, batch + 1) if batch % n == 0 and batch // n <= each), None)
        if value < batch and more is not None:
            return (
                f". For less memory --train.grad-accumulation {more} divides each step into passes of {batch // more} "
                "images, of which bits may differ"
            )
    of_weights = section in ("model", "diffusion") and name not in transfer.FREE_WITH_INIT | transfer.OWN
    if of_weights or (section, name) == ("data", "channels"):
        return ": it decides what the weights mean; begin another run with it"
    option = f"--{section}.{name}".replace("_", "-")
    return f". Another run that starts from its weights may have it: --init RUN --out OTHER {option} ..."


def _other_end(changed: set[str], stored: Config, done: int) -> dict[str, Any]:
    """Return what else changes in the train section of a run whose end or cool-down is another one now."""
    also: dict[str, Any] = {}
    if stored.train.cooldown is None and "cooldown" not in changed:  # a run of diffunet 0.1, whose rate is constant
        also["cooldown"] = 0.0
    if {"steps", "minutes"} <= changed:
        raise UsageError("--steps and --minutes both say when the run ends; take one")
    if changed & {"steps", "minutes", "cooldown"} and "cooldown_from" not in changed:
        also["cooldown_from"] = None
    if changed & {"steps", "minutes"} and stored.train.half_size and done < (stored.train.half_size_until or 0):
        also["half_size_until"] = None  # by the new end; once the run is at full size, that is how it goes on
    if "steps" in changed:
        also["minutes"] = None
    if "minutes" in changed:
        also["steps"] = None
    return also
