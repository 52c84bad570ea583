"""A grid of the model `emoji` that is stored; `python tests/helpers/emoji.py` writes it anew, for another model."""

import hashlib
import json
import platform
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import diffunet

FOLDER = Path(__file__).parents[1] / "interop" / "emoji"


def machine():
    """Return a hash of the processor and of torch's version, by which equal bits can be expected."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line for line in lines if line.startswith(("model name", "CPU part")))
    except (OSError, StopIteration):
        processor = platform.processor()
    return hashlib.sha256(f"{processor} {torch.__version__}".encode()).hexdigest()[:16]


def grid():
    """Return four samples of seed 0 as one picture, in float32 by one thread of the CPU, uint8 [H W C]."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return np.asarray(diffunet.load("emoji", "cpu", torch.float32).sample(4, seed=0).grid())
    finally:
        torch.set_num_threads(threads)


def sha256(pixels):
    """Return the hash of pixels."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    made = grid()
    Image.fromarray(made).save(FOLDER / "seed-0.png")
    (FOLDER / "seed-0.json").write_text(json.dumps({"machine": machine(), "sha256": sha256(made)}, indent=1) + "\n")
