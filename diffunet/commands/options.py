"""The arguments and options that several commands take, with their bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional, arg

from diffunet.names import LadderName, SamplerName, ThresholdName

Model = Annotated[Positional[str], arg(metavar="MODEL")]
Number = Annotated[int, Field(ge=1, le=10**7)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[int, Field(ge=4, le=4096)]

# The docstrings below are what `diffunet sample --help` and its like show.


@dataclass(frozen=True)
class Sampling:
    """These options decide how images are sampled."""

    guidance: Finite = 1.0
    """How strongly the label counts; 1 is off, 1.5 to 4 usual. Needs a model with classes, or --weaker."""
    guidance_interval: tuple[Finite, Finite] | None = None
    """Guide only between two noise levels (sigma)."""
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How far colours that guidance made strong are brought back, 0 to 1."""
    weaker: str | None = None
    """Guide away from this worse model instead: an earlier checkpoint, RUN/checkpoints/step-00010000."""
    sampler: SamplerName | None = None
    """The model's default if not given; so for the next three. ddim is euler, euler-ancestral is ddpm."""
    steps: Steps | None = None
    """Of the sampler."""
    ladder: LadderName | None = None
    """How the steps are spaced."""
    threshold: ThresholdName | None = None
    """What keeps the predicted image within its range."""


@dataclass(frozen=True)
class Computing:
    """These options decide where and how the net computes."""

    device: str | None = None
    """cuda, cuda:1, mps, cpu; the best there is if not given."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the net's convolutions and products; auto is bf16 where the device has it, else fp16 on a GPU, else fp32."""
    compile: bool = False
    """Compile the net first, which takes a minute or more and makes what follows faster; for many images."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Threads of the CPU to compute with; all cores if not given."""
