"""Model folders: what is in them, and what is refused."""

import json
import pickle
import shutil

import pytest
import torch

import diffunet
from diffunet import CheckpointError, storage


def test_run_folder_and_model_folder_are_the_same_model(run):
    a, b = storage.read_model(run), storage.read_model(run / "model")
    assert a.step == b.step == 8
    assert all(torch.equal(x, y) for x, y in zip(a.denoiser.parameters(), b.denoiser.parameters(), strict=True))
    assert a.config == b.config


def test_model_folder_is_the_ema_of_the_newest_checkpoint(run):
    ema, _ = storage.read_tensors(run / "checkpoints/step-00000008/ema.safetensors")
    model, _ = storage.read_tensors(run / "model/model.safetensors")
    assert all(torch.equal(ema[name], model[name]) for name in ema)


def damaged(run, tmp_path, change):
    shutil.copytree(run / "model", tmp_path / "model")
    change(tmp_path / "model")
    return tmp_path / "model"


def set_config(**values):
    def change(folder):
        content = json.loads((folder / "config.json").read_text())
        content["config"]["model"] |= values
        (folder / "config.json").write_text(json.dumps(content))

    return change


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(Evil())), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "not a diffunet config"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"format": "diffunet", "version": 99}'), "version 99"),
        (set_config(channels=16), "do not fit"),
        (set_config(channels=2048, multipliers=[64, 64, 64]), "do not fit"),  # terabytes, had they been allocated
        (set_config(channels=10**9), "channels"),
        (set_config(chanels=8), "did you mean model.channels"),
        (lambda folder: (folder / "config.json").unlink(), "not a model"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(run, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message) as error:
        diffunet.load(damaged(run, tmp_path, change))
    assert "\n" not in str(error.value)


def test_missing_models_say_what_to_give(tmp_path):
    with pytest.raises(CheckpointError, match="there is no model"):
        diffunet.load(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").touch()
    with pytest.raises(CheckpointError, match="not reached its first checkpoint"):
        diffunet.load(tmp_path / "run")


def test_different_keys_are_listed(run, tmp_path):
    def rename(folder):
        tensors, metadata = storage.read_tensors(folder / "model.safetensors")
        tensors["stem.other"] = tensors.pop("stem.bias")
        storage.write_tensors(folder / "model.safetensors", tensors, metadata)

    with pytest.raises(CheckpointError, match=r"stem\.bias is missing; stem\.other is not of this model"):
        diffunet.load(damaged(run, tmp_path, rename))
