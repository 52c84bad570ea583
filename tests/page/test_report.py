"""The report of runs in a real browser, from a file: what is drawn, what moves, and that it asks for nothing."""

import json
import os
import shutil

import pytest
from helpers.run_folders import line, run_folder

from diffunet.evaluation import run_page, run_reading

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

pytestmark = [
    pytest.mark.page,
    pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="there is no Chromium"),
]


@pytest.fixture
def shown(browser):
    """`shown(path, **context)` opens a file as a page, and at the end asserts that it asked for that file alone and
    that nothing was wrong in it."""
    asked, wrong, addresses, contexts = [], [], [], []

    def open_page(path, **context):
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: wrong.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        addresses.append(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith("data:")] == addresses
    assert wrong == []


@pytest.fixture
def report(tmp_path):
    """`report(name, ...)` writes the report of run folders of these names, each of 40 lines and five previews."""

    def write(*names, **more):
        lines = [line(step) for step in range(5, 205, 5)]
        lines += [{"step": step, "validation_loss": abs(step - 100) / 100 + 0.1} for step in range(20, 201, 20)]
        runs = [run_folder(tmp_path / name, lines=lines, previews=range(40, 201, 40), **more) for name in names]
        run_page.write([run_reading.read(run) for run in runs], tmp_path / "page.html")
        return tmp_path / "page.html"

    return write


def inked(page):
    """The number of pixels of each curve's canvas that are the colour of the first run, about."""
    return page.evaluate("""() => {
        const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--c0");
        probe.fillRect(0, 0, 1, 1);
        const [r, g, b] = probe.getImageData(0, 0, 1, 1).data;
        return [...document.querySelectorAll(".chart canvas")].map((canvas) => {
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let many = 0;
            for (let i = 0; i < pixels.length; i += 4) {
                const near = Math.abs(pixels[i] - r) + Math.abs(pixels[i + 1] - g) + Math.abs(pixels[i + 2] - b);
                many += pixels[i + 3] > 200 && near < 60;
            }
            return many;
        });
    }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_curves_are_drawn(shown, report, scheme):
    page = shown(report("run"), color_scheme=scheme)
    titles = page.locator(".chart h3").all_inner_texts()
    assert titles == [
        "Validation loss", "Training loss", "Training loss by noise level", "Gradient norm", "Learning rate", "Speed",
    ]  # fmt: skip
    many = inked(page)
    assert all(number > 200 for number, title in zip(many, titles, strict=True) if "by noise" not in title), many
    assert "rising since step 100" in page.locator("div:has(> #charts) > p").inner_text()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(","))) / 3
    assert light > 200 if scheme == "light" else light < 60


def test_the_curves_follow_the_scheme_of_the_system(shown, report):
    page = shown(report("run"), color_scheme="light")
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    assert inked(page)[0] > 200, "in the dark colour now"


def test_the_scrubber_changes_the_picture(shown, report):
    from playwright.sync_api import expect

    page = shown(report("run"))
    image, words = page.locator(".film img"), page.locator(".film figcaption")
    addresses = dict(film(page))
    assert len(set(addresses.values())) == 5
    assert image.get_attribute("src") == addresses[200]
    slider = page.locator("#scrubber")
    slider.press("Home")
    assert (image.get_attribute("src"), words.inner_text()) == (addresses[40], "Step 40")
    slider.press("ArrowRight")
    assert (image.get_attribute("src"), words.inner_text()) == (addresses[80], "Step 80")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 20
    page.locator("#play").click()
    expect(words).to_have_text("Step 200")
    expect(page.locator("#play")).to_have_text("Play")


def film(page):
    return json.loads(page.locator("#data").text_content())["runs"][0]["film"]


def test_of_several_runs_the_curves_lie_over_each_other(shown, report):
    page = shown(report("one", "two"))
    assert page.locator(".film").count() == 2
    legend = page.locator(".chart").first.locator(".u-series th").all_inner_texts()
    assert [each.strip() for each in legend] == ["step", "one", "two"]
    assert page.locator(".chart").count() == 5 + 7, "of one noise level there is nothing"
    page.locator("#scrubber").press("Home")
    assert page.locator(".film figcaption").all_inner_texts() == ["Step 40", "Step 40"]


def test_it_fits_a_phone(shown, report):
    begun = {"data": "d" * 200, "images": {"classes": {"c" * 199: 1}, "reasons": [["p" * 199, "q" * 199]]}}
    page = shown(report("one", "n" * 120, begun=begun), viewport={"width": 360, "height": 700})
    for each in page.locator("summary").all():
        each.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".chart").first.bounding_box()["width"] <= 340


def test_names_of_strangers_do_nothing(shown, report):
    begun = {"data": HOSTILE, "images": {"classes": {HOSTILE: 2}, "reasons": [[HOSTILE, HOSTILE]]}}
    names = json.dumps([HOSTILE])
    page = shown(report("run", begun=begun, config=f"[data]\nclass_names = {names}\n"))
    page.wait_for_timeout(100)
    assert page.title() == "Report of run"
    assert page.locator("td", has_text="document.title").count() >= 1
    assert page.locator("script").count() == 3


def test_the_policy_refuses_what_is_not_its_own(browser, report):
    """A script that got into the file after all would not run."""
    path = report("run")
    content = path.read_text(encoding="utf-8")
    assert "<main>" in content
    path.write_text(content.replace("<main>", "<main><script>document.title = 'owned'</script>"), encoding="utf-8")
    page, refused = browser.new_page(), []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(path.as_uri())
    assert page.title() == "Report of run"
    assert any("Content Security Policy" in each for each in refused)
    page.close()


def test_without_scripts_everything_but_the_curves_is_there(shown, report):
    page = shown(report("run"), java_script_enabled=False)
    assert page.locator(".film img").is_visible()
    assert page.locator("noscript").inner_text() == "The curves need JavaScript, which is off."
