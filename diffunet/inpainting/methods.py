"""The methods of inpainting: which there are, their defaults, and how each of them walks down its ladder."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffunet import build
from diffunet.config import DiffusionConfig
from diffunet.diffusion import guidance, known_pixels, samplers, schedules
from diffunet.diffusion.denoiser import Denoise
from diffunet.draws import Noise
from diffunet.errors import UsageError
from diffunet.names import METHODS as METHODS


@dataclass(frozen=True)
class Choice:
    """What a user chooses of a method, as `Pipeline.inpaint` describes it; None stands for the method's default."""

    method: str = "auto"
    steps: int | None = None
    jump_length: int | None = None
    jump_n_sample: int | None = None


@dataclass(frozen=True)
class Method:
    """A method by name, ready to inpaint with one model: `walk(denoise, known, keep, x, noise)` goes down its `ladder`.

    `known` is [B C H W] in [-1, 1]; `keep` is bool, broadcasts to it and is True where pixels are known; x [B C H W] is
    the noisy image at the first noise level of `ladder` [n + 1]. An image takes `calls` passes through the net,
    backwards ones among them.
    """

    method: str
    ladder: Tensor
    calls: int
    walk: Callable[[Denoise, Tensor, Tensor, Tensor, Noise], samplers.Walk]

    @property
    def trained(self) -> bool:
        """Whether the net needs the known pixels as a condition; see `denoiser.condition`."""
        return self.method == "trained"

    @property
    def has_gradients(self) -> bool:
        """Whether the method takes gradients through the net, which needs more memory."""
        return _TABLE[self.method].passes > 1


@dataclass(frozen=True)
class _Row:
    """How a method is made for any model and ladder."""

    denoise: Callable[[Denoise, Tensor, Tensor, Noise], Denoise]
    """From (denoise, known, keep, noise) to the denoiser that the sampler sees."""
    step: Callable[[Tensor, Tensor], samplers.Step] | None = None
    """From (known, keep) to the method's own sampler; None takes the sampler and the ladder of the config."""
    jumps: tuple[int, int, int] | None = None
    """Defaults of a method that jumps back: steps of the ladder, its stretches, visits of each (1: no jump)."""
    passes: int = 1
    """Passes through the net for each call of the denoiser."""


def _keep_known(denoise: Denoise, known: Tensor, keep: Tensor, noise: Noise) -> Denoise:
    return known_pixels.keep_known(denoise, known, keep)


def _mmps(denoise: Denoise, known: Tensor, keep: Tensor, noise: Noise) -> Denoise:
    # At high noise levels the gradient is unreliable, so the result is kept within [-1, 1].
    return guidance.threshold(known_pixels.mmps(denoise, known, keep), "static")


_TABLE = {
    "trained": _Row(_keep_known),
    "repaint": _Row(known_pixels.keep_known, step=lambda known, keep: samplers.euler(eta=1.0), jumps=(20, 5, 5)),
    "ddnm": _Row(lambda denoise, known, keep, noise: denoise, step=known_pixels.ddnm, jumps=(50, 50, 1)),
    "mmps": _Row(_mmps, passes=1 + known_pixels.ITERATIONS),
    "replace": _Row(_keep_known),
}


def choose(d: DiffusionConfig, schedule: schedules.Schedule, choice: Choice, below: float = math.inf) -> Method:
    """Return the method that a user chose, for a model of this diffusion section and noise schedule.

    Its ladder begins at the noise level `below`, which all levels under it follow. By default ("auto") the
    method is trained for a model that was trained to inpaint, else mmps.

    Raises:
        UsageError: a method that does not exist, or which the model or the other options do not go with; or jumps that
            are asked for, and are none.
    """
    was_trained = d.task == "inpaint"
    default = "trained" if was_trained else "mmps"
    name = default if choice.method == "auto" else choice.method
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
    row = _TABLE[name]
    if name == "trained" and not was_trained:
        raise UsageError("method trained needs a model that was trained with --task inpaint, and this one was not")
    if row.jumps is None:
        if choice.jump_length is not None or choice.jump_n_sample is not None:
            raise UsageError(f"method {name} does not jump back; jump_length and jump_n_sample are of repaint and ddnm")
        ladder = _below(build.ladder(d, schedule, choice.steps or d.sample_steps), below)
        calls = build.calls(d.sampler, len(ladder) - 1) * row.passes
    else:
        default_steps, stretches, visits = row.jumps
        steps = choice.steps or default_steps
        # Both papers jump by equal steps of time, whatever ladder suits the model's sampler.
        ladder = _below(build.ladder(build.sampling(d, ladder="trailing"), schedule, steps), below)
        length, times = choice.jump_length or max(1, steps // stretches), choice.jump_n_sample or visits
        if (choice.jump_length or (choice.jump_n_sample or 1) > 1) and (length >= steps or times == 1):
            raise UsageError(
                f"method {name} does not jump back with jump_length {length} and jump_n_sample {times} in {steps} "
                "steps: it takes a length below the steps, and a number of 2 or more"
            )
        ladder = known_pixels.resample_ladder(ladder, length, times)
        calls = int((ladder.diff() < 0).sum()) * row.passes  # a jump back adds noise and calls no net

    def walk(denoise: Denoise, known: Tensor, keep: Tensor, x: Tensor, noise: Noise) -> samplers.Walk:
        step = build.step(d) if row.step is None else row.step(known, keep)
        return samplers.sample(row.denoise(denoise, known, keep, noise), x, ladder, step, noise)

    return Method(name, ladder, calls, walk)


def _below(sigmas: Tensor, sigma: float) -> Tensor:
    """Return a ladder of `sigma` and all levels of `sigmas` under it, or `sigmas` itself where it begins lower."""
    return sigmas if sigmas[0] <= sigma else torch.cat([sigmas.new_tensor([sigma]), sigmas[sigmas < sigma]])
