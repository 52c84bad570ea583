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
@pytest.mark.long
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


@pytest.mark.long
def test_options_of_masks_are_told_where_nothing_is_learned_of_masks(photos, capsys):
    masks = ["--data.all-hole", 0.5, "--data.masks", "wide"]
    words = ["train", photos, "--image-size", 8, "--steps", 2, *masks, "--dry-run"]
    diffunet(*words)
    assert "note: --data.masks, --data.all-hole: this net learns to generate" in capsys.readouterr().out
    diffunet(*words, "--task", "inpaint")
    assert "note: --data.masks" not in capsys.readouterr().out


TINY = ["--model.channels", 8, "--model.multipliers", 1, "--model.num-blocks", 1, "--train.kernels", "off"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--minutes 1 --train.steps 77", "both say when the run ends"),
        ("--steps 5 --train.minutes 3", "both say when the run ends"),
        ("--steps=5 --minutes=3", "both say when the run ends"),
        ("--steps 5 --train.steps 6", "--steps is short for --train.steps; take one"),
        ("--image-size 16 --data.image-size 32", "--image-size is short for --data.image-size; take one"),
        ("--image-size 16 --data.image_size=16", "--image-size is short for --data.image-size; take one"),
        ("--batch-size 4 --train.batch-size 2", "--batch-size is short for --train.batch-size; take one"),
        ("--seed 1 --train.seed 9", "--seed is short for --train.seed; take one"),
        ("--task generate --diffusion.task inpaint", "--task is short for --diffusion.task; take one"),
        ("--classes --data.no-classes", "--classes is short for --data.classes; take one"),
        ("--minutes 1 --train.cooldown-from 2", "--train.cooldown-from is a step; with --minutes --train.cooldown"),
        ("--train.cooldown 0.1 --train.cooldown-from 20", "and --train.cooldown-from a step: take one"),
        ("--train.half-size 0.1 --train.half-size-until 20", "and --train.half-size-until a step: take one"),
        ("--no-classes --data.labels l.csv:x", "--no-classes is a run without classes"),
        ("--no-classes --classes", "--no-classes is a run without classes"),
    ],
)
def test_options_that_say_one_thing_twice_are_refused(words, why, capsys):
    assert why in refused(capsys, "train", "photos", "--dry-run", *words.split())


@pytest.mark.long
def test_shares_that_are_typed_take_the_place_of_the_steps_of_a_file(photos, capsys):
    text = "[train]\nsteps = 100\ncooldown = 0.4\ncooldown_from = 60\nhalf_size = 0.5\nhalf_size_until = 50\n"
    Path("some.toml").write_text(text)

    def found(*words):
        diffunet("train", photos, "--config", "some.toml", "--image-size", 8, "--dry-run", *TINY, *words)
        t = tomllib.loads(capsys.readouterr().out)["train"]
        return t["half_size"], t.get("half_size_until"), t["cooldown"], t.get("cooldown_from")

    assert found() == (0.5, 50, 0.4, 60)
    assert found("--train.half-size", 0) == (0.0, None, 0.4, 60)
    assert found("--train.cooldown", 0.1)[2:] == (
        0.1,
        94,
    )  # the first 50 steps at half of the size cost as much as 12.5
    assert found("--train.cooldown", 0)[2:] == (0.0, 100)
    assert found("--minutes", 0.1, "--train.half-size", 0)[:2] == (0.0, None)


def test_no_classes_is_no_classes(photos, capsys):
    Path("some.toml").write_text('[data]\nclasses = true\nimage_size = 8\nclass_names = ["a", "b"]\n')
    for words, found in ([], ["a", "b"]), (["--no-classes"], []), (["--data.no-classes"], []):
        diffunet("train", photos, "--config", "some.toml", "--steps", 1, "--dry-run", *TINY, *words)
        content = tomllib.loads(capsys.readouterr().out)["data"]
        assert (content["classes"], content["class_names"]) == (bool(found), found)


def test_names_of_classes_are_taken_in_the_order_that_was_stated(photos, capsys):
    words = ["train", photos, "--image-size", 8, "--steps", 1, "--dry-run", *TINY]
    diffunet(*words, "--classes", "--data.class-names", "b", "a")
    assert tomllib.loads(capsys.readouterr().out)["data"]["class_names"] == ["b", "a"]
    for others in ("b zebra", "a a b", "a b zebra"):
        line = refused(capsys, *words, "--classes", "--data.class-names", *others.split())
        assert (
            f"data.class_names are {', '.join(others.split())}, and the images are of the classes a, b: leave" in line
        )
    assert "there are none without --classes" in refused(capsys, *words, "--data.class-names", "a", "b")


def test_options_of_what_was_not_chosen_are_told(photos, capsys):
    options = {"num-steps": 50, "min-snr-gamma": 2, "p2-gamma": 3, "sigmoid-bias": 4, "edm-log-mean": 1,
               "edm-log-std": 2, "label-dropout": 0.9}  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--diffusion.{name}", value)]
    diffunet("train", photos, "--out", "run", "--image-size", 8, "--steps", 1, "--train.previews", 0, *TINY, *words)
    said = capsys.readouterr().err
    for name in options:
        assert f"note: --diffusion.{name} has no effect here: it goes with " in said
    words = ["--classes", "--diffusion.label-dropout", 0.9, "--diffusion.weighting", "p2", "--diffusion.p2-gamma", 3]
    diffunet("train", photos, "--out", "other", "--image-size", 8, "--steps", 1, "--train.previews", 0, *TINY, *words)
    assert "has no effect here" not in capsys.readouterr().err


def test_whether_the_folder_is_taken_is_said_as_training_would(photos, capsys):
    words = ["train", photos, "--image-size", 8, "--steps", 1, "--dry-run", *TINY, "--out"]
    Path("empty").mkdir()
    diffunet(*words, "empty")
    assert "exists" not in capsys.readouterr().err
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    diffunet(*words, "full")
    assert "full exists: without --dry-run this takes another --out" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["--steps", "--train.steps"])
def test_another_end_than_that_of_a_config_has_a_cool_down_of_its_own(photos, end, capsys):
    Path("some.toml").write_text(
        "[data]\nimage_size = 8\n[train]\nminutes = 60\nsteps = 5000\ncooldown_from = 3000\nhalf_size = 0.0\n"
    )
    diffunet("train", photos, "--config", "some.toml", end, 100, "--dry-run", *TINY)
    content = tomllib.loads(capsys.readouterr().out)["train"]
    assert content["steps"] == 100
    assert "minutes" not in content
    assert content.get("cooldown_from", 60) == 60


def test_a_mean_that_is_stated_is_kept_also_with_a_model_to_start_from(photos, model, capsys):
    words = ["train", photos, "--init", model, "--steps", 1, "--train.kernels", "off", "--dry-run"]
    stated = ["--diffusion.mean", 0.1, 0.2, 0.3]
    means = []
    for more in ([], stated):
        diffunet(*words, *more)
        means.append(tomllib.loads(capsys.readouterr().out)["diffusion"]["mean"])
    assert means[1] == [0.1, 0.2, 0.3]
    assert max(map(abs, means[0])) < 0.09, "measured: the pictures are noise around grey"
