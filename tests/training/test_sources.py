"""Training from what is not a plain folder of images: the same run, bit for bit, and one that goes on."""

import shutil
import unicodedata
import zipfile

import numpy as np
import pytest
from helpers.runs import assert_same_run, stop_at
from helpers.small import tiny
from PIL import Image

from diffunet import build
from diffunet.config import read_toml
from diffunet.data import index
from diffunet.errors import DataError, Stopped, UsageError
from diffunet.training import checkpoint, opening
from diffunet.training.loop import train


def interrupted(config, data, run, step):
    """A run that is stopped after so many steps."""
    with pytest.raises(Stopped):
        train(config, data, run, on_step=stop_at(step))


@pytest.mark.seconds
def test_a_zip_trains_as_its_folder(folder, run, tmp_path):
    """A run on an archive of the images, stopped and resumed, ends as the one on the folder."""
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.write(file, f"pictures/{file.relative_to(folder).as_posix()}")
    interrupted(tiny(), path, tmp_path / "run", 4)
    train(tiny(), path, tmp_path / "run", resume=True)
    assert_same_run(run, tmp_path / "run", 8)


@pytest.mark.seconds
def test_a_run_inside_its_images_goes_on_and_never_sees_its_previews(folder, run, tmp_path):
    """The previews are written before it is stopped; classes are the two that there were."""
    root = tmp_path / "pictures"
    shutil.copytree(folder, root)
    config = tiny(train={"sample_every": 2})
    interrupted(config, root, root / "run", 5)
    assert list((root / "run" / "samples").iterdir())
    train(config, root, root / "run", resume=True)
    assert_same_run(run, root / "run", 8)
    assert read_toml(root / "run" / "config.toml").data.class_names == ("disc", "square")
    with pytest.raises(DataError, match="is a run of diffunet"):
        train(tiny(data={"classes": False}), root / "run", tmp_path / "other")


@pytest.fixture
def divided(folder, tmp_path):
    """The images as train, val and test."""
    for n, file in enumerate(sorted(folder.rglob("*.png"))):
        target = tmp_path / "tree" / ("train", "train", "val", "test")[n % 4] / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path / "tree"


@pytest.mark.seconds
def test_a_divided_data_set_goes_on_and_its_changes_are_seen(divided, tmp_path, caplog):
    """What is left out may change, and what is held out may not."""
    caplog.set_level("INFO")
    run = tmp_path / "run"
    interrupted(tiny(), divided, run, 4)
    assert "images: 20 to train on, 10 held out, 2 classes" in caplog.text
    assert "train is trained on, val is held out, test (10 images) is neither" in caplog.text
    next((divided / "test").rglob("*.png")).unlink()
    train(tiny(train={"steps": 6}), divided, run, resume=True)
    assert len(index.read_index(run / "images.index")) == 30
    lost = next((divided / "val").rglob("*.png"))
    lost.unlink()
    with pytest.raises(DataError, match=rf"1 missing \({lost.relative_to(divided).as_posix()}\)"):
        train(tiny(train={"steps": 8}), divided, run, resume=True)


@pytest.mark.seconds
def test_a_folder_that_goes_from_a_mac_to_linux_is_the_same(folder, tmp_path):
    """A run goes on though the names of its images are written in another form."""
    root, run = tmp_path / "pictures", tmp_path / "run"
    for name in ("disc", "square"):
        shutil.copytree(folder / name, root / unicodedata.normalize("NFD", f"é {name}"))
    interrupted(tiny(), root, run, 4)
    for path in list(root.iterdir()):
        path.rename(path.with_name(unicodedata.normalize("NFC", path.name)))
    train(tiny(), root, run, resume=True)
    assert checkpoint.steps(run)[-1] == 8


@pytest.mark.seconds
def test_masks_of_ones_own(folder, tmp_path, caplog):
    """A run draws from them, stopped and resumed as in one go, and notices others."""
    caplog.set_level("INFO")
    for n in range(3):
        hole = np.zeros((8, 8), np.uint8)
        hole[n : n + 3, 1 : 3 + n] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(hole).save(tmp_path / "masks" / f"{n}.png")
    own = {"mask_folder": str(tmp_path / "masks")}
    config = tiny(diffusion={"task": "inpaint"}, data=own)
    train(config, folder, tmp_path / "whole")
    assert "3 masks of" in caplog.text
    interrupted(config, folder, tmp_path / "run", 4)
    (tmp_path / "masks" / "0.png").rename(tmp_path / "0.png")
    with pytest.raises(DataError, match="are not those that this run began with"):
        train(config, folder, tmp_path / "run", resume=True)
    (tmp_path / "0.png").rename(tmp_path / "masks" / "0.png")
    train(config, folder, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", 8)
    for data, words in ((own, "another task"), ({"mask_folder": str(folder / "disc")}, "within")):
        task = "inpaint" if words == "within" else "generate"
        wrong = tiny(diffusion={"task": task}, data=data)
        with pytest.raises(UsageError, match=words):
            train(wrong, folder, tmp_path / words)
        assert not (tmp_path / words / "config.toml").exists(), "another try may begin"
        with (
            pytest.raises(UsageError, match=words),
            opening.foreseen(wrong, folder, tmp_path / "dry", net=build.net, init=None, device="cpu"),
        ):
            pass
