"""Nets that are timed: diffunet's, diffusers' with the same weights, and the convolutions and products alone.

Each of `ours`, `theirs` and `products` takes (config, how, learn, folder): a resolved config, a `Compute`, whether to
learn or only to answer, and an empty folder for files. It returns what is to be called again and again, which works on
`train.batch_size` images that are on the device already, and facts for the row.

`ours` and `theirs` are first compared, with weights from one seed, on some noisy images in evaluation mode: their
answers, and to learn also the slope of the mean square of the answer at the input, and the norm of the slope at the
weights, against diffunet's net in float32, NCHW and plain torch. `difference` is the largest of these, as a share of
the largest value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.measure import Row, elapsed, refuse_difference
from diffunet import build
from diffunet.compiler import Unavailable
from diffunet.compute import Compute
from diffunet.config import Config, preset
from diffunet.diffusion.denoiser import Denoiser
from diffunet.interop import diffusers
from diffunet.nn import kernels
from diffunet.storage import Model
from diffunet.training import defaults
from diffunet.training.learner import Learner

Once = Callable[[], object]
"""What is timed."""

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 5e-2}
"""Precision -> the largest `difference`. Measured of the whole nets: 5e-6 in float32, 0.016 to 0.025 in bf16. On CUDA
products of float32 are TF32's, which are as fine as float16's."""

COMPARED = 16
"""The most images that two nets are compared on; with fewer, no kernel of diffunet's own takes the smallest maps."""

CONVOLUTIONS = ("conv2d", "conv_transpose2d")
"""The names of torch's functions that are convolutions."""

LONG = 10_000
"""Steps of a long run, for a preset that leaves their number open."""

PRODUCTS = (*CONVOLUTIONS, "linear", "matmul", "bmm", "einsum", "scaled_dot_product_attention")
"""The names of torch's functions that are convolutions or matrix products. Attention counts as a whole: its fused
kernel, softmax included, is faster than its two products alone."""


def resolved(name: str, size: int, how: Compute, *, tiny: bool = False, images: int = 50_000, **train: Any) -> Config:
    """Return a preset at an image size with everything chosen as for so many images.

    Args:
        name, size, how: the preset, the image size in pixels, and how to compute.
        tiny: whether the net is to have 32 channels and one level, for 8 pixels.
        images: the number of images in the imagined data set.
        train: options of `TrainConfig`.
    """
    config = preset(name).changed("data", image_size=8 if tiny else size)
    if tiny:
        config = config.changed("model", channels=32, multipliers=(1,), num_blocks=1, attention_resolutions=(8,))
    config = config.changed("train", grad_accumulation=1, compile="off", **train)
    if config.train.steps is None:
        config = config.changed("train", steps=LONG)
    return defaults.resolve(config, images=images, class_names=(), mean=(0.0,) * 3, sigma_data=0.5, how=how)


def with_kernels(how: Compute) -> Compute:
    """Return `how` with kernels of diffunet's own, where this machine can have them; longer runs train so."""
    try:
        kernels.ready(how.device)
    except Unavailable:
        return how
    return replace(how, native=True)


def plain_torch(how: Compute) -> Compute:
    """Return `how` without kernels of diffunet's own."""
    return replace(how, native=False)


def batch_of(config: Config) -> int:
    """Return the images of a step."""
    assert isinstance(config.train.batch_size, int), "the config is resolved"
    return config.train.batch_size


def model(config: Config) -> Denoiser:
    """Return a denoiser in evaluation mode, whose weights depend on the config alone.

    Weights that begin at zero, which would hide a difference, are small random numbers.
    """
    torch.manual_seed(0)
    denoiser = build.denoiser(config).eval()
    for parameter in denoiser.parameters():
        if not parameter.any():
            nn.init.normal_(parameter.data, std=0.02)
    return denoiser


def inputs(config: Config, how: Compute) -> tuple[Tensor, Tensor]:
    """Return noisy images [B C H W] and times [B], float32, the same at every call."""
    size, batch, generator = config.data.image_size, batch_of(config), torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.data.channels, size, size, generator=generator)
    return x.to(how.device), torch.linspace(0, 999, batch, device=how.device).floor()


@torch.no_grad()
def used(net: nn.Module, how: Compute, x: Tensor, c_noise: Tensor) -> Tensor:
    """Return what a net answers, without gradients."""
    return answered(net, how, x, c_noise)


def answered(net: nn.Module, how: Compute, x: Tensor, c_noise: Tensor) -> Tensor:
    """Return what a net of ours or of diffusers' answers."""
    with how.autocast():
        answer = net(x, c_noise)
    return answer if isinstance(answer, Tensor) else answer.sample


def signature(net: nn.Module, how: Compute, config: Config, learn: bool) -> list[Tensor]:
    """Return what two nets that are the same agree on, see above; gradients are None again afterwards."""
    x, c_noise = (tensor[:COMPARED] for tensor in inputs(config, how))
    if not learn:
        return [used(net, how, x, c_noise).float()]
    x.requires_grad_()
    answer = answered(net, how, x, c_noise).float()
    answer.square().mean().backward()
    assert x.grad is not None
    slopes = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    found = [answer.detach(), x.grad, nn.utils.get_total_norm(slopes)]
    net.zero_grad()
    return found


def compared(net: nn.Module, how: Compute, config: Config, learn: bool) -> Row:
    """Return how far a prepared net is from the true one.

    Raises:
        DifferError: it is too far.
    """
    plain = plain_torch(Compute(how.device))
    true = model(config)
    plain.prepare(true)
    with how.kernels():
        mine = signature(net, how, config, learn)
        wanted = signature(true.net, plain, config, learn)
    off = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, wanted, strict=True))
    return refuse_difference(off, tolerance(how))


def tolerance(how: Compute) -> float:
    """Return the largest difference that is allowed."""
    tf32 = how.device.type == "cuda" and how.precision == "fp32"
    return TOLERANCES["fp16" if tf32 else how.precision]


def ours(config: Config, how: Compute, learn: bool, folder: Path) -> tuple[Once, Row]:
    """Return a whole step of `Learner`, as runs have it: replayed where that is possible; or an answer of the net."""
    denoiser = model(config)
    how.prepare(denoiser, frozen=not learn)
    net = denoiser.net.requires_grad_(learn)
    facts = compared(net, how, config, learn)
    if learn:
        learner = Learner(config, denoiser, how)
        how.compile(net)
        if how.device.type == "cuda":
            facts |= {"replayed": learner.record(batch_of(config)) is None}
        batch = learner.imagined(batch_of(config))
        return lambda: learner.step(0, [batch]), facts
    how.compile(net)
    x, c_noise = inputs(config, how)
    return lambda: used(net, how, x, c_noise), facts


def unet2d(config: Config, folder: Path) -> nn.Module:
    """Return diffusers' UNet2DModel with the weights of `model`, by way of the pipeline that is written to `folder`."""
    from diffusers import UNet2DModel

    diffusers.write(Model(config, model(config), 0), folder)
    net: nn.Module = UNet2DModel.from_pretrained(folder / "unet")
    return net.eval()


def theirs(config: Config, how: Compute, learn: bool, folder: Path) -> tuple[Once, Row]:
    """Return a step or an answer of diffusers' net."""
    net = unet2d(config, folder)
    how.prepare(net, frozen=not learn)
    net.requires_grad_(learn)
    facts = compared(net, how, config, learn)
    if how.compiled:
        net.compile(dynamic=False)
    if learn:
        return step_of_theirs(net, config, how), facts
    x, c_noise = inputs(config, how)
    return lambda: used(net, how, x, c_noise), facts


def step_of_theirs(net: nn.Module, config: Config, how: Compute) -> Once:
    """Return a step of diffusers: noise, forward, backward, clipping and AdamW.

    It is that of its train_unconditional.py without the average.
    """
    net.train()
    x, c_noise = inputs(config, how)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        noise = torch.randn_like(x)
        F.mse_loss(answered(net, how, x + noise, c_noise).float(), noise).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def products(
    config: Config, how: Compute, learn: bool, folder: Path, names: Collection[str] = PRODUCTS
) -> tuple[Once, Row]:
    """Return all convolutions and products of diffunet's net, one after the other, forwards and (to learn) backwards.

    They have the net's own shapes and batch, and weights in the precision already. No net of these layers is faster
    with torch's kernels. `names` are those of the functions that count.
    """
    calls = _calls(config, names)
    kept: dict[tuple[int, ...], Tensor] = {}

    def tensor(like: Tensor, shared: bool, images: bool) -> Tensor:
        """Return random numbers: feature maps, which take much memory, are the same for all calls of a shape."""
        shape = tuple(like.shape)
        if shared and shape in kept:
            return kept[shape]
        made = torch.randn(shape, device=how.device, dtype=how.dtype) / math.sqrt(max(1, like[0].numel()))
        if images and how.channels_last and made.dim() == 4:
            made = made.to(memory_format=torch.channels_last)
        return kept.setdefault(shape, made) if shared else made

    work = []
    for function, given, options, out in calls:
        images = function.__name__ in CONVOLUTIONS
        arguments = [
            tensor(one, place == 0, images).requires_grad_(learn) if isinstance(one, Tensor) else one
            for place, one in enumerate(given)
        ]
        slope = tensor(out, True, images).detach() if learn else None
        work.append((function, arguments, options, slope))

    def once() -> None:
        with torch.set_grad_enabled(learn):
            for function, arguments, options, slope in work:
                y = function(*arguments, **options)
                if learn:
                    torch.autograd.grad(y, [one for one in arguments if isinstance(one, Tensor)], slope)

    return once, {"calls": len(work)}


def _calls(config: Config, names: Collection[str]) -> list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]]:
    """Return each call of these functions in a pass: the function, its arguments and its result, on the meta device."""
    with torch.device("meta"):
        net = build.net(config)
        size, batch = config.data.image_size, batch_of(config)
        x, c_noise = torch.empty(batch, net.in_channels, size, size), torch.empty(batch)
    with _Recorder(names) as recorder:
        net(x, c_noise)
    return recorder.calls


class _Recorder(TorchFunctionMode):
    """Keeps the calls of functions of torch by name."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in self.names:
            self.calls.append((func, args, kwargs or {}, out))
        return out


def speed(once: Once, how: Compute, images: int, least: float) -> tuple[Callable[[], float], Row]:
    """Return a lap in images a second, after a warm-up, with the seconds of the first call.

    On CUDA torch chooses kernels as diffunet lets it (`Compute.kernels`), whosever net it is.

    Args:
        once, how, images: what is called, on what it computes, and the images that a call takes.
        least: the seconds that a lap takes at least.
    """

    def seconds(times: int) -> float:
        def several() -> None:
            for _ in range(times):
                once()
            how.synchronize()

        how.synchronize()
        with how.kernels():
            return elapsed(several)

    first, second = seconds(1), seconds(1)
    times = max(1, math.ceil(least / min(second, seconds(1)))) if least else 1
    return lambda: images * times / seconds(times), {"first_seconds": round(first, 3)}
