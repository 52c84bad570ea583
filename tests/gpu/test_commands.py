"""Commands on the device: under a launcher, and a model written for others and read back."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.launching import PATIENCE
from helpers.small import tiny

import diffunet
from diffunet.commands.cli import main
from diffunet.interop import models
from diffunet.training.loop import train

pytestmark = pytest.mark.gpu


def test_one_process_under_accelerate_launch(device, folder, tmp_path):
    (tmp_path / "config.toml").write_text(tiny().to_toml())
    where = ["--cpu"] if device == "cpu" else []
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", *where, "-m", "diffunet", "train", folder,
        "--config", tmp_path / "config.toml", "--out", tmp_path / "run",
    ]  # fmt: skip
    ended = subprocess.run(
        list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
    kind = "CPU" if device == "cpu" else torch.cuda.get_device_properties(device).name
    assert f"device: {kind}" in ended.stderr
    assert len(diffunet.load(tmp_path / "run", device).sample(2)) == 2


@pytest.mark.parametrize("form", ["diffunet", "diffusers"])
def test_convert_and_load_back(device, folder, tmp_path, form):
    shared = {"norm_groups": 4, "head_channels": 8}  # diffusers has one number of groups for all widths
    train(tiny(model=shared, train={"steps": 4}), folder, tmp_path / "run", device=device)
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", form])
    assert ended.value.code == 0
    before, after = (models.read_model(tmp_path / name).denoiser.state_dict() for name in ("run", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    pictures = [diffunet.load(tmp_path / name, device).sample(2, seed=1) for name in ("run", "out")]
    there, back = (np.stack([np.asarray(each) for each in some]).astype(int) for some in pictures)
    assert abs(there - back).max() <= 1
