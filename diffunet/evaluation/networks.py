"""Networks with published weights, by whose features papers compare images: what inception.py and dinov2.py share.

Pictures are compared at the model's size, as integers of 8 bits. Nothing is downloaded here: the errors say where the
weights are published.

Legend: N images, D features.
"""

import hashlib
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffunet.errors import CheckpointError, DataError, UsageError
from diffunet.evaluation import distances, stored
from diffunet.evaluation.reals import MAX_REAL, RealImages
from diffunet.names import MetricName
from diffunet.pictures import images
from diffunet.pictures.images import Colour, Pixels

BIASED = 10_000
"""The samples below which a Fréchet distance is told to be biased. Papers take 50,000."""
BATCH = 64
VERSION = 1  # of the features that are kept

Floats = NDArray[np.float32]
OnStep = Callable[[int, int], None]


class Weights(NamedTuple):
    """A published file of weights: how large it is, where it is, its hash, and its names in torch hub's cache.

    Only the file of this hash is used: other weights give numbers that compare with nobody's.
    """

    size: str
    url: str
    sha256: str
    names: tuple[str, ...]


class Statistics(NamedTuple):
    """The mean, float64 [D], and the covariance, float64 [D D], of the features of a set of images."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class Network(ABC):
    """A network with its published weights, and the figures that are measured by it.

    Args:
        metrics: which of its `METRICS` are measured.
        content: the content of the file of weights.
        published: a name, and statistics of real images by which its distance is measured in place of those of the
            images at hand.
        device: where to compute.

    Raises:
        UsageError: the library that computes it is not installed.
    """

    NAME: ClassVar[str]
    METRICS: ClassVar[tuple[MetricName, ...]]
    """What it measures; the first is its Fréchet distance."""
    WEIGHTS: ClassVar[Weights]
    FEATURES: ClassVar[int]
    """D."""

    def __init__(
        self, metrics: Collection[MetricName], content: bytes, published: tuple[str, Statistics] | None,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.metrics, self.published, self.device = {*metrics} & {*self.METRICS}, published, device
        self.net = self._made(content).eval().requires_grad_(False).to(device)

    @abstractmethod
    def _made(self, content: bytes) -> torch.nn.Module:
        """Return the network with the weights of a published file."""

    @abstractmethod
    def _answers(self, rgb: Pixels) -> tuple[Tensor, ...]:
        """Return what the network says of pictures, uint8 [n H W 3]: features [n D], and others [n ...]."""

    def refuse(self, num: int) -> None:
        """Raise UsageError where `num` samples are too few for a metric."""
        for metric in sorted(self.metrics):
            if num < (least := self._least(metric)):
                raise UsageError(f"the metric {metric} takes at least {least} samples, not {num}")

    def _least(self, metric: MetricName) -> int:
        return 2

    @torch.no_grad()
    def features(
        self, gather: Callable[[NDArray[np.int64]], Pixels], num: int, background: Colour, on_step: OnStep
    ) -> tuple[Floats, ...]:
        """Return what the network says of `num` images that `gather` returns by their numbers, uint8 [n H W C].

        Grey is grey in three channels, and what is transparent is laid over `background`. The first array has the
        features, float32 [N D].
        """
        parts = []
        for start in range(0, num, BATCH):
            some = np.arange(start, min(start + BATCH, num))
            rgb = np.stack([images.to_array(images.from_array(each), 3, background) for each in gather(some)])
            parts.append([answer.float().cpu().numpy() for answer in self._answers(rgb)])
            on_step(int(some[-1]) + 1, num)
        return tuple(np.concatenate(answers) for answers in zip(*parts, strict=True))

    def of_reals(self, real: RealImages, on_step: OnStep) -> Floats:
        """Return the features of real images, at most `MAX_REAL` of them; they are kept by what the images are."""
        chosen = np.random.Generator(np.random.Philox(key=[0, 5])).permutation(len(real))[:MAX_REAL]
        chosen = np.sort(chosen)  # the same for every seed, so that they are found again
        background = real.config.data.background

        def measure() -> Floats:
            return self.features(lambda some: real.gather(chosen[some]), len(chosen), background, on_step)[0]

        return stored.features(real, chosen, f"{self.NAME.lower()} {self.WEIGHTS.sha256} {VERSION}", measure)

    def figures(self, fakes: Pixels, real: RealImages, on_step: Callable[[str, int, int], None]) -> dict[str, Any]:
        """Return what was asked for of the samples, uint8 [N H W C], by names; see `figures.FIGURES`.

        Args:
            fakes, real: samples, and the images to compare them with, at most `MAX_REAL` of them.
            on_step: called with (what is being done, done, of how many).
        """
        made = self.features(lambda some: fakes[some], len(fakes), real.config.data.background,
                             lambda done, of: on_step(f"{self.NAME} on samples", done, of))  # fmt: skip

        @cache  # several figures take them, and they may not be kept elsewhere
        def reals() -> Floats:
            return self.of_reals(real, lambda done, of: on_step(f"{self.NAME} on real images", done, of))

        return self._figures(made, reals)

    def _figures(self, made: tuple[Floats, ...], reals: Callable[[], Floats]) -> dict[str, Any]:
        """Return the figures by what the network says of samples, and by a function that returns features of reals."""
        name = self.METRICS[0].replace("-", "_")
        if self.METRICS[0] not in self.metrics:
            return {}
        if self.published is not None:
            source, of_reals = self.published
            return {name: distances.frechet_of(*statistics(made[0]), *of_reals), f"{name}_reals": source}
        found = reals()
        return {
            name: distances.frechet_of(*statistics(made[0]), *statistics(found)), f"{name}_reals": len(found)
        }  # fmt: skip


def statistics(features: Floats) -> Statistics:
    """Return the mean and covariance of features [N D]."""
    return Statistics(features.mean(0, dtype=np.float64), np.cov(features, rowvar=False, dtype=np.float64))


class Published(NamedTuple):
    """Which published figures are asked for, files of weights, and files of statistics of real images.

    A file of weights is known by its hash, and statistics by their number of features, so that each finds its network.
    """

    metrics: tuple[MetricName, ...] = ()
    weights: tuple[Path, ...] = ()
    reals: tuple[Path, ...] = ()

    def load(self, kinds: Collection[type[Network]], device: torch.device) -> list[Network]:
        """Return the networks of these kinds that are asked for, none where nothing is asked.

        Raises:
            UsageError: an unknown metric, a file that no metric asks for, or a library that is not installed.
            CheckpointError: there are no weights for a metric, or a file of other weights; the message says where to
                get them.
            DataError: a file of statistics that cannot be read, or that holds other things.
        """
        known = {metric: kind for kind in kinds for metric in kind.METRICS}
        if unknown := [metric for metric in self.metrics if metric not in known]:
            raise UsageError(f"there is no metric {unknown[0]!r}; there are {', '.join(known)}")
        wanted = [kind for kind in kinds if {*kind.METRICS} & {*self.metrics}]
        if not wanted and (self.weights or self.reals):
            raise UsageError("weights and statistics of real images are for metrics, and none is asked for")
        published = {}
        for path in self.reals:
            found = read_statistics(path)
            kind = next((kind for kind in kinds if len(found.mean) == kind.FEATURES), None)
            if kind is None:
                sizes = " and ".join(f"{kind.NAME} has {kind.FEATURES:,}" for kind in kinds)
                raise DataError(f"{path} has statistics of {len(found.mean):,} features; {sizes}")
            if kind.METRICS[0] not in self.metrics:
                raise UsageError(
                    f"{path} has statistics of {kind.NAME}'s features, for {kind.METRICS[0]}, which is not among the "
                    "metrics"
                )
            published[kind] = path.name, found
        contents = {}
        for path in self.weights:
            content = _content(path)
            kind = next((kind for kind in kinds if _has_hash(content, kind)), None)
            if kind is None:
                raise CheckpointError(
                    f"{path} does not hold published weights, whose numbers alone compare with others': get "
                    + " or ".join(f"those of {kind.NAME} from {kind.WEIGHTS.url}" for kind in wanted)
                )
            if kind not in wanted:
                raise UsageError(f"{path} has the weights of {kind.NAME}, of which no metric is asked for")
            contents[kind] = content
        return [kind(self.metrics, contents.get(kind) or _cached(kind), published.get(kind), device) for kind in wanted]


def _cached(kind: type[Network]) -> bytes:
    wanted = kind.WEIGHTS
    cached = [Path(torch.hub.get_dir(), "checkpoints", name) for name in wanted.names]
    path = next(filter(Path.is_file, cached), None)
    if path is None:
        raise CheckpointError(
            f"the metrics {', '.join(kind.METRICS)} need the weights of {kind.NAME}, {wanted.size}, which are not in "
            f"{cached[0].parent}: download {wanted.url} and say --weights FILE; without --metrics the distance of "
            "diffunet's own features is measured"
        )
    if not _has_hash(content := _content(path), kind):
        raise CheckpointError(
            f"{path} does not hold the published weights of {kind.NAME} (sha256 {wanted.sha256[:16]}...), whose "
            f"numbers alone compare with others': get the file from {wanted.url}"
        )
    return content


def _has_hash(content: bytes, kind: type[Network]) -> bool:
    return hashlib.sha256(content).hexdigest() == kind.WEIGHTS.sha256


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the weights {path} cannot be read: {error.strerror}") from None


def read_statistics(path: Path) -> Statistics:
    """Return published statistics of real images from an .npz: `mu` [D] and `sigma` [D D], as EDM has them.

    Raises:
        DataError: it cannot be read, or holds other things.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = Statistics(*(np.asarray(archive[name], np.float64) for name in ("mu", "sigma")))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (KeyError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile):
        raise DataError(f"{path} is no .npz with mu and sigma, the statistics of real images as EDM has them") from None
    if found.mean.ndim != 1 or found.covariance.shape != 2 * found.mean.shape:
        raise DataError(
            f"{path} has mu {[*found.mean.shape]} and sigma {[*found.covariance.shape]}, and not D and D x D"
        )
    if not all(np.isfinite(each).all() for each in found):
        raise DataError(f"{path} has numbers in mu or sigma that are not finite")
    return found
