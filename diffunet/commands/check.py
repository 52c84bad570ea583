"""`diffunet check` says what is in a folder of images, as training would see it."""

from __future__ import annotations

import json as formats
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from diffunet.commands import outputs
from diffunet.commands.options import Overwrite, Size
from diffunet.commands.progress import progress, say, tell
from diffunet.commands.signature import Rare
from diffunet.config import Config, DataConfig
from diffunet.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffunet.data.findings import Plan

PLAIN = DataConfig()
"""The options of the data where none is given."""

SHOWN = 36
"""The images on a sheet."""


def check(
    folder: Annotated[Positional[Path], arg(metavar="DATA")], /, *, image_size: Size | None = None,
    classes: bool = False, json: bool = False, sheet: Path | None = None, overwrite: Overwrite = False,
    data: Rare[DataConfig] = PLAIN,
) -> None:  # fmt: skip
    """Say what is in a folder of images: sizes, classes, what cannot be used and why, and what to try.

    Example: diffunet check photos

    Args:
        folder: Folder of images, searched recursively, or an archive or arrays of them.
        image_size: Height and width in pixels to train at (short for --data.image-size, 64 by default).
        classes: Look for classes: subfolders are classes, or what --data.labels says (short for --data.classes).
        json: Print all of it as JSON, for programs.
        sheet: Picture to write of 36 images as the net will see them, such as sheet.png.
    """
    short = {"image_size": image_size, "classes": classes or None}
    if image_size is not None and data.image_size not in (PLAIN.image_size, image_size):
        raise UsageError("--image-size is short for --data.image-size; take one")
    config = Config(data=data).changed("data", **{name: value for name, value in short.items() if value is not None})
    if sheet is not None:
        outputs.lossless(sheet, "--sheet")
        outputs.refuse_misfit(sheet, config.data.channels, "--sheet")
        outputs.claim(sheet, file=True, overwrite=overwrite, option="--sheet")

    from diffunet import build
    from diffunet.data import findings
    from diffunet.data.survey import survey

    with progress("reading") as show:
        content = survey(folder, progress=show, ranges=build.ranges(config.data), pages=config.data.pages)
    found = findings.rows(content, plan(config.data))
    tell(formats.dumps(findings.plain(found), indent=1) if json else findings.text(found))
    if sheet is not None and content.images:
        with progress("decoding") as show:
            picture = seen(config.data, folder, show)
        from diffunet.pictures import images

        images.save(picture, sheet)
        say(f"{sheet}: images as the net will see them")


def plan(data: DataConfig) -> Plan:
    """Return what findings depend on, of the options of the data."""
    from diffunet.data.cache import Layout
    from diffunet.data.findings import Plan

    layout = Layout(data.image_size, data.channels, data.fit, data.background, 1.125, data.scales)
    given = {name for name, field in DataConfig.model_fields.items() if getattr(data, name) != field.default}
    return Plan(
        layout, data.classes, data.labels, data.balance, data.group, data.held_out, data.max_rejected,
        data.cache != "off", given,
    )  # fmt: skip


def seen(data: DataConfig, folder: Path, show: object = None) -> Image:
    """Return a sheet of `SHOWN` images as the first steps of a run with seed 0 take them, not mirrored."""
    from diffunet import build, draws
    from diffunet.data import augment
    from diffunet.pictures import images
    from diffunet.training.batches import drawn_alike, order

    data = data.model_copy(update={"reading": data.reading or 2})  # as a new run reads
    dataset = build.dataset(data, folder, show)  # type: ignore[arg-type]
    classes = build.classes(data, dataset, folder)
    split = build.split(data, dataset.files, classes)
    alike = drawn_alike(data, None if classes is None else classes.places, split.groups)
    training = split.training
    chosen = order(training, alike, 0)(range(SHOWN))
    where = draws.of_step(0, 0).random((len(chosen), 3))
    pixels = augment.gather(
        dataset.images, training[chosen], where, image_size=data.image_size, fit=data.fit,
        background=data.background, scales=data.scales,
    )  # fmt: skip
    return images.grid(list(pixels), 6)
