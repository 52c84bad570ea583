"""Losses, gradients and weights that are not finite."""

import contextlib
import json
import math

import pytest
import torch
from helpers.launching import finish, launch
from helpers.small import tiny
from safetensors.torch import load_file

from diffunet.errors import DivergedError
from diffunet.training import checkpoint
from diffunet.training.ema import averages
from diffunet.training.failures import Status, refuse_divergence
from diffunet.training.loop import train
from diffunet.training.state import State

QUIET = {"validate_every": 1000, "sample_every": 1000, "log_every": 1}


def squares(denoised, x0):
    return (denoised.x0 - x0).square().mean(dim=(1, 2, 3))


def spoilt(bad, kind):
    """A loss that is not finite, or whose gradient is not, in the steps that `bad` names (from 1)."""
    calls = []

    def loss(denoised, x0, sigma):
        calls.append(1)
        value = squares(denoised, x0)
        if len(calls) not in bad:
            return value
        if kind == "loss":  # its gradient is finite
            return value + math.inf
        if kind == "gradient":  # the loss is finite: the square root of 0 has no slope
            return value + (value - value.detach()).abs().sqrt()
        return value * math.nan

    return loss


def content(run, step):
    folder = checkpoint.folder_of(run, step)
    return {name: load_file(folder / f"{name}.safetensors") for name in ("model", "ema", "optimizer")}


@pytest.mark.parametrize("kind", ["nan", "loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(folder, tmp_path, kind):
    config = tiny(train=QUIET | {"steps": 6, "checkpoint_every": 1, "keep_every": 1})
    train(config, folder, tmp_path / "run", loss=spoilt({3, 4}, kind))
    before, after, later = (content(tmp_path / "run", step) for step in (2, 4, 5))
    for part in before:
        if part != "ema":  # which comes nearer to weights that stand still
            same = [torch.equal(before[part][name], after[part][name]) for name in before[part]]
            assert all(same), part
        assert all(tensor.isfinite().all() for tensor in after[part].values())
        assert not all(torch.equal(after[part][name], later[part][name]) for name in before[part])
    entries = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert [entry["skipped"] for entry in entries if "skipped" in entry] == [0, 0, 1, 2, 2, 2]
    assert [entry["loss"] is None for entry in entries if "loss" in entry] == [False, False, True, True, False, False]


@pytest.mark.parametrize("log_every", [1, 7, 100])
def test_n_in_a_row_end_the_run_however_seldom_one_looks(folder, tmp_path, log_every):
    config = tiny(train=QUIET | {"steps": 40, "max_skipped": 4, "checkpoint_every": 5, "log_every": log_every})
    with pytest.raises(DivergedError, match=r"no finite loss and gradient in [4-9] steps in a row.* step 5 is whole"):
        train(config, folder, tmp_path / "run", loss=spoilt(set(range(6, 15)), "nan"))
    assert checkpoint.newest(tmp_path / "run") == checkpoint.folder_of(tmp_path / "run", 5)
    for part in content(tmp_path / "run", 5).values():
        assert all(tensor.isfinite().all() for tensor in part.values())
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("diverged", 5)


def test_three_bad_steps_of_four_that_are_allowed_do_not(folder, tmp_path):
    config = tiny(train=QUIET | {"steps": 12, "max_skipped": 4})
    train(config, folder, tmp_path / "run", loss=spoilt({2, 3, 4, 6, 7, 8, 10}, "nan"))


def test_the_run_goes_on_from_the_last_good_checkpoint(folder, tmp_path):
    config = tiny(train=QUIET | {"steps": 12, "max_skipped": 3})
    with pytest.raises(DivergedError):
        train(config, folder, tmp_path / "run", loss=spoilt(set(range(4, 99)), "nan"))
    train(tiny(train=QUIET | {"steps": 12, "learning_rate": 1e-5}), folder, tmp_path / "run", resume=True)
    assert checkpoint.steps(tmp_path / "run")[-1] == 12


def test_a_learning_rate_that_breaks_everything_saves_nothing_that_is_not_finite(folder, tmp_path):
    config = tiny(
        train=QUIET
        | {"steps": 60, "learning_rate": 1e6, "warmup": 0, "max_skipped": 5, "checkpoint_every": 1, "clip": 1e6}
    )
    with contextlib.suppress(DivergedError):
        train(config, folder, tmp_path / "run")
    for step in checkpoint.steps(tmp_path / "run"):
        for part in content(tmp_path / "run", step).values():
            assert all(tensor.isfinite().all() for tensor in part.values())


@pytest.mark.parametrize("where", ["net", "ema", "optimizer"])
def test_a_number_that_is_not_finite_is_seen_before_a_save(where):
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = State(net, (optimizer,), averages(net, 1.0, 1.0, 1, stored=False))
    assert state.finite()
    with torch.no_grad():
        {"net": net.weight, "ema": state.ema.net.bias, "optimizer": optimizer.state[net.weight]["exp_avg"]}[where][
            ..., -1
        ] = math.inf
    assert not state.finite()


def test_what_is_said_of_weights_that_are_not_finite(tmp_path):
    resolved = tiny(train={"learning_rate": 1e-3})
    with pytest.raises(DivergedError, match="weights are not finite, at step 7; start anew"):
        refuse_divergence(Status(tmp_path, resolved, step=7), 0, True, lambda: None)
    with pytest.raises(DivergedError, match="the checkpoint of step 6 is whole: --resume"):
        refuse_divergence(Status(tmp_path, resolved, step=7, saved=6), 0, True, lambda: None)
    status = Status(tmp_path, resolved, step=7)
    with pytest.raises(DivergedError, match="the checkpoint of step 6 is whole: --resume"):  # it was being written
        refuse_divergence(status, 0, True, lambda: setattr(status, "saved", 6))


TWO = """
import os, sys, math, diffunet
from diffunet.config import read_toml

calls = []

def loss(denoised, x0, sigma):
    calls.append(1)
    value = (denoised.x0 - x0).square().mean(dim=(1, 2, 3))
    # Infinite on one process only, with a gradient that is finite on both.
    return value + math.inf if len(calls) in (3, 4) and os.environ["RANK"] == "1" else value

diffunet.train(read_toml(sys.argv[2]), sys.argv[1], sys.argv[3], loss=loss)
print(len(calls))
"""


@pytest.mark.slow
def test_what_one_process_sees_is_skipped_by_all(folder, tmp_path):
    config = tiny(train=QUIET | {"steps": 6, "checkpoint_every": 1, "keep_every": 1})
    (tmp_path / "config.toml").write_text(config.to_toml())
    codes, said = finish(launch(2, [folder, tmp_path / "config.toml", tmp_path / "run"], code=TWO))
    assert codes == [0, 0], said
    before, after, later = (content(tmp_path / "run", step) for step in (2, 4, 5))
    for part in before:
        if part != "ema":  # which comes nearer to weights that stand still
            assert all(torch.equal(before[part][name], after[part][name]) for name in before[part])
        assert not all(torch.equal(after[part][name], later[part][name]) for name in before[part])
    skipped = [json.loads(line).get("skipped") for line in (tmp_path / "run/metrics.jsonl").open()]
    assert max(count for count in skipped if count is not None) == 2
