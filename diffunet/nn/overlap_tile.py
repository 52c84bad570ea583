"""The overlap-tile strategy, which lets a U-Net without padding see large images (Ronneberger et al. 2015, figure 2).

Legend: B batch, C channels, H W height and width, L number of poolings.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffunet.nn.unet2015 import UNet2015, input_size, margin, output_size


class Tile(NamedTuple):
    """A tile in one dimension: its input has `size` pixels, and the first `used` of its output belong at `first`."""

    first: int
    size: int
    used: int


def overlap_tile(net: UNet2015, x: Tensor, size: int) -> Tensor:
    """Return the output of `net` for every pixel of an image, [B C' H W], computed tile by tile with mirrored borders.

    Up to rounding this is the output for the whole image, `mirrored`, in the memory of one tile: tiles begin at
    multiples of 2^L, so that each pooling takes the same pixels, and no output depends on pixels outside of its tile.

    Args:
        net: a net without padding, called as `net(tile)`.
        x: the image [B C H W], at least 1x1.
        size: the largest height and width of the input of a tile; the last tile of a row or column may be smaller.

    Raises:
        ValueError: for a net with padding, and for a size that does not work or has an output smaller than 2^L.
    """
    if net.padding != "valid":
        raise ValueError('overlap_tile is for padding="valid"; a padded net takes the whole image')
    rows, columns = (list(tiles(length, size, net.layers)) for length in x.shape[-2:])
    m = margin(net.layers)
    outputs = []
    for row in rows:
        strip = _mirror(x, 2, row.first - m, row.size)
        parts = [net(_mirror(strip, 3, c.first - m, c.size))[..., : row.used, : c.used] for c in columns]
        outputs.append(torch.cat(parts, dim=3))
    return torch.cat(outputs, dim=2)


def mirrored(x: Tensor, layers: int) -> Tensor:
    """Return an image [B C H W] with the borders that a net without padding needs; H x W of its output belong to x.

    These are the first rows and columns of the output. Borders are mirrored without repeating the outermost pixel, and
    several times where the image is smaller than the margin.
    """
    for dim in (2, 3):
        x = _mirror(x, dim, -margin(layers), input_size(x.shape[dim], layers))
    return x


def tiles(length: int, size: int, layers: int) -> Iterator[Tile]:
    """Yield the tiles of `length` pixels in one dimension, none of them larger than `size`.

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
    """Return pixels `first` ... `first + length - 1` along `dim` of the image, continued without end by mirroring."""
    period = max(1, 2 * (x.shape[dim] - 1))
    index = torch.arange(first, first + length, device=x.device) % period
    return x.index_select(dim, torch.minimum(index, period - index))
