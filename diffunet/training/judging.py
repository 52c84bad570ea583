"""What a run is judged by along the way: the loss on held-out images and previews, both of the averaged weights.

The processes of the run share the work. What an image gives does not depend on which of them it is dealt to: batches of
equal size give equal bits, others may differ in the last ones. Where one process is asked to stop, or makes a picture
that is not finite, all of them give up, once each has done its part.
"""

import itertools
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from diffunet import draws
from diffunet.diffusion.losses import DenoisingLoss
from diffunet.errors import Cancelled
from diffunet.pictures import images
from diffunet.ranks import ALONE, Ranks
from diffunet.sampling import dividing
from diffunet.sampling.pipeline import Pipeline
from diffunet.training.batches import Batch
from diffunet.training.stop import StopFlag

PREVIEW_SAMPLER, PREVIEW_STEPS, PREVIEW_LADDER = "unipc", 15, "log-snr"


@torch.no_grad()
def validate(
    judge: DenoisingLoss, batch: Batch, seed: int, shape: tuple[int, int, int], at_once: int, flag: StopFlag,
    ranks: Ranks = ALONE,
) -> float | None:  # fmt: skip
    """Return the mean loss on the held-out `batch`, with the same noise every time; None but on the main process.

    Args:
        judge, seed, shape: the loss of the averaged weights, the seed of the run, and (C, H, W) of an image.
        at_once, flag: the images of one pass through the net, and what breaks the validation off when it is set.
        ranks: the processes of the run, all of which have the same batch.

    Raises:
        Cancelled: one of them was asked to stop.
    """
    shares = _shares(len(batch.sigma), at_once, ranks)

    def losses(numbers: list[int]) -> bytes:
        if flag.wanted:
            raise Cancelled("validation")
        part = slice(numbers[0], numbers[-1] + 1)
        sigma = batch.sigma[part]
        noise = draws.gaussian(draws.seed_of("validation", seed), 0, part.start, len(sigma), shape, sigma.device)
        label, keep = (None if tensor is None else tensor[part] for tensor in (batch.label, batch.keep))
        found = judge(images.to_float(batch.images[part]), noise, sigma, label, keep)
        return found.double().cpu().numpy().tobytes()  # type: ignore[no-any-return]

    found = ranks.each(lambda: b"".join(map(losses, shares[ranks.rank])))
    return float(_in_order(found, shares, np.float64).mean()) if ranks.is_main else None


def preview(pipeline: Pipeline, num: int, path: Path, at_once: int, flag: StopFlag, ranks: Ranks) -> Image | None:
    """Write a grid of samples, from the same noise every time, and return it; None but on the main process.

    They are drawn by a fast sampler whatever the model's own is: that of preset improved-ddpm calls the net 4,000
    times, which would take longer than the training between two previews.

    Raises:
        Cancelled: one of the processes was asked to stop.
        DivergedError: a picture is not finite.
    """
    shares, channels = _shares(num, at_once, ranks), pipeline.channels

    def pictures() -> bytes:
        made = dividing.divided(
            pipeline, num, ranks, batch_size=len(shares[0][0]), sampler=PREVIEW_SAMPLER, steps=PREVIEW_STEPS,
            ladder=PREVIEW_LADDER, on_step=lambda _: not flag.wanted,
        )  # fmt: skip
        return b"".join(images.to_array(picture, channels).tobytes() for _, some in made for picture in some)

    found = ranks.each(pictures)
    if not ranks.is_main:
        return None
    grid = images.grid([*_in_order(found, shares, np.uint8, pipeline.image_size, pipeline.image_size, channels)])
    images.save(grid, path)
    return grid


def _shares(num: int, at_once: int, ranks: Ranks) -> list[list[list[int]]]:
    """Return the batches of each process: of `at_once` images, or fewer where that leaves none of them idle."""
    return dividing.shares(num, min(at_once, ceil(num / ranks.count)), ranks.count)


def _in_order(parts: Sequence[bytes], shares: list[list[list[int]]], dtype: Any, *shape: int) -> NDArray[Any]:
    """Return what the processes give of all images, [N *shape], in the order of their numbers."""
    order = [i for share in shares for i in itertools.chain(*share)]
    whole = np.empty((len(order), *shape), dtype)
    whole[order] = np.frombuffer(b"".join(parts), dtype).reshape(whole.shape)
    return whole
