"""FID, KID, precision and recall, and the inception score, by the network whose numbers papers report.

The network, its way to resize and quantise pictures, and the formulas are torch-fidelity's (extra `fid`), which agrees
with the original in TensorFlow.

Legend: N M images.
"""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffunet.errors import UsageError
from diffunet.evaluation import neighbours
from diffunet.evaluation.networks import Floats, Network, Weights
from diffunet.names import MetricName
from diffunet.pictures.images import Pixels

KID_SUBSET, SPLITS = 1000, 10
"""The images of a subset of KID, and the parts of the inception score, as published."""


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


class Inception(Network):
    """The Inception network, which answers with features, float32 [N 2048], and logits without their bias [N 1008]."""

    NAME = "Inception"
    METRICS = ("fid", "kid", "prc", "is")
    WEIGHTS = Weights(
        "96 MB",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        # torch-fidelity's name and pytorch-fid's; it is the same file.
        ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    )
    FEATURES = 2048

    def _made(self, content: bytes) -> torch.nn.Module:
        net = _fidelity().feature_extractor_inceptionv3.FeatureExtractorInceptionV3
        # It unpickles what it is given, which is harmless: these are bytes whose hash is known.
        made: torch.nn.Module = net("inception-v3-compat", ["2048", "logits_unbiased"], io.BytesIO(content))
        return made

    def _answers(self, rgb: Pixels) -> tuple[Tensor, ...]:
        return tuple(self.net(torch.from_numpy(rgb).permute(0, 3, 1, 2).contiguous().to(self.device)))

    def _least(self, metric: MetricName) -> int:
        return {"is": SPLITS, "prc": neighbours.DENSITY_NEIGHBOUR + 1}.get(metric, 2)

    def _figures(self, made: tuple[Floats, ...], reals: Callable[[], Floats]) -> dict[str, Any]:
        found, (pool, logits) = super()._figures(made, reals), made
        if "kid" in self.metrics:
            found |= kid(pool, reals())
        if "prc" in self.metrics and (manifold := neighbours.manifold(pool, reals(), self.device)) is not None:
            found |= vars(manifold)
        if "is" in self.metrics:
            mean, error = _fidelity().metric_isc.isc_features_to_metric(torch.from_numpy(logits), SPLITS).values()
            found |= {"inception_score": mean, "inception_score_error": error}
        return found


def kid(made: Floats, real: Floats) -> dict[str, Any]:
    """Return the kernel distance of features [N 2048] and [M 2048], over 100 subsets (Binkowski et al. 2018).

    Subsets have 1,000 images, as published, or as many as there are of samples or of real images.
    """
    size = min(KID_SUBSET, len(made), len(real))
    measure = _fidelity().metric_kid.kid_features_to_metric
    both = (torch.from_numpy(each) for each in (made, real))
    mean, error = measure(*both, kid_subset_size=size, verbose=False).values()
    return {"kid": mean, "kid_error": error, "kid_subset": size}
