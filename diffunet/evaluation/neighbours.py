"""Nearest neighbours, and what is measured by them: copies of training images, and how far two sets cover each other.

Legend: N, M images or features, D numbers of each.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from einops import reduce
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.float64]
"""Pictures, uint8 [N H W C], or features [N D]."""
Parts = Callable[[], Iterable[Array]]
"""A function that goes through a set of images or features, a part at a time and in the same order every time."""

AT_ONCE, NUMBERS = 1024, 2**24
"""The most images or features whose distances are computed at a time, and the most numbers that they hold together."""
SIDE = 64
"""Pixels of a side from which on pictures are compared by means of blocks; see `small`."""
LIMIT_FROM = 4_000
"""The most training images from which the distance of near copies is estimated."""
CLOSEST = 0.02
"""The share of training images that are nearest to one another, by which a near copy is known."""


def nearest(
    queries: Array, parts: Parts, own: NDArray[np.int64] | None = None, device: torch.device | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the Euclidean distance of each query to the nearest of a set, float64 [N], and its place there, int64 [N].

    The nearest is found in float32, and its distance then computed in float64: that of an exact copy is 0.

    Args:
        queries: [N ...]; `parts` gives the set, [M ...] in all.
        own: of each query the place in the set that is not to count, since it is the query itself; -1 for none.
        device: where to compute, the CPU by default.
    """
    device = device or torch.device("cpu")
    distances, places = np.full(len(queries), np.inf), np.full(len(queries), -1)
    at_once = max(16, min(AT_ONCE, NUMBERS // max(1, int(np.prod(queries.shape[1:])))))
    first, centre = 0, None
    for whole in parts():
        for part in (whole[start : start + at_once] for start in range(0, len(whole), at_once)):
            others = _flat(part, device)
            centre = others.mean(0) if centre is None else centre  # small numbers lose less in |a|^2 + |b|^2 - 2 a b
            others -= centre
            for start in range(0, len(queries), at_once):
                some = slice(start, start + at_once)
                found = torch.cdist(_flat(queries[some], device) - centre, others)
                if own is not None:
                    at = torch.from_numpy(own[some] - first)
                    rows = torch.nonzero((at >= 0) & (at < len(part))).flatten()
                    found[rows.to(device), at[rows].to(device)] = np.inf
                place = found.argmin(1).cpu().numpy()
                gap = queries[some].reshape(len(place), -1).astype(np.float64) - part[place].reshape(len(place), -1)
                exact = np.where(np.isinf(found.min(1).values.cpu().numpy()), np.inf, np.sqrt((gap**2).sum(1)))
                better = exact < distances[some]
                distances[some] = np.where(better, exact, distances[some])
                places[some] = np.where(better, first + place, places[some])
            first += len(part)
    return distances, places


def small(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return square pictures [N H W C] with the means of blocks for pixels, so that their side is below 2 `SIDE`."""
    if (block := pictures.shape[1] // SIDE) < 2:
        return pictures
    side = pictures.shape[1] // block
    blocks = pictures[:, : side * block, : side * block].astype(np.float32)
    return reduce(blocks, "n (h a) (w b) c -> n h w c", "mean", a=block, b=block).round().astype(np.uint8)


def _flat(array: Array, device: torch.device) -> Tensor:
    return torch.from_numpy(array.reshape(len(array), -1).astype(np.float32)).to(device)


@dataclass(frozen=True)
class Copies:
    """How near generated images are to training images, beside real images that were held out.

    Args:
        share, held_out: the shares of generated and of held-out images that are near copies: as close to a training
            image as the closest 2% of training images are to another one. None where no image is held out.
        median, held_out_median: the middle distance to the nearest training image, root mean square over the D numbers.
        closest: the places of the generated images, the nearest to a training image first, int64 [N].
        places: the places of the training images that are nearest to these, int64 [N].
    """

    share: float
    held_out: float | None
    median: float
    held_out_median: float | None
    closest: NDArray[np.int64]
    places: NDArray[np.int64]


def copies(
    generated: Array, training: Parts, known: tuple[NDArray[np.int64], Array], held_out: Array, *, mirror: bool = False,
    device: torch.device | None = None,
) -> Copies:  # fmt: skip
    """Look for each generated and held-out image for the nearest training image, by pixels or by features.

    Args:
        generated, held_out: [N ...] and [M ...]; the latter may be empty.
        training: the training images.
        known: of those training images from which the limit is taken, their places and themselves.
        mirror: look for mirror images, too: of pictures whose mirror images are trained on.
        device: where to compute, the CPU by default.
    """
    queries = np.concatenate([generated, held_out, known[1]])
    own = np.concatenate([np.full(len(generated) + len(held_out), -1), known[0]])
    distances, places = nearest(queries, training, own, device)
    if mirror:
        others = nearest(np.ascontiguousarray(queries[:, :, ::-1]), training, own, device)
        distances, places = np.where(others[0] < distances, others, (distances, places))
    made, real, trained = np.split(distances, [len(generated), len(generated) + len(held_out)])
    limit, size = np.quantile(trained, CLOSEST), np.sqrt(np.prod(generated.shape[1:]))
    order = np.argsort(made, kind="stable")
    return Copies(
        float((made <= limit).mean()), float((real <= limit).mean()) if len(real) else None,
        float(np.median(made) / size), float(np.median(real) / size) if len(real) else None,
        order, places[: len(made)][order].astype(np.int64),
    )  # fmt: skip


def some_of(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the ascending places of the training images, of `count`, from which the limit of copies is taken."""
    return np.sort(np.random.Generator(np.random.Philox(key=[seed, 4])).permutation(count)[:LIMIT_FROM])


def near_copies(generated: Array, training: Array, held_out: Array) -> Copies:
    """Return `copies` of sets that are in memory."""
    places = some_of(len(training))
    return copies(generated, lambda: [training], (places, training[places]), held_out)


@dataclass(frozen=True)
class Manifold:
    """How far generated images lie among real ones, and real ones among generated ones, by the features of both.

    `precision` is the share of generated images within the ball of a real one, `recall` that of real images within the
    ball of a generated one, balls that reach to the third neighbour (Kynkäänniemi et al. 2019, eq. 2). `density` counts
    the balls of real images in which a generated one lies, over the 5 expected, and can be above 1; `coverage` is the
    share of real images with a generated one in their ball, balls to the fifth neighbour (Naeem et al. 2020).
    """

    precision: float
    recall: float
    density: float
    coverage: float


PRECISION_NEIGHBOUR, DENSITY_NEIGHBOUR = 3, 5
"""The neighbour to which a ball reaches, in the two papers."""


def manifold(generated: Array, real: Array, device: torch.device | None = None) -> Manifold | None:
    """Return how features [N D] of generated images lie to those [M D] of real ones; None for fewer than 6 of either.

    Distances are computed in the type of the features.
    """
    if min(len(generated), len(real)) <= DENSITY_NEIGHBOUR:
        return None
    fakes, reals = (torch.from_numpy(features).to(device or "cpu") for features in (generated, real))
    of_fakes, of_reals = _radii(fakes), _radii(reals)
    precise, recalled, inside, covered = 0, 0, 0, 0
    for start in range(0, len(reals), AT_ONCE):
        away = torch.cdist(reals[start : start + AT_ONCE], fakes)
        recalled += int((away <= of_fakes[0]).any(1).sum())
        within = away <= of_reals[1][start : start + AT_ONCE, None]
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    for start in range(0, len(fakes), AT_ONCE):
        precise += int((torch.cdist(fakes[start : start + AT_ONCE], reals) <= of_reals[0]).any(1).sum())
    n, m = len(fakes), len(reals)
    return Manifold(precise / n, recalled / m, inside / (DENSITY_NEIGHBOUR * n), covered / m)


def _radii(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each to its third and to its fifth neighbour among the others, [N] each."""
    found = []
    for start in range(0, len(features), AT_ONCE):
        away = torch.cdist(features[start : start + AT_ONCE], features)  # the first is its own, about 0
        found.append(away.topk(DENSITY_NEIGHBOUR + 1, largest=False, sorted=True).values)
    near = torch.cat(found)
    return near[:, PRECISION_NEIGHBOUR], near[:, DENSITY_NEIGHBOUR]
