"""The third part of scripts/gpu.py: train for some minutes by the commands that people type, and show what came of it.

    python scripts/gpu_run.py noto-emoji-128.tar.gz --out FOLDER --seconds 240

trains on a folder of images, or an archive of one, with a net of at most `PARAMETERS`, writes the weights in bf16, and
with these samples, fills in images that were held out, and judges. In FOLDER are then `FILES`, the words of every
command, and run.json: what was trained on what, and how each command ended.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from diffunet import build, compute, storage
from diffunet.config import Config, preset, read_toml
from diffunet.data.folder import class_of, list_images
from diffunet.training import defaults

PARAMETERS = 7_000_000
"""Of the largest net: in bf16 its weights are 14 MB."""

CHANNELS = (16, 24, 32, 40, 48, 64)
"""That can be divided into heads."""

FILES = (
    "metrics.jsonl", "config.toml", "samples.png", "inpainted.png", "evaluate.txt", "model/config.json",
    "model/model.safetensors",
)  # fmt: skip
"""What there is in the end."""

STARTING = 10.0
"""Seconds until a command has imported torch, and its clock begins to run."""

TINY = "--model.channels 8 --model.multipliers 1 2 --model.num-blocks 1 --batch-size 4 --image-size 16 --steps 4"

Words = list[str]


def unpacked(data: Path, folder: Path) -> Path:
    """The folder of images that `data` is, or that is in the archive `data`, which is unpacked into `folder`."""
    if data.is_file():
        with tarfile.open(data) as archive:
            archive.extractall(folder, filter="data")  # which refuses what would land elsewhere
        data = folder
    while len(inside := list(data.iterdir())) == 1 and inside[0].is_dir():
        data = inside[0]
    return data


def size_of(data: Path) -> int:
    """The image size to train at: 32 for small images, else 64."""
    first, *_ = list_images(data)[0]
    with Image.open(data / first) as picture:
        return 32 if min(picture.size) <= 32 else 64


def classes_of(data: Path) -> tuple[str, ...]:
    """The subfolders, where every image is in one of several."""
    names = {class_of(path) for path in list_images(data)[0]}
    return () if None in names or len(names) < 2 else tuple(sorted(map(str, names)))


def parameters(config: Config) -> int:
    """Of the net of a config."""
    with torch.device("meta"):
        net = build.net(defaults.architecture(config, torch.device("cuda")))
    return sum(parameter.numel() for parameter in net.parameters())


def widest(size: int, names: tuple[str, ...]) -> int:
    """The channels, some of `CHANNELS`, of the widest default net of at most `PARAMETERS` for such images."""
    config = preset("default").changed("data", image_size=size, class_names=names)
    return max(n for n in CHANNELS if parameters(config.changed("model", channels=n)) <= PARAMETERS)


def training(data: Path, minutes: float, asked: Words, tiny: bool, recipe: bool) -> Words:
    """Options for `diffunet train`. What is `asked` for replaces what is chosen here.

    With `recipe` there is little but the minutes, by which training chooses the net, the batch and the learning rate.
    """
    size, names = size_of(data), classes_of(data)
    chosen: dict[str, list[object]] = {"--image-size": [size], "--train.ema-every": [0]}
    if not recipe:
        chosen["--model.channels"] = [widest(size, names)]
    if tiny:
        asked = [*shlex.split(TINY), *asked]
    if "--steps" not in asked:
        chosen["--minutes"] = [round(minutes, 3)]
    words: list[Any] = ["--classes"] if names else []
    for option, values in chosen.items():
        if option not in asked:
            words += [option, *values]
    return [*map(str, words), *asked]


class Commands:
    """Runs commands within a time, and keeps what they said and how they ended.

    Args:
        folder: to keep it in: NAME.txt and NAME.log (its standard error) for each command, and run.json.
        deadline: on the monotonic clock, when what still runs is killed.
        found: what run.json is to hold; how each command ended is added.
    """

    def __init__(self, folder: Path, deadline: float, found: dict[str, Any]) -> None:
        self.folder, self.deadline, self.found = folder, deadline, found

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def run(self, name: str, words: Sequence[object], right: Sequence[int] = (0,), spare: float = 0.0) -> bool:
        """Run `python WORDS`; whether it ended with one of the exit codes that are `right`, `spare` seconds before the
        deadline at the latest."""
        began, limit = time.monotonic(), self.left() - spare
        if limit < 1:
            self.found.setdefault("commands", {})[name] = "not begun: no time was left"
            return False
        command = [sys.executable, *map(str, words)]
        print(shlex.join(command), flush=True)
        with (self.folder / f"{name}.txt").open("w") as said, (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, stdout=said, stderr=log)
            try:
                code = process.wait(limit)
                how = f"exit code {code}"
            except subprocess.TimeoutExpired:
                process.terminate()  # training then saves what it has
                try:
                    code = process.wait(max(1.0, min(10.0, self.left())))
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
                how = f"stopped after its {limit:.0f} seconds, exit code {code}"
        how += f", {time.monotonic() - began:.1f} s"
        self.found.setdefault("commands", {})[name] = how
        self.keep()
        print(f"{name}: {how}", flush=True)
        return code in right

    def said(self, name: str) -> list[str]:
        """The lines of a file that a command may have written."""
        path = self.folder / name
        return path.read_text().strip().splitlines() if path.exists() else []

    def keep(self) -> None:
        """Write run.json."""
        there = {name for name in FILES if (self.folder / name).is_file() and (self.folder / name).stat().st_size}
        self.found["missing"] = [name for name in FILES if name not in there]
        (self.folder / "run.json").write_text(json.dumps(self.found, indent=1))


def halved(model: Path, out: Path) -> None:
    """A model folder with its weights in bf16."""
    out.mkdir(parents=True)
    tensors, metadata = storage.read_tensors(model / storage.WEIGHTS)
    storage.write_tensors(out / storage.WEIGHTS, {name: each.bfloat16() for name, each in tensors.items()}, metadata)
    shutil.copyfile(model / storage.CONFIG, out / storage.CONFIG)


def figures(run: Path) -> dict[str, Any]:
    """What metrics.jsonl says in the end: the step, the losses, images a second by the middle of its lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    found = {name: last[name] for name in ("step", "loss", "validation_loss", "skipped") if name in last}
    speeds = sorted(line["images_per_second"] for line in lines if "images_per_second" in line)
    return found | {"images_per_second": round(speeds[len(speeds) // 2], 1)}


def work(options: argparse.Namespace, commands: Commands) -> None:
    """Do all of it."""
    out, found = options.out, commands.found
    reserve = min(75.0, max(15.0, 0.25 * options.seconds))  # for what comes after training
    data, run, model = unpacked(options.data, out / "images"), out / "run-folder", out / "model"
    minutes = max(0.05, (commands.left() - reserve - STARTING) / 60)
    words = training(data, minutes, shlex.split(options.train), options.tiny, options.recipe)
    found |= {"data": options.data.name, "command": shlex.join(["diffunet", "train", "DATA", "--out", "RUN", *words])}
    device = ["--device", options.device] if options.device else []
    try:
        train = ["-m", "diffunet", "train", data, "--out", run, *words, *device]
        right = commands.run("train", train, (0, 75), reserve - 10)
        if not right and not (run / "model" / storage.WEIGHTS).is_file():
            raise RuntimeError((commands.said("train.log") or ["training said nothing"])[-1])
        for name in ("metrics.jsonl", "config.toml"):
            shutil.copyfile(run / name, out / name)
        config = read_toml(out / "config.toml")
        found |= {"image_size": config.data.image_size, "parameters": parameters(config), **figures(run)}
        halved(run / "model", model)
        few = options.tiny
        commands.run(
            "sample", ["-m", "diffunet", "sample", model, "--out", out / "samples.png", "--grid", "--num",
                       4 if few else 64, *device],
        )  # fmt: skip
        precision = "bf16" if compute.choose(options.device).precision == "bf16" else "fp32"
        commands.run(
            "inpaint", [Path(__file__).with_name("gallery.py"), model, data, "--out", out / "inpainted.png",
                        "--columns", 2 if few else 8, "--fillings", 1 if few else 2, "--precision", precision],
        )  # fmt: skip
        commands.run(
            "evaluate", ["-m", "diffunet", "evaluate", model, data, "--num", 8 if few else 1000, *device],
        )  # fmt: skip
        found["evaluate"] = commands.said("evaluate.txt")
    finally:
        shutil.rmtree(out / "images", ignore_errors=True)


def main() -> int:
    """Work, and keep in run.json what was done; 1 where that failed."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of images, or an archive of one")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is empty or not there")
    parser.add_argument("--seconds", type=float, default=240.0, help="of all of it")
    parser.add_argument("--train", default="", help="more words for diffunet train")
    parser.add_argument("--recipe", action="store_true", help="the net that the minutes ask for, however large")
    parser.add_argument("--device", help="the best there is by default")
    parser.add_argument("--tiny", action="store_true", help="a net of a few channels, four steps")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DIFFUNET_CACHE", str(options.out / "cache"))
    commands = Commands(options.out, began + options.seconds, {})
    try:
        work(options, commands)
    except Exception as error:
        commands.found["failed"] = f"{type(error).__name__}: {error}"
        print(commands.found["failed"], flush=True)
    commands.keep()
    return 1 if "failed" in commands.found else 0


if __name__ == "__main__":
    sys.exit(main())
