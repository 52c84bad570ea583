"""What diffunet.commands.arguments relies on in tyro, some of which is private and may change in any release."""

import contextlib
import dataclasses
from typing import Annotated, Literal

import pytest
import tyro
from tyro.conf import Positional, arg

from diffunet.commands import arguments
from diffunet.commands.cli import main
from diffunet.commands.train import Train

try:
    from tyro._errors import on_parse_error
except ImportError:
    on_parse_error = None

CHANGED = (
    f"tyro {tyro.__version__} complains in another way than the versions that pyproject.toml allows: adapt "
    "diffunet/commands/arguments.py (on_parse_error, _mistake, _name) and the bounds on tyro"
)


class Complaint(Exception):
    pass


class TooDeep(ValueError):
    pass


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 1
    """How deep."""

    def __post_init__(self):
        if self.depth < 0:
            raise TooDeep("too deep")


def command(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    /,
    out: str,
    kind: Literal["a", "b"] = "a",
    betas: tuple[float, float] = (0.0, 1.0),
    steps: int | None = None,
    inner: Inner = Inner(),
) -> None:
    """Do something.

    Args:
        model: The model.
        out: The
            output.
        kind: Of two.
    """


def complaint(*args):
    """The event by which tyro refuses `args`, with what was raised before it."""
    assert on_parse_error is not None, CHANGED

    def refuse(event):
        raise Complaint(event)

    with pytest.raises(Complaint) as raised, on_parse_error(refuse):
        tyro.cli(command, args=args, prog="command")
    return raised.value.args[0], raised.value.__context__


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ("MODEL --out x --kind c", "--kind"),
        ("MODEL --out x --betas 1", "--betas"),
        ("MODEL --out x --betas 1 y", "--betas"),
        ("MODEL --out x --steps y", "--steps"),
        ("MODEL --out x --inner.depth y", "--inner.depth"),
        ("MODEL --out", "--out"),
    ],
)
def test_a_wrong_value_names_its_option(args, name):
    event, _ = complaint(*args.split())
    assert getattr(event, "argument", None) is not None, CHANGED
    assert arguments._name(event.argument) == name, CHANGED


def test_missing_arguments_have_names():
    event, _ = complaint()
    assert hasattr(event, "missing_arguments"), CHANGED
    assert [arguments._name(missing.arg) for missing in event.missing_arguments] == ["MODEL", "--out"], CHANGED


@pytest.mark.parametrize("args", ["MODEL more --out x", "MODEL --out x more", "MODEL --out x --steps 1 more"])
def test_words_too_many_are_named(args):
    event, _ = complaint(*args.split())
    assert getattr(event, "tokens", None) == ["more"], CHANGED


def test_what_an_object_refuses_can_be_found_by_its_exception():
    event, exception = complaint("MODEL", "--out", "x", "--inner.depth", "-1")
    assert (event.argument, event.message) == (None, "too deep"), CHANGED
    while exception is not None and not isinstance(exception, TooDeep):
        exception = exception.__context__
    assert exception is not None, CHANGED


@pytest.mark.parametrize("before", ["true", "false"])
@pytest.mark.parametrize(("word", "found"), [("--data.balance", True), ("--data.no-balance", False)])
def test_a_switch_is_typed_both_ways_whatever_its_default_is(before, word, found, tmp_path):
    """The command of a run is typed again to resume it, when what it said has become the default."""
    (tmp_path / "c.toml").write_text(f"[data]\nbalance = {before}\n")
    base = arguments.base_config(["--config", str(tmp_path / "c.toml")], lambda base: tmp_path)
    default = Train(tyro.MISSING, tyro.MISSING, **dict(base))
    assert arguments.parse(Train, ["photos", "--out", "x", word], "train", default).data.balance is found


def test_a_tyro_without_such_complaints_still_refuses(monkeypatch, capsys):
    monkeypatch.setattr(arguments, "on_parse_error", contextlib.nullcontext)
    with pytest.raises(SystemExit) as stop:
        main(["check", "DATA", "--image-size", "abc"])
    assert stop.value.code == 2
    assert "--image-size" in capsys.readouterr().err
