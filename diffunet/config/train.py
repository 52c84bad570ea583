"""The section `train`: the loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from diffunet.config.fields import Count, Momentum, Part, Positive, Rate, Section, Share
from diffunet.names import NO_TRACKIO, TrackerName


class TrainConfig(Section):
    """How long the net is trained, and how."""

    minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Minutes that the run may take, all its parts together. The net, batch, learning rate and steps are chosen for
    them."""
    steps: Positive | None = None
    """Optimizer steps in all, in place of minutes."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] | Literal["auto"] | None = None
    """Images of one optimizer step, over all processes and passes; auto finds by trial what fits. If not given, the
    images that the minutes allow decide; with --steps, the image size and the device."""
    grad_accumulation: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Passes that a step is divided into, to take less memory. If not given, they are as few as the free memory
    allows."""
    cpu_parts: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Parts of a pass that a CPU computes at once, each with its share of the threads, for diffunet's own UNet and loss
    in one process. If not given, they are what is fastest in a trial, or 1 with --steps."""
    learning_rate: Rate | None = None
    """Learning rate between warm-up and cool-down. If not given, it is what suits the width of the net and
    the length of the run."""
    warmup: Count | None = None
    """Steps over which the learning rate rises from 0. If not given, they are 3% of the run, at least 20 and at most
    500."""
    cooldown: Share | None = None
    """Share of the run, 0 to 1, at whose end the learning rate falls almost to 0. If not given, it is 0.4; 0 is
    none."""
    cooldown_from: Count | None = None
    """Step from which the learning rate falls, in place of --train.cooldown."""
    half_size: Part | None = None
    """Share of the time, below 1, that the run spends first at half of the image size. If not given, it is 0.5 in short
    runs by --minutes, of images of 64 pixels or more, that do not start from a model; else none."""
    half_size_until: Count | None = None
    """Step from which the run trains at full size, in place of --train.half-size."""
    optimizer: Literal["muon", "adamw"] | None = None
    """Optimizer of the convolutions and matrices inside the net; AdamW learns the rest of it. If not given, it is muon
    for diffunet's UNet, unless the learning rate is given; then it is adamw."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight decay of the optimizers, 0 to 10: the share of a weight that a step takes away at rate 1."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.99)
    """Momentum of AdamW: how much it keeps of its averages of the gradient and of its square, below
    1."""
    clip: Rate = 1.0
    """Largest norm of a gradient; larger ones are scaled down to it."""
    ema_halflife: Annotated[float, Field(gt=0, le=1e9)] = 500_000
    """Half-life of the averaged weights (EMA), in images."""
    ema_ramp: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Half-life of the averaged weights at most, as a share of the images seen so far, so that they follow quickly at
    first."""
    ema_every: Count | None = None
    """Steps between averages that are stored for `diffunet convert --ema`; 0 stores none. If not given, there are 16 of
    them, or as many as 1 GB of disk holds."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of convolutions and products. auto is bf16 where the device has it, else fp16 (with a loss scale)
    on NVIDIA GPUs that are fast in it, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether the net is compiled, which takes a minute or more at the start. auto does so on CUDA where the run is
    long enough."""
    kernels: Literal["auto", "on", "off"] = "auto"
    """Whether kernels of diffunet's own are used, built by a C++ compiler or, on CUDA, by Triton. auto does so where
    they are faster in a trial."""
    cuda_graph: bool = True
    """Record a step on CUDA once and replay it, which launches all of its kernels at once, where that is possible."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU threads to compute with. If not given, there are as many as cores."""
    deterministic: bool = False
    """Make runs equal to the bit on CUDA, too, which is slower."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random numbers of the run."""
    log_every: Positive = 50
    """Steps between two lines of metrics.jsonl."""
    validate_every: Positive | None = None
    """Steps between two validation losses. If not given, they are a twentieth of the run, or as 1% of the time allows,
    at most 1,000."""
    sample_every: Positive | None = None
    """Steps between two previews. If not given, they are a twentieth of the run, or as 1% of the time allows, at most
    1,000."""
    previews: Annotated[int, Field(ge=0, le=1024)] = 36
    """Images of a preview; 0 makes none."""
    checkpoint_every: Positive = 1000
    """Steps between two checkpoints."""
    checkpoint_minutes: Annotated[float, Field(ge=0, le=1e6)] = 15.0
    """Minutes after the last checkpoint at which there is another one, at any step; 0 is never."""
    keep_every: Positive | None = None
    """Steps whose multiples keep their checkpoint for ever. Of the other checkpoints the newest 2 are kept, and the one
    before the learning rate falls."""
    max_skipped: Positive = 50
    """Steps in a row without a finite loss and gradient after which the run ends as diverged."""
    stop_after: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Minutes after which this part of the run saves everything and ends, to go on later with --resume."""
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
