"""One optimizer step: passes through the net and back, the optimizer, the averages.

Nothing in it waits for the device (but on those where `skips_by_itself` is False). Everything that takes memory is in
the step, so that trying one on made-up batches, as `--batch-size auto` and the compiler do, measures all of it.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffunet import build, compute, draws
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.data import warp
from diffunet.diffusion.denoiser import Denoiser
from diffunet.diffusion.losses import DenoisingLoss, Loss
from diffunet.diffusion.noise_levels import NOISE
from diffunet.errors import Stopped
from diffunet.nn.unet import UNet
from diffunet.pictures import images
from diffunet.training import cuda_graph, half_size, optimizers, parts
from diffunet.training.batches import Batch
from diffunet.training.ema import averages
from diffunet.training.loss_scale import LossScale
from diffunet.training.rate import rate
from diffunet.training.state import State

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """The outcome of an optimizer step, in scalar tensors on the device.

    They are the mean loss and the norm of the gradient. Nothing was learned where `bad` is 1, as one of these was not
    finite, or `overflow` is 1, as float16's loss scale was too large for the gradient. `by_noise` [2 8] has the sum of
    the losses of the images, and their number, by noise level: below the first of `NOISE`, up to the second and so on.
    """

    loss: Tensor
    norm: Tensor
    bad: Tensor
    overflow: Tensor
    by_noise: Tensor


class Learner:
    """A denoiser that learns.

    Args:
        config: a resolved config, in which no option is left open.
        denoiser, how: the denoiser, which has been prepared by `how`, and how to compute.
        loss: a loss function of the user's own, see `train`.
        processes: all processes of the run; None means that this one is alone.
    """

    def __init__(
        self, config: Config, denoiser: Denoiser, how: Compute, loss: Loss | None = None,
        processes: Accelerator | None = None,
    ) -> None:  # fmt: skip
        t = config.train
        assert isinstance(t.batch_size, int), "the config is resolved"
        assert t.learning_rate is not None, "the config is resolved"
        self.config, self.how, self.processes, self.batch_size = config, how, processes, t.batch_size
        self.shape = (config.data.channels, config.data.image_size, config.data.image_size)
        net = denoiser.net
        self.parameters = list(net.parameters())
        kept = averages(net, t.ema_halflife, t.ema_ramp, self.batch_size, stored=bool(t.ema_every))
        self.state = State(net, optimizers.of(t, net, how), kept)
        self.scale, self.noise = LossScale(how), torch.tensor(NOISE, device=how.device)
        self.skips_by_itself = optimizers.skip_by_themselves(how.device)
        self.alone = DenoisingLoss(denoiser, build.weighting(config), loss).train()
        self.model: nn.Module = self.alone if processes is None else processes.prepare(self.alone)
        self.parts = parts.count(config, how, ours=type(net) is UNet and loss is None, alone=self.many == 1)
        # On CUDA the rate is on the device, where an update that is replayed finds each step's.
        self.rate = torch.zeros((), device=how.device) if how.device.type == "cuda" else None
        self.recorded: dict[torch.Size, cuda_graph.Recorded] = {}  # by the shape of the noise
        self.recorded_update: cuda_graph.RecordedUpdate | None = None

    def load(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, whose plain values are `state`; raise CheckpointError if it is of another net."""
        self.state.load(checkpoint, state["step"])
        self.scale.load(state.get("loss_scale", {}))

    def step(self, step: int, passes: Sequence[Batch]) -> Outcome:
        """Learn from the passes of this process in one optimizer step."""
        t, device = self.config.train, self.how.device
        self._set_rate(rate(t, step))
        rank = 0 if self.processes is None else self.processes.process_index

        shape = self.shape
        if half_size.applies(t, step):
            shape = (shape[0], shape[1] // 2, shape[2] // 2)
        loss, by_noise = torch.zeros((), device=device), torch.zeros(2, len(NOISE) + 1, device=device)
        for number, batch in enumerate(passes):
            batch = batch.to(device)
            noise = draws.gaussian(t.seed, step, batch.start, len(batch.sigma), shape, device)
            if self.config.model.dropout:  # which can use only torch's global generator
                draws.seed_global(device, draws.seed_of("dropout", t.seed, step, number, rank))
            final = number == len(passes) - 1 or self.processes is None
            with contextlib.nullcontext() if final else self.processes.no_sync(self.model):  # type: ignore[union-attr]
                losses = self.recorded.get(noise.shape, self._pass)(batch, noise)
            loss += losses.sum() / self.batch_size
            levels = torch.bucketize(batch.sigma, self.noise)
            by_noise.index_add_(1, levels, torch.stack([losses.float(), torch.ones_like(batch.sigma)]))

        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm, skipped, overflow = (self.recorded_update or self._update)(loss, gradients)
        self._forget_gradients()
        self.scale.update(overflow, skipped)
        for average in self.state.averages:
            average.update()
        return Outcome(loss, norm.clone(), (skipped & ~overflow).float(), overflow.float(), by_noise)

    def _set_rate(self, value: float) -> None:
        """Let the optimizers have this learning rate."""
        if self.rate is not None:
            self.rate.fill_(value)
        for optimizer in self.state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = value if self.rate is None else self.rate

    @property
    def many(self) -> int:
        """The number of processes of the run."""
        return 1 if self.processes is None else self.processes.num_processes

    def _pass(self, batch: Batch, noise: Tensor) -> Tensor:
        """Add the gradient of a pass to those of the parameters, and return the loss of each image, [b]."""
        # DDP averages gradients over the processes; we want the mean over all images: times their number.
        factor = self.scale.value * (self.many / self.batch_size)
        bounds = parts.bounds(len(noise), self.parts)
        if len(bounds) == 1:
            losses = self._losses(self.model, batch, noise)
            (losses.sum() * factor).backward()
            return losses.detach()

        def part(number: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            first, end = bounds[number]
            losses = self._losses(self.alone, batch.part(first, end - first), noise[first:end])
            return losses.detach(), torch.autograd.grad(losses.sum() * factor, self.parameters, allow_unused=True)

        found = parts.computed(part, len(bounds), bool(self.config.model.dropout))
        for _, gradients in found:  # in this order, whichever was ready first
            parts.add(self.parameters, gradients)
        return torch.cat([losses for losses, _ in found])

    def _losses(self, model: nn.Module, batch: Batch, noise: Tensor) -> Tensor:
        """Return the loss of each image, [b], with noise [b C H W], to whose size the image is averaged."""
        x0 = images.to_float(batch.images)
        if batch.augment is not None:
            x0 = warp.warp(x0, batch.augment)  # needs float32, so it is not under autocast
        x0, keep = half_size.pooled(x0, batch.keep, noise.shape[-1])
        with self.how.autocast():
            return model(x0, noise, batch.sigma, batch.label, keep, batch.augment)

    def _update(self, loss: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Clip the gradients of all parameters that have one, in place, and let the optimizers change the weights.

        A step with anything that is not finite, on any process, changes nothing.

        Returns:
            The norm of the gradient; whether the step is skipped; and whether it is as float16's scale is too large.
        """
        norm = nn.utils.get_total_norm(gradients) / self.scale.value
        torch._foreach_mul_(list(gradients), (self.config.train.clip / (norm + 1e-6)).clamp(max=1.0) / self.scale.value)
        spoilt = torch.stack([~loss.isfinite(), ~norm.isfinite()]).float()
        if self.processes is not None and self.many > 1:
            spoilt = self.processes.reduce(spoilt)
        skipped = spoilt.sum() > 0
        overflow = skipped & (spoilt[0] == 0) & self.scale.may_shrink
        learns = self.skips_by_itself or not skipped.item()
        for optimizer in self.state.optimizers:
            optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]  # they change nothing where it is 1
            if learns:
                optimizer.step()
        return norm, skipped, overflow

    def _recordable(self, loss: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Do `_update` with these gradients of all parameters, in a way that torch lets be recorded."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        groups = [group for optimizer in self.state.optimizers for group in optimizer.param_groups]
        recording = self.how.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        for group in groups:  # fused AdamW can be recorded, but torch asks whether that is meant
            group["capturable"] = recording
        try:
            return self._update(loss, gradients)
        finally:
            for group in groups:
                group["capturable"] = False

    def record(self, batch: int, *, own: bool = False) -> str | None:
        """Record the passes of `batch` images and the update as CUDA graphs, see cuda_graph.py; nothing is learned.

        An update that cannot be recorded is left out, and that is said.

        Returns:
            Why the passes cannot be recorded, in which case all is as it was, or None. `own` says that the net or the
            loss is a person's own, whose Python would run only once.
        """
        reason = cuda_graph.reason_against(self.config, self.how, self.many)
        if reason is not None or own:
            return reason or "the net or the loss is your own"
        trial, channels, recorded = self.imagined(batch), self.shape[0], {}
        try:
            for side in self._sides():
                noise = torch.zeros(batch, channels, side, side, device=self.how.device)
                recorded[noise.shape] = cuda_graph.recorded(
                    self._pass, self.state.net, trial, noise, lambda: draws.seed_global(self.how.device, 0)
                )
        except Exception as error:  # torch raises what it likes where something cannot be recorded
            recorded.clear()
            self._forget_gradients()
            if isinstance(error, Stopped):
                raise
            compute.give_back(error if compute.is_out_of_memory(error) else None)
            return compute.first_line(error)
        self.recorded = recorded
        try:
            self.recorded_update = cuda_graph.recorded_update(
                self._recordable, self.parameters, self.state.moments, lambda: self._set_rate(3e-3)
            )
        except Exception as error:
            self._forget_gradients()
            if isinstance(error, Stopped):
                raise
            compute.give_back(error if compute.is_out_of_memory(error) else None)
            log.info("the update of the weights is not recorded: %s", compute.first_line(error))
        return None

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _sides(self) -> tuple[int, ...]:
        """Return the sizes of image that the run has passes of."""
        size = self.shape[1]
        return (size // 2, size) if half_size.applies(self.config.train, 0) else (size,)

    def compile(self, batch: int) -> None:
        """Compile the net, and try it forwards and backwards on `batch` images a pass; nothing is learned.

        Where the run begins at half of the image size, both sizes are tried.
        """
        if not self.how.compiled:
            return
        self.how.compile(self.state.net, self.config.train.deterministic)
        trial, channels = self.imagined(batch), self.shape[0]
        try:
            for side in self._sides():
                noise = torch.zeros(batch, channels, side, side, device=self.how.device)
                self._losses(self.alone, trial, noise).sum().backward()
        finally:
            self._forget_gradients()

    def imagined(self, batch: int) -> Batch:
        """Return a batch of grey images of the kind that the run has, to try a step with."""
        d, size, inpaint = self.config.data, self.config.data.image_size, self.config.diffusion.task == "inpaint"
        with self.how.device:
            grey = torch.full((batch, size, size, d.channels), 128, dtype=torch.uint8)
            label = torch.zeros(batch, dtype=torch.int64) if d.class_names else None
            augment = torch.zeros(batch, warp.CHANNELS) if d.augment else None
            keep = torch.zeros(batch, 1, size, size, dtype=torch.bool) if inpaint else None
            return Batch(0, grey, label, torch.ones(batch), augment, keep)
