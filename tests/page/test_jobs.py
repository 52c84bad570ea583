"""Filling in and generating on the page: what comes out, how it is cancelled, and what a reload leaves."""

import io
import os
import shlex

import numpy as np
import pytest
from helpers.browser import drag, entered, mask, middle, opened, picture, ready, same, starts, until
from PIL import Image

from diffunet.commands.cli import main


def marked(page):
    """Draw a stroke, and choose a way of filling in that takes little time; gives the mask."""
    box = page.locator("#canvas").bounding_box()
    x, y = middle(box)
    drag(page, [(x - 50, y), (x + 50, y)])
    page.select_option("#method", "replace")
    page.fill("#steps", "4")
    page.fill("#num", "1")
    return mask(page)


def test_what_is_downloaded_is_what_the_command_makes(visit, tmp_path):
    """It differs from the original inside the mask only, and the command is the one that the page shows."""
    page = visit(options={"out": tmp_path / "saved"})
    opened(page)
    drawn = marked(page)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result-bar:visible")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "holiday-filled.png"
    download.value.save_as(tmp_path / "downloaded.png")
    page.click("#back")
    with page.expect_download() as download:
        page.click("#save-mask")
    download.value.save_as(tmp_path / "holiday-mask.png")
    (tmp_path / "holiday.png").write_bytes(picture())
    words = shlex.split(page.locator("#command").text_content())
    assert words[:2] == ["diffunet", "inpaint"]
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(SystemExit) as stop:
            main(words[1:])
    finally:
        os.chdir(here)
    assert stop.value.code == 0
    made = (tmp_path / words[words.index("--out") + 1]).read_bytes()
    assert made == (tmp_path / "downloaded.png").read_bytes()
    before, after = (np.asarray(Image.open(io.BytesIO(each))) for each in (picture(), made))
    differs = (before != after).any(axis=2)
    assert differs.any()
    assert not (differs & ~drawn).any()
    page.click("#results button")
    page.click("#save")
    starts(page, "status", "Saved")
    assert (tmp_path / "saved" / "picture-filled.png").read_bytes() == made


def test_cancelled_and_filled_again(visit, going):
    page = visit()
    opened(page)
    drawn = marked(page)
    going.clear()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#cancel:visible")
    page.click("#cancel")
    going.set()
    page.wait_for_selector("#cancel", state="hidden")
    assert "cancelled" in page.inner_text("#status")
    same(mask(page), drawn)
    page.click("#fill")
    page.wait_for_selector("#result-bar:visible")
    same(mask(page), drawn)


def test_a_reload_loses_nothing_and_finds_the_job_again(visit, going):
    page = visit()
    opened(page)
    drawn = marked(page)
    page.fill("#num", "3")
    page.fill("#seed", "5")
    page.locator("#canvas").focus()
    going.clear()
    page.keyboard.press("Shift+R")
    page.wait_for_selector("#cancel:visible")
    page.reload()
    ready(page)
    same(mask(page), drawn)
    assert (page.input_value("#seed"), page.input_value("#num"), page.input_value("#method")) == ("5", "3", "replace")
    going.set()
    page.wait_for_selector("#results button:not([disabled])")
    until(page, "document.querySelectorAll('#results button').length === 3")
    page.wait_for_selector("#cancel", state="hidden")
    page.click("#results button")
    page.wait_for_selector("#result-bar:visible")
    page.locator("#canvas").focus()
    page.keyboard.press("ArrowRight")
    assert "2 of 3" in page.inner_text("#result-title")
    page.click("#use")
    starts(page, "facts", "holiday-filled-1")
    assert not mask(page).any()


def test_a_filling_is_compared_with_the_original(visit):
    page = visit()
    opened(page)
    drawn = marked(page)
    page.click("#fill")
    page.wait_for_selector("#result-bar:visible")
    page.locator("#compare").focus()
    page.keyboard.press("ArrowRight")
    assert page.input_value("#compare") == "1"
    page.locator("#canvas").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "compare"  # Tab moves on; held, it shows the original
    box, view = page.locator("#canvas").bounding_box(), page.evaluate("diffunet.view()")
    x, y = box["x"] + view["x"] + 0.01 * 300 * view["scale"], middle(box)[1]
    drag(page, [(x, y), (x + 100, y)])
    assert float(page.input_value("#compare")) > 5
    same(mask(page), drawn)  # the slider was moved, and nothing drawn


def test_an_empty_mask_is_said_and_transparency_needs_none(visit):
    page = visit()
    opened(page)
    page.click("#fill")
    page.wait_for_selector("#error:visible")
    assert "mask" in page.inner_text("#error")
    opened(page, picture(40, 30, clear=(10, 20)), "cut-out.png")
    page.select_option("#method", "replace")
    page.fill("#steps", "2")
    page.click("#fill")
    page.wait_for_selector("#result-bar:visible")


def test_generated_pictures_and_the_folder(visit, tmp_path):
    (tmp_path / "album").mkdir()
    for n in range(3):
        (tmp_path / "album" / f"view-{n}.png").write_bytes(picture(30 + n, 20))
    page = visit(tmp_path / "album", options={"out": tmp_path / "out"})
    entered(page)
    page.click("#empty-generate")
    page.fill("#generate-num", "4")
    page.click("#generate")
    page.wait_for_selector("#generate-command-block:visible")
    assert page.locator("#generate-results button").count() == 4
    page.locator("#generate-results button").nth(1).click()
    page.keyboard.press("ArrowRight")
    assert "3 of 4" in page.inner_text("#viewer-title")
    page.click("#viewer-use")
    until(page, "!document.getElementById('viewer').open")
    page.click("#tab-folder")
    page.locator("#folder-images button").nth(2).click()
    starts(page, "facts", "view-2.png")
    marked(page)
    page.click("#tab-folder")
    page.click("#folder-fill")
    page.wait_for_selector("#folder-progress:visible")
    page.wait_for_selector("#folder-progress", state="hidden")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"view-0.png", "view-1.png", "view-2.png"}


def test_a_server_that_ends_is_said(visit, site):
    page = visit(expected=["Failed to load", "ERR_"])
    opened(page)
    page.served.close()
    until(page, "document.getElementById('error').textContent.includes('does not answer')")
