"""For everybody: by keyboard alone, at the width of a phone, in both schemes, and to readers of screens."""

from pathlib import Path

import pytest
from helpers.browser import drag, entered, mask, opened, picture, starts
from helpers.run_folders import line, run_folder

NARROW = {"width": 360, "height": 740}


def test_all_but_free_drawing_by_keyboard_alone(visit, tmp_path):
    (tmp_path / "holiday.png").write_bytes(picture(60, 40))
    page = visit(tmp_path / "holiday.png")
    entered(page)

    def tab_to(id):
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == id:
                return
        raise AssertionError(f"{id} is not reached by Tab")

    page.locator("summary", has_text="Box").focus()
    page.keyboard.press("Enter")
    tab_to("box-x0")
    page.keyboard.press("Control+a")
    page.keyboard.type("10")
    tab_to("add-box")
    page.keyboard.press("Enter")
    assert mask(page).any()
    tab_to("fill")
    page.keyboard.press("Enter")
    page.wait_for_selector("#result-bar:visible")
    tab_to("use")
    page.keyboard.press("Enter")
    starts(page, "facts", "holiday-filled")


def test_on_a_phone(visit):
    page = visit(viewport=NARROW)
    box = opened(page)
    drag(page, [(box["x"] + 60, box["y"] + 150), (box["x"] + 200, box["y"] + 180)])
    assert mask(page).any()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert page.locator("#fill").bounding_box()["y"] < NARROW["height"]
    page.click("#fill")
    page.wait_for_selector("#result-bar:visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_found_by_axe(visit, tmp_path, scheme):
    import axe_playwright_python

    script = next(Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")).read_text(encoding="utf-8")
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "a.png").write_bytes(picture(30, 20))
    run_folder(tmp_path / "runs" / "one", lines=[line(5), line(10)])
    page = visit(tmp_path / "album", options={"out": tmp_path / "out", "runs": tmp_path / "runs"}, color_scheme=scheme)

    def check(state):
        page.evaluate(f"{script}; null")
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [(each["id"], each["nodes"][0]["html"][:120]) for each in found if each["impact"] in BAD]
        assert serious == [], state

    entered(page)
    check("empty")
    opened(page, picture(60, 40))
    page.keyboard.press("i")
    page.click("#fill")
    page.wait_for_selector("#result-bar:visible")
    check("filled")
    page.click("#help")
    check("keys")
    page.keyboard.press("Escape")
    page.click("#tab-generate")
    page.fill("#generate-num", "2")
    page.click("#generate")
    page.wait_for_selector("#generate-command-block:visible")
    check("generated")
    page.locator("#generate-results button").first.click()
    check("one of them")
    page.keyboard.press("Escape")
    page.click("#tab-folder")
    page.wait_for_selector("#folder-images button")
    check("folder")
    page.click("#tab-runs")
    page.frame_locator("#runs-report").locator("h1").wait_for()
    check("runs")


BAD = ("serious", "critical")
