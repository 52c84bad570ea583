"""What a command takes: its options with types, defaults and help, as its annotations and docstrings say."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import BaseModel
from tyro.conf import Positional

from diffunet import names

T = TypeVar("T")

RARE = "rare"
Rare = Annotated[T, RARE]
"""The type of an option, or of all options of a section, that `--help` leaves to `--help-all`."""

REQUIRED = inspect.Parameter.empty
"""The default of what has to be given."""


@dataclass(frozen=True)
class Option:
    """An option or an argument of a command.

    Attributes:
        name: what is typed, such as --image-size; of an argument its name in the help, such as DATA.
        kind: its type, without what annotates it.
        help: sentences about it.
        default: its value if it is not given, or `REQUIRED`.
        section: the parameter that it is a part of, such as "train"; "" for an option of the command itself.
        rare: whether `--help` leaves it out.
        metavar: the word or words that stand for its value in the help; "" for one that takes no value.
    """

    name: str
    kind: Any
    help: str
    default: Any
    section: str
    rare: bool
    metavar: str

    @property
    def off(self) -> str:
        """What turns a switch off: --no-token, --train.no-cuda-graph."""
        at = max(2, self.name.find(".") + 1)
        return f"{self.name[:at]}no-{self.name[at:]}"

    @property
    def is_argument(self) -> bool:
        """Whether it is told by its place and not by its name."""
        return not self.name.startswith("--")


def options(
    target: Callable[..., Any], default: Any = None, section: str = "", rare: bool = False
) -> dict[str, Option]:
    """Return the options of a function, dataclass or model of pydantic, by name, in the order of its parameters.

    Args:
        target: what takes them. A parameter that is a dataclass or a model is a section of options: those of a model
            are named after it, `--data.image-size`, those of a dataclass are not.
        default: an instance of `target`, whose values are the defaults in place of those of the signature.
        section, rare: where `target` is a section, its name, and whether all of it is left out by `--help`.
    """
    found: dict[str, Option] = {}
    parameters, texts = inspect.signature(target).parameters, helps(target)
    hints = get_type_hints(target, include_extras=True)
    prefix = f"{section}." if isinstance(target, type) and issubclass(target, BaseModel) else ""
    for name in parameters:
        hint = hints[name]
        kind, extras = bare(hint), getattr(hint, "__metadata__", ())
        value = parameters[name].default if default is None else getattr(default, name)
        value, hidden = REQUIRED if value is tyro.MISSING else value, rare or RARE in extras
        if _is_section(kind):
            found |= options(kind, value if isinstance(value, kind) else None, name, hidden)
            continue
        shown = _told(extras, "metavar") or metavar(kind)
        typed = f"--{prefix}{_told(extras, 'name') or name}".replace("_", "-")
        typed = shown if Positional in extras else typed
        text = texts.get(name) or _told(extras, "help") or ""
        found[typed] = Option(typed, kind, text, value, section, hidden, shown)
    return found


def sections(target: Callable[..., Any]) -> dict[str, str]:
    """Return the sections of options that a command has, by name, each with a sentence about it."""
    hints = get_type_hints(target)
    return {name: inspect.getdoc(kind) or "" for name, kind in hints.items() if _is_section(kind)}


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _told(extras: Iterable[Any], key: str) -> str | None:
    """Return what tyro's arg(...) among the annotations of an option says of its name, metavar or help."""
    return next(filter(None, (getattr(extra, key, None) for extra in extras)), None)


def helps(target: Callable[..., Any]) -> dict[str, str]:
    """Return what is said of each parameter of a function, by its docstring, or of a field, by the string below it."""
    if not isinstance(target, type):
        _, _, args = inspect.cleandoc(target.__doc__ or "").partition("\nArgs:\n")
        found = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", args, re.MULTILINE))
    else:
        module = ast.parse(inspect.getsource(sys.modules[target.__module__]))
        [definition] = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == target.__name__)
        found = {
            field.target.id: below.value.value
            for field, below in itertools.pairwise(definition.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        }  # fmt: skip
    return {name: " ".join(text.split()) for name, text in found.items()}


def parts(hint: Any) -> list[Any]:
    """Return the types that a union, a tuple or an annotated type is made of, without None; of any other none."""
    hint = bare(hint)
    is_made = get_origin(hint) in (Union, UnionType, tuple)
    return [part for part in get_args(hint) if part not in (NoneType, ...)] if is_made else []


def bare(hint: Any) -> Any:
    """Return a type without what annotates it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def metavar(hint: Any) -> str:
    """Return the word or words that stand for a value of a type: N, X X, auto|on|off; "" for a switch."""
    return "" if bare(hint) is bool else _metavar(hint)


LONGEST_METAVAR = 24


def _metavar(hint: Any) -> str:
    if told := _told(getattr(hint, "__metadata__", ()), "metavar"):
        return told
    hint = bare(hint)
    if get_origin(hint) is Literal:
        choices = "|".join(map(str, get_args(hint)))
        return choices if len(choices) <= LONGEST_METAVAR else "NAME"
    inner = [*map(_metavar, parts(hint))]
    if get_origin(hint) is tuple:
        return f"{inner[0]} ..." if ... in get_args(hint) else " ".join(inner)
    if inner:
        return "|".join(dict.fromkeys(word for word in inner if word != "N" or "X" not in inner))
    return {int: "N", float: "X", bool: "True|False", str: "TEXT"}.get(hint, "PATH")


def in_words(hint: Any) -> str:
    """Return in words what a type takes, for an error message."""
    hint = bare(hint)
    inner = parts(hint)
    if get_origin(hint) is Literal:
        known = [*map(str, get_args(hint))]
        return f"one of {names.listed(known)}" if len(known) > 1 else known[0]
    if get_origin(hint) is tuple:
        return f"{'values' if ... in get_args(hint) else f'{len(inner)} values'}, each {in_words(inner[0])}"
    if inner:
        return " or ".join(map(in_words, inner))
    return {int: "a whole number", float: "a number", bool: "True or False"}.get(hint, "a value")


def choices(hint: Any) -> list[str]:
    """Return the names that a type takes, without their aliases; none for a type that takes any value."""
    hint = bare(hint)
    if get_origin(hint) is Literal:
        return [*map(str, get_args(hint))]
    return [choice for part in parts(hint) for choice in choices(part)]


def is_several(hint: Any) -> bool:
    """Return whether a type takes several words."""
    return get_origin(bare(hint)) is tuple or any(map(is_several, parts(hint)))
