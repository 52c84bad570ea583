"""The page of a tiny model in a headless Chromium, served by a real server."""

import os
import shutil
import threading
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def pytest_collection_modifyitems(items):
    """Mark all tests of this room."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("page")


@pytest.fixture(scope="session")
def browser():
    """A Chromium of the system. Where there is none, tests skip, but fail in CI."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip("there is no Chromium")
    assert found is not None, "CI needs a Chromium"
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def going(monkeypatch, pipe):
    """An event without which the model takes no step; it is set at first."""
    event, forward = threading.Event(), pipe.denoiser.net.forward
    event.set()

    def waits(*arguments, **keywords):
        event.wait(60)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(pipe.denoiser.net, "forward", waits)
    yield event
    event.set()


@pytest.fixture
def site(pipe, model, tmp_path):
    """Serve a page; gives what `serving.serve` returns, with its options."""
    from diffunet.web import serving

    pages = []

    def serve(source=None, **options):
        pages.append(serving.serve(pipe, source, model=str(model), port=0, host="127.0.0.1", **options))
        return pages[-1]

    yield serve
    for each in pages:
        each.close()


@pytest.fixture
def visit(browser, site):
    """Open the page in a window of its own, with options of the browser's context and of the server.

    Nothing may leave the machine, break the page's policy or end up in the console, and no script may fail.
    """
    contexts, wrong = [], []

    def make(source=None, served=None, expected=(), **context):
        served = served or site(source, **context.pop("options", {}))
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.address, page.served = served.url, served
        own = f"http://127.0.0.1:{served.port}/"

        def asked(request):
            if not request.url.startswith((own, "blob:")):
                wrong.append(f"a request to {request.url}")

        def said(message):
            if message.type in ("error", "warning") and not any(words in message.text for words in expected):
                wrong.append(message.text)

        page.on("request", asked)
        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        return page

    yield make
    for each in contexts:
        each.close()
    assert wrong == []
