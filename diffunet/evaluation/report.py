"""How good a model is, in its first form: a feature distance to real images, beside the distance of real to real."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffunet import build
from diffunet.data import augment, images
from diffunet.data.folder import class_names, class_of
from diffunet.errors import DataError, UsageError
from diffunet.evaluation.distances import frechet
from diffunet.evaluation.features import train_classifier
from diffunet.pipeline import Guidance, Pipeline

log = logging.getLogger(__name__)

MAX_REAL = 50_000
"""Real images used at most."""


@dataclass(frozen=True)
class Report:
    """The Fréchet distance of `num` generated images to real ones, and of as many other real ones: the floor.

    `excess` is what is left of the first without the second. Only numbers of the same data, `num` and seed compare.
    """

    distance: float
    floor: float
    num: int
    learned: str
    accuracy: float
    agreement: float | None

    @property
    def excess(self) -> float:
        """Distance above the floor."""
        return self.distance - self.floor

    def lines(self) -> list[str]:
        """For people."""
        what = "the classes" if self.learned == "classes" else "which way up images are"
        lines = [
            f"features: a small classifier that learned {what} ({self.accuracy:.1%} right on images it had not seen)",
            f"images compared: {self.num}",
            f"feature distance: {self.distance:.4f}",
            f"real to real:     {self.floor:.4f}",
            f"excess:           {self.excess:.4f}",
        ]
        if self.agreement is not None:
            lines.append(f"label agreement:  {self.agreement:.1%} of generated images are taken for their class")
        return lines


def evaluate(
    pipeline: Pipeline,
    data: Path,
    *,
    num: int = 10_000,
    seed: int = 0,
    guidance: float | Guidance = 1.0,
    sampler: str | None = None,
    steps: int | None = None,
    ladder: str | None = None,
    threshold: str | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Compare `num` samples with the real images of a folder.

    The real images are dealt into thirds: the classifier learns from one, the samples are compared with the second, and
    the distance of the third to the second is the floor. `num` is lowered to a third of the images.

    Args:
        guidance, sampler, steps, ladder, threshold: of the samples, as `Pipeline.sample`.
        on_step: told (what is being done, done, of how many).

    Raises:
        DataError: fewer than 40 usable images.
        UsageError: `num` below 2, and as `Pipeline.sample`.
    """
    if num < 2:
        raise UsageError(f"num is at least 2, not {num}: a distance is one of distributions")
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed is at least 0 and below 2**63, not {seed}")
    config = pipeline.config
    dataset = build.dataset(config, data)
    total = len(dataset.files)
    if total < 40:
        raise DataError(f"{data} has {total} usable images; a comparison needs at least 40")
    if min(total, MAX_REAL) // 3 < num:
        log.info("comparing %d images, a third of the real ones, not %d", min(total, MAX_REAL) // 3, num)
        num = min(total, MAX_REAL) // 3
    chosen = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(total)[:MAX_REAL]
    d = config.data
    real = augment.gather(
        dataset.images, chosen, [None] * len(chosen), image_size=d.image_size, fit=d.fit, flip=False,
        background=d.background,
    )  # fmt: skip
    labels, names = None, d.class_names
    folders = {class_of(file.path) for file in dataset.files}
    if names or (len(folders) > 1 and None not in folders):
        names = names or class_names([file.path for file in dataset.files])
        labels = dataset.labels(names)[chosen]
    third = len(real) // 3

    def tell(what: str) -> Callable[[int, int], None]:
        return lambda done, of: on_step(what, done, of) if on_step is not None else None

    # Sampling comes first: it refuses arguments that cannot be, before anything is learned.
    progress = tell("sampling")
    given = None
    if d.class_names:  # in the proportions of the real images
        assert labels is not None
        given = [int(label) for label in labels[third : third + num]]
    generated = pipeline.sample(
        num, seed=seed, labels=given, guidance=guidance, sampler=sampler, steps=steps, ladder=ladder,
        threshold=threshold, batch_size=256 if pipeline.device.type == "cuda" else 64,
        on_step=lambda p: progress(p.step, p.steps),
    )  # fmt: skip
    fakes = np.stack([images.to_array(image, pipeline.channels) for image in generated])
    trained = train_classifier(
        real[:third], None if labels is None else labels[:third], seed=seed, device=pipeline.device,
        on_step=tell("learning features"),
    )  # fmt: skip
    other = trained.features(real[third : third + num])
    distance = frechet(trained.features(fakes), other)
    floor = frechet(trained.features(real[2 * third :][:num]), other)
    agreement = None
    if given is not None:
        agreement = float((trained.predict(fakes) == np.array(given)).mean())
    return Report(distance, floor, num, trained.learned, trained.accuracy, agreement)
