"""How much memory a net takes at most, in training and in use: counted operation by operation on torch's meta device,
where nothing is computed or allocated.

What lives at each moment is a constant (weights, gradients) and a multiple of the batch (feature maps). One walk tells
them apart, with a large prime number of images, and so gives the peak for every batch.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRIME = 8191
"""Images of the walk: sizes of feature maps are multiples of it, and those of weights are not."""


@dataclass(frozen=True)
class Footprint:
    """Bytes that live at each moment of a walk, `constant[i] + batch * each[i]`, of a net of so many `parameters`."""

    constant: tuple[int, ...]
    each: tuple[int, ...]
    parameters: int

    def peak(self, batch: int) -> int:
        """The most bytes at any moment with so many images."""
        return max(c + batch * e for c, e in zip(self.constant, self.each, strict=True))


def footprint(
    net: nn.Module,
    height: int,
    width: int,
    precision: torch.dtype,
    device: str,
    *,
    learn: bool,
    time: bool = True,
    channels: int | None = None,
) -> Footprint:
    """What `net(x, c_noise)`, or `net(x)` without `time`, takes, its weights and (with `learn`) gradients included.

    Args:
        net: on the meta device.
        height, width: of the images.
        precision: torch.float32, or the type of autocast.
        device: "cuda", "mps" or "cpu", whose autocast it is.
        channels: of its input, `net.in_channels` by default.
        learn: forwards and backwards, or in use, with weights cast beforehand.
    """
    net = copy.deepcopy(net).to("meta").train(learn).requires_grad_(learn)
    if not learn:
        for part in net.modules():  # as `Compute.prepare` does
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                part.to(precision)
    cast = _Autocast(precision, device)
    for part in net.modules():
        part.forward = partial(cast.run, part.forward)  # type: ignore[method-assign]
    with _Alive(net.parameters()) as alive, torch.set_grad_enabled(learn):
        x = torch.empty(PRIME, channels or int(net.in_channels), height, width, device="meta")  # type: ignore[arg-type]
        told = (torch.empty(PRIME, device="meta"),) if time else ()
        out = net(x, *told)
        if learn:
            out.float().square().sum().backward()
    return Footprint(tuple(alive.constant), tuple(alive.each), sum(p.numel() for p in net.parameters()))


class _Alive(TorchDispatchMode):
    """Notes after each operation how many bytes are alive, in all and of each image, beginning with the weights."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = [0, 0]
        self.constant: list[int] = []
        self.each: list[int] = []
        for weight in weights:
            self._see(weight)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        kind, size = (0, size) if size % PRIME else (1, size // PRIME)
        if key in self.known:
            return
        self.known.add(key)
        self.now[kind] += size

        def gone() -> None:
            self.known.discard(key)
            self.now[kind] -= size

        weakref.finalize(storage, gone).atexit = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._see(each)
        self.constant.append(self.now[0])
        self.each.append(self.now[1])
        return out


class _Autocast(TorchFunctionMode):
    """What autocast does to types on a device that need not be there; attention as fused kernels do it, too.

    torch's lists: convolutions, products and attention take the low precision everywhere, norms float32 but on a CPU.
    """

    LOW = (F.conv2d, F.conv_transpose2d, F.linear, torch.conv2d, torch.conv_transpose2d)
    HIGH = (F.group_norm, torch.group_norm, F.rms_norm, torch.rms_norm)

    def __init__(self, precision: torch.dtype, device: str) -> None:
        super().__init__()
        self.low = precision
        self.high = None if device == "cpu" else torch.float32
        self.casts: dict[Tensor, Tensor] = {}
        self.inside = False

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A module's forward, in this mode: also where a checkpoint calls it again on the way back."""
        if self.inside:
            return forward(*args, **kwargs)
        self.inside = True
        try:
            with self:
                return forward(*args, **kwargs)
        finally:
            self.inside = False

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*(self._to(each, self.low) for each in args[:3]))
        wanted = self.low if func in self.LOW else self.high if func in self.HIGH else None
        if wanted is not None and self.low is not torch.float32:
            args = [self._to(each, wanted) for each in args]
            kwargs = {name: self._to(each, wanted) for name, each in kwargs.items()}
        return func(*args, **kwargs)

    def _to(self, value: Any, wanted: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype is wanted:
            return value
        if isinstance(value, nn.Parameter) and value.requires_grad:
            if value not in self.casts:  # autocast keeps these until its end
                self.casts[value] = value.to(wanted)
            return self.casts[value]
        return value.to(wanted)


class _Attention(torch.autograd.Function):
    """Attention that keeps its inputs, its output and a number for each query, as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
