"""`diffunet evaluate`: generated images beside real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional, arg

from diffunet.commands import outputs
from diffunet.commands.outputs import Precision
from diffunet.commands.progress import progress, tell
from diffunet.commands.values import Finite, Model, Number, Seed, Steps, Threads
from diffunet.errors import UsageError
from diffunet.names import LadderName, SamplerName, ThresholdName


def evaluate(
    model: Model,
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    /,
    num: Annotated[int, Field(ge=2, le=10**7)] = 10_000,
    seed: Seed = 0,
    guidance: Finite = 1.0,
    guidance_interval: tuple[Finite, Finite] | None = None,
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0,
    weaker: str | None = None,
    sampler: SamplerName | None = None,
    steps: Steps | None = None,
    ladder: LadderName | None = None,
    threshold: ThresholdName | None = None,
    likelihood: Literal["vlb", "ode"] | None = None,
    likelihood_num: Number = 100,
    likelihood_steps: Steps | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    compile: bool = False,
    threads: Threads | None = None,
) -> None:
    """Compare generated images with real ones: a feature distance, beside that of real images to real ones.

    Example: diffunet evaluate runs/photos photos --num 1000

    Args:
        model: A run folder, a model folder, a folder of diffusers, or a name of the hub (owner/name).
        data: Folder of real images; class subfolders make better features.
        num: Images to compare, at most a third of the real ones.
        seed: Of the samples and the features.
        guidance: As for diffunet sample.
        guidance_interval: As for diffunet sample.
        guidance_rescale: As for diffunet sample.
        weaker: As for diffunet sample.
        sampler: As for diffunet sample.
        steps: As for diffunet sample.
        ladder: As for diffunet sample.
        threshold: As for diffunet sample.
        likelihood: Also bits per dimension of real images: by the bound of a DDPM schedule (vlb), or the ODE (ode).
        likelihood_num: Images for that.
        likelihood_steps: For that: of the chain (by default all), or of the ODE (50).
        device: cuda, cuda:1, mps, cpu; the best there is if not given.
        precision: Of the net's convolutions and products; auto is bf16 where the device has it, else fp16 on a GPU,
            else fp32. With --likelihood auto is fp32.
        compile: Compile the net first, which takes a minute or more and makes what follows faster; for many images.
        threads: Threads of the CPU to compute with; all cores if not given.
    """
    if likelihood is None and (likelihood_num != 100 or likelihood_steps is not None):
        raise UsageError("--likelihood-num and --likelihood-steps go with --likelihood vlb or ode")
    from diffunet.evaluation.report import evaluate as run

    if likelihood is not None and precision == "auto":
        precision = "fp32"  # bits of thousands of dimensions add up: so would what rounding does to each
    pipe = outputs.load(model, device, precision, threads=threads, compile=compile)
    guide = outputs.guidance(pipe, guidance, guidance_interval, guidance_rescale, weaker)
    with progress("evaluating") as show:
        report = run(
            pipe, data, num=num, seed=seed, guidance=guide, sampler=sampler, steps=steps, ladder=ladder,
            threshold=threshold, likelihood=likelihood, likelihood_num=likelihood_num,
            likelihood_steps=likelihood_steps, on_step=lambda what, done, total: show(done, total, what),
        )  # fmt: skip
    tell("\n".join(report.lines()))
