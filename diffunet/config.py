"""The config: typed sections that say all about a run, validated before anything is done.

None stands for a value that training chooses by the images and the device; `RUN/config.toml` holds what it chose. The
string below each field of a section is its help on the command line.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from diffunet import names
from diffunet.errors import UsageError

Positive = Annotated[int, Field(ge=1, le=10**12)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Byte = Annotated[int, Field(ge=0, le=255)]
Multiplier = Annotated[int, Field(ge=1, le=64)] | Annotated[float, Field(ge=0.25, le=64)]
Beta = Annotated[float, Field(gt=0, lt=1)]

BOTH_NETS = ("net", "channels", "multipliers", "attention_resolutions", "dropout", "custom")
"""Options of `ModelConfig` that net unet2015 has or ignores; every other one belongs to the UNet alone."""

ABSENT: dict[str, Any] = {"attention_levels": (), "checkpointing": False, "num_blocks": 2, "middle_attention": True}
"""What a resolved config of net unet2015 may state of options that it does not have."""

PRESETS = Path(__file__).parent / "presets"

VERSION = 1
"""The version of the format of config files; files of another version are refused."""

MAX_BYTES = 2**24
"""The size above which a file is not read as a config."""


class Section(BaseModel):
    """The base of the sections: they are frozen, and refuse unknown names, infinities and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelConfig(Section):
    """The net."""

    net: names.NetName = "unet"
    """The time-conditioned UNet, or the classic of 2015 with a time embedding."""
    channels: Annotated[int, Field(ge=4, le=2048)] | None = None
    """Feature channels at full size; chosen by image size and device."""
    multipliers: Annotated[tuple[Multiplier, ...], Field(min_length=1, max_length=10)] | None = None
    """Times `channels`, one for each level; chosen by image size. Of unet2015 they are 1 2 4 and so on."""
    num_blocks: Annotated[int, Field(ge=1, le=16)] | None = None
    """Residual blocks of a level; chosen by minutes and device, else 2."""
    attention_resolutions: tuple[Positive, ...] = (16, 8)
    """Sizes of feature maps that get self-attention, or the nearest there are."""
    attention_levels: tuple[Annotated[int, Field(ge=0, le=9)], ...] | None = None
    """The same by level, 0 is full size; from the resolutions and the image size."""
    middle_attention: bool | None = None
    """Self-attention between the two blocks of the middle, too; chosen by minutes and device, else there is."""
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
    resample: names.ResampleName = "convolution"
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
            for name, value in self:
                unset = ABSENT.get(name, ModelConfig.model_fields[name].default)
                if name not in BOTH_NETS and value not in (None, unset):
                    raise ValueError(f"net unet2015 has no {name.replace('_', '-')}")
        return self


class DiffusionConfig(Section):
    """The process: noise, target, and how to sample by default."""

    task: names.TaskName = "generate"
    """What the net learns: to generate, or to inpaint, told known pixels and the hole; that model generates too."""
    schedule: names.ScheduleName = "flow-logit-normal"
    """Which noise levels there are, and how often training meets each."""
    num_steps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    """Steps of a DDPM schedule (linear, scaled-linear, cosine, sigmoid)."""
    beta_range: tuple[Beta, Beta] | None = None
    """First and last beta of linear and scaled-linear; theirs as published, scaled to the number of steps."""
    rescale_timesteps: bool = False
    """Tell the net timesteps from 0 to 1,000 whatever num-steps is (improved diffusion)."""
    zero_snr: bool = False
    """Change a DDPM schedule so that it ends in pure noise (not with target epsilon)."""
    target: names.TargetName = "flow"
    """What the net predicts."""
    learned_variance: bool = False
    """Learn the variance of a DDPM schedule's steps too, for the sampler ddpm-learned and better likelihoods."""
    weighting: names.WeightingName = "simple"
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
    sampler: Annotated[names.SamplerName, BeforeValidator(names.canonical)] = "unipc"
    """Default sampler."""
    sample_steps: Annotated[int, Field(ge=1, le=100_000)] = 15
    """Default number of sampling steps."""
    ladder: names.LadderName | None = None
    """How those steps are spaced; by default what suits the sampler: log-snr for unipc and dpm++2m, else trailing."""
    threshold: names.ThresholdName = "none"
    """Keep the predicted clean image within its range: clip it, or scale it back (dynamic), as large guidance needs."""
    sigma_data: Rate | None = None
    """Standard deviation of the images in [-1, 1]; measured."""
    mean: tuple[Annotated[float, Field(ge=-1, le=1)], ...] | None = None
    """Mean of each channel in [-1, 1]; measured. Sampling starts round it."""

    @model_validator(mode="after")
    def _check(self) -> DiffusionConfig:
        if self.schedule.startswith("flow") and self.target == "epsilon":
            raise ValueError("target epsilon cannot be learned of pure noise, where flow begins; take flow, v or x0")
        if self.zero_snr and self.target == "epsilon":
            raise ValueError("zero-snr starts from pure noise, of which target epsilon cannot be learned; take v or x0")
        if self.beta_range is not None and self.schedule not in ("linear", "scaled-linear"):
            raise ValueError(f"beta-range is of the schedules linear and scaled-linear, not {self.schedule}")
        if self.beta_range is not None and self.beta_range[0] > self.beta_range[1]:
            raise ValueError(f"beta-range falls from {self.beta_range[0]} to {self.beta_range[1]}; betas rise")
        for name in ("zero_snr", "learned_variance", "rescale_timesteps"):
            if getattr(self, name) and self.schedule not in names.DDPM_SCHEDULES:
                option, known = name.replace("_", "-"), ", ".join(names.DDPM_SCHEDULES)
                raise ValueError(f"{option} is of a DDPM schedule ({known}), not {self.schedule}")
        if self.sampler == "ddpm-learned" and not self.learned_variance:
            raise ValueError("sampler ddpm-learned needs learned-variance")
        return self


class DataConfig(Section):
    """The images."""

    image_size: Annotated[int, Field(ge=4, le=4096)] = 64
    """Height and width that the model trains at."""
    channels: Literal[1, 3, 4] = 3
    """1 grey, 3 RGB, 4 RGB with transparency."""
    fit: names.FitName = "crop"
    """Images that are not square: centre crop, random crop, or pad with the background. Never stretched."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """What shows through transparent pixels, and the padding: R G B."""
    flip: bool | None = None
    """Mirror images at random; on below 5,000 images."""
    augment: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of each change (flip, turn, scale, stretch, shift) that the net is told of; for few images, 0.12."""
    masks: names.MasksName = "mixed"
    """Kind of random masks that inpainting is trained with."""
    classes: bool = False
    """Subfolders are classes."""
    class_names: tuple[str, ...] = ()
    """The classes; found."""
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the images kept for validation, at most 1,000; none below 20 images."""
    group: str | None = None
    """Images of one group, such as variants of one picture, are held out together or not at all. Groups are named in a
    column of a table of the images, FILE.tsv:COLUMN or FILE.csv:COLUMN, or by what the first parentheses of a regular
    expression match in the images' paths, such as 'emoji_u([0-9a-f]+)'."""
    max_rejected: Share = 0.1
    """Share of the files that may be unusable; above it, training does not begin."""
    cache: str | None = None
    """Folder for decoded images ("off": decode every time); the user's cache folder."""

    @field_validator("group")
    @classmethod
    def _group(cls, rule: str | None) -> str | None:
        try:
            if rule is not None and names.group_file(rule) is None:
                re.compile(rule)
        except names.NO_EXPRESSION as error:
            raise ValueError(f"should be a regular expression, or a file that ends in .tsv or .csv ({error})") from None
        return rule


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
    """Use kernels of diffunet's own, built by a C++ compiler; on a CPU, where faster and the run is long enough."""
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
    tensorboard: bool = True
    """Write curves for tensorboard where it is installed."""


class Config(Section):
    """A whole run: the net, the diffusion process, the images and the training."""

    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _version(cls, content: Any) -> Any:
        """Check the version that a config file may state, and drop it: it is no property of the run."""
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
        """Return a validated copy in which one section has other values.

        Raises:
            UsageError: for a value that is not allowed.
        """
        content = self.model_dump(exclude_unset=True)
        content.setdefault(section, {}).update(values)
        return validated(content, "the command line")

    def hash(self) -> str:
        """Return the sha256 of what gives weights shapes and meaning: model, diffusion, and data without its cache."""
        content = self.model_dump(mode="json", include={"model", "diffusion", "data"})
        content["data"].pop("cache")
        if self.data.group is None:  # models of before there were groups keep their hash
            content["data"].pop("group")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """Return the config as TOML, with the version of the format; it leaves out None, which TOML cannot express."""
        import tomli_w

        return tomli_w.dumps({"version": VERSION, **self.model_dump(mode="json", exclude_none=True)})


def validated(content: Any, where: str) -> Config:
    """Return a Config of plain values, such as a parsed file; `where` names their source in error messages.

    Raises:
        UsageError: for options that do not exist or values that are not allowed. The message names each with its value,
            what is allowed, and the closest existing name.
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
        section: Any = Config.model_fields[sections[0]].annotation if sections else Config
        close = difflib.get_close_matches(str(last), section.model_fields, n=1)
        if not sections:  # the name of an option without its section
            parts = {name: getattr(field.annotation, "model_fields", {}) for name, field in Config.model_fields.items()}
            close += [f"{name}.{last}" for name, options in parts.items() if last in options]
        meant = " or ".join(".".join([*sections, name]) for name in close)
        hint = f"; did you mean {meant}?" if close else ""
        return f"there is no option {'.'.join([*sections, _shortened(str(last))])}{hint}"
    # Besides the names of options, pydantic's location holds indices of tuples and the type of a union that was tried.
    path = ".".join(part for part in item["loc"] if isinstance(part, str) and "[" not in part)
    if item["type"] == "missing":  # an element of a tuple
        return f"{path}: too few values, {_shown(item['input'])}"
    message = item["msg"].removeprefix("Value error, ")
    value = f", not {_shown(item['input'])}" if isinstance(item["input"], str | int | float) else ""
    return f"{path or 'config'}: {message}{value}"


def _shown(value: Any) -> str:
    try:
        return _shortened(repr(value))
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a number of thousands of digits"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


def read_toml(path: str | Path) -> Config:
    """Read a config file; options that it does not state have their defaults.

    Raises:
        UsageError: for a file that cannot be read, has options or values that do not exist, or is of a later version.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"config {path} cannot be read: it is larger than {MAX_BYTES >> 20} MiB")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: text, TOML, an integer of 5,000 digits
        raise UsageError(f"config {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    return validated(content, str(path))


def preset_names() -> list[str]:
    """Return the names that `--preset` takes."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name: str) -> Config:
    """Return a config that comes with diffunet.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in preset_names():
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"there is no preset {name!r}{hint} There are {', '.join(preset_names())}")
    return read_toml(PRESETS / f"{name}.toml")
