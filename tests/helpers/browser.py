"""The page in a browser: reading its mask back, moving the mouse over it, and what a stroke has to mark."""

import io
import time

import numpy as np
from PIL import Image

WAIT = 30
"""Seconds that a test waits for something to happen on the page."""


def picture(width=300, height=200, clear=None):
    """Return the PNG file of a picture whose colours say where a pixel is; `clear` are transparent columns."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)
    if clear is not None:
        inside = (x >= clear[0]) & (x < clear[1])
        pixels = np.dstack([pixels, np.where(inside, 0, 255).astype(np.uint8)])
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def mask(page):
    """Return the mask that is drawn on the page, bool [H W]."""
    marks = "new TextDecoder().decode(m.bytes.map((value) => value ? 49 : 48))"  # 1 and 0; a list of numbers takes long
    width, height, values = page.evaluate(f"() => {{ const m = diffunet.mask(); return [m.width, m.height, {marks}] }}")
    return np.frombuffer(values.encode(), np.uint8).reshape(height, width) == ord("1")


def until(page, expression):
    """Wait until an expression is true on the page. Playwright's own wait compiles code there, which it forbids."""
    end = time.monotonic() + WAIT
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not in time: {expression}"
        time.sleep(0.02)


def starts(page, id, text):
    """Wait until the text of an element starts so."""
    until(page, f"document.getElementById({id!r}).textContent.startsWith({text!r})")


def entered(page):
    """Open the page, by way of the one that takes the token."""
    page.goto(page.address)
    page.wait_for_selector("#canvas", state="attached")
    ready(page)


def ready(page):
    """Wait until the page is set up."""
    until(page, "typeof diffunet !== 'undefined'")
    page.evaluate("diffunet.ready")


def opened(page, content=None, name="holiday.png"):
    """Open the page and a picture on it; gives the box of the canvas."""
    entered(page)
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content or picture()})
    starts(page, "facts", name)
    return page.locator("#canvas").bounding_box()


def middle(box):
    """Return the middle of a box."""
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def zoom(page, scale, box):
    """Zoom by the wheel until a pixel of the mask is so many pixels of the screen."""
    now, ratio = page.evaluate("[diffunet.view().scale, devicePixelRatio]")
    page.mouse.move(*middle(box))
    page.mouse.wheel(0, -np.log(scale / now) / 0.0015 * ratio)  # a headless Chromium divides it by the ratio
    until(page, f"Math.abs(diffunet.view().scale - {scale}) < 0.01 * {scale}")


def on_mask(page, x, y, box):
    """Return where on the mask a point of the screen is."""
    view = page.evaluate("diffunet.view()")
    return (x - box["x"] - view["x"]) / view["scale"], (y - box["y"] - view["y"]) / view["scale"]


def drag(page, points, button="left"):
    """Draw from point to point with a button held."""
    page.mouse.move(*points[0])
    page.mouse.down(button=button)
    for point in points[1:]:
        page.mouse.move(*point)
    page.mouse.up(button=button)


def centres(height, width):
    """Return the coordinates of the centres of pixels, x and y, each [H W]."""
    y, x = np.mgrid[:height, :width]
    return x + 0.5, y + 0.5


def stroke(shape, points, diameter):
    """Return the pixels [H W] that a brush marks from point to point, and those where rounding decides.

    A pixel is marked whose centre is within half of the diameter of the line, and each that holds one of the points.
    """
    x, y = centres(*shape)
    marked, close = np.zeros(shape, bool), np.zeros(shape, bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] or points, strict=False):
        length = (bx - ax) ** 2 + (by - ay) ** 2
        t = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1) if length else np.zeros(shape)
        squared = (x - ax - t * (bx - ax)) ** 2 + (y - ay - t * (by - ay)) ** 2
        marked |= squared <= diameter**2 / 4
        close |= np.abs(squared - diameter**2 / 4) < 1e-6
    for px, py in points:
        row, column = int(np.floor(py)), int(np.floor(px))
        if 0 <= row < shape[0] and 0 <= column < shape[1]:
            marked[row, column] = True
            close[row, column] = False
    return marked, close


def same(found, wanted, unsure=False):
    """Check that two masks are equal, but for pixels that are `unsure`."""
    differ = (found != wanted) & ~np.broadcast_to(unsure, found.shape)
    assert not differ.any(), f"{differ.sum()} pixels differ, the first at {np.argwhere(differ)[0].tolist()}"
