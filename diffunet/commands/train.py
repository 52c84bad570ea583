"""`diffunet train` trains a model on a folder of images."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from diffunet import plain, variables
from diffunet.commands import arguments, naming
from diffunet.commands.options import Device
from diffunet.commands.progress import progress, say, tell
from diffunet.commands.signature import Rare
from diffunet.config import Config, DataConfig, DiffusionConfig, ModelConfig, TrainConfig
from diffunet.errors import UsageError
from diffunet.names import TaskName

SHORT = {"task": "diffusion", "image_size": "data", "classes": "data"}
SHORT |= dict.fromkeys(("steps", "batch_size", "seed", "threads"), "train")
"""Options that are short for those of a section of the config."""


@dataclass
class Train:
    """Train a model on a folder of images.

    Example: diffunet train photos --out runs/photos --image-size 64

    The net, the batch and all else that is not given are chosen by the images and the device, and written to
    RUN/config.toml. Ctrl-C saves everything and stops; --resume goes on. Many GPUs: accelerate launch -m diffunet train
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Folder of images, searched recursively, or an archive or arrays of them."""
    out: Path | None = None
    """Run folder, which is made. If not given, it is runs/NAME, by the name of DATA."""
    preset: Annotated[str, tyro.conf.arg(metavar="PRESET")] = "default"
    """Config that comes with diffunet, to start from, such as ddpm or unet2015."""
    config: Path | None = None
    """Config file to start from, such as a RUN/config.toml."""
    init: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Model whose weights, net and image size to start from, such as emoji."""
    resume: bool = False
    """Go on from the newest checkpoint in --out, if there is one."""
    dry_run: bool = False
    """Print a config with what would be chosen, and why; train nothing."""
    accept_new_data: Rare[bool] = False
    """Resume though the images are not those that the run began with."""
    classes: bool = False
    """Train by class: subfolders are classes."""
    task: TaskName | None = None
    """What the net learns: to generate, or to fill in holes as well (short for --diffusion.task)."""
    image_size: int | None = None
    """Height and width in pixels, 64 if not given."""
    minutes: float | None = None
    """Minutes that the run may take in all. If neither these nor --steps are given, it is an hour. With --resume, more
    minutes make a run longer."""
    steps: int | None = None
    """Optimizer steps in all, in place of --minutes. With --resume, more steps make a run longer."""
    batch_size: int | Literal["auto"] | None = None
    """Images of one step; auto is as many as fit (short for --train.batch-size)."""
    seed: Rare[int | None] = None
    """Seed of all random numbers of the run (short for --train.seed)."""
    device: Device | None = None
    """Device to train on: cuda, cuda:1, mps or cpu. If not given, it is the best there is."""
    threads: Rare[int | None] = None
    """CPU threads to compute with (short for --train.threads)."""
    model: Rare[ModelConfig] = field(default_factory=ModelConfig)
    diffusion: Rare[DiffusionConfig] = field(default_factory=DiffusionConfig)
    data: Rare[DataConfig] = field(default_factory=DataConfig)
    train: Rare[TrainConfig] = field(default_factory=TrainConfig)


def train(args: Sequence[str]) -> None:
    """Train a model on a folder of images."""
    missing: Any = tyro.MISSING

    def parsed(base: Config) -> Train:
        return arguments.parse(Train, args, "train", Train(missing, **dict(base)))

    typed = arguments.typed(args)
    _refuse_contradictions(typed)
    base = arguments.base_config(args, lambda base: naming.run_of(parsed(base).folder))
    chosen = parsed(base)
    out = chosen.out or naming.run_of(chosen.folder)
    config = Config(model=chosen.model, diffusion=chosen.diffusion, data=chosen.data, train=chosen.train)
    config = arguments.stated(config, base, args)
    if chosen.minutes is not None:
        config = config.changed("train", minutes=chosen.minutes)
    config = _one_end(config, typed)
    for name, section in SHORT.items():
        value = getattr(chosen, name)
        if value is not None and value is not False:  # without --classes the config decides
            config = config.changed(section, **{name: value})
    if typed & {"--no-classes", "--data.no-classes"}:
        config = config.changed("data", classes=False, labels=None, class_names=())
    if "--data.class-names" in typed and not (config.data.classes or config.data.labels):
        raise UsageError("--data.class-names has names of classes, and there are none without --classes")
    if config.train.deterministic:
        variables.deterministic()

    if chosen.dry_run:
        _foresee(chosen, config, out)
        return
    from diffunet.training.stop import StopFlag, on_signals

    with on_signals(StopFlag()), progress("training") as show:
        from diffunet.training.loop import train as run

        model = run(
            config, chosen.folder, out, resume=chosen.resume, init=chosen.init, device=chosen.device,
            accept_new_data=chosen.accept_new_data,
            on_step=lambda p: show(p.step, p.steps, f"loss {p.loss:.4f}" if p.loss == p.loss else ""),
        )  # fmt: skip
    tell(f"done: {model}. Try: diffunet sample {out}")


def _refuse_contradictions(typed: set[str]) -> None:
    """Raise UsageError where options that were typed say one thing twice, since one of them would not count."""

    def both(one: set[str], other: set[str]) -> bool:
        return bool(typed & one and typed & other)

    for name, section in {**SHORT, "minutes": "train"}.items():
        word = name.replace("_", "-")
        if both({f"--{word}", f"--no-{word}"}, {f"--{section}.{word}", f"--{section}.no-{word}"}):
            raise UsageError(f"--{word} is short for --{section}.{word}; take one")
    ends = [word for word in ("--steps", "--train.steps", "--minutes", "--train.minutes") if word in typed]
    if len(ends) > 1:
        raise UsageError(f"{' and '.join(ends)} both say when the run ends; take one")
    if both({"--minutes", "--train.minutes"}, {"--train.cooldown-from"}):
        raise UsageError("--train.cooldown-from is a step; with --minutes --train.cooldown says the share of the time")
    for one, other in (("--train.cooldown", "--train.cooldown-from"), ("--train.half-size", "--train.half-size-until")):
        if both({one}, {other}):
            raise UsageError(f"{one} is a share of the run, and {other} a step: take one")
    if both({"--no-classes", "--data.no-classes"}, {"--classes", "--data.labels", "--data.class-names"}):
        raise UsageError("--no-classes is a run without classes, and other options say which there are; take one")


def _one_end(config: Config, typed: set[str]) -> Config:
    """Return `config` with the end that was typed, and without what belonged to the other end that a file says."""
    ends = {"minutes": {"--minutes", "--train.minutes"}, "steps": {"--steps", "--train.steps"}}
    for end, other in (("minutes", "steps"), ("steps", "minutes")):
        if typed & ends[end]:
            fields = {other: None, "cooldown_from": None}  # not a preset's steps
            if config.train.half_size:
                fields["half_size_until"] = None  # of another run
            config = config.changed(
                "train",
                **{name: value for name, value in fields.items() if f"--train.{name}".replace("_", "-") not in typed},
            )
    # A share of the run that is typed takes the place of the step that a file, as of a run before, says for it.
    for share, step in (("cooldown", "cooldown_from"), ("half-size", "half_size_until")):
        if f"--train.{share}" in typed:
            config = config.changed("train", **{step: None})
    return config


def _foresee(chosen: Train, config: Config, out: Path) -> None:
    """Print what the run would do, as a config with comments."""
    if chosen.resume:
        raise UsageError(f"--dry-run shows what a new run chooses; {out}/config.toml has what --resume goes on with")
    from diffunet import build
    from diffunet.training import foresight, opening, run_folder

    logging.getLogger("diffunet").setLevel(logging.WARNING)  # what is said on the way is among what is printed
    opened = opening.foreseen(
        config, chosen.folder, out, net=build.net, init=chosen.init, device=plain.device(chosen.device)
    )
    with opened as run:
        tell(foresight.text(config, run, chosen.init).rstrip("\n"))
    if run_folder.is_taken(out):
        say(f"{out} exists: without --dry-run this takes another --out, or --resume to go on with what is there")
