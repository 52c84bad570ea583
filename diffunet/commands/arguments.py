"""Words on the command line become a call, and a mistake in them becomes one line that says how to mend it."""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from pydantic import BaseModel, ValidationError, create_model, validate_call

from diffunet import names
from diffunet.commands.progress import writing_results
from diffunet.config import Config, preset, read_toml, validated
from diffunet.errors import UsageError

try:
    # Private, and the only way to tyro's complaints other than to read its sentences out of the boxes that it draws.
    # tests/system/test_arguments.py checks all that is used of it.
    from tyro._errors import on_parse_error
except ImportError:  # a later tyro, which then complains in its own words and exits with the same code
    on_parse_error = contextlib.nullcontext  # type: ignore[assignment]

T = TypeVar("T")

NO_PAIRS = "training from one folder to another, image by image, is not there; --task inpaint learns to fill in holes"

ELSEWHERE = {
    **dict.fromkeys(
        ("--train.decay", "--train.lr-decay", "--train.scheduler", "--train.schedule", "--train.lr-scheduler"),
        "the learning rate falls over the last part of a run, of which --train.cooldown says the share",
    ),
    **dict.fromkeys(
        ("--train.tensorboard", "--train.no-tensorboard", "--train.tracker", "--train.log-with", "--train.report-to"),
        "--train.track tensorboard writes curves for it, and other trackers are named there, too",
    ),
    **dict.fromkeys(("--data.condition", "--data.conditions", "--data.pairs", "--data.target", "--pairs"), NO_PAIRS),
}
"""Options that people look for and that are not there, with what there is."""

TASKS = dict.fromkeys(("translate", "translation", "pix2pix", "pairs", "paired", "condition"), NO_PAIRS)
NOT_THERE = {"--task": TASKS, "--diffusion.task": TASKS, "--train.track": {"trackio": names.NO_TRACKIO}}
"""Values of options that people look for, likewise."""

SAMPLER_OPTIONS = ("--sampler", "--diffusion.sampler")


def parse(cls: type[T], args: Sequence[str], command: str, default: T) -> T:
    """Return `default` with the fields that the words `args` name changed. Raises UsageError for wrong words."""
    return _tyro(cls, _options(cls), args, command, default=default)


def call(function: Callable[..., None], args: Sequence[str], command: str) -> None:
    """Call `function` with `args`, checked by the bounds in its annotations. Raises UsageError for wrong words."""

    # Pydantic checks the bounds; without that setting it would take a dataclass for checked, whatever is in its fields.
    @validate_call(config={"revalidate_instances": "always"})
    @functools.wraps(function)
    def arguments(*positional: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, named

    positional, named = _tyro(arguments, _options(function), args, command)
    function(*positional, **named)


def checked(function: Callable[..., None], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a command, by their names in Python, checked by the same bounds as words are by `call`.

    Raises:
        UsageError: an option that the command does not have, or a value that it does not take.
    """
    kinds = _annotated(function)
    if unknown := [name for name in values if name not in kinds]:
        raise UsageError(f"there is no option {unknown[0]!r}")
    fields: dict[str, Any] = {name: (kinds[name], ...) for name in values}
    try:
        found = create_model("Options", **fields).model_validate(values)
    except ValidationError as error:
        raise UsageError(_out_of_bounds(error, _options(function))) from None
    return {name: getattr(found, name) for name in values}


def _annotated(target: Any) -> dict[str, Any]:
    """Return the annotations of all options of a function or dataclass, bounds included."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(target, include_extras=True).items():
        if dataclasses.is_dataclass(kind := _bare(hint)):
            found |= _annotated(kind)
        elif name != "return":
            found[name] = hint
    return found


def base_config(args: Sequence[str], run_of: Callable[[Config], Path]) -> Config:
    """Return the config that options change: a resumed run's, a file's or a preset's. Raises UsageError for two.

    `run_of` returns the run folder where --out does not name it, with what options change where nothing is resumed.
    """
    args = _prepared(args)
    out, file, name = (next(iter(_values(args, option)), None) for option in ("--out", "--config", "--preset"))
    if file is not None and name is not None:
        raise UsageError("--config and --preset are both a place to start from; take one")
    base = read_toml(Path(file)) if file is not None else preset("default" if name is None else name)
    if "--resume" not in args:
        return base
    run = run_of(base) if out is None else Path(out)
    if not os.path.isfile(run / "config.toml"):
        return base
    stored = read_toml(run / "config.toml")
    if file is None and name is None:
        return stored
    # The same command again, as a scheduler gives it: what the file says stands, and is checked against the run.
    content = stored.model_dump()
    for section, values in base.model_dump(exclude_unset=True).items():
        content[section] |= {key: value for key, value in values.items() if value is not None}
    return validated(content, "the command line")


def _prepared(args: Sequence[str]) -> list[str]:
    """Return the words of a command line as tyro is to read them.

    `--flags "--a 1 --b 2"` becomes `--flags="--a 1 --b 2"`: a word with a space in its name is no option but a value.
    Another name of a sampler becomes its canonical one, since tyro refuses what is not among the choices. An empty
    word raises UsageError: an unset variable of a shell becomes one, and no option has such a value.
    """
    prepared: list[str] = []
    for before, word in itertools.pairwise(["", *args]):
        if word == "":
            raise UsageError(f"{before if before.startswith('--') else 'an argument'} is empty")
        if word.startswith("--") and word.endswith("="):
            raise UsageError(f"{word[:-1]} is empty")
        option, equals, value = word.partition("=")
        if option in SAMPLER_OPTIONS and equals:
            word = f"{option}={names.canonical(value)}"
        elif before in SAMPLER_OPTIONS:
            word = names.canonical(word)
        is_value = word.startswith("--") and " " in option
        if is_value and prepared and prepared[-1].startswith("--") and "=" not in prepared[-1]:
            prepared[-1] += f"={word}"
        else:
            prepared.append(word)
    return prepared


def _tyro(target: Any, options: Mapping[str, Any], args: Sequence[str], command: str, **more: Any) -> Any:
    """Call `target` with `args`. Raises UsageError, and SystemExit once the help was shown."""
    args = _prepared(args)

    def refuse(event: Any) -> None:
        if message := _mistake(event, args, options, command):
            raise UsageError(f"{message} (see diffunet {command} --help)") from None

    if {"-h", "--help"} & {*args} and shutil.get_terminal_size().columns < 40:
        os.environ["COLUMNS"] = "40"  # in less than 10, tyro never ends laying out its help
    try:
        with writing_results(), on_parse_error(refuse):
            return tyro.cli(target, args=args, prog=f"diffunet {command}", **more)
    except ValidationError as error:
        raise UsageError(f"{_out_of_bounds(error, options)} (see diffunet {command} --help)") from None
    raise SystemExit(0)  # the reader of the help closed the pipe


def _options(target: Any) -> dict[str, Any]:
    """Return the type of each option and argument of a function or dataclass, by its name on the command line."""
    options: dict[str, Any] = {}
    parameters = inspect.signature(target).parameters.values()
    positional = {each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_ONLY}
    for name, hint in get_type_hints(target, include_extras=True).items():
        dashed, kind = name.replace("_", "-"), _bare(hint)
        if dataclasses.is_dataclass(kind):
            options |= _options(kind)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            fields = kind.model_fields.items()
            options |= {f"--{dashed}.{inner.replace('_', '-')}": field.annotation for inner, field in fields}
        elif name != "return":
            extras = getattr(hint, "__metadata__", ())
            named = next(filter(None, (getattr(extra, "name", None) for extra in extras)), None)  # --from is a keyword
            metavars = (getattr(extra, "metavar", None) for extra in extras if name in positional)
            options[f"--{named}" if named else next(filter(None, metavars), f"--{dashed}")] = kind
    return options


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _kind(hint: Any) -> str:
    """Return in words what a type takes."""
    hint = _bare(hint)
    inner = [part for part in get_args(hint) if part is not NoneType]
    if get_origin(hint) is Literal:
        return f"one of {names.listed([*map(str, inner)])}" if len(inner) > 1 else str(inner[0])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_kind, inner))
    if get_origin(hint) is tuple:
        return f"{'values' if ... in inner else f'{len(inner)} values'}, each {_kind(inner[0])}"
    return {int: "a whole number", float: "a number", bool: "True or False"}.get(hint, "a value")


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        known = [*map(str, get_args(hint))]
        return [*known, *names.aliases(known)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def _mistake(event: Any, args: Sequence[str], options: Mapping[str, Any], command: str) -> str | None:
    """Return what is wrong with `args`, of which tyro complains by `event`; None for an event of a later tyro."""
    names = [name for name in options if name.startswith("--")]
    off = [re.sub(r"^(--(?:\w+\.)?)", r"\1no-", name) for name in names if options[name] is bool]
    for word in args:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in (*names, *off, "--help"):
            same = [option for option in names if option.split(".")[-1] == name.strip("-")]
            if name in ELSEWHERE:
                return f"there is no option {name}: {ELSEWHERE[name]}"
            close = same or difflib.get_close_matches(name, names, n=1)
            return f"there is no option {name}" + (f"; did you mean {' or '.join(close)}?" if close else "")
    if hasattr(event, "missing_arguments"):
        return "; ".join(f"{_name(absent.arg)} is missing ({_help(absent.arg)})" for absent in event.missing_arguments)
    if hasattr(event, "tokens"):
        return _one_too_many(event.tokens[0], args, options, command)
    if getattr(event, "argument", None) is not None:
        return _wrong_value(_name(event.argument), options, args)
    cause = sys.exception()
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__context__
    return getattr(event, "message", None) if cause is None else _out_of_bounds(cause, options)


def _name(argument: Any) -> str:
    return argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[0]


def _help(argument: Any) -> str:
    text = argument.field.helptext
    return " ".join((text() if callable(text) else text).split()).rstrip(".")


def _one_too_many(word: str, args: Sequence[str], options: Mapping[str, Any], command: str) -> str:
    at = next(i for i, typed in enumerate(args) if typed == word or typed.endswith(f"={word}"))
    before = [typed.partition("=")[0] for typed in args[: at + 1] if typed.startswith("--")]
    if before:
        kind = options.get(before[-1], bool)
        return f"{word!r} is one too many: {before[-1]} takes {'no value' if kind is bool else _kind(kind)}"
    positional = [name for name in options if not name.startswith("--")]
    return f"{word!r} is one too many: diffunet {command} takes {' '.join(positional) or 'none'}"


def _wrong_value(name: str, options: Mapping[str, Any], args: Sequence[str]) -> str:
    kind = options.get(name, str)
    several = tuple in (get_origin(kind), *(get_origin(_bare(part)) for part in get_args(kind)))
    values = _values(args, name)[: None if several else 1]
    if not values:
        return f"{name} needs {_kind(kind)}"
    choices = _choices(kind)
    wrong = next((value for value in values if choices and value not in choices), values[0])
    close = difflib.get_close_matches(wrong, choices, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if wrong in NOT_THERE.get(name, {}):
        hint = f": {NOT_THERE[name][wrong]}"
    return f"{name} takes {_kind(kind)}, not {' '.join(values)!r}{hint}"


def _values(args: Sequence[str], name: str) -> list[str]:
    """Return the words that follow the last use of an option, or the value of `name=value`."""
    values, inside = list[str](), False
    for word in args:
        if word.startswith("--"):
            head, equals, tail = word.partition("=")
            if inside := head.replace("_", "-") == name:
                values = [tail] if equals else []
        elif inside:
            values.append(word)
    return values


def _out_of_bounds(error: ValidationError, options: Mapping[str, Any]) -> str:
    """Return what pydantic found, with options as they are typed."""
    sections = {getattr(field.annotation, "__name__", ""): f"{name}." for name, field in Config.model_fields.items()}
    problems: dict[tuple[str, str], list[str]] = {}  # of a union, such as an int or "auto", one for each of its types
    for item in error.errors():
        names = (f"--{sections.get(error.title, '')}{part}".replace("_", "-") for part in item["loc"])
        name = next((name for name in names if name in options), "")
        value = f", not {item['input']!r}" if isinstance(item["input"], str | int | float) else ""
        words = item["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("Tuple ")
        problems.setdefault((name, value), []).append(words)
    lines = (f"{name} {' or '.join(dict.fromkeys(words))}{value}" for (name, value), words in problems.items())
    return "; ".join(map(str.strip, lines))
