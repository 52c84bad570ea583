"""The nets that ablation.py compares: those that are not for users, and each at its size."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from diffunet import build
from diffunet.config import Config
from diffunet.nn.cost import cost
from diffunet.nn.layers import Embedding, ResBlock, group_norm, zero
from diffunet.nn.unet import UNet, UpBlock
from diffunet.nn.unet2015 import UNet2015

NETS = ("unet", "unet2015", "resnet-parameters", "resnet-macs", "unet-no-skips")

WIDTHS = range(8, 513, 8)
"""Of nets that are made to a size: group norms and AMX like multiples of 8."""


class ResNet(nn.Module):
    """A stem, residual blocks of one width at full size, an output: the UNet's parts without its shape.

    Args:
        in_channels, out_channels: of the images.
        width: channels of every block.
        blocks: how many.
        channels: sinusoids of the embedding, which is 4 times as wide.
        dropout, num_classes: as of the UNet.
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int, blocks: int, channels: int, dropout: float = 0.0,
        num_classes: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        self.embedding = Embedding(channels, 4 * channels, num_classes)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList([ResBlock(width, width, 4 * channels, dropout) for _ in range(blocks)])
        self.out = nn.Sequential(group_norm(width), nn.SiLU(), zero(nn.Conv2d(width, out_channels, 3, padding=1)))

    @property
    def null_label(self) -> int:
        """The label that says "no class"."""
        return self.num_classes

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """`x` [B C H W], `c_noise` [B], `label` int64 [B] (None: null) -> [B C' H W]."""
        e = self.embedding(c_noise, label)
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, e)
        return self.out(h)


class NoSkipsUpBlock(UpBlock):
    """A level of the decoder that takes the size of its skips, and none of their channels."""

    def forward(self, x: Tensor, skips: Sequence[Tensor], e: Tensor) -> Tensor:
        """As `UpBlock`."""
        return super().forward(x, [skip[:, :0] for skip in skips], e)


def without_skips(net: UNet) -> UNet:
    """`net` with a decoder that sees nothing of the encoder but its last map, in place."""
    middle: Any = net.middle[-1]
    c = middle.res.conv2.out_channels
    ups: Any = net.up
    for i, up in enumerate(ups):
        for block in up.blocks:
            old = block.res
            block.res = ResBlock(c, old.conv1.out_channels, old.embedding.in_features, old.dropout, old.scale_shift)
            c = old.conv1.out_channels
        ups[i] = NoSkipsUpBlock(up.up, list(up.blocks))
    return net


def make(name: str, config: Config) -> nn.Module:
    """One of `NETS`, freshly initialised from torch's global generator; `config` is the UNet's, resolved."""
    if name in ("unet", "unet-no-skips"):
        return without_skips(unet(config)) if name == "unet-no-skips" else unet(config)
    model, data = config.model, config.data
    assert model.channels is not None, "the config is resolved"
    assert model.multipliers is not None, "the config is resolved"
    channels, levels = model.channels, len(model.multipliers)
    dropout, classes = model.dropout or 0.0, len(data.class_names)

    def classic(width: int, depth: int) -> nn.Module:
        return UNet2015(
            data.channels, data.channels, depth, width, padding="same", time=True, num_classes=classes, dropout=dropout
        )

    def residual(width: int, depth: int) -> nn.Module:
        return ResNet(data.channels, data.channels, width, depth, channels, dropout, classes)

    with torch.device("meta"):
        wanted = unet(config)
    measure = partial(macs if name == "resnet-macs" else parameters, size=data.image_size)
    if name == "unet2015":
        return classic(*fitted(classic, measure, measure(wanted), [levels - 1]))
    blocks = levels * (2 * (model.num_blocks or 2) + 1) + 2  # of the UNet
    depths = sorted(range(max(1, blocks - 2), blocks + 3), key=lambda depth: abs(depth - blocks))
    return residual(*fitted(residual, measure, measure(wanted), depths))


def unet(config: Config) -> UNet:
    """The UNet of a config."""
    net = build.net(config)
    assert isinstance(net, UNet)
    return net


def parameters(net: nn.Module, size: int) -> int:
    """Numbers that a net learns."""
    return sum(parameter.numel() for parameter in net.parameters())


def macs(net: nn.Module, size: int) -> int:
    """Multiply-accumulates of one image of `size` x `size`."""
    return cost(net, size, size).macs


def fitted(
    make: Callable[[int, int], nn.Module], measure: Callable[[nn.Module], int], wanted: int, depths: Iterable[int]
) -> tuple[int, int]:
    """(width, depth) of the net whose `measure` is nearest to `wanted`: at the first depth that comes within 2%."""

    @cache
    def off(width: int, depth: int) -> float:
        with torch.device("meta"):
            return math.log(measure(make(width, depth)) / wanted)

    found = []
    for depth in depths:
        above = bisect_left(WIDTHS, 0.0, key=lambda width: off(width, depth))
        found += [(abs(off(width, depth)), width, depth) for width in WIDTHS[max(0, above - 1) : above + 1]]
        if min(found)[0] < 0.02:
            break
    return min(found)[1:]
