"""The held-out loss by noise level, against a distribution whose best denoiser is known."""

import math

import pytest
import torch
from torch import nn

from diffunet.diffusion.denoiser import Denoised
from diffunet.evaluation.denoising import SIGMAS, DenoisingError, denoising_error


class Linear(nn.Module):
    """The best denoiser of normal pixels of deviation sd, but for a factor."""

    def __init__(self, sd, factor=1.0):
        super().__init__()
        self.sd, self.factor, self.seen = sd, factor, []

    def forward(self, x, sigma, label=None, concat=None, augment=None):
        self.seen.append((len(x), label))
        s = sigma[:, None, None, None]
        return Denoised(self.factor * x * self.sd**2 / (self.sd**2 + s**2))


def test_the_best_denoiser_of_normal_pixels_has_loss_0():
    x0 = 0.3 * torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = denoising_error(Linear(0.3), x0)
    assert found.errors == pytest.approx([1.0] * len(SIGMAS), rel=0.05)
    assert found.loss == pytest.approx(0, abs=0.01)
    # The error of a denoiser that is off by a factor f: (1 - f)^2 E[D^2] more, and E[D^2] = sd^4 / (sd^2 + sigma^2).
    worse = denoising_error(Linear(0.3, 0.5), x0)
    wanted = [1 + 0.25 * 0.09 / sigma**2 for sigma in SIGMAS]
    assert worse.errors == pytest.approx(wanted, rel=0.05)
    assert worse.loss == pytest.approx(sum(map(math.log, wanted)) / len(wanted), abs=0.02)


def test_of_images_of_one_colour_and_of_a_net_without_fault_there_is_a_loss_that_is_not_finite():
    assert denoising_error(Linear(1.0), torch.ones(2, 1, 4, 4)).loss == math.inf
    assert DenoisingError((1.0, 2.0), (0.0, 1.0), 2).loss == -math.inf


def test_it_does_not_depend_on_how_many_images_go_through_at_once_and_labels_go_with_them():
    x0, label = torch.randn(10, 1, 8, 8), torch.arange(10)
    one, all_ = Linear(1.0), Linear(1.0)
    parts = denoising_error(one, x0, label, at_once=3, seed=4)
    assert parts.errors == pytest.approx(denoising_error(all_, x0, label, seed=4).errors)
    assert [labels.tolist() for _, labels in one.seen[:4]] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert parts.errors != denoising_error(one, x0, label, seed=5).errors
