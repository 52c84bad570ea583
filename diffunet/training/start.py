"""How a run begins: its folder, its config, what it goes on from, and what it says first."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffunet import devices, storage
from diffunet.config import Config, read_toml
from diffunet.data.cache import Dataset
from diffunet.errors import CheckpointError, UsageError
from diffunet.nn.cost import cost

log = logging.getLogger(__name__)

FREE = {
    "model": {"checkpointing"},
    "diffusion": {"sampler", "sample_steps", "ladder"},
    "data": {"cache"},
    "train": {
        "steps", "grad_accumulation", "log_every", "validate_every", "sample_every", "previews", "checkpoint_every",
        "keep_every", "tensorboard", "max_skipped", "learning_rate", "precision", "deterministic",
    },
}  # fmt: skip
"""What may change when a run is resumed. The rest decides what the weights mean, or which draws were made."""


def begin(config: Config, run: Path, *, resume: bool, init: str | Path | None, main: bool) -> Config:
    """Check what was asked against what is there, make the run folder, and give the config to go on with.

    Raises:
        UsageError: where the folder exists without `resume`, or the config contradicts the run's or the model's.
    """
    if resume and (run / "config.toml").is_file():
        return _same_run(config, read_toml(run / "config.toml"))
    if main:
        if not resume and run.exists() and (not run.is_dir() or any(path.name != ".lock" for path in run.iterdir())):
            raise UsageError(f"--out {run} exists; go on with it by --resume, or choose another folder")
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / ".lock").touch()
        except OSError as error:
            raise UsageError(f"--out {run} cannot be written: {error.strerror or error}") from None
    return config if init is None else _like_model(config, init)


def _same_run(given: Config, stored: Config) -> Config:
    """The stored config with what may change taken from `given`."""
    said, theirs = given.model_dump(exclude_unset=True), stored.model_dump()
    for section, values in said.items():
        for name, value in values.items():
            known = theirs[section][name]
            if value == known or value is None or value == ():
                continue
            if name not in FREE[section]:
                raise UsageError(f"--resume goes on with {section}.{name} = {known!r}; it cannot become {value!r}")
            theirs[section][name] = value
    return Config.model_validate(theirs)


def _like_model(config: Config, init: str | Path) -> Config:
    """`config` with the architecture, and the meaning of its input and output, of the model `init`."""
    model = storage.read_config(storage.find_model(init))
    content, plain, kept = config.model_dump(), Config().model_dump(), model.model_dump()
    free = {"dropout", "checkpointing", "sampler", "sample_steps", "ladder", "label_dropout", "weighting", "image_size"}
    wanted = {section: list(kept[section]) for section in ("model", "diffusion")} | {"data": ["image_size", "channels"]}
    for section, names in wanted.items():
        for name in names:
            value = kept[section][name]
            said = content[section][name] not in (plain[section][name], value)
            if said and name not in free:
                raise UsageError(f"--init takes {section}.{name} = {value!r} from {init}; leave it out")
            if not said:
                content[section][name] = value
    content["diffusion"]["mean"] = None  # measured anew
    return Config.model_validate(content)


@torch.no_grad()
def copy_weights(init: str | Path, net: nn.Module, config: Config) -> None:
    """The weights of MODEL into `net`; classes are matched by name, and new ones keep their random start."""
    folder = storage.find_model(init)
    tensors, _ = storage.read_tensors(folder / storage.WEIGHTS)
    name = "embedding.label.weight"
    mine, old = net.state_dict(), storage.read_config(folder).data.class_names
    if old != config.data.class_names:
        before = tensors.pop(name, None)
        if name in mine:
            tensors[name] = mine[name].clone()
            if before is not None:
                for row, label in enumerate((*config.data.class_names, None)):
                    if label is None or label in old:
                        tensors[name][row] = before[old.index(label) if label is not None else -1]
    storage.load_weights(net, tensors, folder / storage.WEIGHTS)


def device() -> torch.device:
    """Where this process trains: the GPU of its rank on its machine, or what there is."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return devices.device("cpu")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return devices.device(f"cuda:{torch.cuda.current_device()}")
    return devices.device()


def decoding(main: bool) -> Callable[[int, int], None] | None:
    """A progress callback for the cache, a line every ten seconds."""
    if not main:
        return None
    said = [time.monotonic()]

    def progress(done: int, total: int) -> None:
        if time.monotonic() - said[0] > 10:
            said[0] = time.monotonic()
            log.info("reading images: %d of %d", done, total)

    return progress


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic kernels on CUDA, for as long as it lasts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def environment(device: torch.device, processes: int, precision: str) -> dict[str, Any]:
    """What the bits of a run depend on beside its config and images."""
    return {
        "torch": torch.__version__,
        "device": devices.describe(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "precision": precision,
        "python": platform.python_version(),
    }


def say_differences(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say where bits may differ from those of a run that was not stopped."""
    changes = [f"{name} was {before.get(name)}, is {value}" for name, value in now.items() if before.get(name) != value]
    if changes:
        log.warning("resuming sees the same images and noise, but bits may differ: %s", "; ".join(changes))


def same_data(state: dict[str, Any], index_hash: str, data: Path) -> None:
    """Refuse images that are not those that the run began with.

    Raises:
        CheckpointError: where paths or contents differ.
    """
    if state["index_hash"] != index_hash:
        raise CheckpointError(
            f"the images in {data} are not those that this run began with: put them back, "
            "or start another run from its model with --init"
        )


def plan(
    config: Config,
    net: nn.Module,
    dataset: Dataset,
    training: int,
    held_out: int,
    device: torch.device,
    precision: devices.Choice,
    processes: int,
) -> Iterator[str]:
    """What is about to happen, in lines for the person who waits."""
    t, d, size = config.train, config.data, config.data.image_size
    assert t.steps is not None, "the config is resolved"
    assert t.batch_size is not None, "the config is resolved"
    price = cost(net, size, size)
    loud = devices.warning()
    if loud:
        yield loud
    many = f" x {processes} processes" if processes > 1 else ""
    yield f"device: {devices.describe(device)}{many}; precision: {precision.value} ({precision.why})"
    classes = f", {len(d.class_names)} classes" if d.class_names else ""
    bad = f", {len(dataset.rejected)} files skipped" if dataset.rejected else ""
    yield f"images: {training} to train on, {held_out} held out{classes}{bad}; {size}x{size}, {d.channels} channels"
    small = [file for file in dataset.files if min(file.width, file.height) < size]
    if len(small) > len(dataset.files) // 2:
        yield f"note: {len(small)} of {len(dataset.files)} images are smaller than {size} pixels and are enlarged"
    memory = price.training_bytes(t.batch_size // processes // t.grad_accumulation, precision.value, device.type)
    yield (
        f"model: {price.parameters / 1e6:.1f} M parameters, {price.macs / 1e9:.2f} GMACs an image; "
        f"about {memory / 2**30:.1f} GiB to train"
    )
    yield (
        f"steps: {t.steps} of {t.batch_size} images, {t.steps * t.batch_size / training:.0f} times through them; "
        "time left is shown once some are done"
    )
    if training < 1000:
        yield f"note: {training} images are few; --init MODEL, a model of similar images, helps"
