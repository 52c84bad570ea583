"""The minutes of a run, by an injected clock; the fall of the learning rate; runs that are made longer."""

import json
import math
import shutil

import pytest
from helpers.runs import assert_same_run, stop_at
from helpers.small import tiny

from diffunet import files, storage
from diffunet.config import TrainConfig, read_toml
from diffunet.errors import CheckpointError, Stopped, UsageError
from diffunet.training import budget, checkpoint, recipe
from diffunet.training.budget import Budget
from diffunet.training.loop import train
from diffunet.training.rate import FLOOR, fall, leads_on, rate

OPEN = {
    "steps": None,
    "cooldown": 0.4,
    "warmup": 2,
    "checkpoint_every": 1000,
    "sample_every": 1000,
    "previews": 0,
    "ema_every": 0,
}


class Clock:
    """A clock that shows the same time until somebody lets it go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def ticks(self, seconds, until=math.inf):
        """An `on_step` for steps of so many seconds, which stops a run after the step `until`."""

        def on_step(progress):
            self.now += seconds(progress.step) if callable(seconds) else seconds
            self.steps = progress.steps
            return progress.step < until

        return on_step


@pytest.fixture
def clock(monkeypatch):
    """The clock of all runs of a test; choosing by minutes takes no time and expects 20 steps."""
    found = Clock()
    monkeypatch.setattr(budget, "monotonic", found)
    monkeypatch.setattr(recipe, "seconds_per_step", lambda *_: 3.0)
    return found


def test_the_rate_rises_stays_and_falls():
    config = TrainConfig(learning_rate=2.0, warmup=4, steps=100, cooldown=0.4, cooldown_from=60)
    assert [rate(config, step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert all(rate(config, step) == 2.0 for step in range(3, 60))
    for step in range(60, 100):  # p counted by the end of the step, so that the last one is at 1
        p = (step + 1) / 100
        assert rate(config, step) == pytest.approx(2.0 * max(FLOOR, 1 - math.sqrt((p - 0.6) / 0.4)))
    assert rate(config, 99) == 2.0 * FLOOR


def test_a_rate_does_not_fall_where_the_end_is_open_or_there_is_no_cooldown():
    for end in ({"steps": None, "cooldown_from": None}, {"steps": 10, "cooldown_from": 10}, {"steps": 10}):
        assert rate(TrainConfig(learning_rate=1.0, warmup=0, **end), 9) == 1.0


def test_a_checkpoint_leads_on_only_to_the_end_towards_which_its_rate_falls():
    before, after = (TrainConfig(steps=steps, cooldown_from=first) for steps, first in ((100, 60), (200, 120)))
    assert fall(before, 60) is None
    assert fall(before, 61) == [60, 100]
    assert fall(TrainConfig(steps=None), 61) is None
    for step, same, longer in ((60, True, True), (61, True, False)):
        state = {"step": step, "cooldown": fall(before, step)}
        assert (leads_on(before, state), leads_on(after, state)) == (same, longer)
    assert leads_on(after, {"step": 61})  # of diffunet 0.1, whose rate is constant


def test_a_budget_by_its_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "monotonic", clock)
    time = Budget(minutes=10, cooldown=0.4, before=60.0, began=95.0)  # 600 s, of which 65 are gone
    assert time.elapsed == 65.0
    for done in range(21, 200):  # a part that goes on at step 20; its first step is not like the others
        clock.now += 7.0 if done == 21 else 2.0
        time.note(done)
        assert (time.per_step(done) is None) == (done < 24)
        assert time.cools(done) == (done >= 24 and time.elapsed >= 360)
        if time.cools(done):
            break
    assert 360 <= time.elapsed < 362
    assert time.steps(done) == done + round((600 - time.elapsed) / 2.0)


@pytest.mark.parametrize("seconds", [2.0, 3.7, lambda step: 2.0 + step % 3])
@pytest.mark.long
def test_a_run_ends_when_its_minutes_do(folder, tmp_path, clock, seconds):
    began = clock.now
    train(tiny(train=OPEN | {"minutes": 2.0}), folder, tmp_path / "run", on_step=clock.ticks(seconds))
    assert 114.0 <= clock.now - began <= 126.0  # within 5%
    t = read_toml(tmp_path / "run/config.toml").train
    assert clock.steps == t.steps
    assert 0.57 < t.cooldown_from / t.steps < 0.67
    assert checkpoint.steps(tmp_path / "run") == [t.cooldown_from, t.steps]
    rates = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open() if "learning_rate" in line]
    assert rates[-1]["learning_rate"] == pytest.approx(FLOOR * t.learning_rate)


def test_a_run_whose_steps_are_decided_is_repeated_exactly_by_its_config(folder, tmp_path, clock):
    train(tiny(train=OPEN | {"minutes": 0.5}), folder, tmp_path / "a", on_step=clock.ticks(2.0))
    config = read_toml(tmp_path / "a/config.toml")
    train(config, folder, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b", config.train.steps)


@pytest.mark.parametrize("stop", [4, 10, 12])  # while the end is open, and in the cool-down, from step 9 or so on
def test_a_run_with_minutes_that_is_stopped_goes_on_with_the_time_that_is_left(folder, tmp_path, clock, stop):
    config = tiny(train=OPEN | {"minutes": 0.5})
    train(config, folder, tmp_path / "whole", on_step=clock.ticks(2.0))
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "run", on_step=clock.ticks(2.0, until=stop))
    decided = read_toml(tmp_path / "run/config.toml").train.steps
    assert (decided is None) == (stop == 4)
    clock.now += 3600.0  # the hour between the two parts does not count
    train(config, folder, tmp_path / "run", resume=True, on_step=clock.ticks(2.0))
    t, whole = (read_toml(tmp_path / name / "config.toml").train for name in ("run", "whole"))
    assert abs(t.steps - whole.steps) <= 2
    assert decided in (None, t.steps)
    if t == whole:
        assert_same_run(tmp_path / "whole", tmp_path / "run", t.steps)


def test_a_longer_run_equals_one_that_was_that_long_from_the_start(folder, tmp_path):
    short, long = ({"steps": steps, "warmup": 3, "cooldown": 0.5, "ema_every": 0} for steps in (6, 12))
    train(tiny(train=long), folder, tmp_path / "whole")
    train(tiny(train=short), folder, tmp_path / "run")
    model = files.sha256(tmp_path / "run/model/model.safetensors")
    assert checkpoint.steps(tmp_path / "run") == [3, 6]
    with pytest.raises(Stopped):
        train(tiny(train=long), folder, tmp_path / "run", resume=True, on_step=stop_at(8))
    assert files.sha256(tmp_path / "run/model/model.safetensors") == model  # the finished one of before
    assert checkpoint.steps(tmp_path / "run") == [6, 9]
    train(tiny(train=long), folder, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 12)
    assert storage.model_step(tmp_path / "run/model") == 12


def test_a_run_is_made_longer_by_minutes_and_by_steps(folder, tmp_path, clock):
    config = tiny(train=OPEN | {"minutes": 0.5})
    train(config, folder, tmp_path / "run", on_step=clock.ticks(2.0))
    first = read_toml(tmp_path / "run/config.toml").train
    before = clock.now
    longer = tiny(train=OPEN | {"minutes": 1.0})
    train(longer, folder, tmp_path / "run", resume=True, on_step=clock.ticks(2.0))
    t = read_toml(tmp_path / "run/config.toml").train
    assert t.minutes == 1.0
    assert t.cooldown_from >= first.steps - 1  # 60% of twice the time
    assert 35.0 <= clock.now - before <= 45.0  # what came before the first cool-down, 18 s, is not done again
    train(tiny(train=OPEN | {"steps": t.steps + 10}), folder, tmp_path / "run", resume=True)
    after = read_toml(tmp_path / "run/config.toml").train
    assert (after.minutes, after.steps) == (None, t.steps + 10)
    with pytest.raises(UsageError, match="take one"):
        train(tiny(train=OPEN | {"steps": 90, "minutes": 3}), folder, tmp_path / "run", resume=True)


def test_fewer_steps_begin_the_cool_down_at_once(folder, tmp_path):
    config = tiny(train={"steps": 100, "checkpoint_every": 1000})
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "run", on_step=stop_at(7))
    train(tiny(train={"steps": 10}), folder, tmp_path / "run", resume=True)
    t = read_toml(tmp_path / "run/config.toml").train
    assert (t.cooldown_from, t.steps) == (8, 10)


def test_without_the_checkpoint_from_before_the_cool_down_a_run_cannot_be_longer(folder, tmp_path):
    config = {"steps": 6, "cooldown": 0.5, "checkpoint_every": 100}
    train(tiny(train=config), folder, tmp_path / "run")
    checkpoint._delete(checkpoint.folder_of(tmp_path / "run", 3))
    with pytest.raises(CheckpointError, match="cannot be made longer"):
        train(tiny(train=config | {"steps": 12}), folder, tmp_path / "run", resume=True)


def test_a_run_of_an_earlier_version_keeps_its_constant_rate(folder, tmp_path):
    train(tiny(train={"steps": 4, "cooldown": 0.0}), folder, tmp_path / "run")
    path = tmp_path / "run/config.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("cooldown", "minutes"))]
    path.write_text("\n".join(lines))
    train(tiny(train={"steps": 9, "cooldown": None}), folder, tmp_path / "run", resume=True)
    assert read_toml(path).train.cooldown == 0.0
    rates = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open() if "learning_rate" in line]
    assert rates[-1]["learning_rate"] == read_toml(path).train.learning_rate
    # It may be asked for, from where the run is.
    train(tiny(train={"steps": 20, "cooldown": 0.4}), folder, tmp_path / "run", resume=True)
    t = read_toml(path).train
    assert (t.cooldown, t.cooldown_from) == (0.4, 12)


@pytest.mark.parametrize("shorter", [{"steps": 5}, {"steps": 8}, {"steps": None, "minutes": 1e-4}])
def test_a_run_is_not_made_shorter_than_it_is(folder, run, tmp_path, shorter):
    shutil.copytree(run, tmp_path / "run")
    done = shorter == {"steps": 8}  # what it has: nothing is to do, and that is noted
    state = ("report.html", "status.json" if done else "")  # what says how it has ended
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.name not in state}
    if done:
        train(tiny(train=shorter), folder, tmp_path / "run", resume=True)
    else:
        with pytest.raises(UsageError, match=r"has done 8 steps .* give more"):
            train(tiny(train=shorter), folder, tmp_path / "run", resume=True)
    assert [path.name for path, content in files.items() if path.is_file() and path.read_bytes() != content] == []


def test_without_a_cool_down_the_minutes_end_with_the_full_rate_and_no_warning(folder, tmp_path, clock, caplog):
    config = tiny(train=OPEN | {"minutes": 0.5, "cooldown": 0.0})
    train(config, folder, tmp_path / "run", on_step=clock.ticks(2.0))
    assert "are over before the learning rate has fallen" not in caplog.text
    t = read_toml(tmp_path / "run/config.toml").train
    assert 15 <= t.steps <= 17  # of 2 seconds each
    rates = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open() if "learning_rate" in line]
    assert rates[-1]["step"] == t.steps
    assert rates[-1]["learning_rate"] == t.learning_rate
    train(tiny(train=OPEN | {"minutes": 0.7, "cooldown": 0.0}), folder, tmp_path / "run", resume=True,
          on_step=clock.ticks(2.0))  # fmt: skip
    assert read_toml(tmp_path / "run/config.toml").train.steps > 20


def test_a_step_from_which_the_rate_falls_needs_a_number_of_steps(folder, tmp_path):
    for end in ({}, {"minutes": 1.0}):
        with pytest.raises(UsageError, match=r"train\.cooldown_from is a step, and the run has no number of steps"):
            train(tiny(train=OPEN | end | {"cooldown_from": 5}), folder, tmp_path / "run")
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(("steps", "is_told"), [(1_000, False), (100_000, True)])
def test_a_run_that_is_made_much_longer_is_told_of_its_rate(folder, tmp_path, caplog, steps, is_told):
    options = {"previews": 0, "ema_every": 0, "cooldown": 0.0}
    train(tiny(train=options | {"steps": 2}), folder, tmp_path / "run")
    with caplog.at_level("INFO"), pytest.raises(Stopped):
        train(
            tiny(train=options | {"steps": steps}),
            folder,
            tmp_path / "run",
            resume=True,
            on_step=lambda progress: False,
        )
    told = "the learning rate stays 0.004; --train.learning-rate 0.001 suits 100000 steps"
    assert (told in caplog.messages) == is_told
    assert is_told or "the learning rate stays" not in caplog.text
    assert read_toml(tmp_path / "run/config.toml").train.learning_rate == 4e-3
