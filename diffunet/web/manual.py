"""The guides as plain pages of HTML. They are rendered here, so that they need no script and the page stays small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from diffunet import guides

MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
"""It shows tags as text, and makes no link of an address that could run something."""

FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · diffunet</title>
<link rel="icon" href="{up}static/icon.svg">
<link rel="stylesheet" href="{up}static/style.css">
<link rel="stylesheet" href="{up}help/guides.css">
</head>
<body class="guide">
<header><nav><a href="{up}help">All guides</a></nav></header>
<main>
{body}</main>
</body>
</html>
"""

GUIDE = re.compile(r"([a-z-]+)\.md(#.*)?")
"""A link from one guide to another. Other files are not here: of links to them the words are shown."""


def listing() -> str:
    """Return the page that lists all guides."""
    rows = (
        f'<dt><a href="help/{topic}">{escape(guides.title(topic))}</a></dt>\n<dd>{escape(guides.about(topic))}</dd>\n'
        for topic in guides.TOPICS
    )
    return FRAME.format(title="Guides", up="", body=f"<h1>Guides</h1>\n<dl>\n{''.join(rows)}</dl>\n")


def page(topic: str) -> str:
    """Return the page of a guide. Raises KeyError for a name that is not in `guides.TOPICS`."""
    tokens = MARKDOWN.parse(guides.text(topic))
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slug(inline.content))
    for token in tokens:
        if token.children:
            token.children = list(_here(token.children))
    body = MARKDOWN.renderer.render(tokens, MARKDOWN.options, {})
    return FRAME.format(title=escape(guides.title(topic)), up="../", body=body)


def slug(heading: str) -> str:
    """Return the name by which links know a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _here(tokens: list[Token]) -> Iterator[Token]:
    """Yield the tokens of a line with links that lead somewhere from here, and without pictures, which are not here."""
    dropped = False
    for token in tokens:
        if token.type == "link_open":
            address = str(token.attrs["href"])
            dropped = False
            if match := GUIDE.fullmatch(address):
                token.attrSet("href", match[1] + (match[2] or ""))
            elif address.startswith("https://"):
                token.attrSet("rel", "noopener noreferrer")
                token.attrSet("target", "_blank")
            elif not address.startswith("#"):
                dropped = True
        if token.type == "image" or (dropped and token.type in ("link_open", "link_close")):
            continue
        yield token


async def _answer(request: Request) -> Response:
    """Answer with a guide, or with the list of all."""
    topic = request.path_params.get("topic")
    if topic is not None and topic not in guides.TOPICS:
        raise HTTPException(404, "there is no such guide")
    return HTMLResponse(listing() if topic is None else page(topic))


async def _style(request: Request) -> Response:
    return FileResponse(guides.HERE / "guides.css")


ROUTES = (
    Route("/help", _answer, methods=["GET"]),
    Route("/help/guides.css", _style, methods=["GET"]),
    Route("/help/{topic}", _answer, methods=["GET"]),
)
"""The routes of the guides, which are answered behind the guard like all others."""
