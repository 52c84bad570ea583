"""The typed config: what a run is, validated before anything is done.

A value of None means "chosen for you": by the size of the images, their number, and the device. `RUN/config.toml` has
what was chosen.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diffunet.errors import UsageError

Positive = Annotated[int, Field(ge=1, le=10**12)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Multiplier = Annotated[int, Field(ge=1, le=64)] | Annotated[float, Field(ge=0.25, le=64)]
Beta = Annotated[float, Field(gt=0, lt=1)]

SamplerName = Literal[
    "ddpm", "ddpm-large", "ddpm-learned", "ddim", "euler", "euler-ancestral", "heun", "dpm++2m", "dpm++2m-sde", "unipc"
]
LadderName = Literal["trailing", "leading", "linspace", "karras", "log-snr"]
ThresholdName = Literal["none", "static", "dynamic"]
TaskName = Literal["generate", "inpaint"]
MasksName = Literal["mixed", "box", "half", "wide", "narrow", "scratches", "lines", "grid"]

UNET_ONLY = (
    "num_blocks", "head_channels", "num_heads", "qk_norm", "norm_groups", "norm_eps", "scale_shift", "resample",
    "middle_attention", "checkpointing", "frequency_shift",
)  # fmt: skip
"""Options of the net that the classic does not have."""

NOT_CHECKPOINTED = {"checkpointing": False}
"""What the configs of nets say that have no checkpointing, too."""

DDPM_SCHEDULES = ("linear", "scaled-linear", "cosine", "sigmoid")

PRESETS = Path(__file__).parent / "presets"

VERSION = 1
"""Of config files. A later one may say what this cannot, and is refused by its number."""

MAX_BYTES = 2**24
"""Larger config files are none."""


class Section(BaseModel):
    """Frozen; no unknown names; no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """The net."""

    net: Literal["unet", "unet2015"] = "unet"
    """The time-conditioned UNet, or the classic of 2015 with a time embedding."""
    channels: Annotated[int, Field(ge=4, le=2048)] | None = None
    """Feature channels at full size; chosen by image size and device."""
    multipliers: Annotated[tuple[Multiplier, ...], Field(min_length=1, max_length=10)] | None = None
    """Times `channels`, one for each level; chosen by image size. Of unet2015 they are 1 2 4 and so on."""
    num_blocks: Annotated[int, Field(ge=1, le=16)] = 2
    """Residual blocks of a level."""
    attention_resolutions: tuple[Positive, ...] = (16, 8)
    """Sizes of feature maps that get self-attention, or the nearest there are."""
    attention_levels: tuple[Annotated[int, Field(ge=0, le=9)], ...] | None = None
    """The same by level, 0 is full size; from the resolutions and the image size."""
    middle_attention: bool = True
    """Self-attention between the two blocks of the middle, too."""
    head_channels: Annotated[int, Field(ge=1, le=4096)] = 64
    """Channels of an attention head."""
    num_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of heads, whatever their channels; as many as head-channels makes."""
    qk_norm: bool = False
    """Normalise queries and keys."""
    norm_groups: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Groups of GroupNorm, 32 in DDPM and all that came of it; by default groups of 16 channels, faster on a CPU."""
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Of GroupNorm."""
    scale_shift: bool = True
    """The noise level scales and shifts features (True) or is added (False)."""
    resample: Literal["convolution", "asymmetric", "residual"] = "convolution"
    """Halve and double by a convolution, by one that pads asymmetrically (DDPM), or inside residual blocks (ADM)."""
    frequency_shift: Annotated[int, Field(ge=0, le=1)] = 0
    """1 for DDPM's frequencies of the time embedding."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """In residual blocks; 0.1 below 5,000 images, else 0."""
    checkpointing: bool | None = None
    """Keep less for the backward pass: less memory, about a third more time. On above 128 pixels where it is needed."""
    custom: str | None = None
    """Name of a net of your own, which diffunet.train(net=...) sets. It is printed and never imported."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.net == "unet2015":
            if self.multipliers is not None and self.multipliers != tuple(2**i for i in range(len(self.multipliers))):
                raise ValueError("net unet2015 doubles its channels at each level: multipliers are 1 2 4 and so on")
            if self.attention_levels:
                raise ValueError("net unet2015 has no attention-levels")
            for name in UNET_ONLY:
                if getattr(self, name) not in (ModelConfig.model_fields[name].default, NOT_CHECKPOINTED.get(name)):
                    raise ValueError(f"net unet2015 has no {name.replace('_', '-')}")
        return self


class DiffusionConfig(Section):
    """The process: noise, target, and how to sample by default."""

    task: TaskName = "generate"
    """What the net learns: to generate, or to inpaint, told known pixels and the hole; that model generates too."""
    schedule: Literal["linear", "scaled-linear", "cosine", "sigmoid", "edm", "flow", "flow-logit-normal"] = (
        "flow-logit-normal"
    )
    """Which noise levels there are, and how often training meets each."""
    num_steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """Steps of a DDPM schedule (linear, scaled-linear, cosine, sigmoid)."""
    beta_range: tuple[Beta, Beta] | None = None
    """First and last beta of linear and scaled-linear; theirs as published, scaled to the number of steps."""
    rescale_timesteps: bool = False
    """Tell the net timesteps from 0 to 1,000 whatever num-steps is (improved diffusion)."""
    zero_snr: bool = False
    """Change a DDPM schedule so that it ends in pure noise (not with target epsilon)."""
    target: Literal["epsilon", "x0", "v", "flow", "edm"] = "flow"
    """What the net predicts."""
    learned_variance: bool = False
    """Learn the variance of a DDPM schedule's steps too, for the sampler ddpm-learned and better likelihoods."""
    weighting: Literal["simple", "min-snr", "soft-min-snr", "edm", "p2", "sigmoid"] = "simple"
    """How noise levels count in the loss."""
    min_snr_gamma: Rate = 5.0
    """Where min-snr and soft-min-snr cap the signal-to-noise ratio."""
    p2_gamma: Annotated[float, Field(ge=0, le=10)] = 1.0
    """How strongly p2 turns the loss away from the least noise."""
    sigmoid_bias: Annotated[float, Field(ge=-20, le=20)] = 2.0
    """Where sigmoid fades out, in log SNR."""
    learned_uncertainty: bool = False
    """Learn how hard each noise level is, and make them count the same."""
    edm_log_mean: Annotated[float, Field(ge=-20, le=20)] = -1.2
    """Mean of log sigma in training (EDM's P_mean)."""
    edm_log_std: Annotated[float, Field(gt=0, le=20)] = 1.2
    """Deviation of log sigma in training (EDM's P_std)."""
    sigma_shift: Rate | None = None
    """Multiplies every sigma; image size / 64 above 64 pixels, else 1."""
    label_dropout: Share = 0.1
    """Share of images trained without their label; guidance needs some."""
    sampler: SamplerName = "unipc"
    """Default sampler."""
    sample_steps: Annotated[int, Field(ge=1, le=100_000)] = 15
    """Default number of sampling steps."""
    ladder: LadderName | None = None
    """How those steps are spaced; by default what suits the sampler: log-snr for unipc and dpm++2m, else trailing."""
    threshold: ThresholdName = "none"
    """Keep the predicted clean image within its range: clip it, or scale it back (dynamic), as large guidance needs."""
    sigma_data: Rate | None = None
    """Standard deviation of the images in [-1, 1]; measured."""
    mean: tuple[Annotated[float, Field(ge=-1, le=1)], ...] | None = None
    """Mean of each channel in [-1, 1]; measured. Sampling starts round it."""

    @model_validator(mode="after")
    def _check(self) -> DiffusionConfig:
        if self.schedule.startswith("flow") and self.target == "epsilon":
            raise ValueError(
                "target epsilon cannot be learned on a flow schedule, which starts from pure noise; take flow, v or x0"
            )
        if self.zero_snr and self.target == "epsilon":
            raise ValueError("zero-snr starts from pure noise, of which target epsilon cannot be learned; take v or x0")
        if self.beta_range is not None and self.schedule not in ("linear", "scaled-linear"):
            raise ValueError(f"beta-range is of the schedules linear and scaled-linear, not {self.schedule}")
        if self.beta_range is not None and self.beta_range[0] > self.beta_range[1]:
            raise ValueError(f"beta-range falls from {self.beta_range[0]} to {self.beta_range[1]}; betas rise")
        for name in ("zero_snr", "learned_variance", "rescale_timesteps"):
            if getattr(self, name) and self.schedule not in DDPM_SCHEDULES:
                option = name.replace("_", "-")
                raise ValueError(f"{option} is of a DDPM schedule ({', '.join(DDPM_SCHEDULES)}), not {self.schedule}")
        if self.sampler == "ddpm-learned" and not self.learned_variance:
            raise ValueError("sampler ddpm-learned needs learned-variance")
        return self


class DataConfig(Section):
    """The images."""

    image_size: Annotated[int, Field(ge=4, le=4096)] = 64
    """Height and width that the model trains at."""
    channels: Literal[1, 3, 4] = 3
    """1 grey, 3 RGB, 4 RGB with transparency."""
    fit: Literal["crop", "random", "pad"] = "crop"
    """Images that are not square: centre crop, random crop, or pad with the background. Never stretched."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """What shows through transparent pixels, and the padding: R G B."""
    flip: bool | None = None
    """Mirror images at random; on below 5,000 images."""
    augment: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of each change (flip, turn, scale, stretch, shift) that the net is told of; for few images, 0.12."""
    masks: MasksName = "mixed"
    """Kind of random masks that inpainting is trained with."""
    classes: bool = False
    """Subfolders are classes."""
    class_names: tuple[str, ...] = ()
    """The classes; found."""
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the images kept for validation, at most 1,000; none below 20 images."""
    max_rejected: Share = 0.1
    """Share of the files that may be unusable; above it, training does not begin."""
    cache: str | None = None
    """Folder for decoded images ("off": decode every time); the user's cache folder."""


class TrainConfig(Section):
    """The loop."""

    steps: Positive | None = None
    """Optimizer steps in all; 100,000 on a GPU, 10,000 on a CPU."""
    batch_size: Annotated[int, Field(ge=1, le=2**20)] | Literal["auto"] | None = None
    """Images of one optimizer step, over all processes and passes; by the image size. auto: what fits, by trial."""
    grad_accumulation: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Passes that a step is divided into, for less memory; as few as the free memory of the device allows."""
    learning_rate: Rate | None = None
    """After the warm-up; 3e-4 times the square root of batch-size / 32."""
    warmup: Count = 500
    """Steps over which the rate rises from 0."""
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
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Threads of the CPU to compute with; all cores."""
    deterministic: bool = False
    """Bit-equal runs on CUDA too (slower)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of every draw."""
    log_every: Positive = 50
    """Steps between lines of metrics.jsonl."""
    validate_every: Positive = 1000
    """Steps between held-out losses."""
    sample_every: Positive = 1000
    """Steps between previews."""
    previews: Annotated[int, Field(ge=0, le=1024)] = 36
    """Images of a preview."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    keep_every: Positive | None = None
    """Checkpoints at multiples of this stay for ever; of the others the newest 2."""
    max_skipped: Positive = 50
    """Steps in a row without a finite loss and gradient before the run ends as diverged."""
    stop_after: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Minutes after which to save everything and end, to go on later with --resume."""
    timeout: Annotated[float, Field(gt=0, le=1e6)] = 30.0
    """Minutes that a process waits for another one before it gives up."""
    tensorboard: bool = True
    """Write curves for tensorboard where it is installed."""


class Config(Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _version(cls, content: Any) -> Any:
        """The version that a file states is of the file, not of the run."""
        if isinstance(content, dict) and "version" in content:
            if content["version"] != VERSION:
                raise ValueError(f"is of version {content['version']!r}; this diffunet reads {VERSION}: update it")
            content = {name: value for name, value in content.items() if name != "version"}
        return content

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.diffusion.mean is not None and len(self.diffusion.mean) != self.data.channels:
            raise ValueError(f"diffusion.mean has {len(self.diffusion.mean)} values for {self.data.channels} channels")
        return self

    def changed(self, section: str, **values: Any) -> Config:
        """A copy with values of one section set, validated."""
        content = self.model_dump(exclude_unset=True)
        content.setdefault(section, {}).update(values)
        return validated(content, "the command line")

    def hash(self) -> str:
        """sha256 of everything that the weights depend on by shape or meaning: model, diffusion, data but the cache."""
        content = self.model_dump(mode="json", include={"model", "diffusion", "data"})
        content["data"].pop("cache")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The config as TOML, with the version of the format; None, which TOML cannot say, is left out."""
        import tomli_w

        return tomli_w.dumps({"version": VERSION, **self.model_dump(mode="json", exclude_none=True)})


def validated(content: Any, where: str) -> Config:
    """A Config from plain values.

    Raises:
        UsageError: naming each option that cannot be, its value, what is allowed, and the closest name.
    """
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UsageError("; ".join(problems[:5]) + f"{more} (in {where})") from None


def _problem(item: Any) -> str:
    *sections, last = item["loc"] or ("config",)
    if item["type"] == "extra_forbidden":
        section: Any = Config
        for part in sections:
            section = section.model_fields[part].annotation
        close = difflib.get_close_matches(str(last), section.model_fields, n=1)
        if not sections:  # it may lack its section
            close += [f"{name}.{last}" for name, field in section.model_fields.items() if last in _options(field)]
        meant = " or ".join(".".join([*sections, each]) for each in close)
        hint = f"; did you mean {meant}?" if close else ""
        return f"there is no option {'.'.join([*sections, _cut(str(last))])}{hint}"
    # Beside names of options a location holds places in a tuple, and which of several types was tried.
    names = [part for part in item["loc"] if isinstance(part, str) and "[" not in part]
    if item["type"] == "missing":  # a place of a tuple
        return f"{'.'.join(names)}: too few values, {_shown(item['input'])}"
    message = item["msg"].removeprefix("Value error, ")
    value = f", not {_shown(item['input'])}" if isinstance(item["input"], str | int | float) else ""
    return f"{'.'.join(names) or 'config'}: {message}{value}"


def _options(field: Any) -> Any:
    return getattr(field.annotation, "model_fields", {})


def _shown(value: Any) -> str:
    """A value as it is written, no longer than can be read."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a number of thousands of digits"
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


def read_toml(path: str | Path) -> Config:
    """A config file; what it does not say has its default.

    Raises:
        UsageError: for a file that cannot be read, says what cannot be, or is of a later version.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"config {path} cannot be read: it is larger than {MAX_BYTES >> 20} MiB")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ValueError: text, TOML, an integer of 5,000 digits
        raise UsageError(f"config {path} cannot be read: {error}") from None
    return validated(content, str(path))


def preset_names() -> list[str]:
    """Names for `--preset`."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name: str) -> Config:
    """A config that comes with diffunet.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in preset_names():
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(
            f"there is no preset {name!r}{hint} There are {', '.join(preset_names())}".replace("? There", "? There")
        )
    return read_toml(PRESETS / f"{name}.toml")
