"""Run folders made by hand, for what reads them: no net, no training."""

import json

import numpy as np
from PIL import Image


def run_folder(path, *, lines=(), previews=(), begun=None, status=None, config=""):
    """Write a run folder with these lines of metrics.jsonl, previews at these steps, and contents of JSON files."""
    (path / "samples").mkdir(parents=True)
    (path / "config.toml").write_text(
        config or '[diffusion]\ntask = "generate"\n[train]\nsteps = 200\nbatch_size = 4\n'
    )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "status.json").write_text(json.dumps(status or {"state": "running", "step": 0, "steps": 200}))
    if begun is not None:
        (path / "begun.json").write_text(json.dumps(begun))
    for step in previews:
        Image.new("RGB", (20, 20), (step % 256, 0, 0)).save(path / "samples" / f"step-{step:08d}.png")
    return path


def line(step, **more):
    """Return a line of metrics.jsonl as training writes it, with a loss that falls."""
    values = {
        "step": step, "loss": 1 / step, "grad_norm": 1.0, "images_per_second": 8.0, "skipped": 0,
        "loss_by_noise": [None, *(n / step for n in range(1, 8))], "learning_rate": 1e-3, "seconds": step / 2,
    }  # fmt: skip
    return values | more


def noise(side, seed=0):
    """Return a picture that no format can make small."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))
