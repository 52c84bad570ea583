"""The README and the guides as tests read them: their blocks of code, their commands, links and headings."""

import re
import shlex
from pathlib import Path

from diffunet import guides

ROOT = Path(__file__).parents[2]

DOCUMENTS = {"README": ROOT / "README.md", **{topic: guides.HERE / f"{topic}.md" for topic in guides.TOPICS}}
"""The documents for people, by their names."""

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def text(name):
    """Return the text of a document."""
    return DOCUMENTS[name].read_text(encoding="utf-8")


def blocks(name, language):
    """Return the blocks of a language in a document. "bash" is run here, "" only read, "text" is neither."""
    return [content for kind, content in BLOCK.findall(text(name)) if kind == language]


def lines(name, language):
    """Return the command lines of a document's blocks, as lists of words; lines that end in a backslash go on."""
    joined = (line for block in blocks(name, language) for line in block.replace("\\\n", " ").splitlines())
    return [words for line in joined if (words := shlex.split(line, comments=True))]


def commands(name, language):
    """Return the arguments of diffunet in a document's command lines, whatever launches it."""
    found = (words[words.index("diffunet") + 1 :] for words in lines(name, language) if "diffunet" in words)
    return [arguments for arguments in found if arguments]


def inline(name):
    """Return what stands between single backticks in a document."""
    return re.findall(r"`([^`\n]+)`", BLOCK.sub("", text(name)))


def links(name):
    """Return the addresses that a document links to, and those of its pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text(name)))


def anchors(path):
    """Return the names by which GitHub knows the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
