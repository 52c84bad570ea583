"""Answers of the server that come late, when another picture is open, and those that are errors."""

import re
import time

import numpy as np
import pytest
from helpers.browser import WAIT, drag, entered, mask, middle, opened, picture, ready, same, starts, until
from PIL import Image


def held(page, pattern, act):
    """Do what asks for an address, and hold back that request; gives its route."""
    routes = []
    page.route(pattern, lambda route: routes.append(route), times=1)
    act()
    end = time.monotonic() + WAIT
    while not routes:
        assert time.monotonic() < end
        page.wait_for_timeout(10)
    return routes[0]


def chosen(page, name, content):
    """Choose a file to be opened."""
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def drawn(page, down=0):
    """Draw a stroke through the middle of the canvas, or below it; gives the mask."""
    x, y = middle(page.locator("#canvas").bounding_box())
    drag(page, [(x - 50, y + down), (x + 50, y + down)])
    assert mask(page).any()
    return mask(page)


def over(page, route, pattern):
    """Let a request go that was held back, and wait until the page has its answer."""
    with page.expect_response(pattern):
        route.continue_()
    page.evaluate("new Promise((resolve) => { setTimeout(resolve, 100); })")


VIEW = re.compile("/view$")


def test_a_picture_that_comes_late_takes_nothing_from_the_one_that_was_opened_after_it(visit):
    """Neither a file, nor what a reload brings back; and a reload brings back what was shown at last."""
    page = visit()
    entered(page)
    late = held(page, VIEW, lambda: chosen(page, "late.png", picture()))
    for name in ("one.png", "two.png"):
        chosen(page, name, picture(80, 60))
        starts(page, "facts", name)
        strokes = drawn(page)
        over(page, late, VIEW)
        starts(page, "facts", name)
        same(mask(page), strokes)
        late = held(page, VIEW, lambda: page.reload(wait_until="commit"))
    late.continue_()
    ready(page)
    starts(page, "facts", "two.png")
    same(mask(page), strokes)


def test_fill_fills_what_it_was_pressed_for(visit):
    """Whatever is drawn, chosen and opened before the server, which has forgotten the picture, has answered."""
    page, known = visit(), re.compile("known=")
    opened(page)
    strokes = drawn(page)
    page.fill("#seed", "5")
    route = held(page, known, lambda: page.click("#fill"))
    page.fill("#seed", "6")
    drawn(page, 40)
    chosen(page, "other.png", picture(80, 60))
    starts(page, "facts", "other.png")
    with page.expect_request("**/api/jobs") as sent:
        route.fulfill(status=204)
    asked, store = sent.value.post_data_json, page.served.site.store
    assert asked["options"]["seed"] == 5
    with Image.open(store.get("mask", asked["mask"]).path) as image:
        same(np.asarray(image) == 255, strokes)
    assert store.get("image", asked["image"]).about["width"] == 300
    drawn(page)
    starts(page, "facts", "other.png · 80 ")


def test_what_was_transparent_in_another_picture_is_not_marked(visit):
    page = visit()
    opened(page, picture(clear=(41, 90)), "cut-out.png")
    late = held(page, "**/hole", lambda: page.click("#transparent"))
    chosen(page, "other.png", picture(80, 60))
    starts(page, "facts", "other.png")
    strokes = drawn(page)
    late.continue_()
    page.wait_for_selector("#error:visible")
    assert "another picture was opened" in page.inner_text("#error")
    same(mask(page), strokes)


@pytest.fixture
def album(tmp_path):
    """A folder with a picture."""
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "a.png").write_bytes(picture(60, 40))
    return tmp_path / "album"


def test_a_mask_that_the_server_has_dropped_is_sent_again_for_the_folder(visit, album, tmp_path):
    page = visit(album, options={"out": tmp_path / "out"}, expected=["404"])
    entered(page)
    page.click("#tab-folder")
    page.click("#folder-images button")
    starts(page, "facts", "a.png")
    drawn(page)
    page.select_option("#method", "replace")
    page.fill("#steps", "2")
    page.click("#tab-folder")
    page.route("**/api/jobs", lambda route: route.fulfill(status=404, json={"error": "it had to make room"}), times=1)
    posts = []
    page.on("request", lambda request: posts.append(request.url.rpartition("/")[2]))
    page.click("#folder-fill")
    starts(page, "status", "The filling of the folder is done.")
    first, last = (n for n, what in enumerate(posts) if what == "jobs")
    assert "masks" in posts[first:last]
    assert (tmp_path / "out" / "a.png").exists()


def test_a_folder_is_not_filled_without_a_place_for_it(visit, album):
    page = visit(album)
    entered(page)
    page.click("#tab-folder")
    assert page.is_disabled("#folder-fill")
    assert "--out" in page.inner_text("#folder-hint")
    page.keyboard.press("Control+Enter")
    until(page, "document.getElementById('error').textContent.includes('--out')")


def test_an_archive_that_is_gone_does_not_take_the_page_along(visit):
    page = visit(expected=["404"])
    entered(page)
    for id in ("zip", "generate-zip"):
        with page.expect_download() as download:
            page.evaluate("(a) => { a.href = 'api/jobs/x/zip'; a.click(); }", page.query_selector(f"#{id}"))
        assert download.value.failure()
        assert page.url == page.address.partition("?")[0]
