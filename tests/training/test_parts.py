"""A pass in parts at once is what passes in turn are, to the bit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.runs import assert_same_run, stop_at
from helpers.small import tiny

from diffunet import build, compiler, compute
from diffunet.compute import Compute
from diffunet.diffusion.losses import DenoisingLoss
from diffunet.errors import Stopped
from diffunet.nn import kernels
from diffunet.training import defaults, parts, recipe
from diffunet.training.batches import Batch
from diffunet.training.learner import Learner
from diffunet.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    with compute.use_threads(2):
        yield


def ready(how):
    if how.native:
        try:
            kernels.ready(CPU)
        except compiler.Unavailable as reason:
            pytest.skip(str(reason))
    return how


def learner(how=Compute(CPU), **train_options):  # noqa: B008 - it is frozen
    config = tiny(model={"dropout": train_options.pop("dropout", 0.0)}, train={"optimizer": "muon", **train_options})
    config = defaults.resolve(config, images=40, class_names=("a", "b"), mean=(0.0,) * 3, sigma_data=0.5, how=how)
    torch.manual_seed(0)
    denoiser = build.denoiser(config, build.net(config))
    with torch.no_grad():  # layers that start at zero would hide what is before them
        for parameter in denoiser.net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    how.prepare(denoiser)
    return Learner(config, denoiser, how)


def batch(images=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, 8, 8, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (images,), generator=generator)
    return Batch(0, pixels, labels, torch.rand(images, generator=generator) + 0.1)


def learned(some, steps=3, passes=1):
    """The weights and losses after some steps of batches, each in so many passes."""
    losses = []
    for step in range(steps):
        whole = batch(seed=step)
        each = len(whole.sigma) // passes
        outcome = some.step(step, [whole.part(n * each, each) for n in range(passes)])
        losses.append(outcome.loss)
    return [parameter.detach().clone() for parameter in some.state.net.parameters()], losses


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_bounds():
    assert parts.bounds(6, 1) == [(0, 6)]
    assert parts.bounds(7, 3) == [(0, 2), (2, 4), (4, 7)]
    assert parts.bounds(2, 8) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("how", [Compute(CPU), Compute(CPU, native=True), Compute(CPU, "bf16")], ids=str)
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.long
def test_parts_at_once_are_passes_in_turn(how, number, two_threads):
    """Of a pass in parts and of so many passes the same is learned, on threads that compute alone."""
    ready(how)
    weights, losses = learned(learner(how, cpu_parts=number))
    with compute.use_threads(1):
        others, their_losses = learned(learner(how, grad_accumulation=number), passes=number)
    assert same(weights, others)
    assert torch.allclose(torch.stack(losses), torch.stack(their_losses), rtol=1e-6)  # summed in another order
    assert not same(weights, learned(learner(how, cpu_parts=number), steps=2)[0])


def test_parts_add_to_the_passes_before(two_threads):
    weights, _ = learned(learner(cpu_parts=3, grad_accumulation=2, batch_size=6), passes=2)
    with compute.use_threads(1):
        others, _ = learned(learner(grad_accumulation=6), passes=6)
    # The sums are of (a + b + c) + (d + e + f) and of one after the other.
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(weights, others, strict=True))


@pytest.mark.parametrize("native", [True, False])
def test_dropout_is_drawn_for_each_part_alike_at_once_and_in_turn(native, two_threads, monkeypatch):
    how = ready(Compute(CPU, native=native))
    first = learned(learner(how, cpu_parts=2, dropout=0.5))
    assert same(first[0], learned(learner(how, cpu_parts=2, dropout=0.5))[0])
    assert not same(first[0], learned(learner(how, cpu_parts=1, dropout=0.5))[0])
    with ThreadPoolExecutor(1) as one, compute.use_threads(1):
        monkeypatch.setattr(parts, "_workers", lambda number, threads: one)
        in_turn = learned(learner(how, cpu_parts=2, dropout=0.5))
    assert same(first[0], in_turn[0])


def test_dropout_from_a_generator_of_ones_own_is_dropout():
    x = torch.rand(100, 100) + 1
    with kernels.drawing_from(torch.Generator().manual_seed(0)):
        found = kernels.dropout(x, 0.25)
        nothing = kernels.dropout(x, 1.0)
    kept = found != 0
    assert abs(kept.float().mean() - 0.75) < 0.02
    assert torch.allclose(found[kept], x[kept] / 0.75)
    assert not nothing.any()


def test_with_a_loss_of_ones_own_a_pass_is_whole_and_that_is_said(folder, tmp_path, caplog):
    caplog.set_level("INFO", "diffunet")
    config = tiny(train={"cpu_parts": 2, "steps": 2, "previews": 0})
    train(
        config, folder, tmp_path / "run", loss=lambda denoised, x0, sigma: (denoised.x0 - x0).square().mean((1, 2, 3))
    )
    assert "each pass is computed whole, and not in 2 parts" in caplog.text
    assert "parts of them at once" not in caplog.text


@pytest.mark.parametrize("native", [True, False])
def test_parts_have_masks_of_their_own(native, two_threads):
    """The same image in both parts has another loss in each, where dropout is the only thing that differs."""
    some = learner(ready(Compute(CPU, native=native)), cpu_parts=2, dropout=0.5)
    alike = batch(1)
    twice = Batch(0, *(torch.cat([each] * 2) for each in (alike.images, alike.label, alike.sigma)))
    torch.manual_seed(0)
    one, other = some._pass(twice, torch.ones(2, 3, 8, 8))
    assert one != other
    plain = learner(ready(Compute(CPU, native=native)), cpu_parts=2)
    one, other = plain._pass(twice, torch.ones(2, 3, 8, 8))
    assert one == other


def test_each_part_has_its_share_of_the_threads_and_nobody_else_has_less(two_threads):
    seen = parts.computed(lambda part: (threading.current_thread().name, torch.get_num_threads()), 2, dropout=False)
    assert [threads for _, threads in seen] == [1, 1]
    assert all(name.startswith("diffunet-part") for name, _ in seen)
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 2


def test_parts_are_of_diffunets_net_alone_and_of_one_process_on_a_cpu(two_threads, monkeypatch):
    some = learner(cpu_parts=2)
    config, net = some.config, some.state.net
    assert some.parts == parts.count(config, Compute(CPU), ours=True, alone=True) == 2
    assert parts.count(config, Compute(CPU), ours=True, alone=False) == 1
    assert parts.count(config, Compute(CPU), ours=False, alone=True) == 1
    assert parts.count(config, Compute(torch.device("meta")), ours=True, alone=True) == 1
    for section, change in (
        ("train", {"compile": "on"}),
        ("model", {"checkpointing": True}),
    ):
        assert parts.count(config.changed(section, **change), Compute(CPU), ours=True, alone=True) == 1
    own = Learner(config, build.denoiser(config, net), Compute(CPU), lambda denoised, x0, sigma: sigma * x0.sum())
    assert own.parts == 1
    monkeypatch.setattr(parts, "_threads_are_each_ones_own", lambda: False)  # as where torch has no OpenMP
    assert parts.count(config, Compute(CPU), ours=True, alone=True) == 1


def test_what_a_part_raises_is_raised(two_threads, monkeypatch):
    some = learner(cpu_parts=2)

    def forward(self, *args):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(DenoisingLoss, "forward", forward)
    with pytest.raises(RuntimeError, match="not enough memory"):
        learned(some)


def test_a_loss_that_is_not_finite_in_one_part_changes_nothing(two_threads):
    some = learner(cpu_parts=2)
    before = [parameter.detach().clone() for parameter in some.state.net.parameters()]
    spoilt = batch()
    spoilt.sigma[-1] = float("nan")
    assert some.step(0, [spoilt]).bad
    assert same(before, [parameter.detach() for parameter in some.state.net.parameters()])
    assert not some.step(0, [batch()]).bad


def test_a_run_in_parts_is_resumed_exactly(folder, tmp_path, two_threads):
    config = tiny(train={"cpu_parts": 2, "steps": 6})
    train(config, folder, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, folder, tmp_path / "parts", on_step=stop_at(4))
    train(config, folder, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 6)


def test_the_parts_of_a_run_are_those_that_are_fastest(monkeypatch):
    """By times that are made up: more parts are tried as long as they make a step shorter."""
    config, how = tiny(train={"batch_size": 32}), Compute(CPU)

    def chosen(times, threads=8, processes=1, **options):
        asked = []

        def timed(config, how, net, processes):
            asked.append(config.train.cpu_parts)
            return times[config.train.cpu_parts]

        def resolved(config):
            return config if config.train.cpu_parts else config.changed("train", cpu_parts=1)

        monkeypatch.setattr(recipe, "seconds_per_step", timed)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        found, seconds = recipe.divided(config.changed("train", **options), how, build.net, processes, resolved)
        assert seconds == times[found.train.cpu_parts or 1]
        return found.train.cpu_parts, asked

    assert chosen({1: 4, 2: 3, 4: 2, 8: 2.5}) == (4, [1, 2, 4, 8])
    assert chosen({1: 4, 2: 3, 4: 2, 8: 1}) == (8, [1, 2, 4, 8])
    assert chosen({1: 4, 2: 5}) == (1, [1, 2])
    assert chosen({1: 4, 2: 3}, threads=3) == (2, [1, 2])
    assert chosen({1: 4}, threads=1) == (1, [1])
    assert chosen({1: 4, 2: 3}, batch_size=2) == (2, [1, 2])
    assert chosen({3: 4}, cpu_parts=3) == (3, [3])
    assert chosen({1: 4}, processes=2) == (None, [1])
