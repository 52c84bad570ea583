"""Images of any size by a U-Net without padding: the overlap-tile strategy (Ronneberger et al. 2015, figure 2).

Legend: B batch, C channels, H W height and width, L number of poolings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffunet.nn.unet2015 import UNet2015, input_size, margin, output_size


class Tile(NamedTuple):
    """One side of a tile: its answer begins at pixel `first` of the image's, its input has `size` pixels, and of its
    answer the first `used` are taken."""

    first: int
    size: int
    used: int


def overlap_tile(net: UNet2015, x: Tensor, size: int) -> Tensor:
    """What `net` says of every pixel of an image, tile by tile, borders mirrored.

    Up to rounding it is what `net` says of the whole image, `mirrored`: tiles begin at multiples of 2^L, so that each
    pooling takes the same pixels together, and nothing in an answer depends on what is outside its tile. Activations
    take the memory of one tile.

    Args:
        net: without padding, called as `net(tile)`.
        x: [B C H W], any size from 1x1 up.
        size: height and width of a tile's input, at most; where less is left of the image they are smaller.

    Returns:
        [B C' H W].

    Raises:
        ValueError: for a net with padding, and for tiles that cannot work or whose answers are smaller than 2^L.
    """
    if net.padding != "valid":
        raise ValueError('overlap_tile is for padding="valid"; a padded net takes the whole image')
    rows, columns = (list(tiles(length, size, net.layers)) for length in x.shape[-2:])
    m = margin(net.layers)
    answers = []
    for row in rows:
        strip = _mirror(x, 2, row.first - m, row.size)
        parts = [net(_mirror(strip, 3, c.first - m, c.size))[..., : row.used, : c.used] for c in columns]
        answers.append(torch.cat(parts, dim=3))
    return torch.cat(answers, dim=2)


def mirrored(x: Tensor, layers: int) -> Tensor:
    """The whole image [B C H W] as one input of a net without padding: the answer's first H W pixels are x's.

    Borders are mirrored, the outermost pixel once; again and again where the image is smaller than the margin.
    """
    for dim in (2, 3):
        x = _mirror(x, dim, -margin(layers), input_size(x.shape[dim], layers))
    return x


def tiles(length: int, size: int, layers: int) -> Iterator[Tile]:
    """The tiles of a side of `length` pixels, none larger than `size`.

    Raises:
        ValueError: as `overlap_tile`.
    """
    stride = output_size(size, layers) // 2**layers * 2**layers
    if stride == 0:
        raise ValueError(
            f"tiles of {size} pixels have answers of {output_size(size, layers)}, fewer than the {2**layers} that"
            f" {layers} poolings take together: the smallest tiles are of {input_size(2**layers, layers)}"
        )
    first = 0
    while (needed := input_size(length - first, layers)) > size:
        yield Tile(first, size, stride)
        first += stride
    yield Tile(first, needed, length - first)


def _mirror(x: Tensor, dim: int, first: int, length: int) -> Tensor:
    """Pixels `first` ... `first + length - 1` along `dim` of an image that goes on, mirrored, for ever."""
    period = max(1, 2 * (x.shape[dim] - 1))
    index = torch.arange(first, first + length, device=x.device) % period
    return x.index_select(dim, torch.minimum(index, period - index))
