"""Published figures against torch-fidelity's command line, with random weights in the published layout.

What these weights say is no number of any paper; that the same pixels reach the same network and formulas is what is
shown.
"""

import hashlib
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import inception_v3

from diffunet.config import Config
from diffunet.evaluation import reference
from diffunet.evaluation.features import train_classifier
from diffunet.evaluation.inception import Inception, kid
from diffunet.evaluation.neighbours import manifold
from diffunet.evaluation.networks import Published
from diffunet.evaluation.reals import RealImages
from diffunet.evaluation.report import evaluate_samples

pytest.importorskip("torch_fidelity")

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory):
    """Random weights under the names and in the shapes of the published ones, of which none fades or grows."""
    net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    for value in net.state_dict().values():
        if value.ndim > 1:
            value.normal_(generator=generator).mul_((2 / value[0].numel()) ** 0.5)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def weights(weights_file, monkeypatch):
    """The same, with their hash in the place of the published one."""
    known = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    monkeypatch.setattr(Inception, "WEIGHTS", Inception.WEIGHTS._replace(sha256=known))
    return weights_file


def pictures(folder, num, seed, size=20, bright=255):
    generator = np.random.default_rng(seed)
    folder.mkdir()
    for n in range(num):
        small = generator.integers(0, bright, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{n:03}.png")
    return folder


def no_step(*args):
    pass


@pytest.mark.slow
def test_the_figures_are_those_of_the_command_line_of_torch_fidelity(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "train_classifier", partial(train_classifier, steps=3))
    made, real = pictures(tmp_path / "made", 12, 0), pictures(tmp_path / "real", 40, 1, bright=200)
    words = ["--input1", made, "--input2", real, "--fid", "--kid", "--isc", "--prc", "--kid-subset-size", 12, "--cpu"]
    words += ["--feature-extractor-weights-path", weights, "--no-cache", "--json", "--silent", "--save-cpu-ram"]
    words += ["--feature-extractor", "inception-v3-compat"]  # for prc, too, as guided-diffusion; theirs is a VGG16
    command = [sys.executable, "-m", "torch_fidelity.fidelity", *map(str, words)]
    theirs = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ours = evaluate_samples(made, real, published=Published(Inception.METRICS, (weights,))).figures()
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["fid"] > 1
    for name, other in (
        ("kid", "kernel_inception_distance_mean"), ("kid_error", "kernel_inception_distance_std"),
        ("inception_score", "inception_score_mean"), ("inception_score_error", "inception_score_std"),
    ):  # fmt: skip
        assert ours[name] == pytest.approx(theirs[other], rel=1e-4)
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert (ours["fid_reals"], ours["samples"], ours["kid_subset"]) == (40, 12, 12)


@pytest.mark.slow
def test_features_of_reals_are_kept_by_what_the_images_are(weights, tmp_path, monkeypatch):
    folder = pictures(tmp_path / "real", 6, 0)
    config = Config().changed("data", image_size=20)
    (net,) = Published(("fid",), (weights,)).load([Inception], CPU)
    first = net.of_reals(RealImages(config, folder), no_step)
    moved = folder.rename(tmp_path / "elsewhere")
    calls = []
    monkeypatch.setattr(net, "features", lambda *args: calls.append(args) or pytest.fail("they were kept"))
    assert np.array_equal(net.of_reals(RealImages(config, moved), no_step), first)
    monkeypatch.undo()
    Image.new("RGB", (20, 20)).save(moved / "000.png")
    changed = net.of_reals(RealImages(config, moved), no_step)
    assert not np.array_equal(changed[0], first[0])
    assert np.allclose(changed[1:], first[1:], atol=1e-5)


def test_kid_and_precision_and_recall_are_those_of_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    generator = np.random.default_rng(0)
    made, real = (generator.normal(m, size=(n, 2048)).astype(np.float32) for m, n in ((0.02, 50), (0, 70)))
    theirs = kid_features_to_metric(torch.from_numpy(made), torch.from_numpy(real), kid_subset_size=50, verbose=False)
    assert list(kid(made, real).values()) == [*theirs.values(), 50]
    made, real = (generator.normal(size=(n, 8)).astype(np.float32) for n in (200, 300))
    found = manifold(0.7 * made, real)
    theirs = calculate_precision_recall_full(torch.from_numpy(0.7 * made), torch.from_numpy(real))
    assert (found.precision, found.recall) == pytest.approx(theirs)
    assert found.precision > found.recall
