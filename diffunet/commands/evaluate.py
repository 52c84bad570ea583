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
    num: Annotated[int, Field(ge=2, le=10**7)] | None = None, seed: Seed = 0, sampling: OmitArgPrefixes[Sampling],
    likelihood: Literal["vlb", "ode"] | None = None, likelihood_num: Number = 100,
    likelihood_steps: Steps | None = None, loss: bool = False, computing: OmitArgPrefixes[Computing],
) -> None:  # fmt: skip
    """Compare generated images with real ones: a feature distance, beside that of real images to real ones.

    Example: diffunet evaluate runs/photos photos --num 1000

    Example: diffunet evaluate runs/photos photos --loss

    Args:
        data: Folder of real images; class subfolders make better features.
        num: Images to compare, at most a third of the real ones; 10,000 if not given.
        seed: Of the samples and the features.
        likelihood: Also bits per dimension of real images: by the bound of a DDPM schedule (vlb), or the ODE (ode).
        likelihood_num: Images for that.
        likelihood_steps: For that: of the chain (by default all), or of the ODE (50).
        loss: Instead, how well the model takes noise out of held-out images, at 16 noise levels: a number that compares
            models however they were trained, and hardly varies with chance. Of 256 images if --num is not given.
        computing: These options decide where and how the net computes. With --likelihood, --precision auto is fp32.
    """
    if likelihood is None and (likelihood_num != 100 or likelihood_steps is not None):
        raise UsageError("--likelihood-num and --likelihood-steps go with --likelihood vlb or ode")
    if loss and (likelihood is not None or sampling != Sampling()):
        raise UsageError("--loss draws no samples: it goes with neither --likelihood nor options of sampling")
    from diffunet.evaluation import report as reports

    if likelihood is not None and computing.precision == "auto":
        # Bits of thousands of dimensions are added up, and with them what rounding does to each.
        computing = replace(computing, precision="fp32")
    pipe = options.load(model, computing)
    with progress("evaluating") as show:

        def tell_step(what: str, done: int, total: int) -> None:
            show(done, total, what)

        if loss:
            found, held_out = reports.denoising(pipe, data, num=num or 256, seed=seed, on_step=tell_step)
            lines = found.lines()
            if not held_out:
                lines.append("of images that it may have seen in training, which flatters")
        else:
            keywords = options.for_pipeline(sampling, pipe)
            report = reports.evaluate(
                pipe, data, num=num or 10_000, seed=seed, likelihood=likelihood, likelihood_num=likelihood_num,
                likelihood_steps=likelihood_steps, on_step=tell_step, **keywords,
            )  # fmt: skip
            lines = report.lines()
    tell("\n".join(lines))
