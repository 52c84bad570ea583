"""`diffunet demo` does the whole job on built-in data."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from diffunet.commands import outputs
from diffunet.commands.options import Overwrite
from diffunet.commands.progress import duration, progress, tell
from diffunet.config import preset
from diffunet.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffunet.pictures.images import Pixels
    from diffunet.sampling.pipeline import Pipeline

JUDGED = 500
"""Samples that are judged."""


MADE = ".diffunet-demo"
"""The file by which a folder is known in which a demo has trained its run."""


def demo(
    out: Path = Path("demo"), seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Do all of it on built-in data, in minutes, on a CPU: train on handwritten digits, sample, inpaint, judge.

    Example: diffunet demo --out demo

    Args:
        out: Folder for the data, the run and the pictures.
        seconds: Seconds of training.
    """
    import numpy as np
    from PIL import ImageOps
    from PIL.Image import Resampling

    from diffunet import build
    from diffunet.data import augment, builtin
    from diffunet.evaluation import distances, neighbours
    from diffunet.pictures import images
    from diffunet.sampling.pipeline import load

    outputs.claim(out, file=False, overwrite=overwrite)
    began = time.monotonic()
    rest = "then samples, inpainting and a judgement, another minute or two"
    tell(f"1. training on 1,797 handwritten digits, by class: {duration(seconds)}; {rest}")
    if (out / "run").exists() and not (out / MADE).is_file():
        raise UsageError(f"{out / 'run'}: was not made by this command, and is not overwritten; remove it yourself")
    builtin.prepare("digits", out / "digits", overwrite=overwrite)
    shutil.rmtree(out / "run", ignore_errors=True)
    (out / MADE).touch()
    _train(out, seconds)

    pipe = load(out / "run")
    with progress("sampling") as show:  # the classes in turn
        pictures = pipe.sample(JUDGED, guidance=1.5, batch_size=100, on_step=lambda p: show(p.step, p.steps))
    fakes = np.stack([images.to_array(image, 1) for image in pictures])
    labels = np.arange(JUDGED) % 10
    by_class = [fake for digit in range(10) for fake in fakes[labels == digit][:10]]
    images.save(ImageOps.scale(images.grid(by_class, columns=10), 4, Resampling.NEAREST), out / "samples.png")
    tell(f"2. samples, a row for each of the ten digits: {out / 'samples.png'}")

    dataset = build.dataset(pipe.config.data, out / "digits")
    count = len(dataset.files)
    real = augment.gather(dataset.images, range(count), image_size=16, fit="crop")
    real_labels = dataset.labels(pipe.class_names)
    training, held_out, _ = build.split(pipe.config.data, dataset.files)
    images.save(ImageOps.scale(_inpainted(pipe, real[held_out]), 4, Resampling.NEAREST), out / "inpainted.png")
    erased = "their lower or right half erased; filled in three times, without being told which digit it is"
    tell(f"3. held-out digits; {erased}: {out / 'inpainted.png'}")

    from sklearn.neighbors import KNeighborsClassifier

    judge = KNeighborsClassifier(3).fit(real.reshape(len(real), -1), real_labels)
    agreement = float((judge.predict(fakes.reshape(len(fakes), -1)) == labels).mean())
    ratio = distances.variance_ratio(fakes, labels, real, real_labels)
    copies = neighbours.near_copies(fakes, real[training], real[held_out])
    tell(f"4. {JUDGED} samples judged; all of it took {duration(time.monotonic() - began)}; the model: {out / 'run'}")
    tell(f"agreement: {agreement:.1%}\nvariance ratio: {ratio:.2f}")
    tell(f"near copies: {copies.share:.1%} (held-out reals {copies.held_out:.1%})")


def _train(out: Path, seconds: float) -> None:
    from diffunet.training.loop import train

    config = preset("digits").changed("train", minutes=seconds / 60)
    with progress("training") as show:
        train(
            config, out / "digits", out / "run",
            on_step=lambda p: show(p.step, p.steps, f"loss {p.loss:.3f}" if p.loss == p.loss else ""),
        )  # fmt: skip


def _inpainted(pipe: Pipeline, held_out: Pixels) -> Image:
    """Return a picture of eight columns: an image, what is left of it, and three fillings."""
    import numpy as np

    from diffunet.pictures import images

    columns = []
    with progress("inpainting") as show:
        for i, picture in enumerate(held_out[:: max(1, len(held_out) // 8)][:8]):
            hole = np.indices(picture.shape[:2])[i % 2] >= 8
            erased = np.where(hole[..., None], np.uint8(128), picture)
            filled = pipe.inpaint(images.from_array(picture), hole, num=3)
            columns.append([picture, erased, *(images.to_array(image, 1) for image in filled)])
            show(i + 1, 8)
    return images.grid([column[row] for row in range(5) for column in columns], columns=8)
