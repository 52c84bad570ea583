"""Pictures by the device: every sampler and every way to fill in, guidance, and judging them."""

import numpy as np
import pytest
import torch
from PIL import Image

import diffunet
from diffunet import build
from diffunet.commands.info import describe
from diffunet.evaluation.report import evaluate
from diffunet.inpainting import methods

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def pipe(device, trained):
    """Of a model that generates, by class."""
    return diffunet.load(trained("plain"), device)


@pytest.fixture(scope="module")
def learned(device, trained):
    """Of a model that has learned the variance of its steps."""
    return diffunet.load(trained("variance"), device)


@pytest.fixture(scope="module")
def inpainter(device, trained):
    """Of a model that has learned to fill in."""
    return diffunet.load(trained("inpaint"), device)


def pixels(pictures):
    """uint8 [n H W C], as int."""
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def test_a_seed_is_the_same_picture_as_on_the_cpu(device, trained):
    pictures = [diffunet.load(trained("plain"), name, torch.float32).sample(8, seed=3) for name in ("cpu", device)]
    here, there = map(pixels, pictures)
    assert here.std() > 5
    assert abs(here - there).max() <= 4  # of 255: a GPU multiplies float32 with the digits of TF32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bf16", "fp16"])
def test_precisions_give_nearly_the_same_pictures(device, trained, dtype):
    pictures = [diffunet.load(trained("plain"), device, each).sample(8) for each in (torch.float32, dtype)]
    whole, low = map(pixels, pictures)
    assert abs(whole - low).mean() < 4  # of 255


@pytest.mark.parametrize("sampler", build.SAMPLERS)
def test_every_sampler(pipe, learned, sampler):
    by = learned if sampler == "ddpm-learned" else pipe
    two, one = (
        by.sample(2, sampler=sampler, steps=3, batch_size=2),
        by.sample(2, sampler=sampler, steps=3, batch_size=1),
    )
    assert pixels(two).shape == (2, 8, 8, 3)
    assert abs(pixels(two) - pixels(one)).mean() < 4  # whatever the batch


@pytest.mark.parametrize("fit", ["crop", "tile", "native"])
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_way_to_fill_in(pipe, inpainter, method, fit):
    by = inpainter if method == "trained" else pipe
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8))
    mask = np.zeros((20, 28), bool)
    mask[4:14, 6:22] = True
    [filled] = by.inpaint(image, mask, method=method, fit=fit, steps=3)
    before, after = np.asarray(image), np.asarray(filled)
    assert np.array_equal(before[~mask], after[~mask])
    assert not np.array_equal(before[mask], after[mask])


def test_guidance(pipe, learned):
    options = {"num": 4, "labels": "disc", "sampler": "euler", "steps": 3}
    plain = pixels(pipe.sample(**options))
    weaker = diffunet.Guidance(2.0, weaker=learned)
    for guidance in (2.0, diffunet.Guidance(3.0, interval=(0.2, 50.0), rescale=0.7), weaker):
        guided = pixels(pipe.sample(**options, guidance=guidance, threshold="dynamic"))
        assert guided.shape == plain.shape
        assert not np.array_equal(guided, plain)


@pytest.mark.parametrize("likelihood", ["ode", "vlb"])
def test_evaluate(pipe, learned, folder, likelihood):
    by = learned if likelihood == "vlb" else pipe
    report = evaluate(by, folder, num=8, steps=2, likelihood=likelihood, likelihood_num=2, likelihood_steps=4)
    assert report.distance > 0
    assert report.likelihood is not None
    assert len(report.lines()) > 5


def test_info_measures(device):
    said = "\n".join(describe("digits", device_name=device))
    assert "training: " in said
    assert "sampling: " in said
