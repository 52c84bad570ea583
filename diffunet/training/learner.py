"""The step of training: passes through the net and back, the optimizer, the averages. Nothing in it waits for a device.

`--batch-size auto` and the compiler try it out on made-up batches before the first step; so it is one thing, and all
that a step needs memory for is in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffunet import build, draws
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.data import warp
from diffunet.diffusion.denoiser import Denoiser
from diffunet.diffusion.losses import DenoisingLoss, Loss
from diffunet.pictures import images
from diffunet.training.batches import Batch
from diffunet.training.ema import averages
from diffunet.training.loss_scale import LossScale
from diffunet.training.state import State


class Outcome(NamedTuple):
    """What a step was, in numbers [] on the device: the mean `loss`, the gradient's `norm`, and whether it was `bad`
    (no finite loss or gradient: nothing was learned) or an `overflow` (of float16: the same, at a scale too large)."""

    loss: Tensor
    norm: Tensor
    bad: Tensor
    overflow: Tensor


class Learner:
    """A denoiser that learns.

    Args:
        config: resolved.
        denoiser: prepared by `how`.
        how: how to compute.
        loss: of one's own, see `train`.
        processes: of the run, joined; None is this one alone.
    """

    def __init__(
        self, config: Config, denoiser: Denoiser, how: Compute, loss: Loss | None = None,
        processes: Accelerator | None = None,
    ) -> None:  # fmt: skip
        t = config.train
        assert isinstance(t.batch_size, int), "the config is resolved"
        assert t.learning_rate is not None, "the config is resolved"
        self.config, self.how, self.processes = config, how, processes
        self.batch_size, self.rate = t.batch_size, t.learning_rate
        self.shape = (config.data.channels, config.data.image_size, config.data.image_size)
        net = denoiser.net
        self.parameters = list(net.parameters())
        optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, betas=t.betas, weight_decay=t.weight_decay, fused=True
        )
        self.state = State(
            net, optimizer, averages(net, t.ema_halflife, t.ema_ramp, self.batch_size, bool(t.ema_every))
        )
        self.scale = LossScale(how)
        self.skips = skips_by_itself(how.device)
        model = DenoisingLoss(denoiser, build.weighting(config), loss).train()
        self.plain = model
        self.model: nn.Module = model if processes is None else processes.prepare(model)

    def step(self, step: int, passes: Sequence[Batch]) -> Outcome:
        """Learn from the passes of this process in a step."""
        t, optimizer, device = self.config.train, self.state.optimizer, self.how.device
        for group in optimizer.param_groups:
            group["lr"] = rate(self.config, step)
        many = 1 if self.processes is None else self.processes.num_processes
        rank = 0 if self.processes is None else self.processes.process_index

        loss = torch.zeros((), device=device)
        for number, batch in enumerate(passes):
            batch = batch.to(device)
            noise = draws.gaussian(t.seed, step, batch.start, len(batch.sigma), self.shape, device)
            if self.config.model.dropout:  # knows only torch's global generator
                torch.manual_seed(draws.seed_of("dropout", t.seed, step, number, rank))
            final = number == len(passes) - 1 or self.processes is None
            with contextlib.nullcontext() if final else self.processes.no_sync(self.model):  # type: ignore[union-attr]
                each = self._losses(self.model, batch, noise)
                # DDP averages over processes; what is wanted is the mean over the global batch.
                (each.sum() * (self.scale.value * (many / self.batch_size))).backward()
            loss += each.detach().sum() / self.batch_size

        # A step with anything that is not finite, on any process, changes nothing.
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients) / self.scale.value
        torch._foreach_mul_(gradients, (t.clip / (norm + 1e-6)).clamp(max=1.0) / self.scale.value)
        spoilt = torch.stack([~loss.isfinite(), ~norm.isfinite()]).float()
        if self.processes is not None:
            spoilt = self.processes.reduce(spoilt)
        nothing = spoilt.sum() > 0
        overflow = nothing & (spoilt[0] == 0) & self.scale.may_shrink
        self._apply(nothing.float())
        self.scale.update(overflow, nothing)
        for average in self.state.averages:
            average.update()
        return Outcome(loss, norm, (nothing & ~overflow).float(), overflow.float())

    def _losses(self, model: nn.Module, batch: Batch, noise: Tensor) -> Tensor:
        """Of each image, [b]; noise is [b C H W]."""
        x0 = images.to_float(batch.images)
        if batch.augment is not None:
            x0 = warp.warp(x0, batch.augment)  # in float32, so not under autocast
        with self.how.autocast():
            return model(x0, noise, batch.sigma, batch.label, batch.keep, batch.augment)

    def _apply(self, nothing: Tensor) -> None:
        """The optimizer's step, unless `nothing` [] is 1."""
        optimizer = self.state.optimizer
        optimizer.found_inf = nothing  # type: ignore[attr-defined]  # fused AdamW does nothing where it is 1
        if self.skips or not nothing.item():
            optimizer.step()
        optimizer.zero_grad()

    def compile(self, batch: int) -> None:
        """Compile the net, and try it on `batch` images a pass: there and back, nothing is learned."""
        if not self.how.compiled:
            return
        self.how.compile(self.state.net, self.config.train.deterministic)
        trial = self.imagined(batch)
        try:
            self._losses(self.plain, trial, torch.zeros(batch, *self.shape, device=self.how.device)).sum().backward()
        finally:
            self.state.optimizer.zero_grad()

    def imagined(self, batch: int) -> Batch:
        """A batch of the kind that the run has, of grey images, to try a step with."""
        d, size, device = self.config.data, self.config.data.image_size, self.how.device
        inpaint = self.config.diffusion.task == "inpaint"
        return Batch(
            0,
            torch.full((batch, size, size, d.channels), 128, dtype=torch.uint8, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device) if d.class_names else None,
            torch.ones(batch, device=device),
            torch.zeros(batch, warp.CHANNELS, device=device) if d.augment else None,
            torch.zeros(batch, 1, size, size, dtype=torch.bool, device=device) if inpaint else None,
        )


def rate(config: Config, step: int) -> float:
    """The learning rate of a step (from 0)."""
    t = config.train
    assert t.learning_rate is not None, "the config is resolved"
    return t.learning_rate * min(1.0, (step + 1) / max(1, t.warmup))


def skips_by_itself(device: torch.device) -> bool:
    """Whether fused AdamW on this device leaves weights alone where its `found_inf` is 1, seen by trying.

    Apple's did not before a mend of 2026. There the loop has to wait for the device at each step, and skip it itself.
    """
    weight = torch.ones(1, device=device, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0.0, fused=True)
    optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
    optimizer.step()
    return weight.item() == 1.0
