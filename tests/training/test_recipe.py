"""The net and the batch for the minutes of a run."""

import functools
from types import SimpleNamespace

import pytest
import torch
from helpers.small import tiny

from diffunet import build
from diffunet.compute import Compute
from diffunet.config import Config, ModelConfig, preset, read_toml
from diffunet.errors import UsageError
from diffunet.training import defaults, memory, opening, plan, recipe
from diffunet.training.loop import train
from diffunet.training.recipe import LADDER, Net


@functools.cache
def prices(size, channels=3):
    """What each net of the ladder costs at an image size."""
    config = preset("default").changed("data", image_size=size, channels=channels)
    return {
        net: memory.price(defaults.architecture(recipe.of_size(config, net), torch.device("cpu"))) for net in LADDER
    }


@pytest.mark.parametrize("size", [32, *(pytest.param(size, marks=pytest.mark.slow) for size in (16, 64, 128))])
@pytest.mark.long
def test_the_ladder_rises_and_more_time_gives_no_smaller_net(size):
    costs = prices(size)
    for cost in ("parameters", "macs"):
        values = [getattr(each, cost) for each in costs.values()]
        assert values == sorted(values)
    chosen = [LADDER.index(recipe.best(10.0**n, costs.get)) for n in range(10, 22)]
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0, len(LADDER) - 1)


def test_a_net_that_is_chosen_sees_enough_images_and_the_next_would_not():
    costs = prices(32)
    for macs in (1e12, 1e14, 1e16):
        place = LADDER.index(recipe.best(macs, costs.get))
        images = {net: macs / cost.macs for net, cost in costs.items()}
        needed = {net: 7000 * (cost.parameters / 1.5e6) ** (7 / 3) for net, cost in costs.items()}
        assert place == 0 or images[LADDER[place]] >= needed[LADDER[place]]
        assert all(images[net] < needed[net] for net in LADDER[place + 1 :])


def test_nets_that_groups_or_heads_do_not_divide_are_passed_over():
    def found(**model):
        config = preset("default").changed("data", image_size=32).changed("model", **model)
        return [net.channels for net in recipe.possible(config, torch.device("cpu"))]

    assert found() == [net.channels for net in LADDER]
    assert found(norm_groups=32, head_channels=32) == [32, 64, 64, 96, 128, 192]
    with pytest.raises(UsageError, match="24 channels cannot be normalised in 7 groups"):
        found(norm_groups=7)


@pytest.mark.parametrize(
    ("images", "size", "batch"),
    [(100, 32, 8), (16_000, 32, 8), (32_000, 32, 16), (64_000, 32, 32), (127_999, 32, 32), (10**9, 64, 128),
     (10**9, 128, 64), (10**9, 512, 32)],
)  # fmt: skip
def test_the_batch_leaves_two_thousand_steps_within_bounds(images, size, batch):
    assert recipe.batch_for(Config().changed("data", image_size=size), images) == batch


def test_what_a_person_chose_of_the_net_stands():
    small = Net(24, 1, False)
    mine = Config(model=ModelConfig(channels=40, attention_resolutions=(4,)))
    found = recipe.of_size(mine, small).model
    assert (found.channels, found.num_blocks, found.middle_attention, found.attention_levels) == (40, 1, False, None)
    assert recipe.of_size(Config(), small).model.attention_levels == ()
    large = recipe.of_size(Config(), Net(64, 2)).model
    assert (large.middle_attention, large.attention_levels) == (True, None)


@pytest.mark.long
def test_the_speed_is_that_of_the_device(monkeypatch):
    """Twice the time for a step is half the multiply-accumulates, and half the steps."""
    asked, costs = [], prices(16, 1)

    class Alone:
        num_processes, device = 1, torch.device("cpu")

        def gather(self, tensor):
            return tensor

    def chosen(of_32, seconds, fixed=0.0):
        """A step takes so many seconds for 32 images and for any number besides."""

        def timed(config, how, net, processes):
            asked.append((config.model.channels, config.train.batch_size))
            return fixed + of_32 * config.train.batch_size / 32

        monkeypatch.setattr(recipe, "seconds_per_step", timed)
        config = preset("default").changed("data", image_size=16, channels=1)
        how = Compute(torch.device("cpu"))

        def resolved(config):
            return defaults.resolve(
                config, images=100, class_names=(), mean=(0.0,), sigma_data=0.5, how=how, expected=1
            )

        return recipe.for_minutes(config, how, seconds, resolved, recipe.build.net, Alone())

    config, steps, slower = chosen(0.1, 180.0)
    assert (config.train.half_size, slower) == (0.0, 1.0)
    net = recipe.best(32 / 0.1 * 180 * costs[Net(32, 1, False)].macs, costs.get)
    assert (config.model.channels, config.model.num_blocks) == net[:2]
    batch = config.train.batch_size
    assert steps == int(180 / (0.1 * batch / 32))
    assert asked == [(32, 32), (net.channels, batch), (net.channels, 2 * batch)]  # twice the batch is twice as long
    assert chosen(0.2, 360.0)[0] == config
    slow, *_ = chosen(10.0, 180.0)
    assert (slow.model.channels, slow.train.batch_size) == (24, 8)
    # Where a step takes long whatever its batch, the batch is doubled as long as that pays: 0.2 s for 64, 0.3 for 128.
    assert chosen(0.05, 180.0, fixed=0.1)[0].train.batch_size == 64


def test_what_a_run_usually_gives_is_said_for_every_number_of_images():
    said = [plan.usual(most - 1) for most, _ in plan.GIVES] + [plan.usual(10**9)]
    assert all(said)
    assert len(set(said)) == len(plan.GIVES) + 1


@pytest.mark.slow
def test_a_batch_by_trial_goes_with_minutes(folder, tmp_path):
    config = tiny(train={"minutes": 0.2, "steps": None, "batch_size": "auto", "previews": 0, "ema_every": 0})
    train(config, folder, tmp_path / "run")
    t = read_toml(tmp_path / "run/config.toml").train
    assert t.batch_size > 6
    assert t.steps > t.cooldown_from


@pytest.mark.parametrize(("passes", "minutes"), [(3, 0.05), (5, 0.05)])
@pytest.mark.long
def test_the_batch_of_minutes_divides_into_the_passes_that_were_asked_for(folder, tmp_path, passes, minutes):
    options = {"steps": None, "minutes": minutes, "batch_size": None, "grad_accumulation": passes, "previews": 0}
    config = tiny(train=options).changed("model", channels=None, num_blocks=None, multipliers=None)
    train(config, folder, tmp_path / "run")
    t = read_toml(tmp_path / "run/config.toml").train
    assert t.grad_accumulation == passes
    assert t.batch_size % passes == 0


@pytest.mark.long
def test_days_of_a_fast_device_are_no_number_that_processes_cannot_tell(monkeypatch):
    """5,800 images of 4 GMACs a second, for ten days: 2e19 multiply-accumulates."""
    config = preset("default").changed("data", image_size=32).changed("diffusion", mean=(0.0,) * 3, sigma_data=0.5)
    how = Compute(torch.device("cpu"), "fp32", "a test")

    def resolved(config):
        return defaults.resolve(config, images=9, class_names=(), mean=(0.0,) * 3, sigma_data=0.5, how=how)

    monkeypatch.setattr(recipe, "seconds_per_step", lambda *_: 32 / 1e8)
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"), gather=lambda tensor: tensor)
    chosen, steps, _ = recipe.for_minutes(config, how, 864_000.0, resolved, build.net, alone)
    assert chosen.model.channels == LADDER[-1].channels
    assert steps > 10**9


@pytest.mark.parametrize(("seconds", "batch"), [(0.5, 16), (0.01, 128)])
def test_the_minutes_choose_the_batch_of_a_net_that_is_given(monkeypatch, seconds, batch):
    """In ten minutes it sees 38,400 images, or 1,920,000: 19 or 960 for each of 2,000 steps; 128 are the most."""
    config = tiny(train={"steps": None, "batch_size": None}).changed("diffusion", mean=(0.0,) * 3, sigma_data=0.5)
    how = Compute(torch.device("cpu"), "fp32", "a test")

    def resolved(config):
        return defaults.resolve(config, images=9, class_names=(), mean=(0.0,) * 3, sigma_data=0.5, how=how)

    def timed(config, *_):
        return seconds * config.train.batch_size / 32

    monkeypatch.setattr(recipe, "seconds_per_step", timed)
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"), gather=lambda tensor: tensor)
    chosen, steps, _ = recipe.for_minutes(config, how, 600.0, resolved, build.net, alone)
    assert chosen.train.batch_size == batch
    assert steps == int(600 / (seconds * batch / 32))


def test_steps_are_counted_for_the_batch_that_is_found_by_trial(folder, tmp_path, monkeypatch):
    """Timed with batches of 32 on a CPU; the one that is found has three times as many images."""
    monkeypatch.setattr(recipe, "seconds_per_step", lambda *_: 0.5)
    monkeypatch.setattr(memory, "images_per_pass", lambda *_: 96)
    options = {"steps": None, "minutes": 10.0, "batch_size": "auto", "warmup": None, "validate_every": None}
    with opening.foreseen(tiny(train=options), folder, tmp_path / "run", net=build.net, init=None, device="cpu") as run:
        assert run.config.train.batch_size == 96
        expected = run.expected
        assert 300 < expected <= 400  # of the 1,200 of batches of 32
        assert run.config.train.warmup == max(20, round(0.03 * expected))
