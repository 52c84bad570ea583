"""Windows blended inside D, against a loop over windows and pixels, and against the whole image at once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from diffunet.diffusion.denoiser import Denoised, Denoiser, V, bind, condition
from diffunet.diffusion.known_pixels import mmps
from diffunet.diffusion.schedules import FlowSchedule
from diffunet.diffusion.tiling import AT_ONCE, Tiled, starts, windows

SIZE = 8


class Net(torch.nn.Module):
    """A convolution that is told all that a net can be; `widest` is the largest of the batches that it has seen."""

    def __init__(self, radius, channels=2, told=0, augment=0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        width = 2 * radius + 1
        self.weight = torch.randn(2 * channels, channels + told, width, width, generator=generator) / width
        self.label = torch.randn(5, generator=generator)
        self.augment = torch.randn(augment, generator=generator)
        self.radius, self.widest, self.calls = radius, 0, 0

    def forward(self, x, c_noise, label=None, augment=None):
        self.widest, self.calls = max(self.widest, len(x)), self.calls + 1
        shift = c_noise / 1000
        if label is not None:
            shift = shift + self.label[label]
        if augment is not None:
            shift = shift + augment @ self.augment
        return torch.tanh(
            torch.nn.functional.conv2d(x, self.weight, padding=self.radius) + shift.float()[:, None, None, None]
        )


def denoiser(radius=1, **options):
    return Denoiser(Net(radius, **options), V(), FlowSchedule(), learned_variance=True)


def everywhere(height, width):
    return torch.ones(height, width, dtype=torch.bool)


def images(n, height, width, channels=2, seed=0):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


SIGMA = torch.tensor([0.3, 2.0, 7.0])


def looped(denoise, size, windows, x):
    """Every pixel the mean of what the windows say of it, by weights sin^2 of where in the window it is."""
    sums, total = torch.zeros_like(x), torch.zeros(x.shape[2:])
    for top, left in windows:
        said = denoise(x[:, :, top : top + size, left : left + size], top, left)
        for i in range(size):
            for j in range(size):
                weight = math.sin(math.pi * (i + 0.5) / size) ** 2 * math.sin(math.pi * (j + 0.5) / size) ** 2
                one = torch.zeros_like(sums)
                one[:, :, top + i, left + j] = weight * said[:, :, i, j]
                sums, total[top + i, left + j] = sums + one, total[top + i, left + j] + weight
    return torch.where(total > 0, sums / total.clamp(min=1e-30), x)


class Ones:
    """Says 1 of everything."""

    net = None

    def __call__(self, x, *conditions):
        return Denoised(torch.ones_like(x))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_windows_begin_evenly_and_reach_both_ends(data):
    size = data.draw(st.integers(1, 64))
    length, stride = size + data.draw(st.integers(0, 300)), data.draw(st.integers(1, size))
    first = starts(length, size, stride)
    assert first[0] == 0
    assert first[-1] == length - size
    gaps = np.diff(first)
    assert ((gaps >= 1) & (gaps <= stride)).all()
    assert len(gaps) == math.ceil((length - size) / stride)  # no more than it takes
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_windows_are_those_of_their_definition_in_its_order(data):
    size = data.draw(st.integers(1, 12))
    height, width = size + data.draw(st.integers(0, 30)), size + data.draw(st.integers(0, 30))
    share, stride = data.draw(st.sampled_from([0.0, 0.003, 0.05, 1.0])), data.draw(st.none() | st.integers(1, size))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    wanted = torch.rand(height, width, generator=generator) < share
    if data.draw(st.booleans()):  # as a mask that was cut out or turned may lie in memory
        wanted = wanted.T.contiguous().T
    step = stride or max(1, size // 2)
    expected = [
        (top, left)
        for top in starts(height, size, step)
        for left in starts(width, size, step)
        if wanted[top : top + size, left : left + size].any()
    ]
    assert windows(wanted, size, stride) == expected


class Counting(TorchDispatchMode):
    """Counts the operations of torch."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_the_device_is_asked_for_the_mask_once_and_not_about_windows():
    wanted = everywhere(100, 120)
    with Counting() as counting:
        assert len(windows(wanted, SIZE)) == 24 * 29
    assert counting.operations <= 1  # the copy to the CPU, of which there is none here


@settings(max_examples=50, deadline=None)
@given(st.integers(SIZE, 30), st.integers(SIZE, 30), st.integers(0, 1000), st.sampled_from([None, 1, 3, SIZE]))
def test_windows_are_those_that_are_wanted_and_what_they_say_has_weight_one(height, width, seed, stride):
    wanted = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.01
    tiled = Tiled(Ones(), SIZE, wanted, stride)
    x = 7 + images(1, height, width)
    said = tiled(x, torch.tensor(1.0)).x0[0, 0]
    assert torch.allclose(said[wanted], torch.ones(wanted.sum()))
    covered = torch.zeros_like(wanted)
    for top, left in tiled.windows:
        assert wanted[top : top + SIZE, left : left + SIZE].any()
        covered[top : top + SIZE, left : left + SIZE] = True
    assert torch.allclose(said, torch.where(covered, 1.0, x[0, 0]))


SHAPES = [(8, 8), (8, 9), (9, 8), (12, 20), (13, 27), (24, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_looks_at_single_pixels_is_the_same_tiled(shape):
    plain, x = denoiser(radius=0), images(3, *shape)
    for sigma in (SIGMA, torch.tensor(2.0, dtype=torch.float64)):
        ours, whole = Tiled(plain, SIZE, everywhere(*shape))(x, sigma), plain(x, sigma)
        assert torch.allclose(ours.x0, whole.x0, atol=1e-5)
        assert torch.allclose(ours.var, whole.var, atol=1e-6)
        assert ours.x0.dtype == torch.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_the_blend_is_that_of_a_loop(shape):
    plain, x = denoiser(), images(3, *shape)
    tiled = Tiled(plain, SIZE, everywhere(*shape))
    for part in ("x0", "var"):
        theirs = looped(lambda crop, *_, part=part: getattr(plain(crop, SIGMA), part), SIZE, tiled.windows, x)
        assert torch.allclose(getattr(tiled(x, SIGMA), part), theirs, atol=1e-5)
    if shape == (SIZE, SIZE):
        assert torch.allclose(tiled(x, SIGMA).x0, plain(x, SIGMA).x0, atol=1e-6)


def test_away_from_the_edges_of_windows_it_is_the_whole_image():
    """Where every window that covers a pixel has all that the net looks at."""
    plain, x = denoiser(), images(1, 20, 24)
    tiled = Tiled(plain, SIZE, everywhere(20, 24), stride=6)
    inside, covering = torch.zeros(20, 24), torch.zeros(20, 24)
    for top, left in tiled.windows:
        rows = slice(top + (top > 0), top + SIZE - (top + SIZE < 20))
        columns = slice(left + (left > 0), left + SIZE - (left + SIZE < 24))
        inside[rows, columns] += 1
        covering[top : top + SIZE, left : left + SIZE] += 1
    sure = inside == covering
    assert sure.float().mean() > 0.3
    ours, whole = tiled(x, SIGMA[:1]).x0, plain(x, SIGMA[:1]).x0
    assert torch.allclose(ours[..., sure], whole[..., sure], atol=1e-5)
    assert not torch.allclose(ours, whole, atol=1e-2)


@pytest.mark.parametrize("at_once", [1, 4, 6, AT_ONCE])
def test_each_image_keeps_its_own_conditions(at_once):
    """Label, sigma, augmentation and what a net that inpaints is told go with the image, in each of its windows."""
    plain, x = denoiser(told=3, augment=4), images(3, 15, 21)
    label = torch.tensor([4, 0, 2])
    concat = condition(images(3, 15, 21, seed=1), images(3, 15, 21, 1, seed=2) > 0)
    augment = images(3, 1, 4, 1, seed=3).flatten(1)
    tiled = Tiled(plain, SIZE, everywhere(15, 21), at_once=at_once)
    together = tiled(x, SIGMA, label, concat, augment).x0
    assert plain.net.widest == max(3, at_once // 3 * 3)
    for i in range(3):
        one = slice(i, i + 1)
        alone = tiled(x[one], SIGMA[one], label[one], concat[one], augment[one]).x0
        assert torch.allclose(together[one], alone, atol=1e-5)

        def windowed(crop, top, left, one=one):
            told = concat[one, :, top : top + SIZE, left : left + SIZE]
            return plain(crop, SIGMA[one], label[one], told, augment[one]).x0

        assert torch.allclose(together[one], looped(windowed, SIZE, tiled.windows, x[one]), atol=1e-5)
    bound = bind(tiled, label, concat)(x, SIGMA).x0
    assert torch.equal(bound, tiled(x, SIGMA, label, concat).x0)
    assert not torch.allclose(bound, together)


def test_more_windows_than_at_once():
    plain, x = denoiser(), images(2, 40, 44)
    tiled = Tiled(plain, SIZE, everywhere(40, 44))
    assert len(tiled.windows) == 9 * 10
    ours = tiled(x, SIGMA[:2]).x0
    assert plain.net.widest == AT_ONCE
    assert torch.allclose(ours, looped(lambda crop, *_: plain(crop, SIGMA[:2]).x0, SIZE, tiled.windows, x), atol=1e-5)


def test_x_comes_back_where_no_window_is():
    wanted = torch.zeros(20, 40, dtype=torch.bool)
    plain, x = denoiser(), images(2, 20, 40)
    assert torch.equal(Tiled(plain, SIZE, wanted)(x, SIGMA[:2]).x0, x)
    assert plain.net.widest == 0
    wanted[2, 3] = wanted[18, 30] = True
    tiled = Tiled(plain, SIZE, wanted)
    ours = tiled(x, SIGMA[:2]).x0
    assert torch.equal(ours[..., 15:21], x[..., 15:21])
    assert torch.allclose(ours, looped(lambda crop, *_: plain(crop, SIGMA[:2]).x0, SIZE, tiled.windows, x), atol=1e-5)


def test_gradients_are_those_of_a_loop():
    """Windows are computed again on the way back, each time where the graph is kept."""
    plain, x = denoiser(), images(2, 13, 18).requires_grad_()
    tiled, along = Tiled(plain, SIZE, everywhere(13, 18)), images(2, 13, 18, seed=1)
    theirs = looped(lambda crop, *_: plain(crop, SIGMA[:2]).x0, SIZE, tiled.windows, x)
    (expected,) = torch.autograd.grad(theirs, x, along)
    plain.net.calls = 0
    ours = tiled(x, SIGMA[:2]).x0
    once = plain.net.calls
    for i in range(3):
        (slope,) = torch.autograd.grad(ours, x, along, retain_graph=i < 2)
        assert torch.allclose(slope, expected, atol=1e-5)
    assert plain.net.calls == 4 * once


@pytest.mark.parametrize("iterations", [1, 3])
def test_mmps_asks_windows_as_it_asks_a_whole_image(iterations):
    plain, x, known = denoiser(), images(2, 13, 18), images(2, 13, 18, seed=1)
    keep = everywhere(13, 18)
    keep[4:9, 5:15] = False
    tiled = Tiled(plain, SIZE, ~keep)

    def theirs(x, sigma):
        return Denoised(looped(lambda crop, *_: plain(crop, sigma).x0, SIZE, tiled.windows, x))

    with torch.no_grad():
        ours, loop = (mmps(each, known, keep, iterations)(x, SIGMA[:2]).x0 for each in (bind(tiled), theirs))
    assert torch.allclose(ours, loop, atol=1e-4)
