"""The real images of a folder as what samples are compared with: in distance, class by class, and for copies."""

import contextlib
import hashlib
import logging
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from diffunet.config import Config
from diffunet.errors import DataError
from diffunet.evaluation import neighbours, stored
from diffunet.evaluation.distances import frechet
from diffunet.evaluation.features import VERSION, Trained, train_classifier
from diffunet.evaluation.networks import Network
from diffunet.evaluation.reals import MAX_REAL, RealImages
from diffunet.evaluation.told import Memory, OfClass, Report
from diffunet.pictures import images
from diffunet.pictures.images import Pixels

log = logging.getLogger(__name__)

PAIRS = 16
"""The samples nearest to a training image that are shown."""

OnStep = Callable[[str, int, int], None]
"""A function that is called with (what is being done, done, of how many)."""


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
            log.info("the feature distance is of %d images, a third of the real ones, not %d", self.third, num)
        self.num = min(num, self.third)

    @property
    def labels(self) -> list[int] | None:
        """The classes to sample: those of the images that make the floor, so that both have the same share of each."""
        return self._labels_of(self._third(2))

    def labels_for(self, num: int) -> list[int] | None:
        """Return the classes of `num` samples, the first ones `labels`, and all in about the shares of real images."""
        return self._labels_of(np.resize(np.concatenate([self._third(2), self.chosen]), num))

    @cached_property
    def floor(self) -> float:
        """The distance of other real images to those that samples are compared with."""
        return frechet(self._features_of(2), self._features_of(1))

    def compare(self, pictures: Sequence[Image]) -> Report:
        """Compare `num` samples, of `labels` where the model has classes, with real images."""
        fakes = np.stack([images.to_array(picture, self.config.data.channels) for picture in pictures])
        return self.compared(fakes, None if self.labels is None else np.array(self.labels))

    def compared(self, fakes: Pixels, labels: NDArray[np.int64] | None) -> Report:
        """Compare `num` samples, uint8 [N H W C], with real images; `labels` are their classes, int64 [N]."""
        made, others = self._trained.features(fakes), self._features_of(1)
        agreement, found = None, dict[str, OfClass]()
        if labels is not None and self._trained.learned == "classes":
            right = self._trained.predict(fakes) == labels
            agreement = float(right.mean())
            for number, name in enumerate(self.class_names):
                if (mine := labels == number).any():
                    found[name] = OfClass(
                        int(mine.sum()), float(right[mine].mean()), *self._of_class(number, made[mine])
                    )
        return Report(
            frechet(made, others), self.floor, self.num, self._trained.learned, self._trained.accuracy, agreement,
            found, neighbours.manifold(made, others),
        )  # fmt: skip

    def _of_class(self, number: int, made: NDArray[np.float64]) -> tuple[float | None, float | None]:
        """Return the distance of samples of a class to its real images, and of as many others, where there are two."""
        assert self.classes is not None
        real, other = (self._features_of(n)[self.classes[self._third(n)] == number] for n in (1, 2))
        few = min(len(made), len(other))
        if min(few, len(real)) < 2:
            return None, None
        return frechet(made[:few], real), frechet(other[:few], real)

    def memory(self, fakes: Pixels, on_step: Callable[[int, int], None]) -> Memory | None:
        """Look for the nearest training images of samples, uint8 [N H W C], and of the images that are held out.

        Pictures from 128 pixels on are compared by means of blocks. Where training mirrors images, mirror images count.
        `on_step` is called with (done, of how many). With a single training image there is no telling, and None.
        """
        training, held_out = self.split()
        if len(training) < 2:
            return None
        done, mirror = 0, bool(self.config.data.flip)
        total = len(training) * (3 if mirror else 2)

        def parts(of: Callable[[Pixels], Any]) -> Callable[[], Iterator[Any]]:
            def each() -> Iterator[Any]:
                nonlocal done
                for part in np.array_split(training, -(-len(training) // neighbours.AT_ONCE)):
                    yield of(self.gather(part))
                    on_step(done := done + len(part), total)

            return each

        known, real = neighbours.some_of(len(training)), self._gathered(held_out)
        trained_on, found = self.gather(training[known]), []
        for of, turned in ((neighbours.small, mirror), (self._trained.features, False)):
            every = of(fakes), (known, of(trained_on)), of(real) if len(real) else of(fakes[:1])[:0]
            found.append(neighbours.copies(every[0], parts(of), *every[1:], mirror=turned, device=self.device))
        some, places = found[0].closest[:PAIRS], training[found[0].places[:PAIRS]]
        rows: list[Pixels] = []
        for nearest, place in zip(np.array_split(some, 2), np.array_split(places, 2), strict=True):
            rows += [*fakes[nearest], *self._gathered(place)]
        columns = -(-len(some) // 2)
        return Memory(found[0], found[1], images.grid(rows, columns=columns))

    def _gathered(self, indices: NDArray[np.int64]) -> Pixels:
        size, channels = self.config.data.image_size, self.config.data.channels
        return self.gather(indices) if len(indices) else np.empty((0, size, size, channels), np.uint8)

    @cached_property
    def _trained(self) -> Trained:
        """The classifier, which is learned once and kept for these images, see `stored.arrays`."""
        first = self.chosen[: self.third]
        several = self.classes is not None and len(np.unique(self.classes[first])) > 1
        of_first = self.classes[first] if self.classes is not None and several else None
        learned, size = "turns" if of_first is None else "classes", self.config.data.image_size

        def learn() -> stored.Arrays:
            some = self.gather(first), of_first
            return train_classifier(*some, seed=self.seed, device=self.device, on_step=self.on_step).arrays()

        def fits(found: stored.Arrays) -> bool:
            with contextlib.suppress(KeyError, IndexError, TypeError, RuntimeError):
                Trained.of_arrays(found, size, learned, self.device)
                return True
            return False

        classes = "" if of_first is None else hashlib.sha256(of_first.tobytes()).hexdigest()
        by = f"classifier {VERSION} {learned} {classes} seed {self.seed} {self.device.type}"
        return Trained.of_arrays(stored.arrays(self, first, by, learn, fits), size, learned, self.device)

    @cached_property
    def _real_features(self) -> dict[int, NDArray[np.float64]]:
        return {n: self._trained.features(self.gather(self._third(n))) for n in (1, 2)}

    def _features_of(self, number: int) -> NDArray[np.float64]:
        return self._real_features[number]

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

    def report(
        self, fakes: Pixels, labels: NDArray[np.int64] | None, networks: Sequence[Network], tell: OnStep,
        some: NDArray[np.int64] | None = None,
    ) -> Report:  # fmt: skip
        """Compare samples, uint8 [N H W C], with real images in every way that takes no model.

        Args:
            fakes, labels: the samples, and their classes, int64 [N], or None.
            networks: those that measure published figures.
            tell: is called with (what is being done, done, of how many).
            some: the places of `num` samples for the feature distance, by default the first ones.
        """
        some = np.arange(self.num) if some is None else some
        report = self.compared(fakes[some], None if labels is None else labels[some])
        memory = self.memory(fakes, partial(tell, "looking for copies"))
        published = [network.figures(fakes, self, tell) for network in networks]
        about = {"samples": len(fakes), "reals": len(self), "seed": self.seed, "data": self.dataset.index_hash}
        return replace(report, memory=memory, published=dict(ChainMap(*published)), about=about)
