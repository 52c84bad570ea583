"""`diffunet guide` lists the guides, and shows one of them."""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
from typing import Annotated

from tyro.conf import Positional, arg

from diffunet import guides
from diffunet.commands.progress import tell, writing_results
from diffunet.errors import UsageError

WIDEST = 100
"""The most columns that a guide is laid out in: longer lines are hard to read."""


def guide(topic: Annotated[Positional[str | None], arg(metavar="TOPIC")] = None, /) -> None:
    """List the guides, or show one of them.

    In a terminal a guide is laid out and shown by the pager (PAGER, or less). Elsewhere its Markdown is printed.

    Example: diffunet guide

    Example: diffunet guide inpainting

    Args:
        topic: Name of a guide. If not given, all are listed.
    """
    if topic is None:
        width = max(map(len, guides.TOPICS))
        tell("\n".join(f"{name:<{width}}  {guides.about(name)}" for name in guides.TOPICS))
        tell("\nRead one of them: diffunet guide TOPIC")
        return
    if topic not in guides.TOPICS:
        close = difflib.get_close_matches(topic, guides.TOPICS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(guides.TOPICS)}"
        raise UsageError(f"there is no guide {topic!r}{hint}")
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _show(guides.text(topic))
    else:
        tell(guides.text(topic).rstrip("\n"))


def _show(text: str) -> None:
    """Lay Markdown out, and give it to the pager: in colours where that is less, which knows what to do with them."""
    from rich.console import Console
    from rich.markdown import Markdown

    os.environ.setdefault("LESS", "-FRX")  # colours, and no waiting where all of it fits, as git does
    chosen = (os.environ.get(name, "").strip() for name in ("MANPAGER", "PAGER"))  # as pydoc, which rich asks
    pager = next(filter(None, chosen), "less")
    colours = os.path.basename(pager.split()[0]) == "less" and shutil.which("less") is not None
    console = Console(width=min(shutil.get_terminal_size().columns, WIDEST))
    with writing_results(), console.pager(styles=colours):
        console.print(Markdown(_for_terminal(text), hyperlinks=False))


def _for_terminal(text: str) -> str:
    """Return Markdown without pictures, and with links that can be followed in a terminal."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)\n*", "", text)
    text = re.sub(r"\[([^\]]+)\]\(([a-z-]+)\.md[^)]*\)", r"\1 (`diffunet guide \2`)", text)
    return re.sub(r"\[([^\]]+)\]\((?!https:)[^)]*\)", r"\1", text)
