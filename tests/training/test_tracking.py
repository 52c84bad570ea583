"""Trackers: what tensorboard's files hold, and that no tracker, whatever it does, changes or ends a run."""

import importlib.machinery
import json
import os
import signal
import sys
import types

import numpy as np
import pytest
import torch
from accelerate import tracking as accelerates
from helpers.small import tiny
from PIL import Image
from safetensors.torch import load_file

from diffunet.config import Config
from diffunet.errors import Stopped, UsageError
from diffunet.names import NO_TRACKIO, TRACKERS
from diffunet.training import checkpoint, tracking
from diffunet.training.loop import train
from diffunet.training.stop import SIGNALS

CALLS = ("__init__", "start", "store_init_configuration", "log", "log_images", "finish")


def config(track=(), **options):
    return tiny(train={"steps": 4, "log_every": 1, "sample_every": 2, "validate_every": 4, "track": track} | options)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    """A run that is not tracked."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    train(config(), folder, run)
    return run


def assert_equal(a, b):
    one, two = (load_file(checkpoint.newest(run) / "model.safetensors") for run in (a, b))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def fake(monkeypatch):
    """Make `wandb` a tracker that does something bad at one of its calls, and notes all of them."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    calls = []

    def make(at, misdeed):
        def call(name):
            def method(self, *arguments, **options):
                calls.append((name, arguments, options))
                if name == at:
                    misdeed()

            return method

        body = {name: call(name) for name in CALLS} | {"name": "wandb", "requires_logging_directory": False}
        body["tracker"] = types.SimpleNamespace(id="run-of-a-fake")
        monkeypatch.setitem(
            accelerates.LOGGER_TYPE_TO_CLASS, "wandb", type("Fake", (accelerates.GeneralTracker,), body)
        )
        return calls

    return make


@pytest.mark.seconds
def test_tensorboards_files_hold_what_metrics_do_and_a_resumed_run_goes_on_in_them(folder, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    # The run gets to step 3 of 4, but its newest whole checkpoint is of step 2: step 3 is done again.
    with pytest.raises(Stopped):
        train(config(["tensorboard"], checkpoint_every=2), folder, run, on_step=lambda p: p.step < 2)
    (checkpoint.folder_of(run, 3) / "model.safetensors").unlink()
    train(config(["tensorboard"], checkpoint_every=2), folder, run, resume=True)
    found = event_accumulator.EventAccumulator(
        str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}, purge_orphaned_data=True
    )
    found.Reload()
    expected = {}
    for line in lines(run):
        step = line.pop("step")
        for name, value in line.items():
            several = [(f"{name}/{i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [(name, value)]
            expected |= {(tag, step): v for tag, v in several if v is not None}
    scalars = [(tag, e.step, e.value) for tag in found.Tags()["scalars"] for e in found.Scalars(tag)]
    assert len(scalars) == len(expected) > 30  # each step once
    assert {(tag, step) for tag, step, _ in scalars} == expected.keys()
    assert all(value == np.float32(expected[tag, step]) for tag, step, value in scalars)
    shown = found.Images("samples")
    assert [image.step for image in shown] == [2, 4]
    for image in shown:
        (tmp_path / "image.png").write_bytes(image.encoded_image_string)
        preview = Image.open(run / f"samples/step-{image.step:08d}.png").convert("RGB")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), np.asarray(preview))


def fails():
    raise OSError("no network\nat all")


def leaves():
    raise SystemExit(3)


def meddles():
    """Draw from every global generator, and take the signals."""
    torch.rand(5), np.random.rand(5)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("at", "misdeed"), [("start", leaves), ("start", meddles), ("log", fails), ("log", meddles), ("log_images", fails)]
)
def test_a_tracker_changes_nothing_whatever_it_does(folder, tmp_path, plain, fake, caplog, at, misdeed):
    fake(at, misdeed)
    seen = []

    def on_step(progress):
        seen.append({signal.getsignal(number) for number in SIGNALS})

    train(config(["wandb"]), folder, tmp_path / "run", on_step=on_step)
    assert_equal(plain, tmp_path / "run")
    assert [line["loss"] for line in lines(plain) if "loss" in line] == [
        line["loss"] for line in lines(tmp_path / "run") if "loss" in line
    ]
    assert all(signal.SIG_DFL not in handlers for handlers in seen)
    assert caplog.text.count("wandb tracks this run no longer") == (misdeed is not meddles)


@pytest.mark.parametrize("at", CALLS)
def test_a_failure_is_said_once_and_the_tracker_is_not_called_again(tmp_path, fake, caplog, at):
    calls = fake(at, fails)
    trackers = tracking.Trackers(tmp_path)
    trackers.begin(["wandb"], 0, Config())
    for step in (1, 2):
        trackers.note(step, {"loss": 0.5})
        trackers.tell()
        trackers.show(step, Image.new("RGB", (4, 4)), tmp_path / "none.png")
    trackers.close()
    names = [name for name, _, _ in calls]
    assert names == [*CALLS[: CALLS.index(at) + 1]] if at != "finish" else names[-1] == "finish"
    [record] = caplog.records
    assert "wandb tracks this run no longer: no network" in record.getMessage()
    assert "at all" not in record.getMessage()
    assert "Training goes on without it" in record.getMessage()


def test_one_that_is_not_installed_is_said_once_and_the_others_go_on(tmp_path, fake, caplog, monkeypatch):
    calls = fake("", fails)
    found = tracking.importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    trackers = tracking.Trackers(tmp_path)
    trackers.begin(["mlflow", "wandb"], 0, Config())
    trackers.note(1, {"loss": 0.5, "grad_norm": float("nan"), "loss_by_noise": [1.0, float("inf"), 2.0]})
    trackers.tell()
    [record] = caplog.records
    assert "mlflow tracks this run no longer: it is not installed (pip install mlflow)" in record.getMessage()
    [(_, arguments, options)] = [call for call in calls if call[0] == "log"]
    assert arguments == ({"loss": 0.5, "loss_by_noise/0": 1.0, "loss_by_noise/2": 2.0},)
    assert options == {"step": 1}


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path, fake):
    calls = fake("", fails)
    for step in (0, 8):
        tracking.Trackers(tmp_path).begin(["wandb"], step, Config())
    (_, _, first), (_, _, second) = (call for call in calls if call[0] == "__init__")
    assert (first["id"], second["id"], second["resume"]) == (None, "run-of-a-fake", "allow")
    assert json.loads((tmp_path / tracking.FILE).read_text()) == {"wandb": "run-of-a-fake"}
    [(_, (given,), _)] = [call for call in calls if call[0] == "store_init_configuration"]  # of the new one alone
    assert given["data.image_size"] == Config().data.image_size
    assert all(isinstance(value, bool | int | float | str) for value in given.values())


@pytest.mark.parametrize("content", ["", "[1]", '"wandb"', '{"wandb": null'])
def test_a_spoilt_file_of_ids_is_a_new_run(tmp_path, fake, content):
    calls = fake("", fails)
    (tmp_path / tracking.FILE).write_text(content)
    tracking.Trackers(tmp_path).begin(["wandb"], 8, Config())
    assert calls[0][2]["id"] is None
    assert json.loads((tmp_path / tracking.FILE).read_text()) == {"wandb": "run-of-a-fake"}


@pytest.mark.seconds
def test_a_signal_while_a_tracker_begins_stops_the_run_with_everything_saved(folder, tmp_path, fake):
    fake("start", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped at step 1 of 4 with everything saved"):
        train(config(["wandb"]), folder, tmp_path / "run")


def test_each_name_is_one_of_accelerates_and_known_here():
    assert set(tracking.KINDS) == set(TRACKERS)
    assert set(TRACKERS) | {"trackio"} == set(accelerates.LOGGER_TYPE_TO_CLASS)


@pytest.mark.parametrize(
    ("content", "track"),
    [
        ({}, ()),
        ({"tensorboard": True}, ("tensorboard",)),
        ({"tensorboard": False}, ()),
        ({"tensorboard": True, "track": ["wandb"]}, ("wandb",)),
        ({"track": ["wandb", "mlflow", "wandb"]}, ("wandb", "mlflow")),
    ],
)
def test_the_option_of_earlier_versions_is_read(content, track):
    found = Config.model_validate({"train": content})
    assert found.train.track == track
    assert "tensorboard =" not in found.to_toml()


@pytest.mark.parametrize(
    ("content", "words"),
    [({"track": ["trackio"]}, NO_TRACKIO), ({"track": ["wandbb"]}, "wandb"), ({"tensorboard": "yes"}, "no option")],
)
def test_what_cannot_track_is_refused(content, words):
    with pytest.raises(UsageError, match=words):
        Config.model_validate({"train": content})


@pytest.mark.seconds
def test_a_resumed_run_may_be_tracked_otherwise(folder, tmp_path, plain, fake):
    fake("", fails)
    train(config(["wandb"], steps=2), folder, tmp_path / "run")
    train(config([]), folder, tmp_path / "run", resume=True)
    assert "track = []" in (tmp_path / "run/config.toml").read_text()
