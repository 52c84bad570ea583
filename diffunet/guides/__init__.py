"""The guides: Markdown files beside this one, which people read on the web, in a terminal and on the page.

The first line of a guide is its title, and its first paragraph is one sentence that says what it is about.
"""

from pathlib import Path

HERE = Path(__file__).parent

TOPICS = (
    "your-photographs", "sampling", "inpainting", "the-page", "the-terminal", "choosing-options", "options",
    "data-forms", "measuring", "many-gpus", "models-from-elsewhere", "python", "extending", "mathematics",
    "reliability", "trouble",
)  # fmt: skip
"""The names of the guides, in the order in which they are listed: what most people need comes first."""


def text(topic: str) -> str:
    """Return the Markdown of a guide. Raises KeyError for a name that is not in `TOPICS`."""
    if topic not in TOPICS:
        raise KeyError(topic)
    return (HERE / f"{topic}.md").read_text(encoding="utf-8")


def title(topic: str) -> str:
    """Return the title of a guide, without its mark."""
    return text(topic).partition("\n")[0].removeprefix("# ")


def about(topic: str) -> str:
    """Return the sentence that says what a guide is about, as one line."""
    return " ".join(text(topic).split("\n\n", 2)[1].split())
