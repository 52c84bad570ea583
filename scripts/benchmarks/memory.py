"""The peak of memory above that of importing, MiB: training and sampling, diffunet and diffusers, the same weights.

Each figure is of a process of its own, `python -m benchmarks.memory`, that imports, reads the weights and takes three
steps on one batch, or two steps of sampling. On a CPU it is the most memory that was resident less what was resident
after importing; on CUDA what torch had allocated at most. diffunet trains with its averages, diffusers without any.
The net is DDPM's at 32 pixels; "tuned" is in diffunet's precision and with the channels last.
Before that each process lets its net answer one batch of the same noise, and the answers are compared.
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import children
from benchmarks.measure import Lap, Measure, Options, Row, refuse_difference

NAME = "memory"

WAYS = ("diffunet", "diffusers", "diffusers, tuned")
STEPS = {"training": 3, "sampling": 2}


def measures(options: Options) -> list[Measure]:
    """Return a measure for training and one for sampling."""
    from benchmarks import nets, step
    from diffunet import compute, storage
    from diffunet.interop import diffusers

    how = compute.choose(options.device)
    config, folder = step.config_of("ddpm 32", how, options), options.folder("model")
    model = nets.model(config)
    storage.write_model(folder / "ours", config, model.net.state_dict(), 0)
    diffusers.write(storage.Model(config, model, 0), folder / "theirs")
    found = []
    for what in STEPS:
        told: dict[str, list[float]] = {}
        ways = {way: partial(made, what, way, folder, options.device or "", told) for way in WAYS}
        if how.precision == "fp32" and not how.channels_last:
            del ways["diffusers, tuned"]
        found.append(
            Measure(f"ddpm 32, {what}, batch {nets.batch_of(config)}", "MiB", ways, least=1 if options.tiny else 3)
        )
    return found


def made(what: str, way: str, folder: Path, device: str, told: dict[str, list[float]]) -> tuple[Lap, Row]:
    """Return a lap that asks a process, whose answer is compared with that of diffunet's in `told`."""
    facts: Row = {}

    def lap() -> float:
        found = children.ask("memory", what, way, folder, device)
        mine = told.setdefault(way, found["answer"])
        true = told.get(WAYS[0], mine)
        off = max(abs(a - b) for a, b in zip(mine, true, strict=True)) / max(map(abs, true))
        facts.update(refuse_difference(off, found["tolerance"]))
        return float(found["mib"])

    return lap, facts


def measured(what: str, way: str, folder: str, device: str) -> dict[str, Any]:
    """Return the peak in MiB and some values of the answer; this is what the process does."""
    import torch

    from benchmarks import nets
    from diffunet import compute, storage
    from diffunet.compute import Compute
    from diffunet.sampling.pipeline import Pipeline
    from diffunet.training.learner import Learner

    learn, how = what == "training", compute.choose(device or None)
    how = nets.with_kernels(how) if learn else how
    if way != "diffunet":
        from diffusers import DDPMPipeline

        how = nets.plain_torch(Compute(how.device) if way == "diffusers" else how)

    if learn:  # any optimizer of torch imports it, which takes 70 MiB
        importlib.import_module("torch._dynamo")
    cuda = how.device.type == "cuda"
    if cuda:
        torch.zeros(1, device=how.device)
        torch.cuda.reset_peak_memory_stats(how.device)
    before = children.resident()
    config = storage.read_config(Path(folder) / "ours")
    batch = nets.batch_of(config)
    if way == "diffunet":
        denoiser = storage.read_model(Path(folder) / "ours").denoiser
        how.prepare(denoiser, frozen=not learn)
        net = denoiser.net
    else:
        pipeline: Any = DDPMPipeline.from_pretrained(Path(folder) / "theirs")
        pipeline.set_progress_bar_config(disable=True)
        net = pipeline.unet
        how.prepare(net, frozen=not learn)
    answer = nets.used(net, how, *nets.inputs(config, how)).flatten()[:: max(1, batch * 48)].tolist()
    if learn:
        net.requires_grad_(True)
        once = nets.step_of_theirs(net, config, how)
        if way == "diffunet":
            learner = Learner(config, denoiser, how)
            once = partial(learner.step, 0, [learner.imagined(batch)])
        for _ in range(STEPS[what]):
            once()
    elif way == "diffunet":
        Pipeline(config, denoiser, how).sample(batch, batch_size=batch, steps=STEPS[what])
    else:
        with torch.inference_mode(), how.autocast():
            pipeline(batch_size=batch, num_inference_steps=STEPS[what])
    how.synchronize()
    found = torch.cuda.max_memory_allocated(how.device) if cuda else children.peak() - before
    tolerance = nets.tolerance(how)
    return {"mib": found / 2**20, "answer": answer, "tolerance": tolerance}


if __name__ == "__main__":
    children.answer(measured)
