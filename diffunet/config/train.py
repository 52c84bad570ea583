"""The section `train`: the loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from diffunet.config.fields import Count, Momentum, Part, Positive, Rate, Section, Share
from diffunet.names import NO_TRACKIO, TrackerName


class TrainConfig(Section):
    """The loop."""

    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Minutes that the run may take, all its parts together; net, batch, rate and steps are chosen for them."""
    steps: Positive | None = None
    """Optimizer steps in all, in place of minutes."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] | Literal["auto"] | None = None
    """Images of one optimizer step, over all processes and passes; by the image size. auto: what fits, by trial."""
    grad_accumulation: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Passes that a step is divided into, for less memory; as few as the free memory of the device allows."""
    learning_rate: Rate | None = None
    """Learning rate between warm-up and cool-down; by default what suits the width of the net."""
    warmup: Count | None = None
    """Steps over which the learning rate rises from 0; by default 3% of the run, at least 20 and at most 500."""
    cooldown: Share | None = None
    """Share of the run, at its end, over which the learning rate falls almost to 0; 0.4 by default, 0 for none."""
    cooldown_from: Count | None = None
    """Step from which the learning rate falls, in place of --train.cooldown."""
    half_size: Part | None = None
    """Share of the time, at the beginning, in which it trains at half of the image size; by default 0.5 in short runs
    of images of 64 pixels or more, else none."""
    half_size_until: Count | None = None
    """Step from which it trains at full size, in place of --train.half-size."""
    optimizer: Literal["muon", "adamw"] | None = None
    """Optimizer of the matrices inside the net; all the rest is AdamW's. By default muon, for diffunet's UNet."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """AdamW's."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.99)
    """AdamW's."""
    clip: Rate = 1.0
    """Largest norm of a gradient."""
    ema_halflife: Annotated[float, Field(gt=0, le=1e9)] = 500_000
    """Of the averaged weights, in images."""
    ema_ramp: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Half-life at most this share of the images seen so far."""
    ema_every: Count | None = None
    """Steps between stored averages for `diffunet convert --ema`; a sixteenth, or as 1 GB of disk holds; 0: none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of convolutions and products: bf16 where it is native, else fp16 (with a loss scale) on GPUs, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the net, which takes minutes at the start; on CUDA where the run is long enough."""
    kernels: Literal["auto", "on", "off"] = "auto"
    """Use kernels of diffunet's own, built by a C++ compiler or, on CUDA, by Triton; where faster in a trial."""
    cuda_graph: bool = True
    """On CUDA, record a step once and replay it, which launches all of its kernels at once; where that is possible."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Threads of the CPU to compute with; all cores."""
    deterministic: bool = False
    """Bit-equal runs on CUDA too (slower)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of every draw."""
    log_every: Positive = 50
    """Steps between lines of metrics.jsonl."""
    validate_every: Positive | None = None
    """Steps between held-out losses; by default a twentieth of the run or as 1% of the time allows, at most 1,000."""
    sample_every: Positive | None = None
    """Steps between previews; by default a twentieth of the run or as 1% of the time allows, at most 1,000."""
    previews: Annotated[int, Field(ge=0, le=1024)] = 36
    """Images of a preview."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    checkpoint_minutes: Annotated[float, Field(ge=0, le=1e6)] = 15.0
    """Minutes since the last checkpoint after which there is one at any step; 0: only every so many steps."""
    keep_every: Positive | None = None
    """Checkpoints at multiples of this stay for ever; of the others the newest 2."""
    max_skipped: Positive = 50
    """Steps in a row without a finite loss and gradient before the run ends as diverged."""
    stop_after: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Minutes after which to save everything and end, to go on later with --resume."""
    timeout: Annotated[float, Field(gt=0, le=1e6)] = 30.0
    """Minutes that a process waits for another one before it gives up."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that numbers and previews also go to: tensorboard to RUN/tensorboard, the others as they are set up."""

    @model_validator(mode="before")
    @classmethod
    def _tensorboard(cls, content: Any) -> Any:
        """Read the option of diffunet 0.1 that `track` took the place of."""
        if isinstance(content, dict) and isinstance(before := content.get("tensorboard"), bool):
            content = {name: value for name, value in content.items() if name != "tensorboard"}
            content.setdefault("track", ("tensorboard",) if before else ())
        return content

    @field_validator("track", mode="before")
    @classmethod
    def _once(cls, names: Any) -> Any:
        """Refuse trackio with the reason, and take a name once."""
        if not isinstance(names, list | tuple):
            return names
        if "trackio" in names:
            raise ValueError(NO_TRACKIO)
        return tuple(dict.fromkeys(names))
