"""`diffunet evaluate` compares generated images with real ones."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import OmitArgPrefixes, Positional, arg

from diffunet.commands import options
from diffunet.commands.options import Computing, Model, Number, Sampling, Seed, Steps
from diffunet.commands.progress import progress, tell
from diffunet.errors import UsageError


def evaluate(
    model: Model, data: Annotated[Positional[Path], arg(metavar="DATA")], /, *,
    num: Annotated[int, Field(ge=2, le=10**7)] = 10_000, seed: Seed = 0, sampling: OmitArgPrefixes[Sampling],
    likelihood: Literal["vlb", "ode"] | None = None, likelihood_num: Number = 100,
    likelihood_steps: Steps | None = None, computing: OmitArgPrefixes[Computing],
) -> None:  # fmt: skip
    """Compare generated images with real ones: a feature distance, beside that of real images to real ones.

    Example: diffunet evaluate runs/photos photos --num 1000

    Args:
        data: Folder of real images; class subfolders make better features.
        num: Images to compare, at most a third of the real ones.
        seed: Of the samples and the features.
        likelihood: Also bits per dimension of real images: by the bound of a DDPM schedule (vlb), or the ODE (ode).
        likelihood_num: Images for that.
        likelihood_steps: For that: of the chain (by default all), or of the ODE (50).
        computing: These options decide where and how the net computes. With --likelihood, --precision auto is fp32.
    """
    if likelihood is None and (likelihood_num != 100 or likelihood_steps is not None):
        raise UsageError("--likelihood-num and --likelihood-steps go with --likelihood vlb or ode")
    from diffunet.evaluation.report import evaluate as run

    if likelihood is not None and computing.precision == "auto":
        # Bits of thousands of dimensions are added up, and with them what rounding does to each.
        computing = replace(computing, precision="fp32")
    pipe = options.load(model, computing)
    keywords = options.for_pipeline(sampling, pipe)
    with progress("evaluating") as show:
        report = run(
            pipe, data, num=num, seed=seed, likelihood=likelihood, likelihood_num=likelihood_num,
            likelihood_steps=likelihood_steps, on_step=lambda what, done, total: show(done, total, what), **keywords,
        )  # fmt: skip
    tell("\n".join(report.lines()))
