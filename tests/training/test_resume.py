"""A run that is stopped and resumed against one that is not: equal, bit for bit."""

import json
import shutil

import pytest
from helpers.runs import assert_same_run, stop_at
from helpers.small import tiny
from safetensors import SafetensorError

from diffunet import storage
from diffunet.config import Config, read_toml
from diffunet.errors import CheckpointError, DataError, ResourceError, Stopped, UsageError
from diffunet.training import checkpoint
from diffunet.training.loop import train


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """`whole(accumulation)`: a run that nobody stopped, the same for all tests."""
    runs = {}

    def make(accumulation):
        if accumulation not in runs:
            runs[accumulation] = tmp_path_factory.mktemp("whole") / "run"
            train(tiny(train={"grad_accumulation": accumulation}), folder, runs[accumulation])
        return runs[accumulation]

    return make


# The stop asked for after step n takes effect at the end of step n + 1. About 38 images are trained on, 6 a step: an
# epoch ends within step 7; with accumulation a step has two passes. The run that is not stopped has a cache: without
# one, the images are the same.
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stop", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 6))])
@pytest.mark.parametrize("cache", ["on", "off"])
def test_stopped_and_resumed_equals_not_stopped(folder, tmp_path, whole, accumulation, stop, cache):
    config = tiny(train={"grad_accumulation": accumulation}, data={} if cache == "on" else {"cache": "off"})
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "parts", on_step=stop_at(stop))
    assert json.loads((tmp_path / "parts/status.json").read_text())["state"] == "stopped"
    train(config, folder, tmp_path / "parts", resume=True)
    assert_same_run(whole(accumulation), tmp_path / "parts", 8)
    runs = (whole(accumulation), tmp_path / "parts")
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in runs]
    held_out = [
        [line["validation_loss"] for line in some if line["step"] == 8 and "validation_loss" in line] for some in lines
    ]
    assert held_out[0] == held_out[1]


def test_more_steps_extend_a_run(folder, tmp_path):
    train(tiny(train={"steps": 10}), folder, tmp_path / "whole")
    train(tiny(train={"steps": 4}), folder, tmp_path / "parts")
    train(tiny(train={"steps": 10}), folder, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 10)


def test_what_decides_the_weights_cannot_change_on_resume(folder, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UsageError, match=r"model\.channels = 8"):
        train(tiny(model={"channels": 16}), folder, tmp_path / "run", resume=True)
    with pytest.raises(UsageError, match="exists"):
        train(tiny(), folder, tmp_path / "run")


def test_an_option_set_back_to_its_default_counts_on_resume(folder, tmp_path):
    train(tiny(train={"steps": 2, "learning_rate": 1e-3}), folder, tmp_path / "run")
    again = {"train": {"steps": 3, "learning_rate": 3e-4}}  # 3e-4 is the default
    train(Config.model_validate(again), folder, tmp_path / "run", resume=True)
    assert read_toml(tmp_path / "run/config.toml").train.learning_rate == 3e-4
    with pytest.raises(UsageError, match=r"train\.batch_size = 6"):
        train(Config.model_validate({"train": {"batch_size": 5}}), folder, tmp_path / "run", resume=True)


def test_a_model_that_a_crash_kept_from_being_written_is_written_on_resume(folder, tmp_path):
    train(tiny(train={"steps": 3}), folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/model")
    train(tiny(train={"steps": 3}), folder, tmp_path / "run", resume=True)
    assert storage.read_model(tmp_path / "run").step == 3


def test_a_full_disk_is_said_in_one_line_and_the_old_checkpoint_is_whole(folder, run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(ResourceError, match=r"No space left on device.*earlier checkpoints are whole"):
        train(tiny(train={"steps": 20}), folder, tmp_path / "run", resume=True)
    assert checkpoint.newest(tmp_path / "run") is not None
    assert not list((tmp_path / "run/checkpoints").glob(".*"))
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


def test_other_images_are_refused(folder, run, tmp_path):
    before = [(run / name).read_bytes() for name in ("config.toml", "status.json")]
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(folder, tmp_path / "pictures")
    (tmp_path / "pictures/disc/0.png").unlink()
    with pytest.raises(DataError, match=r"not those that this run began with .*disc/0\.png"):
        train(tiny(train={"steps": 20}), tmp_path / "pictures", tmp_path / "run", resume=True)
    assert [(tmp_path / "run" / name).read_bytes() for name in ("config.toml", "status.json")] == before  # still done


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, tmp_path, caplog, name, damage):
    shutil.copytree(run, tmp_path / "run")
    before, newest = checkpoint.steps(tmp_path / "run")[-2:]
    path = checkpoint.folder_of(tmp_path / "run", newest) / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "truncate":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    path.write_bytes(content)
    if damage == "delete":
        path.unlink()
    if name == "manifest.json" and damage == "flip":
        assert checkpoint.newest(tmp_path / "run").name[5:] in (f"{before:08d}", f"{newest:08d}")
        return  # a flipped bit in its white space changes nothing that it says
    assert checkpoint.newest(tmp_path / "run") == checkpoint.folder_of(tmp_path / "run", before)
    assert path.parent.name in caplog.text


def test_only_damaged_checkpoints_are_an_error_and_none_at_all_is_a_start(folder, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for step in checkpoint.steps(tmp_path / "run"):
        (checkpoint.folder_of(tmp_path / "run", step) / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(tiny(train={"steps": 20}), folder, tmp_path / "run", resume=True)
    train(tiny(train={"steps": 2}), folder, tmp_path / "new", resume=True)
    assert checkpoint.steps(tmp_path / "new") == [2]


def test_pruning_keeps_two_and_the_milestones(folder, tmp_path):
    train(tiny(train={"steps": 12, "cooldown": 0, "checkpoint_every": 2, "keep_every": 6}), folder, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run") == [6, 10, 12]
