"""What comes before the first step of a run: locking the folder, reading the images, completing the config, joining the
processes. Or only what a run would do, `foreseen`.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from diffunet import build, compute, ranks, storage, variables
from diffunet.config import Config
from diffunet.diffusion.losses import Loss
from diffunet.errors import UsageError
from diffunet.training import (
    best,
    checkpoint,
    defaults,
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
    snapshots,
    stop,
    transfer,
)
from diffunet.training.best import Best
from diffunet.training.budget import Budget, now
from diffunet.training.meters import Record
from diffunet.training.run import Run

log = logging.getLogger(__name__)


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
    _refuse_two_ends(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.on_signals(flag))
        config = stack.enter_context(run_folder.claimed(config, folder, resume=resume, init=init, main=main))
        done = max(checkpoint.steps(folder), default=0)
        status, reports = failures.Status(folder, config, done, done), reporting.Reports(folder)
        if main:
            stack.callback(reports.end)  # once the status below says how the run has ended
        stack.enter_context(failures.explaining(status, flag, main))
        ready = _ready(
            config, data, status, flag, reports, net=net, loss=loss, resume=resume, init=init,
            accept_new_data=accept_new_data, device=device, began=began,
        )  # fmt: skip
        run = stack.enter_context(ready)
        if run.checkpoint is not None:
            resuming.log_differences(run.state["environment"], run.environment())
            resuming.log_earlier_reading(run.config)
            log.info("resuming %s at step %d", folder, run.first_step)
        elif resume:
            log.info("no checkpoint in %s yet: starting at step 0", folder)
        status.step = status.saved = run.first_step
        if run.is_done:
            log.info("%s has reached step %d already; raise --steps or --minutes to go on", folder, run.first_step)
            if main:  # a crash may have come between the last checkpoint and what is written after it
                run.begin()
                run.judged = run.state.get("validation_loss")
                if storage.weights_step(folder / "model") == run.first_step:
                    run.choose_model()
                checkpoint.prune(folder, run.first_step, run.config.train.keep_every, run.config.train.cooldown_from)
                Record(folder, run.first_step).close()  # drops half a line of metrics.jsonl
                of_model = storage.weights_step(folder / "model")
                failures.write_status(folder, "done", run.first_step, steps=run.steps, model_step=of_model, exit_code=0)
        yield run


@contextlib.contextmanager
def foreseen(
    config: Config, data: Path, folder: Path, *, net: build.NetFactory, init: str | None, device: str | None,
) -> Iterator[Run]:  # fmt: skip
    """Open a new run as `opened` would, without its folder: nothing is written but decoded images, to their cache.

    Raises:
        UsageError, DataError, CheckpointError, ResourceError: as `opened` does.
    """
    _refuse_two_ends(config)
    if init is not None:
        config = transfer.like_model(config, init)
    status, flag = failures.Status(folder, config), stop.StopFlag()
    with failures.explaining(status, flag, main=False), _ready(
        config, data, status, flag, reporting.Reports(folder), net=net, loss=None, resume=False, init=init,
        accept_new_data=False, device=device, began=now(),
    ) as run:  # fmt: skip
        yield run


@contextlib.contextmanager
def _ready(
    config: Config, data: Path, status: failures.Status, flag: stop.StopFlag, reports: reporting.Reports, *,
    net: build.NetFactory, loss: Loss | None, resume: bool, init: str | Path | None, accept_new_data: bool,
    device: str | None, began: float,
) -> Iterator[Run]:  # fmt: skip
    """Read the images, complete the config and join the processes of a run whose folder is claimed, and yield it."""
    main, folder = variables.is_main(), status.folder
    if config.train.cooldown_from is not None and config.train.steps is None:
        raise UsageError(
            "train.cooldown_from is a step, and the run has no number of steps: give one (--steps), or say the share "
            "of the time (--train.cooldown)"
        )
    with contextlib.ExitStack() as stack:
        config = resuming.with_net(config, net, resumed=resume and bool(checkpoint.steps(folder)))
        t = config.train
        if t.deterministic:
            _prepare_determinism()
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
        is_over = previous is not None and state["step"] == config.train.steps
        masks = None if is_over else resuming.own_masks(config, folder, data, accept=accept_new_data, resumed=resume)
        if previous is not None:
            resuming.refuse_other_images(state, dataset, folder, data, accept_new_data)
        classes = build.classes(config.data, dataset, data, known=previous is not None)
        names: tuple[str, ...] = ()
        if classes is not None:
            if previous is None:
                resuming.refuse_other_names(config.data.class_names, classes.names)
            names = config.data.class_names or classes.names
            config = config.changed("data", labels=config.data.labels or classes.rule)
        labels = None if classes is None else classes.known(names)
        split = resuming.same_split(state, config.data, dataset, classes)
        thinned, expected = False, 0
        is_ours = state.get("ema_every_is_ours") if previous is not None else config.train.ema_every is None
        if previous is not None:
            resuming.refuse_other_split(state, dataset, split, config.data.group, accept_new_data)
            resuming.refuse_other_labels(state, dataset, classes, config.data.labels, accept_new_data)
            kept = snapshots.only_where_kept(config, previous)
            before = storage.run_config(folder)
            expected = resuming.expected_steps(state, before.train.minutes, config.train.minutes)
            if kept.train.ema_every != before.train.ema_every:  # it was given to this part of the run
                is_ours = False
            config = defaults.spaced(kept, before, expected, net, ours=is_ours)
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

        if loss is not None:  # it may keep things from one pass to the next, and plan.py does not know of it
            if (config.train.cpu_parts or 1) > 1:
                log.warning("the loss is your own: each pass is computed whole, and not in %d parts", t.cpu_parts)
            config = config.changed("train", cpu_parts=1)
        timed = config.train.steps is None and previous is None
        if timed:
            assert config.train.minutes is not None, "chosen above"
            left = 60 * config.train.minutes - budget.elapsed
            if init is not None and config.train.half_size is None:  # its weights know the full size already
                config = config.changed("train", half_size=0.0)
            config, expected, budget.slower = recipe.for_minutes(config, how, left, resolved, net, joined)
        asked = config
        config = resolved(half_size.decided(config, state.get("step", 0))).changed("train", threads=threads)
        if state and state.get("cooldown") is None:
            config = defaults.cooled(config, state["step"])
        budget.cooldown, budget.half = config.train.cooldown or 0.0, half_size.share(config.train)
        expected = config.train.steps or expected
        lower, stays = defaults.rate_for(config, expected or 1), config.train.learning_rate or 0
        if previous is not None and config.train.optimizer == "muon" and stays > 1.2 * lower:
            log.info("the learning rate stays %g; --train.learning-rate %g suits %d steps", stays, lower, expected)
        status.config = config
        if net is not build.net:
            build.refuse_misfit(config, net)
        half_size.refuse_misfit(config, net)
        memory.refuse_what_cannot_fit(config, how, net)
        if config.train.batch_size == "auto":
            fits = processes.smallest(memory.images_per_pass(config, how, free, loss, net), joined)
            config = defaults.after_trial(config, fits, joined.num_processes, expected or 1)
            if timed:  # its steps were counted for the batch that is chosen without a trial
                plain, found = resolved(asked.changed("train", batch_size=None)).train, config.train
                assert isinstance(plain.batch_size, int), "it is resolved"
                assert isinstance(found.batch_size, int), "it is found"
                expected = max(1, round(expected * plain.batch_size / found.batch_size))
                fixed = {"batch_size": found.batch_size, "grad_accumulation": found.grad_accumulation}
                config = resolved(asked.changed("train", **fixed)).changed("train", threads=threads)

        config, how = kernels.choose(config, how, joined, net, expected, resumed=previous is not None, timed=timed)
        status.config = config

        run = Run(
            folder, config, dataset, split, classes, labels, how, joined, main, previous, state, status, flag, limits,
            compile_is_open, thinned, is_ours, budget, expected,
            Best.of(folder, state) if len(split.held_out) > 0 and distinct < best.SMALL else None, reports, masks,
        )  # fmt: skip
        yield run


def _refuse_two_ends(config: Config) -> None:
    t = config.train
    if t.minutes is not None and t.steps is not None and t.cooldown_from is None:
        raise UsageError("train.minutes and train.steps both say when the run ends; take one")


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
