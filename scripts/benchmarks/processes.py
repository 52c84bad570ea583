"""Training in 2 processes of one thread each, beside 1 process of two threads and of one, images a second, on the CPU.

Each is a real `diffunet train` of the default net at 32 pixels, batch 32, started with the variables that `accelerate
launch` and torchrun set; two processes talk by gloo. The figure is the median of `images_per_second` over the lines of
metrics.jsonl after the first. The mean losses of the first line are compared: the images and the noise of a step do not
depend on the number of processes. On a machine where this process may use one core alone, both share it. What two
processes add up in each step are the gradients, of four bytes for each parameter.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import nets, pictures
from benchmarks.measure import Lap, Measure, Options, Row, Wanted, refuse_difference
from diffunet import build, compute, storage

NAME = "processes"

LOG_EVERY, LINES = 4, 4
"""The steps of a line of metrics.jsonl, and its lines."""

TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2}
"""Precision -> the largest difference of the first mean loss, as a share of it."""


def measures(options: Options) -> list[Measure]:
    """Return the measure."""
    data = pictures.folder(options.work / "data", 64, 32, 32, distinct=64, suffix=".png")
    tolerance, told = TOLERANCES[compute.choose("cpu").precision], dict[int, float]()
    ways = {
        "1 process, 2 threads": partial(made, 1, 2, data, options, told, tolerance),
        "2 processes, 1 thread each": partial(made, 2, 1, data, options, told, tolerance),
        "1 process, 1 thread": partial(made, 1, 1, data, options, told, tolerance),
    }
    wanted = {"2 processes, 1 thread each": Wanted("ratio", least=0.9)}
    least = 1 if options.tiny else 3
    return [Measure("default 32, batch 32: training", "images/s", ways, wanted, more_is_better=True, least=least)]


def made(
    processes: int, threads: int, data: Path, options: Options, told: dict[int, float], tolerance: float
) -> tuple[Lap, Row]:
    """Return a lap that trains, whose first loss is compared with that of one process in `told`."""
    facts: Row = {}

    def lap() -> float:
        run = options.folder("run")
        every = 2 if options.tiny else LOG_EVERY
        words = ["train", data, "--out", run, "--image-size", 32, "--batch-size", 32, "--steps", every * LINES]
        words += ["--train.log-every", every, "--train.previews", 0, "--threads", threads]
        words += ["--train.cooldown", 0]  # its begin is saved, and would have a line of its own
        words += ["--train.kernels", "on" if nets.with_kernels(compute.choose("cpu")).native else "off"]  # as long runs
        if options.tiny:
            words += ["--model.channels", 16, "--model.multipliers", 1, "--image-size", 8, "--batch-size", 8]
        run.rmdir()
        launch(processes, threads, words)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if "images_per_second" in line]
        if len(lines) != LINES:
            raise RuntimeError(f"metrics.jsonl has {len(lines)} lines, not {LINES}")
        if processes > 1:
            facts["MB all-reduced in a step"] = 4e-6 * parameters(run)
        told.setdefault(processes, lines[0]["loss"])
        facts.update(refuse_difference(abs(told[processes] / told.get(1, told[processes]) - 1), tolerance))
        return median(line["images_per_second"] for line in lines[1:])

    return lap, facts


def parameters(run: Path) -> int:
    """Return how many parameters the net of a run has."""
    return sum(parameter.numel() for parameter in build.net(storage.run_config(run)).parameters())


def launch(processes: int, threads: int, words: list[object]) -> None:
    """Run `diffunet` in processes that belong together; raise RuntimeError with what one said that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        shared |= {"LOCAL_WORLD_SIZE": str(processes)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "diffunet", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}), text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    said = [worker.communicate()[1] for worker in workers]
    for worker, text in zip(workers, said, strict=True):
        if worker.returncode != 0:
            raise RuntimeError((text.strip().splitlines() or ["it said nothing"])[-1])
