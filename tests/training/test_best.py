"""The average of least held-out loss: when a run of few images ends with it, and that both can be had."""

import json
import math

import pytest
import torch
from helpers.runs import stop_at
from helpers.small import tiny

import diffunet
from diffunet import storage
from diffunet.errors import Stopped
from diffunet.training import best, checkpoint, loop
from diffunet.training.loop import train


@pytest.fixture
def losses(monkeypatch):
    """Held-out losses to choose: `losses[step]`, measured at every second step."""
    chosen = {}
    measured = []

    def validate(judge, validation, seed, shape, at_once, flag, ranks):
        measured.append(None)
        return chosen["all"][len(measured) - 1]

    monkeypatch.setattr(loop, "validate", validate)
    return lambda *values: (measured.clear(), chosen.update(all=values))


def config(**options):
    return tiny(train={"validate_every": 2, "checkpoint_every": 2} | options)


def average(run, step):
    return storage.read_tensors(checkpoint.folder_of(run, step) / "ema.safetensors")[0]


def is_of(run, step, weights):
    model, about = storage.read_tensors(run / "model/model.safetensors")
    assert int(about["step"]) == step
    return all(torch.equal(model[name], weights[name]) for name in weights)


def test_the_model_is_the_best_average_where_the_loss_has_risen_since(folder, tmp_path, losses, caplog):
    caplog.set_level("INFO")
    losses(3.0, 2.0, 2.5, 2.1)
    train(config(keep_every=2), folder, tmp_path / "run")
    assert is_of(tmp_path / "run", 4, average(tmp_path / "run", 4))
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["step"], status["model_step"]) == ("done", 8, 4)
    assert "risen from 2.0000 to 2.1000" in caplog.text
    assert storage.model_step(tmp_path / "run/model") == 8  # how far the run was, so that nothing is written anew
    train(config(keep_every=2), folder, tmp_path / "run", resume=True)
    assert is_of(tmp_path / "run", 4, average(tmp_path / "run", 4))
    assert json.loads((tmp_path / "run/status.json").read_text())["model_step"] == 4
    # Both can be had.
    diffunet.load(tmp_path / "run").sample(1)
    diffunet.load(tmp_path / "run/checkpoints/step-00000008").sample(1)


@pytest.mark.parametrize("end", [(3.0, 2.0, 2.5, 2.03), (3.0, 2.0, 2.5, 1.0), (3.0, 2.0, 2.5, math.nan)])
def test_else_it_is_the_last(folder, tmp_path, losses, end):
    losses(*end)
    train(config(), folder, tmp_path / "run")
    assert is_of(tmp_path / "run", 8, average(tmp_path / "run", 8))
    assert json.loads((tmp_path / "run/status.json").read_text())["model_step"] == 8


def test_a_run_that_is_stopped_and_goes_on_knows_its_best(folder, tmp_path, losses):
    losses(3.0, 2.0, 2.5, 2.1)
    with pytest.raises(Stopped):
        train(config(keep_every=2), folder, tmp_path / "run", on_step=stop_at(5))
    losses(2.5, 2.1)
    train(config(keep_every=2), folder, tmp_path / "run", resume=True)
    assert is_of(tmp_path / "run", 4, average(tmp_path / "run", 4))


def test_a_best_average_that_was_written_after_the_checkpoint_is_not_taken(tmp_path):
    state = {"step": 5, "best": (2, 2.0)}
    assert best.Best.of(tmp_path, state).step == 0
    made = tiny(data={"class_names": ("a",)}, model={"attention_levels": ()})
    for step, loss in ((6, math.inf), (5, 1.5), (4, 1.5)):
        best.Best(tmp_path).note(1.5, step, made, {"w": torch.zeros(1)})
        assert best.Best.of(tmp_path, state) == best.Best(tmp_path, loss, 0 if step == 6 else step)
    # A version before this one noted the loss in the checkpoint alone.
    storage.write_model(tmp_path / best.FOLDER, made, {"w": torch.zeros(1)}, 2)
    assert best.Best.of(tmp_path, state) == best.Best(tmp_path, 2.0, 2)


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved."""


def test_a_run_that_is_killed_after_the_validation_of_its_checkpoint_knows_its_best(folder, tmp_path, losses):
    def kill(progress):
        if progress.step == 5:
            raise Killed

    losses(3.0, 2.0, 2.5, 2.1)
    with pytest.raises(Killed):
        train(config(keep_every=2), folder, tmp_path / "run", on_step=kill)
    assert checkpoint.steps(tmp_path / "run")[-1] == 4
    losses(2.5, 2.1)
    train(config(keep_every=2), folder, tmp_path / "run", resume=True)
    assert is_of(tmp_path / "run", 4, average(tmp_path / "run", 4))


def test_a_stop_in_the_last_step_changes_nothing(folder, tmp_path, losses):
    losses(3.0, 2.0, 2.5, 2.1)
    train(config(keep_every=2), folder, tmp_path / "run", on_step=lambda progress: progress.step != 7)
    assert is_of(tmp_path / "run", 4, average(tmp_path / "run", 4))


def test_a_run_that_is_killed_before_its_model_is_chosen_chooses_it_when_it_goes_on(
    folder, tmp_path, losses, monkeypatch
):
    def kill(run):
        raise Killed

    losses(3.0, 2.0, 2.5, 2.1)
    with monkeypatch.context() as patch:
        patch.setattr("diffunet.training.run.Run.choose_model", kill)
        with pytest.raises(Killed):
            train(config(keep_every=2), folder, tmp_path / "run")
    assert storage.weights_step(tmp_path / "run/model") == 8
    for _ in range(2):
        train(config(keep_every=2), folder, tmp_path / "run", resume=True)
        assert is_of(tmp_path / "run", 4, average(tmp_path / "run", 4))


def test_a_loss_that_may_be_negative_has_risen_where_it_has(tmp_path):
    least = best.Best(tmp_path, -2.0, 4)
    assert [least.is_better_than(loss) for loss in (-2.0, -1.97, -1.95, 1.0, math.nan)] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_a_run_that_is_made_longer_keeps_the_best_that_it_had(folder, tmp_path, losses):
    """It goes back to step 6, before its rate fell, and learns the images by heart."""
    losses(3.0, 2.5, 2.0, 1.0)
    train(config(cooldown_from=6), folder, tmp_path / "run")
    finished = average(tmp_path / "run", 8)
    losses(2.1, 2.2, 2.3)
    train(config(steps=12, cooldown_from=10), folder, tmp_path / "run", resume=True)
    assert is_of(tmp_path / "run", 8, finished)


def test_a_validation_that_a_stop_broke_off_is_made_up_for(folder, tmp_path):
    train(config(), folder, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config(), folder, tmp_path / "run", on_step=lambda progress: progress.step != 3)
    train(config(), folder, tmp_path / "run", resume=True)
    told = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("whole", "run")]
    measured = [{line["step"]: line["validation_loss"] for line in each if "validation_loss" in line} for each in told]
    assert measured[0] == measured[1]
    assert sorted(measured[0]) == [2, 4, 6, 8]


def test_many_images_have_none(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(best, "SMALL", 10)
    train(config(), folder, tmp_path / "run")
    assert not (tmp_path / "run/best").exists()
