"""The models that a command uses, loaded as its options say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffunet.commands.options import Computing, Sampling
from diffunet.commands.progress import say
from diffunet.errors import UsageError

if TYPE_CHECKING:
    from diffunet.sampling.pipeline import Guidance, Pipeline


def load(model: str, computing: Computing) -> Pipeline:
    """Load a model; a warning on standard error comes first where a GPU lies idle and no device was chosen.

    Raises:
        CheckpointError, UsageError: as `pipeline.load`.
    """
    import torch

    from diffunet import compute
    from diffunet.sampling import pipeline

    if computing.device is None and (idle := compute.warning()):
        say(idle)
    if computing.threads is not None:
        torch.set_num_threads(computing.threads)
    precision = compute.PRECISIONS.get(computing.precision)
    return pipeline.load(model, computing.device, precision, compile=computing.compile)


def guidance(pipe: Pipeline, sampling: Sampling) -> Guidance:
    """Return the guidance that the options ask for; the `weaker` model is loaded onto the device of `pipe`.

    Raises:
        UsageError: for options that do nothing at scale 1.
        CheckpointError: as `pipeline.load`.
    """
    scale, interval, rescale = sampling.guidance, sampling.guidance_interval, sampling.guidance_rescale
    if scale == 1 and (interval is not None or rescale or sampling.weaker is not None):
        raise UsageError("--guidance is 1, none: --guidance-interval, --guidance-rescale and --weaker need another")
    from diffunet.sampling import pipeline

    weaker = None if sampling.weaker is None else pipeline.load(sampling.weaker, pipe.device, pipe.dtype)
    return pipeline.Guidance(scale, weaker, interval, rescale)
