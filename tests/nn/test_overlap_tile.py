"""Tiles against the whole image at once."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffunet.nn.overlap_tile import mirrored, overlap_tile, tiles
from diffunet.nn.unet2015 import UNet2015, input_size, margin, output_size

pytestmark = pytest.mark.seconds


def net_of(layers):
    torch.manual_seed(layers)
    return UNet2015(2, 3, layers, base_channels=3).double().requires_grad_(False)


@pytest.mark.parametrize(("layers", "size"), [*product((0, 1, 2, 3), [(1, 1), (2, 61), (70, 45)]), (4, (90, 3))])
def test_tiles_are_what_the_whole_image_is(layers, size, device):
    net = net_of(layers)
    x = torch.randn(2, 2, *size).double()
    m = margin(layers)
    whole = np.pad(x.numpy(), ((0, 0), (0, 0), *((m, input_size(n, layers) - m - n) for n in size)), mode="reflect")
    untiled = net(torch.from_numpy(whole))[..., : size[0], : size[1]]
    smallest = input_size(2**layers, layers)
    for tile in (smallest, smallest + 3 * 2**layers):
        torch.testing.assert_close(overlap_tile(net, x, tile), untiled, atol=1e-12, rtol=1e-9)


def test_tiles_elsewhere_would_not_do():
    """Poolings take pixels together by where a tile begins: aligned tiles agree, others do not."""
    net = net_of(2)
    x = mirrored(torch.randn(1, 2, 40, 40).double(), 2)
    whole, size = net(x), input_size(12, 2)
    for first in range(9):
        part = net(x[..., first : first + size, :size])
        close = torch.allclose(part, whole[..., first : first + 12, :12], atol=1e-9)
        assert close == (first % 4 == 0)


@given(height=st.integers(1, 60), width=st.integers(1, 60), layers=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_borders_are_mirrored_again_and_again(height, width, layers):
    x = torch.arange(float(height * width)).view(1, 1, height, width)
    m = margin(layers)
    ends = [(m, input_size(n, layers) - m - n) for n in (height, width)]
    assert np.array_equal(mirrored(x, layers), np.pad(x, ((0, 0), (0, 0), *ends), mode="reflect"))


@given(length=st.integers(1, 2000), layers=st.integers(0, 5), more=st.integers(0, 6))
@settings(deadline=None)
def test_tiles_cover_a_side_once(length, layers, more):
    size = input_size(2**layers, layers) + more * 2**layers
    end = 0
    for tile in tiles(length, size, layers):
        assert tile.first == end
        assert tile.first % 2**layers == 0
        assert tile.size <= size
        assert 0 < tile.used <= output_size(tile.size, layers)
        end += tile.used
    assert end == length


def test_the_papers_tile():
    assert list(tiles(388, 572, 4)) == [(0, 572, 388)]
    assert list(tiles(512, 572, 4)) == [(0, 572, 384), (384, 316, 128)]  # 388 begin at no multiple of 16


def test_what_cannot_work_is_refused():
    x = torch.zeros(1, 2, 30, 30)
    with pytest.raises(ValueError, match="padding"):
        overlap_tile(UNet2015(2, 3, 2, 3, padding="same"), x, 52)
    net = net_of(3)
    with pytest.raises(ValueError, match="without padding: the nearest that can are 92 and 100"):
        overlap_tile(net, x, 95)
    with pytest.raises(ValueError, match="the smallest tiles are of 100"):
        overlap_tile(net, x, 92)
