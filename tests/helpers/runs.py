"""Runs that are compared, bit for bit."""

import numpy as np
import torch

import diffunet
from diffunet import storage
from diffunet.training import checkpoint


def tensors(run, step):
    """The tensors of a whole checkpoint, by file and by name."""
    folder = checkpoint.folder_of(run, step)
    assert checkpoint.problem(folder) is None
    return {name: storage.read_tensors(folder / f"{name}.safetensors")[0] for name in ("model", "ema", "optimizer")}


def assert_same_run(a, b, step):
    """The checkpoints of two runs after a step are equal, and their models draw the same."""
    for name, left in tensors(a, step).items():
        right = tensors(b, step)[name]
        assert left.keys() == right.keys()
        different = [key for key in left if not torch.equal(left[key], right[key])]
        assert different == [], f"{name}: {different}"
    pictures = [np.asarray(diffunet.load(run).sample(1, seed=3)[0]) for run in (a, b)]
    assert np.array_equal(*pictures)


def stop_at(step):
    """An `on_step` that stops a run after so many steps."""
    return lambda progress: progress.step < step
