"""The second part of scripts/gpu.py: images a second, of nets as they are computed one way and another.

    python scripts/gpu_speed.py --out speed.json --seconds 90

For the default net at 64 and 32 pixels and for DDPM's at 32: *training*, a whole step of `Learner` on a batch that is
on the device (noise, forward, backward, clipping, the optimizer, the average of the weights), replayed from CUDA graphs
where that is possible, and *forward*, the net alone with weights that do not change. Each in bf16 and float32 (products
of which are TF32's on CUDA), channels last and NCHW, eager and compiled. Beside them

- diffusers: its UNet2DModel with the weights of DDPM's net, a step being noise, forward, backward, clipping and AdamW
  as in its train_unconditional.py without the average;
- convolutions: those of the net alone, with weights in the precision already: no net of these layers is faster with
  these kernels.

How they are made and compared is in scripts/benchmarks/nets.py. A row is the median of several runs that each take a
tenth of a second or more, after a warm-up. Rows come in the order of their importance, and are kept as they are done;
none begins once the seconds are over.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks import measure, nets

from diffunet import compute
from diffunet.config import Config
from diffunet.training import memory

NETS = {"default 64": ("default", 64), "ddpm 32": ("ddpm", 32), "default 32": ("default", 32)}
"""Name -> preset and image size."""

BATCH = 128
"""Images of a step, or as many as are counted to fit in float32: the same for all rows of a net."""

RUNS, LEAST = 5, 0.1
"""Runs of a row, and the seconds that each takes at least."""

MAKE: dict[str, Callable[..., tuple[nets.Once, measure.Row]]] = {
    "diffunet": nets.ours, "diffusers": nets.theirs,
    "convolutions": partial(nets.products, names=nets.CONVOLUTIONS),
}  # fmt: skip
"""By whom -> what makes it."""


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
        self.how = nets.with_kernels(compute.choose(device))  # as longer runs have them
        self.runs, self.least = (1, 0.0) if tiny else (RUNS, LEAST)
        self.configs = {name: self._config(*each, tiny) for name, each in NETS.items()}

    def _config(self, name: str, size: int, tiny: bool) -> Config:
        """Resolved, with the batch that all rows of the net have."""
        config = nets.resolved(name, size, self.how, tiny=tiny, batch_size=1, ema_every=0)
        widest = replace(self.how, precision="fp32")
        batch = 2 if tiny else max(1, widest.fits(lambda n: memory.training_bytes(config, widest, n), most=BATCH))
        return config.changed("train", batch_size=batch)

    def row(self, case: Case) -> dict[str, Any]:
        """The figures of a case, or why there are none."""
        how = replace(self.how, precision=case.precision, channels_last=case.channels_last, compiled=case.compiled)
        how = replace(how, native=how.native and not case.compiled)  # no run has both
        config = self.configs[case.net]
        found: dict[str, Any] = asdict(case) | {"batch": nets.batch_of(config)}
        cuda = how.device.type == "cuda"
        with measure.noting(found, failed), tempfile.TemporaryDirectory() as folder:
            if cuda:
                torch.cuda.reset_peak_memory_stats(how.device)
            once, facts = MAKE[case.by](config, how, case.what == "training", Path(folder))
            lap, first = nets.speed(once, how, nets.batch_of(config), self.least)
            speeds = [lap() for _ in range(self.runs)]
            found |= facts | first | {"images_per_second": round(median(speeds), 1)}
            found["from_to"] = [round(min(speeds), 1), round(max(speeds), 1)]
            if cuda:
                found["gibibytes"] = round(torch.cuda.max_memory_allocated(how.device) / 2**30, 2)
        once = lap = None  # type: ignore[assignment]
        torch._dynamo.reset()
        gc.collect()
        compute.give_back()
        return found


def failed(error: Exception) -> str:
    """An error in one line."""
    return "out of memory" if compute.is_out_of_memory(error) else measure.said(error)


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
