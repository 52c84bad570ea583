"""Training, from a folder of images to a model. Flat: read it from top to bottom.

Training is a pure function of (config, data, step): every draw is keyed by the step (draws.py), the learning rate is a
function of it, and so a run that is stopped anywhere and resumed gives the same weights as one that is not.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffunet import build, compute, draws, files, storage
from diffunet.config import Config
from diffunet.data import index
from diffunet.data.dataset import split
from diffunet.diffusion.losses import DenoisingLoss, Loss
from diffunet.errors import Cancelled, DivergedError, Stopped, UsageError
from diffunet.pictures import images
from diffunet.sampling.pipeline import Pipeline
from diffunet.training import checkpoint, defaults, failures, memory, snapshots, start
from diffunet.training.batches import Batch, Batches
from diffunet.training.learner import Learner, rate
from diffunet.training.record import Record, write_status
from diffunet.training.stop import Limits, StopFlag, on_signals

log = logging.getLogger(__name__)

PREVIEW_SAMPLER, PREVIEW_STEPS, PREVIEW_LADDER = "unipc", 15, "log-snr"


@dataclass(frozen=True)
class TrainProgress:
    """What `on_step` is told: steps done of `steps`, the newest mean loss known, seconds since this process began."""

    step: int
    steps: int
    loss: float
    seconds: float


def train(
    config: Config,
    data: str | Path,
    out: str | Path,
    *,
    loss: Loss | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    accept_new_data: bool = False,
    device: str | None = None,
    on_step: Callable[[TrainProgress], Any] | None = None,
) -> Path:
    """Train a model on a folder of images.

    A program that trains should set `OMP_WAIT_POLICY` or `GOMP_SPINCOUNT=1000` before it imports torch, as the commands
    do: else a step may take ten times as long on a CPU where another program is busy. With `train.deterministic` on
    CUDA it has to set `CUBLAS_WORKSPACE_CONFIG=:4096:8` before it first uses the GPU.

    Args:
        config: what to train; None in it means "chosen for you", and `RUN/config.toml` has what was chosen.
        data: the folder of images, searched recursively.
        out: the run folder, made here.
        loss: a loss of one's own, (denoised, x0 [B C H W] in [-1, 1], sigma [B]) -> [B], instead of the config's. Where
            the task is to inpaint, denoised.x0 has the known pixels of x0 in it, and what the loss says of an image is
            divided by the hole's share of its pixels: a mean over pixels so becomes a mean over the hole.
        resume: go on from the newest whole checkpoint of `out`.
        init: start from the weights of this model, with its architecture.
        accept_new_data: resume with images that are not those that the run began with.
        device: cpu, cuda, cuda:1, mps; the best there is by default.
        on_step: called after every step on the main process; returning False stops the run with everything saved.

    Returns:
        The model folder, `out/model`.

    Raises:
        UsageError: options that cannot be, or `out` exists and `resume` is False.
        DataError: no usable images, too many unusable ones, or not those that the run began with.
        CheckpointError: nothing whole to resume from, or another process writes to `out`.
        DivergedError: too many steps in a row without a finite gradient; the last good checkpoint is kept.
        ResourceError: out of memory or disk, or another process of the run is gone.
        Stopped: on SIGINT, SIGTERM, SIGHUP, by `on_step`, `train.stop_after` or a file `out/stop`; everything saved.
    """
    began = time.monotonic()
    run, main = Path(out), int(os.environ.get("RANK", 0)) == 0
    flag = StopFlag()
    with contextlib.ExitStack() as stack:
        stack.enter_context(on_signals(flag))
        config = stack.enter_context(start.begin(config, run, resume=resume, init=init, main=main))
        if config.train.deterministic:
            start.warn_where_too_late()
        where = failures.Where(run, config)
        stack.enter_context(failures.told(where, flag, main))
        limits = Limits(run / "stop", config.train.stop_after)

        # The cache is built before process groups exist: a long build would run into their timeouts.
        dataset = build.dataset(config, Path(data), progress=start.decoding(main))
        start.enough_images(dataset.rejected, len(dataset.files), config.data.max_rejected, Path(data))
        found = checkpoint.newest(run) if resume else None
        state, thinned = None if found is None else checkpoint.read_state(found), False
        if found is not None and state is not None:
            start.same_data(state, dataset, run, Path(data), accept_new_data)
            kept = snapshots.only_where_kept(config, found)
            config = defaults.spaced(kept, storage.run_config(run))
            thinned = config != kept
        names = start.classes(config, dataset, resumed=found is not None)
        chosen, held = split(dataset.files, config.data.held_out, index.HELD_OUT_MAX)

        if state is not None:
            config = start.as_it_was(config, state["environment"])
        how = compute.choose(start.device(device), config.train.precision)
        if state is not None:
            how = replace(how, why="as before")
        stack.enter_context(start.end_of_group())
        accelerator = start.accelerator(config, how.device)
        processes, rank = accelerator.num_processes, accelerator.process_index
        start.same_everywhere(dataset, accelerator)
        # The caller's generators, threads and kernels stay as they are.
        stack.enter_context(torch.random.fork_rng([how.device] if how.device.type == "cuda" else []))
        threads = stack.enter_context(compute.use_threads(config.train.threads))
        stack.enter_context(how.kernels(config.train.deterministic))
        left_open = config.train.compile == "auto"
        free = start.smallest(start.free_memory(how), accelerator)
        config = defaults.resolve(
            config,
            images=len(chosen),
            class_names=names,
            mean=dataset.mean,
            sigma_data=dataset.sigma_data,
            how=how,
            processes=processes,
            free=free,
        ).changed("train", threads=threads)
        where.config = config
        price = memory.price(config)
        memory.refuse_what_cannot_fit(config, how)
        if config.train.batch_size == "auto":
            fits = start.smallest(memory.images_per_pass(config, how, free, loss), accelerator)
            config = where.config = defaults.after_trial(config, fits, processes)
        t, d = config.train, config.data
        assert t.steps is not None, "the config is resolved"
        assert isinstance(t.batch_size, int), "the config is resolved"
        assert t.grad_accumulation is not None, "the config is resolved"

        # The net. Its random start is drawn from a key, like everything else.
        torch.manual_seed(draws.seed_of("init", t.seed))
        denoiser = build.denoiser(config)
        if init is not None and found is None:
            start.copy_weights(init, denoiser.net, config)
        how.prepare(denoiser)
        one_pass = t.batch_size // processes // t.grad_accumulation
        learner = Learner(config, denoiser, replace(how, compiled=t.compile == "on"), loss, accelerator)
        if why := start.trouble_compiling(learner, one_pass, accelerator):
            if left_open:
                log.warning("the net is not compiled: %s", why)
                config = where.config = config.changed("train", compile="off")
            else:
                raise UsageError(f"the net cannot be compiled: {why}; --train.compile off does without")
        learned = learner.state
        # Steps without a finite gradient: in all, in a row up to now, and those that float16's scale explains.
        counters = {"skipped": 0, "streak": 0, "overflows": 0}

        # Going on where a run stopped.
        first_step = 0
        environment = start.environment(how, config, processes)
        if found is not None and state is not None:
            start.say_differences(state["environment"], environment)
            learned.load(found, state["step"])
            learner.scale.load(state.get("loss_scale", {}))
            first_step, counters = state["step"], counters | state["counters"]
            log.info("resuming %s at step %d", run, first_step)
        elif resume:
            log.info("no checkpoint in %s yet: starting at step 0", run)
        where.step = where.saved = first_step
        if main:
            snapshots.forget_after(run, first_step)
            if thinned:
                snapshots.thin(run, t.ema_every or 1)
            files.write_atomic(run / "config.toml", config.to_toml())
            if state is None or state["index_hash"] != dataset.index_hash:
                index.write_index(run / start.IMAGES, dataset.files)
            if found is not None and storage.model_step(run / "model") != first_step:  # a crash came between the two
                storage.write_model(run / "model", config, learned.ema.net.state_dict(), first_step)
        if first_step >= t.steps:
            log.info("%s has reached step %d already; raise --steps to go on", run, first_step)
            if main:  # a crash may have come after the last checkpoint
                checkpoint.prune(run, first_step, t.keep_every)
                Record(run, first_step, tensorboard=False).close()  # takes half a line out
                write_status(run, "done", first_step, steps=t.steps, exit_code=0)
            return run / "model"

        schedule = denoiser.schedule
        labels = dataset.labels(names) if names else None
        masks = d.masks if config.diffusion.task == "inpaint" else None
        batches = Batches(
            dataset, chosen, labels, len(names), config.diffusion.label_dropout, schedule, t.seed, t.batch_size,
            t.grad_accumulation, rank, processes, d.image_size, d.fit, bool(d.flip), d.background,
            pin=how.device.type == "cuda", augment=d.augment, masks=masks,
        )  # fmt: skip
        spread = np.linspace(0, len(held) - 1, min(256, len(held))).astype(np.int64)  # over all classes
        batches = batches.stored(how)
        validation = batches.held_out(held[spread]).to(how.device) if len(held) and main else None
        judge = DenoisingLoss(build.denoiser(config, learned.ema.net), build.weighting(config), loss)
        pipeline = Pipeline(config, judge.denoiser, how)
        record = None
        if main:
            record = Record(run, first_step, t.tensorboard)
            stack.callback(record.close)
            record.status("running", first_step, steps=t.steps)
        for line in start.plan(config, price, dataset, len(chosen), len(held), how, processes):
            log.info("%s", line)

        # Counted on the device: nobody waits for it.
        counted = {name: torch.tensor(float(number), device=how.device) for name, number in counters.items()}
        longest = counted["streak"].clone()  # since the last line of metrics
        window = torch.zeros(3, device=how.device)  # since then: sums of loss and gradient norm, and of good steps
        last_loss, window_began, window_steps = math.nan, time.monotonic(), 0
        shape, fp16 = (d.channels, d.image_size, d.image_size), how.precision == "fp16"

        def save() -> None:
            state = {
                "step": where.step,
                "counters": {name: int(number.item()) for name, number in counted.items()},
                "loss_scale": learner.scale.state(),
                "index_hash": dataset.index_hash,
                "config_hash": config.hash(),
                "environment": environment,
            }
            checkpoint.save(run, where.step, learned.tensors(), state)
            storage.write_model(run / "model", config, learned.ema.net.state_dict(), where.step)
            checkpoint.prune(run, where.step, t.keep_every)
            where.saved = where.step

        if main:
            stack.enter_context(failures.saved_first(where, save))
        flag.begin(timedelta(minutes=t.timeout))
        for step, passes in batches.walk(first_step, t.steps):
            loss_of, norm, bad, overflow = learner.step(step, passes)
            nothing = bad + overflow
            counted["skipped"] += bad
            counted["overflows"] += overflow
            counted["streak"] = (counted["streak"] + bad) * torch.where(overflow > 0, 1.0, bad)
            longest = torch.maximum(longest, counted["streak"])
            window += torch.where(nothing > 0, 0.0, torch.stack([loss_of, norm, torch.ones_like(norm)]))
            window_steps += 1
            where.step = done = step + 1

            # Only here, now and then, does the loop wait for the device.
            if main and (why := limits.reason()):
                flag.set(why)
            stopping = flag.agreed() and done < t.steps
            saving = stopping or done == t.steps or done % t.checkpoint_every == 0
            if saving or done % t.log_every == 0:
                loss_total, norm_total, good = accelerator.reduce(window).tolist()
                last_loss = loss_total / (good / processes) if good else math.nan
                if record is not None:
                    record.metrics(
                        done,
                        loss=last_loss,
                        grad_norm=norm_total / good if good else math.nan,
                        learning_rate=rate(config, step),
                        images_per_second=window_steps * t.batch_size / (time.monotonic() - window_began),
                        skipped=int(counted["skipped"].item()),
                        **({"overflows": int(counted["overflows"].item())} | learner.scale.state() if fp16 else {}),
                    )
                failures.refuse_divergence(where, int(longest.item()), saving and not learned.finite())
                longest = counted["streak"].clone()
                window.zero_()
                window_began, window_steps = time.monotonic(), 0
            if record is not None:
                if t.ema_every and (done % t.ema_every == 0 or done == t.steps):
                    snapshots.write(
                        run, done, learned.power
                    )  # first: a checkpoint says that all up to it is on the disk
                if saving:
                    save()
                    record.status("running", done, steps=t.steps)
                # Who is asked to stop may have half a minute: saving comes first, and these are broken off.
                with contextlib.suppress(Cancelled):
                    if validation is not None and (done == t.steps or done % t.validate_every == 0):
                        with how.autocast():
                            value = validate(judge, validation, t.seed, shape, one_pass, flag)
                        record.metrics(done, validation_loss=value)
                    if t.previews and (done == t.steps or done % t.sample_every == 0):
                        try:
                            preview(pipeline, t.previews, run / "samples" / f"step-{done:08d}.png", one_pass, flag)
                        except DivergedError as error:  # of pictures: what is learned may be whole
                            log.warning("no preview of step %d: %s", done, error)
                if on_step is not None:
                    answer = on_step(TrainProgress(done, t.steps, last_loss, time.monotonic() - began))
                    if answer is False:
                        flag.set("on_step")
            if stopping:
                flag.settle()
                # A launcher kills the others once one has ended: not before the main process has saved.
                accelerator.wait_for_everyone()
                if main:
                    limits.done()
                raise Stopped(f"stopped at step {done} of {t.steps} with everything saved; go on with --resume")
        flag.settle()
        if record is not None:
            record.status("done", t.steps, steps=t.steps, exit_code=0)
            limits.done()
        accelerator.wait_for_everyone()
    return run / "model"


@torch.no_grad()
def validate(
    judge: DenoisingLoss, batch: Batch, seed: int, shape: tuple[int, int, int], at_once: int, flag: StopFlag
) -> float:
    """The mean loss of the averaged weights on the held-out `batch`, with the same noise every time.

    Raises:
        Cancelled: where a stop is asked for.
    """
    total = torch.zeros((), device=batch.sigma.device)
    for first in range(0, len(batch.sigma), at_once):
        if flag.wanted:
            raise Cancelled("validation")
        part = slice(first, first + at_once)
        sigma = batch.sigma[part]
        noise = draws.gaussian(draws.seed_of("validation", seed), 0, first, len(sigma), shape, sigma.device)
        label, keep = (None if every is None else every[part] for every in (batch.label, batch.keep))
        total += judge(images.to_float(batch.images[part]), noise, sigma, label, keep).sum()
    return total.item() / len(batch.sigma)


def preview(pipeline: Pipeline, num: int, path: Path, at_once: int, flag: StopFlag) -> None:
    """A grid of samples, from the same noise every time, so that previews of a run can be compared.

    By a fast sampler, whatever the model's own: one of 4,000 calls would take longer than the training between two.

    Raises:
        Cancelled: where a stop is asked for.
    """
    pictures = pipeline.sample(
        num, sampler=PREVIEW_SAMPLER, steps=PREVIEW_STEPS, ladder=PREVIEW_LADDER, batch_size=at_once,
        on_step=lambda _: not flag.wanted,
    )  # fmt: skip
    images.save(images.grid([images.to_array(picture, pipeline.channels) for picture in pictures]), path)
