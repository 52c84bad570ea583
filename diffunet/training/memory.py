"""Whether a run fits: what it would take is counted before anything is allocated, and `--batch-size auto` is tried."""

from __future__ import annotations

import gc
import logging

import torch

from diffunet import build, compute
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.diffusion.losses import Loss
from diffunet.errors import ResourceError
from diffunet.nn.cost import Cost, cost
from diffunet.training.ema import WIDTHS
from diffunet.training.learner import Learner

log = logging.getLogger(__name__)


def price(config: Config) -> Cost:
    """What the net of a resolved config costs; it is built on torch's meta device, where nothing is allocated."""
    with torch.device("meta"):
        net = build.net(config)
    return cost(net, config.data.image_size, config.data.image_size)


def training_bytes(config: Config, how: Compute, batch: int) -> int:
    """Memory of a training step with `batch` images a pass: weights, gradients and feature maps at the moment when they
    are most, and beside them two moments of Adam and the averages of the weights, in float32."""
    counted = build.footprint(config, how, learn=True)
    averages = 1 if config.train.ema_every == 0 else 1 + len(WIDTHS)
    return counted.peak(batch) + (2 + averages) * 4 * counted.parameters


def refuse_what_cannot_fit(config: Config, how: Compute) -> None:
    """Refuse a net that does not fit even with one image a pass.

    Raises:
        ResourceError: naming what there is and what is needed.
    """
    needed, there = training_bytes(config, how, 1), compute.memory(how.device)
    if needed > there:
        raise ResourceError(
            f"the net needs {needed / 2**30:.1f} GiB to train with one image a pass, and "
            f"{compute.describe(how.device)} has {there / 2**30:.1f}: lower --model.channels (now "
            f"{config.model.channels}) or --image-size"
        )


def images_per_pass(config: Config, how: Compute, free: int | None = None, loss: Loss | None = None) -> int:
    """The largest power of two, up to what is worth it on the device, with which a training step fits.

    What is counted to fit into the `free` memory is tried, by two steps; the second has the optimizer's moments. More
    is not tried: systems that hand out more memory than they have say no too late, or never.

    Raises:
        ResourceError: where not even one image fits.
    """
    counted = how.fits(lambda n: training_bytes(config, how, n), free=free)
    batch = max(1, counted)
    while not _trial(config, how, batch, loss):
        if batch == 1:
            raise ResourceError(out_of_memory(config, 1, begun=False))
        batch //= 2
    log.info("a pass of %d images fits", batch)
    return batch


def _trial(config: Config, how: Compute, batch: int, loss: Loss | None) -> bool:
    """Whether two steps of a net with random weights go through."""
    try:
        trial = config.changed("train", batch_size=batch, learning_rate=config.train.learning_rate or 1e-4)
        denoiser = build.denoiser(trial)
        how.prepare(denoiser)
        learner = Learner(trial, denoiser, how, loss)
        for step in range(2):
            learner.step(step, [learner.imagined(batch)])
        how.synchronize()
    except Exception as error:
        if not compute.is_out_of_memory(error):
            raise
        compute.give_back(error)
        return False
    finally:
        learner = denoiser = None  # type: ignore[assignment]
        gc.collect()
        compute.give_back()
    return True


def out_of_memory(config: Config, batch: int | str | None, *, begun: bool) -> str:
    """What to say when memory ran out: the batch, and the options that reduce memory and may still change.

    Where there is a checkpoint (`begun`) it is the draws of that batch, by that net, that are gone on with.
    """
    options = [f"a higher --train.grad-accumulation (now {config.train.grad_accumulation or 1})"]
    if isinstance(batch, int) and batch > 1 and not begun:
        options = ["half of it, or --batch-size auto", *options]
    if not config.model.checkpointing and config.model.net == "unet":
        options.append("--model.checkpointing True")
    if not begun:
        options.append(f"a lower --model.channels (now {config.model.channels}) or --image-size")
    return f"out of memory with --batch-size {batch}: with --resume, try " + ", ".join(options)
