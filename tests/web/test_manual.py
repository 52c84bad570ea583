"""The guides on the page: rendered, linked to one another, and without anything that runs."""

import re
from html.parser import HTMLParser

import pytest
from helpers.documents import anchors

from diffunet import guides
from diffunet.web import manual

TAGS = {
    "html", "head", "meta", "title", "link", "body", "header", "nav", "main", "a", "h1", "h2", "h3", "p", "ul", "ol",
    "li", "dl", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "pre", "code", "strong", "em", "br",
}  # fmt: skip


class Reader(HTMLParser):
    """Collects the tags, links, ids and text of a page."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.links, self.ids, self.text = set(), [], set(), ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        self.links += [attributes["href"]] if tag == "a" else []
        assert not {name for name in attributes if name.startswith("on") or name == "style"}

    def handle_data(self, data):
        self.text += data


def shown(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Reader(answer.text)


def test_all_guides_are_listed(client):
    found = shown(client, "/help")
    assert found.links[1:] == [f"help/{topic}" for topic in guides.TOPICS]
    for topic in guides.TOPICS:
        assert guides.title(topic) in found.text
        assert guides.about(topic) in found.text


@pytest.mark.parametrize("topic", guides.TOPICS)
def test_a_guide_is_shown_and_its_links_lead_somewhere(client, topic):
    found = shown(client, f"/help/{topic}")
    assert found.tags <= TAGS
    assert anchors(guides.HERE / f"{topic}.md") <= found.ids
    assert guides.title(topic) in found.text
    for link in found.links:
        page, _, anchor = link.partition("#")
        if link.startswith("https://") or link == "../help":
            continue
        assert page in ("", *guides.TOPICS), link
        assert not anchor or anchor in anchors(guides.HERE / f"{page or topic}.md"), link


def test_what_could_run_is_shown_as_text(client, monkeypatch):
    text = (
        "# <b>T</b>\n\n<img src=x onerror=alert(1)> [a](javascript:alert(1)) ![p](http://evil/x.png) [f](../../x.md)\n"
    )
    monkeypatch.setattr(guides, "text", lambda topic: text)
    content = client.get("/help/inpainting").text
    assert "<b>" not in content
    assert "<img" not in content
    assert re.findall(r'href="([^"]*)"', content) == [
        "../static/icon.svg", "../static/style.css", "../help/guides.css", "../help",
    ]  # fmt: skip
    assert "onerror=alert(1)&gt;" in content
    assert " f</p>" in content


def test_a_guide_that_is_not_there_is_not_found(client):
    for name in ("nothing", "..%2f..%2fREADME", "inpainting.md"):
        assert client.get(f"/help/{name}").status_code == 404


def test_headings_have_the_names_that_links_use():
    assert manual.slug("Colours, transparency, more than 8 bits") == "colours-transparency-more-than-8-bits"
