"""Half of the image size first: which steps, what they learn from, and that runs repeat, resume and end as said."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.launching import finish, launch
from helpers.runs import assert_same_run, stop_at
from helpers.small import tiny
from safetensors.torch import load_file

from diffunet import build, compute
from diffunet.config import preset, read_toml
from diffunet.errors import Stopped, UsageError
from diffunet.training import budget, defaults, half_size, memory, recipe
from diffunet.training.budget import Budget
from diffunet.training.learner import Learner
from diffunet.training.loop import train

QUICK = {"previews": 0, "ema_every": 0, "checkpoint_every": 1000, "sample_every": 1000}
HALF, FULL = 1.0, 3.0
"""The seconds of a step at both sizes by the clock of these tests."""


def of_run(run):
    return read_toml(run / "config.toml").train


class Clock:
    """A clock that goes on by the size of each step of the run in a folder."""

    def __init__(self):
        self.now, self.expected = 100.0, []

    def __call__(self):
        return self.now

    def ticks(self, run, until=10**9):
        def on_step(progress):
            border = of_run(run).half_size_until
            self.now += HALF if border is None or progress.step <= border else FULL
            self.expected.append(progress.steps)
            return progress.step < until

        return on_step


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(budget, "monotonic", found)
    monkeypatch.setattr(recipe, "seconds_per_step", lambda config, *_: HALF if config.train.half_size_until else FULL)
    return found


def seen(sizes):
    """A loss that notes the width of the images of each training step."""

    def loss(denoised, x0, sigma):
        assert denoised.x0.shape == x0.shape
        sizes.append((torch.is_grad_enabled(), x0.shape[-1]))
        return (denoised.x0 - x0).square().mean(dim=(1, 2, 3))

    return loss


def test_pixels_are_means_and_known_where_all_four_are():
    generator = np.random.default_rng(0)
    x, keep = generator.normal(size=(3, 2, 6, 6)).astype(np.float32), generator.random((3, 1, 6, 6)) < 0.8
    small, known = half_size.pooled(torch.from_numpy(x), torch.from_numpy(keep), 3)
    np.testing.assert_allclose(small.numpy(), x.reshape(3, 2, 3, 2, 3, 2).mean(axis=(3, 5)), atol=1e-6)
    assert known.dtype == torch.bool
    np.testing.assert_array_equal(known.numpy(), keep.reshape(3, 1, 3, 2, 3, 2).all(axis=(3, 5)))
    assert 0 < known.float().mean() < 1
    whole = half_size.pooled(torch.from_numpy(x), None, 6)
    assert whole[1] is None
    assert np.array_equal(whole[0].numpy(), x)


@pytest.mark.parametrize(("share", "cooldown", "steps"), [(0.5, 0.4, 1000), (0.3, 0.7, 777), (0.1, 0.0, 5000)])
def test_shares_of_the_time_are_turned_into_steps_where_one_at_half_takes_a_quarter(share, cooldown, steps):
    t = defaults.scheduled(tiny(train={"steps": steps, "half_size": share, "cooldown": cooldown}), steps).train
    times = np.where(np.arange(steps) < t.half_size_until, 0.25, 1.0)
    assert sum(times[: t.half_size_until]) / sum(times) == pytest.approx(share, abs=3 / steps)
    assert sum(times[t.cooldown_from :]) / sum(times) == pytest.approx(cooldown, abs=3 / steps)
    assert [half_size.applies(t, step) for step in (0, t.half_size_until - 1, t.half_size_until)] == [True, True, False]


def test_where_the_end_is_open_so_is_the_border():
    t = defaults.scheduled(tiny(train={"steps": None, "minutes": 3, "half_size": 0.5}), 100).train
    assert (t.half_size_until, t.cooldown_from) == (None, None)
    assert half_size.applies(t, 10**6)
    plain = defaults.scheduled(tiny(), 8).train
    assert (plain.half_size, plain.half_size_until, plain.cooldown_from) == (0.0, None, 6)
    assert not half_size.applies(plain, 0)


def test_steps_before_the_border_see_half_of_the_size_and_held_out_losses_all_of_it(folder, tmp_path):
    sizes = []
    train(tiny(train=QUICK | {"half_size_until": 5}), folder, tmp_path / "run", loss=seen(sizes))
    assert [size for learns, size in sizes if learns] == 5 * [4] + 3 * [8]
    assert {size for learns, size in sizes if not learns} == {8}


@pytest.mark.parametrize("stop", [2, 5, 8])  # before, at (a stop comes after the next step) and after the border
def test_a_run_that_is_stopped_goes_on_exactly(folder, tmp_path, stop):
    config = tiny(train=QUICK | {"steps": 10, "half_size_until": 6}, diffusion={"task": "inpaint"})
    train(config, folder, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "run", on_step=stop_at(stop))
    train(config, folder, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 10)


@pytest.mark.long
def test_a_run_with_minutes_ends_when_they_do_and_its_config_repeats_it(folder, tmp_path, clock):
    began = clock.now
    config = tiny(train=QUICK | {"steps": None, "minutes": 2.0, "cooldown": 0.4, "half_size": 0.5})
    train(config, folder, tmp_path / "a", on_step=clock.ticks(tmp_path / "a"))
    assert 114 <= clock.now - began <= 126  # within 5%
    t = of_run(tmp_path / "a")
    assert 57 <= t.half_size_until * HALF <= 63
    assert 68 <= t.half_size_until * HALF + (t.cooldown_from - t.half_size_until) * FULL <= 76
    # What is expected is right from the fourth step on, at either pace.
    assert all(abs(steps - t.steps) <= 0.05 * t.steps for steps in clock.expected[4:])
    train(read_toml(tmp_path / "a/config.toml"), folder, tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b", t.steps)


@pytest.mark.parametrize(
    "stop", [*(pytest.param(step, marks=pytest.mark.slow) for step in (8, 46)), 38]
)  # at half, at full size while the end is open, and in the cool-down
@pytest.mark.long
def test_a_run_with_minutes_that_is_stopped_has_the_stages_of_one_that_is_not(folder, tmp_path, clock, stop):
    config = tiny(train=QUICK | {"steps": None, "minutes": 1.5, "cooldown": 0.4, "half_size": 0.4})
    train(config, folder, tmp_path / "whole", on_step=clock.ticks(tmp_path / "whole"))
    whole = of_run(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "run", on_step=clock.ticks(tmp_path / "run", until=stop))
    assert (of_run(tmp_path / "run").half_size_until is None) == (stop == 8)
    clock.now += 3600.0
    train(config, folder, tmp_path / "run", resume=True, on_step=clock.ticks(tmp_path / "run"))
    t = of_run(tmp_path / "run")
    assert abs(t.half_size_until - whole.half_size_until) <= 1
    assert abs(t.steps - whole.steps) <= 2
    if t == whole:
        assert_same_run(tmp_path / "whole", tmp_path / "run", t.steps)


def test_a_longer_run_does_not_go_back_to_half_of_the_size(folder, tmp_path, clock):
    config = tiny(train=QUICK | {"steps": None, "minutes": 0.5, "half_size": 0.5})
    train(config, folder, tmp_path / "run", on_step=clock.ticks(tmp_path / "run"))
    first, sizes = of_run(tmp_path / "run"), []
    longer = tiny(train=QUICK | {"steps": None, "minutes": 0.8})
    train(longer, folder, tmp_path / "run", resume=True, on_step=clock.ticks(tmp_path / "run"), loss=seen(sizes))
    second = of_run(tmp_path / "run")
    assert (second.half_size_until, second.minutes) == (first.half_size_until, 0.8)
    assert second.cooldown_from > first.cooldown_from
    train(tiny(train=QUICK | {"steps": second.steps + 4}), folder, tmp_path / "run", resume=True, loss=seen(sizes))
    assert of_run(tmp_path / "run").half_size_until == first.half_size_until
    assert {size for _, size in sizes} == {8}


@pytest.mark.slow
def test_another_end_moves_the_border_of_a_run_that_is_at_half(folder, tmp_path):
    long = {"steps": 40, "half_size": 0.5, "cooldown": 0.25}
    train(tiny(train=QUICK | long), folder, tmp_path / "whole")
    assert of_run(tmp_path / "whole").half_size_until == 32
    for other, border in ((40, 32), (12, 10)):  # 12 steps: 9.6 at half
        run = tmp_path / str(other)
        with pytest.raises(Stopped):
            train(tiny(train=QUICK | long | {"steps": 20}), folder, run, on_step=stop_at(8))
        train(tiny(train=QUICK | {"steps": other, "half_size": None}), folder, run, resume=True)
        assert of_run(run).half_size_until == border
    assert_same_run(tmp_path / "whole", tmp_path / "40", 40)


def test_a_run_of_an_earlier_version_stays_at_full_size(folder, tmp_path):
    with pytest.raises(Stopped):
        train(tiny(), folder, tmp_path / "run", on_step=stop_at(3))
    path = tmp_path / "run/config.toml"
    path.write_text("".join(line for line in path.open() if "half_size" not in line))
    sizes = []
    train(tiny(train={"half_size": 0.0}), folder, tmp_path / "run", resume=True, loss=seen(sizes))  # as of a preset
    assert {size for _, size in sizes} == {8}
    assert (of_run(tmp_path / "run").half_size, of_run(tmp_path / "run").half_size_until) == (0.0, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"image_size": 7}}, "odd"),
        ({"model": {"multipliers": (1, 2, 2)}}, "deepest"),
        ({"train": {"half_size": 0.8, "steps": 40}}, "more than 1 together"),
        ({"train": {"half_size": 0.0, "half_size_until": 8}}, "none of 8 steps at full size"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(folder, tmp_path, changes, said):
    content = {"train": {"half_size": 0.5}}
    config = tiny(**{name: content.get(name, {}) | values for name, values in (content | changes).items()})
    with pytest.raises(UsageError, match=said):
        train(config, folder, tmp_path / "run")
    assert not (tmp_path / "run/config.toml").exists()


class OneSize(torch.nn.Module):
    """A net of a user's own for images of one size alone."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8, 8))

    def forward(self, x, c_noise, label=None, augment=None):
        return x * self.weight


def test_a_net_of_ones_own_is_tried_at_half_of_the_size(folder, tmp_path):
    with pytest.raises(UsageError, match="raises RuntimeError"):
        train(tiny(train={"half_size": 0.5}), folder, tmp_path / "run", net=lambda config: OneSize())


def resolved(config, how):
    return defaults.resolve(
        config, images=10**5, class_names=(), mean=(0.0,) * 3, sigma_data=0.5, how=how, expected=100
    )


@pytest.mark.parametrize(("share", "times"), [(None, 3.0), (0.0, 3.0), (0.2, 3.0), (0.5, 1.5)])
def test_the_steps_to_expect_are_by_the_measured_pace_of_both_sizes(monkeypatch, share, times):
    class Alone:
        num_processes, device = 1, torch.device("cpu")

        def gather(self, tensor):
            return tensor

    monkeypatch.setattr(
        recipe, "seconds_per_step", lambda config, *_: 1.0 if not config.train.half_size_until else 1.0 / times
    )
    how = compute.Compute(torch.device("cpu"))
    config = preset("default").changed("model", channels=24, num_blocks=1)
    config = config.changed("train", batch_size=8, minutes=10, half_size=share)

    def chosen(config, net=build.net):
        return recipe.for_minutes(config, how, 600.0, functools.partial(resolved, how=how), net, Alone())

    found, steps, slower = chosen(config)
    if share is None:  # it is a short run at 64 pixels; others, and nets of one's own, are at full size
        share = 0.5
        long = config.changed("train", batch_size=1000)
        for other in (config.changed("data", image_size=32), long):
            assert chosen(other)[0].train.half_size == 0.0
        assert chosen(config, net=lambda config: build.net(config))[0].train.half_size == 0.0
        assert chosen(config.changed("train", cooldown=0.75))[0].train.half_size == 0.25
    assert (found.train.half_size, found.train.half_size_until) == (share or 0.0, None)
    assert slower == pytest.approx(times if share else 1.0)
    assert steps == pytest.approx(600 * (times * (share or 0) + 1 - (share or 0)), abs=1)


def test_by_steps_it_is_off_unless_asked_for():
    for config in (tiny(), tiny(train={"steps": None, "minutes": 60}), tiny(data={"image_size": 64})):
        t = resolved(config, compute.Compute(torch.device("cpu"))).train
        assert (t.half_size, t.half_size_until) == (0.0, None)


def test_a_pace_is_that_of_the_size_of_now(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "monotonic", clock)
    time = Budget(minutes=10, cooldown=0.4, before=0.0, began=100.0, half=0.5, slower=3.0)
    for done in range(1, 301):
        assert not time.grows()
        clock.now += 1.0
        time.note(done, at_half=True)
        assert not time.cools(done)
    assert time.grows()
    assert time.steps(300) == 400
    for done in range(301, 330):
        clock.now += 3.5
        time.note(done)
        assert not time.grows()
        assert (time.per_step(done) is None) == (done < 304)
    assert time.steps(329) == 329 + round((300 - 29 * 3.5) / 3.5)


def test_memory_and_compilers_try_full_size(monkeypatch):
    how = compute.Compute(torch.device("cpu"))
    config = resolved(tiny(data={"classes": False}, train={"half_size": 0.5}), how)
    sizes, losses = [], Learner._losses

    def noted(self, model, batch, noise):
        sizes.append(noise.shape[-1])
        return losses(self, model, batch, noise)

    monkeypatch.setattr(Learner, "_losses", noted)
    assert memory._trial(config, how, 2, None, build.net)
    assert sizes == [8, 8]
    monkeypatch.setattr(compute.Compute, "compile", lambda *_: None)
    Learner(config, build.denoiser(config), replace(how, compiled=True)).compile(2)
    assert sizes[2:] == [4, 8]
    sizes.clear()
    Learner(half_size.without(config), build.denoiser(config), replace(how, compiled=True)).compile(2)
    assert sizes == [8]


@pytest.mark.slow
def test_processes_go_to_full_size_together_and_their_config_repeats_it(folder, tmp_path):
    config = tiny(
        data={"classes": False},
        train=QUICK | {"minutes": 0.4, "steps": None, "half_size": 0.5, "precision": "fp32"},
    )
    (tmp_path / "config.toml").write_text(config.to_toml())
    for run, source in (("run", "config.toml"), ("again", "run/config.toml")):
        assert finish(launch(2, [folder, "--out", tmp_path / run, "--config", tmp_path / source]))[0] == [0, 0]
    t = of_run(tmp_path / "run")
    assert 1 <= t.half_size_until < t.cooldown_from < t.steps
    a, b = (load_file(tmp_path / run / "model/model.safetensors") for run in ("run", "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)
