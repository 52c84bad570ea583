"""From words on the command line to a call, and from a mistake in them to one line that mends it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import BaseModel, ValidationError, validate_call

from diffunet import names
from diffunet.commands.progress import writing_results
from diffunet.config import Config, preset, read_toml, validated
from diffunet.errors import UsageError

T = TypeVar("T")


def parse(what: type[T], args: Sequence[str], command: str, default: T) -> T:
    """A dataclass from `args`, on top of `default`.

    Raises:
        UsageError: one line, for words that cannot be meant.
    """
    return _tyro(what, _takes(what), args, command, default=default)


def call(function: Callable[..., None], args: Sequence[str], command: str) -> None:
    """Call `function` with `args`, once they are within the bounds that its annotations state.

    Raises:
        UsageError: one line, for words that cannot be meant; and what `function` raises.
    """

    @functools.wraps(function)
    def given(*positional: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, named

    positional, named = _tyro(given, _takes(function), args, command)
    try:
        validate_call(given)(*positional, **named)
    except ValidationError as error:
        raise UsageError(f"{_out_of_bounds(error)} (see diffunet {command} --help)") from None
    function(*positional, **named)


def base_config(args: Sequence[str]) -> Config:
    """The config that the options of `train` change: a run's that is resumed, a file's, or a preset's.

    Raises:
        UsageError: an unknown preset, a config that cannot be read, or two places to start from.
    """
    _refuse_empty(args)
    out, config = value_of(args, "--out"), value_of(args, "--config")
    if config is not None and value_of(args, "--preset") is not None:
        raise UsageError("--config and --preset are both a place to start from; take one")
    name = value_of(args, "--preset")
    base = read_toml(Path(config)) if config is not None else preset("default" if name is None else name)
    if "--resume" in args and out is not None and os.path.isfile(Path(out) / "config.toml"):
        stored = read_toml(Path(out) / "config.toml")
        if config is None and name is None:
            return stored
        # The same command again, as a scheduler gives it: what the file says stands, and is checked against the run.
        content = stored.model_dump()
        for section, values in base.model_dump(exclude_unset=True).items():
            content[section] |= {key: value for key, value in values.items() if value is not None}
        return validated(content, "the command line")
    return base


def value_of(args: Sequence[str], name: str) -> str | None:
    """What follows an option: `--name value` or `--name=value`."""
    for i, word in enumerate(args):
        if word == name and i + 1 < len(args):
            return args[i + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _refuse_empty(args: Sequence[str]) -> None:
    """No option means anything by an empty word, which is what an unset variable of a shell becomes."""
    for before, word in zip(["", *args], args, strict=False):
        if word == "":
            raise UsageError(f"{before if before.startswith('--') else 'an argument'} is empty")
        if word.startswith("--") and word.endswith("="):
            raise UsageError(f"{word[:-1]} is empty")


def _joined(args: Sequence[str]) -> list[str]:
    """`--flags "--a 1 --b 2"` as `--flags="--a 1 --b 2"`: a word with a space in its name is no option but a value."""
    joined: list[str] = []
    for word in args:
        named = word.startswith("--") and " " not in word.partition("=")[0]
        if joined and word.startswith("--") and not named and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _canonical(args: Sequence[str]) -> list[str]:
    """Replace another name of a sampler by its canonical one, since tyro refuses what is not among the choices."""
    words = list(args)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in ("--sampler", "--diffusion.sampler"):
            if equals:
                words[i] = f"{option}={names.canonical(value)}"
            elif i + 1 < len(words):
                words[i + 1] = names.canonical(words[i + 1])
    return words


def _tyro(made: Any, takes: Mapping[str, Any], args: Sequence[str], command: str, **options: Any) -> Any:
    _refuse_empty(args)
    args = _canonical(_joined(args))
    complaint = io.StringIO()
    try:
        with writing_results(), contextlib.redirect_stderr(complaint), _wide_enough():
            return tyro.cli(made, args=list(args), prog=f"diffunet {command}", **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, ValidationError):
            cause = cause.__context__
        words = _mistake(complaint.getvalue(), args, takes, command) if cause is None else _out_of_bounds(cause)
        raise UsageError(f"{words} (see diffunet {command} --help)") from None
    raise SystemExit(0)  # that was the help, and its reader had enough


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """tyro never comes back from laying out its help in a terminal of less than 10 columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(40, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


# What can be said, and what was said wrong.


def _takes(what: Any) -> dict[str, Any]:
    """The type of each option and argument of a function or dataclass, by its name on the command line."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(what, include_extras=True).items():
        dashed = name.replace("_", "-")
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            for inner, field in hint.model_fields.items():
                found[f"--{dashed}.{inner.replace('_', '-')}"] = field.annotation
        elif name != "return":
            metavars = [extra.metavar for extra in getattr(hint, "__metadata__", ()) if hasattr(extra, "metavar")]
            found[metavars[0] if metavars else f"--{dashed}"] = _bare(hint)
    return found


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _kind(hint: Any) -> str:
    """What a type takes, in words."""
    hint = _bare(hint)
    inner = [each for each in get_args(hint) if each is not NoneType]
    if get_origin(hint) is Literal:
        return f"one of {names.listed([*map(str, inner)])}" if len(inner) > 1 else str(inner[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_kind, inner))
    if get_origin(hint) is tuple:
        return f"{'values' if ... in inner else f'{len(inner)} values'}, each {_kind(inner[0])}"
    return {int: "a whole number", float: "a number", bool: "True or False"}.get(hint, "a value")


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        known = [str(each) for each in get_args(hint)]
        return [*known, *names.aliases(known)]
    return [choice for each in get_args(hint) for choice in _choices(each)]


def _mistake(box: str, args: Sequence[str], takes: Mapping[str, Any], command: str) -> str:
    """What is wrong with `args`, of which tyro complained in a `box`: option, value, what is allowed, what is close."""
    options = [name for name in takes if name.startswith("--")]
    off = [re.sub(r"^(--(?:\w+\.)?)", r"\1no-", name) for name in options if takes[name] is bool]
    for word in args:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in (*options, *off, "--help"):
            same = [option for option in options if option.split(".")[-1] == name.strip("-")]
            close = same or difflib.get_close_matches(name, options, n=1)
            return f"there is no option {name}" + (f"; did you mean {' or '.join(close)}?" if close else "")

    plain = (re.sub(r"\x1b\[[\d;]*m", "", line).strip("╭╮╰╯─│|+ ") for line in box.splitlines())
    said = " ".join(line for line in plain if line.strip("-"))
    about = re.search(r"(?:argument '|Error parsing )([\w.-]+)", said)
    if about is not None and about[1] in takes:
        return _wrong_value(about[1], takes[about[1]], args)
    if "Missing from" in said:
        listed = [part.split() for part in said.partition("Missing from")[2].partition(":")[2].split("(required)")]
        return "; ".join(
            f"{name} is missing ({' '.join(rest[1:] if name.startswith('--') else rest).rstrip('.')})"
            for name, *rest in filter(None, listed)
            if name in takes
        )
    for i, word in enumerate(args):
        if re.search(rf"Unrecognized options: {re.escape(word)}(?:,| |$)", said):
            before = [word.partition("=")[0] for word in args[:i] if word.startswith("--")]
            if before:
                kind = takes.get(before[-1], bool)
                return f"{word!r} is one too many: {before[-1]} takes {'no value' if kind is bool else _kind(kind)}"
            positional = [name for name in takes if name not in options]
            return f"{word!r} is one too many: diffunet {command} takes {' '.join(positional) or 'none'}"
    return said


def _wrong_value(name: str, kind: Any, args: Sequence[str]) -> str:
    several = tuple in (get_origin(kind), *(get_origin(_bare(each)) for each in get_args(kind)))
    values = _values(args, name)[: None if several else 1]
    if not values:
        return f"{name} needs {_kind(kind)}"
    close = difflib.get_close_matches(values[0], _choices(kind), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{name} takes {_kind(kind)}, not {' '.join(values)!r}{hint}"


def _values(args: Sequence[str], name: str) -> list[str]:
    """The words that follow an option, or `name=value`."""
    values: list[str] = []
    inside = False
    for word in args:
        if word.startswith("--"):
            head, equals, tail = word.partition("=")
            inside = head.replace("_", "-") == name
            if inside:
                values = [tail] if equals else []
        elif inside:
            values.append(word)
    return values


def _out_of_bounds(error: ValidationError) -> str:
    """What pydantic found, with options as they are typed."""
    sections = {getattr(field.annotation, "__name__", ""): f"{name}." for name, field in Config.model_fields.items()}
    problems: dict[tuple[str, str], list[str]] = {}  # of a union, such as an int or "auto", one for each of its types
    for item in error.errors():
        name = f"--{sections.get(error.title, '')}{item['loc'][0]}".replace("_", "-") if item["loc"] else ""
        value = f", not {item['input']!r}" if isinstance(item["input"], str | int | float) else ""
        words = item["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("Tuple ")
        problems.setdefault((name, value), []).append(words)
    return "; ".join(
        f"{name} {' or '.join(dict.fromkeys(words))}{value}".strip() for (name, value), words in problems.items()
    )
