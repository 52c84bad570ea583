"""Nearest neighbours and what is measured by them, against loops over all pairs."""

import numpy as np
import pytest

from diffunet.evaluation.neighbours import Manifold, copies, manifold, nearest, small


def away(a, b):
    return np.array([[np.sqrt(((x - y) ** 2).sum()) for y in b] for x in a])


def by_hand(made, real):
    """The four measures as their papers write them."""
    n, m = len(made), len(real)
    third, fifth = (lambda x: np.sort(away(x, x), axis=1)[:, 3]), (lambda x: np.sort(away(x, x), axis=1)[:, 5])
    between, of_real, of_made = away(real, made), third(real), third(made)
    precision = sum(any(between[i, j] <= of_real[i] for i in range(m)) for j in range(n)) / n
    recall = sum(any(between[i, j] <= of_made[j] for j in range(n)) for i in range(m)) / m
    balls = fifth(real)
    density = sum(between[i, j] <= balls[i] for i in range(m) for j in range(n)) / (5 * n)
    coverage = sum(any(between[i, j] <= balls[i] for j in range(n)) for i in range(m)) / m
    return Manifold(precision, recall, density, coverage)


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_precision_recall_density_and_coverage_are_the_papers(scale):
    generator = np.random.default_rng(0)
    made, real = scale * generator.normal(size=(40, 3)) + 0.3, generator.normal(size=(60, 3))
    found, expected = vars(manifold(made, real)), vars(by_hand(made, real))
    assert found == pytest.approx(expected)
    assert len({*found.values()}) > 2


def test_parts_and_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(1)
    made, real = generator.normal(size=(50, 4)), generator.normal(size=(70, 4))
    whole, at_once = manifold(made, real), nearest(made, lambda: [real])
    monkeypatch.setattr("diffunet.evaluation.neighbours.AT_ONCE", 17)
    assert manifold(made, real) == whole
    in_parts = nearest(made, lambda: np.array_split(real, 5))
    assert np.array_equal(in_parts[0], at_once[0])
    assert np.array_equal(in_parts[1], at_once[1])
    assert np.allclose(at_once[0], away(made, real).min(1))


def test_of_five_images_nothing_is_said():
    assert manifold(np.zeros((5, 2)), np.zeros((9, 2))) is None


def test_an_image_is_not_its_own_neighbour():
    points = np.array([[0.0], [1.0], [5.0]])
    assert nearest(points, lambda: [points])[0].tolist() == [0, 0, 0]
    found, places = nearest(points, lambda: [points[:1], points[1:]], np.arange(3))
    assert (found.tolist(), places.tolist()) == ([1, 1, 4], [1, 0, 1])


def test_copies_and_their_mirror_images_are_found():
    """Noise is far from noise: so of copies alone, and of mirror images where these count, are near copies."""
    generator = np.random.default_rng(2)
    training = generator.integers(0, 256, (200, 6, 6, 3), dtype=np.uint8)
    training[100:104] = training[:4] // 2 * 2  # 4% of the training images, which are almost others
    held_out = generator.integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
    made = np.concatenate([training[20:24], training[30:34, :, ::-1], held_out[:12]])
    known = np.arange(200), training
    found = copies(made, lambda: np.array_split(training, 3), known, held_out)
    assert (found.share, found.held_out) == (4 / 20, 0)
    assert sorted(found.places[:4].tolist()) == [20, 21, 22, 23]
    assert sorted(found.closest[:4].tolist()) == [0, 1, 2, 3]
    mirrored = copies(made, lambda: np.array_split(training, 3), known, held_out, mirror=True)
    assert mirrored.share == 8 / 20
    assert sorted(mirrored.places[:8].tolist()) == [20, 21, 22, 23, 30, 31, 32, 33]
    assert found.median == pytest.approx(np.median(nearest(made, lambda: [training])[0]) / np.sqrt(108))
    assert copies(made, lambda: [training], known, held_out[:0]).held_out is None


def test_large_pictures_become_means_of_blocks():
    picture = np.random.default_rng(3).integers(0, 256, (2, 130, 130, 1), dtype=np.uint8)
    assert np.array_equal(small(picture[:, :127, :127]), picture[:, :127, :127])
    found = small(picture)
    assert found.shape == (2, 65, 65, 1)
    assert found[1, 3, 5, 0] == round(float(picture[1, 6:8, 10:12].mean()))
