"""The whole way in some seconds: the command line trains, resumes, samples, fills in, and refuses what cannot be.

Each of these has a room of tests of its own, which `--fast` leaves out. This file stands in for those rooms.
"""

import json

import numpy as np
import pytest
import torch
from helpers.small import tiny
from PIL import Image

from diffunet import storage
from diffunet.commands.cli import main
from diffunet.errors import Stopped
from diffunet.training.loop import train


def diffunet(*words, code=0):
    """Run a command in this process, which must end with that exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == code


def test_a_run_that_is_stopped_and_resumed_is_the_run_that_was_not(run, folder, tmp_path):
    parts = tmp_path / "run"
    with pytest.raises(Stopped):
        train(tiny(), folder, parts, on_step=lambda progress: progress.step < 3)
    assert json.loads((parts / "status.json").read_text())["state"] == "stopped"
    diffunet("train", folder, "--out", parts, "--resume")
    whole, resumed = (storage.read_tensors(each / "model/model.safetensors")[0] for each in (run, parts))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_samples_have_a_size_a_class_and_a_seed(run, tmp_path, capsys):
    for name in ("a", "b"):
        diffunet("sample", run, "--out", tmp_path / name, "--num", 2, "--steps", 2, "--seed", 5, "--guidance", 2)
    files = [sorted((tmp_path / name).glob("*.png")) for name in ("a", "b")]
    assert [path.name for path in files[0]] == ["5-00000-disc.png", "5-00001-square.png"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert Image.open(files[0][0]).size == (8, 8)
    assert f"2 images in {tmp_path / 'b'}" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["mmps", "repaint"])
def test_a_hole_is_filled_and_all_else_stays(run, folder, tmp_path, method):
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (11, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    diffunet(
        "inpaint", run, photo, "--box", "3,2,8,7", "--method", method, "--steps", 2, "--out", tmp_path / "filled.png"
    )
    filled = np.asarray(Image.open(tmp_path / "filled.png"))
    changed = (filled != pixels).any(axis=2)
    assert changed[2:7, 3:8].mean() > 0.9
    assert not np.delete(changed, slice(3, 8), axis=1).any()
    assert not np.delete(changed, slice(2, 7), axis=0).any()


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (("trian", "photos"), 2, "did you mean train"),
        (("train", "photos", "--out", "run", "--train.step", "5"), 2, "did you mean"),
        (("train", "nowhere", "--out", "run"), 3, "nowhere"),
        (("sample", "nothing-here", "--out", "pictures"), 4, "nothing-here"),
        (("inpaint", "run", "photo.png", "--out", "filled.jpg"), 2, "lossy"),
    ],
)
def test_what_cannot_be_is_one_line_and_an_exit_code(tmp_path, monkeypatch, capsys, words, code, complaint):
    monkeypatch.chdir(tmp_path)
    diffunet(*words, code=code)
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("diffunet: ")
    assert complaint in line
