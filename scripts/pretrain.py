"""Make the model `emoji` again, all of it: data, training, weights in bf16, what it reached, pictures and card.

    python scripts/pretrain.py --out emoji                                    # downloads the images
    python scripts/pretrain.py --out emoji --data noto-emoji-128.tar.gz --table noto-emoji-groups.tsv
    python scripts/pretrain.py --out emoji --data ... --table ... --model runs/emoji --hardware "one NVIDIA H100"

OUT is then as diffunet/pretrained/emoji is. What is made on the way (images, run, what was measured) is in OUT.work,
and what is there is not made again. With --model there is no training: the rest is done for a model that exists. The
one in diffunet/pretrained/emoji was trained for 6.5 minutes on an H200; another device does less in them.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffunet
from diffunet import compute, pretrained, storage
from diffunet.config import Config, TrainConfig
from diffunet.evaluation import report as reports
from diffunet.evaluation.reals import RealImages
from diffunet.interop import models
from diffunet.pictures import images
from diffunet.sampling.pipeline import Pipeline

OPTIONS: dict[str, list[object]] = {
    "--image-size": [64], "--task": ["inpaint"], "--classes": [], "--data.labels": ["TABLE:group"],
    "--data.group": ["TABLE:family"], "--data.balance-groups": [], "--data.augment": [0.12], "--data.all-hole": [0.5],
    "--model.channels": [64], "--model.num-blocks": [1], "--model.multipliers": [1, 2, 2, 2], "--batch-size": [128],
    "--train.learning-rate": [1e-3], "--train.half-size": [0.3], "--train.compile": ["off"], "--train.previews": [0],
    "--train.ema-every": [0],
}  # fmt: skip
"""Of `diffunet train`. TABLE names the table of groups."""

TINY: dict[str, list[object]] = {
    "--image-size": [16], "--model.channels": [8], "--model.multipliers": [1, 2], "--batch-size": [4],
    "--train.half-size": [0], "--steps": [4],
}  # fmt: skip

GUIDANCE = 2.0
"""Of the samples that are shown; what is measured has none."""

SAMPLES = f"100 samples of seed 0 and guidance {GUIDANCE:g}, the classes in turn, none left out"

KEPT = (
    "minutes", "steps", "batch_size", "learning_rate", "warmup", "cooldown", "cooldown_from", "half_size",
    "half_size_until", "ema_halflife",
)  # fmt: skip
"""The options of training that stay in the config; the others are of the machine, or as they are by default."""

ABOUT = "Emoji of 64x64 pixels over white, by group, and holes in such pictures filled in."
DATA = "Noto Emoji by Google, png/128 of github.com/googlefonts/noto-emoji; groups by googlefonts/emoji-metadata"
LICENCE = "Apache 2.0"
LIMITS = (
    "It is a small model, of some minutes of training. Of the hundred samples above, of guidance 2, one of us could "
    "name about sixty (faces, people, a heart, a clock, a pumpkin, a tractor); nine more are the coloured squares "
    "of signs, with shapes in them that mean nothing, and the rest have the style of emoji and are nothing. Without "
    "guidance it was about 36 of the same hundred. Two of them, the clock and the orange heart, are almost training "
    "images, 14 and 16 grey levels a pixel away; all others are more than 21. Animals, hands and machines often "
    "come out melted; letters, digits and flags are wrong. It was told the nine groups and no names: it cannot be "
    "asked for a cat. In holes that are thin or full of gaps it puts back what was there; in large ones it goes on "
    "with the colours and lines at the edge, and makes up what is in the middle. It knows no photographs, and "
    "pictures of 64x64 pixels alone."
)
"""What the card says of data and limits. The latter is what people saw in its pictures."""


def main() -> None:
    """Parse, and do one thing after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder, laid out as diffunet/pretrained/emoji")
    parser.add_argument("--data", type=Path, help="a folder of the images, or a .tar.gz; downloaded if not given")
    parser.add_argument("--table", type=Path, help="a .tsv with the columns file, family and group")
    parser.add_argument("--minutes", type=float, default=6.5, help="of training")
    parser.add_argument("--model", help="that exists; nothing is trained then")
    parser.add_argument("--hardware", help="what the model was trained on; the device here if not given")
    parser.add_argument("--num", type=int, default=10_000, help="samples to judge, at most a third of the images")
    parser.add_argument("--device", help="the best there is by default")
    parser.add_argument("--tiny", action="store_true", help="all of it with a net of a few channels and four steps")
    options = parser.parse_args()
    if (options.data is None) != (options.table is None):
        parser.error("--data and --table go together; without them, both are downloaded")
    work = options.out.with_name(f"{options.out.name}.work")
    work.mkdir(parents=True, exist_ok=True)

    data, table = work / "images", work / "groups.tsv"
    if not data.exists():
        collect(options.data, options.table, data, table)
    timed: dict[str, list[object]] = {"--minutes": [f"{options.minutes:g}"]}
    words = OPTIONS | (TINY if options.tiny else timed)
    source = options.model
    if source is None:
        source = str(work / "run")
        train(data, table, Path(source), words, options.device)
    model = with_data(source, work / "model", table)
    made = {
        "command": " ".join(["diffunet train DATA --out RUN", *_words(words)]),
        "hardware": options.hardware or compute.describe(compute.choose(options.device).device),
        **facts(model, data),
    }
    made["command"] = made["command"].replace(f"--minutes {options.minutes:g}", f"--minutes {made['minutes']:g}")

    ship(work / "model", options.out)
    pipe = diffunet.load(work / "model", options.device)
    small = options.tiny
    grid(pipe, options.out / "samples.png", 4 if small else 100)
    steps(pipe, options.out / "steps.png", 2 if small else 6)
    call(
        Path(__file__).with_name("gallery.py"), work / "model", data, "--out", options.out / "inpainted.png",
        "--columns", 2 if small else 14, "--fillings", 1 if small else 2,
        "--precision", "bf16" if pipe.how.precision == "bf16" else "fp32",
    )  # fmt: skip
    reached = {
        "measured_on": f"{compute.describe(pipe.device)}, {pipe.how.precision}",
        **kept(work / "loss.json", lambda: loss(pipe, data)),
        **kept(work / "samples.json", lambda: judged(pipe, data, options.num, options.out / "copies.png")),
    }
    content = {
        "about": ABOUT, "data": DATA, "licence": LICENCE, "limits": LIMITS, "training": made, "reached": reached,
    }  # fmt: skip
    write_card(options.out, content)
    print(options.out)


def collect(source: Path | None, rows: Path | None, data: Path, table: Path) -> None:
    """Write the images that have a row in the table to the folder `data`, and the table."""
    scratch = data.with_name("source")
    if source is None or rows is None:
        call("-m", "diffunet", "prepare", "emoji", scratch)
        source, rows = scratch, scratch / "groups.tsv"
    elif source.is_file():
        with tarfile.open(source) as archive:
            archive.extractall(scratch, filter="data")  # which refuses what would land elsewhere
        source = scratch
    with rows.open(encoding="utf-8", newline="") as lines:
        listed = {Path(row["file"]).name for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)}
    shutil.copyfile(rows, table)
    made = data.with_name("images.part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for path in sorted(source.rglob("*.png")):
        if path.name in listed:
            shutil.copyfile(path, made / path.name)
    shutil.rmtree(scratch, ignore_errors=True)
    made.rename(data)
    print(f"{len(list(data.iterdir())):,} images in {data}", flush=True)


def call(*words: object) -> None:
    """Run this Python with words, and end with its exit code where that is not 0."""
    command = [sys.executable, *map(str, words)]
    print(shlex.join(command), flush=True)
    if code := subprocess.call(command):
        sys.exit(code)


def _words(options: dict[str, list[object]]) -> list[str]:
    return [str(word) for name, values in options.items() for word in (name, *values)]


def train(data: Path, table: Path, run: Path, options: dict[str, list[object]], device: str | None) -> None:
    """Train, or go on with a run that was broken off."""
    words = [word.replace("TABLE", str(table)) for word in _words(options)]
    where = ["--device", device] if device else []
    call("-m", "diffunet", "train", data, "--out", run, *words, *where, "--resume")


def with_data(source: str, folder: Path, table: Path) -> storage.Model:
    """Return a model with the rules for its data in its config, and write it to `folder`: so its split is found."""
    model = models.read_model(source)
    config = model.config.changed(
        "data", labels=f"{table}:group", group=f"{table}:family", balance_groups=True, held_out=0.05, cache=None
    )
    storage.export_model(folder, config, model.denoiser.net.state_dict(), model.step)
    return storage.read_model(folder)


def facts(model: storage.Model, data: Path) -> dict[str, Any]:
    """What the config and the split say of how a model was made."""
    config = model.config
    training, held_out = RealImages(config, data).split()
    minutes, steps, batch = config.train.minutes, config.train.steps, config.train.batch_size
    assert isinstance(batch, int)
    return {
        "minutes": minutes or 0.0, "steps": steps, "images_seen": model.step * batch, "images": len(training),
        "held_out": len(held_out),
    }  # fmt: skip


def ship(source: Path, out: Path) -> None:
    """Write a model folder to be shipped: in bf16, without what its config says of a machine and its files.

    No rule for the data stays, and so nothing says that images of some folder were held out: `evaluate` then tells that
    the model may have seen them.
    """
    model = storage.read_model(source)
    train = {name: getattr(model.config.train, name) for name in KEPT}
    content = model.config.model_dump() | {"train": TrainConfig(**train).model_dump()}
    config = Config.model_validate(content).changed(
        "data", labels=None, group=None, balance_groups=False, held_out=0.0, cache=None
    )
    weights = {name: tensor.bfloat16() for name, tensor in model.denoiser.net.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    storage.write_model(out, config, weights, model.step, finished=True)
    for name in ("LICENSE", "groups.tsv.gz"):
        if not (out / name).exists():
            shutil.copyfile(pretrained.HERE / "emoji" / name, out / name)


def grid(pipe: Pipeline, path: Path, num: int) -> None:
    """What `diffunet sample emoji --grid --num NUM --seed 0 --guidance 2` makes."""
    images.save(pipe.sample(num, seed=0, guidance=GUIDANCE).grid(), path)


def steps(pipe: Pipeline, path: Path, num: int) -> None:
    """A row for each of some images, which comes out of the noise from left to right."""
    shown: list[images.Pixels] = []

    def keep(progress: diffunet.Progress) -> None:
        shown.append(pixels(progress.noisy))

    last = pipe.sample(num, seed=0, batch_size=num, on_step=keep)
    chosen = [shown[n] for n in range(0, len(shown), 2)]
    chosen.append(np.stack([images.to_array(image, pipe.channels) for image in last]))
    images.save(images.grid([step[n] for n in range(num) for step in chosen], columns=len(chosen)), path)


def pixels(tensor: torch.Tensor) -> images.Pixels:
    """Images [N C H W] in [-1, 1] as uint8 [N H W C]; a noisy one is scaled into the range."""
    scaled = tensor.float() / tensor.float().abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    return (scaled.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()).copy()


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds that was measured before, or else what is measured now."""
    if not path.exists():
        path.write_text(json.dumps(measure(), indent=1), encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def told(what: str, done: int, total: int) -> None:
    """Print how far something is, twenty times."""
    if done * 20 // total > (done - 1) * 20 // total:
        print(f"{what}: {done} of {total}", flush=True)


def loss(pipe: Pipeline, data: Path) -> dict[str, Any]:
    """The held-out loss, as `diffunet evaluate --loss` says it."""
    measured = reports.denoising(pipe, data, on_step=told)
    assert measured.held_out
    found = measured.error
    print("\n".join(found.lines()), flush=True)
    levels = [[round(sigma, 4), round(error, 4)] for sigma, error in zip(found.sigmas, found.errors, strict=True)]
    return {"loss": round(found.loss, 4), "loss_images": found.num, "loss_by_noise": levels}


def judged(pipe: Pipeline, data: Path, num: int, picture: Path) -> dict[str, Any]:
    """The distance of samples to real images, as `diffunet evaluate` says it, and whether they are copies.

    `picture` gets the sixteen samples that are nearest to a training image, each above that image.
    """
    report = reports.evaluate(pipe, data, num=num, on_step=told)
    assert report is not None, "this is the only process"
    print("\n".join(report.lines()), flush=True)
    assert report.memory is not None
    copies = report.memory.pixels
    images.save(report.memory.pairs, picture)
    rounded = {
        "distance": (report.distance, 4), "floor": (report.floor, 4), "excess": (report.excess, 4),
        "agreement": (report.agreement, 4), "copies": (copies.share, 4), "held_out_copies": (copies.held_out, 4),
        "nearest": (copies.median, 2), "held_out_nearest": (copies.held_out_median, 2),
    }  # fmt: skip
    return {"samples": report.num, **{n: value and round(value, digits) for n, (value, digits) in rounded.items()}}


def write_card(folder: Path, content: dict[str, Any]) -> None:
    """Write card.json, and README.md, which is the same for people."""
    (folder / pretrained.CARD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(folder), encoding="utf-8")


def card(folder: Path) -> str:
    """The card of the model in a folder, Markdown: of its card.json, its config and its pictures."""
    content: dict[str, Any] = json.loads((folder / pretrained.CARD).read_text(encoding="utf-8"))
    config, (weights, _) = storage.read_config(folder), storage.read_header(folder / storage.WEIGHTS)
    made, reached, size = content["training"], content["reached"], config.data.image_size
    parameters = sum(tensor.numel() for tensor in weights.values())
    head = f"---\nlicense: apache-2.0\nlibrary_name: diffunet\ndatasets: {content['data']}\n---"
    blocks = [
        head, "# emoji", content["about"],
        f"A model that comes with diffunet: {parameters / 1e6:.1f} M parameters, {size}x{size} pixels, trained to "
        f"inpaint, and generates too. Its classes are the {len(config.data.class_names)} groups of emoji: "
        f"{', '.join(config.data.class_names)}.",
        "```\ndiffunet sample emoji --out grid.png --grid --guidance 2\n"
        'diffunet sample emoji --out food.png --grid --label "Food and drink"\n'
        "diffunet inpaint emoji cut-out.png --out filled.png\n```",
        *_picture(folder, "samples.png", SAMPLES),
        *_picture(folder, "inpainted.png", "held-out emoji, masked, and two fillings each"),
        *_picture(folder, "steps.png", "from noise to image"),
        "## What it cannot do", content["limits"],
        f"## How it was made\n\nImages: {content['data']}. Licence of the images, and so of these weights: "
        f"{content['licence']} ([LICENSE](LICENSE)). {made['images']:,} images were trained on, and "
        f"{made['held_out']:,} held out, none of which is a variant (skin tone, sex) of one that was trained on.",
        f"```\n{made['command']}\n```",
        f"{made['minutes']:g} minutes on {made['hardware']}: {made['steps']:,} steps, {made['images_seen']:,} images "
        "seen. DATA is the images and TABLE the table groups.tsv, as `diffunet prepare emoji DATA` writes both; images "
        "that have no row in it (digits and letters of flags) are left out. `python scripts/pretrain.py` does all of "
        "it and writes this card.",
    ]  # fmt: skip
    return "\n\n".join([*blocks, *(_reached(folder, reached) if reached else [])]) + "\n"


def _picture(folder: Path, name: str, words: str) -> list[str]:
    return [f"![{words}]({name})\n\n{words[0].upper()}{words[1:]}."] if (folder / name).exists() else []


def _reached(folder: Path, reached: dict[str, Any]) -> list[str]:
    levels = "\n".join(f"| {sigma:g} | {error:g} |" for sigma, error in reached["loss_by_noise"])
    agreement = reached["agreement"]
    return [
        f"## What it reached\n\nMeasured on {reached['measured_on']}, without guidance. Feature distance of "
        f"{reached['samples']:,} samples to real images: {reached['distance']:.2f}, where other real images have "
        f"{reached['floor']:.2f} (the floor), an excess of {reached['excess']:.2f} (`diffunet evaluate`)."
        + (f" {agreement:.1%} are taken for their class." if agreement is not None else ""),
        f"Near copies: {reached['copies']:.1%} of the samples are as close to a training image as the closest 2% of "
        f"those are to one another; of held-out images, {reached['held_out_copies']:.1%} are. Half of the samples "
        f"are nearer than {reached['nearest']:g} grey levels a pixel (root of the mean square) to a training image, "
        f"and half of the held-out images than {reached['held_out_nearest']:g}.",
        *_picture(folder, "copies.png", "the sixteen samples nearest to a training image, each above that image"),
        f"Held-out loss: {reached['loss']:.4f}, the mean of the logarithm of the errors below, of "
        f"{reached['loss_images']} images (`diffunet evaluate --loss`; 1 is a denoiser that knows only how much pixels "
        f"vary).\n\n| noise level (sigma) | error |\n|---|---|\n{levels}",
    ]


if __name__ == "__main__":
    main()
