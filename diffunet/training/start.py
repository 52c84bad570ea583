"""How a run begins: its folder, its config, what it goes on from, and what it says first."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from diffunet import compute, files, storage, variables
from diffunet.compute import Compute
from diffunet.config import Config, read_toml
from diffunet.data import index
from diffunet.data.dataset import Dataset
from diffunet.data.folder import Rejected, class_names, printable
from diffunet.errors import DataError, Stopped, UsageError
from diffunet.interop import models
from diffunet.nn.cost import Cost
from diffunet.training import checkpoint, memory
from diffunet.training.learner import Learner
from diffunet.version import __version__

log = logging.getLogger(__name__)

IMAGES = "images.index"
"""In a run folder: which images it was begun with."""

FREE = {
    "model": {"checkpointing"},
    "diffusion": {"sampler", "sample_steps", "ladder", "threshold"},
    "data": {"cache", "max_rejected"},
    "train": {
        "steps", "grad_accumulation", "log_every", "validate_every", "sample_every", "previews", "checkpoint_every",
        "keep_every", "tensorboard", "max_skipped", "learning_rate", "precision", "deterministic", "stop_after",
        "timeout", "ema_every", "compile", "threads",
    },
}  # fmt: skip
"""What may change when a run is resumed. The rest decides what the weights mean, or which draws were made."""


@contextlib.contextmanager
def begin(config: Config, run: Path, *, resume: bool, init: str | Path | None, main: bool) -> Iterator[Config]:
    """Check what was asked against what is there, make and lock the run folder, and give the config to go on with.

    Raises:
        UsageError: where the folder exists without `resume` or cannot be written, or the config contradicts the run's
            or the model's.
        CheckpointError: where another process writes to the folder.
    """
    with contextlib.ExitStack() as stack:
        if main:
            try:
                stack.enter_context(_own(run, resume))
            except OSError as error:
                raise UsageError(f"--out {run} cannot be written: {error.strerror or error}") from None
        if resume and checkpoint.steps(run) and (run / "config.toml").is_file():
            config = _same_run(config, read_toml(run / "config.toml"))
        elif init is not None:
            config = _like_model(config, init)
        yield config


@contextlib.contextmanager
def _own(run: Path, resume: bool) -> Iterator[None]:
    """The run folder, locked and seen to be writable."""
    exists = UsageError(f"--out {run} exists; go on with it by --resume, or choose another folder")
    locked = run / ".lock"
    if run.exists() and not resume and (not run.is_dir() or (any(run.iterdir()) and not locked.exists())):
        raise exists
    files.mkdir(run / "checkpoints")
    busy = f"another process is writing to {run}; wait for it, or choose another --out"
    with files.lock(locked, wait=False, message=busy):
        # What a run leaves that failed before it began is no reason to refuse.
        begun = any(path.name not in (".lock", "checkpoints", "status.json") for path in run.iterdir())
        if not resume and (begun or any((run / "checkpoints").iterdir())):
            raise exists
        for folder in (run, run / "model", run / "samples"):
            files.sweep(folder)
        tempfile.TemporaryFile(dir=run).close()  # a folder with a lock may still take no files
        yield


def _same_run(given: Config, stored: Config) -> Config:
    """The stored config with what may change taken from `given`."""
    said, theirs = given.model_dump(exclude_unset=True), stored.model_dump()
    for section, values in said.items():
        for name, value in values.items():
            known = theirs[section][name]
            if value in (known, None, (), "auto"):
                continue
            if name not in FREE[section]:
                raise UsageError(f"--resume goes on with {section}.{name} = {known!r}; it cannot become {value!r}")
            theirs[section][name] = value
    return Config.model_validate(theirs)


def _like_model(config: Config, init: str | Path) -> Config:
    """`config` with the architecture, and the meaning of its input and output, of the model `init`."""
    model = models.read_config(init)
    content, plain, kept = config.model_dump(), Config().model_dump(), model.model_dump()
    free = {
        "dropout", "sampler", "sample_steps", "ladder", "threshold", "image_size",
        "weighting", "min_snr_gamma", "p2_gamma", "sigmoid_bias",
    }  # fmt: skip
    wanted = {section: list(kept[section]) for section in ("model", "diffusion")} | {"data": ["image_size", "channels"]}
    wanted["diffusion"].remove("task")  # what is learned is said anew: see `copy_weights`
    wanted["model"].remove("checkpointing")  # by the memory that is there
    wanted["diffusion"].remove("mean")  # measured anew
    wanted["diffusion"].remove("label_dropout")  # 0 of models of others, and guidance needs some
    if model.diffusion.task != config.diffusion.task:
        log.info("--init: %s learned to %s, and this run to %s", init, model.diffusion.task, config.diffusion.task)
    for section, names in wanted.items():
        for name in names:
            value = kept[section][name]
            said = content[section][name] not in (plain[section][name], value)
            if said and name not in free:
                raise UsageError(f"--init takes {section}.{name} = {value!r} from {init}; leave it out")
            if not said:
                if value != content[section][name]:
                    log.info("--init: %s.%s = %r, as in %s", section, name, value, init)
                content[section][name] = value
    content["diffusion"]["mean"] = None
    return Config.model_validate(content)


@torch.no_grad()
def copy_weights(init: str | Path, net: nn.Module, config: Config) -> None:
    """The weights of MODEL into `net`; classes are matched by name, and new ones keep their random start.

    A net that learns to inpaint, from one that did not, begins by saying the same whatever it is told of known pixels;
    the reverse begins by saying what that one says where nothing is known (but at the image's border).
    """
    model = models.read_model(init)
    tensors = model.denoiser.net.state_dict()
    name = "embedding.label.weight"
    mine, old = net.state_dict(), model.config.data.class_names
    if old != config.data.class_names:
        before = tensors.pop(name, None)
        if name in mine:
            tensors[name] = mine[name].clone()
            if before is not None:
                for row, label in enumerate((*config.data.class_names, None)):
                    if label is None or label in old:
                        tensors[name][row] = before[old.index(label) if label is not None else -1]
    name = "embedding.augment.weight"
    before = tensors.pop(name, None)
    if name in mine:
        tensors[name] = torch.zeros_like(mine[name]) if before is None else before
    first = next(name for name, tensor in mine.items() if tensor.ndim == 4)  # the convolution that sees the image
    before, told = tensors[first], mine[first].shape[1]
    if before.shape[1] > told:  # a hole that is all of the image is a constant, but for the padding
        bias = first.replace("weight", "bias")
        tensors[bias] = tensors[bias] + before[:, -1].sum((1, 2))
        tensors[first] = before[:, :told].clone()
    elif before.shape[1] < told:
        tensors[first] = F.pad(before, (0, 0, 0, 0, 0, told - before.shape[1]))
    storage.load_weights(net, tensors, Path(init))


def device(name: str | None) -> torch.device:
    """Where this process trains: where it was asked to, the GPU of its rank on its machine, or what there is.

    Raises:
        UsageError: for a device that is not there, or one of several processes that all would take the same GPU.
    """
    if name is None and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        name = "cpu"
    several, kind = int(os.environ.get("WORLD_SIZE", 1)) > 1, (name or "cuda").partition(":")[0]
    if kind != "cuda" or not torch.cuda.is_available():
        return compute.find_device(name)
    if several and name is not None and ":" in name:
        raise UsageError(f"--device {name} would be the GPU of every process: --device cuda gives each its own")
    if several or name is None:
        rank, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if rank >= there:
            raise UsageError(
                f"process {rank + 1} of this machine has no GPU of its own, as torch sees {there}: start at most "
                f"{there} processes (--num_processes), or let it see more (CUDA_VISIBLE_DEVICES)"
            )
        name = f"cuda:{rank}" if several else f"cuda:{torch.cuda.current_device()}"
    found = compute.find_device(name)
    torch.cuda.set_device(found)
    return found


def free_memory(how: Compute) -> int:
    """Bytes that this process may take: of a CPU, what those on this machine share."""
    free = how.free_memory()
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if how.device.type == "cpu" else free


def smallest(number: int, processes: Accelerator) -> int:
    """The smallest of the processes' numbers, so that all of them choose alike."""
    return int(processes.gather(torch.tensor([number], device=processes.device)).min().item())


def as_it_was(config: Config, environment: dict[str, Any]) -> Config:
    """What a run of diffunet 0.1 left open in its config, as its checkpoint says that it was."""
    if config.train.precision == "auto" and environment.get("precision") in compute.PRECISIONS:
        config = config.changed("train", precision=environment["precision"])
    if config.train.threads is None and type(environment.get("threads")) is int:
        config = config.changed("train", threads=max(1, environment["threads"]))
    if config.train.compile == "auto":
        config = config.changed("train", compile=environment.get("compile", "off"))
    return config


def accelerator(config: Config, found: torch.device) -> Accelerator:
    """The processes of this run, joined."""
    # DDP re-sorts its buckets after the first step, which would change the order of sums on resume, unless it looks for
    # unused parameters. With two processes there is but one order.
    exact = (found.type == "cpu" or config.train.deterministic) and int(os.environ.get("WORLD_SIZE", 1)) > 2
    # Autocast is ours, round the net alone: accelerate's is fixed for the life of a process.
    return Accelerator(
        mixed_precision="no",
        cpu=found.type == "cpu",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=exact, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(minutes=config.train.timeout)),
        ],
    )


def same_everywhere(dataset: Dataset, processes: Accelerator) -> None:
    """Refuse to begin where processes see other images, such as on machines with a copy of the folder each.

    Raises:
        DataError: on all of them.
    """
    mine = torch.tensor([int(dataset.index_hash[:15], 16)], device=processes.device)
    if len(processes.gather(mine).unique()) > 1:
        raise DataError("the processes see different images: give all of them the same folder, and leave it alone")


def classes(config: Config, dataset: Dataset, *, resumed: bool) -> tuple[str, ...]:
    """The classes of a run: those that it began with, or the subfolders that there are."""
    if not config.data.classes:
        return ()
    return config.data.class_names if resumed else class_names(dataset.files.paths)


def decoding(main: bool) -> Callable[[int, int], None] | None:
    """A progress callback for the cache, a line every ten seconds."""
    if not main:
        return None
    said = [time.monotonic()]

    def progress(done: int, total: int) -> None:
        if time.monotonic() - said[0] > 10:
            said[0] = time.monotonic()
            log.info("reading images: %d of %d", done, total)

    return progress


@contextlib.contextmanager
def end_of_group() -> Iterator[None]:
    """See that the group of processes that is made meanwhile ends with the program, which torch asks for.

    Not with the run: another one in the same program goes on with it, since a second group at the same address would
    meet what is left of the first. One process alone has no group, and what accelerate keeps of it goes, so that the
    next run may be on another device. What the caller has joined stays; where a process fails, others may still wait
    for it, so that nothing is ended in good order.
    """
    ended, theirs = False, bool(PartialState._shared_state) or dist.is_initialized()
    try:
        yield
        ended = True
    except Stopped:
        ended = True
        raise
    finally:
        if ended and not theirs and dist.is_initialized():
            atexit.register(_leave)
        if not ended:
            atexit.unregister(_leave)
        if not theirs and not dist.is_initialized():
            AcceleratorState._reset_state(reset_partial_state=True)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def trouble_compiling(learner: Learner, batch: int, processes: Accelerator) -> str | None:
    """Compile the net where asked for; why that failed, on any process, or None. It then is a plain net again."""
    why = None
    try:
        learner.compile(batch)
    except Exception as error:
        if compute.is_out_of_memory(error):
            raise
        why = compute.first_line(error)
    if smallest(why is None, processes):
        return None
    learner.state.net._compiled_call_impl = None
    return why or "another process could not"


def warn_where_too_late() -> None:
    """Say where bit-equal runs are asked for after CUDA has begun, since cuBLAS reads its setting only once."""
    if "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        if torch.cuda.is_initialized():
            log.warning(
                "train.deterministic: CUDA was in use before CUBLAS_WORKSPACE_CONFIG was set, so that products may "
                "still differ from run to run: set it to :4096:8 before this program uses torch"
            )
        variables.deterministic()


def environment(how: Compute, config: Config, processes: int) -> dict[str, Any]:
    """What the bits of a run depend on beside its config and images."""
    return {
        "diffunet": __version__,
        "torch": torch.__version__,
        "device": compute.describe(how.device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "passes": config.train.grad_accumulation,
        "precision": how.precision,
        "compile": config.train.compile,
        "python": platform.python_version(),
    }


def say_differences(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say where bits may differ from those of a run that was not stopped."""
    changes = [
        f"{name} was {before[name]}, is {value}"
        for name, value in now.items()
        if name in before and before[name] != value  # diffunet 0.1 noted fewer of them
    ]
    if changes:
        log.warning("resuming sees the same images and noise, but bits may differ: %s", "; ".join(changes))


def enough_images(rejected: Sequence[Rejected], usable: int, most: float, data: Path) -> None:
    """List files that cannot be used, and refuse a folder with too many of them.

    Raises:
        DataError: where their share is above `most`.
    """
    for file in rejected[:20]:
        log.warning("skipped %s: %s", printable(file.path), file.reason)
    if len(rejected) > 20:
        log.warning("... and %d more files skipped (diffunet check lists them)", len(rejected) - 20)
    every = len(rejected) + usable
    if len(rejected) > most * every:
        raise DataError(
            f"{len(rejected)} of the {every} images in {data} cannot be used, such as {printable(rejected[0].path)} "
            f"({rejected[0].reason}): mend or remove them (diffunet check lists them), or allow it by "
            f"--data.max-rejected (now {most:g})"
        )


def same_data(state: dict[str, Any], dataset: Dataset, run: Path, data: Path, accept: bool) -> None:
    """Refuse images that are not those that the run began with, unless told to accept them.

    Raises:
        DataError: where paths or contents differ, saying which.
    """
    if state["index_hash"] == dataset.index_hash:
        return
    try:
        what = "; ".join(index.changes(index.read_index(run / IMAGES), dataset.files)) or "in ways not on record"
    except (OSError, ValueError):
        what = f"{run / IMAGES}, which lists them, cannot be read"
    if not accept:
        raise DataError(
            f"the images in {data} are not those that this run began with ({what}): put them back, or go on with them "
            "as they are by --accept-new-data"
        )
    log.warning("going on with other images (%s): from here on, not as the run would have been", what)


def plan(
    config: Config,
    price: Cost,
    dataset: Dataset,
    training: int,
    held_out: int,
    how: Compute,
    processes: int,
) -> Iterator[str]:
    """What is about to happen, in lines for the person who waits."""
    t, d, size = config.train, config.data, config.data.image_size
    assert t.steps is not None, "the config is resolved"
    assert isinstance(t.batch_size, int), "the config is resolved"
    assert t.grad_accumulation is not None, "the config is resolved"
    loud = compute.warning()
    if loud:
        yield loud
    many = f" x {processes} processes" if processes > 1 else ""
    yield f"device: {compute.describe(how.device)}{many}; precision: {how.precision} ({how.why})"
    pays, why = compute.pays_to_compile(how, t.steps, t.deterministic)
    if t.compile == "on" or how.device.type == "cuda":
        as_asked = "compiled, as asked" if t.compile == "on" else "not compiled, as asked, or as it could not be"
        yield f"the net is {why if pays == (t.compile == 'on') else as_asked}"
    classes = f", {len(d.class_names)} classes" if d.class_names else ""
    bad = f", {len(dataset.rejected)} files skipped" if dataset.rejected else ""
    yield f"images: {training} to train on, {held_out} held out{classes}{bad}; {size}x{size}, {d.channels} channels"
    if config.diffusion.task == "inpaint":
        yield f"it learns to inpaint, with random masks ({d.masks}); a tenth are all hole, so that it generates too"
    small = dataset.files.smaller_than(size)
    if small > len(dataset.files) // 2:
        yield f"note: {small} of {len(dataset.files)} images are smaller than {size} pixels and are enlarged"
    passes = "" if t.grad_accumulation == 1 else f" in {t.grad_accumulation} passes"
    needed = memory.training_bytes(config, how, t.batch_size // processes // t.grad_accumulation)
    yield (
        f"model: {price.parameters / 1e6:.1f} M parameters, {price.macs / 1e9:.2f} GMACs an image; "
        f"about {needed / 2**30:.1f} GiB to train" + (" (blocks checkpointed)" if config.model.checkpointing else "")
    )
    yield (
        f"steps: {t.steps} of {t.batch_size} images{passes}, {t.steps * t.batch_size / training:.0f} times through "
        "them; time left is shown once some are done"
    )
    if training < 1000:
        yield f"note: {training} images are few; --init MODEL, a model of similar images, helps"
    if t.stop_after is not None:
        yield f"the run is saved and ends after {t.stop_after:g} minutes; go on with --resume"
