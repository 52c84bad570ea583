"""Runs on the device: in every precision, deterministic, with a batch that is found; stopped and resumed."""

import json
import math

import pytest
import torch

import diffunet
from diffunet import compute, storage
from diffunet.config import read_toml
from diffunet.errors import Stopped
from diffunet.training import checkpoint
from diffunet.training.loop import train

pytestmark = pytest.mark.gpu

WAYS = {
    "float32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "deterministic": {"deterministic": True},
    "batch auto": {"batch_size": "auto", "grad_accumulation": 1},
}
STEPS = 20
SHORT = {"steps": STEPS, "log_every": 5, "checkpoint_every": STEPS, "validate_every": STEPS, "sample_every": STEPS}


@pytest.mark.parametrize("kind", ["plain", "inpaint"])
@pytest.mark.parametrize("way", WAYS)
def test_twenty_steps(device, config_of, folder, tmp_path, way, kind):
    config = config_of(kind, **SHORT, learning_rate=3e-3, **WAYS[way])
    train(config, folder, tmp_path / "run", device=device)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["step"]) == ("done", STEPS)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert lines[-1].get("skipped", 0) == 0
    [held_out] = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert math.isfinite(held_out)
    assert (tmp_path / f"run/samples/step-{STEPS:08d}.png").is_file()
    said = read_toml(tmp_path / "run/config.toml").train
    assert said.batch_size == (compute.WORTH[torch.device(device).type] if way == "batch auto" else 6)
    [picture] = diffunet.load(tmp_path / "run", device, dtype=compute.PRECISIONS[said.precision]).sample(1)
    assert picture.size == (8, 8)


@pytest.mark.parametrize("kind", ["plain", "everything"])
def test_a_deterministic_run_resumes_to_the_bit(device, config_of, folder, tmp_path, kind):
    config = config_of(kind, deterministic=True)
    train(config, folder, tmp_path / "whole", device=device)
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "parts", device=device, on_step=lambda progress: progress.step < 4)
    train(config, folder, tmp_path / "parts", device=device, resume=True)
    whole, parts = (checkpoint.folder_of(tmp_path / name, 8) for name in ("whole", "parts"))
    for name in ("model", "ema", "optimizer"):
        left, right = (storage.read_tensors(run / f"{name}.safetensors")[0] for run in (whole, parts))
        assert left.keys() == right.keys()
        assert [key for key in left if not torch.equal(left[key], right[key])] == [], name
