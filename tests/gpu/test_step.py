"""One step of training on the device: it waits for nothing, learns nothing from what is not finite, and takes the
memory that was counted; attention by fused kernels."""

import contextlib
import gc
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.small import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from diffunet import build, compute
from diffunet.config import Config, preset
from diffunet.diffusion.schedules import DDPMSchedule
from diffunet.training import defaults, memory

pytestmark = pytest.mark.gpu

MATH = 0
"""torch's number for attention that is not fused (SDPBackend.MATH)."""


class Reads(TorchDispatchMode):
    """Fails where the host asks for a number that is on the device: what waits, on a device that tells of no waits."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), "a wait"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_wait(device):
    """Fails where the host waits for the device."""
    if not device.startswith("cuda"):
        with Reads():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["plain", "everything", "variance"])
def test_a_step_waits_for_nothing(device, config_of, learner_of, monkeypatch, kind, precision, deterministic):
    if not device.startswith("cuda"):  # where reading a table of the host's would look like a wait
        monkeypatch.setattr(DDPMSchedule, "first_variance", 1e-4)
    learns = learner_of(config_of(kind), compute.choose(device, precision))
    passes = [learns.imagined(6 // learns.config.train.grad_accumulation)] * learns.config.train.grad_accumulation
    with learns.how.kernels(deterministic):
        learns.step(0, passes)
        with no_wait(device):
            outcome = learns.step(1, passes)
    assert math.isfinite(outcome.loss.item())


def test_a_step_does_not_wait_for_its_images(cuda, config_of, learner_of):
    learns = learner_of(config_of(), compute.choose(cuda))
    there = learns.imagined(6)
    here = replace(there, images=there.images.cpu(), label=there.label.cpu(), sigma=there.sigma.cpu()).pinned()
    learns.step(0, [here])
    with no_wait(cuda):
        learns.step(1, [here])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_no_weight(device, config_of, learner_of, precision, kind):
    spoilt = []

    def loss(denoised, x0, sigma):
        value = (denoised.x0 - x0).square().mean(dim=(1, 2, 3))
        if not spoilt:
            return value
        # The square root of 0 has no slope, so that the gradient alone is not finite.
        return value * math.nan if kind == "loss" else value + (value - value.detach()).abs().sqrt()

    learns = learner_of(config_of(), compute.choose(device, precision), loss)
    batch = learns.imagined(6)
    learns.step(0, [batch])
    before = contents(learns)
    spoilt.append(True)
    outcome = learns.step(1, [batch])
    assert outcome.bad + outcome.overflow == 1
    assert [name for name, tensor in contents(learns).items() if not torch.equal(tensor, before[name])] == []
    spoilt.clear()
    assert learns.step(2, [batch]).bad == 0
    assert not all(torch.equal(tensor, before[name]) for name, tensor in contents(learns).items())


def contents(learns):
    """Copies of the weights and of the optimizer's moments, by name."""
    parts = learns.state.tensors()
    return {f"{part}.{name}": each.clone() for part in ("model", "optimizer") for name, each in parts[part].items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_a_step_takes_the_memory_that_was_counted(cuda, learner_of, record_property, precision, checkpointing):
    sections = {"model": {"channels": 64, "checkpointing": checkpointing}, "train": {"batch_size": 64, "ema_every": 0}}
    how = compute.choose(cuda, precision)
    gc.collect()
    torch.cuda.empty_cache()
    empty = torch.cuda.memory_allocated(cuda)
    with how.kernels():
        learns = learner_of(Config.model_validate(sections), how)
        batch = learns.imagined(64)
        learns.step(0, [batch])  # the moments of Adam are there after it, and kernels are chosen
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(cuda)
        learns.step(1, [batch])
        torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated(cuda) - empty
    counted = memory.training_bytes(learns.config, how, 64)
    record_property("memory", f"{precision}: {taken / 2**20:.0f} MiB taken, {counted / 2**20:.0f} counted")
    assert counted > 2**29, "a small net shows nothing"
    assert 0.85 < taken / counted < 1.15


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels-last"])
@pytest.mark.parametrize("name", ["default", "ddpm", "adm"])
def test_attention_is_fused(device, monkeypatch, name, channels_last, precision):
    config = preset(name).changed("model", channels=32, num_blocks=1).changed("data", image_size=32)
    how = replace(compute.choose(device, precision), channels_last=channels_last)
    net = build.net(defaults.architecture(config, how.device))
    how.prepare(net)
    chosen = []
    attention = F.scaled_dot_product_attention

    def seen(q, k, v):
        # v comes from a convolution, whose type is that of the precision; autocast brings q and k to it.
        chosen.append(torch._fused_sdp_choice(q.to(v.dtype), k.to(v.dtype), v))
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    for learn in (True, False):
        with how.autocast(), torch.set_grad_enabled(learn):
            net(torch.zeros(2, 3, 32, 32, device=how.device), torch.zeros(2, device=how.device))
    assert chosen
    assert MATH not in chosen


def test_queries_that_are_normalised_are_fused_too(device, learner_of, monkeypatch):
    chosen = []
    attention = F.scaled_dot_product_attention

    def seen(q, k, v):
        chosen.append(torch._fused_sdp_choice(q.to(v.dtype), k.to(v.dtype), v))
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    learns = learner_of(tiny(model={"qk_norm": True}), compute.choose(device))
    learns.step(0, [learns.imagined(6)])
    assert chosen
    assert MATH not in chosen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["plain", "inpaint", "variance", "dropout", "half", "adamw"])
def test_a_recorded_step_learns_the_same(cuda, config_of, learner_of, precision, kind):
    config = config_of("plain" if kind in ("dropout", "half", "adamw") else kind)
    if kind == "adamw":
        config = config.changed("train", optimizer="adamw")
    if kind == "dropout":
        config = config.changed("model", dropout=0.3)
    if kind == "half":
        config = config.changed("data", image_size=32).changed("train", half_size=0.5, half_size_until=3)
    found = []
    for recorded in (False, True):
        learns = learner_of(config, compute.choose(cuda, precision))
        with learns.how.kernels(deterministic=True):
            if recorded:
                assert learns.record(6) is None
                assert len(learns.recorded) == (2 if kind == "half" else 1)
            batch = learns.imagined(6)
            for step in range(6):
                noisy = replace(batch, sigma=batch.sigma * (math.nan if step == 4 else 0.2 + step))
                with no_wait(cuda) if step else contextlib.nullcontext():
                    outcome = learns.step(step, [noisy])
                assert outcome.bad == (step == 4)
            found.append({"loss": outcome.loss, **contents(learns)})
    different = [name for name, tensor in found[0].items() if not torch.equal(tensor, found[1][name])]
    assert different == []


def test_what_cannot_be_recorded_is_said(cuda, config_of, learner_of):
    learns = learner_of(config_of(), compute.choose(cuda, "fp16"))
    assert learns.record(6) == "the scale of the loss changes in fp16"

    def waits(denoised, x0, sigma):
        return (denoised.x0 - x0).square().mean(dim=(1, 2, 3)) * (1 if x0.sum().item() else 2)

    learns = learner_of(config_of(), compute.choose(cuda, "fp32"), waits)
    assert learns.record(6)
    assert learns.recorded == {}
    assert math.isfinite(learns.step(0, [learns.imagined(6)]).loss.item())
