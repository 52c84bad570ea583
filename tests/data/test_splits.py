"""Data sets that come divided into train, val and test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet import build
from diffunet.config import Config
from diffunet.data import index, labels, splits
from diffunet.data.dataset import Dataset, open_dataset
from diffunet.data.findings import describe
from diffunet.data.survey import survey
from diffunet.errors import DataError, UsageError


def tree(root: Path, tops: tuple[str, ...], classes: tuple[str, ...] = ("cat", "dog"), each: int = 3) -> Path:
    generator = np.random.default_rng(len(tops))
    for top in tops:
        for name in classes:
            (root / top / name).mkdir(parents=True)
            for n in range(each):
                Image.fromarray(generator.integers(0, 256, (9, 9, 3), np.uint8)).save(root / top / name / f"{n}.png")
    return root


def opened(root: Path) -> Dataset:
    return open_dataset(root, image_size=8, channels=3, fit="crop", cache="off")


def divided(data: Dataset, **options: object) -> tuple[list[str], list[str]]:
    """The paths to train on and those held out."""
    split = build.split(Config().changed("data", **options).data, data.files)
    return [data.files.paths[n] for n in split.training], [data.files.paths[n] for n in split.held_out]


@pytest.mark.parametrize(
    ("tops", "held_out", "left_out"),
    [
        (("train", "val"), "val", ""), (("train", "test"), "test", ""),
        (("Training", "Validation", "TEST"), "Validation", "TEST"),
        (("train2017", "val2017"), "val2017", ""), (("dev", "train"), "dev", ""), (("train", "holdout"), "holdout", ""),
        (("train", "eval", "testing"), "eval", "testing"), (("train", "valid", "test"), "valid", "test"),
    ],
)  # fmt: skip
def test_train_is_trained_on_and_val_held_out(
    tmp_path: Path, tops: tuple[str, ...], held_out: str, left_out: str
) -> None:
    data = opened(tree(tmp_path, tops))
    training, held = divided(data)
    train = next(top for top in tops if top.lower().startswith("train"))
    names = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(3)]
    assert training == [f"{train}/{name}" for name in names]
    assert held == [f"{held_out}/{name}" for name in names]
    assert len(data.files) == 12
    assert data.class_names() == ("cat", "dog")
    assert data.labels(("cat", "dog")).tolist() == [0, 0, 0, 1, 1, 1] * 2
    (line,) = data.left_out.lines()
    assert f"{train} is trained on, {held_out} is held out" in line
    assert (f"{left_out} (6 images) is neither" in line) == bool(left_out)


@pytest.mark.parametrize(
    "paths",
    [["train/a.png"], ["train/a.png", "cat/b.png"], ["train/a.png", "val/b.png", "loose.png"],
     ["cat/a.png", "dog/a.png"],
     ["test/a.png", "val/b.png"], ["a/train/x.png", "a/val/x.png"]],
)  # fmt: skip
def test_what_is_not_divided(paths: list[str]) -> None:
    assert splits.find(paths) is None


def test_parts_are_never_classes() -> None:
    with pytest.raises(DataError, match="test, val are named as parts of a data set"):
        labels.find(Path(), ["test/a.png", "val/b.png"])
    with pytest.raises(DataError, match="dog is in val and not in train"):
        labels.find(Path(), ["train/cat/a.png", "train/cow/a.png", "val/cat/b.png", "val/dog/b.png"])
    with pytest.raises(DataError, match=r"1 of 3 images lie in no class folder \(train/b\.png\)"):
        labels.find(Path(), ["train/cat/a.png", "train/b.png", "val/cat/b.png"])


def test_check_says_what_it_saw_and_advises_no_classes(tmp_path: Path) -> None:
    text = describe(survey(tree(tmp_path, ("train", "val"))))
    assert "train is trained on, val is held out" in text
    assert "subfolders   2: cat 6, dog 6" in text
    assert "--classes " not in text


def test_of_a_large_part_those_of_lowest_hashes_are_held_out(tmp_path: Path) -> None:
    data = opened(tree(tmp_path, ("train", "val")))
    parts = splits.find(data.files.paths)
    assert parts is not None
    training, held = splits.divide(data.files, parts, cap=2)
    assert len(training) == 6
    hashes = {data.files[n].sha256 for n in held}
    assert hashes == set(sorted(data.files[n].sha256 for n in range(6, 12))[:2])
    assert divided(data, held_out=0.0)[1] == []


def test_groups_and_folders_cannot_both_decide(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"leave out --data\.group"):
        divided(opened(tree(tmp_path, ("train", "val"))), group=r"(\d)\.png")


def test_changes_in_each_part_are_seen_and_in_what_is_left_out_not(tmp_path: Path) -> None:
    root = tree(tmp_path, ("train", "val", "test"))
    before = opened(root)
    (root / "test" / "cat" / "0.png").unlink()
    assert opened(root).index_hash == before.index_hash
    (root / "val" / "cat" / "0.png").unlink()
    assert index.changes(before.files, opened(root).files) == ["1 missing (val/cat/0.png)"]
