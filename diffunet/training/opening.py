"""An open run: what comes before its first step (locking the folder, reading the images, completing the config, joining
the processes), and what is written to its folder, `Run.begin` and `Run.save`.
"""

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffunet import build, compute, files, storage, variables
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.data import index
from diffunet.data.dataset import Dataset
from diffunet.data.folder import class_names, printable
from diffunet.data.groups import Split
from diffunet.diffusion.losses import Loss
from diffunet.errors import DataError, UsageError
from diffunet.training import (
    checkpoint,
    defaults,
    failures,
    kernels,
    memory,
    processes,
    run_folder,
    saving,
    snapshots,
    stop,
)
from diffunet.training.batches import Share
from diffunet.training.learner import Learner
from diffunet.training.meters import Meters, Record
from diffunet.version import __version__

log = logging.getLogger(__name__)


@dataclass
class Run:
    """A run that is open: its folder is locked, its images are read and its processes are joined.

    Args:
        folder, config: the run folder, and the resolved config, in which no option is left open (`defaults.resolve`).
        dataset, split: the images; which of them are trained on and which are held out.
        how, processes: how this process computes, and all processes; `is_main` says whether this one writes files.
        checkpoint: the folder of the checkpoint that the run goes on from, and its `state`; None for a new run.
        status, flag, limits: how far the run is, what is set to ask it to stop, and other reasons for which it stops.
        compile_is_open: whether train.compile was "auto", so that a net that cannot be compiled is no error.
        averages_are_thinned: whether averages are now stored less often than before, see `defaults.spaced`.
        writer: what writes checkpoints beside training, see saving.py.
    """

    folder: Path
    config: Config
    dataset: Dataset
    split: Split
    how: Compute
    processes: Accelerator
    is_main: bool
    checkpoint: Path | None
    state: dict[str, Any]
    status: failures.Status
    flag: stop.StopFlag
    limits: stop.Limits
    compile_is_open: bool
    averages_are_thinned: bool
    writer: saving.Writer = field(default_factory=saving.Writer)

    @property
    def first_step(self) -> int:
        """The number of optimizer steps that are done already."""
        return int(self.state.get("step", 0))

    @property
    def steps(self) -> int:
        """The number of optimizer steps after which the run is done."""
        assert self.config.train.steps is not None, "the config is resolved"
        return self.config.train.steps

    @property
    def share(self) -> Share:
        """The share of every step that this process takes."""
        t, rank, processes = self.config.train, self.processes.process_index, self.processes.num_processes
        assert isinstance(t.batch_size, int), "the config is resolved"
        assert t.grad_accumulation is not None, "the config is resolved"
        return Share(t.seed, t.batch_size, t.grad_accumulation, rank, processes)

    def compile(self, learner: Learner) -> None:
        """Compile the net where the config says so; where that fails, raise UsageError if it was asked for."""
        reason = None
        try:
            learner.compile(self.share.images_per_pass)
        except Exception as error:
            if compute.is_out_of_memory(error):
                raise
            reason = compute.first_line(error)
        if processes.smallest(reason is None, self.processes):
            return
        learner.state.net._compiled_call_impl = None  # makes it a plain net again
        reason = reason or "another process could not"
        if not self.compile_is_open:
            raise UsageError(f"the net cannot be compiled: {reason}; --train.compile off does without")
        log.warning("the net is not compiled: %s", reason)
        self.config = self.status.config = self.config.changed("train", compile="off")

    def begin(self) -> None:
        """On the main process, write config, list of images and model, and delete averages of later steps.

        A run that got further than its last checkpoint has left such averages; they will be written again.
        """
        if not self.is_main:
            return
        snapshots.forget_after(self.folder, self.first_step)
        if self.averages_are_thinned:
            snapshots.thin(self.folder, self.config.train.ema_every or 1)
        files.write_atomic(self.folder / "config.toml", self.config.to_toml())
        if self.state.get("index_hash") != self.dataset.index_hash:
            index.write_index(self.folder / run_folder.IMAGES, self.dataset.files)
        # A crash may have come between a checkpoint and the model that is written after it.
        model = self.folder / "model"
        if self.checkpoint is not None and storage.model_step(model) != self.first_step:
            weights, _ = storage.read_tensors(self.checkpoint / storage.AVERAGE)
            storage.write_model(model, self.config, weights, self.first_step)

    def save(self, learner: Learner, meters: Meters, *, wait: bool = True) -> None:
        """Write a checkpoint of the reached step, then the model; delete old checkpoints, and note the step as saved.

        Where `wait` is False and it pays, a thread writes it beside the steps that follow, see `saving.beside`. Its
        error is then that of `writer`.

        Raises:
            ResourceError: the disk does not take it, or did not take the checkpoint before.
        """
        self.writer.settle()
        step, state = self.status.step, learner.state
        content = {
            "step": step, "counters": meters.state(), "loss_scale": learner.scale.state(),
            "index_hash": self.dataset.index_hash, "split_hash": self.split.hash(), "config_hash": self.config.hash(),
            "environment": self.environment(),
        }  # fmt: skip

        def write(tensors: saving.Tensors) -> None:
            checkpoint.save(self.folder, step, tensors, content)
            storage.write_model(self.folder / "model", self.config, tensors["ema"], step)
            checkpoint.prune(self.folder, step, self.config.train.keep_every)
            self.status.saved = step
            failures.write_status(self.folder, "running", step, steps=self.steps)

        tensors, copy = state.tensors(), None
        if not wait and saving.beside(self.how, saving.size(tensors)):
            copy = saving.copied(tensors)
        if copy is None:
            write(tensors)
        else:
            self.writer.start(partial(write, copy))

    def environment(self) -> dict[str, Any]:
        """Return the versions and settings, beside config and images, that may change the last bits of the weights."""
        return {
            "diffunet": __version__, "torch": torch.__version__, "device": compute.describe(self.how.device),
            "threads": torch.get_num_threads(), "processes": self.processes.num_processes,
            "passes": self.config.train.grad_accumulation, "precision": self.how.precision,
            "compile": self.config.train.compile, "kernels": kernels.description(self.how),
            "python": platform.python_version(),
        }  # fmt: skip


@contextlib.contextmanager
def opened(
    config: Config, data: Path, folder: Path, *, net: build.NetFactory, loss: Loss | None, resume: bool,
    init: str | Path | None, accept_new_data: bool, device: str | None,
) -> Iterator[Run]:  # fmt: skip
    """Open a run, and close it in good order; the arguments and errors are those of `loop.train`.

    Within the context signals stop the run between two steps, errors that a person can mend become a `diffunet.Error`
    and are written to RUN/status.json. Torch's random state, threads and choice of kernels are restored at its end.
    """
    main, flag = processes.is_main(), stop.StopFlag()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.on_signals(flag))
        config = stack.enter_context(run_folder.claimed(config, folder, resume=resume, init=init, main=main))
        config = _with_net(config, net, resumed=resume and bool(checkpoint.steps(folder)))
        if config.train.deterministic:
            _prepare_determinism()
        status = failures.Status(folder, config)
        stack.enter_context(failures.explaining(status, flag, main))
        limits = stop.Limits(folder / "stop", config.train.stop_after)

        # The cache is built before process groups exist: a long build would run into their timeouts.
        dataset = build.dataset(config.data, data, progress=_reading() if main else None)
        refuse_too_many_rejected(dataset, config.data.max_rejected, data)
        split = build.split(config.data, dataset.files)
        previous, state, thinned = (checkpoint.newest(folder) if resume else None), {}, False
        names = class_names(dataset.files.paths) if config.data.classes and previous is None else ()
        if previous is not None:
            state = checkpoint.read_state(previous)
            refuse_other_images(state, dataset, folder, data, accept_new_data)
            refuse_other_split(state, dataset, split, config.data.group, accept_new_data)
            kept = snapshots.only_where_kept(config, previous)
            config = defaults.spaced(kept, storage.run_config(folder), net)
            thinned = config != kept
            config = _with_environment(config, state["environment"])
            names = config.data.class_names if config.data.classes else ()

        how = compute.choose(processes.device(device), config.train.precision)
        how = how if previous is None else replace(how, why="as before")
        joined = stack.enter_context(processes.joined(config.train, how.device))
        processes.refuse_different_images(dataset, split, joined)
        stack.enter_context(torch.random.fork_rng([how.device] if how.device.type == "cuda" else []))
        threads = stack.enter_context(compute.use_threads(config.train.threads))
        stack.enter_context(how.kernels(config.train.deterministic))

        compile_is_open = config.train.compile == "auto"
        free = processes.smallest(processes.free_memory(how), joined)
        config = defaults.resolve(
            config, images=len(split.training), class_names=names, mean=dataset.mean, sigma_data=dataset.sigma_data,
            how=how, processes=joined.num_processes, free=free, net=net,
        ).changed("train", threads=threads)  # fmt: skip
        status.config = config
        if net is not build.net:
            build.refuse_misfit(config, net)
        memory.refuse_what_cannot_fit(config, how, net)
        if config.train.batch_size == "auto":
            fits = processes.smallest(memory.images_per_pass(config, how, free, loss, net), joined)
            config = status.config = defaults.after_trial(config, fits, joined.num_processes)

        config, how = kernels.choose(config, how, joined, net, resumed=previous is not None)
        status.config = config

        run = Run(
            folder, config, dataset, split, how, joined, main, previous, state, status, flag, limits,
            compile_is_open, thinned,
        )  # fmt: skip
        if previous is not None:
            _log_differences(state["environment"], run.environment())
            log.info("resuming %s at step %d", folder, run.first_step)
        elif resume:
            log.info("no checkpoint in %s yet: starting at step 0", folder)
        status.step = status.saved = run.first_step
        if run.first_step >= run.steps:
            log.info("%s has reached step %d already; raise --steps to go on", folder, run.first_step)
            if main:  # a crash may have come between the last checkpoint and what is written after it
                run.begin()
                checkpoint.prune(folder, run.first_step, run.config.train.keep_every)
                Record(folder, run.first_step, tensorboard=False).close()  # drops half a line of metrics.jsonl
                failures.write_status(folder, "done", run.first_step, steps=run.steps, exit_code=0)
        yield run


def _with_net(config: Config, net: build.NetFactory, *, resumed: bool) -> Config:
    """Note a user's own net in the config; raise UsageError if the run or model that it goes on from has another."""
    name = None if net is build.net else f"{net.__module__}.{getattr(net, '__qualname__', type(net).__qualname__)}"
    before = config.model.custom
    if (resumed or before is not None) and (name is None) != (before is None):
        raise UsageError(
            f"the net of this model is {before}: give the function that makes it to diffunet.train, net=..."
            if before is not None
            else f"this model has a net of diffunet's own, and net={name} was given: leave it out"
        )
    if name is not None and before not in (None, name):
        log.warning("this model was made with the net %s, and goes on with %s", before, name)
    return config if name is None else config.changed("model", custom=name)


def _prepare_determinism() -> None:
    """Set CUBLAS_WORKSPACE_CONFIG, which CUDA reads once at its start, and warn if it has started."""
    if "CUBLAS_WORKSPACE_CONFIG" in os.environ:
        return
    if torch.cuda.is_initialized():
        log.warning(
            "train.deterministic: CUDA was in use before CUBLAS_WORKSPACE_CONFIG was set, so that products may still "
            "differ from run to run: set it to :4096:8 before this program uses torch"
        )
    variables.deterministic()


def _reading() -> Callable[[int, int], None]:
    """Return a progress callback that logs every 10 seconds how many images are read."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10.0:
            last = time.monotonic()
            log.info("reading images: %d of %d", done, total)

    return progress


def _with_environment(config: Config, environment: dict[str, Any]) -> Config:
    """Take precision, threads and compile, which diffunet 0.1 left open, from the checkpoint's environment."""
    noted: dict[str, Any] = {}
    if config.train.precision == "auto" and environment.get("precision") in compute.PRECISIONS:
        noted["precision"] = environment["precision"]
    if config.train.threads is None and type(environment.get("threads")) is int:
        noted["threads"] = max(1, environment["threads"])
    if config.train.compile == "auto":
        noted["compile"] = environment.get("compile", "off")
    if config.train.kernels == "auto":
        noted["kernels"] = "off" if environment.get("kernels", "off") == "off" else "on"
    return config.changed("train", **noted)


def _log_differences(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn that bits may differ from those of a run that was not stopped, where the environment has changed."""
    shared = [name for name in now if name in before]  # diffunet 0.1 noted fewer of them
    changes = [f"{name} was {before[name]}, is {now[name]}" for name in shared if before[name] != now[name]]
    if changes:
        log.warning("resuming sees the same images and noise, but bits may differ: %s", "; ".join(changes))


def refuse_too_many_rejected(dataset: Dataset, most: float, data: Path) -> None:
    """Log the files of the folder `data` that cannot be used; raise DataError if their share is above `most`."""
    rejected = dataset.rejected
    for file in rejected[:20]:
        log.warning("skipped %s: %s", printable(file.path), file.reason)
    if len(rejected) > 20:
        log.warning("... and %d more files skipped (diffunet check lists them)", len(rejected) - 20)
    total = len(rejected) + len(dataset.files)
    if len(rejected) > most * total:
        raise DataError(
            f"{len(rejected)} of the {total} images in {data} cannot be used, such as {printable(rejected[0].path)} "
            f"({rejected[0].reason}): mend or remove them (diffunet check lists them), or allow it by "
            f"--data.max-rejected (now {most:g})"
        )


def refuse_other_images(state: dict[str, Any], dataset: Dataset, run: Path, data: Path, accept: bool) -> None:
    """Raise DataError for images that are not those which the run began with, or, with `accept`, only warn."""
    if state["index_hash"] == dataset.index_hash:
        return
    path = run / run_folder.IMAGES
    try:
        changes = "; ".join(index.changes(index.read_index(path), dataset.files)) or "in ways not on record"
    except (OSError, ValueError):
        changes = f"{path}, which lists them, cannot be read"
    if not accept:
        raise DataError(
            f"the images in {data} are not those that this run began with ({changes}): put them back, or go on with "
            "them as they are by --accept-new-data"
        )
    log.warning("going on with other images (%s): from here on, not as the run would have been", changes)


def refuse_other_split(state: dict[str, Any], dataset: Dataset, split: Split, rule: str | None, accept: bool) -> None:
    """Raise DataError where of the same images others are held out than before, or, with `accept`, only warn.

    Of other images the split is another one as a matter of course, and diffunet 0.1 did not note it.
    """
    if state["index_hash"] != dataset.index_hash or state.get("split_hash", split.hash()) == split.hash():
        return
    if not accept:
        raise DataError(
            f"the groups of images are not those that this run began with, so that others would be held out: put "
            f"{rule} (data.group) back as it was, or go on with it as it is by --accept-new-data"
        )
    log.warning("going on with other groups of images: some that are held out now have been trained on")
