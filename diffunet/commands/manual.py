"""The help of a command: what it does, its main options, and how to see the others."""

from __future__ import annotations

import difflib
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from diffunet import names
from diffunet.commands import signature
from diffunet.commands.signature import REQUIRED, Option
from diffunet.errors import UsageError

NARROWEST, WIDEST = 40, 100
"""The columns within which a page is laid out, whatever the terminal has."""

COLUMN = 26
"""Where the sentences about options begin, if the page has `TWO_COLUMNS` or more."""

TWO_COLUMNS = 64

FIRM = "\xa0"
"""A space at which no line ends, until it is laid out."""

ALL = "all"
"""The part of the help that is all of it, beside "", the main options, and the names of sections."""


def asked(args: Sequence[str], parts: Iterable[str]) -> str | None:
    """Return which of `parts` of the help, or what part by a wrong name, a command line asks for; None if for none.

    A word after --help that is not like the name of a part is an argument of the command, whose help is asked for.
    """
    if "--help-all" in args:
        return ALL
    for word, after in itertools.pairwise([*args, ""]):
        if word.startswith("--help="):
            return word.partition("=")[2]
        if word in ("-h", "--help"):
            return after if difflib.get_close_matches(after, [*parts, ALL], n=1) else ""
    return None


def page(command: str, target: Callable[..., Any], part: str, default: Any = None) -> str:
    """Return a part of the help of a command, as wide as the terminal.

    Args:
        command, target: its name, and the function or dataclass with its docstring.
        part: as `asked` returns it.
        default: an instance of `target` that has the defaults.

    Raises:
        UsageError: there is no such part.
    """
    sections = signature.sections(target)
    if part not in ("", ALL, *sections):
        known = [*sections, ALL]
        close = difflib.get_close_matches(part, known, n=1) or known
        raise UsageError(f"--help has no part {part!r}; there is {' or '.join(close)}")
    width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    options = [*signature.options(target, default).values()]
    blocks = [_command(f"usage: diffunet {command}", _usage(options), width)]
    if part in sections:
        blocks += _section(part, sections[part], options, width)
    else:
        blocks += _about(target, width)
        own = [option for option in options if (not option.section if part == ALL else not option.rare)]
        blocks += [_table(map(_row, own), width)] if own else []
        for name in sections if part == ALL else ():
            blocks += _section(name, sections[name], options, width)
        if part == "" and (more := _more(options, sections)):
            blocks += ["More options:\n" + _table(more, width)]
    return "\n\n".join(blocks)


def _usage(options: Iterable[Option]) -> list[str]:
    """Return the words that a command needs, in the order in which they are typed."""
    words = list[str]()
    for option in options:
        if option.is_argument:
            word = f"{option.name} ..." if signature.is_several(option.kind) else option.name
            words.append(word if option.default is REQUIRED else f"[{word}]")
        elif option.default is REQUIRED:
            words.append(f"{option.name} {option.metavar}")
    return [*words, "[OPTIONS]"]


def _about(target: Callable[..., Any], width: int) -> Iterator[str]:
    """Yield the paragraphs of a docstring; its examples are commands, which stay such when they are copied."""
    text, _, _ = (inspect.getdoc(target) or "").partition("\n\nArgs:")
    for paragraph in text.split("\n\n"):
        words = paragraph.split()
        if words[0] == "Example:":
            yield _command("Example:", words[1:], width)
        else:
            yield textwrap.fill(" ".join(words), width)


def _command(head: str, words: Sequence[str], width: int) -> str:
    """Return a command in lines of at most `width` columns, joined as a shell joins them."""
    lines = textwrap.wrap(
        " ".join([head, *words]), width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines)


def _section(name: str, title: str, options: Iterable[Option], width: int) -> Iterator[str]:
    yield textwrap.fill(f"{name.capitalize()} options. {title}", width)
    yield _table((_row(option) for option in options if option.section == name), width)


def _more(options: Sequence[Option], sections: dict[str, str]) -> list[tuple[str, str]]:
    """Return how the options that are not shown can be seen; nothing if all are shown."""
    hidden = {option.section for option in options if option.rare}
    rows = [(f"--help {name}", title) for name, title in sections.items() if name in hidden]
    return [*rows, ("--help-all", f"All {len(options)} arguments and options.")] if hidden else []


def _row(option: Option) -> tuple[str, str]:
    """Return how an option is typed, and what is said of it: its help, its choices and its default."""
    is_switch, default = option.kind is bool, option.default
    name = option.name
    if is_switch and default is True:  # --part.[no-]name
        name = option.off.replace("no-", "[no-]", 1)
    typed = name if option.is_argument else f"{name} {option.metavar}".rstrip()
    text = option.help
    if "NAME" in option.metavar and (known := signature.choices(option.kind)):
        text += f" {'Any' if signature.is_several(option.kind) else 'One'} of {names.listed(known)}."
    if default is REQUIRED:
        return typed, f"{text} (required)"
    if default in (None, (), "") or default is False:
        return typed, text
    shown = FIRM.join(map(_typed, default)) if isinstance(default, tuple) else _typed(default)
    return typed, f"{text} (default:{FIRM}{'on' if is_switch else shown})"


def _typed(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: Iterable[tuple[str, str]], width: int) -> str:
    """Return rows in two columns; where the first is too narrow for its words, these have a line for themselves."""
    column = COLUMN if width >= TWO_COLUMNS else 6
    lines = list[str]()
    for head, text in rows:
        wrapped = textwrap.wrap(text, width - column, break_long_words=False, break_on_hyphens=False) or [""]
        if len(head) + 4 > column:
            lines += textwrap.wrap(
                f"  {head}", width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
            )
        else:
            wrapped[0] = f"{f'  {head}':<{column}}{wrapped[0]}"
            lines.append(wrapped.pop(0).rstrip())
        lines += [" " * column + line for line in wrapped]
    return "\n".join(lines).replace(FIRM, " ")
