"""Where results go that nobody has named, and what is said where something is there already."""

import shutil
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import dies_at, diffunet, refused
from PIL import Image

from diffunet.commands import naming, viewer

SMALL = [
    *("--image-size", 8, "--steps", 2, "--batch-size", 4, "--train.previews", 0),
    *("--model.channels", 8, "--model.multipliers", 1, 2, "--model.num-blocks", 1),
]


@pytest.fixture
def here(tmp_path, monkeypatch, folder, model):
    """A folder with `photos`, which has subfolders, and the run `runs/made`."""
    shutil.copytree(folder, tmp_path / "photos")
    shutil.copytree(model, tmp_path / "runs" / "made")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def there():
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.parametrize(
    ("data", "run"),
    [
        ("photos", "photos"), ("photos/", "photos"), ("photos/.", "photos"), ("photos/disc/..", "photos"),
        ("a.tar.gz", "a"), ("a.b.zip", "a.b"), ("digits.npz", "digits"), ("x/shard-{0000..0127}.tar", "shard"),
        ("birds/*.tar", "birds"), ("birds-*.zip", "birds"),
    ],
)  # fmt: skip
def test_a_run_has_the_name_of_its_images(here, data, run):
    assert naming.run_of(Path(data)) == Path("runs") / run


def test_the_images_of_this_very_folder_have_a_name(here, monkeypatch):
    monkeypatch.chdir("photos")
    assert naming.run_of(Path()) == Path("runs/photos")


def test_archives_are_named_without_what_makes_them_one(here):
    with tarfile.open("album.tar", "w") as archive:
        archive.add("photos")
    diffunet("train", "album.tar", *SMALL)
    assert Path("runs/album/model/model.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("emoji", "emoji"), ("runs/made", "made"), ("runs/made/", "made"), ("runs/made/model", "made"),
        ("owner/name", "name"), ("https://huggingface.co/owner/name", "name"),
        ("runs/made/checkpoints/step-00000001", "step-00000001"),
    ],
)  # fmt: skip
def test_samples_have_the_name_of_the_model_and_the_seed(here, given, name):
    assert naming.samples_of(given, 7, ".png") == f"{name}-seed7.png"


def test_a_run_goes_on_where_it_began_without_its_name(here, capsys):
    diffunet("train", "photos", *SMALL)
    assert "diffunet sample runs/photos" in capsys.readouterr().out
    line = refused(capsys, "train", "photos", *SMALL)
    assert "--out runs/photos exists" in line
    assert "--resume" in line
    assert "another folder" in line
    diffunet("train", "photos", "--resume", "--steps", 3)
    assert "resuming runs/photos at step 1" in capsys.readouterr().err
    assert sorted(path.name for path in Path("runs").iterdir()) == ["made", "photos"]


@pytest.mark.parametrize(
    ("words", "name", "size"),
    [
        ([], "made-seed0.png", (4 * 10 + 2, 4 * 10 + 2)),
        (["--grid", "--num", 4, "--seed", 3], "made-seed3.png", (2 * 10 + 2, 2 * 10 + 2)),
        (["--num", 1], "made-seed0.png", (8, 8)),
        (["--animate", "--num", 1], "made-seed0.webp", (8 + 4, 8 + 4)),
        (["--animate"], "made-seed0.webp", (4 * 10 + 2, 4 * 10 + 2)),
    ],
)
def test_samples_go_to_one_picture_and_never_over_another(here, capsys, words, name, size):
    words = ["sample", "runs/made", "--steps", 2, *words]
    diffunet(*words)
    assert there() == [name, "photos", "runs"]
    assert Image.open(name).size == size
    before = Path(name).read_bytes()
    line = refused(capsys, *words)
    assert f"--out {name} exists" in line
    assert "--overwrite" in line
    assert Path(name).read_bytes() == before
    diffunet(*words, "--overwrite")


def test_many_samples_go_to_a_folder_which_is_gone_on_with(here, capsys, monkeypatch):
    words = ["sample", "runs/made", "--steps", 2, "--num", 3, "--batch-size", 1]
    again = dies_at(monkeypatch, 2)
    diffunet(*words, code=128 + signal.SIGINT)
    assert len(list(Path("made-seed0").glob("*.png"))) == 2
    again()
    diffunet(*words)
    assert "2 of 3 are there" in capsys.readouterr().err
    line = refused(capsys, *words)
    assert "--out made-seed0" in line
    assert "--overwrite" in line


def test_fillings_go_to_the_current_folder(here, capsys):
    Path("album").mkdir()
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[2:5, 2:5, 3] = 0
    for name in ("a", "b"):
        Image.fromarray(pixels).save(f"album/{name}.png")
    fill = ["inpaint", "runs/made", "--steps", 2]
    diffunet(*fill, "album/a.png")
    line = refused(capsys, *fill, "album/a.png")
    assert "--out a-filled.png exists" in line
    assert "--overwrite" in line
    diffunet(*fill, "album/a.png", "--num", 2)
    assert sorted(path.name for path in Path("a-filled").glob("*.png")) == ["a-0.png", "a-1.png", "a-sheet.png"]
    diffunet(*fill, "album")
    diffunet(*fill, "album/a.png", "album/b.png")
    assert there() == ["a-filled", "a-filled.png", "album", "album-filled", "filled", "photos", "runs"]
    assert [sorted(p.name for p in Path(name).glob("*.png")) for name in ("album-filled", "filled")] == [
        ["a.png", "b.png"]
    ] * 2
    assert sorted(p.name for p in Path("album").iterdir()) == ["a.png", "b.png"]


def test_what_png_cannot_hold_has_another_suffix(here):
    Image.fromarray(np.full((8, 8, 4), 99, np.uint8), "CMYK").save("print.tif")
    diffunet("inpaint", "runs/made", "print.tif", "--box", "2,2,5,5", "--steps", 2)
    assert Image.open("print-filled.tif").mode == "CMYK"


def test_open_shows_what_was_made(here, monkeypatch):
    shown = []
    monkeypatch.setattr(viewer, "show", shown.append)
    diffunet("sample", "runs/made", "--steps", 2, "--num", 1, "--open")
    diffunet("sample", "runs/made", "--steps", 2, "--num", 2, "--open")
    fill = ["inpaint", "runs/made", "made-seed0.png", "--box", "2,2,5,5", "--steps", 2, "--open"]
    diffunet(*fill)
    diffunet(*fill, "--num", 2)
    made = ["made-seed0.png", "made-seed0", "made-seed0-filled.png", "made-seed0-filled/made-seed0-sheet.png"]
    assert shown == [Path(name) for name in made]


def test_a_machine_without_a_screen_is_told_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    viewer.show(tmp_path)
    assert capsys.readouterr().err == f"there is nothing here to open it with: {tmp_path}\n"


@pytest.mark.parametrize("what", ["http://127.0.0.1:8765/?token=x", Path("report.html")])
def test_pages_open_in_the_browser(monkeypatch, what):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    viewer.show(what)
    assert opened == [what if isinstance(what, str) else what.absolute().as_uri()]
