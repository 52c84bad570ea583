"""Is it the U-Net's shape that makes it good at diffusion? Nets with and without it, trained for the same time.

    .venv/bin/python scripts/ablation.py --out samples/ablation-digits.json
    .venv/bin/python scripts/ablation.py --data cifar10 --seconds 1200 --out samples/ablation-cifar10.json    # on a GPU

trains each net for `--seconds` with each seed, on scikit-learn's digits (16x16), or on a folder of images with a
subfolder for each class (`--image-size`, 32). Data, noise, loss, optimizer, averaging and sampler are the project's own
and the same for all; the nets are

- unet: diffunet's UNet, on the digits smaller than in their preset;
- unet2015: the classic of 2015 with a time embedding, at as many parameters;
- resnet-parameters: residual blocks of one width at full size, the UNet's own, at as many parameters;
- resnet-macs: the same at as many multiply-accumulates;
- unet-no-skips: the UNet with a decoder that sees nothing of the encoder but its last map.

The two of the UNet have self-attention on small maps, the others have none.

Time is the process's own on a CPU, of one thread, so that it is the same beside other work; on CUDA it is that of the
clock, the device waited for. Each net learns at every rate of `--rates` with the first seed, and the one of least
held-out loss is its rate for all. Loss and samples are of the averaged weights. The loss is on held-out images with the
same noise for all nets and seeds; the feature distance is that of `diffunet evaluate`, above its floor.

Rows are kept in OUT (.json) and those that are there are not run again: a long run may be stopped. The table is printed
and written beside it as .md; the picture, for which it needs matplotlib (`pip install -e .[bench]`), as .png. `--table
--out OUT` does these alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from ablation_nets import NETS, make
from torch import nn

import diffunet
from diffunet import build, compute, draws, files
from diffunet.compute import Compute
from diffunet.config import Config, preset
from diffunet.data import builtin, labels
from diffunet.diffusion.denoiser import Denoiser
from diffunet.diffusion.losses import DenoisingLoss
from diffunet.errors import UsageError
from diffunet.evaluation.reference import Reference
from diffunet.nn.cost import cost
from diffunet.sampling.pipeline import Pipeline
from diffunet.training import defaults
from diffunet.training.batches import Batches, Share
from diffunet.training.judging import validate
from diffunet.training.learner import Learner
from diffunet.training.stop import StopFlag

MARKS = (0.125, 0.25, 0.5, 1.0)
"""Shares of the time at which the held-out loss is measured."""

DRAWS = 4
"""Noises of each held-out image."""


Row = dict[str, Any]


# Runs


class Bench:
    """What all nets share: images, their division, what is held out, features, the clock.

    Args:
        config: of the UNet.
        data: a folder with a subfolder for each class.
        seconds: of training.
        num: samples to compare.
        how: to compute.
    """

    def __init__(self, config: Config, data: Path, seconds: float, num: int, how: Compute) -> None:
        self.seconds = seconds
        self.dataset = build.dataset(config.data, data)
        found = labels.find(data, self.dataset.files.paths, given=self.dataset.classes)
        chosen, held, _ = build.split(config.data, self.dataset.files, found)
        self.how = how
        config = config.changed("train", ema_every=0, grad_accumulation=1)
        config = config.changed("train", ema_every=0, grad_accumulation=1).changed("model", checkpointing=False)
        self.config = config = defaults.resolve(
            config, images=len(chosen), class_names=found.names, mean=self.dataset.mean,
            sigma_data=self.dataset.sigma_data, how=how,
        )  # fmt: skip
        d, t = config.data, config.train
        assert isinstance(t.batch_size, int), "the config is resolved"
        self.batch_size, self.shape = t.batch_size, (d.channels, d.image_size, d.image_size)
        share, dropout = Share(0, self.batch_size), config.diffusion.label_dropout
        schedule, pin = build.schedule(config), how.device.type == "cuda"
        self.batches = Batches(self.dataset, chosen, schedule, share, d, dropout, pin=pin, labels=found.places)
        spread = held[np.linspace(0, len(held) - 1, min(256, len(held))).astype(np.int64)]
        self.held_out = self.batches.held_out(np.tile(spread, DRAWS)).to(how.device)
        self.reference = Reference(config, data, num, 0, how.device)

    def settings(self) -> dict[str, Any]:
        """What rows that are compared have in common."""
        d, t = self.config.data, self.config.train
        return {
            "data": self.dataset.index_hash, "image_size": d.image_size,
            "unet": self.config.model.model_dump(mode="json"), "batch_size": self.batch_size,
            "steps_of_warmup": t.warmup, "precision": self.how.precision, "device": self.how.device.type,
            "seconds": self.seconds, "images": self.reference.num,
        }  # fmt: skip

    def row(self, name: str, rate: float, seed: int) -> Row:
        """Train and judge one net."""
        torch.manual_seed(draws.seed_of("init", seed))
        net = make(name, self.config)
        price = cost(net, *self.shape[1:])
        with self.how.kernels():
            average, curve = self.learn(net, rate, seed)
        pictures = Pipeline(self.config, average, self.how).sample(
            self.reference.num, seed=seed, labels=self.reference.labels, batch_size=128
        )
        report = self.reference.compare(pictures)
        return {
            "net": name, "rate": rate, "seed": seed, "parameters": price.parameters, "macs": price.macs,
            "steps": curve[-1]["steps"], "loss": curve[-1]["loss"], "excess": report.excess, "floor": report.floor,
            "agreement": report.agreement, "curve": curve,
        }  # fmt: skip

    def learn(self, net: nn.Module, rate: float, seed: int) -> tuple[Denoiser, list[dict[str, float]]]:
        """Train as `diffunet train` does, for `seconds`: the averaged denoiser, and its held-out loss at `MARKS`."""
        config = self.config.changed("train", seed=seed, learning_rate=rate)
        denoiser = build.denoiser(config, net)
        self.how.prepare(denoiser)
        learner = Learner(config, denoiser, self.how)
        average = build.denoiser(config, learner.state.ema.net)
        judge = DenoisingLoss(average, build.weighting(config))
        curve: list[dict[str, float]] = []
        spent, began = 0.0, self.now()
        for step, passes in replace(self.batches, share=Share(seed, self.batch_size)).steps(0):
            learner.step(step, passes)
            if self.how.device.type == "cuda" and step % 20:  # looking at the clock waits for the device
                continue
            passed = spent + self.now() - began
            if passed >= MARKS[len(curve)] * self.seconds:
                with self.how.autocast():
                    value = validate(judge, self.held_out, 0, self.shape, 128, StopFlag())
                assert value is not None, "this process is alone"
                curve.append({"seconds": passed, "steps": step + 1, "loss": value})
                if len(curve) == len(MARKS):
                    break
                spent, began = passed, self.now()
        return average, curve

    def now(self) -> float:
        """Seconds: of this process on a CPU; of the clock on CUDA, when all is done."""
        if self.how.device.type == "cpu":
            return time.process_time()
        self.how.synchronize()
        return time.perf_counter()


def run(bench: Bench, options: argparse.Namespace, kept: Path) -> None:
    """Measure what `kept` does not hold yet, and keep it there.

    Raises:
        UsageError: figures there of other images or settings.
    """
    settings = bench.settings()
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"settings": settings, "rows": []}
    if found["settings"] != settings:
        raise UsageError(f"{kept} holds figures of {found['settings']}, and these are {settings}: name another --out")
    rows: list[Row] = found["rows"]
    first = options.seeds[0]
    for seed in options.seeds:  # nets in turn, so that a slow hour of the machine is everybody's
        for name in options.nets:
            for rate in options.rates if seed == first else [best_rate(rows, name, first)]:
                key = {"net": name, "rate": rate, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                row = bench.row(name, rate, seed)
                rows.append(row)
                files.write_atomic(kept, json.dumps(found, indent=1))
                print(
                    f"{name}, rate {rate:g}, seed {seed}: {row['steps']} steps, held-out loss {row['loss']:.4f}, "
                    f"excess {row['excess']:.3f}, agreement {row['agreement']:.1%}",
                    flush=True,
                )


def best_rate(rows: Sequence[Row], name: str, seed: int) -> float:
    """The rate of least held-out loss of a net with a seed."""
    tried = [row for row in rows if (row["net"], row["seed"]) == (name, seed)]
    return float(min(tried, key=lambda row: row["loss"])["rate"])


# What came of it


def chosen(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Net -> its rows at its rate, by seed, in the order of `NETS`."""
    first = min(row["seed"] for row in rows)
    names = [name for name in NETS if any(row["net"] == name for row in rows)]
    found = {}
    for name in names:
        rate = best_rate(rows, name, first)
        ours = [row for row in rows if (row["net"], row["rate"]) == (name, rate)]
        found[name] = sorted(ours, key=lambda row: row["seed"])
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    rows, s = found["rows"], found["settings"]
    nets = chosen(rows)
    seeds = sorted({row["seed"] for row in rows})
    clock = "of one thread of a CPU" if s["device"] == "cpu" else "of a CUDA GPU"
    lines = [
        "# The same time for every net",
        "",
        f"By `scripts/ablation.py`: {s['seconds']:g} seconds {clock} for each net and seed, {len(seeds)} seeds,",
        f"{s['image_size']}x{s['image_size']} pixels, batches of {s['batch_size']}, {s['precision']}.",
        "Mean ± standard deviation over seeds.",
        "",
        "- **held-out loss**: of the averaged weights, with the same noise for all nets and seeds.",
        "- **against unet**: that loss over the one of unet with the same seed.",
        f"- **excess**: feature distance of {s['images']} samples to real images above that of real to real, which is",
        f"  {rows[0]['floor']:.3f}.",
        "- **label agreement**: of the samples that are taken for the class that was asked for.",
        "- **rate**: of learning; each net has the best of those below, by its held-out loss with the first seed.",
        "",
        "| net | parameters | MACs | rate | steps | held-out loss | against unet | excess | label agreement |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = {row["seed"]: row["loss"] for row in nets.get("unet", [])}
    for name, ours in nets.items():
        ratios = [row["loss"] / base[row["seed"]] for row in ours if row["seed"] in base]
        cells = [
            name, f"{ours[0]['parameters'] / 1e6:.2f} M", f"{ours[0]['macs'] / 1e6:.0f} M", f"{ours[0]['rate']:g}",
            spread([row["steps"] for row in ours], 0), spread([row["loss"] for row in ours], 4), spread(ratios, 3),
            spread([row["excess"] for row in ours], 3), spread([100 * row["agreement"] for row in ours], 1) + "%",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    rates = sorted({row["rate"] for row in rows}, reverse=True)
    lines += ["", f"Held-out loss by learning rate, seed {seeds[0]}:", ""]
    lines += ["| net | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for name in nets:
        tried = {row["rate"]: row["loss"] for row in rows if (row["net"], row["seed"]) == (name, seeds[0])}
        lines.append(f"| {name} | " + " | ".join(f"{tried[r]:.4f}" if r in tried else "" for r in rates) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def draw(found: dict[str, Any], file: Path) -> None:
    """Held-out loss over time; the excess of every seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    nets = chosen(found["rows"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained", width_ratios=(3, 2))
    for i, (name, ours) in enumerate(nets.items()):
        times = [mean(row["curve"][k]["seconds"] for row in ours) for k in range(len(MARKS))]
        losses = [[row["curve"][k]["loss"] for row in ours] for k in range(len(MARKS))]
        style: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i]}
        left.plot(times, [mean(each) for each in losses], label=name, **style)
        left.fill_between(times, list(map(min, losses)), list(map(max, losses)), color=COLOURS[i], alpha=0.15, lw=0)
        right.plot([row["excess"] for row in ours], [i] * len(ours), linestyle="", alpha=0.6, **style)
        right.plot([mean(row["excess"] for row in ours)], [i], "|", color=COLOURS[i], markersize=22, mew=2)
    left.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel="held-out loss")
    seconds = [share * found["settings"]["seconds"] for share in MARKS]
    left.set_xticks(seconds, [f"{each:g}" for each in seconds])
    left.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0)))
    left.yaxis.set_major_formatter("{x:g}")
    left.legend(frameon=False)
    right.axvline(0, color="black", linewidth=0.8)
    right.set(xlabel="feature distance above real to real", yticks=range(len(nets)), yticklabels=nets)
    right.invert_yaxis()
    for axes in (left, right):
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


COLOURS = ("#000000", "#0072B2", "#D55E00", "#E69F00", "#009E73")
"""Of Okabe and Ito (2008), which the colour-blind can tell apart; each net has a marker of its own too."""
MARKERS = "osD^v"


def main() -> None:
    """Parse, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="a folder with a subfolder for each class; the digits by default")
    parser.add_argument("--image-size", type=int, default=32, help="of --data")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--rates", nargs="+", type=float, default=(3e-3, 1e-3, 3e-4))
    parser.add_argument("--seconds", type=float, default=90.0, help="of training of each row")
    parser.add_argument("--channels", type=int, help="of the UNet; 32 for the digits, else by size and device")
    parser.add_argument("--batch-size", type=int, help="32 for the digits, else 128")
    parser.add_argument("--num", type=int, default=2000, help="samples to compare, at most a third of the images")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what OUT holds")
    options = parser.parse_args()
    kept = options.out.with_suffix(".json")
    if not options.table:
        try:
            with tempfile.TemporaryDirectory() as folder:
                run(bench_of(options, Path(folder)), options, kept)
        except diffunet.Error as error:
            parser.exit(2, f"{error}\n")
    if not kept.exists():
        parser.error(f"{kept} is not there: measure first, without --table")
    found = json.loads(kept.read_text())
    text = table(found)
    files.write_atomic(kept.with_suffix(".md"), text)
    print(text)
    draw(found, kept.with_suffix(".png"))


def bench_of(options: argparse.Namespace, folder: Path) -> Bench:
    """The bench that the options ask for; digits are written to `folder`."""
    how = compute.choose()
    if how.device.type == "cpu":
        torch.set_num_threads(1)
    if options.data is None:
        config = preset("digits")
        shape = {"multipliers": (1, 2, 2), "attention_resolutions": (8,)}
        config = config.changed("model", channels=options.channels or 32, num_blocks=1, **shape)
        config = config.changed("train", minutes=None, warmup=100, cooldown=0, batch_size=options.batch_size or 32)
        builtin.prepare("digits", folder / "digits")
        return Bench(config, folder / "digits", options.seconds, options.num, how)
    config = Config().changed("data", classes=True, image_size=options.image_size, flip=True)
    config = config.changed("model", channels=options.channels, attention_resolutions=(8,))
    config = config.changed("train", batch_size=options.batch_size or 128)
    return Bench(config, options.data, options.seconds, options.num, how)


if __name__ == "__main__":
    main()
