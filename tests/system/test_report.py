"""`diffunet report`: where it writes, what it refuses, and the fillings of a run that has learned to inpaint."""

import base64
import io
import re
import shutil
import webbrowser

import numpy as np
import pytest
from helpers.run_folders import line, run_folder
from helpers.small import tiny
from PIL import Image

from diffunet.commands.cli import main
from diffunet.names import MASK_KINDS
from diffunet.training.loop import train


def diffunet(capsys, *words):
    """Run a command; gives its exit code and what it printed."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code, *capsys.readouterr()


@pytest.fixture
def two(tmp_path):
    """Two run folders."""
    return [run_folder(tmp_path / name, lines=[line(1)], previews=[1]) for name in ("one", "two")]


def test_one_run_has_its_report_within_it(two, capsys):
    code, out, _ = diffunet(capsys, "report", two[0])
    assert (code, out) == (0, f"{two[0] / 'report.html'}\n")
    before = (two[0] / "report.html").read_bytes()
    assert before.startswith(b"<!doctype html>")
    assert diffunet(capsys, "report", two[0])[0] == 0, "it is written anew"


def test_several_runs_have_theirs_where_it_is_said(two, tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    path = tmp_path / "both.html"
    code, out, _ = diffunet(capsys, "report", *two, "--out", path, "--open")
    assert (code, out, opened) == (0, f"{path}\n", [path.as_uri()])
    assert "<b>one, two</b>" in path.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report"], "name a run folder|RUN"),
        (["report", "{0}", "{1}"], "--out both.html"),
        (["report", "{0}", "{0}", "--out", "b.html"], "named twice"),
        (["report", "{0}", "--out", "b.png"], "ends in .html"),
        (["report", "{0}", "--out", "{1}"], "ends in .html"),
        (["report", "{0}", "--out", "{0}/x.html"], "--overwrite"),
        (["report", "{0}/samples"], "is no run folder"),
        (["report", "{0}/nowhere"], "no such folder"),
        (["report", *(["{0}"] * 9)], "room for 8"),
        (["report", "{0}", "{1}", "--out", "b.html", "--data", "{1}"], "images of one run"),
        (["report", "{0}", "--data", "{1}"], "has learned to inpaint"),
    ],
)
def test_mistakes_are_one_line_that_says_how_to_mend_them(two, capsys, words, said):
    (two[0] / "x.html").write_text("of somebody")
    code, out, error = diffunet(capsys, *(word.format(*two) for word in words))
    assert (code, out) == (2, "")
    assert re.search(said, error)
    assert len(error.splitlines()) == 1
    assert (two[0] / "x.html").read_text() == "of somebody"


@pytest.mark.seconds
def test_a_run_that_inpaints_shows_what_it_fills_in(folder, tmp_path, capsys):
    """Each row is an image of the folder, what is left of it, and a filling that keeps what is left, byte for byte."""
    out = tmp_path / "run"
    config = tiny(diffusion={"task": "inpaint"}, data={"held_out": 0.2}, train={"steps": 2})
    train(config, folder, out)
    capsys.readouterr()
    code, _, error = diffunet(capsys, "report", out)
    assert code == 0
    assert "calls of the net" not in error
    section = (
        (out / "report.html").read_text().partition("Held-out images, masked and filled")[2].partition("Data</h2>")
    )
    rows = re.findall(r'src="data:image/png;base64,([^"]+)"[^>]*alt="mask (\w+)"', section[0])
    assert [kind for _, kind in rows] == list(MASK_KINDS)
    originals = {np.asarray(Image.open(path).convert("RGB")).tobytes() for path in folder.rglob("*.png")}
    for content, kind in rows:
        row = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))[2:-2]
        image, left, filled = (row[:, start : start + 8] for start in (2, 12, 22))
        assert image.tobytes() in originals, kind
        hole = (left == 128).all(-1)
        assert 0 < hole.mean() < 1
        assert np.array_equal(left[~hole], image[~hole])
        assert np.array_equal(filled[~hole], image[~hole])
        assert not np.array_equal(filled[hole], image[hole])


def fillings(page):
    """Return the pictures of masked and filled images on a page, as their addresses, and what is said below them."""
    section = page.partition("Held-out images, masked and filled")[2].partition("</section>")[0]
    return re.findall(r'src="(data:[^"]+)"', section), re.sub("<[^>]+>", " ", section)


@pytest.mark.seconds
def test_fillings_stay_where_the_images_have_moved(folder, tmp_path, capsys):
    """However often the report is written anew, by whom, and beside which other run."""
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folder, data)
    config = tiny(diffusion={"task": "inpaint"}, data={"held_out": 0.2}, train={"steps": 2})
    train(config, data, out)
    assert fillings((out / "report.html").read_text())[0] == []
    assert diffunet(capsys, "report", out)[0] == 0
    shown, said = fillings((out / "report.html").read_text())
    assert len(shown) == len(MASK_KINDS)
    assert "as it was after step 2" in said
    assert "diffunet report" not in said

    train(config.changed("train", steps=3), data, out, resume=True)
    assert fillings((out / "report.html").read_text())[0] == shown, "training, too, writes them anew"
    assert "Newer ones" in fillings((out / "report.html").read_text())[1]

    data.rename(tmp_path / "moved")
    code, _, error = diffunet(capsys, "report", out)
    assert code == 0
    assert re.search(r"no images are filled in: .*data.*; if its images have moved, --data says", error)
    page = (out / "report.html").read_text()
    assert fillings(page)[0] == shown
    assert "No newer ones:" in fillings(page)[1]
    other = run_folder(tmp_path / "other", lines=[line(1)])
    assert diffunet(capsys, "report", out, other, "--out", tmp_path / "both.html")[0] == 0
    assert fillings((tmp_path / "both.html").read_text())[0] == shown

    code, _, error = diffunet(capsys, "report", out, "--data", tmp_path / "nowhere")
    assert (code, len(error.splitlines())) == (3, 1)
    assert diffunet(capsys, "report", out, "--data", tmp_path / "moved")[0] == 0
    newer, said = fillings((out / "report.html").read_text())
    assert len(newer) == len(shown)
    assert newer != shown
    assert "as it was after step 3" in said
    assert len([*(out / "fillings").iterdir()]) == len(MASK_KINDS), "the former ones are gone"


@pytest.mark.parametrize(
    ("begun", "said"),
    [({}, "does not say where its images are"), ({"data_path": "/nowhere/at/all"}, "There are none: ")],
)
def test_where_nothing_can_be_filled_in_it_says_why(tmp_path, capsys, begun, said):
    config = '[diffusion]\ntask = "inpaint"\n'
    folder = run_folder(tmp_path / "run", lines=[line(1)], begun=begun, config=config)
    assert diffunet(capsys, "report", folder)[0] == 0
    assert said in (folder / "report.html").read_text()
