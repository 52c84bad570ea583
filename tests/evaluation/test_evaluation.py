"""Distances against closed forms and brute force; the report on real and on bad samples."""

from functools import partial

import numpy as np
import pytest

import diffunet
from diffunet.data.builtin import load_digits_arrays
from diffunet.errors import DataError
from diffunet.evaluation import reference
from diffunet.evaluation.distances import frechet, variance_ratio
from diffunet.evaluation.features import train_classifier
from diffunet.evaluation.neighbours import near_copies, nearest
from diffunet.evaluation.reference import Reference
from diffunet.evaluation.report import evaluate
from diffunet.pictures import images


@pytest.fixture
def _brief(monkeypatch):
    """Classifiers learn for 30 steps, not 600, where what they learn does not matter."""
    monkeypatch.setattr(reference, "train_classifier", partial(train_classifier, steps=30))


def test_frechet_of_normals_is_the_closed_form():
    generator = np.random.default_rng(0)
    mean, scale = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0])
    a, b = generator.normal(size=(200_000, 3)), mean + scale * generator.normal(size=(200_000, 3))
    exact = (mean**2).sum() + ((1 - scale) ** 2).sum()  # for covariances that commute
    assert frechet(a, b) == pytest.approx(exact, rel=0.01)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_of_covariances_that_do_not_commute():
    """tr((C_a C_b)^(1/2)) by the eigenvalues of the product itself, which are real and not negative."""
    generator = np.random.default_rng(1)
    a, b = (generator.normal(size=(500, 4)) @ generator.normal(size=(4, 4)) for _ in range(2))
    c_a, c_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(c_a @ c_b).real).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c_a) + np.trace(c_b) - 2 * root
    assert frechet(a, b) == pytest.approx(expected)


def test_nearest_by_brute_force_and_copies_are_found():
    generator = np.random.default_rng(2)
    training, held_out = (generator.integers(0, 256, (60, 4, 4, 1), dtype=np.uint8) for _ in range(2))
    flat = training.reshape(60, -1).astype(float)
    brute = [np.sqrt(((flat - q.reshape(-1)) ** 2).sum(1)).min() for q in held_out]
    found, places = nearest(held_out, lambda: (training[:7], training[7:]))
    assert found == pytest.approx(brute)
    assert np.linalg.norm(flat[places] - held_out.reshape(60, -1), axis=1) == pytest.approx(brute)
    copies = near_copies(training[:30], training, held_out)
    assert copies.share == 1.0
    assert copies.held_out < 0.2
    assert copies.median == 0
    assert np.array_equal(copies.places[np.argsort(copies.closest)], np.arange(30))


def test_variance_ratio_of_averages_is_zero_and_of_the_same_is_one():
    pictures, labels = load_digits_arrays()
    averages = np.stack([pictures[labels == digit].mean(0) for digit in range(10)]).astype(np.uint8)
    assert variance_ratio(averages[np.arange(50) % 10], np.arange(50) % 10, pictures, labels) == 0
    assert variance_ratio(pictures, labels, pictures, labels) == pytest.approx(1)


@pytest.mark.long
def test_the_classifier_learns_and_is_the_same_again():
    pictures, labels = load_digits_arrays()
    trained = train_classifier(pictures, labels, steps=120)
    assert trained.accuracy > 0.85
    assert trained.learned == "classes"
    a, b = (train_classifier(pictures, labels, steps=10).features(pictures[:50]) for _ in range(2))
    assert np.array_equal(a, b)
    turns = train_classifier(pictures, None, steps=120)
    assert turns.learned == "turns"
    assert turns.accuracy > 0.5


@pytest.mark.long
def test_the_distance_tells_good_from_bad():
    """Real against real, against blurred, against noise: in this order."""
    pictures, labels = load_digits_arrays()
    trained = train_classifier(pictures[:600], labels[:600], steps=150)
    real = trained.features(pictures[600:1200])
    other = frechet(trained.features(pictures[1200:]), real)
    blurred = pictures[1200:].astype(float)
    blurred = (blurred + np.roll(blurred, 3, 1) + np.roll(blurred, 3, 2) + np.roll(blurred, -3, 1)) / 4
    noise = np.random.default_rng(0).integers(0, 256, pictures[1200:].shape, dtype=np.uint8)
    distances = [frechet(trained.features(p.astype(np.uint8)), real) for p in (blurred, noise)]
    assert 3 * other < distances[0] < distances[1]


@pytest.mark.usefixtures("_brief")
def test_samples_are_dealt_the_labels_of_the_floor(run, folder):
    """So that real images in the place of samples have no excess; labels of those compared with would flatter."""
    pipe = diffunet.load(run)
    reference = Reference(pipe.config, folder, 10, 3, pipe.device)
    floor = reference.gather(reference.chosen[26:][:10])  # 40 images: thirds of 13
    squares = [bool(picture[0, 0].mean() > 128) for picture in floor]  # bright outside; discs are dark there
    assert reference.labels == [pipe.class_names.index("square" if each else "disc") for each in squares]
    compared = reference.compare([images.from_array(picture) for picture in floor])
    assert compared.excess == 0
    assert compared.floor > 0


def test_what_was_learned_of_images_is_kept_and_known_by_them(run, folder, tmp_path, monkeypatch):
    pipe, learned = diffunet.load(run), list[int]()
    config = pipe.config.changed("data", cache=str(tmp_path))

    def learn(*args, seed, **options):
        learned.append(seed)
        return train_classifier(*args, seed=seed, steps=5, **options)

    monkeypatch.setattr(reference, "train_classifier", learn)
    pictures = [
        images.from_array(picture) for picture in np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), "u1")
    ]

    def report(seed, config=config):
        return Reference(config, folder, 10, seed, pipe.device).compare(pictures)

    assert report(3) == report(3)
    report(4)
    assert learned == [3, 4]
    [path, *_] = tmp_path.rglob("features-*.npz")
    path.write_bytes(path.read_bytes()[:1000])
    report(3), report(4)
    for other in ({"accuracy": 0.5}, {"body.0.weight": 1.0, "head.bias": [1.0]}, {"body.0.weight": ["a"]}):
        np.savez(path, **other)
        report(3), report(4)
    assert learned[2:] in ([3] * 4, [4] * 4)
    report(3, config.changed("data", cache="off"))
    assert learned[-1] == 3


@pytest.mark.usefixtures("_brief")
def test_evaluating_a_model(run, folder, tmp_path, caplog):
    report = evaluate(diffunet.load(run), folder, num=10, steps=2)
    assert report.num == 10
    assert report.learned == "classes"
    assert report.distance > 0
    assert report.excess == report.distance - report.floor
    assert 0 <= report.agreement <= 1
    assert any("feature distance" in line for line in report.lines())
    with pytest.raises(TypeError, match=r"evaluate\(\) got an unexpected keyword argument 'labels'"):
        evaluate(diffunet.load(run), folder, labels=["disc"])
    (tmp_path / "few").mkdir()
    for path in list((folder / "disc").iterdir())[:9]:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="at least 40"):
        evaluate(diffunet.load(run), tmp_path / "few")
