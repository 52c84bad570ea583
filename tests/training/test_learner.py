"""The step of training: in float16 with its scale, compiled, on one process after another."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from helpers.launching import finish, launch
from helpers.small import tiny
from safetensors.torch import load_file

import diffunet
from diffunet import build, compute
from diffunet.compute import Compute
from diffunet.config import read_toml
from diffunet.diffusion.noise_levels import NOISE
from diffunet.errors import Stopped, UsageError
from diffunet.training import checkpoint, defaults, judging, loop, loss_scale
from diffunet.training.learner import Learner
from diffunet.training.loop import train
from diffunet.training.loss_scale import LossScale

QUIET = {"previews": 0, "validate_every": 1000, "log_every": 1}


def content(run, step):
    return load_file(checkpoint.folder_of(run, step) / "model.safetensors")


def state_of(run, step):
    return json.loads((checkpoint.folder_of(run, step) / "state.json").read_text())


def metrics(run):
    return [line for line in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in line]


# The scale of the loss.


def test_the_scale_by_its_rule(monkeypatch):
    """Halved at an overflow, doubled after so many steps without, in its range; against a loop of plain numbers."""
    monkeypatch.setattr(loss_scale, "PATIENCE", 3)
    scale, value, calm = LossScale(Compute(torch.device("cpu"), "fp16")), 2.0**16, 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        nothing = torch.rand((), generator=generator) < 0.3
        overflow = nothing & scale.may_shrink & (torch.rand((), generator=generator) < 0.9)
        scale.update(overflow, nothing)
        calm = 0 if nothing else calm + 1
        if overflow:
            value /= 2
        elif calm >= 3:
            value, calm = value * 2, 0
        value = min(max(value, 1.0), 2.0**24)
        assert (scale.value.item(), scale.calm.item()) == (value, calm)
    other = LossScale(Compute(torch.device("cpu"), "fp16"))
    other.load(scale.state())
    assert other.state() == scale.state()


def test_there_is_no_scale_in_other_precisions():
    scale = LossScale(Compute(torch.device("cpu"), "bf16"))
    scale.update(torch.tensor(True), torch.tensor(True))
    assert (scale.value.item(), scale.state(), bool(scale.may_shrink)) == (1.0, {}, False)


def steep(factor):
    """A loss whose gradient does not fit into float16 until the scale has come down."""

    def loss(denoised, x0, sigma):
        return factor * (denoised.x0 - x0).square().mean(dim=(1, 2, 3))

    return loss


def test_float16_learns_and_its_overflows_are_no_bad_steps(folder, tmp_path):
    options = QUIET | {"precision": "fp16", "steps": 12, "max_skipped": 2, "checkpoint_every": 6, "keep_every": 6}
    train(tiny(train=options), folder, tmp_path / "run", loss=steep(3e2))
    last = metrics(tmp_path / "run")[-1]
    assert last["overflows"] >= 3  # more in a row than bad steps may be
    assert last["skipped"] == 0
    assert last["scale"] == 2.0 ** (16 - last["overflows"])
    assert last["loss"] > 0  # the last step was a good one
    state = state_of(tmp_path / "run", 12)
    assert state["loss_scale"]["scale"] == last["scale"]
    assert state["counters"] == {"skipped": 0, "streak": 0, "overflows": last["overflows"]}
    assert state["environment"]["precision"] == "fp16"


def test_a_float16_run_that_was_stopped_is_the_same_run(folder, tmp_path):
    options = QUIET | {"precision": "fp16", "steps": 8, "checkpoint_every": 4, "keep_every": 4}
    train(tiny(train=options), folder, tmp_path / "whole", loss=steep(3e2))
    train(tiny(train=options | {"steps": 4}), folder, tmp_path / "halves", loss=steep(3e2))
    train(tiny(train=options), folder, tmp_path / "halves", loss=steep(3e2), resume=True)
    a, b = (content(tmp_path / name, 8) for name in ("whole", "halves"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert state_of(tmp_path / "whole", 8)["loss_scale"] == state_of(tmp_path / "halves", 8)["loss_scale"]


def test_a_loss_that_is_not_finite_is_bad_in_float16_too(folder, tmp_path):
    options = QUIET | {"precision": "fp16", "steps": 9, "max_skipped": 3}
    with pytest.raises(diffunet.DivergedError):
        train(tiny(train=options), folder, tmp_path / "run", loss=steep(float("nan")))
    assert metrics(tmp_path / "run")[-1]["scale"] == 2.0**16  # a smaller one would not help


def test_the_scale_changes_no_step(folder, tmp_path):
    """Scaled by a power of two and back, clipped and not: float32 with a scale is float32 without, bit for bit."""
    for name, factor in (("plain", 1.0), ("scaled", 2.0**10)):
        config = tiny(
            model={"attention_levels": (1,), "dropout": 0.0},
            train={"batch_size": 6, "learning_rate": 1e-3, "grad_accumulation": 1, "ema_every": 0, "clip": 0.05},
        ).changed("data", class_names=("a", "b"))
        torch.manual_seed(0)
        denoiser, how = build.denoiser(config), compute.choose("cpu", "fp32")
        how.prepare(denoiser)
        learner = Learner(config, denoiser, how)
        learner.scale.value.fill_(factor)
        norms = [learner.step(step, [learner.imagined(6)]).norm.item() for step in range(3)]
        torch.save((norms, denoiser.net.state_dict()), tmp_path / name)
    (a, plain), (b, scaled) = (torch.load(tmp_path / name) for name in ("plain", "scaled"))
    assert a == b
    assert all(torch.equal(plain[name], scaled[name]) for name in plain)


# What is resolved once.


def test_what_was_chosen_is_kept_and_recorded(folder, tmp_path):
    config = tiny(train=QUIET | {"steps": 2, "threads": 1, "precision": "bf16"})
    train(config, folder, tmp_path / "run")
    stored = read_toml(tmp_path / "run/config.toml").train
    assert (stored.threads, stored.precision, stored.compile, stored.grad_accumulation) == (1, "bf16", "off", 1)
    environment = state_of(tmp_path / "run", 2)["environment"]
    kept = {name: environment[name] for name in ("threads", "precision", "compile", "passes", "diffunet")}
    assert kept == {
        "threads": 1, "precision": "bf16", "compile": "off", "passes": 1, "diffunet": diffunet.__version__,
    }  # fmt: skip
    train(tiny(train=QUIET | {"steps": 3}), folder, tmp_path / "run", resume=True)
    assert read_toml(tmp_path / "run/config.toml").train.precision == "bf16"


def test_threads_of_a_larger_machine_are_not_kept(folder, tmp_path):
    train(tiny(train=QUIET | {"steps": 1}), folder, tmp_path / "run")
    path = tmp_path / "run/config.toml"
    count = read_toml(path).train.threads
    path.write_text(path.read_text().replace(f"threads = {count}", "threads = 4096"))
    train(tiny(train=QUIET | {"steps": 2}), folder, tmp_path / "run", resume=True)
    assert read_toml(path).train.threads == compute.cores()


def test_a_device_is_asked_for(folder, tmp_path):
    train(tiny(train=QUIET | {"steps": 1}), folder, tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="--device 'cuda:7' cannot be used"):
        train(tiny(), folder, tmp_path / "other", device="cuda:7")


# The compiler.


@pytest.mark.slow
def test_a_compiled_run_is_nearly_the_same_and_its_model_is_a_plain_one(folder, tmp_path):
    for name in ("off", "on"):
        options = QUIET | {"steps": 3, "compile": name, "precision": "fp32"}
        train(tiny(model={"dropout": 0.0}, train=options), folder, tmp_path / name)
    a, b = (content(tmp_path / name, 3) for name in ("off", "on"))
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)
    assert state_of(tmp_path / "on", 3)["environment"]["compile"] == "on"
    assert len(diffunet.load(tmp_path / "on").sample(2)) == 2
    train(tiny(model={"dropout": 0.0}, train=QUIET | {"steps": 4}), folder, tmp_path / "on", resume=True)
    assert state_of(tmp_path / "on", 4)["environment"]["compile"] == "on"


def test_a_net_that_cannot_be_compiled(folder, tmp_path, monkeypatch, caplog):
    def fails(net, **options):
        raise RuntimeError("no C++ compiler was found\nand more")

    monkeypatch.setattr(torch.nn.Module, "compile", fails)
    with pytest.raises(UsageError, match=r"cannot be compiled: no C\+\+ compiler was found; --train.compile off"):
        train(tiny(train=QUIET | {"compile": "on"}), folder, tmp_path / "asked")
    monkeypatch.setattr(compute, "pays_to_compile", lambda *_: (True, "compiled"))  # as on CUDA
    train(tiny(train=QUIET | {"steps": 2}), folder, tmp_path / "left-open")
    assert "the net is not compiled: no C++ compiler was found" in caplog.text
    assert read_toml(tmp_path / "left-open/config.toml").train.compile == "off"


def test_a_signal_while_the_net_is_compiled_is_a_stop(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "compile", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    for name in ("on", "auto"):
        with pytest.raises(Stopped, match="stopped by SIGTERM before a step was done"):
            train(tiny(train=QUIET | {"compile": name}), folder, tmp_path / name)


def test_what_a_failed_trial_of_the_compiler_left_is_not_learned(folder, tmp_path, monkeypatch):
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, slope):
            raise RuntimeError("no kernel for the way back")

    def half(net, **options):
        handle = net.stem.register_forward_hook(lambda module, given, out: (handle.remove(), Breaks.apply(out))[1])

    train(tiny(train=QUIET | {"steps": 2}), folder, tmp_path / "plain")
    monkeypatch.setattr(torch.nn.Module, "compile", half)
    monkeypatch.setattr(compute, "pays_to_compile", lambda *_: (True, "compiled"))
    train(tiny(train=QUIET | {"steps": 2}), folder, tmp_path / "tried")
    a, b = (content(tmp_path / name, 2) for name in ("plain", "tried"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_preview_that_is_not_finite_does_not_end_a_run(folder, tmp_path, monkeypatch, caplog):
    def spoilt(self, num, **options):
        raise diffunet.DivergedError("the model's images are not finite")

    monkeypatch.setattr(loop.Pipeline, "stream", spoilt)
    train(tiny(train={"steps": 2, "sample_every": 1}), folder, tmp_path / "run")
    assert "no preview of step 1: the model's images are not finite" in caplog.text
    assert checkpoint.steps(tmp_path / "run")[-1] == 2


def test_the_trial_of_a_batch_is_a_whole_step(folder, tmp_path, monkeypatch):
    from diffunet.training import memory

    seen, step = [], Learner.step

    def spied(self, *rest):
        outcome = step(self, *rest)
        seen.append(
            ([average.updates for average in self.state.averages], sum(len(o.state) for o in self.state.optimizers))
        )
        return outcome

    monkeypatch.setattr(Learner, "step", spied)
    config = tiny(train=QUIET | {"ema_every": 2}).changed("data", class_names=("a", "b"))
    config = config.changed("model", attention_levels=(1,)).changed("diffusion", mean=(0.0,) * 3, sigma_data=0.5)
    how = compute.choose("cpu", "fp32")
    assert memory.images_per_pass(config, how, loss=steep(1.0)) == compute.WORTH["cpu"]
    assert [updates for updates, _ in seen] == [[1, 1, 1], [2, 2, 2]]
    assert all(moments > 0 for _, moments in seen)


def test_the_compiled_net_is_tried_with_the_batch_that_comes(folder, monkeypatch):
    config = tiny(
        model={"attention_levels": (1,)},
        train={"batch_size": 6, "learning_rate": 1e-3, "grad_accumulation": 1, "ema_every": 0},
    ).changed("data", class_names=("a", "b"))
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net, **options: seen.append(options))
    denoiser, how = build.denoiser(config), replace(compute.choose("cpu", "fp32"), compiled=True)
    learner = Learner(config, denoiser, how)
    denoiser.net.register_forward_hook(lambda net, given, out: seen.append(tuple(out.shape)))
    learner.compile(6)
    assert seen == [{"dynamic": False, "options": None}, (6, 3, 8, 8)]
    assert all(parameter.grad is None for parameter in denoiser.net.parameters())


# Previews and processes.


def test_previews_take_a_fast_sampler_whatever_the_models_own(folder, tmp_path, monkeypatch):
    asked, stream = [], loop.Pipeline.stream

    def spied(self, num, **options):
        asked.append((options["sampler"], options["steps"], options["ladder"]))
        return stream(self, num, **options)

    monkeypatch.setattr(loop.Pipeline, "stream", spied)
    monkeypatch.setattr(judging, "PREVIEW_STEPS", 15)  # tests take fewer, see conftest.py
    slow = {"schedule": "cosine", "target": "epsilon", "sampler": "ddpm", "sample_steps": 4000}
    train(tiny(diffusion=slow, train={"steps": 1, "previews": 2}), folder, tmp_path / "run")
    assert asked == [("unipc", 15, "log-snr")]


TWICE = """
import atexit, sys, diffunet, torch.distributed as dist
from diffunet.config import read_toml

atexit.register(lambda: print("left" if not dist.is_initialized() else "joined", file=sys.stderr))  # runs last
for out in sys.argv[3:]:
    diffunet.train(read_toml(sys.argv[2]), sys.argv[1], out)
    assert dist.is_initialized()
"""


@pytest.mark.slow
def test_the_group_of_processes_ends_with_the_program_and_another_run_can_begin(folder, tmp_path):
    (tmp_path / "config.toml").write_text(tiny(train=QUIET | {"steps": 2}).to_toml())
    codes, said = finish(launch(2, [folder, tmp_path / "config.toml", tmp_path / "one", tmp_path / "two"], code=TWICE))
    assert codes == [0, 0], said
    assert said.count("left") == 2
    assert "joined" not in said
    a, b = (content(tmp_path / name, 2) for name in ("one", "two"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_another_accelerator_keeps_stays(folder, tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    train(tiny(train=QUIET | {"steps": 1}), folder, tmp_path / "before")
    assert AcceleratorState._shared_state == {}
    theirs = Accelerator(cpu=True)
    try:
        train(tiny(train=QUIET | {"steps": 1}), folder, tmp_path / "run")
        assert theirs.state.device.type == "cpu"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_the_loss_by_noise_level_is_that_of_the_images_of_each_level(monkeypatch):
    """The sums and the numbers of `Outcome.by_noise`, against the losses themselves."""
    cpu = torch.device("cpu")
    config = defaults.architecture(tiny(data={"classes": False}, train={"batch_size": 8, "learning_rate": 1e-3}), cpu)
    learner = Learner(config, build.denoiser(config), Compute(cpu))
    sigma = torch.tensor([0.01, 0.05, 0.06, 0.1, 0.5, 1.3, 6.0, 100.0])
    batch = replace(learner.imagined(8), sigma=sigma)
    losses = torch.arange(1.0, 9.0)
    monkeypatch.setattr(learner, "_losses", lambda *_: losses * next(learner.state.net.parameters()).sum() * 0 + losses)
    by_noise = learner.step(0, [batch]).by_noise
    levels = [sum(sigma_ > level for level in NOISE) for sigma_ in sigma.tolist()]
    for level in range(8):
        chosen = [loss for loss, its in zip(losses.tolist(), levels, strict=True) if its == level]
        assert by_noise[:, level].tolist() == [sum(chosen), len(chosen)]
