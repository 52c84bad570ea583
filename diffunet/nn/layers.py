"""The layers of the UNet.

Legend: B batch, C channels, H W height and width, E width of the embedding, A size of the augmentation vector.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from diffunet.nn import kernels


def zero(module: nn.Module) -> nn.Module:
    """Set the parameters of a module to zero and return it.

    As the last layer of a residual branch it makes a block start as the identity, for signals and gradients alike.
    """
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu & He 2018), with what follows it in a residual block.

    `native_kernels` says whether to use the kernels of nn/kernels.py where they apply, see `Compute.prepare`.
    """

    native_kernels = False

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, silu: bool = False,
        dropout: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """Return `x` [B C H W], normalised, times 1 + `scale` [B C] plus `shift` [B C], then SiLU and dropout."""
        dropout = dropout if self.training else 0.0
        if self.native_kernels and kernels.norm_applies(x):
            return kernels.norm(x, self.num_groups, self.weight, self.bias, self.eps, scale, shift, silu, dropout)
        h = super().forward(x)
        if scale is not None and shift is not None:
            h = h * (1 + scale[..., None, None]) + shift[..., None, None]
        h = F.silu(h) if silu else h
        return kernels.dropout(h, dropout) if dropout else h


class Conv(nn.Conv2d):
    """A 3x3 convolution from [B C H W] to [B C' H W]; of `native_kernels` see `GroupNorm`."""

    native_kernels = False

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.native_kernels and kernels.conv_applies(x, self.weight):
            return kernels.conv(x, self.weight, self.bias)
        return super().forward(x)


def group_norm(channels: int, groups: int | None = None, eps: float = 1e-5) -> GroupNorm:
    """Return GroupNorm with `groups`, by default of 16 channels, or a few more if 16 does not divide.

    With the 32 groups of DDPM, of 2 to 4 channels each, a training step takes 1.6 to 1.9 times as long (measured on a
    CPU, in bfloat16 and channels_last); Wu & He (table 3) find groups of 16 channels as good.

    Raises:
        ValueError: if `groups` does not divide `channels`.
    """
    if groups is None:
        groups = next(n for n in range(max(1, channels // 16), 0, -1) if channels % n == 0)
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be normalised in {groups} groups")
    return GroupNorm(groups, channels, eps)


Norm = Callable[[int], GroupNorm]
"""A function from a number of channels to a layer that normalises them."""


def sinusoids(c_noise: Tensor, width: int, shift: int = 0) -> Tensor:
    """Return cosines and sines of `c_noise` [B] at frequencies from 1 to about 1/10000, float32 [B width].

    This is the position encoding of Vaswani et al. 2017, section 3.5. Ho et al. 2020 use it with `shift` 1, which makes
    the last frequency exactly 1/10000. In bfloat16 the timesteps 999 and 1000 would be one.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=c_noise.device) * (-math.log(10_000) / (half - shift)))  # [half]
    angles = c_noise.float()[:, None] * frequencies  # [B half]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class Embedding(nn.Module):
    """The embedding of all that conditions a net: noise level and, if the net has them, label and augmentation.

    Args:
        width, out_width: number of sinusoids; E.
        num_classes, augment_channels: the number of labels, which is also the null label, and A; each is 0 for none.
        frequency_shift: the `shift` of `sinusoids`.
    """

    def __init__(
        self, width: int, out_width: int, num_classes: int = 0, augment_channels: int = 0, frequency_shift: int = 0
    ) -> None:
        super().__init__()
        self.width, self.frequency_shift = width, frequency_shift
        self.mlp = nn.Sequential(nn.Linear(width, out_width), nn.SiLU(), nn.Linear(out_width, out_width))
        # nn.Embedding's own initial weights are the same, but on the meta device they import torch's compiler: seconds.
        weight = torch.randn(num_classes + 1, out_width) if num_classes else None
        self.label = None if weight is None else nn.Embedding(num_classes + 1, out_width, _weight=weight)
        self.augment = nn.Linear(augment_channels, out_width, bias=False) if augment_channels else None

    def forward(self, c_noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Return the embedding [B E] of `c_noise` [B], `label` int64 [B] and `augment` [B A]."""
        waves = sinusoids(c_noise, self.width, self.frequency_shift)
        e = self.mlp(waves.to(next(self.parameters()).dtype))
        if self.label is not None:
            if label is None:
                label = torch.full(c_noise.shape, self.label.num_embeddings - 1, device=c_noise.device)
            e = e + self.label(label)
        if self.augment is not None and augment is not None:
            e = e + self.augment(augment)
        return F.silu(e)


@torch.no_grad()
def null_from_labels(net: nn.Module) -> None:
    """Let the null label of a net be the mean of the others: where training has never drawn it, it is random."""
    for module in net.modules():
        if isinstance(module, Embedding) and module.label is not None:
            module.label.weight[-1] = module.label.weight[:-1].mean(dim=0)


class Uncertainty(nn.Module):
    """The log of the loss to be expected, linear in sinusoids of log SNR (as Karras et al. 2024, EDM2, appendix B.4).

    It starts at 0, which leaves the loss as it is, and is float32 under autocast too.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, log_snr: Tensor) -> Tensor:
        """Return the log of the expected loss [B] at `log_snr` [B]."""
        return (sinusoids(log_snr, len(self.weight)) * self.weight).sum(dim=1)


class ResBlock(nn.Module):
    """A residual block: norm, SiLU and 3x3 convolution, twice, with the embedding between the two.

    With `scale_shift` the embedding scales and shifts the result of the second norm (Dhariwal & Nichol 2021, "AdaGN"),
    else it is added (Ho et al. 2020). The last convolution starts at zero, and so the block starts as its shortcut.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding: int, dropout: float = 0.0, scale_shift: bool = True,
        norm: Norm = group_norm,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = norm(in_channels)
        self.conv1 = Conv(in_channels, out_channels)
        self.embedding = nn.Linear(embedding, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = dropout
        self.conv2 = zero(Conv(out_channels, out_channels))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, e: Tensor, resize: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Return [B C' H' W'] for `x` [B C H W] and `e` [B E]; `resize` makes H' W' of H W in both branches."""
        h = self.conv1(resize(self.norm1(x, silu=True)))
        embedding = self.embedding(e)
        if self.scale_shift:
            scale, shift = embedding.chunk(2, dim=1)
            h = self.norm2(h, scale, shift, silu=True, dropout=self.dropout)
        else:
            h = self.norm2(h + embedding[..., None, None], silu=True, dropout=self.dropout)
        return self.shortcut(resize(x)) + self.conv2(h)


class Attention(nn.Module):
    """Self-attention over all positions [B C H W] (Vaswani et al. 2017), as a residual branch that starts at zero.

    `qk_norm` RMS-normalises queries and keys (Henry et al. 2020), which keeps long runs in bfloat16 from diverging.

    Raises:
        ValueError: if `heads` does not divide C.
    """

    def __init__(self, channels: int, heads: int = 1, qk_norm: bool = False, norm: Norm = group_norm) -> None:
        super().__init__()
        self.heads = heads
        if channels % heads:
            raise ValueError(f"attention on {channels} channels cannot be divided into {heads} heads")
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.q_norm = nn.RMSNorm(channels // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(channels // heads) if qk_norm else nn.Identity()
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        # Fused kernels need the numbers of a token side by side in memory. This copies only if x is not channels_last.
        tokens = rearrange(self.qkv(self.norm(x)), "b c h w -> b (h w) c").contiguous()
        q, k, v = rearrange(tokens, "b n (three heads c) -> three b heads n c", three=3, heads=self.heads)
        h = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)  # [B heads N c]
        return x + self.out(rearrange(h, "b heads (h w) c -> b (heads c) h w", h=x.shape[2]))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2, from [B C H W] to [B C ceil(H/2) ceil(W/2)].

    With `asymmetric` it pads an even size only at the right and at the bottom, as TensorFlow and the code of DDPM do.
    """

    def __init__(self, channels: int, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        if self.asymmetric:
            x = F.pad(x, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest neighbours from [B C H W] to [B C *size] and a 3x3 convolution: no checkerboards (Odena et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, x: Tensor, e: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class ResidualDownsample(nn.Module):
    """A residual block that halves [B C H W] by means of 2x2, rounding up (Dhariwal & Nichol 2021, after BigGAN)."""

    def __init__(self, res: ResBlock) -> None:
        super().__init__()
        self.res = res

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return self.res(x, e, lambda h: F.avg_pool2d(h, 2, ceil_mode=True))


class ResidualUpsample(nn.Module):
    """A residual block that enlarges [B C H W] to `size` by nearest neighbours (Dhariwal & Nichol 2021)."""

    def __init__(self, res: ResBlock) -> None:
        super().__init__()
        self.res = res

    def forward(self, x: Tensor, e: Tensor, size: tuple[int, int]) -> Tensor:
        return self.res(x, e, lambda h: F.interpolate(h, size=size, mode="nearest"))
