"""The folder of images: too few, too many that cannot be used, changed between stop and resume."""

import filecmp
import json
import shutil

import numpy as np
import pytest
from helpers.runs import stop_at
from helpers.small import tiny
from PIL import Image

from diffunet.config import read_toml
from diffunet.errors import DataError, Stopped, UsageError
from diffunet.interop.models import read_config
from diffunet.training import checkpoint
from diffunet.training.batches import AHEAD
from diffunet.training.loop import train

PLAIN = {"data": {"classes": False}}


def pictures(root, count, seed=0):
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_images_than_a_batch_train(tmp_path, count):
    train(tiny(train={"steps": 2}, **PLAIN), pictures(tmp_path / "data", count), tmp_path / "run")
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"


def test_none_is_a_clear_error_and_the_same_command_works_once_there_are_some(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="no images"):
        train(tiny(**PLAIN), tmp_path / "data", tmp_path / "run")
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 3
    pictures(tmp_path / "data", 2)
    train(tiny(train={"steps": 1}, **PLAIN), tmp_path / "data", tmp_path / "run")


def test_above_a_share_of_unusable_files_training_does_not_begin(tmp_path, caplog):
    caplog.set_level("INFO")
    data = pictures(tmp_path / "data", 18)
    (data / "new\nline.png").write_text("text")
    (data / "empty.png").touch()
    train(tiny(train={"steps": 1}, **PLAIN), data, tmp_path / "run")  # 2 of 20: 10% is allowed
    assert "skipped empty.png: empty file" in caplog.text
    assert "skipped new\\nline.png: not an image" in caplog.text
    assert "2 files skipped" in caplog.text
    (data / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"3 of the 21 images .* cannot be used, such as empty\.png \(empty file\)"):
        train(tiny(train={"steps": 1}, **PLAIN), data, tmp_path / "other")
    assert not (tmp_path / "other/config.toml").exists()
    config = tiny(train={"steps": 1}, data={"classes": False, "max_rejected": 0.2})
    train(config, data, tmp_path / "other")


def test_new_missing_and_changed_images_are_named_and_can_be_accepted(tmp_path, caplog):
    data = pictures(tmp_path / "data", 30)
    config = tiny(train={"steps": 4}, **PLAIN)
    train(config, data, tmp_path / "run")
    (data / "3.png").unlink()
    Image.new("RGB", (9, 9), "red").save(data / "4.png")
    Image.new("RGB", (9, 9), "blue").save(data / "added.png")
    longer = tiny(train={"steps": 6}, **PLAIN)
    before = (tmp_path / "run/images.index").read_bytes()
    with pytest.raises(DataError) as refused:
        train(longer, data, tmp_path / "run", resume=True)
    for words in ("1 new (added.png)", "1 missing (3.png)", "1 changed (4.png)", "--accept-new-data"):
        assert words in str(refused.value)
    assert (tmp_path / "run/images.index").read_bytes() == before
    assert checkpoint.steps(tmp_path / "run")[-1] == 4

    train(longer, data, tmp_path / "run", resume=True, accept_new_data=True)
    assert "going on with other images" in caplog.text
    assert checkpoint.steps(tmp_path / "run")[-1] == 6
    train(tiny(train={"steps": 7}, **PLAIN), data, tmp_path / "run", resume=True)  # they are its images now


def test_accepting_images_of_a_new_class_is_refused(folder, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(folder, tmp_path / "pictures")
    pictures(tmp_path / "pictures/zebra", 1)
    with pytest.raises(DataError, match="1 of 41 images are of none of the 2 classes that are known: zebra 1"):
        train(tiny(train={"steps": 9}), tmp_path / "pictures", tmp_path / "run", resume=True, accept_new_data=True)
    shutil.rmtree(tmp_path / "pictures/zebra")
    shutil.rmtree(tmp_path / "pictures/disc")
    train(tiny(train={"steps": 9}), tmp_path / "pictures", tmp_path / "run", resume=True, accept_new_data=True)
    assert read_toml(tmp_path / "run/config.toml").data.class_names == ("disc", "square")


@pytest.mark.parametrize("change", ["delete", "replace", "add"])
def test_with_the_cache_a_run_keeps_the_images_that_it_began_with(tmp_path, change):
    config = tiny(train={"steps": 6}, **PLAIN)
    train(config, pictures(tmp_path / "data", 25), tmp_path / "whole")
    data = pictures(tmp_path / "copy", 25)

    def meddle(progress):
        if progress.step == 2:
            if change == "delete":
                shutil.rmtree(data)
            elif change == "add":
                pictures(data / "more", 9, seed=7)
            else:
                pictures(data, 25, seed=7)

    train(config, data, tmp_path / "run", on_step=meddle)
    a, b = (checkpoint.folder_of(tmp_path / run, 6) / "ema.safetensors" for run in ("whole", "run"))
    assert filecmp.cmp(a, b, shallow=False)


@pytest.mark.parametrize("change", ["delete", pytest.param("replace", marks=pytest.mark.slow)])
@pytest.mark.long
def test_without_it_a_changed_image_ends_the_run_with_everything_saved(tmp_path, change):
    data = pictures(tmp_path / "data", 1)
    config = tiny(train={"steps": 20, "checkpoint_every": 20}, data={"classes": False, "cache": "off"})

    def meddle(progress):
        if progress.step == 5:
            (data / "0.png").unlink()
            if change == "replace":
                pictures(data, 1, seed=7)

    with pytest.raises(DataError, match=r"0\.png: (no such file|has changed)"):
        train(config, data, tmp_path / "run", on_step=meddle)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    # The next batches had been read already; what is saved is the last step done.
    assert checkpoint.steps(tmp_path / "run") == [status["step"]]
    assert 5 <= status["step"] <= 6 + AHEAD
    pictures(data, 1)
    train(config, data, tmp_path / "run", resume=True)
    train(config, data, tmp_path / "whole")
    a, b = (checkpoint.folder_of(tmp_path / run, 20) / "optimizer.safetensors" for run in ("whole", "run"))
    assert filecmp.cmp(a, b, shallow=False)


def test_options_that_decide_about_images_may_change_on_resume(tmp_path):
    data = pictures(tmp_path / "data", 30)
    train(tiny(train={"steps": 2}, **PLAIN), data, tmp_path / "run")
    (data / "late.png").touch()
    (data / "later.png").touch()
    (data / "latest.png").touch()
    (data / "last.png").touch()
    with pytest.raises(DataError, match="cannot be used"):
        train(tiny(train={"steps": 3}, **PLAIN), data, tmp_path / "run", resume=True)
    allowing = tiny(train={"steps": 3}, data={"classes": False, "max_rejected": 1.0})
    train(allowing, data, tmp_path / "run", resume=True)  # unusable files are not among the images
    with pytest.raises(UsageError, match=r"data\.image_size = 8"):
        train(tiny(data={"image_size": 16}), data, tmp_path / "run", resume=True)


def deep(root, count, scale, first=0):
    root.mkdir(exist_ok=True)
    for i in range(first, first + count):
        values = np.random.default_rng(i).integers(0, 256, (9, 9)) * scale
        Image.fromarray(values.astype(np.uint16)).save(root / f"{i:02}.png")
    return root


def test_what_is_white_is_found_once_and_stays(tmp_path, caplog):
    caplog.set_level("INFO")
    data, one = deep(tmp_path / "data", 6, 16), {"classes": False, "channels": 1}
    with pytest.raises(Stopped):
        train(tiny(data=one), data, tmp_path / "run", on_step=stop_at(4))
    config = read_toml(tmp_path / "run/config.toml")
    assert (config.data.reading, config.data.int_range, config.data.float_range) == (2, (0, 4095), None)
    assert "6 images have integers of more than 8 bits, nothing above 4,095: taken as 12 bits" in caplog.text
    train(config, data, tmp_path / "whole")
    deep(data, 3, 256, first=6)
    with pytest.raises(UsageError, match="cannot become"):
        train(tiny(data=one | {"range": (0, 65535)}), data, tmp_path / "run", resume=True, accept_new_data=True)
    caplog.clear()
    train(tiny(data=one), data, tmp_path / "run", resume=True, accept_new_data=True)
    assert read_toml(tmp_path / "run/config.toml").data.int_range == (0, 4095)
    assert "3 images have values beyond that range, which are clipped" in caplog.text
    model = read_config(tmp_path / "whole")
    assert model.data.int_range == (0, 4095)


def test_a_stated_range_is_kept_as_it_is(tmp_path):
    data = deep(tmp_path / "data", 3, 16)
    config = tiny(data={"classes": False, "channels": 1, "range": (0, 8190)}, train={"steps": 1})
    train(config, data, tmp_path / "run")
    resolved = read_toml(tmp_path / "run/config.toml")
    assert (resolved.data.range, resolved.data.int_range) == ((0, 8190), None)
    assert resolved.diffusion.mean[0] < -0.4


def test_a_run_without_the_field_goes_on_reading_as_before(tmp_path, caplog):
    caplog.set_level("INFO")
    data = deep(tmp_path / "data", 4, 16)
    old = tiny(data={"classes": False, "channels": 1, "reading": 1})
    with pytest.raises(Stopped):
        train(old, data, tmp_path / "run", on_step=stop_at(4))
    assert "reads images as diffunet 0.1 did" not in caplog.text
    path = tmp_path / "run/config.toml"
    config = read_toml(path)
    path.write_text(config.to_toml().replace("reading = 1\n", ""))
    before = read_toml(path)
    assert before.data.reading is None
    assert before.diffusion.mean[0] < -0.8, "16 times too dark"
    train(tiny(data={"classes": False, "channels": 1}), data, tmp_path / "run", resume=True)
    assert caplog.text.count("reads images as diffunet 0.1 did") == 1
    after = read_toml(path)
    assert after.data.reading is None
    assert after.data.int_range is None
    assert after.hash() == before.hash()
