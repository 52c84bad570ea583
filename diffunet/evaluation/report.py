"""How good the samples of a model are: their feature distance to real images, beside that of real images to others."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from diffunet import build, plain
from diffunet.config import Config
from diffunet.data import augment, folder, labels
from diffunet.data.labels import Labels
from diffunet.errors import DataError, Error
from diffunet.evaluation import bits_per_dimension
from diffunet.evaluation.denoising import DenoisingError, denoising_error
from diffunet.evaluation.distances import frechet
from diffunet.evaluation.features import Trained, train_classifier
from diffunet.pictures import images
from diffunet.sampling.conditions import SamplingOptions, refuse_unknown
from diffunet.sampling.pipeline import Pipeline

log = logging.getLogger(__name__)

MAX_REAL = 50_000
"""The most real images that are used."""


@dataclass(frozen=True)
class Report:
    """The Fréchet distance of `num` generated images to real ones, and of as many other real ones: the floor.

    Only numbers of the same data, `num` and seed compare. `learned` and `accuracy` are those of the classifier, see
    `Trained`; `agreement` is the share of generated images that it takes for their class. `likelihood`, where it was
    asked for, is of images that training held out, or else (`held_out` False) may have seen.
    """

    distance: float
    floor: float
    num: int
    learned: str
    accuracy: float
    agreement: float | None
    likelihood: bits_per_dimension.Likelihood | None = None
    held_out: bool = False

    @property
    def excess(self) -> float:
        """The distance above the floor: what of it chance and the number of images do not explain."""
        return self.distance - self.floor

    def lines(self) -> list[str]:
        """Describe the report, for people."""
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
        if (likelihood := self.likelihood) is not None:
            unseen, seen = "that training on this folder holds out", "that it may have seen in training, which flatters"
            lines += [
                f"likelihood:       {likelihood.bits:.3f} +- {likelihood.error:.3f} bits per dimension "
                f"({likelihood.note}; {likelihood.num} images, {likelihood.calls} net calls each)",
                f"                  of images {unseen if self.held_out else seen}",
            ]
        return lines


class RealImages:
    """The images of a folder as a model of this config sees them, with their classes where both have any.

    Images of classes that the model does not know are left out, and what that means for the comparison is logged. With
    fit patch each picture gives the same number of windows, as many as fit side by side into a picture on the mean.

    Args:
        config, data: of the model, and the folder.

    Raises:
        DataError: as `build.dataset`.
    """

    def __init__(self, config: Config, data: Path) -> None:
        self.config, self.data, self.dataset = config, data, build.dataset(config.data, data)
        files, d = self.dataset.files, config.data
        self.classes: NDArray[np.int64] | None = None
        """The class of each image, int64 [N]: of the model's classes, or else the folder's; None if neither has any."""
        self._found, used = self._labels(), np.arange(len(files))
        if self._found is not None:
            of_files = self._found.numbers(d.class_names) if d.class_names else self._found.places
            used = np.flatnonzero(of_files >= 0)
            self.classes = of_files[used]
            if len(np.unique(self.classes)) < 2:
                log.info("all images are of one class, which says nothing of labels: label agreement is left out")
        each = 1
        if d.fit == "patch":
            each = max(1, min(build.distinct(d, files, used), MAX_REAL) // len(used))
        self.places = np.repeat(used, each)
        """The place in the data set of the picture of each image, int64 [N]."""
        if self.classes is not None:
            self.classes = np.repeat(self.classes, each)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def named(self) -> bool:
        """Whether `classes` are those of the model."""
        return bool(self.config.data.class_names) and self.classes is not None

    def gather(self, indices: NDArray[np.int64]) -> images.Pixels:
        """Return images by their numbers, uint8 [N H W C]."""
        d = self.config.data
        return augment.gather(
            self.dataset.images, self.places[indices], build.windows(d, indices), image_size=d.image_size, fit=d.fit,
            background=d.background, scales=d.scales,
        )  # fmt: skip

    def _labels(self) -> Labels | None:
        """Return the classes of the images in the folder, or None where they are of no use for this model."""
        d, paths = self.config.data, self.dataset.files.paths
        given = self.dataset.classes
        rules = [d.labels or (labels.FOLDERS if given is None else None), None] if d.class_names else [None]
        found, reason = None, ""
        for rule in rules:
            try:
                found = labels.find(self.data, paths, rule, given=given, least=1 if d.class_names else 2)
                break
            except Error as error:
                reason = reason or str(error)
        if found is None or not d.class_names:
            if d.class_names:
                short = reason.removeprefix("--classes: ").partition(". ")[0].partition("; with")[0]
                log.info("measured without labels: %s", short)
            return found
        counts = found.counts()
        strange = [name for name in found.names if name not in d.class_names]
        listed = ", ".join(f"{folder.printable(name)} {counts[name]:,}" for name in strange[:8])
        if len(strange) == len(found.names):
            log.info("measured without labels, since the model knows none of the folder's classes: %s", listed)
            return None
        if strange:
            many = sum(counts[name] for name in strange)
            log.info("%s images of classes that the model does not know are left out: %s", f"{many:,}", listed)
        if missing := [name for name in d.class_names if not counts[name]]:
            some = ", ".join(map(folder.printable, missing[:8]))
            log.info("no image is of %d of the model's %d classes: %s", len(missing), len(d.class_names), some)
        return found

    def unseen(self, num: int, seed: int) -> tuple[NDArray[np.int64], bool]:
        """Return the numbers of at most `num` images that training held out, int64 [N], and True.

        Where training on this folder holds out none, they are any images, and the second value is False.
        """
        split = build.split(self.config.data, self.dataset.files, self._found if self.named else None)
        held_out = np.flatnonzero(np.isin(self.places, split.held_out))
        some = held_out if len(held_out) else np.arange(len(self))
        return np.random.Generator(np.random.Philox(key=[seed, 1])).permutation(some)[:num], len(held_out) > 0


def denoising(
    pipeline: Pipeline, data: Path, *, num: int = 256, seed: int = 0,
    on_step: Callable[[str, int, int], None] | None = None,
) -> tuple[DenoisingError, bool]:  # fmt: skip
    """Return the denoising errors of a model on at most `num` images that training held out.

    The second value is False where training on this folder holds out none, so that the model may know the images.
    """
    real, tell = RealImages(pipeline.config, data), on_step or (lambda what, done, of: None)
    num, seed = plain.integer("num", num), plain.integer("seed", seed, least=0)
    some, held_out = real.unseen(num, seed)
    x0 = images.to_float(torch.from_numpy(real.gather(some))).to(pipeline.device)
    label = None
    if real.named and real.classes is not None:
        label = torch.from_numpy(real.classes[some]).to(pipeline.device)
    with pipeline.working("with so many images at a time"):
        return denoising_error(pipeline.denoiser, x0, label, seed=seed, on_step=partial(tell, "denoising")), held_out


class Reference(RealImages):
    """The real images of a folder, and features to compare a model's samples with them by.

    They are dealt into thirds: a classifier learns from one, samples are compared with the second, and the distance of
    the third to the second is the floor.

    Args:
        num: the number of samples to compare, lowered to a third of the images.
        seed, device: seed of the deal and of the features, and where the classifier computes.
        on_step: called with (done, of how many) while it learns, which is when the first samples are compared.

    Raises:
        DataError: fewer than 40 usable images.
    """

    def __init__(
        self, config: Config, data: Path, num: int, seed: int, device: torch.device,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, data)
        self.seed, self.device, self.on_step = seed, device, on_step
        total = len(self)
        if total < 40:
            raise DataError(f"{data} has {total} usable images; a comparison needs at least 40")
        self.chosen = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(total)[:MAX_REAL]
        self.third = len(self.chosen) // 3
        if self.third < num:
            log.info("comparing %d images, a third of the real ones, not %d", self.third, num)
        self.num = min(num, self.third)

    @property
    def labels(self) -> list[int] | None:
        """The classes to sample: those of the images that make the floor, so that both have the same share of each."""
        return self._labels_of(self._third(2))

    @cached_property
    def floor(self) -> float:
        """The distance of other real images to those that samples are compared with."""
        return frechet(self._trained.features(self.gather(self._third(2))), self._others)

    def compare(self, pictures: Sequence[Image]) -> Report:
        """Compare `num` samples, of `labels` where the model has classes, with real images."""
        fakes = np.stack([images.to_array(picture, self.config.data.channels) for picture in pictures])
        distance, agreement = frechet(self._trained.features(fakes), self._others), None
        if self.labels is not None and self._trained.learned == "classes":
            agreement = float((self._trained.predict(fakes) == np.array(self.labels)).mean())
        return Report(distance, self.floor, self.num, self._trained.learned, self._trained.accuracy, agreement)

    @cached_property
    def _trained(self) -> Trained:
        first = self.chosen[: self.third]
        several = self.classes is not None and len(np.unique(self.classes[first])) > 1
        of_first = self.classes[first] if self.classes is not None and several else None
        return train_classifier(self.gather(first), of_first, seed=self.seed, device=self.device, on_step=self.on_step)

    @cached_property
    def _others(self) -> NDArray[np.float64]:
        return self._trained.features(self.gather(self._third(1)))

    def _third(self, number: int) -> NDArray[np.int64]:
        return self.chosen[number * self.third :][: self.num]

    def _labels_of(self, indices: NDArray[np.int64]) -> list[int] | None:
        return self.classes[indices].tolist() if self.named and self.classes is not None else None

    def for_likelihood(self, num: int) -> tuple[images.Pixels, list[int] | None, bool]:
        """Return at most `num` images, their labels where the model has classes, and whether training held them out.

        Where training on this folder holds out none, they are any but those that the classifier learns from.
        """
        some, unseen = self.unseen(num, self.seed)
        if not unseen:
            some = self.chosen[self.third :][:num]
        return self.gather(some), self._labels_of(some), unseen


def evaluate(
    pipeline: Pipeline, data: Path, *, num: int = 10_000, seed: int = 0, likelihood: str | None = None,
    likelihood_num: int = 100, likelihood_steps: int | None = None,
    on_step: Callable[[str, int, int], None] | None = None, **options: Unpack[SamplingOptions],
) -> Report:  # fmt: skip
    """Compare `num` samples, at least 2, with the real images of the folder `data`; see `Reference`.

    Args:
        likelihood: "vlb" or "ode", see bits_per_dimension.py: also measure the bits per dimension of `likelihood_num`
            images with `likelihood_steps`, of those that training on this folder holds out.
        on_step: called with (what is being done, done, of how many).
        options: how to sample; see `SamplingOptions`.

    Raises:
        DataError: fewer than 40 usable images.
        UsageError: `num` below 2, and as `Pipeline.sample` and `bits_per_dimension.check`.
    """
    refuse_unknown("evaluate()", options, SamplingOptions)
    num, seed = plain.integer("num", num, least=2), plain.integer("seed", seed, least=0)
    if likelihood is not None:
        bits_per_dimension.check(pipeline.denoiser.schedule, likelihood, likelihood_steps)
    likelihood_num = plain.integer("likelihood_num", likelihood_num)
    tell = on_step or (lambda what, done, of: None)
    reference = Reference(pipeline.config, data, num, seed, pipeline.device, partial(tell, "learning features"))
    # Sampling comes first: it refuses arguments that cannot be, before anything is learned.
    generated = pipeline.sample(
        reference.num,
        seed=seed,
        labels=reference.labels,
        on_step=lambda p: tell("sampling", p.step, p.steps),
        **options,
    )
    report = reference.compare(generated)
    if likelihood is None:
        return report
    real, labels, unseen = reference.for_likelihood(likelihood_num)
    measure, progress = bits_per_dimension.MEASURES[likelihood], partial(tell, "likelihood")
    bits = measure(pipeline, real, labels, steps=likelihood_steps, seed=seed, on_step=progress)
    return replace(report, likelihood=bits, held_out=unseen)
