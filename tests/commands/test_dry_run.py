"""`train --dry-run`: what it prints is a config, with reasons; that config chooses the same again; nothing is made."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import diffunet, refused
from PIL import Image

from diffunet.training import recipe


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """12 pictures in two classes and a file that is none, in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for i in range(12):
        path = Path("photos", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    Path("photos/a/broken.png").write_bytes(b"no picture")
    return Path("photos")


WORDS = ["--image-size", 8, "--classes"]


@pytest.mark.parametrize(
    "end",
    [["--minutes", 0.02], pytest.param(["--steps", 30, "--batch-size", 4], marks=pytest.mark.slow)],
    ids=["minutes", "steps"],
)
def test_its_output_is_a_config_that_chooses_the_same(photos, end, capsys, monkeypatch):
    monkeypatch.setattr(recipe, "SECONDS", 0.01)
    diffunet("train", photos, *WORDS, *end, "--dry-run")
    first = capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == ["photos"]
    Path("plan.toml").write_text(first)
    diffunet("train", photos, "--config", "plan.toml", "--dry-run")
    content = tomllib.loads(first)
    assert content == tomllib.loads(capsys.readouterr().out)
    assert content["data"]["class_names"] == ["a", "b"]
    assert content["train"].get("minutes", content["train"].get("steps")) == end[1]
    comments = [line for line in first.splitlines() if line.startswith("#")]
    for words in ("usable: 12 images; rejected: 1", "broken.png: ", "classes: a (6), b (6)", "M parameters",
                  "speed: ", "net: ", "batch: ", "learning rate: ", "memory: ", "cache: ", "time: "):  # fmt: skip
        assert any(words in line for line in comments), words
    if "--steps" in end:
        assert any("batch: 4, as asked" in line for line in comments)


@pytest.mark.slow
def test_a_run_by_its_output_is_the_run_that_was_shown(photos, capsys):
    diffunet("train", photos, *WORDS, "--steps", 2, "--batch-size", 4, "--train.previews", 0, "--dry-run")
    shown = capsys.readouterr().out
    Path("plan.toml").write_text(shown)
    diffunet("train", photos, "--config", "plan.toml")
    assert tomllib.loads(Path("runs/photos/config.toml").read_text()) == tomllib.loads(shown)
    diffunet("train", photos, "--config", "plan.toml", "--dry-run")
    assert "runs/photos exists" in capsys.readouterr().err


def test_it_shows_new_runs_alone(photos, capsys):
    assert "--resume" in refused(capsys, "train", photos, *WORDS, "--resume", "--dry-run")
    assert "take one" in refused(capsys, "train", photos, "--steps", 2, "--minutes", 1, "--dry-run")
    assert "nowhere" in refused(capsys, "train", "nowhere", "--dry-run", code=3)
    assert sorted(path.name for path in Path().iterdir()) == ["photos"]


def test_options_of_masks_are_told_where_nothing_is_learned_of_masks(photos, capsys):
    masks = ["--data.all-hole", 0.5, "--data.masks", "wide"]
    words = ["train", photos, "--image-size", 8, "--steps", 2, *masks, "--dry-run"]
    diffunet(*words)
    assert "note: --data.masks, --data.all-hole: this net learns to generate" in capsys.readouterr().out
    diffunet(*words, "--task", "inpaint")
    assert "note: --data.masks" not in capsys.readouterr().out
