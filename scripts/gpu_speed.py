"""The second part of scripts/gpu.py: images a second, of nets as they are computed one way and another.

    python scripts/gpu_speed.py --out speed.json --seconds 90

For the default net at 64 and 32 pixels and for DDPM's at 32: *training*, a whole step of `Learner` on a batch that is
on the device (noise, forward, backward, clipping, AdamW, the average of the weights), and *forward*, the net alone with
weights that do not change. Each in bf16 and float32 (products of which are TF32's on CUDA), channels last and NCHW,
eager and compiled. Beside them

- diffusers: its UNet2DModel with the weights of DDPM's net, a step being noise, forward, backward, clipping and AdamW
  as in its train_unconditional.py without the average;
- convolutions: those of the net alone, with weights in the precision already: no net of these layers is faster with
  these kernels.

A row is the median of several runs that each take a tenth of a second or more, after a warm-up. Rows come in the order
of their importance, and are kept as they are done; none begins once the seconds are over.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffunet import build, compute
from diffunet.compute import Compute
from diffunet.config import Config, preset
from diffunet.interop import diffusers
from diffunet.storage import Model
from diffunet.training import defaults, memory
from diffunet.training.learner import Learner

NETS = {"default 64": ("default", 64), "ddpm 32": ("ddpm", 32), "default 32": ("default", 32)}
"""Name -> preset and image size."""

BATCH = 128
"""Images of a step, or as many as are counted to fit in float32: the same for all rows of a net."""

RUNS, LEAST = 5, 0.1
"""Runs of a row, and the seconds that each takes at least."""

Once = Callable[[], object]
"""What is timed."""


@dataclass(frozen=True)
class Case:
    """One row: a `net`, `by` whom ("diffunet", "diffusers", "convolutions"), `what` ("training", "forward"), how."""

    net: str
    by: str
    what: str
    precision: str = "bf16"
    channels_last: bool = True
    compiled: bool = False

    @property
    def rank(self) -> int:
        """The order of importance; rows that compile take a minute or more, and all but one come late."""
        unusual = (self.precision != "bf16") + (not self.channels_last)
        if self.compiled:
            first = (self.net, self.by, self.what) == (next(iter(NETS)), "diffunet", "training") and not unusual
            return 2 if first else 5 + 3 * unusual
        return 3 * unusual + (self.by != "diffunet")


def plan() -> list[Case]:
    """All rows, the most important first."""
    cases = []
    for net in NETS:
        for what in ("training", "forward"):
            for precision in ("bf16", "fp32"):
                for last in (True, False):
                    cases.append(Case(net, "convolutions", what, precision, last))
                    for compiled in (False, True):
                        cases.append(Case(net, "diffunet", what, precision, last, compiled))
                        if net.startswith("ddpm"):
                            cases.append(Case(net, "diffusers", what, precision, last, compiled))
    return sorted(cases, key=lambda case: case.rank)


class Bench:
    """Makes what is to be timed, and times it.

    Args:
        device: as `compute.choose`.
        tiny: nets of a few channels, one run of each row.
    """

    def __init__(self, device: str | None, tiny: bool) -> None:
        self.how = compute.choose(device)
        self.runs, self.least = (1, 0.0) if tiny else (RUNS, LEAST)
        self.configs = {name: self._config(*each, tiny) for name, each in NETS.items()}

    def _config(self, name: str, size: int, tiny: bool) -> Config:
        """Resolved, with the batch that all rows of the net have."""
        config = preset(name).changed("data", image_size=size)
        if tiny:
            config = config.changed("model", channels=32, multipliers=(1,), num_blocks=1, attention_resolutions=(8,))
            config = config.changed("data", image_size=8)
        config = config.changed("train", batch_size=1, grad_accumulation=1, ema_every=0, compile="off")
        config = defaults.resolve(config, images=50_000, class_names=(), mean=(0.0,) * 3, sigma_data=0.5, how=self.how)
        widest = replace(self.how, precision="fp32")
        batch = 2 if tiny else max(1, widest.fits(lambda n: memory.training_bytes(config, widest, n), most=BATCH))
        return config.changed("train", batch_size=batch)

    def row(self, case: Case) -> dict[str, Any]:
        """The figures of a case, or why there are none."""
        how = replace(self.how, precision=case.precision, channels_last=case.channels_last, compiled=case.compiled)
        config = self.configs[case.net]
        found: dict[str, Any] = asdict(case) | {"batch": config.train.batch_size}
        cuda = how.device.type == "cuda"
        try:
            with how.kernels(), tempfile.TemporaryDirectory() as folder:
                if cuda:
                    torch.cuda.reset_peak_memory_stats(how.device)
                made = {"diffunet": ours, "diffusers": theirs, "convolutions": convolutions}[case.by]
                once, facts = made(config, how, case.what == "training", Path(folder))
                found |= facts | self.time(once, config.train.batch_size)
                if cuda:
                    found["gibibytes"] = round(torch.cuda.max_memory_allocated(how.device) / 2**30, 2)
        except ImportError as error:
            found["missing"] = str(error)
        except Exception as error:
            found["failed"] = "out of memory" if compute.is_out_of_memory(error) else said(error)
        once = made = None  # type: ignore[assignment]
        torch._dynamo.reset()
        gc.collect()
        compute.give_back()
        return found

    def time(self, once: Once, batch: Any) -> dict[str, Any]:
        """Images a second: the median, the least and the most; and the seconds of the first time."""
        first = self._seconds(once, 1)
        self._seconds(once, 2)  # warm
        times = max(1, math.ceil(self.least / self._seconds(once, 1)))
        speeds = [batch * times / self._seconds(once, times) for _ in range(self.runs)]
        return {
            "images_per_second": round(median(speeds), 1),
            "from_to": [round(min(speeds), 1), round(max(speeds), 1)],
            "first_seconds": round(first, 2),
        }

    def _seconds(self, once: Once, times: int) -> float:
        self.how.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            once()
        self.how.synchronize()
        return time.perf_counter() - began


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[:300]


def ours(config: Config, how: Compute, learn: bool, folder: Path) -> tuple[Once, dict[str, Any]]:
    """Of diffunet's net."""
    with how.device:
        denoiser = build.denoiser(config)
    how.prepare(denoiser)
    assert isinstance(config.train.batch_size, int), "the config is resolved"
    if learn:
        learner = Learner(config, denoiser, how)
        how.compile(learner.state.net)
        batch = learner.imagined(config.train.batch_size)
        return lambda: learner.step(0, [batch]), {}
    net = denoiser.net.eval().requires_grad_(False)
    how.prepare(net, frozen=True)
    how.compile(net)
    x, c_noise = inputs(config, how)
    return lambda: used(net, how, x, c_noise), {}


def inputs(config: Config, how: Compute) -> tuple[Tensor, Tensor]:
    """Noisy images [B C H W] and times [B], float32."""
    size, batch = config.data.image_size, config.train.batch_size
    assert isinstance(batch, int), "the config is resolved"
    x = torch.randn(batch, config.data.channels, size, size, device=how.device)
    return x, torch.linspace(0, 999, batch, device=how.device).floor()


@torch.no_grad()
def used(net: nn.Module, how: Compute, x: Tensor, c_noise: Tensor) -> Tensor:
    """What a net answers."""
    with how.autocast():
        answer = net(x, c_noise)
    return answer if isinstance(answer, Tensor) else answer.sample


def theirs(config: Config, how: Compute, learn: bool, folder: Path) -> tuple[Once, dict[str, Any]]:
    """Of diffusers' net with the same weights, by way of a folder; and how far its answer is from ours."""
    from diffusers import UNet2DModel

    denoiser = build.denoiser(config).eval()
    for parameter in denoiser.parameters():  # those that begin at zero would hide a difference
        if not parameter.any():
            nn.init.normal_(parameter.data, std=0.02)
    diffusers.write(Model(config, denoiser, 0), folder)
    net = UNet2DModel.from_pretrained(folder / "unet")
    how.prepare(denoiser)
    how.prepare(net)
    net.eval()
    x, c_noise = inputs(config, how)
    mine, other = (used(each, how, x[:2], c_noise[:2]).float() for each in (denoiser.net, net))
    facts = {"difference": float((mine - other).abs().max() / mine.abs().max())}
    denoiser.to("cpu")
    net.train(learn).requires_grad_(learn)
    if how.compiled:
        net.compile(dynamic=False)
    if not learn:
        how.prepare(net, frozen=True)
        return lambda: used(net, how, x, c_noise), facts
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        noise = torch.randn_like(x)
        with how.autocast():
            answer = net(x + noise, c_noise).sample
        F.mse_loss(answer.float(), noise).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, facts


def convolutions(config: Config, how: Compute, learn: bool, folder: Path) -> tuple[Once, dict[str, Any]]:
    """Of the convolutions of diffunet's net, one after the other, forwards and (to learn) backwards."""
    calls = list(_calls(config))
    memory_format = torch.channels_last if how.channels_last else torch.contiguous_format
    assert isinstance(config.train.batch_size, int), "the config is resolved"
    kept: dict[tuple[int, ...], Tensor] = {}

    def tensor(shape: tuple[int, ...]) -> Tensor:
        """Random numbers, the same for all calls of a shape [C H W]."""
        if shape not in kept:
            made = torch.randn(config.train.batch_size, *shape, device=how.device, dtype=how.dtype)  # type: ignore[arg-type]
            kept[shape] = made.to(memory_format=memory_format)
        return kept[shape]

    work = []
    for conv, shape, out in calls:
        conv = conv.to_empty(device=how.device).to(how.dtype).to(memory_format=memory_format).requires_grad_(learn)
        conv.reset_parameters()
        work.append((conv, tensor(shape).requires_grad_(learn), tensor(out) if learn else None))

    def once() -> None:
        for conv, x, slope in work:
            with torch.set_grad_enabled(learn):
                y = conv(x)
            if learn:
                torch.autograd.grad(y, [x, *conv.parameters()], slope)

    return once, {"convolutions": len(work)}


def _calls(config: Config) -> Iterator[tuple[nn.Conv2d, tuple[int, ...], tuple[int, ...]]]:
    """Each call of a convolution in a pass: the module, the shapes [C H W] of what goes in and comes out."""
    with torch.device("meta"):
        net = build.net(config)
    seen: list[tuple[nn.Conv2d, tuple[int, ...], tuple[int, ...]]] = []

    def note(conv: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        seen.append((conv, tuple(given[0].shape[1:]), tuple(out.shape[1:])))

    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(note)
    size = config.data.image_size
    net(torch.empty(1, net.in_channels, size, size, device="meta"), torch.empty(1, device="meta"))
    for conv, given, out in seen:
        conv._forward_hooks.clear()
        yield conv, given, out


def main() -> None:
    """Measure row after row, and keep them."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=90.0, help="after which no row begins")
    parser.add_argument("--device", help="the best there is by default")
    parser.add_argument("--tiny", action="store_true", help="nets of a few channels, one run, the first rows")
    options = parser.parse_args()
    cases = [case for case in plan() if not options.tiny or case.rank < 2]
    found: dict[str, Any] = {"planned": [asdict(case) for case in cases], "rows": []}
    options.out.write_text(json.dumps(found, indent=1))
    bench = Bench(options.device, options.tiny)
    for case in cases:
        if time.monotonic() - began > options.seconds:
            break
        row = bench.row(case)
        found["rows"].append(row)
        options.out.write_text(json.dumps(found, indent=1))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
