"""Several commands share these arguments and options, with their bounds, and load a model by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from tyro.conf import Positional, arg

from diffunet.commands.progress import say
from diffunet.commands.signature import Rare
from diffunet.errors import UsageError
from diffunet.names import LadderName, SamplerName, ThresholdName

if TYPE_CHECKING:
    import torch

    from diffunet.sampling.conditions import SamplingOptions
    from diffunet.sampling.pipeline import Pipeline

MODEL = "Run folder, model folder, folder of diffusers, name on the hub (owner/name), or emoji, which is built in."
Model = Annotated[Positional[str], arg(metavar="MODEL", help=MODEL)]
Overwrite = Annotated[bool, arg(help="Replace what exists at the output.")]
Open = Annotated[bool, arg(help="Show the result in the system's viewer.")]
Out = Annotated[str, arg(metavar="PATH")]
Device = Annotated[str, arg(metavar="DEVICE")]
Label = Annotated[str, arg(metavar="CLASS")]
Number = Annotated[int, Field(ge=1, le=10**7)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[int, Field(ge=4, le=4096)]

# The docstrings below are what `diffunet sample --help` and its like show.


@dataclass(frozen=True)
class Sampling:
    """How images are sampled."""

    guidance: Finite = 1.0
    """Strength with which samples are pushed away from those of a weaker model: 1 is off, 1.5 to 4 are usual. With
    classes the weaker model is the same one without the label, else its own average after an eighth of its training."""
    guidance_interval: Annotated[Rare[tuple[Finite, Finite] | None], arg(metavar="LOW HIGH")] = None
    """Noise levels (sigma), LOW HIGH, between which there is guidance. If not given, it is at all of them, or away from
    the model's own average between 0.2 and 4."""
    guidance_rescale: Rare[Annotated[float, Field(ge=0, le=1)]] = 0.0
    """How far colours that guidance made too strong are brought back, 0 to 1."""
    weaker: Annotated[Rare[str | None], arg(metavar="MODEL")] = None
    """Worse model to guide away from, in place of the usual one: an earlier checkpoint such as
    RUN/checkpoints/step-00010000."""
    sampler: SamplerName | None = None
    """Sampler to make pictures by. If not given, it is the model's own."""
    steps: Steps | None = None
    """Steps of the sampler; more take longer. If not given, they are the model's own number."""
    ladder: Rare[LadderName | None] = None
    """How the steps are spaced over the noise levels. If not given, it is the model's own way."""
    threshold: Rare[ThresholdName | None] = None
    """What keeps the predicted image within its range: nothing, clipping (static), or scaling back (dynamic). If not
    given, it is the model's own way."""


@dataclass(frozen=True)
class Computing:
    """Where and how the net computes."""

    device: Device | None = None
    """Device to compute on: cuda, cuda:1, mps or cpu. If not given, it is the best there is."""
    precision: Rare[Literal["auto", "fp32", "bf16", "fp16"]] = "auto"
    """Number format of the net's convolutions and products. auto is bf16 where the device has it, else fp16 on NVIDIA
    GPUs that are fast in it, else fp32."""
    compile: Rare[bool] = False
    """Compile the net first, which takes a minute or more and pays for many images."""
    kernels: Rare[bool] = False
    """Use kernels of diffunet's own, built by a C++ compiler or, on CUDA, by Triton. The last bits of pictures differ
    then."""
    threads: Rare[Annotated[int, Field(ge=1, le=4096)] | None] = None
    """CPU threads to compute with. If not given, there are as many as cores."""


def load(model: str, computing: Computing) -> Pipeline:
    """Load a model as `pipeline.load`, after a warning where a GPU lies idle and no device was chosen.

    Of several processes each computes on a GPU of its own.
    """
    from diffunet import compute, ranks
    from diffunet.sampling import pipeline

    _prepare(computing)
    dtype = compute.PRECISIONS.get(computing.precision)
    return pipeline.load(
        model, ranks.device(computing.device), dtype, compile=computing.compile, kernels=computing.kernels
    )


def device(computing: Computing) -> torch.device:
    """Return the device to compute on, after a warning where a GPU lies idle and none was chosen."""
    from diffunet import compute

    _prepare(computing)
    return compute.choose(computing.device).device


def _prepare(computing: Computing) -> None:
    import torch

    from diffunet import compute

    if computing.device is None and (idle := compute.warning()):
        say(idle)
    if computing.threads is not None:
        torch.set_num_threads(computing.threads)


def for_pipeline(sampling: Sampling, pipe: Pipeline) -> SamplingOptions:
    """Return the options as keywords of `pipe.sample`; the weaker model is loaded onto the device of `pipe`.

    Raises UsageError for options that do nothing at a guidance of 1, CheckpointError for an unreadable weaker model.
    """
    scale, interval, rescale = sampling.guidance, sampling.guidance_interval, sampling.guidance_rescale
    if scale == 1 and (interval is not None or rescale or sampling.weaker is not None):
        raise UsageError("--guidance is 1, none: --guidance-interval, --guidance-rescale and --weaker need another")
    from diffunet.sampling import pipeline

    weaker = None if sampling.weaker is None else pipeline.load(sampling.weaker, pipe.device, pipe.dtype)
    return {
        "guidance": pipeline.Guidance(scale, weaker, interval, rescale), "sampler": sampling.sampler,
        "steps": sampling.steps, "ladder": sampling.ladder, "threshold": sampling.threshold,
    }  # fmt: skip
