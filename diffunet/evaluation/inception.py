"""FID, KID, precision and recall, and the inception score, by the network whose numbers papers report.

The network, its way to resize and quantise pictures, and the formulas are torch-fidelity's (extra `fid`), which agrees
with the original in TensorFlow. Pictures are compared at the model's size, as integers of 8 bits. Nothing is
downloaded here: where the weights are, `weights` says.

Legend: N M images, D = 2048 features.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffunet.errors import CheckpointError, DataError, UsageError
from diffunet.evaluation import distances, neighbours, stored
from diffunet.evaluation.reals import MAX_REAL, RealImages
from diffunet.names import METRICS, MetricName
from diffunet.pictures import images
from diffunet.pictures.images import Colour, Pixels

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
"""Where the weights are published."""
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the weights. Only what has this hash is used: other weights give numbers that compare with nobody's."""
NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""The names by which torch-fidelity and pytorch-fid keep them in torch hub's cache; it is the same file."""

BIASED = 10_000
"""The samples below which FID is told to be biased. Papers take 50,000."""
KID_SUBSET, SPLITS = 1000, 10
"""The images of a subset of KID, and the parts of the inception score, as published."""
FEATURES, LOGITS = 2048, 1008
BATCH = 64
VERSION = 1  # of the features that are kept

Floats = NDArray[np.float32]
OnStep = Callable[[int, int], None]


class Features(NamedTuple):
    """What the network says of images: features, float32 [N 2048], and logits without their bias, float32 [N 1008]."""

    pool: Floats
    logits: Floats


class Statistics(NamedTuple):
    """The mean, float64 [2048], and the covariance, float64 [2048 2048], of the features of a set of images."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def weights(given: Path | None = None) -> bytes:
    """Return the content of the file of weights: the one that is given, or that in torch hub's cache.

    Raises:
        CheckpointError: there is none, or it is another file; the message says how to get it.
    """
    cached = [Path(torch.hub.get_dir(), "checkpoints", name) for name in NAMES]
    path = given or next(filter(Path.is_file, cached), None)
    if path is None:
        raise CheckpointError(
            f"FID and its like need the weights of Inception, 96 MB, which are not in {cached[0].parent}: download "
            f"{URL} and say --weights FILE; without --metrics the distance of diffunet's own features is measured"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the weights {path} cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise CheckpointError(
            f"{path} does not hold the published weights of Inception (sha256 {SHA256[:16]}...), whose numbers alone "
            f"compare with others': get the file from {URL}"
        )
    return content


def _fidelity() -> Any:
    try:
        import torch_fidelity
        import torch_fidelity.feature_extractor_inceptionv3
        import torch_fidelity.metric_isc
        import torch_fidelity.metric_kid
    except ImportError:
        raise UsageError(
            'FID and its like are measured by torch-fidelity, which is not installed: pip install "diffunet[fid]"'
        ) from None
    return torch_fidelity


class Inception:
    """The network with its published weights, and the figures that are measured by it.

    Args:
        metrics: which of `METRICS` are measured.
        path: the file of weights; by default it is looked for in torch hub's cache.
        published: an .npz with `mu` and `sigma` of real images, as of EDM and guided-diffusion, by which FID is
            measured in place of the statistics of the images at hand.
        device: where to compute.

    Raises:
        UsageError: torch-fidelity is not installed, an unknown metric, or `published` without fid.
        CheckpointError: as `weights`.
        DataError: `published` holds other things.
    """

    def __init__(
        self, metrics: Collection[MetricName], path: Path | None, published: Path | None, device: torch.device
    ) -> None:
        if unknown := [metric for metric in metrics if metric not in METRICS]:
            raise UsageError(f"there is no metric {unknown[0]!r}; there are {', '.join(METRICS)}")
        if published is not None and "fid" not in metrics:
            raise UsageError(f"the statistics {published} are for FID, which is not among the metrics")
        self.metrics, self.published = metrics, None if published is None else read_statistics(published)
        self.device, self.source = device, None if published is None else published.name
        net = _fidelity().feature_extractor_inceptionv3.FeatureExtractorInceptionV3
        # It unpickles what it is given, which is harmless: these are bytes whose hash is known.
        found = net("inception-v3-compat", ["2048", "logits_unbiased"], io.BytesIO(weights(path)))
        self.net = found.to(device)

    def refuse(self, num: int) -> None:
        """Raise UsageError where `num` samples are too few for a metric."""
        least = {"is": SPLITS, "prc": neighbours.DENSITY_NEIGHBOUR + 1}
        for metric in self.metrics:
            if num < least.get(metric, 2):
                raise UsageError(f"the metric {metric} takes at least {least.get(metric, 2)} samples, not {num}")

    @torch.no_grad()
    def features(
        self, gather: Callable[[NDArray[np.int64]], Pixels], num: int, background: Colour, on_step: OnStep
    ) -> Features:
        """Return what the network says of `num` images that `gather` returns by their numbers, uint8 [n H W C].

        Grey is grey in three channels, and what is transparent is laid over `background`.
        """
        found = Features(np.empty((num, FEATURES), np.float32), np.empty((num, LOGITS), np.float32))
        for start in range(0, num, BATCH):
            some = np.arange(start, min(start + BATCH, num))
            rgb = np.stack([images.to_array(images.from_array(each), 3, background) for each in gather(some)])
            answers = self.net(torch.from_numpy(rgb).permute(0, 3, 1, 2).contiguous().to(self.device))
            for kept, answer in zip(found, answers, strict=True):
                kept[some] = answer.float().cpu().numpy()
            on_step(int(some[-1]) + 1, num)
        return found

    def figures(self, fakes: Pixels, real: RealImages, on_step: Callable[[str, int, int], None]) -> dict[str, Any]:
        """Return what was asked for of the samples, uint8 [N H W C], by names; see `figures.FIGURES`.

        Args:
            fakes, real: samples, and the images to compare them with, at most `MAX_REAL` of them.
            on_step: called with (what is being done, done, of how many).
        """
        background, total = real.config.data.background, len(fakes)
        made = self.features(lambda some: fakes[some], total, background,
                             lambda done, of: on_step("Inception on samples", done, of))  # fmt: skip
        found: dict[str, Any] = {}
        if "fid" in self.metrics and self.published is not None:
            fid = distances.frechet_of(*statistics(made.pool), *self.published)
            found |= {"fid": fid, "fid_reals": self.source}
        if needed := {"fid", "kid", "prc"} & {*self.metrics} - ({"fid"} if found else set()):
            pool = self.of_reals(real, lambda done, of: on_step("Inception on real images", done, of))
            if "fid" in needed:
                fid = distances.frechet_of(*statistics(made.pool), *statistics(pool))
                found |= {"fid": fid, "fid_reals": len(pool)}
            if "kid" in needed:
                found |= kid(made.pool, pool)
            if "prc" in needed and (manifold := neighbours.manifold(made.pool, pool, self.device)) is not None:
                found |= vars(manifold)
        if "is" in self.metrics:
            mean, error = _fidelity().metric_isc.isc_features_to_metric(torch.from_numpy(made.logits), SPLITS).values()
            found |= {"inception_score": mean, "inception_score_error": error}
        return found

    def of_reals(self, real: RealImages, on_step: OnStep) -> Floats:
        """Return the features of real images, at most `MAX_REAL` of them; they are kept by what the images are."""
        chosen = np.random.Generator(np.random.Philox(key=[0, 5])).permutation(len(real))[:MAX_REAL]
        chosen = np.sort(chosen)  # the same for every seed, so that they are found again
        background = real.config.data.background

        def measure() -> Floats:
            return self.features(lambda some: real.gather(chosen[some]), len(chosen), background, on_step).pool

        return stored.features(real, chosen, f"inception {SHA256} {VERSION}", measure)


def statistics(features: Floats) -> Statistics:
    """Return the mean and covariance of features [N 2048]."""
    return Statistics(features.mean(0, dtype=np.float64), np.cov(features, rowvar=False, dtype=np.float64))


def kid(made: Floats, real: Floats) -> dict[str, Any]:
    """Return the kernel distance of features [N 2048] and [M 2048], over 100 subsets (Binkowski et al. 2018).

    Subsets have 1,000 images, as published, or as many as there are of samples or of real images.
    """
    size = min(KID_SUBSET, len(made), len(real))
    measure = _fidelity().metric_kid.kid_features_to_metric
    both = (torch.from_numpy(each) for each in (made, real))
    mean, error = measure(*both, kid_subset_size=size, verbose=False).values()
    return {"kid": mean, "kid_error": error, "kid_subset": size}


def read_statistics(path: Path) -> Statistics:
    """Return the published statistics of real images in an .npz: `mu` [2048] and `sigma` [2048 2048].

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
    if found.mean.shape != (FEATURES,) or found.covariance.shape != (FEATURES, FEATURES):
        raise DataError(f"{path} has mu {[*found.mean.shape]} and sigma {[*found.covariance.shape]}, and Inception has "
                        f"{FEATURES} features")  # fmt: skip
    if not all(np.isfinite(each).all() for each in found):
        raise DataError(f"{path} has numbers in mu or sigma that are not finite")
    return found
