"""The parts that the UNet is made of.

Legend: B batch, C channels, H W height and width, E width of the embedding, N = H * W positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def zero(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero, so that the branch that it ends starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm (Wu & He 2018) with `groups`, else of 16 channels each, or a little more where that does not divide.

    Measured: on a CPU in bfloat16 and channels_last, the 32 groups of DDPM (2 to 4 channels each) make a whole training
    step take 1.6 to 1.9 times as long; Wu & He (table 3) find 16 channels a group as good.

    Raises:
        ValueError: for `groups` that do not divide `channels`.
    """
    if groups is None:
        groups = max(1, channels // 16)
        while channels % groups:
            groups -= 1
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be normalised in {groups} groups")
    return nn.GroupNorm(groups, channels, eps)


Norm = Callable[[int], nn.Module]
"""From a number of channels to their normalisation."""


def sinusoids(c_noise: Tensor, width: int, shift: int = 0) -> Tensor:
    """Cosines and sines of `c_noise` [B] at frequencies from 1 to about 1/10000, float32 [B width].

    Vaswani et al. 2017, section 3.5; Ho et al. 2020 use it for the timestep, with `shift` 1: the last frequency is
    1/10000 itself. In float32 always: bfloat16 cannot tell timestep 999 from 1000.
    """
    half = width // 2
    step = -math.log(10_000) / (half - shift)
    frequencies = torch.exp(torch.arange(half, device=c_noise.device) * step)  # [half]
    angles = c_noise.float()[:, None] * frequencies  # [B half]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class Embedding(nn.Module):
    """What the net is told beside the image: noise level, and where the net has them, label and augmentation.

    Args:
        width: number of sinusoids.
        out_width: E.
        num_classes: 0 for a net without labels. Label `num_classes` is the null label: "no class said".
        augment_channels: size of the augmentation vector, 0 for none.
        frequency_shift: see `sinusoids`.
    """

    def __init__(
        self, width: int, out_width: int, num_classes: int = 0, augment_channels: int = 0, frequency_shift: int = 0
    ) -> None:
        super().__init__()
        self.width = width
        self.frequency_shift = frequency_shift
        self.mlp = nn.Sequential(nn.Linear(width, out_width), nn.SiLU(), nn.Linear(out_width, out_width))
        self.label = None
        if num_classes:
            # nn.Embedding's own start, drawn here: its `normal_` on the meta device imports torch's compiler (seconds).
            self.label = nn.Embedding(num_classes + 1, out_width, _weight=torch.randn(num_classes + 1, out_width))
        self.augment = nn.Linear(augment_channels, out_width, bias=False) if augment_channels else None

    def forward(self, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """`c_noise` [B], `label` int64 [B], `augment` [B A] -> [B E]."""
        told = sinusoids(c_noise, self.width, self.frequency_shift)
        e = self.mlp(told.to(next(self.parameters()).dtype))
        if self.label is not None:
            if label is None:
                label = torch.full(c_noise.shape, self.label.num_embeddings - 1, device=c_noise.device)
            e = e + self.label(label)
        if self.augment is not None and augment is not None:
            e = e + self.augment(augment)
        return F.silu(e)


class Uncertainty(nn.Module):
    """The log of the loss to expect, linear in sinusoids of log SNR (after Karras et al. 2024, EDM2, appendix B.4).

    It starts at 0, and is float32 under autocast.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, log_snr: Tensor) -> Tensor:
        """[B] -> [B]."""
        return (sinusoids(log_snr, len(self.weight)) * self.weight).sum(dim=1)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, 3x3 convolution, twice; the embedding enters between the two.

    Ho et al. 2020 add the embedding; with `scale_shift` it scales and shifts the second norm (Dhariwal & Nichol 2021,
    "AdaGN"). The last convolution starts at zero, so the block starts as its shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        dropout: float = 0.0,
        scale_shift: bool = True,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, e: Tensor, resize: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """`x` [B C H W], `e` [B E] -> [B C' H' W'], where `resize` takes H W to H' W', of both branches."""
        h = self.conv1(resize(F.silu(self.norm1(x))))
        told = rearrange(self.embedding(e), "b c -> b c 1 1")
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        return self.shortcut(resize(x)) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention over all positions (Vaswani et al. 2017), as a residual that starts at zero.

    Args:
        channels: C.
        heads: number of heads, which must divide C.
        qk_norm: RMS-normalise queries and keys (Henry et al. 2020), which keeps long bf16 runs from blowing up.
    """

    def __init__(self, channels: int, heads: int = 1, qk_norm: bool = False, norm: Norm = group_norm) -> None:
        super().__init__()
        self.heads = heads
        if channels % heads:
            raise ValueError(f"attention on {channels} channels cannot be divided into {heads} heads")
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.q_norm = nn.RMSNorm(channels // self.heads) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(channels // self.heads) if qk_norm else nn.Identity()
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B C H W] -> [B C H W]."""
        height = x.shape[2]
        # Side by side in memory, as fused kernels of attention need the numbers of a token: a copy only of NCHW.
        tokens = rearrange(self.qkv(self.norm(x)), "b c h w -> b (h w) c").contiguous()
        q, k, v = rearrange(tokens, "b n (three heads c) -> three b heads n c", three=3, heads=self.heads)
        h = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)  # [B heads N c]
        return x + self.out(rearrange(h, "b heads (h w) c -> b (heads c) h w", h=height))


class Downsample(nn.Module):
    """Half the size, rounded up: a 3x3 convolution of stride 2.

    Args:
        channels: C.
        asymmetric: pad an even size at its right and bottom alone, as TensorFlow does, and so DDPM's own code.
    """

    def __init__(self, channels: int, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """`x` [B C H W], `e` of no use here -> [B C ceil(H/2) ceil(W/2)]."""
        if self.asymmetric:
            x = F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbours to a wanted size, then a 3x3 convolution; no checkerboard (Odena et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, e: Tensor, size: tuple[int, int]) -> Tensor:
        """`x` [B C H W], `e` of no use here -> [B C *size]."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class ResidualDownsample(nn.Module):
    """Half the size, rounded up, inside a residual block: means of 2x2 (Dhariwal & Nichol 2021, after BigGAN)."""

    def __init__(self, res: ResBlock) -> None:
        super().__init__()
        self.res = res

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """`x` [B C H W], `e` [B E] -> [B C ceil(H/2) ceil(W/2)]."""
        return self.res(x, e, lambda each: F.avg_pool2d(each, 2, ceil_mode=True))


class ResidualUpsample(nn.Module):
    """Nearest neighbours to a wanted size, inside a residual block (Dhariwal & Nichol 2021, after BigGAN)."""

    def __init__(self, res: ResBlock) -> None:
        super().__init__()
        self.res = res

    def forward(self, x: Tensor, e: Tensor, size: tuple[int, int]) -> Tensor:
        """`x` [B C H W], `e` [B E] -> [B C *size]."""
        return self.res(x, e, lambda each: F.interpolate(each, size=size, mode="nearest"))
