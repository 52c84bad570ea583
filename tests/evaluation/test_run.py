"""A run as Python has it: numbers without pandas, previews as pictures, and what a notebook shows of it."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.run_folders import line, run_folder
from PIL import Image

import diffunet
from diffunet.errors import DataError, UsageError

HOSTILE = "<script>alert('&')</script>"


def shown(run):
    """Return what a notebook shows of a run as elements: it is XML, but for an image, which nothing closes."""
    before, image, after = run._repr_html_().partition("<img ")
    return ElementTree.fromstring(before + image + (after.replace(">", "/>", 1) if image else after))


def test_a_finished_run(run):
    opened = diffunet.open_run(str(run))
    lines = [json.loads(each) for each in (run / "metrics.jsonl").read_text().splitlines()]
    assert (opened.state, opened.step, opened.steps, opened.missing) == ("done", 8, 8, [])
    assert opened.model == run / "model"
    assert opened.config.data.image_size == 8
    assert [each["step"] for each in opened.metrics] == [each["step"] for each in lines]
    expected = [(each["step"], each["loss"]) for each in lines if "loss" in each]
    assert list(zip(*opened.curve("loss"), strict=True)) == expected
    newest = sorted((run / "samples").iterdir())[-1]
    assert opened.previews[-1].name == newest.stem
    assert np.array_equal(np.asarray(opened.previews[-1]), np.asarray(Image.open(newest)))
    assert np.array_equal(
        *(np.asarray(pipe.sample(1)[0]) for pipe in (opened.load(device="cpu"), diffunet.load(run, "cpu")))
    )
    assert repr(opened) == f"<Run {run.name}: done, step 8 of 8>"


def test_numbers_that_were_not_finite_and_numbers_that_are_seldom(tmp_path):
    lines = [line(1), line(2, loss=float("nan")), {"step": 2, "validation_loss": -1.5}, line(3)]
    opened = diffunet.open_run(run_folder(tmp_path / "run", lines=lines))
    assert opened.curve("loss") == ([1, 3], [1.0, 1 / 3])
    assert opened.curve("validation_loss") == ([2], [-1.5])
    assert opened.curve("noise7")[1] == [7.0, 3.5, 7 / 3]
    assert [each["loss"] for each in opened.metrics if "loss" in each] == [1.0, None, 1 / 3]
    opened.metrics[0]["loss"] = 0  # what is handed out is the caller's own
    assert opened.curve("loss")[1][0] == 1.0
    with pytest.raises(UsageError, match=r"no .los. was measured of this run; there is .*loss, .*validation_loss"):
        opened.curve("los")


def test_a_notebook_is_shown_the_state_and_the_newest_preview(tmp_path):
    folder = run_folder(tmp_path / "run", lines=[line(1), line(40)], previews=[1, 40])
    opened = diffunet.open_run(folder)
    page = shown(opened)
    rows = {row.find("th").text: row.find("td").text for row in page.iter("tr")}
    assert rows["Step"] == "40 of 200"
    assert rows["Loss"] == "0.025"
    [image] = page.iter("img")
    assert image.get("src").startswith("data:image/png;base64,")
    assert image.get("alt") == "samples after step 40"
    assert int(image.get("width")) % 20 == 0
    assert "There is no begun.json" in "".join(page.itertext())


def test_no_text_of_a_stranger_is_more_than_text_in_a_notebook(tmp_path):
    begun = {"environment": {"device": HOSTILE, "precision": HOSTILE}}
    folder = run_folder(tmp_path / HOSTILE.replace("/", "\u2215"), begun=begun, status={"state": HOSTILE, "step": 1})
    opened = diffunet.open_run(folder)
    assert not list(shown(opened).iter("script"))
    assert "".join(shown(opened).itertext()).count(HOSTILE) == 3


def test_a_torn_preview_is_said_and_a_folder_that_is_no_run_is_refused(tmp_path):
    folder = run_folder(tmp_path / "run", previews=[1, 2])
    (folder / "samples/step-00000002.png").write_bytes(b"torn")
    opened = diffunet.open_run(folder)
    assert "The newest preview is left out" in "".join(shown(opened).itertext())
    with pytest.raises(DataError, match=r"step-00000002\.png: "):
        opened.previews  # noqa: B018
    with pytest.raises(UsageError, match="is no run folder"):
        diffunet.open_run(tmp_path)
    with pytest.raises(UsageError, match="there is no such folder"):
        diffunet.open_run(tmp_path / "nowhere")
