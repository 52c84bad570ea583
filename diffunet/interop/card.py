"""The card of a model: README.md of its repository on the hub, which states its config and what its run has measured.

It states no licence: that is for the model's owner to add.
"""

import contextlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from diffunet import build, storage
from diffunet.data.index import read_index
from diffunet.errors import CheckpointError
from diffunet.interop.hub import PICTURE
from diffunet.names import DDPM_SCHEDULES

SHOWN = 100
"""How many classes are named at most; the others are counted."""


def card(model: storage.Model, run: Path | None = None, name: str | None = None) -> str:
    """Return the card of a model: Markdown with a YAML head, as the hub reads it.

    The measurements are those of the run folder `run`, whose newest preview is shown as `PICTURE`. The commands in the
    card have the model's `name` on the hub, owner/name.
    """
    from huggingface_hub import ModelCardData

    data, inpaints = model.config.data, model.config.diffusion.task == "inpaint"
    tags = ["diffunet", "diffusion", "unet", *(["inpainting"] if inpaints else [])]
    head = ModelCardData(library_name="diffunet", pipeline_tag="unconditional-image-generation", tags=tags)
    title = name.split("/")[-1] if name else "A diffusion model"
    kind = {1: "grey", 3: "RGB", 4: "RGB with transparency"}[data.channels]
    text = f"A diffusion model of {kind} images of {data.image_size}x{data.image_size} pixels, made with diffunet."
    text += " It was trained to inpaint, and generates too." if inpaints else ""
    blocks = [f"---\n{head.to_yaml()}\n---", f"# {_plain(title)}", text]
    if run is not None and preview(run) is not None:
        blocks.append(f"![Samples, drawn during training]({PICTURE})")
    blocks += [_usage(model, name or "MODEL"), "## Model\n\n" + _table(_model_rows(model))]
    if run is not None and (rows := list(_run_rows(model, run))):
        blocks.append("## Training\n\n" + _table(rows))
    return "\n\n".join(blocks) + "\n"


def preview(run: Path) -> Path | None:
    """Return the newest preview of a run, RUN/samples/step-....png, None where there is none."""
    return max((run / "samples").glob("step-*.png"), default=None)


def _usage(model: storage.Model, name: str) -> str:
    fill = f"diffunet inpaint {name} photo.png --mask mask.png --out filled.png\n"
    label = f", labels={json.dumps(model.config.data.class_names[0])}" if model.config.data.class_names else ""
    return (
        f"## Use\n\n```\npip install 'diffunet[hub]'\ndiffunet sample {name} --out samples.png --grid\n{fill}```\n\n"
        f'```python\nimport diffunet\n\npipe = diffunet.load("{name}")\nimages = pipe.sample(num=16{label})\n```'
    )


def _model_rows(model: storage.Model) -> Iterator[tuple[str, str]]:
    m, d, data = model.config.model, model.config.diffusion, model.config.data
    classes = data.class_names
    yield "image size", f"{data.image_size}x{data.image_size}, {data.channels} channels"
    if classes:
        more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
        yield f"{len(classes)} classes", ", ".join(map(_plain, classes[:SHOWN])) + more
    kind = "the U-Net of 2015 with a time embedding" if m.net == "unet2015" else "UNet"
    yield "net", f"{kind}, {m.channels} channels times {', '.join(f'{each:g}' for each in m.multipliers or ())}"
    yield "parameters", f"{sum(parameter.numel() for parameter in model.denoiser.net.parameters()):,}"
    yield "predicts", d.target + (", and the variance" if d.learned_variance else "")
    yield "noise schedule", d.schedule + (f", {d.num_steps:,} steps" if d.schedule in DDPM_SCHEDULES else "")
    calls = build.calls(d.sampler, d.sample_steps)
    yield "samples by", f"{d.sample_steps} steps of {d.sampler} ({calls} calls of the net)"


def _run_rows(model: storage.Model, run: Path) -> Iterator[tuple[str, str]]:
    try:
        batch_size = storage.run_config(run).train.batch_size
    except CheckpointError:
        return
    yield "optimizer steps", f"{model.step:,}"
    if isinstance(batch_size, int):
        yield "images seen", f"{model.step * batch_size:,}, {batch_size:,} a step"
    with contextlib.suppress(OSError, ValueError):
        count = len(read_index(run / "images.index"))
        yield "images in the folder", f"{count:,}, those held out for validation included"
    if losses := list(_measured(run, "validation_loss", model.step)):
        (first, first_step), (best, best_step), (last, _) = losses[0], min(losses), losses[-1]
        best_words = f"{best:.4g} at best (step {best_step:,})"
        yield "validation loss", f"{first:.4g} at step {first_step:,}, {best_words}, {last:.4g} at the last"
    if speeds := [speed for speed, _ in _measured(run, "images_per_second", model.step)]:
        yield "speed", f"{statistics.median_high(speeds):,.0f} images a second (median)"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):  # it may have been deleted
        state = run / "checkpoints" / f"step-{model.step:08d}" / "state.json"
        environment = json.loads(state.read_text(encoding="utf-8"))["environment"]
        yield "trained on", _plain(f"{environment['device']}, {environment['precision']}")


def _measured(run: Path, name: str, last: int) -> Iterator[tuple[float, int]]:
    """Yield the finite values of a metric of a run with their steps, up to the step `last`."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError, AttributeError):  # a crash can leave half a line
            value, step = (entry := json.loads(line)).get(name), entry.get("step", 0)
            if step <= last and isinstance(value, int | float) and math.isfinite(value):
                yield value, step


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in rows)


def _plain(text: str) -> str:
    """Return text in one line, escaped so that Markdown shows it as it is."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return re.sub(r"([\\`*_\[\]<>|~&#$])", r"\\\1", line)
