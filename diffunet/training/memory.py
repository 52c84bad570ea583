"""Whether a run fits into memory: this is counted before anything is allocated, and `--batch-size auto` tries it."""

import gc
import logging
from functools import lru_cache

import torch

from diffunet import build, compute
from diffunet.compute import Compute
from diffunet.config import Config, TrainConfig
from diffunet.diffusion.losses import Loss
from diffunet.errors import ResourceError
from diffunet.nn.cost import Cost, cost
from diffunet.training import half_size
from diffunet.training.ema import WIDTHS
from diffunet.training.learner import Learner

log = logging.getLogger(__name__)


def price(config: Config, net: build.NetFactory = build.net) -> Cost:
    """Return what the net of a resolved config costs; it is built on the meta device, where nothing is allocated."""
    # The train section does not matter here; a fixed one makes the cache hit more often.
    return _price(config.model_copy(update={"train": TrainConfig()}), net)


@lru_cache(maxsize=64)
def _price(config: Config, net: build.NetFactory) -> Cost:
    with torch.device("meta"):
        module = net(config)
    return cost(module, config.data.image_size, config.data.image_size, channels=build.in_channels(config))


def training_bytes(config: Config, how: Compute, batch: int, net: build.NetFactory = build.net) -> int:
    """Return the bytes that a step with `batch` images a pass takes: the net's peak, AdamW's moments, and averages.

    Muon has half of the moments. What it computes in is not counted, nor what a recorded update takes beside it.
    """
    counted = build.footprint(config, how, learn=True, make=net)
    moments, averages = 2, 1 if config.train.ema_every == 0 else 1 + len(WIDTHS)
    return counted.peak(batch) + (moments + averages) * 4 * counted.parameters


def refuse_what_cannot_fit(config: Config, how: Compute, net: build.NetFactory = build.net) -> None:
    """Raise ResourceError for a net that does not fit even with one image a pass."""
    needed, capacity = training_bytes(config, how, 1, net), compute.memory(how.device)
    if needed > capacity:
        raise ResourceError(
            f"the net needs {needed / 2**30:.1f} GiB to train with one image a pass, and "
            f"{compute.describe(how.device)} has {capacity / 2**30:.1f}: lower --model.channels (now "
            f"{config.model.channels}) or --image-size"
        )


def images_per_pass(
    config: Config, how: Compute, free: int | None = None, loss: Loss | None = None, net: build.NetFactory = build.net
) -> int:
    """Return the largest power of two of images with which a step fits; raise ResourceError if not even one does.

    What is counted to fit into `free` bytes (by default those of `how`) is tried by two steps, since the optimizer's
    moments exist from the second on. More is not tried: a system that promises more memory than it has refuses too
    late, or never.
    """
    batch = max(1, how.fits(lambda n: training_bytes(config, how, n, net), free=free))
    while not _trial(config, how, batch, loss, net):
        if batch == 1:
            raise ResourceError(out_of_memory(config, 1, begun=False))
        batch //= 2
    log.info("a pass of %d images fits", batch)
    return batch


def _trial(config: Config, how: Compute, batch: int, loss: Loss | None, net: build.NetFactory) -> bool:
    """Return whether two steps of a net with random weights go through."""
    try:
        trial = half_size.without(config).changed(
            "train", batch_size=batch, learning_rate=config.train.learning_rate or 1e-4
        )
        denoiser = build.denoiser(trial, net(trial))
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
    """Return the message for a run whose memory is exhausted: the batch, and the options that reduce memory.

    Where a checkpoint exists (`begun`), batch size, channels and image size are not among them: they may not change.
    """
    options = [f"a higher --train.grad-accumulation (now {config.train.grad_accumulation or 1})"]
    if isinstance(batch, int) and batch > 1 and not begun:
        options = ["half of it, or --batch-size auto", *options]
    if not config.model.checkpointing and config.model.net == "unet":
        options.append("--model.checkpointing True")
    if not begun:
        options.append(f"a lower --model.channels (now {config.model.channels}) or --image-size")
    return f"out of memory with --batch-size {batch}: with --resume, try " + ", ".join(options)
