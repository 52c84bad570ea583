"""The real images that a model is compared with, in folders whose classes are not the model's."""

import shutil
from functools import partial

import numpy as np
import pytest
from helpers.small import tiny
from PIL import Image

from diffunet import build
from diffunet.evaluation import reference
from diffunet.evaluation.reals import RealImages
from diffunet.evaluation.reference import Reference


@pytest.fixture
def config():
    return tiny().changed("data", class_names=("disc", "square"))


def test_a_flat_folder_is_compared_without_labels(folder, tmp_path, config, caplog):
    caplog.set_level("INFO")
    for n, path in enumerate(sorted(folder.rglob("*.png"))):
        shutil.copy(path, tmp_path / f"{n}.png")
    real = RealImages(config, tmp_path)
    assert len(real) == 40
    assert (real.classes, real.named) == (None, False)
    assert caplog.text.count("measured without labels") == 1
    shutil.copytree(folder / "disc", tmp_path / "disc")  # some have a folder, some have none
    caplog.clear()
    assert RealImages(config, tmp_path).classes is None
    assert "40 of 60 images lie in no class folder" in caplog.text


def test_unknown_classes_are_left_out_and_counted(folder, tmp_path, config, caplog):
    caplog.set_level("INFO")
    shutil.copytree(folder, tmp_path / "more")
    shutil.copytree(folder / "disc", tmp_path / "more" / "zebra")
    real = RealImages(config, tmp_path / "more")
    assert "20 images of classes that the model does not know are left out: zebra 20" in caplog.text
    assert len(real) == 40
    assert np.bincount(real.classes).tolist() == [20, 20]
    assert all("zebra" not in real.dataset.files[int(place)].path for place in real.places)
    pixels, of = real.gather(np.arange(40)), real.dataset.files
    for n, place in enumerate(real.places):
        stored = np.asarray(Image.open(tmp_path / "more" / of[int(place)].path))
        assert np.array_equal(pixels[n], stored)
        assert config.data.class_names[real.classes[n]] == of[int(place)].path.split("/")[0]


def test_where_the_model_knows_none_of_the_classes_they_say_nothing(folder, config, caplog):
    caplog.set_level("INFO")
    real = RealImages(config.changed("data", class_names=("x", "y")), folder)
    assert (len(real), real.classes) == (40, None)
    assert "the model knows none of the folder's classes: disc 20, square 20" in caplog.text


def test_of_one_class_alone_no_label_agreement_is_told(folder, tmp_path, config, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(reference, "train_classifier", partial(reference.train_classifier, steps=3))
    shutil.copytree(folder / "disc", tmp_path / "one" / "disc")
    for n in range(20):
        Image.new("RGB", (8, 8), (n, 2 * n, 3 * n)).save(tmp_path / "one" / "disc" / f"x{n}.png")
    against = Reference(config, tmp_path / "one", 5, 0, build.torch.device("cpu"))
    assert "no image is of 1 of the model's 2 classes: square" in caplog.text
    assert set(against.labels) == {0}  # what is sampled is what it is compared with
    pictures = [Image.fromarray(pixels) for pixels in against.gather(np.arange(against.num))]
    found = against.compare(pictures)
    assert found.agreement is None
    assert found.learned == "turns"
    assert not any("agreement" in line for line in found.lines())


def test_labels_of_the_model_are_looked_for_again(folder, tmp_path, config):
    for n, path in enumerate(sorted(folder.rglob("*.png"))):
        shutil.copy(path, tmp_path / f"{path.parent.name}_{n}.png")
    by_name = config.changed("data", labels=r"(.+)_\d+")
    assert np.bincount(RealImages(by_name, tmp_path).classes).tolist() == [20, 20]
    assert np.bincount(RealImages(by_name, folder).classes).tolist() == [20, 20]  # a folder of folders has them too


def test_a_folder_without_the_groups_of_the_model_is_measured_without(folder, tmp_path, config, caplog):
    caplog.set_level("INFO")
    plain = RealImages(config, folder).split()
    other = RealImages(config.changed("data", group=r"emoji_u(\w+)"), folder)
    assert "measured without groups: the regular expression 'emoji_u" in caplog.text
    assert all(map(np.array_equal, other.split(), plain))
    lost = RealImages(config.changed("data", group=str(tmp_path / "lost.tsv"), balance_groups=True), folder)
    assert "lost.tsv cannot be read" in caplog.text
    assert [len(part) for part in lost.split()] == [40, 0], "any of them may have been trained on"
    for part in ("train", "val"):
        shutil.copytree(folder, tmp_path / "parts" / part)
    divided = RealImages(config.changed("data", group=str(tmp_path / "lost.tsv")), tmp_path / "parts")
    assert [len(part) for part in divided.split()] == [40, 40]


def test_windows_of_pictures_are_compared(tmp_path):
    generator = np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(generator.integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
    real = RealImages(tiny(data={"classes": False, "fit": "patch"}), tmp_path)
    assert len(real) == 3 * 40  # each has room for 5 x 8 windows of 8 pixels
    pixels = real.gather(np.arange(120))
    assert len({window.tobytes() for window in pixels}) > 100
    assert np.array_equal(pixels[[7, 90]], real.gather(np.array([7, 90])))
