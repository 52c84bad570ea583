"""Guidance and clipping, by their formulas and on real calls."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffunet.config import DataConfig
from diffunet.diffusion.denoiser import Denoised, Denoiser, V
from diffunet.diffusion.guidance import Pair, WithAndWithoutLabel, guided, threshold
from diffunet.diffusion.schedules import FlowSchedule
from diffunet.training.batches import Batches, Share


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Constant:
    """A denoiser that says one thing, and counts."""

    def __init__(self, x0, var=None):
        self.said, self.calls = Denoised(x0, var), 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.said


class Labelled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, c_noise, label=None, augment=None):
        told = c_noise / 1000 if label is None else c_noise / 1000 + label
        return self.conv(x) * told[:, None, None, None]


X, SIGMA = torch.zeros(2, 3, 4, 4, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)


def test_guidance_goes_on_from_the_weaker_through_the_better():
    main, weaker = Constant(images(2, 3, 4, 4), images(2, 3, 4, 4, seed=2)), Constant(images(2, 3, 4, 4, seed=1))
    for scale in (0.0, 0.5, 3.0, -1.0):
        denoised = guided(Pair(main, weaker), scale)(X, SIGMA)
        assert torch.allclose(denoised.x0, weaker.said.x0 + scale * (main.said.x0 - weaker.said.x0))
        assert denoised.var is main.said.var
    plain = guided(lambda x, sigma: (Denoised(x + 2), Denoised(x + 1)), 2.0)  # a pair may be a plain function
    assert torch.equal(plain(X, SIGMA).x0, X + 3)


def test_scale_one_and_outside_the_interval_the_better_one_runs_alone():
    main, weaker = Constant(X + 2), Constant(X + 1)
    assert torch.equal(guided(Pair(main, weaker), 1.0, rescale=0.7)(X, SIGMA).x0, X + 2)
    assert weaker.calls == 0
    guide = guided(Pair(main, weaker), 3.0, interval=(0.5, 2.0))
    for sigma, inside in ((0.1, False), (0.5, False), (0.5000001, True), (2.0, True), (2.0000001, False)):
        main.calls = weaker.calls = 0
        x0 = guide(X, torch.tensor(sigma, dtype=torch.float64)).x0
        assert torch.equal(x0, X + (4 if inside else 2))
        assert (main.calls, weaker.calls) == (1, int(inside))


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescale_moves_the_deviation_of_each_image_towards_the_better_ones(rescale):
    """Lin et al. 2023, eq. 15 and 16: a geometric answer, phi x (std ratio) + (1 - phi) 1, image by image."""
    better, weaker = images(3, 3, 8, 8), 0.3 * images(3, 3, 8, 8, seed=1)
    x0 = guided(Pair(Constant(better), Constant(weaker)), 5.0, rescale=rescale)(X, SIGMA).x0.numpy()
    strong = (weaker + 5 * (better - weaker)).numpy()
    for ours, free, main in zip(x0, strong, better.numpy(), strict=True):
        assert ours.std() == pytest.approx(rescale * main.std() + (1 - rescale) * free.std())
        assert np.allclose(ours / ours.std(), free / free.std())


def test_rescaling_an_even_image_leaves_it():
    """Its deviation is 0: nothing to divide by."""
    even = guided(Pair(Constant(X + 2), Constant(X + 1)), 3.0, rescale=0.7)(X, SIGMA).x0
    assert torch.allclose(even, X + 4)


@pytest.mark.parametrize("sigma", [torch.tensor(0.7, dtype=torch.float64), torch.tensor([0.7, 3.0])])
def test_one_forward_of_both_is_two_forwards(sigma):
    denoiser = Denoiser(Labelled(), V(), FlowSchedule())
    x, label = images(2, 3, 4, 4).float(), torch.tensor([0, 1])
    main, weaker = WithAndWithoutLabel(denoiser, label, 2)(x, sigma)
    assert torch.allclose(main.x0, denoiser(x, sigma, label).x0, atol=1e-6)
    assert torch.allclose(weaker.x0, denoiser(x, sigma, torch.tensor([2, 2])).x0, atol=1e-6)
    assert main.var is None


def test_labels_are_dropped_image_by_image():
    """Independently of neighbours in a batch, of the step before, and at the rate that was asked for."""

    class OnlyLabels(Batches):
        def gather(self, indices, where, read):
            return np.zeros((len(indices), 1, 1, 1), np.uint8)

    dataset = SimpleNamespace(labels=lambda names: np.arange(50) % len(names))
    data = DataConfig(class_names=("a", "b", "c"))
    batches = OnlyLabels(dataset, np.arange(50), FlowSchedule(), Share(0, 40), data, label_dropout=0.3)
    dropped = np.array([(batches.step(step)[0].label == 3).numpy() for step in range(150)], float)  # [150 40]
    allowed = 4 / np.sqrt(dropped.size)  # four standard errors of a correlation
    assert abs(dropped.mean() - 0.3) < allowed
    assert abs(np.corrcoef(dropped[:, 1:].ravel(), dropped[:, :-1].ravel())[0, 1]) < allowed
    assert abs(np.corrcoef(dropped[1:].ravel(), dropped[:-1].ravel())[0, 1]) < allowed
    assert dropped.mean(axis=1).std() == pytest.approx(np.sqrt(0.3 * 0.7 / 40), rel=0.2)


def test_static_threshold_clips():
    x0, var = 2 * images(2, 3, 5, 7), images(2, 3, 5, 7, seed=1)
    clipped = threshold(Constant(x0, var), "static")(X, SIGMA)
    assert np.array_equal(clipped.x0.numpy(), np.clip(x0.numpy(), -1, 1))
    assert clipped.var is var


@pytest.mark.parametrize("percentile", [0.0, 0.5, 0.9, 0.995, 1.0])
def test_dynamic_threshold_clips_to_a_percentile_of_each_image_and_scales(percentile):
    """The percentile is the least of the values that this share of them does not exceed (numpy: inverted_cdf)."""
    x0 = images(3, 2, 7, 9) * torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64)[:, None, None, None]
    ours = threshold(Constant(x0), "dynamic", percentile)(X, SIGMA).x0.numpy()
    for one, image in zip(ours, x0.numpy(), strict=True):
        s = max(1.0, np.quantile(np.abs(image), percentile, method="inverted_cdf"))
        assert np.allclose(one, np.clip(image, -s, s) / s)
    assert np.array_equal(ours[0], x0[0].numpy())  # within the range nothing changes
    assert np.abs(ours).max() <= 1


def test_an_image_is_thresholded_by_itself_whatever_its_size():
    x0 = 3 * images(2, 3, 4, 4).float()
    both = threshold(Constant(x0), "dynamic")(X, SIGMA).x0
    assert both.dtype == torch.float32
    assert torch.equal(both[:1], threshold(Constant(x0[:1]), "dynamic")(X, SIGMA).x0)
    large = torch.full((1, 1, 4097, 4097), 2.0)  # torch.quantile refuses more than 2^24 values
    assert torch.equal(threshold(Constant(large), "dynamic")(X, SIGMA).x0, large / 2)
    with pytest.raises(ValueError, match="unknown threshold 'hard'; there are static and dynamic"):
        threshold(Constant(x0), "hard")
