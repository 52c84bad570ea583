"""The real images that a model is compared with, as it sees them, with their classes and what training learns from."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffunet import build, names
from diffunet.config import Config
from diffunet.data import augment, folder, groups, labels, splits
from diffunet.data.labels import Labels
from diffunet.errors import Error, UsageError
from diffunet.pictures import images

log = logging.getLogger(__name__)

MAX_REAL = 50_000
"""The most real images that features are compared with."""


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
        self._divided = self._divide()

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
                found = labels.find(
                    self.data, paths, rule, given=given, least=1 if d.class_names else 2, beside=self.dataset.beside
                )
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

    def split(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ascending numbers of the images that training on this folder learns from and holds out."""
        training, held_out, _ = self._divided
        return np.flatnonzero(np.isin(self.places, training)), np.flatnonzero(np.isin(self.places, held_out))

    def _divide(self) -> groups.Split:
        d, files, classes = self.config.data, self.dataset.files, self._found if self.named else None
        try:
            return build.split(d, files, classes)
        except UsageError as error:
            log.info("measured without groups: %s", str(error).removeprefix("data.group: ").partition("; leave")[0])
            # A table may be lost of the very images of training: then it is not known what was held out.
            others = names.group_file(d.group or "") is None or splits.find(files.paths) is not None
            d = d.model_copy(update={"group": None, "held_out": d.held_out if others else 0.0})
            return build.split(d, files, classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of `classes`; none where there are none."""
        return () if self._found is None else self.config.data.class_names or self._found.names

    def unseen(self, num: int, seed: int) -> tuple[NDArray[np.int64], bool]:
        """Return the numbers of at most `num` images that training held out, int64 [N], and True.

        Where training on this folder holds out none, they are any images, and the second value is False.
        """
        held_out = self.split()[1]
        some = held_out if len(held_out) else np.arange(len(self))
        return np.random.Generator(np.random.Philox(key=[seed, 1])).permutation(some)[:num], len(held_out) > 0
