"""How likely a model finds real images, in bits per dimension: the bits to store a pixel's channel with its help.

Both measures are upper bounds for images of 256 levels in [-1, 1]: `vlb`, the variational bound of a DDPM chain, and
`ode`, by the probability-flow ODE of any schedule. They are of two models made of one denoiser (a chain of noisy steps,
a flow without noise), so each compares only with its like. The mathematics is in diffusion/likelihood.py.

Legend: N images, B batch, C channels, H W height and width, d = C H W dimensions.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffunet import build, draws, plain
from diffunet.diffusion import guidance, likelihood
from diffunet.diffusion.denoiser import Denoise, bind
from diffunet.diffusion.schedules import DDPMSchedule, Schedule
from diffunet.errors import Cancelled, UsageError
from diffunet.pictures.images import Pixels, to_float
from diffunet.sampling.batching import in_batches
from diffunet.sampling.pipeline import Pipeline

log = logging.getLogger(__name__)

HALF_LEVEL = 1 / 255
"""Half of the distance between two levels of an 8-bit image in [-1, 1]."""
OnStep = Callable[[int, int], Any]
"""A function that is called with (calls of the net that are done, of how many); it cancels by returning False."""


@dataclass(frozen=True)
class Likelihood:
    """A result of `vlb` or `ode` (`kind`): the mean bits per dimension of `num` images, by `calls` of the net for each.

    `error` is the standard error of the mean, from the spread over the images (nan for one image); `note` says in words
    what the number is of.
    """

    kind: str
    bits: float
    error: float
    num: int
    calls: int
    note: str


def check(schedule: Schedule, kind: str, steps: int | None) -> None:
    """Check that a likelihood of this kind can be measured on a schedule.

    Raises:
        UsageError: an unknown `kind`; too few or too many `steps`; a variational bound of a schedule that is no chain.
    """
    if kind not in MEASURES:
        raise UsageError(f"unknown likelihood {kind!r}; there are vlb and ode")
    if kind == "vlb":
        levels(schedule, steps)
    elif steps is not None and steps < 4:
        raise UsageError(f"the ODE of a likelihood takes at least 4 steps, not {steps}")


def levels(schedule: Schedule, steps: int | None = None) -> Tensor:
    """Return the sigmas of a DDPM chain, ascending, float64 [T]; or `steps` of them, spread from the first to the last.

    Raises:
        UsageError: a schedule that is no chain, or `steps` not from 2 to T.
    """
    if not isinstance(schedule, DDPMSchedule):
        raise UsageError(
            "the variational bound is of a DDPM schedule, which is a chain of steps; this model's is not: ask for the "
            "likelihood by the ODE"
        )
    steps = schedule.num_steps if steps is None else steps
    if not 2 <= steps <= schedule.num_steps:
        raise UsageError(f"the variational bound takes 2 to {schedule.num_steps} steps of this chain, not {steps}")
    return schedule.sigmas[torch.linspace(0, schedule.num_steps - 1, steps, dtype=torch.float64).round().long()]


def vlb(
    pipeline: Pipeline, images: Pixels, labels: Sequence[int] | None = None, *, steps: int | None = None, seed: int = 0,
    batch_size: int | None = None, on_step: OnStep | None = None,
) -> Likelihood:  # fmt: skip
    """Measure bits per dimension by the variational bound (Ho et al. 2020, eq. 5): a call of the net for each step.

    The whole sum is taken, L_T to L_0, with one draw of the noise for each image and step. The denoised image is kept
    to [-1, 1], as for the published numbers (calc_bpd_loop of guided-diffusion): it is the bound of the chain that
    samples with the threshold "static". A net that predicts epsilon strays far outside where sigma is large, above all
    in the last steps of the cosine schedule (small digits, 876 training steps: 19.9 bits without, 2.8 with).

    The variance of the chain's steps is the learned one where the model has it, else the large one: one that is too
    small by a factor costs in proportion to it, one too large its logarithm. On Gaussian images of 6.11 bits 1,000
    linear steps gave 6.84 with the small variance and 6.23 with the large one, and 250 steps 9.12 and 6.22.

    Args:
        images: uint8 [N H W C], at the model's size; `labels` are their classes, or None for no label.
        steps: steps of the chain, 2 to T, all by default. With fewer it is the bound of that shorter chain, spread over
            the same levels: another model, and a worse one, the fewer the steps.
        seed: seed of the noise; that of image i does not depend on `batch_size`.
        batch_size: images at a time; by default as many as fit into memory.

    Raises:
        UsageError: a schedule that is no chain of steps, or arguments with impossible values.
        ResourceError: out of memory.
        Cancelled: `on_step` returned False.
    """
    sigmas, length = levels(pipeline.denoiser.schedule, steps), len(levels(pipeline.denoiser.schedule))
    variance = "learned" if pipeline.denoiser.learned_variance else "large"

    def bits_of(denoise: Denoise, x0: Tensor, numbers: range, called: likelihood.Called) -> Tensor:
        noise = draws.streams(draws.key_of("vlb", seed), numbers, x0.shape[1:], x0.device)
        return likelihood.variational_bound(guidance.threshold(denoise, "static"), x0, sigmas, variance, noise, called)

    which = "" if len(sigmas) == length else f" of a chain of {len(sigmas)} steps, not {length}"
    note = f"variational bound{which}, {variance} variance"
    return _measure(
        "vlb", bits_of, pipeline, images, labels, note=note, calls=len(sigmas), batch_size=batch_size, on_step=on_step
    )


def highest(schedule: Schedule, sigma_data: float) -> float:
    """Return the sigma at which `ode` ends: `schedule.sigma_max`, or 200 sigma_data, where nothing is left to add.

    There p_sigma is taken to be N(mean, sigma^2 + sigma_data^2). With v_i the variances of the images along their d
    principal axes, that costs on the average sum (v_i - sigma_data^2)^2 / (4 sigma^4) nats (the divergence of two
    Gaussians, to the first order in v / sigma^2). At worst, all of the variance along one axis, it is
    d sigma_data^4 / (4 ln 2 sigma^4) bits per dimension, 5e-5 for 256 x 256 in colour; and a mean picture that is more
    than a colour costs at most sigma_data^2 / (2 ln 2 sigma^2), 2e-5. Further up a net adds only its own errors.
    """
    return min(schedule.sigma_max, 200 * sigma_data)


def lowest(schedule: Schedule) -> float:
    """Return the sigma at which `ode` reads a density: the schedule's lowest, but no less than 0.00226.

    That is as wide as the noise of dequantisation, and there `floor` is least: a quarter of a bit. Further down, what
    is between the 256 levels is unlikely to a model that knows them: at flow's own 0.001 the floor is 2 bits.
    """
    return max(schedule.sigma_min, HALF_LEVEL / math.sqrt(3))


def floor(low: float) -> float:
    """Return the bits per dimension of a perfect model of a single image by `ode` from sigma `low`: the price of blur.

    They are log2(127.5), minus the mean of log2 N(u; 0, low^2) over u uniform in a level.
    """
    nats = 0.5 * math.log(2 * math.pi * low**2) + HALF_LEVEL**2 / (6 * low**2)
    return nats / math.log(2) - math.log2(2 * HALF_LEVEL)


def ode(
    pipeline: Pipeline, images: Pixels, labels: Sequence[int] | None = None, *, steps: int | None = None,
    dequantisations: int = 1, seed: int = 0, batch_size: int | None = None, on_step: OnStep | None = None,
) -> Likelihood:  # fmt: skip
    """Measure bits per dimension by the probability-flow ODE (Song et al. 2021, section 4.3), for every schedule.

    Uniform dequantisation (Theis et al. 2016, section 3.1): noise as wide as a level is added to images of 256 levels;
    minus the mean log2 density of that, plus log2(127.5) for the width of a level, bounds the bits from above.

    The density is that of the model's images at `lowest(schedule)`, with that much blur: even an image that the model
    knows wholly beforehand costs `floor` of it, a quarter of a bit for flow and EDM. DDPM's chains begin at more noise,
    below which the model is no denoiser: linear at 0.01, which is wider than a level, and there it is 1.7 bits. Images
    that are less certain lose less (read from 0.01 in place of 0.002, a model of CIFAR-10 went from 3.65 to 3.69 bits).
    Where the first sigmas differ, so do the models' tasks: compare numbers from equal ones.

    The arguments and the errors are those of `vlb`, but for these.

    Args:
        steps: steps of the integration, at least 4, by default 50; the net is called twice more, with gradients.
        dequantisations: how often each image is dequantised and measured, for a mean with less noise.
    """
    schedule, config = pipeline.denoiser.schedule, pipeline.config
    check(schedule, "ode", steps)
    dequantisations = plain.integer("dequantisations", dequantisations)
    steps, sigma_data = 50 if steps is None else steps, config.diffusion.sigma_data or 0.5
    low, high = lowest(schedule), highest(schedule, sigma_data)
    sigmas = torch.linspace(math.log(low), math.log(high), steps + 1, dtype=torch.float64).exp()
    mean = build.prior_mean(config).to(pipeline.device)

    def bits_of(denoise: Denoise, x0: Tensor, numbers: range, called: likelihood.Called) -> Tensor:
        total = torch.zeros(len(x0), dtype=torch.float64)
        for again in range(dequantisations):
            uniform = _uniform(draws.seed_of("ode", seed), again, numbers, x0)
            x = x0 + HALF_LEVEL * next(uniform)
            signs = (torch.where(drawn < 0, -1.0, 1.0) for drawn in uniform)
            total -= likelihood.log_density(denoise, x, sigmas, mean, sigma_data, [signs.__next__], called)
        return total / (dequantisations * x0[0].numel() * math.log(2)) - math.log2(2 * HALF_LEVEL)

    note = "probability-flow ODE, uniform dequantisation"
    if low > HALF_LEVEL:
        note += f" from sigma {low:.2g}, whose blur alone costs {floor(low):.1f}"
    calls = dequantisations * (steps + 2)
    return _measure(
        "ode", bits_of, pipeline, images, labels, note=note, calls=calls, batch_size=batch_size, on_step=on_step
    )


MEASURES = {"vlb": vlb, "ode": ode}
"""The kinds of likelihood by name."""


def _uniform(seed: int, again: int, numbers: range, like: Tensor) -> Iterator[Tensor]:
    """Yield draws uniform in (-1, 1), of the shape of `like`, from a stream of each image's own."""
    sources = [draws.generator(seed, again, i) for i in numbers]
    while True:
        drawn = np.stack([source.random(like.shape[1:], np.float32) for source in sources])
        yield torch.from_numpy(2 * drawn - 1).to(like.device)


def _measure(
    kind: str, bits_of: Callable[[Denoise, Tensor, range, likelihood.Called], Tensor], pipeline: Pipeline,
    images: Pixels, labels: Sequence[int] | None, *, note: str, calls: int, batch_size: int | None,
    on_step: OnStep | None,
) -> Likelihood:  # fmt: skip
    """Measure all images by `bits_of` in batches, each of which takes `calls` calls of the net.

    `bits_of` turns a denoiser, x0 [B C H W], the numbers of its images, and a function to call after every call of the
    net into bits per dimension, float64 [B].
    """
    size = min(len(images), plain.count("batch_size", batch_size) or max(1, pipeline.fits(learn=kind == "ode")))
    classes = None if labels is None else torch.tensor(list(labels), device=pipeline.device)
    done, total = 0, 0
    measured: list[NDArray[np.float64]] = []

    def called() -> None:
        nonlocal done
        done += 1
        if on_step is not None and not plain.goes_on(on_step(done, total)):
            raise Cancelled(f"cancelled after call {done} of {total}")

    def make(first: int, count: int) -> None:
        nonlocal total
        total = done + calls * math.ceil((len(images) - first) / count)
        batch = images[first : first + count]
        x0 = to_float(torch.from_numpy(batch).to(pipeline.device))
        denoise = bind(pipeline.denoiser, None if classes is None else classes[first : first + count])
        measured.append(bits_of(denoise, x0, range(first, first + len(batch)), called).numpy())

    with pipeline.working("with the likelihood of one image at a time"):
        in_batches(len(images), size, make)
    bits = np.concatenate(measured)
    if not np.isfinite(bits).all():
        log.warning("the likelihood of %d of %d images is not finite", (~np.isfinite(bits)).sum(), len(bits))
    error = bits.std(ddof=1) / math.sqrt(len(bits)) if len(bits) > 1 else math.nan
    return Likelihood(kind, float(bits.mean()), float(error), len(bits), calls, note)
