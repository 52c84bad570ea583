"""The card of a model (README.md of a repository on the hub), from its config and what its run has measured.

It says nothing that is not in one of the two, and no licence: that is for the model's owner to add.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffunet import build, storage
from diffunet.data.index import read_index
from diffunet.errors import CheckpointError
from diffunet.interop.hub import PICTURE
from diffunet.names import DDPM_SCHEDULES

SHOWN = 100
"""Classes that are named; of more, how many more there are."""


def card(model: storage.Model, run: Path | None = None, name: str | None = None) -> str:
    """Markdown with a YAML head, as the hub reads it.

    Args:
        model: what it is of.
        run: the run folder that the model is from, for what it has measured; its newest preview is shown as `PICTURE`.
        name: of the model on the hub, owner/name; what the commands of the card take.
    """
    title = name.split("/")[-1] if name else "A diffusion model"
    blocks = ["\n".join(_head(model)), f"# {_plain(title)}", _summary(model)]
    if run is not None and preview(run) is not None:
        blocks.append(f"![Samples, drawn during training]({PICTURE})")
    blocks += [_usage(model, name or "MODEL"), "## Model\n\n" + _table(_model_rows(model))]
    if run is not None and (rows := list(_run_rows(model, run))):
        blocks.append("## Training\n\n" + _table(rows))
    return "\n\n".join(blocks) + "\n"


def preview(run: Path) -> Path | None:
    """The newest preview of a run, RUN/samples/step-....png."""
    return max((run / "samples").glob("step-*.png"), default=None)


def _head(model: storage.Model) -> Iterator[str]:
    inpaints = model.config.diffusion.task == "inpaint"
    yield "---"
    yield "library_name: diffunet"
    yield "pipeline_tag: unconditional-image-generation"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("diffunet", "diffusion", "unet", *(["inpainting"] if inpaints else [])))
    yield "---"


def _summary(model: storage.Model) -> str:
    config = model.config
    kind = {1: "grey", 3: "RGB", 4: "RGB with transparency"}[config.data.channels]
    size = config.data.image_size
    text = f"A diffusion model of {kind} images of {size}x{size} pixels, made with diffunet."
    if config.diffusion.task == "inpaint":
        text += " It was trained to inpaint, and generates too."
    return text


def _usage(model: storage.Model, name: str) -> str:
    fill = f"diffunet inpaint {name} photo.png --mask mask.png --out filled.png\n"
    label = f", labels={json.dumps(model.config.data.class_names[0])}" if model.config.data.class_names else ""
    return (
        "## Use\n\n"
        "```\npip install 'diffunet[hub]'\n"
        f"diffunet sample {name} --out samples.png --grid\n{fill}```\n\n"
        f'```python\nimport diffunet\n\npipe = diffunet.load("{name}")\nimages = pipe.sample(num=16{label})\n```'
    )


def _model_rows(model: storage.Model) -> Iterator[tuple[str, str]]:
    config, net = model.config, model.denoiser.net
    m, d = config.model, config.diffusion
    classes = config.data.class_names
    yield "image size", f"{config.data.image_size}x{config.data.image_size}, {config.data.channels} channels"
    if classes:
        more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
        yield f"{len(classes)} classes", ", ".join(map(_plain, classes[:SHOWN])) + more
    kind = "the U-Net of 2015 with a time embedding" if m.net == "unet2015" else "UNet"
    yield "net", f"{kind}, {m.channels} channels times {', '.join(f'{each:g}' for each in m.multipliers or ())}"
    yield "parameters", f"{sum(parameter.numel() for parameter in net.parameters()):,}"
    yield "predicts", d.target + (", and the variance" if d.learned_variance else "")
    yield "noise schedule", d.schedule + (f", {d.num_steps:,} steps" if d.schedule in DDPM_SCHEDULES else "")
    calls = build.calls(d.sampler, d.sample_steps)
    yield "samples by", f"{d.sample_steps} steps of {d.sampler} ({calls} calls of the net)"


def _run_rows(model: storage.Model, run: Path) -> Iterator[tuple[str, str]]:
    """What RUN has recorded up to the step that the model is of."""
    try:
        batch_size = storage.run_config(run).train.batch_size
    except CheckpointError:
        return
    yield "optimizer steps", f"{model.step:,}"
    if isinstance(batch_size, int):
        yield "images seen", f"{model.step * batch_size:,}, {batch_size:,} a step"
    if (images := _images(run)) is not None:
        yield "images in the folder", f"{images:,}, those held out for validation included"
    lines = [line for line in _metrics(run) if line.get("step", 0) <= model.step]
    held_out = [(line["validation_loss"], line["step"]) for line in lines if _number(line.get("validation_loss"))]
    if held_out:
        (first, at), (best, best_at), (last, _) = held_out[0], min(held_out), held_out[-1]
        best_words = f"{best:.4g} at best (step {best_at:,})"
        yield "held-out loss", f"{first:.4g} at step {at:,}, {best_words}, {last:.4g} at the last"
    speeds = [line["images_per_second"] for line in lines if _number(line.get("images_per_second"))]
    if speeds:
        yield "speed", f"{sorted(speeds)[len(speeds) // 2]:,.0f} images a second (median)"
    if where := _environment(run, model.step):
        yield "trained on", _plain(where)


def _metrics(run: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # the half line of a crash
            entry = json.loads(line)
            if isinstance(entry, dict):
                yield entry


def _images(run: Path) -> int | None:
    try:
        return len(read_index(run / "images.index"))
    except (OSError, ValueError):
        return None


def _environment(run: Path, step: int) -> str:
    """Device and precision, where the checkpoint of this step is kept."""
    try:
        path = run / "checkpoints" / f"step-{step:08d}" / "state.json"
        environment = json.loads(path.read_text(encoding="utf-8"))["environment"]
        return f"{environment['device']}, {environment['precision']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in rows)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return re.sub(r"([\\`*_\[\]<>|~&#$])", r"\\\1", line)
