"""Files of published weights and statistics find their network, or are refused in words."""

import hashlib

import numpy as np
import pytest
import torch

from diffunet.config import Config
from diffunet.errors import CheckpointError, DataError, UsageError
from diffunet.evaluation import distances
from diffunet.evaluation.dinov2 import Dinov2
from diffunet.evaluation.inception import Inception
from diffunet.evaluation.networks import Published, Weights, read_statistics, statistics
from diffunet.evaluation.report import NETWORKS
from diffunet.names import METRICS

CPU = torch.device("cpu")


class Sums(Inception):
    """A network whose weights are words, and whose features are sums over a picture's rows of four pixels."""

    NAME, METRICS, FEATURES = "Sums", ("fid",), 4
    WEIGHTS = Weights("6 bytes", "https://example.org/sums", hashlib.sha256(b"weights").hexdigest(), ("sums.pth",))

    def _made(self, content):
        assert content == b"weights"
        return torch.nn.Identity()

    def _answers(self, rgb):
        return (torch.from_numpy(rgb).float().sum((2, 3)), torch.zeros(len(rgb)))


def load(*kinds, metrics=("fid",), weights=(), reals=()):
    return Published(metrics, weights, reals).load(kinds or NETWORKS, CPU)


def saved(path, **content):
    np.savez(path, **content)
    return path


def test_every_metric_has_a_network():
    assert [metric for network in NETWORKS for metric in network.METRICS] == [*METRICS]
    assert len({network.FEATURES for network in NETWORKS}) == len(NETWORKS)  # which tells statistics apart
    assert load(metrics=()) == []


def test_a_file_of_weights_finds_its_network_by_its_hash(tmp_path, monkeypatch):
    class Others(Sums):
        NAME, METRICS = "Others", ("fd-dinov2",)
        WEIGHTS = Sums.WEIGHTS._replace(sha256=hashlib.sha256(b"others").hexdigest())

        def _made(self, content):
            assert content == b"others"
            return torch.nn.Identity()

    files = []
    for name in ("others", "weights"):
        (tmp_path / name).write_text(name)
        files.append(tmp_path / name)
    both = load(Sums, Others, metrics=("fd-dinov2", "fid"), weights=tuple(files))
    assert [type(each) for each in both] == [Sums, Others]
    with pytest.raises(UsageError, match="others has the weights of Others, of which no metric is asked for"):
        load(Sums, Others, weights=tuple(files))


def test_other_weights_and_none_are_refused_with_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for network in NETWORKS:
        metrics = network.METRICS[:1]
        with pytest.raises(CheckpointError, match=f"download {network.WEIGHTS.url} and say --weights FILE"):
            load(metrics=metrics)
        cached = tmp_path / "hub" / "checkpoints" / network.WEIGHTS.names[0]
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(b"others")
        with pytest.raises(CheckpointError, match=f"does not hold the published weights of {network.NAME}"):
            load(metrics=metrics)
        with pytest.raises(CheckpointError, match=f"does not hold published weights.*from {network.WEIGHTS.url}"):
            load(metrics=metrics, weights=(cached,))
        with pytest.raises(CheckpointError, match="cannot be read: No such file"):
            load(metrics=metrics, weights=(tmp_path / "nothing",))
    (cached.parent / "sums.pth").write_bytes(b"weights")
    assert isinstance(load(Sums)[0], Sums)


def test_what_cannot_be_asked_is_refused_before_weights_are_read(tmp_path):
    inception = saved(tmp_path / "2048.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    dinov2 = saved(tmp_path / "1024.npz", mu=np.zeros(1024), sigma=np.eye(1024))
    for metrics, reals, why in (
        (("fid", "sfid"), (), "no metric 'sfid'; there are fid, kid, prc, is, fd-dinov2"),
        (("kid",), (inception,), "2048.npz has statistics of Inception's features, for fid, which is not among"),
        (("fid",), (dinov2,), "1024.npz has statistics of DINOv2's features, for fd-dinov2, which is not among"),
        ((), (inception,), "none is asked for"),
    ):
        with pytest.raises(UsageError, match=why):
            load(metrics=metrics, reals=reals)


def test_statistics_that_are_given_are_those_that_are_compared_with(tmp_path, monkeypatch):
    """The distance of normals with equal covariances is that of their means."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 4, 5, 3), dtype=np.uint8)
    features = pixels.astype(np.float32).sum((2, 3))
    mean, covariance = statistics(features)
    assert np.allclose(mean, features.astype(np.float64).mean(0))
    assert np.allclose(covariance, np.cov(features, rowvar=False))
    path = saved(tmp_path / "reals.npz", mu=mean + 3, sigma=covariance)
    assert distances.frechet_of(mean, covariance, *read_statistics(path)) == pytest.approx(4 * 9)
    (tmp_path / "weights").write_text("weights")
    (network,) = load(Sums, weights=(tmp_path / "weights",), reals=(path,))
    found = network._figures((features, features), lambda: pytest.fail("the statistics were given"))
    assert found == {"fid": pytest.approx(4 * 9), "fid_reals": "reals.npz"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"mu": np.zeros(2048)}, "no .npz with mu and sigma"),
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, r"64 features; Inception has 2,048 and DINOv2 has 1,024"),
        ({"mu": np.zeros(64), "sigma": np.eye(32)}, r"mu \[64\] and sigma \[32, 32\], and not D and D x D"),
        ({"mu": np.full(2048, np.nan), "sigma": np.eye(2048)}, "not finite"),
        ({"mu": np.array([{}], object), "sigma": np.eye(2)}, "no .npz with mu and sigma"),
        (b"words", "no .npz with mu and sigma"),
        (None, "cannot be read: No such file"),
    ],
)
def test_statistics_that_are_none_are_refused(content, why, tmp_path):
    path = tmp_path / "reals.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(DataError, match=why):
        load(reals=(path,))


def test_real_images_are_looked_at_once(tmp_path, monkeypatch):
    (tmp_path / "weights").write_text("weights")
    (network,) = load(Sums, weights=(tmp_path / "weights",))
    asked, some = [], np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)

    class Real:
        config = Config()

    def of_reals(real, on_step):
        asked.append(real)
        return some.astype(np.float32).sum((2, 3))

    def figures(made, reals):
        return {"first": reals(), "second": reals()}

    monkeypatch.setattr(network, "of_reals", of_reals)
    monkeypatch.setattr(network, "_figures", figures)
    network.figures(some, Real(), lambda *step: None)
    assert len(asked) == 1


def test_too_few_samples_are_refused(tmp_path):
    (tmp_path / "weights").write_text("weights")
    (network,) = load(Sums, weights=(tmp_path / "weights",))
    network.refuse(2)
    with pytest.raises(UsageError, match="the metric fid takes at least 2 samples, not 1"):
        network.refuse(1)


def test_the_least_samples_of_inception_s_metrics():
    assert [Inception._least(None, metric) for metric in Inception.METRICS] == [2, 2, 6, 10]
    assert Dinov2._least(None, "fd-dinov2") == 2
