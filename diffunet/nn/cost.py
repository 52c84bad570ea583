"""The cost of a net: the shapes of its feature maps, its parameters and its multiply-accumulates (MACs). It runs on
torch's meta device, where operations have shapes and nothing is computed."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Row:
    """One part of a net, with the `shape` [channels height width] or [width] of its output and `macs` for one image."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """The `parameters` of a net and its `macs` for one image, in total and in `rows` for its parts."""

    rows: tuple[Row, ...]
    parameters: int
    macs: int


def cost(net: nn.Module, height: int, width: int, time: bool = True, channels: int | None = None) -> Cost:
    """Return the cost of `net(x, c_noise)`, or of `net(x)` without `time`, for one image of `height` x `width`.

    The input has so many `channels`, by default `net.in_channels`. The net is copied, and stays as it is.
    """
    net = copy.deepcopy(net).to("meta").train()
    counter = FlopCounterMode(display=False)
    rows: list[Row] = []
    flops_before = 0

    def before(*_: Any) -> None:
        nonlocal flops_before
        flops_before = counter.get_total_flops()

    def after(name: str, part: nn.Module, _: Any, output: Any) -> None:
        last = output[-1] if isinstance(output, list) else output
        rows.append(Row(name, tuple(last.shape[1:]), _count(part), (counter.get_total_flops() - flops_before) // 2))

    for name, part in _parts(net):  # They run one after the other, and none within another.
        part.register_forward_pre_hook(before)
        part.register_forward_hook(partial(after, name))
    x = torch.empty(1, channels or int(net.in_channels), height, width, device="meta")  # type: ignore[arg-type]
    with counter:
        net(x, *([torch.empty(1, device="meta")] if time else []))
    return Cost(tuple(rows), _count(net), counter.get_total_flops() // 2)


def _parts(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the named children of a net, but the children of lists and of modules that are `opened` in their place."""
    parts: list[tuple[str, nn.Module]] = []
    for name, child in net.named_children():
        opened = isinstance(child, nn.ModuleList) or getattr(child, "opened", False)
        parts += [(f"{name}.{inner}", part) for inner, part in _parts(child)] if opened else [(name, child)]
    return parts


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
