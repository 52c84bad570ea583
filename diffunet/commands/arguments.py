"""Words on the command line become a call, and a mistake in them becomes one line that says how to mend it."""

import contextlib
import dataclasses
import difflib
import functools
import itertools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro
from pydantic import ValidationError, create_model, validate_call

from diffunet import names
from diffunet.commands import manual, signature
from diffunet.commands.progress import tell
from diffunet.commands.signature import Option
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
    _show_help(cls, args, command, default)
    takes = functools.partial(signature.options, cls, default)
    return _tyro(cls, takes, args, command, default=default)


def call(function: Callable[..., None], args: Sequence[str], command: str) -> None:
    """Call `function` with `args`, checked by the bounds in its annotations. Raises UsageError for wrong words."""
    _show_help(function, args, command)

    # Pydantic checks the bounds; without that setting it would take a dataclass for checked, whatever is in its fields.
    @validate_call(config={"revalidate_instances": "always"})
    @functools.wraps(function)
    def arguments(*positional: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, named

    positional, named = _tyro(arguments, functools.partial(signature.options, function), args, command)
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
        raise UsageError(_out_of_bounds(error, signature.options(function))) from None
    return {name: getattr(found, name) for name in values}


def _annotated(target: Any) -> dict[str, Any]:
    """Return the annotations of all options of a function or dataclass, bounds included."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(target, include_extras=True).items():
        if dataclasses.is_dataclass(kind := signature.bare(hint)):
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


def stated(config: Config, base: Config, args: Sequence[str]) -> Config:
    """Return `config`, which options made of `base`, with those of its values as set that `base` or `args` state.

    An option may be stated with the value that it has by default, as `--image-size 64`, which tyro does not tell.
    """
    words, content = typed(args), {}
    for section, values in config.model_dump().items():
        before = getattr(base, section)
        content[section] = {
            name: value
            for name, value in values.items()
            if name in before.model_fields_set
            or value != getattr(before, name)
            or f"--{section}.{name}".replace("_", "-") in words
        }
    return validated(content, "the command line")


def typed(args: Sequence[str]) -> set[str]:
    """Return the options that the words of a command line name, as `--image-size`, without their values."""
    return {word.partition("=")[0].replace("_", "-") for word in args if word.startswith("--")}


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


def _show_help(target: Callable[..., Any], args: Sequence[str], command: str, default: Any = None) -> None:
    """Print the help that `args` ask for, if they do, and raise SystemExit then."""
    if (part := manual.asked(args, signature.sections(target))) is not None:
        tell(manual.page(command, target, part, default))
        raise SystemExit(0)


def _tyro(
    target: Any, takes: Callable[[], Mapping[str, Option]], args: Sequence[str], command: str, **more: Any
) -> Any:
    """Call `target` with `args`. Raises UsageError; for its message, and not before, it asks what `takes` returns."""
    args = _prepared(args)

    def wrong(message: str, options: Mapping[str, Option]) -> UsageError:
        """Name the part of the help that has the option which a message is about."""
        about = next((options[name] for name in re.findall(r"--[\w.-]*\w", message) if name in options), None)
        rest = (f" {about.section}" if about.section else "-all") if about is not None and about.rare else ""
        return UsageError(f"{message} (see diffunet {command} --help{rest})")

    def refuse(event: Any) -> None:
        options = takes()
        if message := _mistake(event, args, options, command):
            raise wrong(message, options) from None

    try:
        with on_parse_error(refuse):
            return tyro.cli(target, args=args, prog=f"diffunet {command}", add_help=False, **more)
    except ValidationError as error:
        options = takes()
        raise wrong(_out_of_bounds(error, options), options) from None


def _mistake(event: Any, args: Sequence[str], options: Mapping[str, Option], command: str) -> str | None:
    """Return what is wrong with `args`, of which tyro complains by `event`; None for an event of a later tyro."""
    known = [name for name, option in options.items() if not option.is_argument]
    off = [options[name].off for name in known if options[name].kind is bool]
    for word in args:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in (*known, *off):
            if name in ELSEWHERE:
                return f"there is no option {name}: {ELSEWHERE[name]}"
            close = _nearest(name, [*known, "--help", "--help-all"])
            return f"there is no option {name}" + (f"; did you mean {' or '.join(close)}?" if close else "")
    if hasattr(event, "missing_arguments"):
        absent = [options[_name(each.arg)] for each in event.missing_arguments]
        return "; ".join(
            f"{option.name} is missing ({option.help.partition('. ')[0].rstrip('.')})" for option in absent
        )
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


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """Return the option that is spelled most like `name`; several if they are so but for their sections."""
    spelled: dict[str, list[str]] = {each: [each] for each in known}
    for each in known:
        tail = f"--{each.partition('.')[2]}"
        if "." in each and [tail] != spelled.get(tail):
            spelled.setdefault(tail, []).append(each)
    close = difflib.get_close_matches(name, spelled, n=1)
    return spelled[close[0]] if close else []


def _one_too_many(word: str, args: Sequence[str], options: Mapping[str, Option], command: str) -> str:
    at = next(i for i, typed in enumerate(args) if typed == word or typed.endswith(f"={word}"))
    before = [typed.partition("=")[0] for typed in args[: at + 1] if typed.startswith("--")]
    if before:
        option = options.get(before[-1])
        takes = "no value" if option is None or option.kind is bool else signature.in_words(option.kind)
        return f"{word!r} is one too many: {before[-1]} takes {takes}"
    positional = [name for name, option in options.items() if option.is_argument]
    return f"{word!r} is one too many: diffunet {command} takes {' '.join(positional) or 'none'}"


def _wrong_value(name: str, options: Mapping[str, Option], args: Sequence[str]) -> str:
    kind = options[name].kind
    values = _values(args, name)[: None if signature.is_several(kind) else 1]
    if not values:
        return f"{name} needs {signature.in_words(kind)}"
    choices = signature.choices(kind)
    choices += names.aliases(choices)
    wrong = next((value for value in values if choices and value not in choices), values[0])
    close = difflib.get_close_matches(wrong, choices, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if wrong in NOT_THERE.get(name, {}):
        hint = f": {NOT_THERE[name][wrong]}"
    return f"{name} takes {signature.in_words(kind)}, not {' '.join(values)!r}{hint}"


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


def _out_of_bounds(error: ValidationError, options: Mapping[str, Option]) -> str:
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
