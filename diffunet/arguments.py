"""From words on the command line to a call, and from a mistake in them to one line that mends it."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from diffunet.config import Config, preset, read_toml, validated
from diffunet.errors import UsageError

T = TypeVar("T")


def parse(what: type[T], args: Sequence[str], command: str, default: T) -> T:
    """A dataclass from `args`, on top of `default`.

    Raises:
        UsageError: one line, for words that cannot be meant.
    """
    return _tyro(what, args, command, default=default)


def call(function: Callable[..., None], args: Sequence[str], command: str) -> None:
    """Call `function` with `args`.

    Raises:
        UsageError: one line, for words that cannot be meant; and what `function` raises.
    """

    @functools.wraps(function)
    def later(*positional: Any, **named: Any) -> Callable[[], None]:
        return lambda: function(*positional, **named)

    _tyro(later, args, command)()


def _tyro(what: Any, args: Sequence[str], command: str, **options: Any) -> Any:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(what, args=list(args), prog=f"diffunet {command}", **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{one_line(complaint.getvalue())} (see diffunet {command} --help)") from None


def one_line(box: str) -> str:
    """What a box of tyro's says: its first part, and its suggestion."""
    bare = [line.strip("╭╮╰╯─│|+ ") for line in box.splitlines()]
    lines = [line for line in bare if line.strip("-")]
    title, lines = (lines[0].strip("- "), lines[1:]) if len(lines) > 1 else ("", lines)
    said: list[str] = []
    for line in lines:
        if line.startswith(("For full helptext", "Argument helptext", "For further information")):
            break
        said.append(line)
    words = " ".join(said) or title
    # pydantic's form: "Error parsing data: 1 validation error for DataConfig image_size Input should ... [type=...]"
    pattern = (
        r"Error parsing (?:--)?([\w.-]+): \d+ validation errors? for \w+ ([\w.]+) (.*?) \[type=.*?input_value=(.*?), "
    )
    found = re.match(pattern, words)
    if found:
        section, name, should, value = found.groups()
        return f"--{section}.{name.replace('_', '-')}: {should.removeprefix('Value error, ')}, not {value}"
    return words.replace("Perhaps you meant:", "Perhaps you meant")


def base_config(args: Sequence[str]) -> Config:
    """The config that the options of `train` change: a run's that is resumed, a file's, or a preset's.

    Raises:
        UsageError: an unknown preset, a config that cannot be read, or two places to start from.
    """
    out, config = value_of(args, "--out"), value_of(args, "--config")
    if config is not None and value_of(args, "--preset") is not None:
        raise UsageError("--config and --preset are both a place to start from; take one")
    name = value_of(args, "--preset")
    base = read_toml(Path(config)) if config is not None else preset(name or "default")
    if "--resume" in args and out is not None and (Path(out) / "config.toml").is_file():
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
