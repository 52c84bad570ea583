"""Training, from a folder of images to a model; `train` reads from top to bottom.

What a step does depends only on the config, the images and the number of the step, by which all random numbers are
keyed (draws.py): so a run that is stopped anywhere and resumed gives the same weights as one that is not.
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffunet import build, draws, plain, ranks
from diffunet.config import Config, config_of
from diffunet.defaults import own_defaults
from diffunet.diffusion.losses import DenoisingLoss, Loss
from diffunet.errors import Cancelled, DivergedError, Stopped
from diffunet.sampling.pipeline import Pipeline
from diffunet.training import budget, earlier, failures, half_size, opening, processes, snapshots, stages, transfer
from diffunet.training.batches import Batches
from diffunet.training.judging import preview, validate
from diffunet.training.learner import Learner
from diffunet.training.meters import Meters, Record
from diffunet.training.plan import plan
from diffunet.training.rate import rate
from diffunet.training.saving import Cadence
from diffunet.training.stop import StopFlag
from diffunet.training.tracking import Trackers

log = logging.getLogger(__name__)

VALIDATION_IMAGES = 256
"""The most held-out images that a validation takes."""


@dataclass(frozen=True)
class TrainProgress:
    """What `on_step` gets: `step` of `steps` are done, the newest mean loss, and the seconds since the start.

    While the end of a run with `train.minutes` is open, `steps` is how many it will be at the pace up to now.
    """

    step: int
    steps: int
    loss: float
    seconds: float


@own_defaults()
def train(
    config: Config | Mapping[str, Any], data: str | Path, out: str | Path, *, net: build.NetFactory = build.net,
    loss: Loss | None = None, resume: bool = False, init: str | Path | None = None, accept_new_data: bool = False,
    device: str | torch.device | None = None, on_step: Callable[[TrainProgress], Any] | None = None,
) -> Path:  # fmt: skip
    """Train a model on a folder of images.

    A program that trains should set `OMP_WAIT_POLICY=PASSIVE` or `GOMP_SPINCOUNT=1000` before it imports torch, as the
    commands do: else a step may take ten times as long on a CPU where another program is busy. With
    `train.deterministic` on CUDA it has to set `CUBLAS_WORKSPACE_CONFIG=:4096:8` before it first uses the GPU.

    Args:
        config: what to train, a Config or a dict of its sections; None in it means "chosen for you", and
            `RUN/config.toml` has what was chosen.
        data: the folder of images, searched recursively.
        out: the run folder, made here.
        net: makes the net from the resolved config, see `build.NetFactory`. It is called when torch's random generator
            has been seeded from `train.seed`, and also on torch's meta device, to count what the net costs.
        loss: a loss function in place of the config's, (denoised, x0 [B C H W] in [-1, 1], sigma [B]) -> [B]. Where the
            task is to inpaint, denoised.x0 has the known pixels of x0 in it, and the loss of an image is divided by the
            hole's share of its pixels, so that a mean over pixels becomes a mean over the hole.
        resume: go on from the newest whole checkpoint of `out`.
        init: start from the weights of this model, with its architecture.
        accept_new_data: resume with images that are not those that the run began with.
        device: cpu, cuda, cuda:1 or mps; the best there is by default.
        on_step: called after every step on the main process; returning False, or another false value but None, stops
            the run with everything saved.

    Returns:
        The model folder, `out/model`.

    Raises:
        UsageError: options are wrong or contradict each other, or `out` exists and `resume` is False.
        DataError: there are no usable images, too many unusable ones, or not those that the run began with.
        CheckpointError: nothing whole is there to resume from, or another process writes to `out`.
        DivergedError: too many steps in a row had no finite gradient; the last good checkpoint is kept.
        ResourceError: memory or disk is exhausted, or another process of the run is gone.
        Stopped: by SIGINT, SIGTERM, SIGHUP, `on_step`, `train.stop_after` or a file `out/stop`; everything is saved.
    """
    began = budget.now()
    config, data, out = config_of(config), plain.path("data", data), plain.path("out", out)
    for name, function in (("net", net), ("loss", loss), ("on_step", on_step)):
        if function is not None or name == "net":
            plain.function(name, function)
    if init is not None:
        plain.path("init", init)  # a web address is no path, whose slashes would be made fewer
        init = os.fspath(init)
    opened = opening.opened(
        config, data, out, net=net, loss=loss, resume=plain.flag("resume", resume), init=init,
        accept_new_data=plain.flag("accept_new_data", accept_new_data), device=plain.device(device),
        began=began,
    )  # fmt: skip
    with opened as run, contextlib.ExitStack() as stack:
        how, flag, status, first_step = run.how, run.flag, run.status, run.first_step
        if run.is_done:
            return run.folder / "model"

        # The net with its averages and the optimizer. Its random start is drawn from a key, like everything else.
        torch.manual_seed(draws.seed_of("init", run.config.train.seed))
        denoiser = build.denoiser(run.config, net(run.config))
        if init is not None and run.checkpoint is None:
            transfer.copy_weights(init, denoiser.net, run.config, net)
        how.prepare(denoiser)
        compiling = replace(how, compiled=run.config.train.compile == "on")
        learner = Learner(run.config, denoiser, compiling, loss, run.processes)
        run.compile(learner)
        if run.checkpoint is not None:
            learner.load(run.checkpoint, run.state)
        run.record(learner, own=net is not build.net or loss is not None)
        run.begin()

        # The images, and what the averaged weights are judged by.
        config, t, share, held_out = run.config, run.config.train, run.share, run.split.held_out
        validate_every, sample_every = t.validate_every, t.sample_every
        assert validate_every, "the config is resolved"
        assert sample_every, "the config is resolved"
        batches = Batches.of(
            config, run.dataset, run.split.training, denoiser.schedule, share, how, run.masks, run.labels,
            run.split.groups,
        )  # fmt: skip
        # Of a few pictures that windows are taken of there are as many windows as there would be images.
        many = VALIDATION_IMAGES if config.data.fit == "patch" and len(held_out) else len(held_out)
        few = np.linspace(0, len(held_out) - 1, min(VALIDATION_IMAGES, many)).astype(np.int64)
        validation = batches.held_out(held_out[few]).to(how.device) if len(few) else None
        judge = DenoisingLoss(build.denoiser(config, learner.state.ema.net), build.weighting(config), loss)
        pipeline = Pipeline(config, judge.denoiser, how, net)
        meters, last_loss = Meters(run.state.get("counters", {}), how, share.batch_size), math.nan
        record, trackers = None, Trackers(run.folder)
        if run.is_main:
            stack.callback(trackers.close)
            record = Record(run.folder, first_step, trackers)
            stack.callback(record.close)
            failures.write_status(run.folder, "running", first_step, steps=run.steps)
            run.reports.begin(run, batches, data)
            stack.enter_context(failures.saved_first(status, partial(run.save, learner, meters)))
            stack.enter_context(run.writer.settled())  # before anything else hears of an error, and before the end
        for line in plan(run, net):
            log.info("%s", line)

        flag.begin(timedelta(minutes=t.timeout))
        sharing = ranks.of_group(timedelta(minutes=t.timeout))
        if run.is_main:  # a signal that comes meanwhile waits for the first step
            trackers.begin(t.track, first_step, config)
        cadence = Cadence(t.checkpoint_minutes)

        def validated(done: int, flag: StopFlag) -> float | None:
            """Return the validation loss after `done` steps, on the main process, where it is noted."""
            assert validation is not None, "there are images to validate with"
            with how.autocast():
                value = validate(judge, validation, t.seed, learner.shape, share.images_per_pass, flag, sharing)
            if record is not None and value is not None:
                if run.best is not None:  # before the line by which a run that goes on knows of it
                    run.best.note(value, done, run.config, learner.state.ema.net.state_dict())
                record.metrics(done, validation_loss=value)
            return value

        # The stop after which the run goes on may have broken off what it was to be judged by.
        if validation is not None and first_step and first_step % validate_every == 0:
            known = first_step if record is None else record.validated
            if processes.smallest(known, run.processes) < first_step:
                with contextlib.suppress(Cancelled):
                    validated(first_step, flag)

        for step, passes in stack.enter_context(contextlib.closing(batches.steps(first_step))):
            meters.add(learner.step(step, passes))
            status.step = done = step + 1
            run.budget.note(done, half_size.applies(learner.config.train, step))
            run.writer.check()

            # From here on values are read back from the device, which makes it wait: so this is done every few steps.
            if run.is_main and (reason := run.limits.reason()):
                flag.set(reason)
            last = done == run.steps
            regular = last or done % t.checkpoint_every == 0 or done == run.config.train.cooldown_from
            is_open = run.is_main and run.steps is None
            agreed = flag.agreed(
                save=run.is_main and not regular and cadence.due(),
                cool=is_open and run.budget.cools(done),
                grow=is_open and run.budget.grows(),
            )
            stopping = agreed.stop and not last
            growing = agreed.grow and half_size.applies(run.config.train, done) and not stopping
            cooling = agreed.cool and run.steps is None and not stopping
            if saving := regular or stopping or agreed.save or cooling:
                cadence.restart()
            if saving or done % t.log_every == 0:
                metrics, streak = meters.report(run.processes)
                last_loss = metrics["loss"]
                if record is not None:
                    record.metrics(
                        done, **metrics, learning_rate=rate(learner.config.train, step), seconds=run.budget.elapsed,
                        **learner.scale.state(),
                    )  # fmt: skip
                spoilt = saving and not learner.state.finite()
                failures.refuse_divergence(status, streak, spoilt, run.writer.settle)
            is_due = validation is not None and (last or done % validate_every == 0)
            if is_due and last:  # the model is chosen by it: nothing breaks it off, and the last checkpoint knows it
                run.judged = validated(done, StopFlag())
            if record is not None:
                # Stored averages are written before the checkpoint, so that a run resumed from it lacks none.
                if t.ema_every and (last or done % t.ema_every == 0):
                    snapshots.write(run.folder, done, learner.state.power)
                if earlier.is_due(done):
                    earlier.write(run.folder, done, learner.state.ema.net)
                if saving:
                    run.save(learner, meters, wait=stopping or last or cooling)
                if last:
                    run.choose_model()
            # A process that is asked to stop may have half a minute left: these come after saving, and break off.
            with contextlib.suppress(Cancelled):
                if is_due and not last:
                    validated(done, flag)
                if t.previews and (last or done % sample_every == 0):
                    path = run.folder / "samples" / f"step-{done:08d}.png"
                    try:
                        if (
                            picture := preview(pipeline, t.previews, path, share.images_per_pass, flag, sharing)
                        ) is not None:
                            trackers.show(done, picture, path)
                    except DivergedError as error:  # the averages draw bad pictures, but may recover
                        log.warning("no preview of step %d: %s", done, error)
                    if run.is_main:
                        run.reports.write()
            if record is not None:
                trackers.tell()
                seconds = budget.now() - began
                progress = TrainProgress(done, run.end_in_sight(done), last_loss, seconds)
                if on_step is not None and not plain.goes_on(on_step(progress)):
                    flag.set("on_step")
            if growing:
                stages.grow(run, learner, done)
            if cooling:  # after what was measured and saved of the run whose end was open
                stages.cool(run, learner, done)
            if stopping:
                flag.settle()
                # A launcher kills the other processes once one has ended: none may end before the main one has saved.
                run.processes.wait_for_everyone()
                if run.is_main:
                    run.limits.done()
                of = f"of {run.steps}" if run.steps is not None else f"of about {run.end_in_sight(done)}"
                raise Stopped(f"stopped at step {done} {of} with everything saved; go on with --resume")
            if last:
                break
        flag.settle()
        if record is not None:
            model_step = status.model_step or done
            failures.write_status(run.folder, "done", done, steps=done, model_step=model_step, exit_code=0)
            run.limits.done()
        run.processes.wait_for_everyone()
    return run.folder / "model"
