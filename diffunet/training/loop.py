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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from diffunet import build, devices, draws, files, storage
from diffunet.config import Config
from diffunet.data import images
from diffunet.data.cache import split
from diffunet.data.folder import class_names
from diffunet.diffusion.losses import DenoisingLoss, Loss
from diffunet.errors import DivergedError, ResourceError, Stopped
from diffunet.pipeline import Pipeline
from diffunet.training import checkpoint, defaults, start
from diffunet.training.batches import Batch, Batches
from diffunet.training.ema import EMA
from diffunet.training.record import Record
from diffunet.training.stop import StopFlag, on_signals

log = logging.getLogger(__name__)


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
    on_step: Callable[[TrainProgress], Any] | None = None,
) -> Path:
    """Train a model on a folder of images.

    Args:
        config: what to train; None in it means "chosen for you", and `RUN/config.toml` has what was chosen.
        data: the folder of images, searched recursively.
        out: the run folder, made here.
        loss: a loss of one's own, (denoised, x0 [B C H W] in [-1, 1], sigma [B]) -> [B], instead of the config's.
        resume: go on from the newest whole checkpoint of `out`.
        init: start from the weights of this model, with its architecture.
        on_step: called after every step on the main process; returning False stops the run with everything saved.

    Returns:
        The model folder, `out/model`.

    Raises:
        UsageError: options that cannot be, or `out` exists and `resume` is False.
        DataError: no usable images, or not those that the run began with.
        CheckpointError: nothing whole to resume from, or another process writes to `out`.
        DivergedError: too many steps in a row without a finite gradient; the last good checkpoint is kept.
        Stopped: on SIGINT, SIGTERM or by `on_step`, everything saved.
    """
    began = time.monotonic()
    run, main = Path(out), int(os.environ.get("RANK", 0)) == 0
    config = start.begin(config, run, resume=resume, init=init, main=main)

    # The cache is built before process groups exist: a long build would run into their timeouts.
    dataset = build.dataset(config, Path(data), progress=start.decoding(main))
    for rejected in dataset.rejected[:20]:
        log.warning("skipped %s: %s", rejected.path, rejected.reason)
    if len(dataset.rejected) > 20:
        log.warning("... and %d more files skipped (diffunet check lists them)", len(dataset.rejected) - 20)
    names = class_names([file.path for file in dataset.files]) if config.data.classes else ()
    chosen, held = split(dataset.files, config.data.held_out, 1000)

    device = start.device()
    precision = devices.precision(device, config.train.precision)
    # DDP re-sorts its buckets after the first step, which would change the order of sums on resume, unless it looks for
    # unused parameters. With two processes there is but one order.
    exact = (device.type == "cpu" or config.train.deterministic) and int(os.environ.get("WORLD_SIZE", 1)) > 2
    # Autocast is ours, round the net alone: accelerate's is fixed for the life of a process.
    accelerator = Accelerator(
        mixed_precision="no",
        cpu=device.type == "cpu",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=exact)],
    )
    device, processes = accelerator.device, accelerator.num_processes
    config = defaults.resolve(
        config,
        images=len(chosen),
        class_names=names,
        mean=dataset.mean,
        sigma_data=dataset.sigma_data,
        device=device,
        precision=precision.value,
        processes=processes,
    )
    t, d, bf16 = config.train, config.data, precision.value == "bf16"
    assert t.steps is not None, "the config is resolved"
    assert t.batch_size is not None, "the config is resolved"

    with contextlib.ExitStack() as stack:
        if main:
            busy = f"another process is writing to {run}; wait for it, or choose another --out"
            stack.enter_context(files.lock(run / ".lock", wait=False, message=busy))
        if t.deterministic:
            stack.enter_context(start.deterministic())

        # The net. Its random start is drawn from a key, like everything else; the caller's generators stay as they are.
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(draws.seed_of("init", t.seed))
        denoiser = build.denoiser(config)
        if init is not None:
            start.copy_weights(init, denoiser.net, config)
        denoiser.to(device)
        if device.type == "cpu":  # measured: half the time of a convolution on two cores with AVX-512
            denoiser.to(memory_format=torch.channels_last)
        net = denoiser.net
        ema = EMA(net, t.ema_halflife, t.ema_ramp)
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=t.learning_rate, betas=t.betas, weight_decay=t.weight_decay, fused=True
        )
        counters = {"skipped": 0, "streak": 0}

        # Going on where a run stopped.
        first_step = 0
        found = checkpoint.newest(run) if resume else None
        environment = start.environment(device, processes, precision.value)
        if found is not None:
            state = checkpoint.read_state(found)
            start.same_data(state, dataset.index_hash, Path(data))
            start.say_differences(state["environment"], environment)
            load(found, net, ema, optimizer)
            first_step, counters = state["step"], state["counters"]
            log.info("resuming %s at step %d", run, first_step)
        elif resume:
            log.info("no checkpoint in %s yet: starting at step 0", run)
        if main:
            files.write_atomic(run / "config.toml", config.to_toml())
            if found is not None and storage.model_step(run / "model") != first_step:  # a crash came between the two
                storage.write_model(run / "model", config, ema.net.state_dict(), first_step)
        if first_step >= t.steps:
            log.info("%s has reached step %d already; raise --steps to go on", run, first_step)
            return run / "model"

        autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
        schedule = denoiser.schedule
        labels = dataset.labels(names) if names else None
        batches = Batches(
            dataset, chosen, labels, len(names), config.diffusion.label_dropout, schedule, t.seed, t.batch_size,
            t.grad_accumulation, accelerator.process_index, processes, d.image_size, d.fit, bool(d.flip), d.background,
            pin=device.type == "cuda",
        )  # fmt: skip
        spread = np.linspace(0, len(held) - 1, min(256, len(held))).astype(np.int64)  # over all classes
        validation = batches.held_out(held[spread]).to(device) if len(held) and main else None
        model = accelerator.prepare(DenoisingLoss(denoiser, build.weighting(config), loss)).train()
        judge = DenoisingLoss(build.denoiser(config, ema.net), build.weighting(config), loss)
        pipeline = Pipeline(config, judge.denoiser, dtype=torch.bfloat16 if bf16 else None)
        record = None
        if main:
            record = Record(run, first_step, t.tensorboard)
            stack.callback(record.close)
            record.status("running", first_step, steps=t.steps)
        for line in start.plan(config, net, dataset, len(chosen), len(held), device, precision, processes):
            log.info("%s", line)

        flag = StopFlag()
        stack.enter_context(on_signals(flag))
        parameters = list(net.parameters())
        skipped, streak = (torch.tensor(float(counters[name]), device=device) for name in ("skipped", "streak"))
        window = torch.zeros(2, device=device)  # sums of loss and gradient norm since the last line of metrics
        last_loss, window_began, window_steps = math.nan, time.monotonic(), 0
        shape = (d.channels, d.image_size, d.image_size)
        one_pass = t.batch_size // processes // t.grad_accumulation

        done = first_step
        try:
            for step, passes in batches.walk(first_step, t.steps):
                rate = t.learning_rate * min(1.0, (step + 1) / max(1, t.warmup))
                for group in optimizer.param_groups:
                    group["lr"] = rate

                for number, batch in enumerate(passes):
                    batch = batch.to(device)
                    noise = draws.gaussian(t.seed, step, batch.start, len(batch.sigma), shape, device)
                    if config.model.dropout:  # knows only torch's global generator
                        torch.manual_seed(draws.seed_of("dropout", t.seed, step, number, accelerator.process_index))
                    final = number == len(passes) - 1
                    with contextlib.nullcontext() if final else accelerator.no_sync(model):
                        with autocast():
                            each = model(images.to_float(batch.images), noise, batch.sigma, batch.label)  # [b]
                        # DDP averages over processes; what is wanted is the mean over the global batch.
                        accelerator.backward(each.sum() * (processes / t.batch_size))
                    window[0] += each.detach().sum() / t.batch_size

                norm = nn.utils.clip_grad_norm_(parameters, t.clip)
                bad = (~torch.isfinite(norm)).float()  # the same on every process: gradients are averaged
                optimizer.found_inf = bad  # type: ignore[attr-defined]  # fused AdamW does nothing where it is 1
                optimizer.step()
                optimizer.zero_grad()
                ema.update(net, step, t.batch_size, bad)
                skipped += bad
                streak = (streak + bad) * bad
                window[1] += norm.detach()
                window_steps += 1
                done = step + 1

                # Only here, now and then, does the loop wait for the device.
                stopping = flag.agreed()
                ending = stopping or done == t.steps
                saving = ending or done % t.checkpoint_every == 0
                if saving or done % t.log_every == 0:
                    last_loss, mean_norm = (total / window_steps for total in accelerator.reduce(window).tolist())
                    counters = {"skipped": int(skipped.item()), "streak": int(streak.item())}
                    seconds = time.monotonic() - window_began
                    if record is not None:
                        record.metrics(
                            done,
                            loss=last_loss,
                            grad_norm=mean_norm / processes,
                            learning_rate=rate,
                            images_per_second=window_steps * t.batch_size / seconds,
                            skipped=counters["skipped"],
                        )
                    if counters["streak"] >= t.max_skipped:
                        if record is not None:
                            record.status("diverged", done, exit_code=DivergedError.exit_code)
                        raise DivergedError(
                            f"no finite gradient in {counters['streak']} steps up to {done}; the last good state is in "
                            f"{run / 'checkpoints'}: --resume with --train.learning-rate below {t.learning_rate:g}"
                        )
                    window.zero_()
                    window_began, window_steps = time.monotonic(), 0
                if record is not None:
                    if saving:
                        save(run, done, config, net, ema, optimizer, counters, dataset.index_hash, environment)
                        checkpoint.prune(run, t.keep_every)
                        record.status("running", done, steps=t.steps)
                    if validation is not None and (ending or done % t.validate_every == 0):
                        with autocast():
                            record.metrics(done, validation_loss=validate(judge, validation, t.seed, shape, one_pass))
                    if t.previews and (done == t.steps or done % t.sample_every == 0):
                        preview(pipeline, t.previews, run / "samples" / f"step-{done:08d}.png", one_pass)
                    if on_step is not None:
                        answer = on_step(TrainProgress(done, t.steps, last_loss, time.monotonic() - began))
                        if answer is False:
                            flag.set("on_step")
                if stopping and done < t.steps:
                    flag.settle()
                    if record is not None:
                        record.status("stopped", done, steps=t.steps, reason=flag.reason, exit_code=Stopped.exit_code)
                    # A launcher kills the others once one has ended: not before the main process has saved.
                    accelerator.wait_for_everyone()
                    raise Stopped(f"stopped at step {done} of {t.steps} with everything saved; go on with --resume")
            flag.settle()
        except Exception as error:
            if record is not None and not isinstance(error, Stopped | DivergedError):
                record.status("failed", done, steps=t.steps, exit_code=getattr(error, "exit_code", 1))
            if isinstance(error, torch.OutOfMemoryError):
                raise ResourceError(
                    f"out of memory with --batch-size {t.batch_size}: try half of it, a higher "
                    f"--train.grad-accumulation (now {t.grad_accumulation}), --model.checkpointing, or a lower "
                    f"--model.channels (now {config.model.channels})"
                ) from None
            if isinstance(error, OSError):
                raise ResourceError(f"training cannot go on at step {done}: {error}; mend that and --resume") from None
            raise
        if record is not None:
            record.status("done", t.steps, steps=t.steps, exit_code=0)
        accelerator.wait_for_everyone()
    return run / "model"


@torch.no_grad()
def validate(judge: DenoisingLoss, batch: Batch, seed: int, shape: tuple[int, int, int], at_once: int) -> float:
    """The mean loss of the averaged weights on the held-out `batch`, with the same noise every time."""
    total = torch.zeros((), device=batch.sigma.device)
    for first in range(0, len(batch.sigma), at_once):
        part = slice(first, first + at_once)
        sigma = batch.sigma[part]
        noise = draws.gaussian(draws.seed_of("validation", seed), 0, first, len(sigma), shape, sigma.device)
        label = None if batch.label is None else batch.label[part]
        total += judge(images.to_float(batch.images[part]), noise, sigma, label).sum()
    return total.item() / len(batch.sigma)


def preview(pipeline: Pipeline, num: int, path: Path, at_once: int) -> None:
    """A grid of samples, from the same noise every time, so that previews of a run can be compared."""
    pictures = pipeline.sample(num, batch_size=at_once)
    images.save(images.grid([images.to_array(picture, pipeline.channels) for picture in pictures]), path)


def save(
    run: Path,
    step: int,
    config: Config,
    net: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    counters: dict[str, int],
    index_hash: str,
    environment: dict[str, Any],
) -> None:
    """A checkpoint, and the newest model folder."""
    moments: dict[str, Tensor] = {}
    for name, parameter in net.named_parameters():
        moments |= {f"{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    state = {
        "step": step,
        "counters": counters,
        "index_hash": index_hash,
        "config_hash": config.hash(),
        "environment": environment,
    }
    weights = ema.net.state_dict()
    checkpoint.save(run, step, {"model": net.state_dict(), "ema": weights, "optimizer": moments}, state)
    storage.write_model(run / "model", config, weights, step)


def load(folder: Path, net: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> None:
    """The tensors of a checkpoint, copied into place: memory layouts stay, and with them every later bit."""
    for name, module in (("model", net), ("ema", ema.net)):
        tensors, _ = storage.read_tensors(folder / f"{name}.safetensors")
        storage.load_weights(module, tensors, folder / f"{name}.safetensors")
    moments, _ = storage.read_tensors(folder / "optimizer.safetensors")
    for name, parameter in net.named_parameters():
        optimizer.state[parameter] = {
            "step": moments[f"{name}.step"].to(parameter.device),
            **{key: torch.zeros_like(parameter).copy_(moments[f"{name}.{key}"]) for key in ("exp_avg", "exp_avg_sq")},
        }
