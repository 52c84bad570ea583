"""Seconds to 64 images of 32x32, with the same weights: diffunet's default sampler beside diffusers' pipelines.

The net is the default one with DDPM's process and 32 groups, which is what diffusers can express. All ways compute in
diffunet's precision and with the channels last, all 64 images at a time, from noise to 8-bit images:

- diffunet: `Pipeline.sample` with the sampler, ladder and steps that a model has by default, and with `--kernels`;
- diffusers, DDPM: DDPMPipeline with 1,000 steps; it takes fewer, and the seconds are multiplied (the row says how);
- diffusers, DPM-Solver++: DDPMPipeline with DPMSolverMultistepScheduler and 25 steps.

What is compared first is what the nets answer, as samplers that differ make images that differ.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks import nets
from benchmarks.measure import Lap, Measure, Options, Row, Wanted, elapsed
from diffunet import compute
from diffunet.compute import Compute
from diffunet.config import Config
from diffunet.sampling.pipeline import Pipeline

NAME = "sample"

IMAGES, DDPM_STEPS, SOLVER_STEPS = 64, 1000, 25

TIMED = {"cpu": 5, "cuda": 250, "mps": 100}
"""The steps of DDPM that are timed."""


def config_of(how: Compute, options: Options) -> Config:
    """Return the config, which diffusers can express."""
    images = 2 if options.tiny else IMAGES
    config = nets.resolved("default", 32, how, tiny=options.tiny, batch_size=images, ema_every=0)
    return config.changed("model", norm_groups=32).changed("diffusion", schedule="linear", target="epsilon")


def measures(options: Options) -> list[Measure]:
    """Return the measure."""
    how = compute.choose(options.device)
    config = config_of(how, options)
    timed = 4 if options.tiny else TIMED[how.device.type]
    ways = {
        "diffunet": partial(ours, config, how, options),
        "diffunet, --kernels": partial(ours, config, nets.with_kernels(how), options),
        "diffusers, DDPM": partial(theirs, config, nets.plain_torch(how), options, timed),
        "diffusers, DPM-Solver++": partial(theirs, config, nets.plain_torch(how), options, None),
    }
    wanted = {"diffusers, DDPM": Wanted("ratio", least=10.0), "diffusers, DPM-Solver++": Wanted("ratio", least=2.0)}
    return [Measure(f"{nets.batch_of(config)} images", "s", ways, wanted)]


def ours(config: Config, how: Compute, options: Options) -> tuple[Lap, Row]:
    """Return diffunet's way."""
    denoiser = nets.model(config)
    how.prepare(denoiser, frozen=True)
    facts = nets.compared(denoiser.net, how, config, learn=False)
    pipeline, images = Pipeline(config, denoiser, how), nets.batch_of(config)
    d = config.diffusion

    def sample(steps: int | None = None) -> None:
        made = pipeline.sample(images, batch_size=images, steps=steps)
        assert len(made) == images

    sample(2)  # warm
    return lambda: elapsed(sample), facts | {"sampler": d.sampler, "steps": d.sample_steps}


def theirs(config: Config, how: Compute, options: Options, timed: int | None) -> tuple[Lap, Row]:
    """Return the way of DDPMPipeline, with `timed` steps of DDPM's 1,000 or with all 25 of DPM-Solver++."""
    from diffusers import DDPMPipeline, DPMSolverMultistepScheduler

    folder, images = options.folder("pipeline"), nets.batch_of(config)
    nets.unet2d(config, folder)
    pipeline: Any = DDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    how.prepare(pipeline.unet, frozen=True)
    facts = nets.compared(pipeline.unet, how, config, learn=False)
    if timed is None:
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    steps = timed or SOLVER_STEPS

    def sample(steps: int) -> None:
        with torch.inference_mode(), how.kernels(), how.autocast():
            made = pipeline(batch_size=images, num_inference_steps=steps, output_type="pil").images
        assert len(made) == images

    sample(2)  # warm
    if timed is None:
        return lambda: elapsed(partial(sample, steps)), facts | {"steps": steps}
    factor = DDPM_STEPS / timed
    facts |= {"steps": DDPM_STEPS, "extrapolated": f"{timed} steps are timed, and multiplied by {factor:g}"}
    return lambda: factor * elapsed(partial(sample, steps)), facts
