"""Distances between sets of features, and how varied images are."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def frechet(a: Floats, b: Floats) -> float:
    """Return the Fréchet distance of two sets of features [N D], as normal distributions (Heusel et al. 2017, eq. 6).

    Few images bias it upwards, so compare at equal N.
    """
    return frechet_of(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def frechet_of(mean_a: Floats, c_a: Floats, mean_b: Floats, c_b: Floats) -> float:
    """Return the Fréchet distance of two normal distributions by their means [D] and covariances [D D].

    It is |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).
    """
    mean = ((mean_a - mean_b) ** 2).sum()
    # The trace of the root of C_a C_b is that of the symmetric root(C_a) C_b root(C_a), which has real eigenvalues.
    values, vectors = np.linalg.eigh(c_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ c_b @ root).clip(min=0)).sum()
    return float(mean + np.trace(c_a) + np.trace(c_b) - 2 * cross)


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
