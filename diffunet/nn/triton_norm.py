"""Normalisation with what follows it in one go on NVIDIA's GPUs, as kernels.py has it for a CPU; written in Triton.

Under autocast torch normalises in float32, one operation after the other, and feature maps whose channels lie side by
side are copied for it: in a training step of DDPM's net on an H100 all that is no convolution took 2.6 times as long as
the convolutions. Here a feature map is read and written once, and read again out of the cache, in its own type; sums
are in float32. On an H200, in bf16, a step of a net of 6.7 M parameters took 24.7 ms of the GPU with these kernels, and
55.3 with torch's functions (samples/gpu.md). Each process compares them with torch, and each run tries whether they are
faster, before they are used.

Importing this module needs Triton, which comes with torch for CUDA. With TRITON_INTERPRET=1 the kernels run on a CPU.

Legend: B batch, C channels, G groups, H W height and width.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""The numbers that a program takes at a time."""

WARPS = 8
"""The warps of 32 threads of a program."""


@triton.jit
def _features(z, silu: tl.constexpr):
    """Return SiLU of z and its slope, or z and 1."""
    if silu:
        gate = tl.sigmoid(z)
        y = z * gate
        slope = gate * (1.0 + z * (1.0 - gate))
    else:
        y = z
        slope = z * 0.0 + 1.0
    return y, slope


@triton.jit
def _kept(place, seed, drop, dropout: tl.constexpr):
    """Return what dropout multiplies the numbers at these places by: 0 or 1 / (1 - drop)."""
    factor = place * 0.0 + 1.0
    if dropout:
        factor = tl.where(tl.rand(tl.load(seed), place.to(tl.uint32)) >= drop, 1.0 / (1.0 - drop), 0.0)
    return factor


@triton.jit
def _affine(weight, bias, scale, shift, image, channel, within, channels, scaled: tl.constexpr):
    """Return by what the normalised features of some channels of an image are multiplied, and what is added."""
    gain = tl.load(weight + channel, mask=within, other=0.0)
    offset = tl.load(bias + channel, mask=within, other=0.0)
    if scaled:
        more = 1.0 + tl.load(scale + image * channels + channel, mask=within, other=0.0)
        gain = gain * more
        offset = offset * more + tl.load(shift + image * channels + channel, mask=within, other=0.0)
    return gain, offset


@triton.jit
def _forward(
    x, y, stats, weight, bias, scale, shift, pixels, channels, each, groups, eps, seed, drop,
    rows: tl.constexpr, width: tl.constexpr, scaled: tl.constexpr, silu: tl.constexpr, dropout: tl.constexpr,
):  # fmt: skip
    """Normalise a group of an image: x and y are [B H W C], stats [B G 2] gets its mean and 1 / deviation."""
    program = tl.program_id(0)
    image, group = program // groups, program % groups
    inside = tl.arange(0, width)
    channel, within = group * each + inside, inside < each
    start = image.to(tl.int64) * pixels * channels
    total = tl.zeros([rows, width], tl.float32)
    for first in range(0, pixels, rows):
        row = first + tl.arange(0, rows)
        mask = (row < pixels)[:, None] & within[None, :]
        total += tl.load(x + start + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(total) / (pixels * each)
    total = tl.zeros([rows, width], tl.float32)
    for first in range(0, pixels, rows):
        row = first + tl.arange(0, rows)
        mask = (row < pixels)[:, None] & within[None, :]
        value = tl.load(x + start + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        off = tl.where(mask, value - mean, 0.0)
        total += off * off
    inverse = 1.0 / tl.sqrt(tl.sum(total) / (pixels * each) + eps)
    tl.store(stats + 2 * program, mean)
    tl.store(stats + 2 * program + 1, inverse)
    gain, offset = _affine(weight, bias, scale, shift, image, channel, within, channels, scaled)
    for first in range(0, pixels, rows):
        row = first + tl.arange(0, rows)
        mask = (row < pixels)[:, None] & within[None, :]
        place = start + row[:, None] * channels + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        out, _ = _features((value - mean) * inverse * gain[None, :] + offset[None, :], silu)
        tl.store(y + place, out * _kept(place, seed, drop, dropout), mask=mask)


@triton.jit
def _backward(
    x, gy, dx, sums, stats, weight, bias, scale, shift, pixels, channels, each, groups, seed, drop,
    rows: tl.constexpr, width: tl.constexpr, scaled: tl.constexpr, silu: tl.constexpr, dropout: tl.constexpr,
):  # fmt: skip
    """Write dx of a group of an image, and to sums [B 2 C] those of the slope and of it times normalised features."""
    program = tl.program_id(0)
    image, group = program // groups, program % groups
    inside = tl.arange(0, width)
    channel, within = group * each + inside, inside < each
    start = image.to(tl.int64) * pixels * channels
    mean, inverse = tl.load(stats + 2 * program), tl.load(stats + 2 * program + 1)
    gain, offset = _affine(weight, bias, scale, shift, image, channel, within, channels, scaled)
    plain, normed = tl.zeros([rows, width], tl.float32), tl.zeros([rows, width], tl.float32)
    for first in range(0, pixels, rows):
        row = first + tl.arange(0, rows)
        mask = (row < pixels)[:, None] & within[None, :]
        place = start + row[:, None] * channels + channel[None, :]
        norm = tl.where(mask, (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - mean) * inverse, 0.0)
        _, slope = _features(norm * gain[None, :] + offset[None, :], silu)
        g = tl.load(gy + place, mask=mask, other=0.0).to(tl.float32) * slope * _kept(place, seed, drop, dropout)
        plain += g
        normed += g * norm
    of_plain, of_normed = tl.sum(plain, axis=0), tl.sum(normed, axis=0)
    tl.store(sums + image * 2 * channels + channel, of_plain, mask=within)
    tl.store(sums + (image * 2 + 1) * channels + channel, of_normed, mask=within)
    first_mean = tl.sum(gain * of_plain) / (pixels * each)
    second_mean = tl.sum(gain * of_normed) / (pixels * each)
    for first in range(0, pixels, rows):
        row = first + tl.arange(0, rows)
        mask = (row < pixels)[:, None] & within[None, :]
        place = start + row[:, None] * channels + channel[None, :]
        norm = (tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - mean) * inverse
        _, slope = _features(norm * gain[None, :] + offset[None, :], silu)
        g = tl.load(gy + place, mask=mask, other=0.0).to(tl.float32) * slope * _kept(place, seed, drop, dropout)
        tl.store(dx + place, inverse * (g * gain[None, :] - first_mean - norm * second_mean), mask=mask)


def forward(x: Tensor, y: Tensor, stats: Tensor, known: tuple[Tensor | None, ...], options: tuple[Any, ...]) -> None:
    """Write y and stats [B G 2] of x [B C H W], channels last; `known` and `options` are those of kernels.norm.

    The seed of dropout, int64 [], is on the device, so that a recorded step (training/cuda_graph.py) has new ones.
    """
    groups, eps, silu, dropout, seed = options
    seed = stats if seed is None else seed  # which is not read then
    arguments, constants = _shared(x, known, groups)
    _forward[(len(x) * groups,)](
        x, y, stats, *arguments, eps, seed, dropout, silu=silu, dropout=dropout > 0, **constants, num_warps=WARPS,
    )  # fmt: skip


def backward(
    x: Tensor, gy: Tensor, dx: Tensor, sums: Tensor, stats: Tensor, known: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
) -> None:  # fmt: skip
    """Write dx and sums [B 2 C], see `_backward`."""
    groups, _, silu, dropout, seed = options
    seed = stats if seed is None else seed
    arguments, constants = _shared(x, known, groups)
    _backward[(len(x) * groups,)](
        x, gy, dx, sums, stats, *arguments, seed, dropout, silu=silu, dropout=dropout > 0, **constants, num_warps=WARPS,
    )  # fmt: skip


def _shared(x: Tensor, known: tuple[Tensor | None, ...], groups: int) -> tuple[list[Any], dict[str, Any]]:
    """Return what both kernels are told: weight, bias, scale, shift and sizes; and the constants."""
    _, c, h, w = x.shape
    weight, bias, scale, shift = known
    width = triton.next_power_of_2(c // groups)
    rows = max(1, min(triton.next_power_of_2(h * w), BLOCK // width))
    scaled = scale is not None
    given = [weight, bias, scale if scaled else weight, shift if scaled else weight]
    return [*given, h * w, c, c // groups, groups], {"rows": rows, "width": width, "scaled": scaled}
