"""Runs that augment images and tell the net: resumed to the bit, and begun from models that were told nothing."""

import pytest
import torch
from helpers.small import tiny
from safetensors.torch import load_file

from diffunet.data import warp
from diffunet.errors import Stopped, UsageError
from diffunet.training import checkpoint
from diffunet.training.loop import train


def test_a_run_that_augments_resumes_to_the_bit_and_cannot_change_it(folder, tmp_path):
    config = tiny(data={"augment": 0.4})
    train(config, folder, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "stopped", on_step=lambda progress: progress.step < 5)
    with pytest.raises(UsageError, match=r"data\.augment = 0\.4; it cannot become 0\.2"):
        train(tiny(data={"augment": 0.2}), folder, tmp_path / "stopped", resume=True)
    train(config, folder, tmp_path / "stopped", resume=True)
    for name in ("model", "ema", "optimizer"):
        whole, stopped = (
            load_file(checkpoint.folder_of(tmp_path / run, 8) / f"{name}.safetensors") for run in ("whole", "stopped")
        )
        assert all(torch.equal(whole[key], stopped[key]) for key in whole)
    weights = load_file(tmp_path / "whole/model/model.safetensors")
    assert weights["embedding.augment.weight"].shape == (32, 9)
    assert weights["embedding.augment.weight"].any()


def test_a_model_that_was_told_nothing_starts_one_that_is_and_the_reverse(folder, run, tmp_path):
    still = {"steps": 1, "learning_rate": 1e-9}
    train(tiny(data={"augment": 0.4}, train=still), folder, tmp_path / "told", init=run)
    train(tiny(train=still), folder, tmp_path / "plain", init=tmp_path / "told")
    first, told, plain = (
        load_file(part / "model/model.safetensors") for part in (run, tmp_path / "told", tmp_path / "plain")
    )
    assert told.keys() - first.keys() == {"embedding.augment.weight"}
    assert plain.keys() == first.keys()
    assert all((first[key] - told[key]).abs().max() < 1e-5 for key in first)
    assert told["embedding.augment.weight"].abs().max() < 1e-6


def test_what_is_told_is_done(folder, tmp_path, monkeypatch):
    """The same first step with and without the images being warped: the gradients differ."""
    config, weights = tiny(data={"augment": 0.9}, train={"steps": 1, "warmup": 0}), {}
    for name in ("warped", "not"):
        train(config, folder, tmp_path / name)
        weights[name] = load_file(tmp_path / name / "model/model.safetensors")
        monkeypatch.setattr(warp, "warp", lambda x0, told: x0)
    assert any(not torch.equal(weights["warped"][key], weights["not"][key]) for key in weights["not"])
