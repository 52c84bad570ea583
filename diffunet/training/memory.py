"""Whether a run fits: what it would take is counted before anything is allocated, and `--batch-size auto` is tried."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math

import torch

from diffunet import build, devices
from diffunet.config import Config
from diffunet.diffusion.losses import DenoisingLoss
from diffunet.errors import ResourceError
from diffunet.nn.cost import Cost, cost
from diffunet.training.ema import EMA, WIDTHS, PowerEMA

log = logging.getLogger(__name__)

WORTH = {"cuda": 256, "cpu": 32}
"""Images of a pass above which a device gains little."""


def price(config: Config) -> Cost:
    """What the net of a resolved config costs; it is built on torch's meta device, where nothing is allocated."""
    with torch.device("meta"):
        net = build.net(config)
    counted = cost(net, config.data.image_size, config.data.image_size)
    return dataclasses.replace(counted, averages=1 if config.train.ema_every == 0 else 1 + len(WIDTHS))


def refuse_what_cannot_fit(config: Config, counted: Cost, device: torch.device, precision: str) -> None:
    """Refuse a net that does not fit even with one image a pass.

    Raises:
        ResourceError: naming what there is and what is needed.
    """
    needed, there = counted.training_bytes(1, precision, device.type), devices.memory(device)
    if there is not None and needed > there:
        raise ResourceError(
            f"the net needs {needed / 2**30:.1f} GiB to train with one image a pass, and {devices.describe(device)} "
            f"has {there / 2**30:.1f}: lower --model.channels (now {config.model.channels}) or --image-size"
        )


def images_per_pass(config: Config, counted: Cost, device: torch.device, precision: str) -> int:
    """The largest power of two, up to what is worth it, with which a training step fits: found by training steps.

    On a CPU what `price` counted bounds it, since a system that hands out more memory than it has says no too late.

    Raises:
        ResourceError: where not even one image fits.
    """
    there = devices.memory(device)
    worth = WORTH.get(device.type, WORTH["cpu"])
    trial = _Trial(config, device, precision)
    fits = 0
    while (batch := max(1, 2 * fits)) <= worth:
        most = 0.8 * there if device.type == "cpu" and there is not None else math.inf
        if counted.training_bytes(batch, precision, device.type) > most or not trial.fits(batch):
            break
        fits = batch
    trial.free()
    if not fits:
        raise ResourceError(out_of_memory(config, 1, begun=False))
    log.info("a pass of %d images fits", fits)
    return fits


class _Trial:
    """A net with random weights and all that training keeps beside it."""

    def __init__(self, config: Config, device: torch.device, precision: str) -> None:
        self.config, self.device, self.bf16 = config, device, precision == "bf16"
        self.kept: list[object] = []

    def _prepare(self) -> DenoisingLoss:
        denoiser = build.denoiser(self.config).to(self.device)
        model = DenoisingLoss(denoiser, build.weighting(self.config)).train()
        optimizer = torch.optim.AdamW(denoiser.net.parameters(), fused=True)
        reserve = [torch.empty_like(p) for p in denoiser.net.parameters()]  # several processes keep gradients twice
        power = [PowerEMA(denoiser.net, width) for width in WIDTHS] if self.config.train.ema_every else []
        self.kept = [model, optimizer, EMA(denoiser.net, 1.0, 1.0), power, reserve]
        return model

    def fits(self, batch: int) -> bool:
        """Whether two steps with `batch` images a pass go through: the second has the optimizer's moments."""
        try:
            model = self.kept[0] if self.kept else self._prepare()
            optimizer = self.kept[1]
            assert isinstance(model, DenoisingLoss)
            assert isinstance(optimizer, torch.optim.AdamW)
            d = self.config.data
            for _ in range(2):
                x0 = torch.zeros(batch, d.channels, d.image_size, d.image_size, device=self.device)
                label = torch.zeros(batch, dtype=torch.int64, device=self.device) if d.class_names else None
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    each = model(x0, torch.zeros_like(x0), torch.ones(batch, device=self.device), label)
                each.sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
            return False
        return True

    def free(self) -> None:
        """Give everything back, to the device too."""
        self.kept = []
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(config: Config, batch: int | str | None, *, begun: bool) -> str:
    """What to say when memory ran out: the batch, and the options that reduce memory and may still change.

    Where there is a checkpoint (`begun`) it is the draws of that batch, by that net, that are gone on with.
    """
    options = [f"a higher --train.grad-accumulation (now {config.train.grad_accumulation})"]
    if isinstance(batch, int) and batch > 1 and not begun:
        options = ["half of it, or --batch-size auto", *options]
    if not config.model.checkpointing:
        options.append("--model.checkpointing")
    if not begun:
        options.append(f"a lower --model.channels (now {config.model.channels}) or --image-size")
    return f"out of memory with --batch-size {batch}: with --resume, try " + ", ".join(options)
