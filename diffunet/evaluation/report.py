"""How good the samples of a model are: their feature distance to real images, beside that of real images to others.

And what goes with it: each class for itself, how far the two sets cover each other, copies of training images, the
published figures by Inception and DINOv2, and likelihoods. What each figure says is in figures.py.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from diffunet import plain
from diffunet.evaluation import bits_per_dimension
from diffunet.evaluation.denoising import denoising_error
from diffunet.evaluation.dinov2 import Dinov2
from diffunet.evaluation.inception import Inception
from diffunet.evaluation.networks import Published
from diffunet.evaluation.reals import RealImages
from diffunet.evaluation.reference import OnStep, Reference
from diffunet.evaluation.samples import Samples
from diffunet.evaluation.told import Loss, Report
from diffunet.pictures import images
from diffunet.ranks import ALONE, Ranks
from diffunet.sampling import conditions, dividing
from diffunet.sampling.conditions import SamplingOptions, refuse_unknown
from diffunet.sampling.pipeline import Pipeline

NETWORKS = (Inception, Dinov2)
"""Those that measure published figures."""


def evaluate(
    pipeline: Pipeline, data: Path, *, num: int = 10_000, seed: int = 0, published: Published | None = None,
    likelihood: str | None = None, likelihood_num: int = 100, likelihood_steps: int | None = None,
    on_step: OnStep | None = None, ranks: Ranks = ALONE, **options: Unpack[SamplingOptions],
) -> Report | None:  # fmt: skip
    """Compare `num` samples, at least 2, with the real images of the folder `data`; see `Reference`.

    Args:
        num: lowered to a third of the real images, unless published figures are asked for.
        published: see `Published`.
        likelihood: "vlb" or "ode", see bits_per_dimension.py: also measure the bits per dimension of `likelihood_num`
            images with `likelihood_steps`, of those that training on this folder holds out.
        on_step: called with (what is being done, done, of how many).
        ranks: the processes that each make a share of the samples. The main one does the rest.
        options: how to sample; see `SamplingOptions`.

    Returns:
        The report, on the main process; None on the others.

    Raises:
        DataError: fewer than 40 usable images.
        UsageError: `num` below 2, and as `Pipeline.sample`, `bits_per_dimension.check` and `Published.load`.
        CheckpointError: weights of a published network are missing, or others.
    """
    refuse_unknown("evaluate()", options, SamplingOptions)
    num, seed = plain.integer("num", num, least=2), plain.integer("seed", seed, least=0)
    if likelihood is not None:
        bits_per_dimension.check(pipeline.denoiser.schedule, likelihood, likelihood_steps)
    likelihood_num = plain.integer("likelihood_num", likelihood_num)
    tell = on_step or (lambda what, done, of: None)
    networks = (published or Published()).load(NETWORKS, pipeline.device)
    reference = Reference(pipeline.config, data, num, seed, pipeline.device, partial(tell, "learning features"))
    for network in networks:
        network.refuse(num)
    if not networks:
        num = reference.num
    labels = reference.labels_for(num)
    # Sampling comes first: it refuses arguments that cannot be, before anything is learned.
    guided = conditions.chosen(options.get("guidance"), pipeline).scale != 1
    batches = dividing.gathered(
        pipeline, num, ranks, seed=seed, labels=labels, batch_size=dividing.batch_size(pipeline, num, guided, ranks),
        on_step=lambda p: tell("sampling", p.step, p.steps), **options,
    )  # fmt: skip
    fakes = np.concatenate(list(batches))
    if not ranks.is_main:
        return None
    report = reference.report(fakes, None if labels is None else np.array(labels), networks, tell)
    if likelihood is None:
        return report
    real, of_real, unseen = reference.for_likelihood(likelihood_num)
    measure, progress = bits_per_dimension.MEASURES[likelihood], partial(tell, "likelihood")
    bits = measure(pipeline, real, of_real, steps=likelihood_steps, seed=seed, on_step=progress)
    return replace(report, likelihood=bits, held_out=unseen)


def evaluate_samples(
    folder: Path, data: Path, *, seed: int = 0, published: Published | None = None,
    device: torch.device | None = None, on_step: OnStep | None = None,
) -> Report:  # fmt: skip
    """Compare all images of `folder`, which anybody may have made, with the real images of `data`, at their size.

    Where the images of both are in the same classes, by subfolders or by names as of `diffunet sample`, classes count.
    Which real images the model has learned is not known: all count as learned but those of a part of DATA (val, test).

    Raises:
        DataError: as `samples.Samples` and `Reference`.
        UsageError, CheckpointError: as `Published.load`.
    """
    tell, device = on_step or (lambda what, done, of: None), device or torch.device("cpu")
    seed = plain.integer("seed", seed, least=0)
    networks = (published or Published()).load(NETWORKS, device)
    samples = Samples(folder, data)
    for network in networks:
        network.refuse(len(samples))
    reference = Reference(samples.config, data, len(samples), seed, device, partial(tell, "learning features"))
    some = samples.some(reference.num, seed)
    return reference.report(samples.pictures(), samples.labels, networks, tell, some)


def denoising(pipeline: Pipeline, data: Path, *, num: int = 256, seed: int = 0, on_step: OnStep | None = None) -> Loss:
    """Return the denoising errors of a model on at most `num` images that training held out.

    Where training on this folder holds out none, they are any images, and the model may know them.
    """
    real, tell = RealImages(pipeline.config, data), on_step or (lambda what, done, of: None)
    num, seed = plain.integer("num", num), plain.integer("seed", seed, least=0)
    some, held_out = real.unseen(num, seed)
    x0 = images.to_float(torch.from_numpy(real.gather(some))).to(pipeline.device)
    label = None
    if real.named and real.classes is not None:
        label = torch.from_numpy(real.classes[some]).to(pipeline.device)
    with pipeline.working("with so many images at a time"):
        error = denoising_error(pipeline.denoiser, x0, label, seed=seed, on_step=partial(tell, "denoising"))
    return Loss(error, held_out, real.dataset.index_hash)
