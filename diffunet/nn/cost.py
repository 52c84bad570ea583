"""What a net costs: shapes as a tensor flows through it, parameters, MACs; nothing is computed for it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Row:
    """One part of a net: its `name`, its output's `shape` [C H W] or [E], `parameters`, and `macs` for one image."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """`parameters` and `macs` (multiply-accumulates of one image) of a net, in all and by its parts."""

    rows: tuple[Row, ...]
    parameters: int
    macs: int


def cost(net: nn.Module, height: int, width: int, time: bool = True, channels: int | None = None) -> Cost:
    """Run `net(x, c_noise)`, or `net(x)` without `time`, for one image of `height` x `width` on torch's meta device and
    count.

    `channels` of input are by default `net.in_channels`; the net is copied, not changed.
    """
    net = copy.deepcopy(net).to("meta").train()
    rows: list[Row] = []
    handles = []
    parts = [(name, part) for name, part in _parts(net)]
    counter = FlopCounterMode(display=False)
    started: dict[str, int] = {}

    def before(name: str) -> Any:
        def hook(*_: Any) -> None:
            started[name] = counter.get_total_flops()

        return hook

    def after(name: str) -> Any:
        def hook(part: nn.Module, _: Any, output: Any) -> None:
            last = output[-1] if isinstance(output, list) else output
            macs = (counter.get_total_flops() - started[name]) // 2
            rows.append(Row(name, tuple(last.shape[1:]), _count(part), macs))

        return hook

    for name, part in parts:
        handles += [part.register_forward_pre_hook(before(name)), part.register_forward_hook(after(name))]
    x = torch.empty(1, channels or int(net.in_channels), height, width, device="meta")  # type: ignore[arg-type]
    told = (torch.empty(1, device="meta"),) if time else ()
    with counter:
        net(x, *told)
    for handle in handles:
        handle.remove()
    return Cost(tuple(rows), _count(net), counter.get_total_flops() // 2)


def _parts(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children of a net; lists of them are opened, and modules that say so by an attribute `opened`."""
    parts: list[tuple[str, nn.Module]] = []
    for name, child in net.named_children():
        if isinstance(child, nn.ModuleList) or getattr(child, "opened", False):
            parts += [(f"{name}.{inner}", part) for inner, part in _parts(child)]
        else:
            parts.append((name, child))
    return parts


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
