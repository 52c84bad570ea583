"""How good a model is, in its first form: a feature distance to real images, beside the distance of real to real."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from diffunet import build
from diffunet.config import Config
from diffunet.data import augment
from diffunet.data.folder import class_names, class_of
from diffunet.data.index import HELD_OUT_MAX, split
from diffunet.errors import DataError, UsageError
from diffunet.evaluation import bits_per_dimension as likelihoods
from diffunet.evaluation.distances import frechet
from diffunet.evaluation.features import Trained, train_classifier
from diffunet.pictures import images
from diffunet.pictures.images import Pixels
from diffunet.sampling.pipeline import Guidance, Pipeline

log = logging.getLogger(__name__)

MAX_REAL = 50_000
"""Real images used at most."""


@dataclass(frozen=True)
class Report:
    """The Fréchet distance of `num` generated images to real ones, and of as many other real ones: the floor.

    `excess` is what is left of the first without the second. Only numbers of the same data, `num` and seed compare.
    `likelihood`, where it was asked for, is of images that the model was `held_out` from, or that it may have seen.
    """

    distance: float
    floor: float
    num: int
    learned: str
    accuracy: float
    agreement: float | None
    likelihood: likelihoods.Likelihood | None = None
    held_out: bool = False

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
        if self.likelihood is not None:
            seen = "that training on this folder holds out"
            if not self.held_out:
                seen = "that it may have seen in training, which flatters"
            lines += [*self.likelihood.lines(), f"                  of images {seen}"]
        return lines


class Reference:
    """The real images of a folder, and features to compare a model's samples with them by.

    They are dealt into thirds: a classifier learns from one, samples are compared with the second, and the distance of
    the third to the second is the floor.

    Args:
        config: of the model.
        data: the folder.
        num: samples to compare, lowered to a third of the images.
        seed: of the deal and the features.
        device: of the classifier.
        on_step: told (done, of how many) while it learns, which is when the first samples come.

    Raises:
        DataError: fewer than 40 usable images.
    """

    def __init__(
        self, config: Config, data: Path, num: int, seed: int, device: torch.device,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.seed, self.device, self.on_step = config, seed, device, on_step
        self.dataset = build.dataset(config, data)
        total = len(self.dataset.files)
        if total < 40:
            raise DataError(f"{data} has {total} usable images; a comparison needs at least 40")
        self.chosen = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(total)[:MAX_REAL]
        self.third = len(self.chosen) // 3
        if self.third < num:
            log.info("comparing %d images, a third of the real ones, not %d", self.third, num)
        self.num = min(num, self.third)
        names = config.data.class_names
        folders = {class_of(file.path) for file in self.dataset.files}
        self._labels = None
        if names or (len(folders) > 1 and None not in folders):
            names = names or class_names([file.path for file in self.dataset.files])
            self._labels = self.dataset.labels(names)[self.chosen]

    @property
    def labels(self) -> list[int] | None:
        """What to sample: the classes of the images that make the floor, so that both are dealt alike."""
        if not self.config.data.class_names:
            return None
        assert self._labels is not None
        return [int(label) for label in self._labels[2 * self.third :][: self.num]]

    @cached_property
    def floor(self) -> float:
        """The distance of real images to others."""
        return frechet(self._trained.features(self._real(2)), self._others)

    def compare(self, pictures: Sequence[Image]) -> Report:
        """`num` samples, of `labels` where the model has classes."""
        fakes = np.stack([images.to_array(picture, self.config.data.channels) for picture in pictures])
        distance, agreement = frechet(self._trained.features(fakes), self._others), None
        if self.labels is not None:
            agreement = float((self._trained.predict(fakes) == np.array(self.labels)).mean())
        return Report(distance, self.floor, self.num, self._trained.learned, self._trained.accuracy, agreement)

    @cached_property
    def _trained(self) -> Trained:
        labels = None if self._labels is None else self._labels[: self.third]
        first = self.gather(self.chosen[: self.third])
        return train_classifier(first, labels, seed=self.seed, device=self.device, on_step=self.on_step)

    @cached_property
    def _others(self) -> NDArray[np.float64]:
        return self._trained.features(self._real(1))

    def _real(self, third: int) -> Pixels:
        return self.gather(self.chosen[third * self.third :][: self.num])

    def gather(self, indices: NDArray[np.int64]) -> Pixels:
        """Images as the model knows them, uint8 [N H W C]."""
        d = self.config.data
        return augment.gather(
            self.dataset.images, indices, [None] * len(indices), image_size=d.image_size, fit=d.fit, flip=False,
            background=d.background,
        )  # fmt: skip

    def for_likelihood(self, num: int) -> tuple[Pixels, list[int] | None, bool]:
        """At most `num` images, their labels where the model has classes, and whether training held them out.

        Where training on this folder holds out none, they are of any but those that the classifier learns from.
        """
        held_out = split(self.dataset.files, self.config.data.held_out, HELD_OUT_MAX)[1]
        some = self.chosen[self.third :]
        if len(held_out):
            some = np.random.Generator(np.random.Philox(key=[self.seed, 1])).permutation(held_out)
        some, names = some[:num], self.config.data.class_names
        labels = self.dataset.labels(names)[some].tolist() if names else None
        return self.gather(some), labels, len(held_out) > 0


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
    likelihood: str | None = None,
    likelihood_num: int = 100,
    likelihood_steps: int | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Compare `num` samples with the real images of a folder; see `Reference`.

    Args:
        guidance, sampler, steps, ladder, threshold: of the samples, as `Pipeline.sample`.
        likelihood: "vlb" or "ode", see `likelihood.vlb` and `likelihood.ode`: also the bits per dimension of
            `likelihood_num` images with `likelihood_steps`, of those that training on this folder holds out.
        on_step: told (what is being done, done, of how many).

    Raises:
        DataError: fewer than 40 usable images.
        UsageError: `num` below 2, and as `Pipeline.sample`, `likelihood.vlb` and `likelihood.ode`.
    """
    if num < 2:
        raise UsageError(f"num is at least 2, not {num}: a distance is one of distributions")
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed is at least 0 and below 2**63, not {seed}")
    if likelihood is not None:
        likelihoods.check(pipeline.denoiser.schedule, likelihood, likelihood_steps)
    if likelihood_num < 1:
        raise UsageError(f"likelihood_num is at least 1, not {likelihood_num}")

    def tell(what: str) -> Callable[[int, int], None]:
        return lambda done, of: on_step(what, done, of) if on_step is not None else None

    reference = Reference(pipeline.config, data, num, seed, pipeline.device, tell("learning features"))
    # Sampling comes first: it refuses arguments that cannot be, before anything is learned.
    progress = tell("sampling")
    generated = pipeline.sample(
        reference.num, seed=seed, labels=reference.labels, guidance=guidance, sampler=sampler, steps=steps,
        ladder=ladder, threshold=threshold,
        on_step=lambda p: progress(p.step, p.steps),
    )  # fmt: skip
    report = reference.compare(generated)
    if likelihood is None:
        return report
    real, labels, unseen = reference.for_likelihood(likelihood_num)
    bits = likelihoods.of(
        likelihood, pipeline, real, labels, steps=likelihood_steps, seed=seed, on_step=tell("likelihood")
    )
    return replace(report, likelihood=bits, held_out=unseen)
