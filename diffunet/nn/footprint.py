"""The peak memory of a net in training and in use, counted operation by operation on torch's meta device, where nothing
is computed or allocated. It is always a constant (weights and their gradients) plus a multiple of the batch size
(feature maps). A single pass gives both, and so the peak for every batch size: see `PRIME`."""

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
"""The batch size of the pass that is counted. The sizes of feature maps are multiples of the batch size. Since this is
a large prime, the sizes of weights, products of small numbers, are not; so divisibility tells the two apart."""


@dataclass(frozen=True)
class Footprint:
    """The bytes in memory after each operation, `constant[i] + batch * per_image[i]`, and the net's `parameters`."""

    constant: tuple[int, ...]
    per_image: tuple[int, ...]
    parameters: int

    def peak(self, batch: int) -> int:
        """Return the largest number of bytes in memory at any moment, for a batch of `batch` images."""
        return max(c + batch * p for c, p in zip(self.constant, self.per_image, strict=True))


def footprint(
    net: nn.Module, height: int, width: int, precision: torch.dtype, device: str, *, learn: bool, time: bool = True,
    channels: int | None = None,
) -> Footprint:  # fmt: skip
    """Return the memory of `net(x, c_noise)`, or of `net(x)` without `time`, with weights and, if `learn`, gradients.

    Args:
        net, height, width: a net, which is copied; the size of the images.
        precision, device: torch.float32, or the type of autocast; "cuda", "mps" or "cpu", whose autocast is imitated.
        learn: count a forward and a backward pass; otherwise a forward pass, with weights that were cast before.
        channels: channels of the input, by default `net.in_channels`.
    """
    net = copy.deepcopy(net).to("meta").train(learn).requires_grad_(learn)
    if not learn:
        for part in net.modules():  # `Compute.prepare` casts the same layers.
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                part.to(precision)
    cast = _Autocast(precision, device)
    for part in net.modules():
        part.forward = partial(cast.run, part.forward)  # type: ignore[method-assign]
    with _Memory(net.parameters()) as memory, torch.set_grad_enabled(learn):
        # As in use, the caller's names keep the inputs in memory to the end.
        x = torch.empty(PRIME, channels or int(net.in_channels), height, width, device="meta")  # type: ignore[arg-type]
        c_noise = [torch.empty(PRIME, device="meta")] if time else []
        output = net(x, *c_noise)
        if learn:
            output.float().square().sum().backward()
    return Footprint(tuple(memory.constant), tuple(memory.per_image), sum(p.numel() for p in net.parameters()))


class _Memory(TorchDispatchMode):
    """Records after each operation how many bytes are in memory, constant and per image, beginning with the weights."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = [0, 0]  # constant, per image
        self.constant, self.per_image = list[int](), list[int]()
        for weight in weights:
            self._add(weight)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        kind, size = (0, size) if size % PRIME else (1, size // PRIME)
        if key in self.known:
            return
        self.known.add(key)
        self.now[kind] += size

        def remove() -> None:
            self.known.discard(key)
            self.now[kind] -= size

        weakref.finalize(storage, remove).atexit = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        self.constant.append(self.now[0])
        self.per_image.append(self.now[1])
        return output


class _Autocast(TorchFunctionMode):
    """Casts as autocast does on a device that this machine need not have, and keeps what fused attention keeps.

    According to torch's lists, convolutions, products and attention have the low precision everywhere, and norms have
    float32 except on a CPU.
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
        """Run a module's forward in this mode, also where a checkpoint calls it again during the backward pass."""
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
            return _Attention.apply(*(self._cast(value, self.low) for value in args[:3]))
        dtype = self.low if func in self.LOW else self.high if func in self.HIGH else None
        if dtype is not None and self.low is not torch.float32:
            args = [self._cast(value, dtype) for value in args]
            kwargs = {name: self._cast(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype is dtype:
            return value
        if not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(dtype)
        if value not in self.casts:  # Autocast keeps the casts of weights until its end.
            self.casts[value] = value.to(dtype)
        return self.casts[value]


class _Attention(torch.autograd.Function):
    """Attention that keeps its inputs, its output and one number for each query, as fused kernels do."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
