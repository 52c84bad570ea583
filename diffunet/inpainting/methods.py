"""The methods of filling in: which there are, with which defaults, and how each walks its ladder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffunet import build
from diffunet.config import Config
from diffunet.diffusion import samplers, schedules
from diffunet.diffusion.denoiser import Denoise
from diffunet.diffusion.guidance import threshold
from diffunet.diffusion.known_pixels import ITERATIONS, ddnm, keep_known, mmps, resample_ladder
from diffunet.draws import Noise
from diffunet.errors import UsageError
from diffunet.names import METHODS as METHODS

DEFAULT = "mmps"
"""Of a model that was not trained to inpaint."""
JUMPS = {"repaint": (20, 5, 5), "ddnm": (50, 50, 1)}
"""Steps of the default ladder, into how many stretches it is cut, and how often each is walked."""


@dataclass(frozen=True)
class Method:
    """A way to fill in: the `ladder` [n + 1] and `walk(denoise, known, keep, x, noise)` down it.

    `known` [B C H W] in [-1, 1], `keep` bool and broadcasting to it, True where pixels are known; x [B C H W] at the
    first sigma. `method` is its name; it takes `calls` of the net, passes backwards among them. A net that is `trained`
    for it is to be told what is known, too; see `denoiser.condition`.
    """

    method: str
    ladder: Tensor
    calls: int
    walk: Callable[[Denoise, Tensor, Tensor, Tensor, Noise], samplers.Walk]

    @property
    def trained(self) -> bool:
        """Whether the net is told what is known."""
        return self.method == "trained"


def choose(
    config: Config,
    noise: schedules.Schedule,
    method: str = "auto",
    steps: int | None = None,
    jump_length: int | None = None,
    jump_n_sample: int | None = None,
    below: float = math.inf,
) -> Method:
    """The way to fill in that `method`, one of `METHODS`, names.

    Args:
        config: of the model; its sampler and ladder are those of trained, replace and mmps.
        noise: the model's schedule.
        method: auto is trained for a model trained to inpaint, else `DEFAULT`.
        steps: of the ladder, before it is walked more than once.
        jump_length, jump_n_sample: see `resample_ladder`; of repaint and ddnm.
        below: begin at this sigma, with what is left of the ladder.

    Raises:
        UsageError: for a method that there is not, or that the model or the other arguments do not go with.
    """
    trained = config.diffusion.task == "inpaint"
    if method == "auto":
        method = "trained" if trained else DEFAULT
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if method == "trained" and not trained:
        raise UsageError("method trained needs a model that was trained with --task inpaint, and this one was not")
    if method not in JUMPS:
        if jump_length is not None or jump_n_sample is not None:
            raise UsageError(
                f"method {method} does not jump back; jump_length and jump_n_sample are of repaint and ddnm"
            )
        sampler = config.diffusion.sampler
        sigmas, step = (
            _below(build.ladder(config, noise, steps or config.diffusion.sample_steps), below),
            build.step(config),
        )
        count = build.calls(sampler, len(sigmas) - 1) * (1 + ITERATIONS if method == "mmps" else 1)
        given = _mmps if method == "mmps" else keep_known
        return Method(
            method,
            sigmas,
            count,
            lambda denoise, known, keep, x, noise: samplers.sample(given(denoise, known, keep), x, sigmas, step, noise),
        )
    default_steps, stretches, visits = JUMPS[method]
    steps = steps or default_steps
    sigmas = _below(
        build.ladder(build.sampling(config, ladder="trailing"), noise, steps), below
    )  # uniform in time, as they walk
    sigmas = resample_ladder(sigmas, jump_length or max(1, steps // stretches), jump_n_sample or visits)
    count = int((sigmas.diff() < 0).sum())
    if method == "ddnm":
        return Method(
            method,
            sigmas,
            count,
            lambda denoise, known, keep, x, noise: samplers.sample(denoise, x, sigmas, ddnm(known, keep), noise),
        )
    return Method(
        method,
        sigmas,
        count,
        lambda denoise, known, keep, x, noise: samplers.sample(
            keep_known(denoise, known, keep, noise), x, sigmas, samplers.euler(eta=1.0), noise
        ),
    )


def _mmps(denoise: Denoise, known: Tensor, keep: Tensor) -> Denoise:
    """`mmps` within the range of images: at much noise a net's small error is a large one of its derivative."""
    return threshold(mmps(denoise, known, keep), "static")


def _below(sigmas: Tensor, sigma: float) -> Tensor:
    """What of a ladder is below a sigma, from it on; all of it where that begins lower."""
    return sigmas if sigmas[0] <= sigma else torch.cat([sigmas.new_tensor([sigma]), sigmas[sigmas < sigma]])
