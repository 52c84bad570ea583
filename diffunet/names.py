"""The names that can be chosen in config files, on the command line and in Python, each list of them stated once.

Every list is a `Literal` type for annotations and the tuple of its names for tables and messages. The tables of
`build`, `inpainting.masks` and `inpainting.methods` hold what a name stands for, and tests/test_names.py compares them
with the lists. The command line reads this module before torch and pydantic, so it imports neither.
"""

import re
from collections.abc import Collection
from typing import Any, Literal, get_args

SamplerName = Literal["ddpm", "ddpm-large", "ddpm-learned", "euler", "heun", "dpm++2m", "dpm++2m-sde", "unipc"]
LadderName = Literal["trailing", "leading", "linspace", "karras", "log-snr"]
ThresholdName = Literal["none", "static", "dynamic"]
TaskName = Literal["generate", "inpaint"]
NetName = Literal["unet", "unet2015"]
ResampleName = Literal["convolution", "asymmetric", "residual"]
DDPMScheduleName = Literal["linear", "scaled-linear", "cosine", "sigmoid"]
ScheduleName = Literal[DDPMScheduleName, "edm", "flow", "flow-logit-normal"]
TargetName = Literal["epsilon", "x0", "v", "flow", "edm"]
WeightingName = Literal["simple", "min-snr", "soft-min-snr", "edm", "p2", "sigmoid"]
FitName = Literal["crop", "random", "pad", "patch"]
PagesName = Literal["first", "all"]
MaskKind = Literal["box", "half", "wide", "narrow", "scratches", "lines", "grid"]
MasksName = Literal["mixed", MaskKind]
MethodName = Literal["trained", "repaint", "ddnm", "mmps", "replace"]
MethodChoice = Literal["auto", MethodName]
InpaintFitName = Literal["auto", "crop", "native", "tile"]
MetricName = Literal["fid", "kid", "prc", "is", "fd-dinov2"]
TrackerName = Literal["tensorboard", "wandb", "mlflow", "aim", "swanlab", "dvclive", "comet_ml", "clearml"]

SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)
LADDERS: tuple[LadderName, ...] = get_args(LadderName)
THRESHOLDS: tuple[ThresholdName, ...] = get_args(ThresholdName)
TASKS: tuple[TaskName, ...] = get_args(TaskName)
NETS: tuple[NetName, ...] = get_args(NetName)
RESAMPLES: tuple[ResampleName, ...] = get_args(ResampleName)
DDPM_SCHEDULES: tuple[DDPMScheduleName, ...] = get_args(DDPMScheduleName)
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)
TARGETS: tuple[TargetName, ...] = get_args(TargetName)
WEIGHTINGS: tuple[WeightingName, ...] = get_args(WeightingName)
FITS: tuple[FitName, ...] = get_args(FitName)
PAGES: tuple[PagesName, ...] = get_args(PagesName)
MASK_KINDS: tuple[MaskKind, ...] = get_args(MaskKind)
"""The kinds of masks. "mixed" draws a place in this list: a new kind changes the masks of runs that are resumed."""
METHODS: tuple[MethodName, ...] = get_args(MethodName)
JUMPING: tuple[MethodName, ...] = ("repaint", "ddnm")
"""The methods of inpainting that jump back up their ladder, and take a jump length and a number of samples."""
INPAINT_FITS: tuple[InpaintFitName, ...] = get_args(InpaintFitName)
METRICS: tuple[MetricName, ...] = get_args(MetricName)
"""What is measured by published networks: by Inception FID, KID, precision and recall with density and coverage (prc),
and the inception score (is); by DINOv2 the Fréchet distance."""
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)
NO_TRACKIO = "trackio needs Pillow below 13, which opens some broken files unsafely, so that diffunet needs a later one"

ALIASES: dict[str, SamplerName] = {"ddim": "euler", "euler-ancestral": "ddpm"}
"""Other names of samplers, accepted wherever a sampler is named and replaced by the name that they stand for. With x
written as x0 + sigma * noise, the two names of a pair are the same update."""

GROUP_FILE = re.compile(r"(.+?\.(?:tsv|csv))(?::(.*))?", re.IGNORECASE | re.DOTALL)
"""FILE or FILE:COLUMN, as `data.group` may be. What ends otherwise is an expression, whatever files there are, so that
a config means the same everywhere; no image ends so, hence no expression needs to."""
LABEL_FILE = re.compile(r"(.+?\.(?:tsv|csv|jsonl|json))(?::(.*))?", re.IGNORECASE | re.DOTALL)
"""FILE or FILE:COLUMN, as `data.labels` may be."""
NO_EXPRESSION = (re.error, OverflowError, RecursionError)
"""What Python raises for a text that is no regular expression."""


def group_file(rule: str) -> tuple[str, str | None] | None:
    """Return the file and the column of it that a value of `data.group` names, or None for a regular expression."""
    match = GROUP_FILE.fullmatch(rule)
    return None if match is None else (match[1], match[2])


def label_file(rule: str) -> tuple[str, str | None] | None:
    """Return the file and the column of it that a value of `data.labels` names, or None for what is no file."""
    match = LABEL_FILE.fullmatch(rule)
    return None if match is None else (match[1], match[2])


def canonical(name: Any) -> Any:
    """Return the name that an alias stands for, and anything else as it is."""
    return ALIASES.get(name, name) if isinstance(name, str) else name


def aliases(names: Collection[str]) -> dict[str, SamplerName]:
    """Return those of `ALIASES` that stand for one of `names`."""
    return {alias: name for alias, name in ALIASES.items() if name in names}


def listed(names: Collection[str]) -> str:
    """Return names separated by commas, followed by their aliases, if any, for an error message."""
    others = ", ".join(f"{alias} is {name}" for alias, name in aliases(names).items())
    return ", ".join(names) + (f" ({others})" if others else "")
