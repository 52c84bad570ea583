"""Scores of inpainting: by pixels, by features, and by how much the fillings of one hole differ.

A hole has many right fillings, so likeness to what was there (PSNR, SSIM) is no more than a hint: the mean of all right
fillings, a blur, has the best PSNR. The feature distance says whether completed images look like real ones.

Legend: K fillings of each of N images, H W height and width, C channels. Pictures are uint8 [N H W C], holes bool
[N H W], True where an image was filled in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from diffunet import build, draws
from diffunet.config import Config
from diffunet.diffusion.denoiser import condition
from diffunet.diffusion.samplers import last
from diffunet.errors import DataError, UsageError
from diffunet.evaluation.distances import Floats, frechet
from diffunet.evaluation.features import Trained, train_classifier
from diffunet.evaluation.reals import RealImages
from diffunet.inpainting import methods
from diffunet.inpainting.masks import Hole
from diffunet.pictures import images
from diffunet.pictures.images import Pixels
from diffunet.sampling import conditions
from diffunet.sampling.pipeline import Pipeline

MAX_REFERENCE = 10_000
"""The most real images that completed ones are compared with."""

RESAMPLES = 50
"""How often the images are drawn again, for the standard error of a distance."""


@dataclass(frozen=True)
class Score:
    """How well the holes of `num` images were filled in, `fillings` times each; means over images and fillings.

    Args:
        psnr, ssim: likeness in the hole; see `hole_psnr` and `hole_ssim`.
        distance: feature distance of the completed images to other real ones.
        floor: the same distance of the originals.
        error: standard error of `excess`, by drawing the images again.
        paired: feature distance of the completed images to their own originals, above that of one filling to another.
            For a perfect method the original might be another filling, so it is 0 up to chance too; and as both sides
            have the same images and known pixels, by less chance than `excess`. Fillings that vary too much gain a
            little, of the order of 1 / num. None for one filling.
        paired_error: standard error of `paired`.
        diversity: see `diversity`; None for one filling.
        feature_diversity: mean distance of the features of two fillings of a hole, over that of two different
            originals: 0 where all fillings are the same, about 1 where they have no more in common than two images.
    """

    psnr: float
    ssim: float
    distance: float
    floor: float
    error: float
    paired: float | None
    paired_error: float | None
    diversity: float | None
    feature_diversity: float | None
    num: int
    fillings: int

    @property
    def excess(self) -> float:
        """The distance above the floor: about 0 where completed images are distributed as the originals are."""
        return self.distance - self.floor


def hole_psnr(filled: Pixels, originals: Pixels, holes: Hole) -> Floats:
    """Return the peak signal-to-noise ratio in the hole, 10 log10(255^2 / mean squared error) in dB, float64 [N].

    The error is that of all channels of the hole alone; the ratio is infinite where there is none.
    """
    squares = ((filled.astype(np.float64) - originals) ** 2).mean(-1)
    error = np.where(holes, squares, 0).sum((1, 2)) / holes.sum((1, 2))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def hole_ssim(filled: Pixels, originals: Pixels, holes: Hole) -> Floats:
    """Return the structural similarity (Wang et al. 2004), averaged over the hole's pixels and the channels, [N].

    The window at a pixel, Gaussian of standard deviation 1.5, sees known pixels too: in a hole a few pixels wide it
    flatters. Images are of 6x6 at least. It is computed in float32, to about 0.0003 where images are flat.

    Raises:
        UsageError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise UsageError("SSIM needs torchmetrics: pip install diffunet[eval]") from None
    means = []
    for first in range(0, len(filled), 100):
        some = slice(first, first + 100)
        a, b = (torch.from_numpy(p[some].astype(np.float32)).permute(0, 3, 1, 2) for p in (filled, originals))
        _, ssim = structural_similarity_index_measure(a, b, data_range=255.0, return_full_image=True)
        hole = holes[some]
        means.append(np.where(hole, ssim.mean(1).numpy(), 0).sum((1, 2), dtype=np.float64) / hole.sum((1, 2)))
    return np.concatenate(means)


def diversity(fillings: Pixels, holes: Hole) -> Floats:
    """Return how much the fillings [K N H W C] of a hole differ, in grey levels (0 to 255), float64 [N].

    It is the root mean square difference in the hole, of all channels, averaged over the K (K - 1) / 2 pairs, K >= 2.
    """
    area = holes.sum((1, 2))
    pairs = [
        np.sqrt(np.where(holes, ((a.astype(np.float64) - b) ** 2).mean(-1), 0).sum((1, 2)) / area)
        for a, b in combinations(fillings, 2)
    ]
    return np.mean(pairs, axis=0)


class HeldOut(RealImages):
    """Images of a folder that a model did not train on, to fill in, and features to judge the completed ones by.

    The images that it did train on are dealt in two: a classifier learns from one half, and the other, at most
    `MAX_REFERENCE`, is what completed images are compared with. The floor is the distance of the uncovered originals to
    these. It is the originals' own, with the bias of as few images, so a perfect method has an excess of 0 up to
    chance, and one that gives the originals back exactly 0, however few images are held out.

    Args:
        config: the model's config.
        data: the folder that the model was trained on.
        num: number of images, lowered to what training holds out (a share of the folder, at most `index.HELD_OUT_MAX`).
        seed: seed of the choice of images and of the features.
        device: where the classifier computes.
        on_step: called with (done, of how many) while it learns.

    Raises:
        DataError: the folder has fewer than 40 usable images, or training on it holds out fewer than 2.
    """

    def __init__(
        self, config: Config, data: Path, num: int, seed: int = 0, device: torch.device | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, data)
        self.seed, self.device, self.on_step = seed, device, on_step
        trained_on, held_out, _ = build.split(config.data, self.dataset.files)
        if len(self.dataset.files) < 40 or len(held_out) < 2:
            raise DataError(
                f"{data} has {len(self.dataset.files)} usable images, of which training holds out {len(held_out)}; a "
                "comparison needs at least 40, and 2 held out (--data.held-out)"
            )
        self.pictures: Pixels = self.gather(held_out[draws.order(seed, range(min(num, len(held_out))), len(held_out))])
        some = trained_on[draws.order(seed, range(len(trained_on)), len(trained_on))]
        half = len(some) // 2
        self._learned_from, self._compared_with = some[:half], some[half:][:MAX_REFERENCE]

    def score(self, fillings: Pixels, holes: Hole) -> Score:
        """Judge `fillings` [K N H W C] of `pictures`, whose `holes` [N H W] have at least a pixel each."""
        several = len(fillings) > 1
        features = np.stack([self.trained.features(each) for each in fillings])
        distance, floor = self._distances(features, self._originals)
        draw = draws.generator(self.seed, 0, 0).integers
        excesses, paired = [], []
        for _ in range(RESAMPLES):
            again = draw(len(self.pictures), size=len(self.pictures))
            above, below = self._distances(features[:, again], self._originals[again])
            excesses.append(above - below)
            paired.append(_paired(features[:, again], self._originals[again]) if several else 0.0)
        return Score(
            psnr=float(np.mean([hole_psnr(each, self.pictures, holes) for each in fillings])),
            ssim=float(np.mean([hole_ssim(each, self.pictures, holes) for each in fillings])),
            distance=distance,
            floor=floor,
            error=float(np.std(excesses)),
            paired=_paired(features, self._originals) if several else None,
            paired_error=float(np.std(paired)) if several else None,
            diversity=float(diversity(fillings, holes).mean()) if several else None,
            feature_diversity=self._feature_diversity(features) if several else None,
            num=len(self.pictures),
            fillings=len(fillings),
        )

    @cached_property
    def trained(self) -> Trained:
        """The classifier: of the folder's classes where it has any, else of which way up an image is."""
        labels = None if self.classes is None else self.classes[self._learned_from]
        pictures = self.gather(self._learned_from)
        return train_classifier(pictures, labels, seed=self.seed, device=self.device, on_step=self.on_step)

    @cached_property
    def _reference(self) -> Floats:
        return self.trained.features(self.gather(self._compared_with))

    @cached_property
    def _originals(self) -> Floats:
        return self.trained.features(self.pictures)

    def _distances(self, completed: Floats, originals: Floats) -> tuple[float, float]:
        """Return the mean distance to real images of the fillings [K N D], and that of the originals [N D]."""
        distances = [frechet(filling, self._reference) for filling in completed]
        return float(np.mean(distances)), frechet(originals, self._reference)

    def _feature_diversity(self, features: Floats) -> float:
        between = np.mean([np.linalg.norm(a - b, axis=-1).mean() for a, b in combinations(features, 2)])
        shifted = [np.roll(self._originals, n, axis=0) for n in range(1, min(10, len(self._originals)))]
        return float(between / np.mean([np.linalg.norm(self._originals - other, axis=-1).mean() for other in shifted]))


def _paired(features: Floats, originals: Floats) -> float:
    """Return `Score.paired` of features [K N D] of fillings and [N D] of their originals."""
    to_originals = [frechet(each, originals) for each in features]
    return float(np.mean(to_originals) - np.mean([frechet(a, b) for a, b in combinations(features, 2)]))


def fill(
    pipeline: Pipeline, pictures: Pixels, holes: Hole, method: methods.Method, *, seed: int = 0, filling: int = 0,
    batch_size: int = 100,
) -> Pixels:  # fmt: skip
    """Fill in different images of the model's size, many at a time; `Pipeline.inpaint` is for one, of any size.

    Args:
        pipeline: the model.
        pictures, holes: see above; what a hole covers is not looked at.
        method: a method for this pipeline's model; see `methods.choose`.
        seed, filling: of the noise, from which image n starts at any `batch_size`.

    Returns:
        The pictures with their holes filled in, every other pixel as it was.
    """
    filled = []
    for first in range(0, len(pictures), batch_size):
        batch = range(first, min(first + batch_size, len(pictures)))
        some = slice(batch.start, batch.stop)
        with pipeline.working(f"with {len(batch)} images at a time"):
            keep = torch.from_numpy(~holes[some, None]).to(pipeline.device)
            known = images.to_float(torch.from_numpy(pictures[some])).to(pipeline.device).where(keep, 0)
            denoise_for = conditions.denoising(pipeline, conditions.Guidance(), pipeline.config.diffusion.threshold)
            denoise = denoise_for(None, condition(known, keep) if method.trained else None)
            noise = draws.streams(draws.key_of("filling", seed, filling), batch, known.shape[1:], pipeline.device)
            x = build.prior_mean(pipeline.config).to(known) + method.ladder[0] * noise()
            filled.append(images.to_uint8(last(method.walk(denoise, known, keep, x, noise))))
    return np.where(holes[..., None], np.concatenate(filled), pictures)
