"""Distances between sets of features and images."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def frechet(a: Floats, b: Floats) -> float:
    """Return the Fréchet distance of two sets of features [N D], as normal distributions (Heusel et al. 2017, eq. 6).

    It is |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). Few images bias it upwards, so compare at equal N.
    """
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    c_a, c_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root of C_a C_b is that of the symmetric root(C_a) C_b root(C_a), which has real eigenvalues.
    values, vectors = np.linalg.eigh(c_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ c_b @ root).clip(min=0)).sum()
    return float(mean + np.trace(c_a) + np.trace(c_b) - 2 * cross)


def nearest(queries: NDArray[np.uint8], images: NDArray[np.uint8], rank: int = 1) -> Floats:
    """Return the Euclidean distance of each query [N H W C] to its `rank`-th nearest image, in grey levels, [N]."""
    from sklearn.neighbors import NearestNeighbors

    flat = [part.reshape(len(part), -1).astype(np.float64) for part in (images, queries)]
    return NearestNeighbors(n_neighbors=rank).fit(flat[0]).kneighbors(flat[1])[0][:, -1]


def near_copies(
    generated: NDArray[np.uint8], training: NDArray[np.uint8], held_out: NDArray[np.uint8]
) -> tuple[float, float]:
    """Return the shares of generated and of held-out real images, [N H W C] each, that are near-copies.

    A near-copy is as close to a training image as the closest 2% of training images are to one another.
    """
    limit = np.quantile(nearest(training, training, rank=2), 0.02)
    return float((nearest(generated, training) <= limit).mean()), float((nearest(held_out, training) <= limit).mean())


def variance_ratio(
    generated: NDArray[np.uint8], labels: NDArray[np.int64], real: NDArray[np.uint8], real_labels: NDArray[np.int64]
) -> float:
    """Return the pixel variance within the classes of generated images over that of real ones: 1 is right.

    It is 0 for a model that has one image for each class, such as its average.
    """

    def within(pictures: NDArray[np.uint8], classes: NDArray[np.int64]) -> float:
        flat = pictures.reshape(len(pictures), -1).astype(np.float64)
        return float(np.mean([flat[classes == label].var(axis=0).sum() for label in np.unique(real_labels)]))

    return within(generated, labels) / within(real, real_labels)
