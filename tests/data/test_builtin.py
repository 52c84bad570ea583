"""Known data sets as folders: the digits for real, the downloads with a small stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffunet.data import builtin
from diffunet.data import labels as classes
from diffunet.data.folder import list_images
from diffunet.errors import DataError, UsageError
from diffunet.pictures import images

pytestmark = pytest.mark.seconds


def test_digits_keep_their_shape() -> None:
    pixels, labels = builtin.load_digits_arrays()
    assert pixels.shape == (1797, 16, 16, 1)
    assert pixels.dtype == np.uint8
    assert labels.dtype == np.int64
    digits = load_digits()
    assert np.array_equal(labels, digits.target)
    small = pixels.reshape(1797, 8, 2, 8, 2).mean((2, 4)) / 255 * 16
    assert np.abs(small - digits.images).mean() < 0.75, "averaged back, they are the originals, nearly"
    assert np.corrcoef(small.ravel(), digits.images.ravel())[0, 1] > 0.98


def test_prepare_digits(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "deep" / "digits"
    count = builtin.prepare("digits", out, limit=50, progress=lambda done, total: seen.append((done, total)))
    paths, _ = list_images(out)
    assert count == len(paths) == 50
    assert seen[-1] == (50, 50)
    assert classes.find(out, paths).names == tuple("0123456789")
    pixels, labels = builtin.load_digits_arrays()
    for path in paths:
        folder, name = path.split("/")
        n = int(Path(name).stem)
        assert len(Path(name).stem) == 4
        image = images.open_image(out / path)
        assert image.mode == "L"
        assert np.array_equal(images.to_array(image, 1), pixels[n])
        assert labels[n] == int(folder)
    assert [p.name for p in out.parent.iterdir()] == ["digits"]


class Toys:
    """What torchvision's data sets look like."""

    classes = ("air plane", "car/truck")

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, n: int) -> tuple[Image.Image, int]:
        if n >= self.count:
            raise IndexError(n)
        return Image.new("RGB", (4, 4), (n, 0, 0)), n % 2


def stand_in(monkeypatch: pytest.MonkeyPatch, load: Any, names: tuple[str, ...] = ()) -> None:
    monkeypatch.setitem(builtin.DATASETS, "toys", builtin.Known(load, names))


def test_prepare_writes_a_folder_for_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda root: Toys())
    out = tmp_path / "out"
    out.mkdir()  # empty: fine
    assert builtin.prepare("toys", out) == 12
    paths, _ = list_images(out)
    assert paths[:2] == ["air plane/00.png", "air plane/02.png"]
    assert classes.find(out, paths).names == ("air plane", "car_truck")
    assert images.to_array(images.open_image(out / "car_truck" / "11.png"), 3)[0, 0].tolist() == [11, 0, 0]


def test_classes_without_names_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda root: [Toys()[n] for n in range(4)])
    builtin.prepare("toys", tmp_path / "out")
    assert classes.find(tmp_path / "out", list_images(tmp_path / "out")[0]).names == ("0", "1")


@pytest.mark.seconds
def test_torchvision_is_asked_the_right_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    asked: list[dict[str, Any]] = []

    def fake(**options: Any) -> Toys:
        asked.append(options)
        (options["root"] / "archive.tar").write_bytes(b"x")
        return Toys()

    monkeypatch.setattr(datasets, "CIFAR10", fake)
    builtin.prepare("cifar10", tmp_path / "out", download_root=tmp_path / "kept")
    assert asked == [{"root": tmp_path / "kept", "download": True, "train": True}]
    assert (tmp_path / "kept" / "archive.tar").exists()
    builtin.prepare("cifar10", tmp_path / "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "out", "two"]


@pytest.mark.parametrize("name", [name for name in builtin.DATASETS if name != "digits"])
def test_every_name_is_a_real_data_set_with_these_options(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network the classes are still there, and must take the options that are given to them."""
    import inspect

    from torchvision import datasets

    real = {
        n: getattr(datasets, n) for n in ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN", "Flowers102", "STL10")
    }
    called: list[str] = []

    def fake(class_name: str) -> Any:
        def load(**options: Any) -> Toys:
            inspect.signature(real[class_name]).bind(**options)
            called.append(class_name)
            return Toys()

        return load

    for class_name in real:
        monkeypatch.setattr(datasets, class_name, fake(class_name))
    assert builtin.prepare(name, tmp_path / "out") == 12
    assert len(called) == 1


def test_a_failed_download_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path) -> Any:
        raise RuntimeError("Error downloading x\nfrom every mirror:\n  no route")

    stand_in(monkeypatch, fail)
    with pytest.raises(DataError) as caught:
        builtin.prepare("toys", tmp_path / "out")
    assert "no route" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, lambda root: Toys())

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builtin.prepare("toys", tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cifar10"):
        builtin.prepare("cifar-10", tmp_path / "out")
    with pytest.raises(UsageError, match="digits"):
        builtin.prepare("zzzzz", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    for out in (tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(UsageError, match="exists"):
            builtin.prepare("digits", out)
