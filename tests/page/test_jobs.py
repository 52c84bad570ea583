"""Filling in and generating on the page: what comes out, how it is cancelled, and what a reload leaves."""

import io
import os
import shlex

import numpy as np
import pytest
from helpers.browser import drag, entered, mask, middle, opened, picture, ready, same, starts, until
from PIL import Image

from diffunet.commands.cli import main
from diffunet.web import serving


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


def test_an_option_out_of_its_range_is_said_at_its_field_by_keys_too(visit):
    page = visit()
    opened(page)
    marked(page)
    for field, wrong, right in (
        ("guidance", "60", "1"),
        ("feather", "5000", "0"),
    ):  # the second in a part that is closed
        page.evaluate(f"document.getElementById({field!r}).value = {wrong!r}")
        page.locator("#canvas").focus()
        page.keyboard.press("Control+Enter")
        until(page, f"document.activeElement.id === {field!r}")
        assert page.locator("#results button").count() == 0
        page.fill(f"#{field}", right)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result-bar:visible")
    page.click("#tab-generate")
    page.fill("#generate-steps", "20000")
    page.keyboard.press("Control+Enter")
    until(page, "document.activeElement.id === 'generate-steps'")
    assert page.locator("#generate-results button").count() == 0


def test_what_is_said_of_a_mask_goes_with_its_picture(visit):
    page = visit()
    opened(page)
    marked(page)
    page.click("#invert")
    page.click("#fill")
    page.wait_for_selector("#said:visible")
    assert "fills 9" in page.inner_text("#said")
    page.wait_for_selector("#result-bar:visible")
    page.set_input_files("#file", {"name": "other.png", "mimeType": "image/png", "buffer": picture(80, 60)})
    starts(page, "facts", "other.png")
    assert page.locator("#said").is_hidden()


def test_a_duplicated_tab_has_a_picture_and_a_mask_of_its_own(visit):
    page = visit()
    opened(page)
    drawn = marked(page)
    with page.context.expect_page() as opening:  # a window that a page opens has a copy of its storage, as a duplicate
        page.evaluate("() => { window.open(location.href) }")
    second = opening.value
    ready(second)
    starts(second, "facts", "holiday.png")
    same(mask(second), drawn)
    second.set_input_files("#file", {"name": "other.png", "mimeType": "image/png", "buffer": picture(300, 200)})
    starts(second, "facts", "other.png")
    page.reload()
    ready(page)
    starts(page, "facts", "holiday.png")
    same(mask(page), drawn)
    second.reload()
    ready(second)
    starts(second, "facts", "other.png")
    assert not mask(second).any()


def test_another_picture_of_a_server_that_was_started_anew_is_not_taken_for_the_one_that_is_shown(
    visit, pipe, model, tmp_path
):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(picture())
    first = serving.serve(pipe, tmp_path / "a.png", model=str(model), port=0, host="127.0.0.1")
    page = visit(served=first, expected=["Failed to load", "ERR_"])
    entered(page)
    starts(page, "facts", "a.png")
    marked(page)
    first.close()
    second = serving.serve(pipe, tmp_path / "b.png", model=str(model), port=first.port, host="127.0.0.1")
    try:
        tab = page.context.new_page()  # as a person opens the new address, which lets in the old tab, too
        tab.address = second.url
        entered(tab)
        starts(tab, "facts", "b.png")
        page.click("#fill")
        until(page, "document.getElementById('error').textContent.includes('has forgotten the picture')")
        assert page.locator("#results button").count() == 0
    finally:
        second.close()
