"""Runs with classes from elsewhere than folders: they go on as they began, and notice where that cannot be."""

import filecmp
import hashlib
import json
import shutil

import numpy as np
import pytest
from helpers.small import tiny
from PIL import Image

import diffunet
from diffunet import draws
from diffunet.config import DataConfig, read_toml
from diffunet.data import index
from diffunet.data.dataset import open_dataset
from diffunet.data.groups import Groups
from diffunet.errors import DataError, UsageError
from diffunet.training import batches, checkpoint
from diffunet.training.loop import train


@pytest.fixture
def flat(folder, tmp_path):
    """The pictures of `folder` in one folder, with their class before their number."""
    (tmp_path / "flat").mkdir()
    for path in sorted(folder.rglob("*.png")):
        shutil.copy(path, tmp_path / "flat" / f"{path.parent.name}_{path.stem}.png")
    return tmp_path / "flat"


def asked(steps=2, **data):
    return tiny(data={"classes": False} | data, train={"steps": steps, "previews": 0, "cooldown": 0.0})


@pytest.mark.seconds
def test_a_pattern_and_a_table_train_what_folders_train_and_changed_labels_are_noticed(flat, tmp_path, caplog):
    caplog.set_level("INFO")
    by_name, by_table = tmp_path / "by-name", tmp_path / "by-table"
    train(asked(labels=r"(.+)_\d+"), flat, by_name)
    assert diffunet.load(by_name).class_names == ("disc", "square")

    names = sorted(path.name for path in flat.iterdir())

    def write(label):
        lines = (json.dumps({"file_name": name, "label": label(name)}) for name in names)
        (flat / "metadata.jsonl").write_text("\n".join(lines))

    write(lambda name: name.split("_")[0])
    train(asked(classes=True), flat, by_table)
    assert read_toml(by_table / "config.toml").data.labels == "metadata.jsonl"  # what was found stays
    assert "metadata.jsonl" in caplog.text
    for run in (by_name, by_table):
        assert read_toml(run / "config.toml").data.class_names == ("disc", "square")
    first, second = (checkpoint.folder_of(run, 2) / "model.safetensors" for run in (by_name, by_table))
    assert filecmp.cmp(first, second, shallow=False)

    train(asked(3, classes=True), flat, by_table, resume=True)
    write(lambda name: "disc" if name == "square_3.png" else name.split("_")[0])
    with pytest.raises(DataError, match=r"labels of the images are not those .*metadata\.jsonl.*--accept-new-data"):
        train(asked(4, classes=True), flat, by_table, resume=True)
    train(asked(4, classes=True), flat, by_table, resume=True, accept_new_data=True)
    write(lambda name: "" if name == "square_3.png" else name.split("_")[0])
    with pytest.raises(DataError, match=r"1 of 40 images have no class by metadata\.jsonl \(square_3\.png\)"):
        train(asked(5, classes=True), flat, by_table, resume=True)
    with pytest.raises(UsageError, match=r"--resume goes on with data\.labels = .*--init RUN --out OTHER"):
        train(asked(5, labels="(.)"), flat, by_name, resume=True)


def old(run, **changes):
    """Let the newest checkpoint say of its data what one of an earlier version says."""
    folder = checkpoint.newest(run)
    state = json.loads((folder / "state.json").read_text()) | changes
    for name in [name for name, value in changes.items() if value is None]:
        del state[name]
    text = json.dumps(state)
    (folder / "state.json").write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["state.json"] = {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.seconds
def test_a_rare_class_is_trained_on_and_an_earlier_run_keeps_its_split(folder, tmp_path, caplog):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folder, data)
    (data / "rare").mkdir()
    for n in range(100_000):
        picture = Image.new("RGB", (8, 8), (n % 256, n // 256, 7))
        picture.save(data / "rare" / "only.png")
        if hashlib.sha256((data / "rare" / "only.png").read_bytes()).hexdigest().startswith("00"):
            break
    config = asked(classes=True)
    train(config, data, run)
    dataset = open_dataset(data, image_size=8, channels=3, fit="crop")
    rare = [n for n, file in enumerate(dataset.files) if file.path.startswith("rare")]
    plain_held = index.split(dataset.files, 0.05, 1000)[1]
    assert set(rare) <= set(plain_held)
    state = checkpoint.read_state(checkpoint.newest(run))
    assert state["split_hash"] != hashlib.sha256(plain_held.astype("<i8").tobytes()).hexdigest()
    # A run that held it out goes on so, and says it.
    old(run, split_hash=hashlib.sha256(plain_held.astype("<i8").tobytes()).hexdigest(), labels_hash=None)
    train(asked(3, classes=True), data, run, resume=True)
    assert "this run holds out every image of rare and goes on so" in caplog.text
    assert checkpoint.read_state(checkpoint.newest(run))["split_hash"] != state["split_hash"]


def test_balanced_draws_are_equally_many_of_each_class_and_a_function_of_the_step():
    labels = np.array([0] * 200 + [1] * 10)
    chosen = np.arange(5, 208)
    plain, balanced = (batches.order(chosen, alike, 3) for alike in (None, labels))
    assert np.bincount(labels[chosen[balanced(range(800))]]).tolist() == [400, 400]
    assert np.bincount(labels[chosen[plain(range(812))]]).tolist() == [195 * 4, 8 * 4]
    assert np.array_equal(plain(range(50)), draws.order(3, range(50), len(chosen)))
    again = batches.order(chosen, labels, 3)
    assert np.array_equal(again(range(700, 800)), balanced(range(800))[700:])
    without = batches.order(chosen, np.where(labels, 2, 0), 3)
    assert np.array_equal(without(range(90)), balanced(range(90)))  # a class that nothing is left of is none


def test_groups_are_drawn_equally_often_and_an_image_of_no_group_is_one():
    places = np.array([0] * 30 + [1] * 3 + [-1, -1])
    of = Groups(("a", "b"), places)
    data = DataConfig(group="x", balance_groups=True)
    alike = batches.drawn_alike(data, None, of)
    drawn = batches.order(np.arange(35), alike, 7)(range(400))
    assert (
        np.bincount(np.where(places < 0, np.arange(35), places)[drawn], minlength=35)[[0, 1, 33, 34]].tolist()
        == [100] * 4
    )
    assert np.bincount(drawn, minlength=35)[:30].min() >= 3  # each of the variants in its turn
    assert batches.drawn_alike(DataConfig(group="x"), None, of) is None
    labels = np.arange(35) % 2
    assert batches.drawn_alike(DataConfig(classes=True, balance=True), labels, of) is labels


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"balance_groups": True}, "balance-groups needs groups"),
        ({"balance_groups": True, "group": "x", "balance": True, "classes": True}, "take one of them"),
    ],
)
def test_balance_of_groups_that_cannot_be_is_refused(chosen, why):
    with pytest.raises(ValueError, match=why):
        DataConfig(**chosen)


def test_balance_without_classes_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="draws classes equally often, and there are none without --classes"):
        train(asked(balance=True), folder, tmp_path / "run")
