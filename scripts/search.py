"""Which options make the most of a given time? The search that decided diffunet's recipe, for anybody to run again.

    python scripts/search.py digits --image-size 16 --channels 1 --seconds 90 --seeds 0 1 2 --out digits.json --ways \\
        "base:" "one block: model.num_blocks=1" "hotter: train.learning_rate=2e-3"

Each way is a name and options of the config that it changes (`section.option=value`, as in TOML, separated by spaces).
Every way is trained for the same time with each seed, in turns (A B C A B C). The same time means: as many steps as go
into --seconds by what a step of each way costs, which is measured beforehand, in turns as well, so that ways compare
even where something else is busy on the machine. One thread computes, so that two searches may run side by side.

Every way is judged by its averaged weights: by the held-out loss of `diffunet evaluate --loss`, which depends neither
on weighting nor on noise levels, and, with --samples N, by the excess of the feature distance of `diffunet evaluate`.
Rows are kept in OUT and those that are there are not run again; the table is printed, and written beside it as .md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch

from diffunet import build, compute, draws, files
from diffunet.compute import Compute
from diffunet.config import Config, preset, validated
from diffunet.data.index import HELD_OUT_MAX, split
from diffunet.evaluation.denoising import denoising_error
from diffunet.evaluation.reference import Reference
from diffunet.nn.cost import cost
from diffunet.pictures import images
from diffunet.sampling.pipeline import Pipeline
from diffunet.training import defaults
from diffunet.training.batches import Batches, Share
from diffunet.training.learner import Learner

ROUNDS, TIMED = 4, 3
"""What a step of each way costs is measured in so many rounds of so many steps, after one that is not counted."""

Row = dict[str, Any]


def changed(config: Config, options: str) -> Config:
    """Return a config with options as `section.option=value`, separated by spaces."""
    content = config.model_dump(exclude_unset=True)
    for option in options.split():
        name, _, value = option.partition("=")
        section, _, key = name.partition(".")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:  # a name without quotation marks
            parsed = value
        content.setdefault(section, {})[key] = parsed
    return validated(content, "a way's options")


class Trial:
    """Trains one way for a time, and judges it.

    Args:
        config, data: what all ways begin with, and the folder of images.
        how, seconds: how to compute, and for how long.
    """

    def __init__(self, config: Config, data: Path, how: Compute, seconds: float) -> None:
        self.config, self.how, self.seconds = config, how, seconds
        self.dataset = build.dataset(config.data, data)
        self.chosen, held = split(self.dataset.files, config.data.held_out, HELD_OUT_MAX)
        self.held = held[np.linspace(0, len(held) - 1, min(96, len(held))).astype(np.int64)]
        self.data, self.reference = data, dict[int, Reference]()

    def resolved(self, options: str, seed: int, steps: int) -> Config:
        """Return the config of a way, with everything chosen that it leaves open."""
        config = changed(self.config, options).changed("train", steps=steps, seed=seed, ema_every=0, compile="off")
        return defaults.resolve(
            config, images=len(self.chosen), class_names=(), mean=self.dataset.mean,
            sigma_data=self.dataset.sigma_data, how=self.how,
        ).changed("train", grad_accumulation=1)  # fmt: skip

    def learner(self, config: Config) -> Learner:
        """Return a net that nothing was learned by yet."""
        torch.manual_seed(draws.seed_of("init", config.train.seed))
        denoiser = build.denoiser(config)
        self.how.prepare(denoiser)
        return Learner(config, denoiser, self.how)

    def costs(self, ways: Mapping[str, str]) -> dict[str, float]:
        """Return the seconds that a step of each way takes, measured in turns."""
        learners = {name: self.learner(self.resolved(options, 0, 1000)) for name, options in ways.items()}
        times = {name: list[float]() for name in ways}
        for number in range(ROUNDS + 1):
            for name, learner in learners.items():
                batch = [learner.imagined(learner.batch_size)]
                began = time.perf_counter()
                for _ in range(TIMED):
                    learner.step(0, batch)
                self.how.synchronize()
                if number:
                    times[name].append((time.perf_counter() - began) / TIMED)
        first = next(iter(times.values()))
        base = median(first)  # the others by their ratios to it in the same round, which other work hardly moves
        return {name: base * median(a / b for a, b in zip(each, first, strict=True)) for name, each in times.items()}

    def run(self, name: str, options: str, seed: int, samples: int, cost_of_step: float) -> Row:
        """Train a way with a seed, and return its row."""
        steps = max(10, round(self.seconds / cost_of_step))
        config = self.resolved(options, seed, steps)
        learner, batch = self.learner(config), config.train.batch_size
        assert isinstance(batch, int), "the config is resolved"
        schedule = build.schedule(config)
        batches = Batches.of(config, self.dataset, self.chosen, schedule, Share(seed, batch), self.how)
        began = time.perf_counter()
        for step, passes in itertools.islice(batches.steps(0), steps):
            learner.step(step, passes)
        self.how.synchronize()
        seconds = time.perf_counter() - began
        average = build.denoiser(config, learner.state.ema.net)
        clean = batches.gather(self.held)
        with self.how.autocast():
            found = denoising_error(average, images.to_float(torch.from_numpy(clean)).to(self.how.device))
        price = cost(learner.state.net, *learner.shape[1:])
        row = {
            "way": name, "options": options, "seed": seed, "loss": found.loss, "errors": found.errors, "steps": steps,
            "images": steps * batch, "seconds": seconds, "parameters": price.parameters, "macs": price.macs,
        }  # fmt: skip
        if samples:
            if samples not in self.reference:
                self.reference[samples] = Reference(config, self.data, samples, 0, self.how.device)
            reference = self.reference[samples]
            pictures = Pipeline(config, average, self.how).sample(reference.num, seed=seed, batch_size=64)
            row |= {"excess": reference.compare(pictures).excess, "floor": reference.floor}
        return row


def table(rows: Sequence[Row]) -> list[str]:
    """Return a table in Markdown: a row for each way, the mean and the deviation over seeds."""
    lines = [
        "| way | options | seeds | held-out loss | excess | steps | images | M parameters | GMACs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(row["way"] for row in rows))
    losses = {name: mean(row["loss"] for row in rows if row["way"] == name) for name in names}
    for name in sorted(names, key=lambda each: losses[each]):
        own = [row for row in rows if row["way"] == name]
        judged = [row["excess"] for row in own if "excess" in row]
        cells = [
            name, f"`{own[0]['options']}`" if own[0]["options"] else "", str(len(own)),
            _spread([row["loss"] for row in own]), _spread(judged) if judged else "",
            f"{mean(row['steps'] for row in own):.0f}", f"{mean(row['images'] for row in own):.0f}",
            f"{own[0]['parameters'] / 1e6:.2f}", f"{own[0]['macs'] / 1e9:.3f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" + (f" +- {stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    """Measure what OUT lacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of images")
    parser.add_argument("--ways", nargs="+", default=[], metavar="NAME:OPTIONS", help="what to compare")
    parser.add_argument("--out", type=Path, required=True, help="a .json")
    parser.add_argument("--seconds", type=float, default=180.0, help="of training, for each way and seed (%(default)g)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=0, help="images to compare with real ones; none by default")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3)
    parser.add_argument("--options", default="", help="what all ways have in common")
    parser.add_argument("--device")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--kernels", action="store_true", help="use kernels of diffunet's own")
    given = parser.parse_args()

    torch.set_num_threads(1)
    how = replace(compute.choose(given.device, given.precision), native=given.kernels)
    common = preset("default").changed("data", image_size=given.image_size, channels=given.channels)
    trial = Trial(changed(common, given.options), given.data, how, given.seconds)
    settings = {
        "data": trial.dataset.index_hash, "image_size": given.image_size, "seconds": given.seconds,
        "precision": how.precision, "device": compute.describe(how.device), "options": given.options,
        "kernels": given.kernels, "samples": given.samples,
    }  # fmt: skip
    kept: dict[str, Any] = {"settings": settings, "costs": {}, "ways": {}, "rows": []}
    if given.out.exists():
        kept = json.loads(given.out.read_text(encoding="utf-8"))
        if kept["settings"] != settings:
            parser.error(f"--out {given.out} holds rows of {kept['settings']}, and these are {settings}: name another")
    ways = {name.strip(): options.strip() for name, _, options in (way.partition(":") for way in given.ways)}
    costs = kept["costs"]
    if new := {name: options for name, options in ways.items() if name not in costs}:
        base = next(iter(costs), None) or next(iter(new))
        measured = trial.costs({base: kept["ways"].get(base, new.get(base, "")), **new})
        scale = costs.get(base, measured[base]) / measured[base]
        costs |= {name: measured[name] * scale for name in new}
        kept["ways"] |= new
    for seed in given.seeds:
        for name, options in ways.items():
            if any((row["way"], row["seed"]) == (name, seed) for row in kept["rows"]):
                continue
            row = trial.run(name, options, seed, given.samples, costs[name])
            kept["rows"].append(row)
            files.write_atomic(given.out, json.dumps(kept, indent=1))
            excess = f", excess {row['excess']:.3f}" if "excess" in row else ""
            print(
                f"{name}, seed {seed}: loss {row['loss']:.4f}{excess}, {row['steps']} steps, {row['images']} images, "
                f"{row['seconds']:.0f} s",
                flush=True,
            )
    print("\n".join(text := table(kept["rows"])))
    files.write_atomic(given.out.with_suffix(".md"), "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
