"""An open run: what comes before its first step (locking the folder, reading the images, completing the config, joining
the processes), and what is written to its folder, `Run.begin` and `Run.save`.
"""

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from diffunet import build, compute, files, ranks, storage, variables
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.data import index
from diffunet.data.dataset import Dataset
from diffunet.data.groups import Split
from diffunet.data.labels import Labels
from diffunet.diffusion.losses import Loss
from diffunet.errors import UsageError
from diffunet.training import (
    best,
    checkpoint,
    defaults,
    earlier,
    failures,
    half_size,
    kernels,
    memory,
    processes,
    rate,
    recipe,
    reporting,
    resuming,
    run_folder,
    saving,
    snapshots,
    stop,
)
from diffunet.training.batches import Share
from diffunet.training.best import Best
from diffunet.training.budget import Budget
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
        classes, labels: the classes of the images, and of each its place in the model's classes, int64 [N]; or None.
        how, processes: how this process computes, and all processes; `is_main` says whether this one writes files.
        checkpoint: the folder of the checkpoint that the run goes on from, and its `state`; None for a new run.
        status, flag, limits: how far the run is, what is set to ask it to stop, and other reasons for which it stops.
        compile_is_open: whether train.compile was "auto", so that a net that cannot be compiled is no error.
        averages_are_thinned: whether averages are now stored less often than before, see `defaults.spaced`.
        budget: the time that the run has taken and may take.
        expected: the number of steps to expect where the end is still open, else that of the config.
        best: the average of least held-out loss; None where the run has many images, or holds out none.
        reports: what writes the report of the run.
        writer: what writes checkpoints beside training, see saving.py.
    """

    folder: Path
    config: Config
    dataset: Dataset
    split: Split
    classes: Labels | None
    labels: NDArray[np.int64] | None
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
    budget: Budget
    expected: int
    best: Best | None
    reports: reporting.Reports
    writer: saving.Writer = field(default_factory=saving.Writer)

    @property
    def distinct(self) -> int:
        """About how many images there are to train on; with fit patch, windows that do not overlap."""
        return build.distinct(self.config.data, self.dataset.files, self.split.training)

    @property
    def first_step(self) -> int:
        """The number of optimizer steps that are done already."""
        return int(self.state.get("step", 0))

    @property
    def steps(self) -> int | None:
        """The number of optimizer steps after which the run is done; None while its end is open, see budget.py."""
        return self.config.train.steps

    @property
    def is_done(self) -> bool:
        """Whether all steps of the run were done before."""
        return self.steps is not None and self.first_step >= self.steps

    def end_in_sight(self, done: int) -> int:
        """Return the number of steps after which the run is done, or will be at the pace up to now."""
        if self.steps is not None:
            return self.steps
        if self.budget.per_step(done) is not None:
            self.expected = self.budget.steps(done)
        return max(self.expected, done + 1)

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

    def record(self, learner: Learner, *, own: bool) -> None:
        """Record the passes of a step as CUDA graphs where that is possible; see `Learner.record`."""
        reason = learner.record(self.share.images_per_pass, own=own)
        if self.how.device.type == "cuda":
            log.info("steps are %s", "replayed from a CUDA graph" if reason is None else f"not recorded: {reason}")

    def begin(self) -> None:
        """On the main process, write config, list of images and model, and delete averages of later steps.

        A run that got further than its last checkpoint has left such averages; they will be written again.
        """
        if not self.is_main:
            return
        snapshots.forget_after(self.folder, self.first_step)
        checkpoint.forget_after(self.folder, self.first_step)
        earlier.forget_after(self.folder, self.first_step)
        if self.averages_are_thinned:
            snapshots.thin(self.folder, self.config.train.ema_every or 1)
        files.write_atomic(self.folder / "config.toml", self.config.to_toml())
        if self.state.get("index_hash") != self.dataset.index_hash:
            index.write_index(self.folder / run_folder.IMAGES, self.dataset.files)
        # A crash may have come between a checkpoint and the model that is written after it.
        if self.checkpoint is not None and storage.model_step(self.folder / "model") != self.first_step:
            weights, _ = storage.read_tensors(self.checkpoint / storage.AVERAGE)
            self.write_model(weights, self.first_step)

    def save(self, learner: Learner, meters: Meters, *, wait: bool = True) -> None:
        """Write a checkpoint of the reached step, then the model; delete old checkpoints, and note the step as saved.

        Where `wait` is False and it pays, a thread writes it beside the steps that follow, see `saving.beside`. Its
        error is then that of `writer`.

        Raises:
            ResourceError: the disk does not take it, or did not take the checkpoint before.
        """
        self.writer.settle()
        step, state, t = self.status.step, learner.state, self.config.train
        content = {
            "step": step, "counters": meters.state(), "loss_scale": learner.scale.state(),
            "seconds": self.budget.elapsed, "expected_steps": self.expected, "cooldown": rate.fall(t, step),
            "index_hash": self.dataset.index_hash, "split_hash": self.split.hash(),
            "labels_hash": None if self.classes is None else self.classes.hash(), "config_hash": self.config.hash(),
            "environment": self.environment(), **(self.best.state() if self.best else {}),
        }  # fmt: skip

        def write(tensors: saving.Tensors) -> None:
            checkpoint.save(self.folder, step, tensors, content)
            self.write_model(tensors["ema"], step)
            checkpoint.prune(self.folder, step, t.keep_every, t.cooldown_from)
            self.status.saved = step
            failures.write_status(self.folder, "running", step, steps=self.steps)

        tensors, copy = state.tensors(), None
        if not wait and saving.beside(self.how, saving.size(tensors)):
            copy = saving.copied(tensors)
        if copy is None:
            write(tensors)
        else:
            self.writer.start(partial(write, copy))

    def choose_model(self, loss: float) -> None:
        """At the end of the run, whose last held-out loss is `loss`, let RUN/model be the better average."""
        best, done = self.best, self.status.step
        if best is None or not best.is_better_than(loss):
            return
        folder, finished = self.folder / "model", bool(self.config.train.cooldown)
        storage.replace_weaker(folder, earlier.nearest(self.folder, best.step))
        storage.write_model(folder, self.config, best.weights(), best.step, run_step=done, finished=finished)
        self.status.model_step = best.step
        log.info(
            "the held-out loss has risen from %.4f to %.4f: the model is that of step %d, and the last one %s",
            best.loss, loss, best.step, checkpoint.folder_of(self.folder, done),
        )  # fmt: skip

    def write_model(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Write RUN/model, unless it is of a run that ended and is now made longer, and this one has not ended yet."""
        finished, path = self.steps is not None and step >= self.steps, self.folder / "model"
        if finished or not storage.is_finished(path):
            storage.replace_weaker(path, earlier.nearest(self.folder, step))
            storage.write_model(
                path, self.config, weights, step, finished=finished and bool(self.config.train.cooldown)
            )

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
    init: str | Path | None, accept_new_data: bool, device: str | None, began: float,
) -> Iterator[Run]:  # fmt: skip
    """Open a run, which began at `began` of `budget.now`, and close it in good order.

    The other arguments and the errors are those of `loop.train`.

    Within the context signals stop the run between two steps, errors that a person can mend become a `diffunet.Error`
    and are written to RUN/status.json. Torch's random state, threads and choice of kernels are restored at its end.
    """
    main, flag = variables.is_main(), stop.StopFlag()
    t = config.train
    if t.minutes is not None and t.steps is not None and t.cooldown_from is None:
        raise UsageError("train.minutes and train.steps both say when the run ends; take one")
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.on_signals(flag))
        config = stack.enter_context(run_folder.claimed(config, folder, resume=resume, init=init, main=main))
        config = resuming.with_net(config, net, resumed=resume and bool(checkpoint.steps(folder)))
        t = config.train
        if t.deterministic:
            _prepare_determinism()
        status = failures.Status(folder, config)
        reports = reporting.Reports(folder)
        if main:
            stack.callback(reports.end)  # once the status below says how the run has ended
        stack.enter_context(failures.explaining(status, flag, main))
        limits = stop.Limits(folder / "stop", config.train.stop_after)

        # The cache is built before process groups exist: a long build would run into their timeouts.
        if not (resume and checkpoint.steps(folder)):
            config = config.changed("data", reading=config.data.reading or 2)
        dataset = build.dataset(config.data, data, progress=_reading() if main else None)
        for line in dataset.left_out.lines() if main else ():
            log.info("%s", line)
        config = defaults.with_ranges(config, dataset.ranges)
        resuming.refuse_too_many_rejected(dataset, config.data.max_rejected, data)
        if resume and (latest := checkpoint.newest(folder)) is not None:
            resuming.refuse_shorter(
                config.train, storage.run_config(folder).train, checkpoint.read_state(latest), folder
            )
        previous = checkpoint.newest(folder, partial(rate.leads_on, config.train)) if resume else None
        state = {} if previous is None else checkpoint.read_state(previous)
        if previous is not None:
            resuming.refuse_other_images(state, dataset, folder, data, accept_new_data)
        classes = build.classes(config.data, dataset, data, known=previous is not None)
        names: tuple[str, ...] = ()
        if classes is not None:
            names = classes.names if previous is None else config.data.class_names
            config = config.changed("data", labels=config.data.labels or classes.rule)
        labels = None if classes is None else classes.known(names)
        split = resuming.same_split(state, config.data, dataset, classes)
        thinned, expected = False, 0
        if previous is not None:
            resuming.refuse_other_split(state, dataset, split, config.data.group, accept_new_data)
            resuming.refuse_other_labels(state, dataset, classes, config.data.labels, accept_new_data)
            kept = snapshots.only_where_kept(config, previous)
            before = storage.run_config(folder)
            expected = resuming.expected_steps(state, before.train.minutes, config.train.minutes)
            config = defaults.spaced(kept, before, expected, net)
            thinned = config != kept
            config = resuming.with_environment(config, state["environment"])

        how = compute.choose(ranks.device(device), config.train.precision)
        how = how if previous is None else replace(how, why="as before")
        joined = stack.enter_context(processes.joined(config.train, how.device))
        processes.refuse_different_images(dataset, split, classes, joined)
        stack.enter_context(torch.random.fork_rng([how.device] if how.device.type == "cuda" else []))
        threads = stack.enter_context(compute.use_threads(config.train.threads))
        stack.enter_context(how.kernels(config.train.deterministic))

        compile_is_open = config.train.compile == "auto"
        free = processes.smallest(how.free_memory(), joined)
        if t.minutes is None and t.steps is None:
            config = config.changed("train", minutes=recipe.MINUTES)
            log.info("neither --minutes nor --steps is given: the run takes %g minutes", recipe.MINUTES)
        budget = Budget(config.train.minutes, 0.0, float(state.get("seconds", 0.0)), began)

        one_sided = config.data.flip is None and defaults.one_sided(config.data, dataset, split.training)
        distinct = build.distinct(config.data, dataset.files, split.training)

        def resolved(config: Config) -> Config:
            return defaults.resolve(
                config, images=distinct, class_names=names, mean=dataset.mean, sigma_data=dataset.sigma_data,
                how=how, processes=joined.num_processes, free=free, net=net, expected=expected,
                held_out=len(split.held_out), one_sided=one_sided,
            )  # fmt: skip

        if config.train.steps is None and previous is None:
            assert config.train.minutes is not None, "chosen above"
            left = 60 * config.train.minutes - budget.elapsed
            if init is not None and config.train.half_size is None:  # its weights know the full size already
                config = config.changed("train", half_size=0.0)
            config, expected, budget.slower = recipe.for_minutes(config, how, left, resolved, net, joined)
        config = resolved(half_size.decided(config, state.get("step", 0))).changed("train", threads=threads)
        if state and state.get("cooldown") is None:
            config = defaults.cooled(config, state["step"])
        budget.cooldown, budget.half = config.train.cooldown or 0.0, half_size.share(config.train)
        expected = config.train.steps or expected
        status.config = config
        if net is not build.net:
            build.refuse_misfit(config, net)
        half_size.refuse_misfit(config, net)
        memory.refuse_what_cannot_fit(config, how, net)
        if config.train.batch_size == "auto":
            fits = processes.smallest(memory.images_per_pass(config, how, free, loss, net), joined)
            config = status.config = defaults.after_trial(config, fits, joined.num_processes)

        config, how = kernels.choose(config, how, joined, net, expected, resumed=previous is not None)
        status.config = config

        run = Run(
            folder, config, dataset, split, classes, labels, how, joined, main, previous, state, status, flag, limits,
            compile_is_open, thinned, budget, expected,
            Best.of(folder, state) if len(split.held_out) > 0 and distinct < best.SMALL else None, reports,
        )  # fmt: skip
        if previous is not None:
            resuming.log_differences(state["environment"], run.environment())
            resuming.log_earlier_reading(config)
            log.info("resuming %s at step %d", folder, run.first_step)
        elif resume:
            log.info("no checkpoint in %s yet: starting at step 0", folder)
        status.step = status.saved = run.first_step
        if run.is_done:
            log.info("%s has reached step %d already; raise --steps or --minutes to go on", folder, run.first_step)
            if main:  # a crash may have come between the last checkpoint and what is written after it
                run.begin()
                checkpoint.prune(folder, run.first_step, config.train.keep_every, config.train.cooldown_from)
                Record(folder, run.first_step).close()  # drops half a line of metrics.jsonl
                of_model = storage.weights_step(folder / "model")
                failures.write_status(folder, "done", run.first_step, steps=run.steps, model_step=of_model, exit_code=0)
        yield run


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
