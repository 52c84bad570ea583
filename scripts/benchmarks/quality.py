"""Quality of samples after equal minutes: diffunet beside lucidrains' Trainer, diffusers' script, and a bare EDM loop.

The same folder of images, the same hardware and threads, the same minutes, about equal parameters, no options: which
makes the better pictures? A part of the images is kept back (`quality_judge.split`), all ways train on the others.
Ways, see quality_peers.py, each in a process of its own whose time counts from its start:

- diffunet: `python -m diffunet train TRAINING --out RUN --minutes M --image-size N`. It is the first, and the others
  get the parameters that it chose and, where its whole process took longer than M, as long as that took;
- lucidrains: Trainer of denoising-diffusion-pytorch as its README uses it;
- diffusers: its train_unconditional.py, rebuilt on its published classes, sampled by DPM-Solver++ and by DDPM;
- EDM, bare: some sixty lines from the paper, on diffusers' UNet2DModel. It is the rival to beat, for it knows what is
  known and has nothing that costs time;
- training images: real ones that are judged as if they were samples, as a perfect copier would make them.

The figure is the excess: the Fréchet distance to images kept back, above that of other real ones to them, by the
features of a small classifier (quality_judge.py). It is no FID. Precision and recall are Kynkäänniemi's (2019), of all
samples and all images kept back. `copies` are the shares of samples closer to a training image than 1% and 5% of images
kept back are, for which they are 1% and 5%. `loss` is that of `diffunet evaluate --loss`, of 256 images kept back, with
predictions cut off at black and white. `training s` is of the whole process. Sampling ends early where it takes
longer than half of the training: `samples` are then fewer, and recall is lower for it.

With several seeds the table has the median excess, and the means of all else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks import children, nets, quality_judge
from benchmarks.measure import Lap, Measure, Options, Row
from benchmarks.quality_judge import Judge
from diffunet import build, compute
from diffunet.data import builtin
from diffunet.pictures.images import Pixels

NAME = "quality"

COLUMNS = (
    "loss", "distance", "real to real", "precision", "recall", "copies 1%", "copies 5%", "parameters", "steps",
    "images seen", "training s", "calls", "samples", "s for 100",
)  # fmt: skip
"""What the table says of a way beside the excess."""

CLASSIFIER_STEPS = 1000
"""Of the judge."""

PATIENCE = 0.5
"""Sampling may take so many times as long as training."""

WAYS = {
    "diffunet": ("diffunet", 0), "lucidrains, DDIM 250": ("lucidrains", 0),
    "diffusers, DPM-Solver++ 25": ("diffusers", 0), "diffusers, DPM-Solver++ 50": ("diffusers", 1),
    "diffusers, DDPM 1000": ("diffusers", 2), "EDM, bare": ("edm", 0), "training images": ("real", 0),
}  # fmt: skip
"""The ways that are compared, in this order: the package that trains, and the number of the sampler of its own."""

STOPPED = 75
"""The exit code of a run that ended before its last step."""


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    Args:
        data: a folder of images; None is `diffunet prepare digits`.
        minutes, image_size, samples, seeds: of each training, of all pictures, of each way, and the trainings of each.
        limit: what tells `diffunet train` the minutes.
        out: a folder for a sheet of samples of each way.
        ways: only those whose names begin with one of these; None is all.
    """

    data: str | None
    minutes: float
    image_size: int | None
    samples: int
    seeds: int
    limit: str
    out: str
    ways: list[str] | None = None

    @property
    def size(self) -> int:
        """The image size in pixels: that of the digits, or 32."""
        return self.image_size or (32 if self.data else 16)


def chosen(wanted: list[str] | None) -> list[str]:
    """Return the ways whose names begin with one of these, or all for None.

    Raises:
        ValueError: one of them begins no name.
    """
    for one in wanted or ():
        if not any(way.startswith(one) for way in WAYS):
            raise ValueError(f"no way begins with {one!r}; there are: {'; '.join(WAYS)}")
    return [way for way in WAYS if wanted is None or way.startswith(tuple(wanted))]


def measures(options: Options) -> list[Measure]:
    """Deal the images, train the judge, and return the measure."""
    wish = Wish(**options.quality)
    wanted = chosen(wish.ways)
    data = Path(wish.data) if wish.data else options.work / "digits"
    if wish.data is None:
        builtin.prepare("digits", data)
    quality_judge.split(data, options.work)
    steps = 200 if options.tiny else CLASSIFIER_STEPS
    judge = quality_judge.make(options.work, wish.size, steps)
    contest = Contest(options, wish, judge)
    ways = {way: partial(contest.made, *WAYS[way]) for way in wanted}
    name = f"after {wish.minutes:g} minutes at {wish.size} pixels"
    return [Measure(name, "excess", ways, least=wish.seeds, most=wish.seeds)]


@dataclass
class Contest:
    """All trainings and samples, made as they are asked for."""

    options: Options
    wish: Wish
    judge: Judge
    answers: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    failures: dict[tuple[str, int], Exception] = field(default_factory=dict)
    parameters: int | None = None
    lasted: dict[int, float] = field(default_factory=dict)

    def made(self, package: str, number: int) -> tuple[Lap, Row]:
        """Return a lap that trains by a package with the next seed, and judges what its sampler of a number made."""
        rows: list[Row] = []
        facts: Row = {}
        if package == "diffunet":
            learned = f"{self.judge.trained.learned}, {self.judge.trained.accuracy:.1%} right"
            facts |= {"images": len(self.judge.training), "kept back": len(self.judge.held_out), "features": learned}

        def lap() -> float:
            answer = self.answer(package, len(rows))
            way = list(answer["made"].values())[number]
            samples: Pixels = np.load(way["file"])["samples"]
            if not rows:
                sheet = f"{package}-{number}.png" if number else f"{package}.png"
                quality_judge.sheet(samples, Path(self.wish.out) / sheet)
            found = self.judge.of(samples)
            known = {**answer, **way, **found}
            rows.append({name: value for name, value in known.items() if name not in ("made", "file", "excess")})
            facts.update({name: mean(row[name] for row in rows) for name in rows[0]})
            return found["excess"]

        return lap, facts

    def answer(self, package: str, seed: int) -> dict[str, Any]:
        """Return what a package's process has answered for a seed, or raise what it has raised."""
        key = package, seed
        if key not in self.answers and key not in self.failures:
            try:
                self.answers[key] = self.real(seed) if package == "real" else self.ask(package, seed)
            except Exception as error:
                self.failures[key] = error
        if key in self.failures:
            raise self.failures[key]
        return self.answers[key]

    def real(self, seed: int) -> dict[str, Any]:
        """Return training images as if they were samples."""
        chosen = np.random.default_rng(seed).permutation(len(self.judge.training))[: self.wish.samples]
        path = self.options.folder("real") / "0.npz"
        np.savez(path, samples=self.judge.training[chosen])
        return {"made": {"": {"file": str(path), "samples": len(chosen)}}}

    def ask(self, package: str, seed: int) -> dict[str, Any]:
        """Train and sample by a package, each in processes of its own."""
        work = self.options.folder(package)
        seconds: dict[str, Any] = {}
        run = work / "run"
        if package == "diffunet":
            seconds["training s"] = self.lasted[seed] = self.train(run, seed)
        minutes = max(self.wish.minutes, self.lasted.get(seed, 0.0) / 60)
        task = {
            "training": str(self.options.work / "training"), "held_out": str(self.options.work / "held-out"),
            "work": str(work), "size": self.wish.size, "seed": seed,
            "parameters": self.parameters or self.usual, "minutes": minutes, "samples": self.wish.samples,
            "patience": PATIENCE * 60 * self.wish.minutes, "device": self.options.device or "",
            "tiny": self.options.tiny, "run": str(run),
        }  # fmt: skip
        path = work / "task.json"
        path.write_text(json.dumps(task))
        variables = {"ACCELERATE_USE_CPU": "true"} if self.options.device == "cpu" else {}
        answer: dict[str, Any] = children.ask("quality_peers", package, path, **variables)
        if package == "diffunet":
            self.parameters = answer["parameters"]
        return answer | seconds

    def train(self, run: Path, seed: int) -> float:
        """Train by the command of diffunet, which has to read the images anew, and return the seconds that it took.

        Raises:
            RuntimeError: it failed.
        """
        limit = self.wish.limit.format(minutes=f"{self.wish.minutes:g}").split()
        words = ["train", self.options.work / "training", "--out", run, *limit, "--image-size", self.wish.size]
        words += ["--seed", seed] if seed else []
        words += ["--device", self.options.device] if self.options.device else []
        command = [sys.executable, "-m", "diffunet", *map(str, words)]
        variables = os.environ | {"DIFFUNET_CACHE": str(run.parent / "cache")}
        began = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True, env=variables)
        if ended.returncode not in (0, STOPPED):
            said = (ended.stderr.strip().splitlines() or ["silent"])[-1]
            raise RuntimeError(f"exit code {ended.returncode}: {said}")
        return time.perf_counter() - began

    @cached_property
    def usual(self) -> int:
        """The parameters of diffunet's net by default, should its training have failed."""
        how = compute.choose(self.options.device)
        config = nets.resolved("default", self.wish.size, how, images=len(self.judge.training))
        return sum(parameter.numel() for parameter in build.net(config).parameters())
