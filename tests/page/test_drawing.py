"""The mask that is drawn on the page, read back pixel by pixel."""

import io

import numpy as np
import pytest
from helpers.browser import (
    centres,
    drag,
    entered,
    mask,
    middle,
    on_mask,
    opened,
    picture,
    same,
    starts,
    stroke,
    until,
    zoom,
)
from PIL import Image

SHAPE = (200, 300)


@pytest.mark.parametrize("ratio", [1, 2])
def test_strokes_are_under_the_cursor(visit, ratio):
    """At any zoom and pixel ratio; the right button erases, and each stroke is one step of undo and redo."""
    page = visit(device_scale_factor=ratio)
    box = opened(page)
    x, y = middle(box)
    points = [(x - 43.25, y - 20), (x + 37, y + 22.5), (x + 60, y - 30)]
    for scale in (0.5, 1, 3):
        for diameter in (1, 2, 7, 40):
            page.keyboard.press("0")
            zoom(page, scale, box)
            page.click("#clear")
            page.fill("#brush-size", str(diameter))
            page.locator("#brush-size").blur()
            drag(page, points)
            where = [on_mask(page, *point, box) for point in points]
            marked, close = stroke(SHAPE, where, diameter)
            drawn = mask(page)
            same(drawn, marked, close)
            assert drawn.any()
            page.mouse.click(*points[0], button="right")
            erased, near = stroke(SHAPE, where[:1], diameter)
            same(mask(page), marked & ~erased, close | near)
            page.keyboard.press("Control+z")
            same(mask(page), drawn)
            page.keyboard.press("Control+z")
            assert not mask(page).any()
            page.keyboard.press("Control+Shift+z")
            same(mask(page), drawn)


def test_shapes_and_changes_of_the_whole_mask(visit):
    page = visit()
    box = opened(page)
    x, y = middle(box)
    page.keyboard.press("R")  # as Caps Lock has it; with Shift it would run
    corners = [(x - 50, y - 40), (x + 30, y + 20)]
    drag(page, corners)
    (x0, y0), (x1, y1) = (np.floor(on_mask(page, *corner, box)) for corner in corners)
    across, down = centres(*SHAPE)
    rectangle = (across > x0) & (across < x1 + 1) & (down > y0) & (down < y1 + 1)
    same(mask(page), rectangle)
    page.keyboard.press("i")
    same(mask(page), ~rectangle)
    page.keyboard.press("i")
    page.fill("#amount", "9")
    page.click("#grow")
    rows, columns = np.flatnonzero(rectangle.any(axis=1)), np.flatnonzero(rectangle.any(axis=0))
    off_x = np.maximum(np.maximum(columns[0] + 0.5 - across, across - columns[-1] - 0.5), 0)
    off_y = np.maximum(np.maximum(rows[0] + 0.5 - down, down - rows[-1] - 0.5), 0)
    same(mask(page), off_x**2 + off_y**2 <= 81)
    page.click("#shrink")
    same(mask(page), rectangle)
    page.keyboard.press("Delete")
    assert not mask(page).any()
    page.keyboard.press("i")
    page.click("#shrink")
    assert mask(page).all()  # the border of the picture is no edge
    page.keyboard.press("Delete")
    page.keyboard.press("l")
    points = [(x - 80, y - 60), (x + 70, y - 20.5), (x - 10, y + 70), (x + 40, y - 70)]
    drag(page, points)
    outline = [on_mask(page, *point, box) for point in points]
    inside = np.zeros(SHAPE, bool)
    for (ax, ay), (bx, by) in zip(outline, outline[1:] + outline[:1], strict=True):
        inside ^= ((ay <= down) != (by <= down)) & (ax + (down - ay) * (bx - ax) / (by - ay) <= across)
    same(mask(page), inside)


def test_lines_sizes_and_edges(visit):
    page = visit()
    box = opened(page)
    x, y = middle(box)
    page.fill("#brush-size", "5")
    page.locator("#brush-size").blur()
    page.mouse.click(x - 60, y)
    page.keyboard.down("Shift")
    page.mouse.click(x + 60, y + 31)
    page.keyboard.up("Shift")
    same(mask(page), *stroke(SHAPE, [on_mask(page, x - 60, y, box), on_mask(page, x + 60, y + 31, box)], 5))
    page.keyboard.press("x")
    assert page.get_attribute("#tool-eraser", "aria-pressed") == "true"
    page.keyboard.press("x")
    page.keyboard.press("]")
    assert page.input_value("#brush-size") == "6"
    page.keyboard.press("[")
    page.keyboard.press("Delete")
    points = [(x, y), (box["x"] - 60, y + 10), (x, y + 40)]  # beyond the picture and the canvas
    drag(page, points)
    drawn = mask(page)
    same(drawn, *stroke(SHAPE, [on_mask(page, *point, box) for point in points], 5))
    before = page.evaluate("diffunet.view()")
    page.mouse.move(x, y)
    page.keyboard.down(" ")
    drag(page, [(x, y), (x + 30, y + 12)])
    page.keyboard.up(" ")
    drag(page, [(x, y), (x + 5, y)], button="middle")
    after = page.evaluate("diffunet.view()")
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((35, 12), abs=0.01)
    same(mask(page), drawn)


def test_masks_go_to_files_and_come_from_files(visit, tmp_path):
    page = visit(expected=["422"])
    opened(page)
    page.locator("summary", has_text="Box").click()
    for name, value in {"x0": 3, "y0": 4, "x1": 7, "y1": 9}.items():
        page.fill(f"#box-{name}", str(value))
    page.click("#add-box")
    wanted = np.zeros(SHAPE, bool)
    wanted[4:9, 3:7] = True
    same(mask(page), wanted)
    with page.expect_download() as download:
        page.click("#save-mask")
    assert download.value.suggested_filename == "holiday-mask.png"
    download.value.save_as(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        assert saved.mode == "L"
        same(np.asarray(saved) == 255, wanted)
    labels = io.BytesIO()
    Image.fromarray(wanted.T.astype(np.uint8) * 7).transpose(Image.Transpose.TRANSPOSE).save(labels, "PNG")
    page.click("#clear")
    page.set_input_files("#mask-file", {"name": "l.png", "mimeType": "image/png", "buffer": labels.getvalue()})
    until(page, "diffunet.mask().bytes.some(Boolean)")
    same(mask(page), wanted)
    assert "0 and 7" in page.inner_text("#said")
    page.set_input_files("#mask-file", {"name": "x.txt", "mimeType": "text/plain", "buffer": b"no"})
    page.wait_for_selector("#error:visible")
    same(mask(page), wanted)


def test_what_is_transparent_becomes_the_mask(visit):
    page = visit()
    opened(page, picture(clear=(41, 90)), "cut-out.png")
    page.click("#transparent")
    until(page, "diffunet.mask().bytes.some(Boolean)")
    across, _ = centres(*SHAPE)
    same(mask(page), (across > 41) & (across < 90))


def test_two_fingers_zoom_and_one_draws(visit):
    page = visit(has_touch=True)
    box = opened(page)
    x, y = middle(box)
    devtools = page.context.new_cdp_session(page)

    def touch(kind, *points):
        touched = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})

    before = page.evaluate("diffunet.view()")
    touch("touchStart", (x - 20, y))
    touch("touchMove", (x - 30, y))
    assert mask(page).any()
    touch("touchStart", (x - 30, y), (x + 30, y))
    assert not mask(page).any()  # the first finger's stroke was none
    touch("touchMove", (x - 60, y + 10), (x + 60, y + 10))
    touch("touchEnd")
    after = page.evaluate("diffunet.view()")
    assert after["scale"] / before["scale"] == pytest.approx(2, abs=0.02)
    touch("touchStart", (x, y))
    touch("touchMove", (x + 20, y))
    touch("touchEnd")
    assert mask(page).any()


def test_a_picture_is_dropped_and_pasted(visit):
    page = visit()
    entered(page)
    for event, carrier, name in (("drop", "dataTransfer", "dropped.png"), ("paste", "clipboardData", "pasted.png")):
        page.evaluate(
            """([event, carrier, name, bytes]) => {
                const files = new DataTransfer();
                files.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }));
                const init = { bubbles: true, cancelable: true, [carrier]: files };
                const made = event === 'drop' ? new DragEvent(event, init) : new ClipboardEvent(event, init);
                document.body.dispatchEvent(made);
            }""",
            [event, carrier, name, list(picture(30, 20))],
        )
        starts(page, "facts", name)
