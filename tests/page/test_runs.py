"""The tab Runs: the report in its frame, of one run and of several, and what stays over a reload."""

import pytest
from helpers.browser import entered, ready, until
from helpers.run_folders import line, run_folder


@pytest.fixture
def runs(tmp_path):
    """Two runs of two hundred steps with their previews."""
    for name in ("one", "two"):
        lines = [line(step) for step in range(5, 205, 5)]
        run_folder(tmp_path / "runs" / name, lines=lines, previews=[40, 80], status={"state": "done", "step": 200})
    return tmp_path / "runs"


def report(page, names):
    """Wait for the report of runs of these names in the frame, with its curves; gives the frame."""
    frame = page.frame_locator("#runs-report")
    frame.locator("h1", has_text=f"Report of {names}").wait_for()
    frame.locator(".chart canvas").first.wait_for()
    return frame


def test_the_report_of_a_run_is_shown_and_works(visit, runs):
    page = visit(options={"runs": runs})
    entered(page)
    page.click("#tab-runs")
    name = page.locator("#runs label").first.inner_text()
    frame = report(page, name)
    frame.locator("#scrubber").press("Home")
    assert frame.locator(".film figcaption").inner_text() == "Step 40"
    other = page.locator("#runs input").nth(1)
    other.check()
    assert sorted(report(page, f"{name}, ").locator("h1 b").inner_text().split(", ")) == ["one", "two"]
    page.locator("#runs input").first.uncheck()
    page.click("#runs-refresh")
    last = page.locator("#runs label").nth(1).inner_text()
    report(page, last)
    page.reload()
    ready(page)
    report(page, last)
    assert page.locator("#runs input").nth(1).is_checked()
    page.locator("#runs input").nth(1).uncheck()
    until(page, "document.getElementById('runs-report').getAttribute('src') === 'about:blank'")


def test_a_report_can_reach_neither_the_page_nor_the_server(visit, runs):
    """Not even a script that got into it after all: it is of no origin, and may ask for nothing."""
    page = visit(options={"runs": runs}, expected=["Content Security Policy", "Blocked a frame"])
    entered(page)
    page.click("#tab-runs")
    report(page, "")
    [frame] = page.frames[1:]
    assert frame.evaluate("window.origin") == "null"
    reached = "(() => { try { return parent.document.title } catch (error) { return error.name } })()"
    assert frame.evaluate(reached) == "SecurityError"
    assert frame.evaluate("fetch('/api/model').then(() => 'answered', () => 'refused')") == "refused"


def test_it_opens_in_a_tab_of_its_own(visit, runs):
    page = visit(options={"runs": runs})
    entered(page)
    page.click("#tab-runs")
    report(page, "")
    with page.expect_popup() as opened:
        page.click("#runs-alone")
    assert opened.value.locator("h1").inner_text().startswith("Report of ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_the_scheme_of_the_system(visit, runs, scheme):
    page = visit(options={"runs": runs}, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    entered(page)
    page.click("#tab-runs")
    ground = report(page, "").locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    light = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) / 3
    assert light > 200 if scheme == "light" else light < 60
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("#runs-report").bounding_box()
    assert (box["width"], box["height"]) >= (340, 500)
