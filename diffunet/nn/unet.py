"""The time-conditioned UNet, the net of DDPM (Ho et al. 2020) with the improvements of ADM (Dhariwal & Nichol 2021).

The encoder halves the size from level to level and keeps the feature map of each block as a skip. The decoder doubles
the size again, and each of its blocks takes the skip of the same size as additional channels (Ronneberger et al. 2015).

Legend: B batch, C channels, H W height and width, E width of the embedding, A size of the augmentation vector.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffunet.names import ResampleName
from diffunet.nn import layers
from diffunet.nn.layers import Attention, Downsample, ResBlock, ResidualDownsample, ResidualUpsample, Upsample


class Block(nn.Module):
    """A residual block, followed by self-attention where the level has it."""

    def __init__(self, res: ResBlock, attention: Attention | None, checkpointing: bool) -> None:
        super().__init__()
        self.res = res
        self.attention = attention if attention is not None else nn.Identity()
        self.checkpointing = checkpointing

    def _run(self, x: Tensor, e: Tensor) -> Tensor:
        return self.attention(self.res(x, e))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return [B C' H W] for `x` [B C H W] and the embedding `e` [B E]."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, x, e, use_reentrant=False)
        return self._run(x, e)


class DownBlock(nn.Module):
    """One level of the encoder: it halves the size, except at the first level, and applies its blocks."""

    def __init__(self, down: Downsample | ResidualDownsample | None, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, e: Tensor) -> list[Tensor]:
        """Return all feature maps [B C' H W] for `x` [B C 2H 2W] (first level: [B C H W]); the last is the output."""
        skips = [x if self.down is None else self.down(x, e)]
        for block in self.blocks:
            skips.append(block(skips[-1], e))
        return skips


class UpBlock(nn.Module):
    """One level of the decoder: it enlarges x to the size of the skips and applies a block to each, last skip first."""

    def __init__(self, up: Upsample | ResidualUpsample | None, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.up = up
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, skips: Sequence[Tensor], e: Tensor) -> Tensor:
        """Return [B C'' H W] for `x` [B C H/2 W/2] (deepest level: [B C H W]) and `skips` [B C' H W]."""
        if self.up is not None:
            height, width = skips[-1].shape[-2:]
            x = self.up(x, e, (height, width))
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([x, skip], dim=1), e)
        return x


class UNet(nn.Module):
    """A time-conditioned UNet for images of any height and width, `net(x, c_noise, label=None, augment=None)`.

    The keywords are the options of the net. `build.net` fills in those that `config.ModelConfig` has by the same name.
    A new option is stated here and there, and interop/diffusers_options.py has to write it or to refuse it.

    Args:
        in_channels, out_channels: channels of the input, concatenated conditions included, and by default the output.
        channels: feature channels C at full size. The embedding is 4 C wide.
        multipliers: a factor of `channels` for each level. Each level but the first halves the size.
        num_blocks: residual blocks of each level of the encoder. A level of the decoder has one more.
        attention_levels: levels (0 is full size) in which self-attention follows each block.
        middle_attention: whether self-attention stands between the two blocks of the middle.
        head_channels, num_heads: channels of an attention head; number of heads, by default as many as that makes.
        qk_norm: whether queries and keys are normalised by their root mean square.
        norm_groups, norm_eps: groups of each GroupNorm, by default of 16 channels; its epsilon.
        scale_shift: whether the embedding scales and shifts features (ADM) or is added to them (DDPM).
        resample: whether convolutions, asymmetric ones (DDPM) or residual blocks (ADM) halve and double the sizes.
        frequency_shift: 1 for DDPM's frequencies of the embedding, else 0; see `layers.sinusoids`.
        dropout: probability of dropout in every residual block, 0 to 1.
        num_classes: labels are 0 ... num_classes - 1, and `null_label`, "no class", is num_classes; 0 for no labels.
        augment_channels: size A of the augmentation vector, 0 for none.
        uncertainty: whether it also predicts the log of its loss: `net.uncertainty(log_snr [B]) -> [B]`.
        checkpointing: whether the backward pass keeps only the inputs of blocks: less memory, a third more time.

    Raises:
        ValueError: for channels that cannot be divided into heads or groups.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int | None = None, *,
        channels: int = 64, multipliers: Sequence[float] = (1, 2, 2, 2), num_blocks: int = 2,
        attention_levels: Sequence[int] = (2, 3), middle_attention: bool = True, head_channels: int = 64,
        num_heads: int | None = None, qk_norm: bool = False, norm_groups: int | None = None, norm_eps: float = 1e-5,
        scale_shift: bool = True, resample: ResampleName = "convolution", frequency_shift: int = 0,
        dropout: float = 0.0, num_classes: int = 0, augment_channels: int = 0, uncertainty: bool = False,
        checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.num_classes = self.null_label = num_classes
        e = 4 * channels
        widths = [round(channels * multiplier) for multiplier in multipliers]
        norm = partial(layers.group_norm, groups=norm_groups, eps=norm_eps)
        res = partial(ResBlock, embedding=e, dropout=dropout, scale_shift=scale_shift, norm=norm)

        def block(c_in: int, c_out: int, attention: bool) -> Block:
            heads = num_heads or max(1, c_out // head_channels)
            return Block(res(c_in, c_out), Attention(c_out, heads, qk_norm, norm) if attention else None, checkpointing)

        def down(c: int) -> Downsample | ResidualDownsample:
            return ResidualDownsample(res(c, c)) if resample == "residual" else Downsample(c, resample == "asymmetric")

        def up(c: int) -> Upsample | ResidualUpsample:
            return ResidualUpsample(res(c, c)) if resample == "residual" else Upsample(c)

        self.embedding = layers.Embedding(channels, e, num_classes, augment_channels, frequency_shift)
        self.uncertainty = layers.Uncertainty() if uncertainty else None
        c = min(channels, widths[0])  # a first multiplier below 1 (ADM at 512 pixels) narrows the stem
        self.stem = nn.Conv2d(in_channels, c, 3, padding=1)
        self.down = nn.ModuleList()
        skips: list[list[int]] = []  # channels of each level's skips
        for level, width in enumerate(widths):
            skips.append([c] + [width] * num_blocks)
            blocks = [block(c_in, width, level in attention_levels) for c_in in skips[-1][:-1]]
            self.down.append(DownBlock(down(c) if level else None, blocks))
            c = width
        self.middle = nn.ModuleList([block(c, c, middle_attention), block(c, c, attention=False)])
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            enlarge = up(c) if level < len(widths) - 1 else None
            blocks = []
            for skip in reversed(skips[level]):
                blocks.append(block(c + skip, width, level in attention_levels))
                c = width
            self.up.append(UpBlock(enlarge, blocks))
        # The last convolution starts at zero, and with it the output: every target averages about 0, so that this is
        # the best constant prediction, and the first gradients are small.
        self.out = nn.Sequential(norm(c), nn.SiLU(), layers.zero(nn.Conv2d(c, self.out_channels, 3, padding=1)))

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Return [B C' H W] for `x` [B C H W], `c_noise` float32 [B], `label` int64 [B] or None and `augment` [B A]."""
        e = self.embedding(c_noise, label, augment)
        h = self.stem(x)
        skips: list[list[Tensor]] = []
        for down in self.down:
            skips.append(down(h, e))
            h = skips[-1][-1]
        for block in self.middle:
            h = block(h, e)
        for up in self.up:
            h = up(h, skips.pop(), e)
        return self.out(h)

    def matrices(self) -> Iterator[tuple[Tensor, int]]:
        """Yield the weights of the convolutions and linear layers inside the blocks, for optimizers of matrices.

        With each comes the number of matrices of equal size that its rows are a stack of: 3 for those that make
        queries, keys and values, else 1. Stem, output and embedding are left out.
        """
        for part in (self.down, self.middle, self.up):
            stacked = {module.qkv for module in part.modules() if isinstance(module, Attention)}
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    yield module.weight, 3 if module in stacked else 1
