"""Write the guide of all options of training, diffunet/guides/options.md, from the config: `python scripts/options.py`.

A test says when the guide is stale: run this again after changing an option, its default or its help.
"""

from __future__ import annotations

import inspect
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from diffunet import guides
from diffunet.commands import signature
from diffunet.config import Config

GUIDE = guides.HERE / "options.md"

HEAD = """# All options

Every option of training, with what it takes and its default.

`scripts/options.py` writes this guide from the config. On the command line an option is `--section.name`. In a config
file it is `name` in the table `[section]`, and in Python `config.section.name`, both with `_` in place of `-`; a switch
that takes nothing on the command line is True or False there. An
option that is not set is chosen by the images, the device and the time, or is off, as its help says. `config.toml` in
the run's folder has what was chosen. `diffunet train --help-all` shows the same, with the short names, such as
`--image-size` for `--data.image-size`. Other commands tell theirs likewise: `diffunet sample --help-all`.
"""


def guide() -> str:
    """Return the Markdown of the guide."""
    return "\n".join([HEAD, *(_section(name, field.annotation) for name, field in Config.model_fields.items())])


def _section(name: str, section: Any) -> str:
    """Return the heading of a section of the config, and a table of its options."""
    helps = signature.helps(section)
    words = {key: key.replace("_", "-") for key in section.model_fields}
    rows = [
        f"| `--{name}.{word}` | {_takes(section.model_fields[key], f'--{name}.no-{word}')} | "
        f"{_default(section.model_fields[key].default)} | {_plain(helps[key])} |"
        for key, word in words.items()
    ]
    head = f"## {name}\n\n{_plain(inspect.cleandoc(section.__doc__))}\n"
    return "\n".join([head, "| option | takes | default | what it does |", "|---|---|---|---|", *rows, ""])


def _takes(field: FieldInfo, opposite: str) -> str:
    """Return in words what an option takes on the command line; a switch takes nothing, and has an opposite."""
    if field.annotation is bool:
        return f"nothing; its opposite is `{opposite}`"
    return " or ".join(dict.fromkeys(_kinds(field.annotation)))


def _kinds(hint: Any) -> list[str]:
    """Return the kinds of values of a type, None aside."""
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return [", ".join(f"`{choice}`" for choice in inner)]
    if get_origin(hint) is tuple:
        [kind] = dict.fromkeys(" or ".join(_kinds(part)) for part in inner if part is not ...)
        return [f"several: {kind}" if ... in inner else f"{len(inner)} values"]
    if inner:  # a union, or a type with its bounds
        return [kind for part in inner if isinstance(part, type) or get_origin(part) for kind in _kinds(part)]
    words = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
    return [] if hint is NoneType else [words[hint]]


def _default(value: Any) -> str:
    """Return a default as it is typed."""
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`" if value else "none"
    return f"`{value}`"


def _plain(text: str) -> str:
    """Return a help as one line that Markdown shows as it is."""
    return re.sub(r"([|*_<])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    GUIDE.write_text(guide(), encoding="utf-8")
