"""Where pictures go: written as they are made, completed after an interrupt, never mixed with those of another run."""

import json
import os
from functools import partial

import numpy as np
import pytest
from helpers.commands import dies_at, diffunet, refused
from helpers.small import tiny
from PIL import Image

from diffunet.commands import records
from diffunet.training.loop import train


def pictures(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture
def killed(monkeypatch):
    """`killed(n)`: see `dies_at`."""
    return partial(dies_at, monkeypatch)


def sample(run, out, *more, num=7):
    return ["sample", run, "--out", out, "--num", num, "--steps", 2, "--batch-size", 3, "--sampler", "ddpm", *more]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_an_interrupted_sampling_is_completed_to_the_bit(n, resume, run, killed, tmp_path, capsys):
    diffunet(*sample(run, tmp_path / "whole"))
    revive = killed(n)
    diffunet(*sample(run, tmp_path / "part"), code=130)
    assert f"{n} of 7 images are in" in capsys.readouterr().err
    before = pictures(tmp_path / "part")
    assert len(before) == n
    revive()
    diffunet(*sample(run, tmp_path / "part", *resume))
    assert f"{n} of 7 are there" in capsys.readouterr().err
    assert pictures(tmp_path / "part") == pictures(tmp_path / "whole")
    assert {path.suffix for path in (tmp_path / "part").iterdir()} == {".png", ".jsonl"}


def test_more_of_the_same_and_another_seed_go_beside_it(run, tmp_path, capsys):
    out = tmp_path / "out"
    diffunet(*sample(run, out, num=3))
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert "exists" in refused(capsys, *sample(run, out, num=3))
    diffunet(*sample(run, out, "--resume", num=3))
    diffunet(*sample(run, out, "--resume", num=6))
    diffunet(*sample(run, out, "--seed", 1, num=2))
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}.items() >= times.items()
    diffunet(*sample(run, tmp_path / "whole", num=6))
    diffunet(*sample(run, tmp_path / "whole", "--seed", 1, num=2))
    assert pictures(out) == pictures(tmp_path / "whole")


def test_two_runs_never_mix(run, folder, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    train(tiny(train={"seed": 5, "steps": 2, "validate_every": 2}), folder, other)
    diffunet(*sample(run, out, num=4))
    before = pictures(out)
    for words, why in (
        (sample(other, out, num=4), "made by another model"),
        (sample(run, out, "--guidance", 2, num=4), "made with another guidance, 1.0, not 2.0"),
        (sample(run, out, "--threshold", "static", num=8), "made with another threshold, none, not static"),
    ):
        for more in ([], ["--resume"]):
            assert why in refused(capsys, *words, *more)
    assert pictures(out) == before
    diffunet(*sample(other, out, "--overwrite", num=2))  # and none of the other model's stay
    diffunet(*sample(other, tmp_path / "alone", num=2))
    assert pictures(out) == pictures(tmp_path / "alone")
    Image.new("RGB", (4, 4)).save(out / "0-00004-disc.png")
    assert "made.jsonl does not say" in refused(capsys, *sample(other, out, "--resume", num=5))


def test_what_overwriting_left_behind_is_not_taken_for_the_new(run, killed, tmp_path):
    out = tmp_path / "out"
    diffunet(*sample(run, out, num=5))
    revive = killed(2)
    diffunet(*sample(run, out, "--threshold", "static", "--overwrite", num=5), code=130)
    revive()
    diffunet(*sample(run, out, "--threshold", "static", "--overwrite", "--resume", num=5))
    diffunet(*sample(run, tmp_path / "alone", "--threshold", "static", num=5))
    assert pictures(out) == pictures(tmp_path / "alone")


def test_a_torn_note_and_a_changed_batch(run, tmp_path, capsys):
    out = tmp_path / "out"
    diffunet(*sample(run, out, num=4))
    with (out / records.NAME).open("a") as file:
        file.write('{"run": "x", "pict')
    (out / "0-00001-square.png").unlink()
    diffunet(*sample(run, out, "--resume", "--batch-size", 2, num=4))
    assert "2 at a time and not 3" in capsys.readouterr().err
    assert len(pictures(out)) == 4
    lines = (out / records.NAME).read_text().splitlines()
    assert json.loads(lines[-1])["pictures"] == ["0-00001-square.png"]


def test_folders_with_dots(run, tmp_path, capsys):
    (tmp_path / "w1.5").mkdir()
    picture = next(run.glob("samples/*.png"))
    for out in (tmp_path / "w1.5", f"{tmp_path}/new.v2/", tmp_path / "run-2026.11.26"):
        diffunet(*sample(run, out, num=2))
        assert len(pictures(tmp_path / os.path.basename(str(out).rstrip("/")))) == 2
    box = ["--box", "2,2,5,5", "--steps", 1, "--method", "replace"]
    for out in (tmp_path / "w1.5", tmp_path / "mended.v2", f"{tmp_path}/x.png/"):
        diffunet("inpaint", run, picture, *box, "--out", out)
    assert (tmp_path / "x.png" / picture.name).is_file()
    assert "must end in one of" in refused(capsys, *sample(run, tmp_path / "x.pgn", num=1))
    assert "--resume goes with a folder" in refused(capsys, *sample(run, tmp_path / "x.png.png", "--resume", num=1))


def test_a_file_that_cannot_hold_the_pictures_is_refused_before_they_are_made(folder, tmp_path, capsys, monkeypatch):
    from diffunet.sampling.pipeline import Pipeline

    clear = tiny(data={"channels": 4}, train={"steps": 2, "validate_every": 2, "previews": 0})
    train(clear, folder, tmp_path / "run")
    monkeypatch.setattr(Pipeline, "stream", lambda *a, **k: pytest.fail("it samples"))
    for suffix in (".jpg", ".bmp", ".JPEG"):
        out = tmp_path / f"x{suffix}"
        assert "holds no transparency" in refused(capsys, "sample", tmp_path / "run", "--out", out, "--grid")
        assert not out.exists()


def test_a_gif_is_said_to_have_few_colours(run, tmp_path, capsys):
    diffunet(*sample(run, tmp_path / "x.gif", "--grid", num=2))
    assert "a GIF has 256 colours" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_an_animation_ends_with_the_pictures(suffix, run, tmp_path, capsys):
    diffunet(*sample(run, tmp_path / "x.png", "--grid", num=5))
    diffunet(*sample(run, tmp_path / f"film{suffix}", "--grid", "--animate", num=5))
    film, still = Image.open(tmp_path / f"film{suffix}"), np.asarray(Image.open(tmp_path / "x.png"))
    assert film.n_frames == 2
    first = np.asarray(film.convert("RGB")).astype(int)
    film.seek(1)
    last = np.asarray(film.convert("RGB")).astype(int)
    assert abs(last - still).mean() <= (8 if suffix == ".gif" else 0)
    assert abs(first - still).max() > 40
    assert "holds no animation" in refused(capsys, *sample(run, tmp_path / "x.jpg", "--grid", "--animate"))
    assert "is a folder" in refused(capsys, *sample(run, tmp_path / "x", "--animate"))


def test_variations_of_a_picture(run, tmp_path, capsys):
    picture = next(run.glob("samples/*.png"))
    near = [*sample(run, tmp_path / "near", num=2), "--from", picture, "--strength", 0.5]
    diffunet(*near)
    assert "another from" in refused(capsys, *sample(run, tmp_path / "near", num=2)).replace(", ", " ")
    assert "strength" in refused(capsys, *near[:-1], 1.5)
    assert "cannot be read" in refused(capsys, *sample(run, tmp_path / "no", "--from", tmp_path / "none.png"))


def test_inpainting_goes_on_where_it_was_broken_off(run, tmp_path, capsys):
    album, out = tmp_path / "album", tmp_path / "out"
    (album / "deeper").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "deeper/c.png")):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(album / name)
    words = ["inpaint", run, album, "--box", "2,2,6,6", "--steps", 1, "--method", "replace", "--out"]
    diffunet(*words, tmp_path / "whole")
    diffunet(*words, out)
    (out / "b.png").unlink()
    kept = (out / "a.png").stat().st_mtime_ns
    assert "exists" in refused(capsys, *words, out)
    diffunet(*words, out, "--resume")
    assert "2 of 3 images are filled" in capsys.readouterr().err
    assert pictures(out) == pictures(tmp_path / "whole")
    assert (out / "a.png").stat().st_mtime_ns == kept
    assert "another seed, 0, not 1" in refused(capsys, *words, out, "--resume", "--seed", 1)
    Image.new("RGB", (12, 12)).save(album / "a.png")
    (out / "b.png").unlink()
    assert "another image or mask" in refused(capsys, *words, out, "--resume")
    assert not (out / "b.png").exists()
    diffunet(*words, out, "--resume", "--overwrite")
    assert np.asarray(Image.open(out / "a.png"))[0, 0].tolist() == [0, 0, 0]


def test_a_note_of_anybody_names_no_file_elsewhere(run, tmp_path, capsys):
    """`made.jsonl` of a folder that was downloaded: overwriting deletes nothing that such a file names outside."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "in").mkdir()
    lines = [
        {"run": "x", "options": {"command": "sample", "seed": 0, "label": None}},
        {"run": "x", "pictures": ["../notes.txt"]}, {"run": "x", "pictures": [str(tmp_path / "notes.txt")]},
        {"run": "y", "options": [1]}, {"run": "y", "pictures": 3}, {"run": "y", "pictures": [[]]}, [], 3, None,
        {"run": [1], "pictures": ["a"]}, {"run": "x", "pictures": ["sub", "", "sub.png", "l/thesis.png", "mine.txt"]},
    ]  # fmt: skip
    for name in ("sub", "sub.png"):
        (tmp_path / "in" / name).mkdir()
    (tmp_path / "in/mine.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.png").write_text("mine")
    (tmp_path / "in/l").symlink_to(tmp_path / "other")
    (tmp_path / "in" / records.NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    diffunet(*sample(run, tmp_path / "in", "--overwrite", num=1))
    for name in ("notes.txt", "in/mine.txt", "other/thesis.png"):
        assert (tmp_path / name).read_text() == "mine"
    assert "deleted" not in capsys.readouterr().err


def test_overwriting_replaces_the_class_that_is_asked_for_and_says_what_it_deletes(run, tmp_path, capsys):
    out = tmp_path / "out"
    diffunet(*sample(run, out, "--label", "disc", num=3))
    diffunet(*sample(run, out, "--label", "square", num=2))
    squares = {path: path.read_bytes() for path in out.glob("*-square.png")}
    assert len(squares) == 2
    capsys.readouterr()
    diffunet(*sample(run, out, "--label", "disc", "--threshold", "static", "--overwrite", num=1))
    assert f"deleted 2 other pictures of seed 0 in {out}" in capsys.readouterr().err
    assert len(list(out.glob("*-disc.png"))) == 1
    assert {path: path.read_bytes() for path in out.glob("*-square.png")} == squares


def test_what_the_demo_did_not_make_is_not_overwritten(tmp_path, capsys):
    for name, file in (("run", "thesis.txt"), ("run", "config.toml"), ("digits", "thesis.txt")):
        out = tmp_path / f"{name}-{file}"
        (out / name / "checkpoints").mkdir(parents=True)
        (out / name / file).write_text("mine")
        line = refused(capsys, "demo", "--out", out, "--seconds", 1, "--overwrite")
        assert "is not overwritten; remove it yourself" in line
        assert (out / name / file).read_text() == "mine"


def test_pairs_of_an_evaluation_do_not_replace_a_picture(run, folder, tmp_path, capsys):
    (tmp_path / "holiday.png").write_bytes(b"mine")
    words = ["evaluate", run, folder, "--num", 6, "--steps", 1, "--pairs", tmp_path / "holiday.png"]
    assert "holiday.png exists; choose another, or say --overwrite" in refused(capsys, *words)
    assert (tmp_path / "holiday.png").read_bytes() == b"mine"
    line = refused(capsys, "evaluate", run, folder, "--overwrite")
    assert line == "diffunet: --overwrite is about --pairs FILE, and there is none"


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "RUN", "--out", "LONG.png", "--num", 1], ["status", "LONG"], ["report", "LONG"],
        ["convert", "RUN", "LONG/m"], ["inpaint", "RUN", "LONG.png"],
        ["train", "FOLDER", "--out", "LONG", "--steps", 1, "--image-size", 8, "--dry-run"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_name_that_no_system_takes_is_told_in_a_line(run, folder, capsys, words):
    known = {"RUN": str(run), "FOLDER": str(folder)}
    words = [known.get(word, str(word).replace("LONG", "a" * 300)) for word in words]
    assert refused(capsys, *words).endswith("File name too long")
