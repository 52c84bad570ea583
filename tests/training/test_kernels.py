"""Whether a run uses kernels of diffunet's own: decided once, kept, and never without a word when they are gone."""

import json
import logging

import pytest
import torch
from helpers.runs import assert_same_run, stop_at
from helpers.small import tiny

from diffunet import compiler, compute
from diffunet.config import Config, read_toml
from diffunet.errors import Stopped, UsageError
from diffunet.nn import kernels as native
from diffunet.training import checkpoint, kernels, recipe
from diffunet.training.loop import train

WIDE = {"channels": 16}


@pytest.fixture(autouse=True, scope="module")
def built():
    try:
        native._loaded()
    except compiler.Unavailable as error:
        pytest.skip(str(error))


def config(asked, **sections):
    sections = {"model": WIDE, **sections}
    return tiny(**sections | {"train": {"kernels": asked, "precision": "fp32", **sections.get("train", {})}})


def decided(run):
    return read_toml(run / "config.toml").train.kernels


def environment(run, step):
    return json.loads((checkpoint.folder_of(run, step) / "state.json").read_text())["environment"]["kernels"]


@pytest.fixture
def gone(monkeypatch):
    def ready(device):
        raise compiler.Unavailable("there is no C++ compiler (c++)")

    monkeypatch.setattr(native, "ready", ready)


@pytest.fixture
def long_run(monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST", 0)
    monkeypatch.setattr(kernels, "WORTH", {"cpu": 0.0})


def times_as_fast(times):
    return lambda *_: times


@pytest.mark.long
def test_a_run_with_kernels_is_resumed_bit_for_bit(folder, tmp_path, monkeypatch):
    used = []
    for name in ("norm", "conv"):
        function = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, f=function, n=name, **k: used.append(n) or f(*a, **k))
    wide = config("on", data={"image_size": 16}, model=WIDE | {"dropout": 0.1})
    train(wide, folder, tmp_path / "whole")
    assert set(used) == {"norm", "conv"}
    with pytest.raises(Stopped):
        train(wide, folder, tmp_path / "stopped", on_step=stop_at(3))
    assert decided(tmp_path / "stopped") == "on"
    train(wide.changed("train", kernels="auto"), folder, tmp_path / "stopped", resume=True)
    steps = checkpoint.steps(tmp_path / "whole")[-1]
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", steps)
    assert environment(tmp_path / "stopped", steps) == compiler.describe()


def test_a_short_run_is_torchs_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "ready", lambda device: pytest.fail("nothing is to be built"))
    run = train(config("auto"), folder, tmp_path / "run").parent
    assert decided(run) == "off"
    assert environment(run, checkpoint.steps(run)[-1]) == "off"


def test_a_short_run_of_minutes_uses_what_has_been_built_for_its_trial(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "for_minutes", lambda config, *_: (config, 20, 1.0))
    monkeypatch.setattr(kernels, "_times_as_fast", times_as_fast(1.5))
    with pytest.raises(Stopped):
        train(config("auto", train={"minutes": 1.0, "steps": None}), folder, tmp_path / "run", on_step=stop_at(1))
    assert decided(tmp_path / "run") == "on"


@pytest.mark.parametrize(
    ("times", "expected", "said"),
    [(1.5, "on", "take 1/1.50 of the time"), (1.01, "off", "residual blocks are only 1.01 times as fast")],
)
def test_a_trial_decides(folder, tmp_path, long_run, monkeypatch, caplog, times, expected, said):
    monkeypatch.setattr(kernels, "_times_as_fast", times_as_fast(times))
    caplog.set_level(logging.INFO)
    run = train(config("auto"), folder, tmp_path / "run").parent
    assert decided(run) == expected
    assert said in caplog.text


def test_the_trial_times_a_block_and_leaves_the_random_numbers_alone():
    whole = config("auto", data={"image_size": 16}, model={"channels": 32})
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert 0.05 < kernels._times_as_fast(whole, compute.choose("cpu", "fp32")) < 20
    assert torch.random.get_rng_state().equal(before)


def test_without_a_compiler(folder, tmp_path, long_run, gone, caplog):
    caplog.set_level(logging.INFO)
    run = train(config("auto"), folder, tmp_path / "run").parent
    assert decided(run) == "off"
    assert "kernels: torch's alone (there is no C++ compiler (c++))" in caplog.text
    with pytest.raises(UsageError, match=r"--train\.kernels on: there is no C\+\+ compiler"):
        train(config("on"), folder, tmp_path / "other")


def test_a_compiler_that_is_gone_on_resume_is_said(folder, tmp_path, monkeypatch, caplog, request):
    with pytest.raises(Stopped):
        train(config("on"), folder, tmp_path / "run", on_step=stop_at(2))
    request.getfixturevalue("gone")
    train(config("auto"), folder, tmp_path / "run", resume=True)
    assert "goes on without, so that bits differ: there is no C++ compiler (c++)" in caplog.text
    assert decided(tmp_path / "run") == "off"


def test_a_run_that_began_without_goes_on_without(folder, tmp_path, long_run, monkeypatch):
    """Even where a new run would use them: its bits would not be those of a run that nobody stopped."""
    with pytest.raises(Stopped):
        train(config("off"), folder, tmp_path / "run", on_step=stop_at(2))
    monkeypatch.setattr(kernels, "_times_as_fast", times_as_fast(9.0))
    train(config("auto"), folder, tmp_path / "run", resume=True)
    assert decided(tmp_path / "run") == "off"


def test_what_has_no_kernels(folder, tmp_path):
    with pytest.raises(UsageError, match="there are none for fp16"):
        train(config("on", train={"precision": "fp16"}), folder, tmp_path / "half")
    classic = Config.model_validate({"model": {"net": "unet2015", "channels": 4}, "data": {"image_size": 8}})
    with pytest.raises(UsageError, match="no layer of this net has any"):
        train(classic.changed("train", steps=1, kernels="on"), folder, tmp_path / "classic")
