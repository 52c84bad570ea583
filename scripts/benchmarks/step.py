"""A training step, images a second: of diffunet, of diffusers with the same weights, and of the products alone.

A step is noise, forward, backward, clipping, AdamW and the averages (`Learner.step`) on a batch that is on the device.
Ways:

- diffunet: as it chooses for a long run, with kernels of its own on a CPU; what the others are compared to;
- diffunet, plain torch: without these, where it has them on this machine;
- diffusers: UNet2DModel in float32 and NCHW, as it comes, without averages; and tuned, in diffunet's precision and with
  the channels last (of DDPM's net alone, whose training the two share);
- products alone: every convolution, matrix product and attention of the net on its own shapes, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import nets
from benchmarks.measure import Lap, Make, Measure, Options, Row, Wanted
from diffunet import compute
from diffunet.compute import Compute
from diffunet.config import Config

NAME = "step"

NETS = {"ddpm 32": ("ddpm", 32, 16), "default 32": ("default", 32, 32), "default 64": ("default", 64, 16)}
"""Name -> preset, image size in pixels, and images of a step on a CPU."""

GPU_BATCH = 128
"""Images of a step on a GPU."""

LEAST = 0.2
"""The seconds that a lap takes at least."""

GAIN = {"ddpm 32": 18 / 12.8, "default 32": 1.6, "default 64": 1.6}
FORWARD_GAIN = {"ddpm 32": 85 / 70, "default 32": 1.2, "default 64": 1.2}
"""How many times as fast as plain torch diffunet is wanted to be, in a training step and in the net alone."""

Net = Callable[..., tuple[nets.Once, Row]]


def measures(options: Options, *, learn: bool = True) -> list[Measure]:
    """Return a measure for each net."""
    how = nets.with_kernels(compute.choose(options.device))
    return [of_net(name, config_of(name, how, options), how, options, learn) for name in NETS]


def config_of(name: str, how: Compute, options: Options, **train: Any) -> Config:
    """Return the resolved config of one of `NETS`, with its batch."""
    preset, size, batch = NETS[name]
    batch = 2 if options.tiny else batch if how.device.type == "cpu" else GPU_BATCH
    return nets.resolved(preset, size, how, tiny=options.tiny, batch_size=batch, **train)


def of_net(name: str, config: Config, how: Compute, options: Options, learn: bool) -> Measure:
    """Return the measure of one net, see above."""
    whose: dict[str, tuple[Net, Compute]] = {"diffunet": (nets.ours, how)}
    if (plain := nets.plain_torch(how)) != how:
        whose["diffunet, plain torch"] = nets.ours, plain
    if name.startswith("ddpm"):
        whose["diffusers"] = nets.theirs, nets.plain_torch(Compute(how.device))
        whose["diffusers, tuned"] = nets.theirs, plain
    whose["products alone"] = nets.products, plain
    ways: dict[str, Make] = {}
    for way, (net, by) in whose.items():
        ways[way] = partial(made, net, config, by, learn, options)
    what = "a training step" if learn else "the net alone"
    wanted = {"diffunet, plain torch": Wanted("ratio", most=round(1 / (GAIN if learn else FORWARD_GAIN)[name], 2))}
    return Measure(f"{name}, batch {nets.batch_of(config)}: {what}", "images/s", ways, wanted, more_is_better=True)


def made(net: Net, config: Config, how: Compute, learn: bool, options: Options) -> tuple[Lap, Row]:
    """Make a way ready."""
    once, facts = net(config, how, learn, options.folder("net"))
    lap, first = nets.speed(once, how, nets.batch_of(config), 0.0 if options.tiny else LEAST)
    layout = "channels last" if how.channels_last else "NCHW"
    return lap, facts | first | {"computed": f"{how.precision}, {layout}"}
