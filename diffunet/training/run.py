"""A run that is open: what it works with, and what is written to its folder, `Run.begin` and `Run.save`."""

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from diffunet import build, compute, files, storage
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.data import index
from diffunet.data.dataset import Dataset
from diffunet.data.groups import Split
from diffunet.data.labels import Labels
from diffunet.errors import Stopped, UsageError
from diffunet.inpainting.own_masks import OwnMasks
from diffunet.training import (
    checkpoint,
    earlier,
    failures,
    kernels,
    processes,
    rate,
    reporting,
    run_folder,
    saving,
    snapshots,
    stop,
)
from diffunet.training.batches import Share
from diffunet.training.best import Best
from diffunet.training.budget import Budget
from diffunet.training.learner import Learner
from diffunet.training.meters import Meters
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
        ema_every_is_ours: whether train.ema_every was chosen here, and by no person; None where that is not known.
        budget: the time that the run has taken and may take.
        expected: the number of steps to expect where the end is still open, else that of the config.
        best: the average of least validation loss; None where the run has many images, or holds out none.
        reports: what writes the report of the run.
        masks: those of one's own that it learns to inpaint with, if any.
        judged: the validation loss after the last step of the run, once it is measured.
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
    ema_every_is_ours: bool | None
    budget: Budget
    expected: int
    best: Best | None
    reports: reporting.Reports
    masks: OwnMasks | None = None
    judged: float | None = None
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
            if compute.is_out_of_memory(error) or isinstance(error, Stopped):
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
        """Record what a step computes as CUDA graphs where that is possible; see `Learner.record`."""
        reason = learner.record(self.share.images_per_pass, own=own)
        if self.how.device.type == "cuda":
            log.info("steps are %s", "replayed from a CUDA graph" if reason is None else f"not recorded: {reason}")

    def begin(self) -> None:
        """On the main process, write config, lists of images and masks, and model, and delete what later steps left.

        A run that got further than its last checkpoint has left averages and previews; they will be written again.
        """
        self.status.begun = True
        if not self.is_main:
            return
        snapshots.forget_after(self.folder, self.first_step)
        checkpoint.forget_after(self.folder, self.first_step)
        earlier.forget_after(self.folder, self.first_step)
        for preview in (self.folder / "samples").glob("step-*.png"):
            if preview.stem[5:].isdigit() and int(preview.stem[5:]) > self.first_step:
                preview.unlink()
        if self.masks is not None:
            files.write_atomic(self.folder / run_folder.MASKS, self.masks.index)
        if self.averages_are_thinned:
            snapshots.thin(self.folder, self.config.train.ema_every or 1)
        self.write_config()
        if self.state.get("index_hash") != self.dataset.index_hash:
            index.write_index(self.folder / run_folder.IMAGES, self.dataset.files)
        # A crash may have come between a checkpoint and the model that is written after it.
        if self.checkpoint is not None and storage.model_step(self.folder / "model") != self.first_step:
            weights, _ = storage.read_tensors(self.checkpoint / storage.AVERAGE)
            self.write_model(weights, self.first_step)

    def write_config(self) -> None:
        """Write RUN/config.toml, by which later parts of the run go on, but not when this part is to end."""
        config = self.config.changed("train", stop_after=None)
        files.write_atomic(self.folder / "config.toml", config.to_toml())

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
            **({"groups_hash": self.split.groups_hash()} if self.config.data.balance_groups else {}),
            "labels_hash": None if self.classes is None else self.classes.hash(), "config_hash": self.config.hash(),
            "environment": self.environment(), "ema_every_is_ours": self.ema_every_is_ours,
            **(self.best.state() if self.best else {}),
        }  # fmt: skip
        if self.judged is not None:
            content["validation_loss"] = self.judged

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

    def choose_model(self) -> None:
        """At the end of the run let RUN/model be the average of least validation loss, where that has risen since."""
        best, loss, done = self.best, self.judged, self.status.step
        if best is None or loss is None or not best.is_better_than(loss):
            return
        folder, finished = self.folder / "model", bool(self.config.train.cooldown)
        storage.replace_weaker(folder, earlier.nearest(self.folder, best.step))
        storage.write_model(folder, self.config, best.weights(), best.step, run_step=done, finished=finished)
        self.status.model_step = best.step
        log.info(
            "the validation loss has risen from %.4f to %.4f (overfitting): the model is that of step %d, and the last "
            "one %s. More images, or --init MODEL, help more than more time",
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
            "passes": self.config.train.grad_accumulation, "cpu parts": self.config.train.cpu_parts,
            "precision": self.how.precision,
            "compile": self.config.train.compile, "kernels": kernels.description(self.how),
            "python": platform.python_version(),
        }  # fmt: skip
