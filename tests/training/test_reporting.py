"""What training writes for people, RUN/report.html and what it is made of, without a bit of the training changed."""

import json
import logging
import time

import numpy as np
import pytest
from helpers.run_folders import line, run_folder
from helpers.runs import assert_same_run, stop_at
from helpers.small import tiny
from PIL import Image

from diffunet.errors import Stopped
from diffunet.evaluation import run_page
from diffunet.pictures import images
from diffunet.training import reporting
from diffunet.training.loop import train


def cells(path, side, columns=6):
    """Return the pictures of a grid, uint8 [N side side C], white ones left out."""
    grid = np.asarray(Image.open(path))
    step = side + 2
    found = [
        grid[top : top + side, left : left + side]
        for top in range(2, grid.shape[0] - side, step)
        for left in range(2, 2 + columns * step - 2, step)
    ]
    return np.array([each for each in found if (each < 255).any()])


def captured(into):
    """Return a loss function that keeps the clean images of every step, with what is known of them."""

    def loss(denoised, x0, sigma):
        into.append(images.to_uint8(x0))
        return ((denoised.x0 - x0) ** 2).mean(dim=(1, 2, 3))

    return loss


def test_a_run_leaves_a_report_of_how_it_ended(run):
    page = (run / "report.html").read_text()
    assert '<span class="chip done">done</span>' in page
    assert "<dd>8 of 8</dd>" in page
    begun = json.loads((run / "begun.json").read_text())
    assert begun["images"]["classes"] == {"disc": 20, "square": 20}
    assert begun["images"]["training"] + begun["images"]["held_out"] == begun["images"]["images"] == 40
    assert begun["images"]["sizes"] == {name: [8, 8] for name in ("smallest", "median", "largest")}
    assert begun["environment"]["device"] in page


def test_what_was_left_out_is_noted(folder, tmp_path):
    data = tmp_path / "data"
    for n, path in enumerate(sorted(folder.rglob("*.png"))):
        (data / path.parent.name).mkdir(parents=True, exist_ok=True)
        (data / path.parent.name / f"{n}.png").write_bytes(path.read_bytes())
    (data / "disc" / "again.png").write_bytes((data / "disc" / "3.png").read_bytes())
    (data / "square" / "<b>torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    train(tiny(train={"steps": 1}), data, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "begun.json").read_text())["images"]
    assert (facts["images"], facts["copies"], facts["rejected"]) == (41, 1, 1)
    assert facts["reasons"][0][0] == "square/<b>torn.png"
    assert "square/&lt;b&gt;torn.png" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("data", [{}, {"augment": 0.9}, {"fit": "random"}])
def test_the_sheet_has_the_images_that_the_net_is_shown(folder, tmp_path, data):
    """They are those that a loss function is given at the first steps."""
    seen = []
    held_out = {"held_out": 0.0}
    train(tiny(data=data | held_out, train={"steps": 6}), folder, tmp_path / "run", loss=captured(seen))
    shown = cells(tmp_path / "run" / "images.png", 8)
    assert len(shown) == 36
    assert np.array_equal(shown, np.concatenate(seen)[:36])


def test_the_sheet_of_a_run_that_inpaints_shows_what_is_hole(folder, tmp_path):
    seen, held_out = [], {"held_out": 0.0}
    config = tiny(data=held_out, diffusion={"task": "inpaint"}, train={"steps": 6})
    train(config, folder, tmp_path / "run", loss=captured(seen))
    shown, clean = cells(tmp_path / "run" / "images.png", 8).astype(int), np.concatenate(seen)[:36].astype(int)
    known = (shown == clean).all(-1)
    covered = (0.75 * np.array(reporting.HOLE) + 0.25 * clean).astype(np.uint8)
    assert (shown == np.where(known[..., None], clean, covered)).all()
    assert 0.1 < known.mean() < 0.9
    assert not known.reshape(36, -1).all(1).any(), "every image has a hole"


def test_not_a_bit_of_the_training_depends_on_it(folder, tmp_path, monkeypatch):
    config = tiny(data={"augment": 0.5}, train={"sample_every": 2})
    train(config, folder, tmp_path / "with")
    for name in ("begin", "write", "end"):
        monkeypatch.setattr(reporting.Reports, name, lambda *_: None)
    train(config, folder, tmp_path / "without")
    assert not (tmp_path / "without" / "report.html").exists()
    assert_same_run(tmp_path / "with", tmp_path / "without", 8)


@pytest.mark.parametrize("broken", ["run_page.write", "summary.summary"])
def test_where_it_fails_training_goes_on_and_says_it_once(folder, tmp_path, monkeypatch, caplog, broken):
    def fail(*_):
        raise OSError("no room for a report")

    monkeypatch.setattr(f"diffunet.training.reporting.{broken}", fail)
    with caplog.at_level(logging.WARNING):
        train(tiny(train={"sample_every": 2}), folder, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    assert sum("no room for a report" in record.message for record in caplog.records) == 1


def test_a_stopped_run_says_so_and_how_to_go_on(folder, tmp_path):
    with pytest.raises(Stopped):
        train(tiny(train={"sample_every": 2}), folder, tmp_path / "run", on_step=stop_at(5))
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<span class="chip stopped">stopped</span>' in page
    assert f"diffunet train {folder} --out {tmp_path / 'run'} --resume" in page


def test_reports_take_a_bounded_share_of_the_time(tmp_path, monkeypatch):
    """By a clock on which a report takes 2 s, and training 10 s between previews."""
    now, written = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(runs, path):
        written.append(now[0])
        now[0] += 2.0

    monkeypatch.setattr(run_page, "write", slow)
    reports = reporting.Reports(run_folder(tmp_path / "run", lines=[line(1)]))
    for _ in range(100):
        now[0] += 10.0
        reports.write()
    assert written[0] == 110.0, "the first comes at once"
    assert 4 <= len(written) <= 6
    assert np.diff(written).min() >= 2.0 / reporting.COST
