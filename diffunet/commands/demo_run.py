"""The work of `diffunet demo`: train on handwritten digits, sample, inpaint and judge, in minutes, on a CPU."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffunet import build
from diffunet.commands.progress import duration, progress, tell
from diffunet.config import Config, preset
from diffunet.data import augment, builtin
from diffunet.data.index import HELD_OUT_MAX, split
from diffunet.errors import Stopped
from diffunet.evaluation.distances import near_copies, variance_ratio
from diffunet.pictures import images
from diffunet.sampling.pipeline import Pipeline, load
from diffunet.training.loop import TrainProgress, train

GUIDANCE = 1.5
JUDGED = 500
"""Samples that are judged."""


def run(out: Path, seconds: float) -> None:
    """Write data, run and pictures to the folder `out`, and print what to look at and three numbers.

    Args:
        out: Folder in which `digits` and `run` are made anew; nothing else in it is deleted.
        seconds: Time after which training ends, if it is not done by then.
    """
    began = time.monotonic()
    config = preset("digits")
    tell(
        f"1. training on 1,797 handwritten digits, by class: up to {duration(seconds)}; "
        "then samples, inpainting and a judgement, another minute or two"
    )
    for folder in (out / "digits", out / "run"):
        shutil.rmtree(folder, ignore_errors=True)
    builtin.prepare("digits", out / "digits")
    _train(config, out, seconds)

    pipe = load(out / "run")
    with progress("sampling") as show:  # the classes in turn
        pictures = pipe.sample(JUDGED, guidance=GUIDANCE, batch_size=100, on_step=lambda p: show(p.step, p.steps))
    fakes = np.stack([images.to_array(image, 1) for image in pictures])
    labels = np.arange(JUDGED) % 10
    by_class = [fake for digit in range(10) for fake in fakes[labels == digit][:10]]
    images.save(_enlarged(images.grid(by_class, columns=10)), out / "samples.png")
    tell(f"2. samples, a row for each of the ten digits: {out / 'samples.png'}")

    dataset = build.dataset(pipe.config, out / "digits")
    every = range(len(dataset.files))
    real = augment.gather(dataset.images, every, [None] * len(every), image_size=16, fit="crop", flip=False)
    real_labels = dataset.labels(pipe.class_names)
    training, held_out = split(dataset.files, pipe.config.data.held_out, HELD_OUT_MAX)
    images.save(_enlarged(_inpainted(pipe, real[held_out])), out / "inpainted.png")
    tell(
        "3. held-out digits; their lower or right half erased; filled in three times, without being told which digit "
        f"it is: {out / 'inpainted.png'}"
    )

    from sklearn.neighbors import KNeighborsClassifier

    judge = KNeighborsClassifier(3).fit(real.reshape(len(real), -1), real_labels)
    agreement = float((judge.predict(fakes.reshape(len(fakes), -1)) == labels).mean())
    ratio = variance_ratio(fakes, labels, real, real_labels)
    copies, real_copies = near_copies(fakes, real[training], real[held_out])
    tell(f"4. {JUDGED} samples judged; all of it took {duration(time.monotonic() - began)}; the model: {out / 'run'}")
    tell(f"agreement: {agreement:.1%}")
    tell(f"variance ratio: {ratio:.2f}")
    tell(f"near copies: {copies:.1%} (held-out reals {real_copies:.1%})")


def _train(config: Config, out: Path, seconds: float) -> None:
    with progress("training") as show:
        began = time.monotonic()

        def on_step(p: TrainProgress) -> bool:
            passed = time.monotonic() - began
            loss = f", loss {p.loss:.3f}" if p.loss == p.loss else ""
            show(int(min(seconds, passed)), int(seconds), f"step {p.step}{loss}")
            return passed < seconds

        try:
            train(config, out / "digits", out / "run", on_step=on_step)
        except Stopped:
            if time.monotonic() - began < seconds:
                raise
            tell(f"   training ended after {duration(seconds)}, as asked")


def _inpainted(pipe: Pipeline, held_out: NDArray[np.uint8]) -> Image.Image:
    """Return a picture of eight columns: an image, what is left of it, and three fillings."""
    columns = []
    with progress("inpainting") as show:
        for i, picture in enumerate(held_out[:: max(1, len(held_out) // 8)][:8]):
            hole = np.zeros(picture.shape[:2], bool)
            hole[8:] = True
            hole = hole.T if i % 2 else hole
            erased = np.where(hole[..., None], np.uint8(128), picture)
            filled = pipe.inpaint(images.from_array(picture), hole, num=3)
            columns.append([picture, erased, *(images.to_array(image, 1) for image in filled)])
            show(i + 1, 8)
    return images.grid([column[row] for row in range(5) for column in columns], columns=8)


def _enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture four times as large, pixel by pixel: digits of 16 pixels are small on a screen."""
    return picture.resize((picture.width * 4, picture.height * 4), Image.Resampling.NEAREST)
