"""HTML that is made of elements, so that no text gets into it unescaped."""

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """A piece of HTML, which is put into others as it is; every other text is escaped."""


def tag(name: str, *children: str, **attributes: str | int | bool | None) -> Html:
    """Return an element.

    Args:
        name, children: of the element, and what is in it, pieces of HTML or texts.
        attributes: without an underscore at the end of the name (`class_`); True is one without a value, and None or
            False none at all. Underscores within become hyphens.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    written = "".join(
        f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
        for key, value in given.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>{joined(children)}" + ("" if name in ("img", "input", "meta") else f"</{name}>"))


def joined(children: Iterable[str]) -> Html:
    """Return pieces of HTML and texts, one after the other, as one piece."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Return a table, which scrolls sideways within the page where it is too wide; the first column names the rows."""
    lines = [tag("tr", tag("th", first, scope="row"), *(tag("td", each) for each in rest)) for first, *rest in rows]
    top = tag("thead", tag("tr", *(tag("th", each, scope="col") for each in head)))
    return tag("div", tag("table", top, tag("tbody", *lines)), class_="wide")
