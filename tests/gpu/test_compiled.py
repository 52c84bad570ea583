"""A compiled net on the device: of few parts, as it takes half a minute."""

import json

import numpy as np
import pytest
from helpers.small import tiny

import diffunet
from diffunet.config import read_toml
from diffunet.training.loop import train

pytestmark = pytest.mark.gpu

FLAT = {"multipliers": (1,), "middle_attention": False, "attention_levels": ()}
STEPS = 20
SHORT = {"steps": STEPS, "log_every": 5, "checkpoint_every": STEPS, "learning_rate": 3e-3, "previews": 0}


def test_twenty_steps_and_pictures(device, folder, tmp_path):
    train(tiny(model=FLAT, train=SHORT | {"compile": "on"}), folder, tmp_path / "run", device=device)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert read_toml(tmp_path / "run/config.toml").train.compile == "on"
    pictures = [diffunet.load(tmp_path / "run", device, compile=each).sample(3, batch_size=2) for each in (False, True)]
    plain, compiled = (np.stack([np.asarray(picture) for picture in some]).astype(int) for some in pictures)
    assert abs(plain - compiled).mean() < 4  # of 255
