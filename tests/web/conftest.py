"""A page of a tiny model, asked in this process, and one that a real server serves."""

import pytest

pytest.importorskip("starlette")

from helpers.web import Client

from diffunet.web import serving


@pytest.fixture
def page(pipe, model, tmp_path):
    """Make a page with options of `serving.Page`, of which nothing listens: `asking` asks it."""
    made = []

    def make(source=None, **options):
        made.append(serving.Page(pipe, source, **{"model": str(model), "port": 0, **options}))
        return made[-1]

    yield make
    for each in made:
        each.site.close()
        for socket in each._sockets:
            socket.close()


@pytest.fixture
def asking(page):
    """Make a client of a page with these options."""
    clients = []

    def make(source=None, **options):
        clients.append(Client(page(source, **options)).__enter__())
        return clients[-1]

    yield make
    for each in clients:
        each.__exit__(None, None, None)


@pytest.fixture
def client(asking):
    """Asks a page without pictures."""
    return asking()


@pytest.fixture
def served(pipe, model):
    """Serve pages by a real server on this machine."""
    pages = []

    def make(source=None, **options):
        pages.append(serving.serve(pipe, source, **{"model": str(model), "port": 0, "host": "127.0.0.1", **options}))
        return pages[-1]

    yield make
    for each in pages:
        each.close()
