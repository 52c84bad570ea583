"""The U-Net of Ronneberger, Fischer and Brox 2015, as the paper draws it, or with an embedding as a net for diffusion.

The contracting path halves the size and doubles the channels from level to level, and the expansive path reverses this.
Each level of the expansive path also takes the map of the same level of the contracting path ("copy and crop").

Legend: B batch, C channels, H W height and width, E width of the embedding, A size of augmentation, L poolings.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from diffunet.nn.layers import Embedding, Uncertainty, zero

Padding = Literal["valid", "same"]


def margin(layers: int) -> int:
    """Return how many pixels a net without padding loses on each side: 92 for the paper's 4 layers.

    A pair of convolutions loses 2. A level has two pairs, and between them the levels below, whose pixels are twice as
    large: margin(L) = 4 + 2 margin(L - 1), and margin(0) = 2.
    """
    return 6 * 2**layers - 4


def output_size(size: int, layers: int) -> int:
    """Return the height (or width) of the output for an input of `size`, without padding: 388 for the paper's 572.

    Raises:
        ValueError: for a size that is odd before a pooling, or so small that nothing is left.
    """
    if size not in nearest_sizes(size, layers):
        raise ValueError(f"{size} pixels cannot pass {layers} poolings without padding: {_that_can(size, layers)}")
    return size - 2 * margin(layers)


def input_size(output: int, layers: int) -> int:
    """Return the smallest input that works without padding and gives at least `output` (>= 1) pixels.

    All maps are even before they are pooled if the output has 4 pixels more than a multiple of 2^L.
    """
    return output + (4 - output) % 2**layers + 2 * margin(layers)


def nearest_sizes(size: int, layers: int) -> tuple[int | None, int]:
    """Return the largest input <= `size` (or None) and the smallest >= `size` that work without padding."""
    above = input_size(max(1, size - 2 * margin(layers)), layers)
    below = above if above == size else above - 2**layers
    return (below if below > 2 * margin(layers) else None), above


def _that_can(size: int, layers: int) -> str:
    below, above = nearest_sizes(size, layers)
    return f"the smallest that can is {above}" if below is None else f"the nearest that can are {below} and {above}"


def he(conv: nn.Conv2d | nn.ConvTranspose2d, incoming: int) -> None:
    """Initialise as the paper (section 3, after He et al. 2015): normal weights of deviation sqrt(2 / N), zero biases.

    N is `incoming`, the inputs of one output: 9 C for a 3x3 convolution, C for an up-convolution without overlap.
    """
    assert conv.bias is not None
    with torch.no_grad():
        # Not with `nn.init.normal_`, which on the meta device imports torch's compiler, which takes seconds.
        conv.weight.copy_(torch.normal(0.0, math.sqrt(2 / incoming), conv.weight.shape))
        conv.bias.zero_()


class DoubleConv(nn.Module):
    """A 3x3 convolution and ReLU, twice, with an embedding added before the first ReLU (as by Ho et al. 2020).

    Padding "valid" loses 2 pixels on each side. `embedding` is E, or 0 for none. The last step is dropout, 0 to 1.
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
        """Return [B C' H-4 W-4], or [B C' H W] with padding, for `x` [B C H W] and the embedding `e` [B E]."""
        h = self.conv1(x)
        if self.embedding is not None:
            h = h + rearrange(self.embedding(e), "b c -> b c 1 1")
        return self.dropout(self.conv2(h.relu()).relu())


class DownBlock(nn.Module):
    """One level of the contracting path: two convolutions, whose result is the skip, and 2x2 max pooling."""

    opened = True  # The table of `cost` has a row for each part.

    def __init__(self, in_channels: int, out_channels: int, padding: Padding, embedding: int = 0) -> None:
        super().__init__()
        self.convs = DoubleConv(in_channels, out_channels, padding, embedding)
        self.pool = nn.MaxPool2d(2, ceil_mode=padding == "same")  # An odd size keeps its last row and column.

    def forward(self, x: Tensor, e: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the pooled map [B C' H'/2 W'/2] and the skip [B C' H' W'] for `x` [B C H W]."""
        skip = self.convs(x, e)
        return self.pool(skip), skip


class UpBlock(nn.Module):
    """One level of the expansive path: an up-convolution to half the channels, copy and crop, and two convolutions."""

    opened = True

    def __init__(self, in_channels: int, out_channels: int, padding: Padding, embedding: int = 0) -> None:
        super().__init__()
        self.padding = padding
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.convs = DoubleConv(2 * out_channels, out_channels, padding, embedding)
        he(self.up, in_channels)

    def forward(self, x: Tensor, skip: Tensor, e: Tensor | None = None) -> Tensor:
        """Return [B C H-4 W-4], or [B C H' W'] with padding, for `x` [B 2C H/2 W/2] and `skip` [B C H' W'].

        Without padding H' - H is even, and the middle of the skip is used. With padding H is H' or, for odd H', H' + 1;
        the last row then comes from what pooling had added, and is dropped.

        Raises:
            ValueError: for a skip of another size, such as a pooled map.
        """
        x = self.up(x)
        (height, width), (skip_height, skip_width) = x.shape[-2:], skip.shape[-2:]
        more = (skip_height - height, skip_width - width)
        if not all(n in (0, -1) if self.padding == "same" else n >= 0 and n % 2 == 0 for n in more):
            raise ValueError(
                f"a skip of {_by(skip)} does not go with an up-convolved map of {_by(x)}: it is to be the map before"
                f" the pooling of the same level, {self.padding} padding"
            )
        if self.padding == "same":
            x = x[..., :skip_height, :skip_width]
        else:
            top, left = more[0] // 2, more[1] // 2
            skip = skip[..., top : top + height, left : left + width]
        return self.convs(torch.cat([skip, x], dim=1), e)


def _by(x: Tensor) -> str:
    return f"{x.shape[-2]}x{x.shape[-1]}"


class UNet2015(nn.Module):
    """The U-Net, called as `net(x)`, or with `time`, as a `UNet`, by `net(x, c_noise, label=None, augment=None)`.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        layers, base_channels: L, the number of poolings, of which the paper's net has 4; C: level l has 2^l C channels.
        padding: "valid" is the paper's: no output depends on invented pixels beyond the border, and the input needs
            certain sizes (`nearest_sizes`); `overlap_tile` takes any. "same" pads with zeros, and takes any size.
        time: condition the net on a noise level by an embedding of width 4 C. The output then starts at zero.
        num_classes, augment_channels, uncertainty: as those of `unet.UNet`.
        dropout, device: dropout at the end of the contracting path (section 3.1), 0 to 1; where parameters are created.

    Raises:
        ValueError: for labels, augmentation or uncertainty without `time`.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 2, layers: int = 4, base_channels: int = 64,
        padding: Padding = "valid", *, time: bool = False, num_classes: int = 0, augment_channels: int = 0,
        uncertainty: bool = False, dropout: float = 0.0, device: torch.device | str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not time and (num_classes or augment_channels or uncertainty):
            raise ValueError("a UNet2015 has labels, augmentation and uncertainty with time=True only")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.layers, self.padding = layers, padding
        self.num_classes = self.null_label = num_classes
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
        if time:  # As in `UNet`: 0 is the best prediction of noise that does not use the input.
            zero(self.out)
        else:
            he(self.out, base_channels)

    def encode(self, x: Tensor, e: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Return the bottleneck [B 2^L C ...] and the skips, largest first, for `x` [B C H W].

        `e` [B E] is the output of `net.embedding`, for a net with `time`.

        Raises:
            ValueError: for sizes that do not work without padding. The message names the nearest that do.
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
        """Return the output [B C' H W], without padding smaller by `margin` on each side, for the results of `encode`.

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
        """Return [B C' H W], without padding smaller by `margin` on each side, for `x` [B C H W].

        A net with `time` takes `c_noise` float32 [B], `label` int64 [B] (None: null) and `augment` [B A].

        Raises:
            ValueError: as `encode`; for conditions without `time`, and for no `c_noise` with `time`.
        """
        e = None
        if self.embedding is not None:
            if c_noise is None:
                raise ValueError("a UNet2015 with time=True is told a noise level, c_noise")
            e = self.embedding(c_noise, label, augment)
        elif not (c_noise is None and label is None and augment is None):
            raise ValueError("a UNet2015 with time=False takes nothing but an image")
        return self.decode(*self.encode(x, e), e)
