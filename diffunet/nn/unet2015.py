"""The U-Net of Ronneberger, Fischer and Brox 2015, as the paper draws it; told a noise level, a diffusion backbone.

A contracting path halves the size and doubles the channels, an expansive path undoes it; each of its levels gets the
map that the contracting path had at that size ("copy and crop").

Legend: B batch, C channels, H W height and width, E width of the embedding, L number of poolings.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from diffunet.nn.layers import Embedding, Uncertainty, zero

Padding = Literal["valid", "same"]


def margin(layers: int) -> int:
    """Pixels by which an answer is smaller than its input on each side, without padding: 92 at the paper's 4 layers.

    Two convolutions take 2 from each side; a level takes that twice, and around it twice what is lost below it.
    """
    return 6 * 2**layers - 4


def output_size(size: int, layers: int) -> int:
    """Height (or width) of the answer to an input of `size`, without padding: 388 of 572 at the paper's 4 layers.

    Raises:
        ValueError: for a size that meets a pooling at an odd size, or of which nothing is left.
    """
    if size not in nearest_sizes(size, layers):
        raise ValueError(f"{size} pixels cannot pass {layers} poolings without padding: {_that_can(size, layers)}")
    return size - 2 * margin(layers)


def input_size(output: int, layers: int) -> int:
    """The smallest input that works, without padding, and has an answer of at least `output` (>= 1) pixels.

    Every map is even before it is pooled where the answer has 4 pixels more than a multiple of 2^L.
    """
    return output + (4 - output) % 2**layers + 2 * margin(layers)


def nearest_sizes(size: int, layers: int) -> tuple[int | None, int]:
    """The nearest inputs that work without padding: at most `size` (None: none is so small), and at least `size`."""
    above = input_size(max(1, size - 2 * margin(layers)), layers)
    below = above if above == size else above - 2**layers
    return (below if below > 2 * margin(layers) else None), above


def _that_can(size: int, layers: int) -> str:
    below, above = nearest_sizes(size, layers)
    return f"the smallest that can is {above}" if below is None else f"the nearest that can are {below} and {above}"


def he(conv: nn.Conv2d | nn.ConvTranspose2d, incoming: int) -> None:
    """The paper's start (section 3, after He et al. 2015): Gaussian weights of deviation sqrt(2 / N), no bias.

    `incoming` is N, the inputs of one output: 9 C of a 3x3 convolution; C of an up-convolution, whose 2x2 kernels do
    not overlap at stride 2.
    """
    assert conv.bias is not None
    with torch.no_grad():
        # Not `nn.init.normal_`, which on the meta device imports torch's compiler (seconds).
        conv.weight.copy_(torch.normal(0.0, math.sqrt(2 / incoming), conv.weight.shape))
        conv.bias.zero_()


class DoubleConv(nn.Module):
    """3x3 convolution and ReLU, twice; the embedding is added before the first ReLU, as Ho et al. 2020 add it.

    Args:
        in_channels, out_channels: C, C'.
        padding: "valid" takes 2 pixels from each side, "same" none.
        embedding: E, 0 for none.
        dropout: of the result, 0 to 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, padding: Padding, embedding: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=padding)
        self.embedding = nn.Linear(embedding, out_channels) if embedding else None
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=padding)
        self.dropout = nn.Dropout(dropout)
        he(self.conv1, 9 * in_channels)
        he(self.conv2, 9 * out_channels)

    def forward(self, x: Tensor, e: Tensor | None = None) -> Tensor:
        """`x` [B C H W], `e` [B E] of a net with an embedding -> [B C' H-4 W-4], or [B C' H W] if padded."""
        h = self.conv1(x)
        if self.embedding is not None:
            h = h + rearrange(self.embedding(e), "b c -> b c 1 1")
        return self.dropout(self.conv2(h.relu()).relu())


class DownBlock(nn.Module):
    """One level of the contracting path: two convolutions, whose map is the skip, then 2x2 max pooling."""

    opened: ClassVar[bool] = True  # in the table of `cost`

    def __init__(self, in_channels: int, out_channels: int, padding: Padding, embedding: int = 0) -> None:
        super().__init__()
        self.convs = DoubleConv(in_channels, out_channels, padding, embedding)
        self.pool = nn.MaxPool2d(2, ceil_mode=padding == "same")  # an odd size keeps its last row and column

    def forward(self, x: Tensor, e: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`x` [B C H W] -> what goes down [B C' H'/2 W'/2], and the skip [B C' H' W'], as it was before pooling."""
        skip = self.convs(x, e)
        return self.pool(skip), skip


class UpBlock(nn.Module):
    """One level of the expansive path: 2x2 up-convolution to half the channels, copy and crop, two convolutions."""

    opened: ClassVar[bool] = True

    def __init__(self, in_channels: int, out_channels: int, padding: Padding, embedding: int = 0) -> None:
        super().__init__()
        self.padding = padding
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.convs = DoubleConv(2 * out_channels, out_channels, padding, embedding)
        he(self.up, in_channels)

    def forward(self, x: Tensor, skip: Tensor, e: Tensor | None = None) -> Tensor:
        """`x` [B 2C H/2 W/2], `skip` [B C H' W'] -> [B C H-4 W-4], or [B C H' W'] if padded.

        Without padding H' - H is even and the middle of the skip is taken. Padded, H is H' or, where that is odd, one
        more, whose last row was made of nothing and goes.

        Raises:
            ValueError: for any other skip, as one that was pooled.
        """
        x = self.up(x)
        more = [there - here for there, here in zip(skip.shape[-2:], x.shape[-2:], strict=True)]
        fits = all(n in (0, -1) for n in more) if self.padding == "same" else all(n >= 0 and n % 2 == 0 for n in more)
        if not fits:
            raise ValueError(
                f"a skip of {_by(skip)} does not go with an up-convolved map of {_by(x)}: it is to be the map before"
                f" the pooling of the same level, {self.padding} padding"
            )
        if self.padding == "same":
            x = x[..., : skip.shape[-2], : skip.shape[-1]]
        else:
            skip = centre_crop(skip, x.shape[-2], x.shape[-1])
        return self.convs(torch.cat([skip, x], dim=1), e)


def centre_crop(x: Tensor, height: int, width: int) -> Tensor:
    """The middle [B C height width] of `x`."""
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def _by(x: Tensor) -> str:
    return f"{x.shape[-2]}x{x.shape[-1]}"


class UNet2015(nn.Module):
    """`net(x)`, or with `time` `net(x, c_noise, label=None, augment=None)`, which is the call of `UNet`.

    Args:
        in_channels, out_channels: of input and answer.
        layers: L, how often the size is halved. The paper's net has 4, and so 5 sizes.
        base_channels: C; level l has 2^l C channels.
        padding: "valid", the paper's: every convolution takes a pixel from each side, so that no answer depends on
            what is made up beyond the border; only some sizes work, see `nearest_sizes`, and larger images go by
            `overlap_tile`. "same": zeros around, the answer has the size of the input, which may be any.
        time: the net is told a noise level and more by an embedding 4 C wide. Its answer starts at zero.
        num_classes: 0 for a net without labels; else labels are 0 ... num_classes - 1, and `null_label` = num_classes.
        augment_channels: size of the augmentation vector, 0 for none.
        uncertainty: beside the answer learn the loss to expect: `net.uncertainty(log_snr [B]) -> [B]`.
        dropout: at the end of the contracting path (section 3.1), 0 to 1.
        device: where the parameters are made.

    Raises:
        ValueError: for labels, augmentation or uncertainty of a net without `time`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        layers: int = 4,
        base_channels: int = 64,
        padding: Padding = "valid",
        *,
        time: bool = False,
        num_classes: int = 0,
        augment_channels: int = 0,
        uncertainty: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if not time and (num_classes or augment_channels or uncertainty):
            raise ValueError("a UNet2015 has labels, augmentation and uncertainty with time=True only")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.layers = layers
        self.padding = padding
        self.num_classes = num_classes
        e = 4 * base_channels if time else 0
        widths = [base_channels * 2**level for level in range(layers + 1)]
        with contextlib.nullcontext() if device is None else torch.device(device):
            self.embedding = Embedding(base_channels, e, num_classes, augment_channels) if time else None
            self.uncertainty = Uncertainty() if uncertainty else None
            inputs = [in_channels, *widths]
            self.down = nn.ModuleList([DownBlock(inputs[i], widths[i], padding, e) for i in range(layers)])
            self.bottleneck = DoubleConv(inputs[layers], widths[layers], padding, e, dropout)
            self.up = nn.ModuleList([UpBlock(widths[i + 1], widths[i], padding, e) for i in reversed(range(layers))])
            self.out = nn.Conv2d(base_channels, out_channels, 1)
        if time:
            zero(self.out)
        else:
            he(self.out, base_channels)

    @property
    def null_label(self) -> int:
        """The label that says "no class"."""
        return self.num_classes

    def encode(self, x: Tensor, e: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """`x` [B C H W] -> the bottleneck [B 2^L C ...], and the skips, each as it was before pooling, largest first.

        `e` [B E] is what `net.embedding` says, of a net with `time`.

        Raises:
            ValueError: without padding, for sizes that cannot work; it names the nearest that can.
        """
        if self.padding == "valid":
            for name, size in (("height", x.shape[-2]), ("width", x.shape[-1])):
                if size not in nearest_sizes(size, self.layers):
                    raise ValueError(
                        f"an image of {_by(x)} (height x width) cannot pass {self.layers} poolings without padding, by"
                        f" its {name}: {_that_can(size, self.layers)}"
                    )
        skips = []
        for down in self.down:
            x, skip = down(x, e)
            skips.append(skip)
        return self.bottleneck(x, e), skips

    def decode(self, bottleneck: Tensor, skips: Sequence[Tensor], e: Tensor | None = None) -> Tensor:
        """What `encode` gave -> the answer [B C' H W], smaller by `margin` on each side without padding.

        Raises:
            ValueError: for skips that are not the maps before each pooling, largest first.
        """
        x = bottleneck
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(x, skip, e)
        return self.out(x)

    def forward(
        self, x: Tensor, c_noise: Tensor | None = None, label: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        """`x` [B C H W] -> [B C' H W], smaller by `margin` on each side without padding.

        A net with `time` is told `c_noise` [B] float32, `label` int64 [B] (None: null), `augment` [B A].

        Raises:
            ValueError: as `encode`; for a noise level, label or augmentation that the net has no place for.
        """
        e = None
        if self.embedding is not None:
            if c_noise is None:
                raise ValueError("a UNet2015 with time=True is told a noise level, c_noise")
            e = self.embedding(c_noise, label, augment)
        elif not (c_noise is None and label is None and augment is None):
            raise ValueError("a UNet2015 with time=False takes nothing but an image")
        return self.decode(*self.encode(x, e), e)
