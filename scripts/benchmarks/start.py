"""Seconds that the commands take to begin: `diffunet --help`, and `diffunet sample` to its first call of the net.

Wall clock of whole processes. `python -m diffunet --help` is beside a Python that does nothing. `diffunet sample` of a
model of the default net at 32 pixels ends where its net is called for the first time; the UNet's class, which ends the
process, is imported before the command is called, as the command would do. It is beside a process that imports torch
and reads the same weights by safetensors, and ends there. Both end without cleaning up.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.measure import Lap, Measure, Options, Row, Wanted, elapsed

NAME = "start"

SAMPLE = """
import os, sys
from diffunet import variables
variables.wait_asleep()
from diffunet.commands import cli
from diffunet.nn.unet import UNet
def called(*args, **options):
    print("called", flush=True)
    os._exit(0)
UNet.forward = called
cli.main(["sample", *sys.argv[1:]])
"""

READ = """
import os, sys
import torch
from safetensors.torch import load_file
assert load_file(sys.argv[1])
print("called", flush=True)
os._exit(0)
"""


def measures(options: Options) -> list[Measure]:
    """Return both measures."""
    from benchmarks import nets
    from diffunet import compute, storage

    how = compute.choose(options.device)
    config, folder = nets.resolved("default", 32, how, tiny=options.tiny, batch_size=1), options.folder("model")
    storage.write_model(folder, config, nets.model(config).net.state_dict(), 0)
    device = ["--device", options.device] if options.device else []
    sample = ["-c", SAMPLE, folder, "--out", folder / "out.png", "--num", "1", *device]
    help_ways = {
        "a bare python": partial(made, ["-c", "print('usage')"], "usage"),
        "diffunet --help": partial(made, ["-m", "diffunet", "--help"], "usage"),
    }
    sample_ways = {
        "import torch, read weights": partial(made, ["-c", READ, folder / storage.WEIGHTS], "called"),
        "diffunet sample": partial(made, sample, "called"),
    }
    quick, soon = {"diffunet --help": Wanted("median", most=0.3)}, {"diffunet sample": Wanted("ratio", most=1.5)}
    return [
        Measure("diffunet --help", "s", help_ways, quick, least=5),
        Measure("to the first call of the net", "s", sample_ways, soon, least=5),
    ]


def made(words: Sequence[object], said: str) -> tuple[Lap, Row]:
    """Return a lap that runs a command once, which has to say a word; it has run once before."""
    command = [sys.executable, *map(str, words)]

    def run() -> None:
        ended = subprocess.run(command, capture_output=True, text=True)
        if said not in ended.stdout:
            raise RuntimeError((ended.stderr.strip().splitlines() or ["it said nothing"])[-1])

    run()
    return lambda: elapsed(run), {}
