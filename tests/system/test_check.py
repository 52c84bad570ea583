"""`diffunet check` and `diffunet cache` as people type them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from diffunet.commands.cli import main


def diffunet(capsys, *words, code=0):
    """Run a command in this process; gives what it printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    said = capsys.readouterr()
    assert stop.value.code == code, said.err
    return said.out if code == 0 else said.err


@pytest.fixture
def pictures(tmp_path):
    """30 grey squares named after two classes, one of them rare, a copy, a broken file and a table."""
    folder = tmp_path / "p"
    folder.mkdir()
    for n in range(29):
        Image.new("RGB", (40, 30 + n), (8 * n, 8 * n, 8 * n)).save(folder / f"{'dog' if n < 27 else 'cat'}_{n}.png")
    (folder / "dog_99.png").write_bytes((folder / "dog_0.png").read_bytes())
    (folder / "bad.png").write_bytes(b"")
    return folder


def test_all_that_the_text_says_is_in_the_json(pictures, capsys):
    text = diffunet(capsys, "check", pictures, "--image-size", 16)
    content = json.loads(diffunet(capsys, "check", pictures, "--image-size", 16, "--json"))
    assert content["images"] == 30
    assert content["formats"] == {"PNG": 30}
    assert content["sizes"] == {"smallest": [40, 30], "median": [40, 43], "largest": [40, 58]}
    assert (content["duplicates"], content["grey"], content["smaller"], content["subfolders"]) == (1, True, 0, {})
    assert content["left_out"] == {"empty file": 1}
    assert content["rejected"] == [{"path": "bad.png", "reason": "empty file"}]
    assert content["split"]["training"] + content["split"]["held_out"] == 30
    assert content["cache"]["bytes"] == 3 * sum(
        16 * max(16, round(max(40, h) * 16 / min(40, h))) for h in [30, *range(30, 59)]
    )
    assert [each["option"] for each in content["try"]] == [
        "--data.labels '(.+)_\\d+'", "--data.channels 1", "--init MODEL",
    ]  # fmt: skip
    for words in ("duplicates   1 ", "left out     1: empty file 1", "bad.png: empty file", "--data.channels 1"):
        assert words in text
    assert text.count("  try ") == 3
    assert f"{content['split']['training']} to train on, {content['split']['held_out']} held out" in text


def test_classes_are_counted_and_a_rare_one_is_named(pictures, capsys):
    words = ("check", pictures, "--data.labels", r"(.+)_\d+")
    assert "cannot: " not in diffunet(capsys, *words)
    text = diffunet(capsys, *words)
    assert "1 of 31" not in text
    assert "2: dog 28, cat 2" in text
    assert "cat has 7% of the images: --data.balance draws each class equally often" in text
    content = json.loads(diffunet(capsys, *words, "--json"))
    assert content["classes"]["counts"] == {"dog": 28, "cat": 2}
    assert "--data.balance" in [each["option"] for each in content["try"]]
    balanced = json.loads(diffunet(capsys, *words, "--json", "--data.balance"))
    assert "--data.balance" not in [each["option"] for each in balanced["try"]]
    refused = diffunet(capsys, "check", pictures, "--classes")
    assert r"--data.labels '(.+)_\d+' makes 2 classes" in refused


@pytest.mark.parametrize("options", [["--data.fit", "patch", "--data.scales", 1, 0.5], ["--data.channels", 1], []])
def test_the_sheet_shows_what_the_net_sees(pictures, tmp_path, capsys, options):
    sheet = tmp_path / "sheet.png"
    diffunet(capsys, "check", pictures, "--image-size", 16, "--sheet", sheet, *options)
    shown = np.asarray(Image.open(sheet))
    assert shown.shape[:2] == (6 * 18 + 2, 6 * 18 + 2)
    assert (shown.ndim == 2) == ("--data.channels" in options)
    cells = [shown[2 + 18 * r : 18 + 18 * r, 2 + 18 * c : 18 + 18 * c] for r in range(6) for c in range(6)]
    values = [int(cell.flat[0]) for cell in cells]
    assert all((cell == value).all() for cell, value in zip(cells, values, strict=True))
    assert {value // 8 for value in values} <= {*range(29)}
    assert len({*values}) >= 28  # each of them, before any comes again
    assert "exists" in diffunet(capsys, "check", pictures, "--sheet", sheet, code=2)


def test_the_sheet_shows_deep_images_in_their_range(tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    Image.fromarray(np.full((20, 20), 4095, np.uint16)).save(tmp_path / "scans/white.png")
    Image.fromarray(np.full((20, 20), 0, np.uint16)).save(tmp_path / "scans/black.png")
    diffunet(capsys, "check", tmp_path / "scans", "--image-size", 16, "--sheet", tmp_path / "sheet.png")
    shown = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert {int(shown[10 + 18 * row, 10 + 18 * column].max()) for row in range(6) for column in range(6)} == {0, 255}
    words = ("check", tmp_path / "scans", "--data.channels", 4, "--sheet", tmp_path / "sheet.jpg")
    assert "--sheet" in diffunet(capsys, *words, code=2)


def test_what_is_kept_is_shown_and_cleared(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DIFFUNET_CACHE", str(tmp_path / "caches"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert "no decoded images are kept" in diffunet(capsys, "cache")
    diffunet(capsys, "check", pictures, "--image-size", 16, "--sheet", tmp_path / "s.png")
    said = diffunet(capsys, "cache")
    assert os.path.realpath(pictures) in said
    assert "last used today" in said
    assert "no decoded images are kept of these" in diffunet(capsys, "cache", tmp_path / "other")
    assert "no decoded images are kept of these" in diffunet(capsys, "cache", "--older-than", 1, "--clear")
    assert "deleted" in diffunet(capsys, "cache", pictures, "--clear")
    assert "no decoded images are kept" in diffunet(capsys, "cache")
    assert "no such folder" in diffunet(capsys, "cache", "--place", tmp_path / "none", code=2)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("train p --out r --train.decay cosine", "--train.cooldown"),
        ("train p --out r --data.condition q", "from one folder to another"),
        ("train p --out r --task translate", "from one folder to another"),
    ],
)
def test_what_is_not_there_is_said_with_what_there_is(capsys, words, wanted):
    said = diffunet(capsys, *words.split(), code=2)
    assert wanted in said
    assert "did you mean" not in said
