"""Kernels of our own: normalisation in one go, on a CPU and on NVIDIA's GPUs, and, on a CPU, Winograd's convolution.

Those for a CPU are `kernels.cpp`, those for a GPU triton_norm.py. They compute what layers.py computes by torch's
functions, and are used where `Compute.native` says so. Results agree with torch's up to rounding. Only the gradient of
weights, for which torch multiplies, may depend on the number of threads.

Legend: B batch, C C' channels, H W height and width, T tiles of 4x4 pixels in a batch.
"""

import contextlib
import ctypes
import importlib.util
import math
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffunet import compiler
from diffunet.compiler import Unavailable

SOURCE = Path(__file__).with_name("kernels.cpp")

WORKSPACE, ROWS = 2**20, 256
"""The numbers that a chunk of images has as tiles, which should stay in a CPU's cache; but at least so many tiles, as
products of fewer rows are slow."""

FEWEST_TILES, FEWEST_CHANNELS = 64, 16
"""With fewer tiles, transforming the weights takes longer than it saves; with fewer channels, that of the tiles."""

_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
GPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The types of feature maps that are normalised on a CPU, and on a GPU."""

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_NORM = [*[_LONG] * 4, *[_POINTER] * 5, _FLOAT, _INT, ctypes.c_uint32, _FLOAT, ctypes.c_uint64, _INT]
_SIGNATURES = {
    "norm_forward_float32": [*[_POINTER] * 2, *_NORM], "norm_forward_bfloat16": [*[_POINTER] * 2, *_NORM],
    "norm_backward_float32": [*[_POINTER] * 4, *_NORM], "norm_backward_bfloat16": [*[_POINTER] * 4, *_NORM],
    "input_transform": [*[_POINTER] * 2, *[_LONG] * 4, _INT],
    "gradient_transform": [*[_POINTER] * 2, *[_LONG] * 4, _INT],
    "weight_transform": [*[_POINTER] * 2, *[_LONG] * 4, _INT, _INT],
    "weight_gradient": [*[_POINTER] * 2, *[_LONG] * 2, _INT],
    "convolution": [*[_POINTER] * 4, *[_LONG] * 5, _INT], "panel": [],
}  # fmt: skip


CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""The most by which kernels may be off, as a share of the root mean square, or else they are not used. Measured: 1.4e-5
in float32, and in bfloat16 0.035, which is its rounding."""


@cache
def ready(device: torch.device) -> None:
    """Build the kernels for a device, and compare them there with torch's functions, once in a process.

    Raises:
        Unavailable: there are none for such a device, they cannot be built, or what they compute there is wrong.
    """
    if device.type == "cpu":
        _loaded()
    elif device.type != "cuda":
        raise Unavailable(f"they are for a CPU and for NVIDIA's GPUs, and the device is {device.type}")
    elif importlib.util.find_spec("triton") is None:
        raise Unavailable("triton, which builds them for a GPU, is not installed")
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for dtype in _TYPES if device.type == "cpu" else GPU_TYPES:
            try:
                off = _off(dtype, device)
            except Exception as error:  # Triton's compiler and driver raise what they like
                if device.type == "cpu":
                    raise
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise Unavailable(f"they cannot be built for this GPU: {reason}") from None
            if not off <= CLOSE[dtype]:  # true for NaN, too
                raise Unavailable(f"the kernels are wrong on this machine, off by {off:.1e}")


def _off(dtype: torch.dtype, device: torch.device) -> float:
    """Return by how much `norm` and, in float32, `conv` and their gradients are off, as shares of the root mean square.

    The truth is torch's in float32. Sizes are no multiples of what the kernels take at a time.
    """
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(device).requires_grad_()

    x, slope, weight, bias, scale, shift = (
        made(2, 40, 9, 7),
        made(2, 40, 9, 7),
        made(40),
        made(40),
        made(2, 40),
        made(2, 40),
    )
    given = [x, weight, bias, scale, shift]

    def torchs(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, 5, weight, bias) * (1 + scale[..., None, None]) + shift[..., None, None])

    def ours(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return norm(x.to(dtype), 5, weight, bias, 1e-5, scale, shift, silu=True).float()

    off = _difference(ours, torchs, given, slope)
    if dtype is torch.float32 and device.type == "cpu":
        off = max(off, _difference(conv, partial(F.conv2d, padding=1), [x, made(40, 40, 3, 3), bias], slope))
    return off


def _difference(
    ours: Callable[..., Tensor], torchs: Callable[..., Tensor], given: list[Tensor], slope: Tensor
) -> float:
    """Return the largest difference of two functions of tensors and of their gradients."""
    found = []
    for function in (ours, torchs):
        y = function(*given)
        found.append([y.detach(), *torch.autograd.grad(y, given, slope)])
    pairs = zip(*found, strict=True)
    return max(float((mine - true).abs().max() / true.square().mean().sqrt()) for mine, true in pairs)


@cache
def _loaded() -> ctypes.CDLL:
    loaded = compiler.library(SOURCE)
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, _INT if name == "panel" else None
    return loaded


class _Drawing(threading.local):
    generator: torch.Generator | None = None


_drawing = _Drawing()


@contextlib.contextmanager
def drawing_from(generator: torch.Generator | None) -> Iterator[None]:
    """Let this thread draw dropout from a generator of its own; None is the one that all threads share."""
    _drawing.generator = generator
    try:
        yield
    finally:
        _drawing.generator = None


def dropout(x: Tensor, probability: float) -> Tensor:
    """Return torch's dropout of `x` by `probability`, drawn from this thread's generator where it has its own."""
    if _drawing.generator is None:
        return F.dropout(x, probability)
    kept = torch.empty_like(x).bernoulli_(1 - probability, generator=_drawing.generator)
    return x * (kept / max(1 - probability, 1e-9))


def norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, scale: Tensor | None = None,
    shift: Tensor | None = None, silu: bool = False, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """Return GroupNorm of `x`, times 1 + `scale` plus `shift`, then SiLU and dropout: [B C H W], channels last.

    The mask of dropout is a hash of the place of a feature and of a number that is drawn from torch's generator; it is
    computed again in the backward pass, and is never stored.

    Args:
        x: [B C H W], float32, bfloat16 or, on a GPU, float16; the sums are in float32 and, on a CPU, float64.
        groups, weight, bias, eps: as of `torch.nn.GroupNorm`; weight and bias are [C].
        scale, shift: [B C], or None.
        silu, dropout: whether SiLU follows, and the probability of dropout, 0 to below 1.
    """
    seed = torch.randint(2**63 - 1, (), device=x.device, generator=_drawing.generator) if dropout else None
    return _Norm.apply(x, weight, bias, scale, shift, groups, eps, silu, dropout, seed)  # type: ignore[no-any-return]


class _Norm(torch.autograd.Function):
    """`norm`, with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int,
        eps: float, silu: bool, dropout: float, seed: Tensor | None,
    ) -> Tensor:  # fmt: skip
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.types = [None if each is None else each.dtype for each in (weight, bias, scale, shift)]
        known = [None if each is None else each.float().contiguous() for each in (weight, bias, scale, shift)]
        ctx.options = groups, eps, silu, dropout, seed
        stats = torch.empty(len(x), groups, 2, device=x.device)
        y = torch.empty_like(x)
        ctx.save_for_backward(x, stats, *known)
        _norm("forward", (x, stats, *known), ctx.options, x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, stats, weight, bias, scale, shift = ctx.saved_tensors
        dx, sums = torch.empty_like(x), torch.empty(len(x), 2, x.shape[1], device=x.device)
        gy = gy.to(x.dtype).contiguous(memory_format=torch.channels_last)
        _norm("backward", (x, stats, weight, bias, scale, shift), ctx.options, x, gy, dx, sums)
        plain, normed = sums.unbind(1)  # the sums over pixels of the gradient, and of it times the normalised features
        gain = 1 if scale is None else 1 + scale
        gradients = [
            (gain * normed).sum(0), (gain * plain).sum(0),
            None if scale is None else weight * normed + bias * plain, None if shift is None else plain,
        ]  # fmt: skip
        cast = [None if g is None else g.to(t) for g, t in zip(gradients, ctx.types, strict=True)]
        return dx, *cast, None, None, None, None, None


def _norm(which: str, known: tuple[Tensor | None, ...], options: tuple[Any, ...], *tensors: Tensor) -> None:
    """Call one of the two kernels of `norm`."""
    x, stats, weight, bias, scale, shift = known
    groups, eps, silu, dropout, seed = options
    assert x is not None
    if x.device.type != "cpu":
        from diffunet.nn import triton_norm

        getattr(triton_norm, which)(*tensors, stats, (weight, bias, scale, shift), options)
        return
    b, c, h, w = x.shape
    function = getattr(_loaded(), f"norm_{which}_{_TYPES[x.dtype]}")
    drop = min(2**32 - 1, round(dropout * 2**32))
    function(
        *map(_pointer, tensors), b, h * w, c, groups,
        *map(_pointer, (weight, bias, scale, shift, stats)), eps, silu, drop, 1 / (1 - dropout), int(seed or 0),
        torch.get_num_threads(),
    )  # fmt: skip


def norm_applies(x: Tensor) -> bool:
    """Return whether `norm` is there for such a tensor."""
    return (x.device.type == "cpu" and x.dtype in _TYPES) or (x.device.type == "cuda" and x.dtype in GPU_TYPES)


def conv_applies(x: Tensor, weight: Tensor) -> bool:
    """Return whether `conv` is there, and faster than torch's, for `x` [B C H W] and `weight` [C' C 3 3]."""
    if x.device.type != "cpu" or {x.dtype, weight.dtype} != {torch.float32} or torch.is_autocast_enabled("cpu"):
        return False
    tiles = math.prod(x.shape[:1] + tuple(-(-side // 4) for side in x.shape[2:]))
    used = len(x) * x.shape[2] * x.shape[3] / (16 * tiles)
    return used > 0.5 and tiles >= FEWEST_TILES and min(weight.shape[:2]) >= FEWEST_CHANNELS


def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution of `x` [B C H W] by `weight` [C' C 3 3], padded by 1, plus `bias` [C']: [B C' H W].

    Every 4x4 pixels of the output take 36 products a channel instead of 144 (Lavin & Gray 2016, F(4x4, 3x3)). All is
    float32; the largest error is about 3e-5 of the output's root mean square, where the direct sum has 6e-6.
    """
    return _Conv.apply(x, weight, bias)  # type: ignore[no-any-return]


class _Conv(torch.autograd.Function):
    """`conv`, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
        ctx.save_for_backward(x, weight)
        return _convolution(x, _transformed(weight, adjoint=False), bias, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gy = gy.contiguous(memory_format=torch.channels_last)
        to_x, to_weight, to_bias = ctx.needs_input_grad
        dx = _convolution(gy, _transformed(weight, adjoint=True), None, weight.shape[1]) if to_x else None
        return dx, _weight_gradient(x, gy) if to_weight else None, gy.sum((0, 2, 3)) if to_bias else None


def _transformed(weight: Tensor, *, adjoint: bool) -> Tensor:
    """Return the transform of `weight` [C' C 3 3], channels last, as `_convolution` takes it; or of its adjoint."""
    taps = weight.permute(0, 2, 3, 1) if adjoint else weight.permute(1, 2, 3, 0).contiguous()  # [in 3 3 out]
    (c_in, _, _, c_out), panel = taps.shape, _loaded().panel()
    u = torch.empty(36, -(-c_out // panel), c_in, panel, device="cpu")
    threads = torch.get_num_threads()
    _loaded().weight_transform(_pointer(taps), _pointer(u), c_in, c_out, c_out, 9 * c_out, adjoint, threads)
    return u


def _convolution(x: Tensor, u: Tensor, bias: Tensor | None, c_out: int) -> Tensor:
    """Return the convolution of `x` [B C H W] by transformed weights: [B C' H W]."""
    b, c, h, w = x.shape
    y = torch.empty(b, c_out, h, w, device="cpu", memory_format=torch.channels_last)
    _loaded().convolution(*map(_pointer, (x, u, bias, y)), b, h, w, c, c_out, torch.get_num_threads())
    return y


def _weight_gradient(x: Tensor, gy: Tensor) -> Tensor:
    """Return the gradient [C' C 3 3] with respect to the weights, for `x` [B C H W] and `gy` [B C' H W]."""
    (b, c, h, w), c_out, threads = x.shape, gy.shape[1], torch.get_num_threads()
    each = -(-h // 4) * -(-w // 4)  # tiles of an image
    most = min(b, max(-(-ROWS // each), WORKSPACE // (36 * each * (c + c_out))))
    v, m = (torch.empty(36 * most * each * width, device="cpu") for width in (c, c_out))  # once, as new memory is slow
    du = torch.zeros(36, c_out, c, device="cpu")
    dweight = torch.empty(c_out, c, 3, 3, device="cpu", memory_format=torch.channels_last)
    for first in range(0, b, most):
        n = min(most, b - first)
        _loaded().input_transform(_pointer(x[first:]), _pointer(v), n, h, w, c, threads)
        _loaded().gradient_transform(_pointer(gy[first:]), _pointer(m), n, h, w, c_out, threads)
        tiles = [room[: 36 * n * each * width].view(36, n * each, width) for room, width in ((m, c_out), (v, c))]
        du.baddbmm_(tiles[0].mT, tiles[1])
    _loaded().weight_gradient(_pointer(du), _pointer(dweight), c_out, c, threads)
    return dweight


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
