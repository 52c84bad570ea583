"""The config: typed sections that say all about a run, validated before anything is done.

None stands for a value that training chooses by the images and the device; `RUN/config.toml` holds what it chose. The
string below each field of a section is its help on the command line.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, model_validator

from diffunet import plain
from diffunet.config.data import DataConfig as DataConfig
from diffunet.config.diffusion import DiffusionConfig as DiffusionConfig
from diffunet.config.fields import Section as Section
from diffunet.config.model import ModelConfig as ModelConfig
from diffunet.config.train import TrainConfig as TrainConfig
from diffunet.errors import UsageError

PRESETS = Path(__file__).parents[1] / "presets"

VERSION = 1
"""The version of the format of config files; files of another version are refused."""

LATER: dict[str, Any] = {
    "group": None, "labels": None, "balance": False, "balance_groups": False, "scales": [1.0], "range": None,
    "int_range": None, "float_range": None, "pages": "first", "reading": None, "mask_folder": None, "all_hole": 0.1,
}  # fmt: skip
"""Options of the data that came later, with the value that leaves a config's hash as it was without them."""

MAX_BYTES = 2**24
"""The size above which a file is not read as a config."""


@contextlib.contextmanager
def _in_words(where: str = "") -> Iterator[None]:
    """Raise what pydantic complains of as one UsageError, which ends with `where`."""
    try:
        yield
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UsageError("; ".join(problems[:5]) + more + where) from None


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _InWords
else:

    class _InWords(type(Section)):
        """What makes a Config: of `Config(...)`, too, a person is told in words what is wrong."""

        def __call__(cls, *args: Any, **sections: Any) -> Any:
            if args:
                raise UsageError(f"Config takes its sections by name, Config(**sections), not {plain.shown(args[0])}")
            with _in_words():
                return super().__call__(**sections)


class Config(Section, metaclass=_InWords):
    """A whole run: the net, the diffusion process, the images and the training."""

    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Config:
        """Return a Config of plain values. Raises UsageError as `validated` does, in place of pydantic's own error."""
        with _in_words():
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Config:
        """Return the Config that a JSON text holds. Raises UsageError as `validated` does."""
        with _in_words():
            return super().model_validate_json(json_data, **options)

    @model_validator(mode="before")
    @classmethod
    def _version(cls, content: Any) -> Any:
        """Check the version that a config file may state, and drop it: it is no property of the run."""
        if isinstance(content, dict) and "version" in content:
            if content["version"] != VERSION:
                raise ValueError(f"is of version {content['version']!r}; this diffunet reads {VERSION}: update it")
            content = {name: value for name, value in content.items() if name != "version"}
        return content

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.diffusion.mean is not None and len(self.diffusion.mean) != self.data.channels:
            raise ValueError(f"diffusion.mean has {len(self.diffusion.mean)} values for {self.data.channels} channels")
        return self

    def changed(self, section: str, **values: Any) -> Config:
        """Return a validated copy in which one section has other values.

        Raises:
            UsageError: for a value that is not allowed.
        """
        content = self.model_dump(exclude_unset=True)
        content.setdefault(plain.text("section", section), {}).update(values)
        return validated(content, "the command line")

    def hash(self) -> str:
        """Return the sha256 of what gives weights shapes and meaning: model, diffusion, and data without its cache."""
        content = self.model_dump(mode="json", include={"model", "diffusion", "data"})
        content["data"].pop("cache")
        for name, value in LATER.items():
            if content["data"][name] == value:
                del content["data"][name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """Return the config as TOML, with the version of the format; it leaves out None, which TOML cannot express."""
        import tomli_w

        return tomli_w.dumps({"version": VERSION, **self.model_dump(mode="json", exclude_none=True)})


def validated(content: Any, where: str) -> Config:
    """Return a Config of plain values, such as a parsed file; `where` names their source in error messages.

    Raises:
        UsageError: for options that do not exist or values that are not allowed. The message names each with its value,
            what is allowed, and the closest existing name.
    """
    with _in_words(f" (in {where})"):
        return super(Config, Config).model_validate(content)


def config_of(content: Any) -> Config:
    """Return what a program gives as a config: a Config as it is, a dict of its sections validated.

    Raises:
        UsageError: something else, or as `validated`.
    """
    if isinstance(content, Config):
        return content
    if isinstance(content, Mapping):
        return validated(dict(content), "the config")
    raise UsageError(f"config is a diffunet.Config or a dict of its sections, not {plain.shown(content)}")


def _problem(item: Any) -> str:
    *sections, last = item["loc"] or ("config",)
    if item["type"] == "extra_forbidden":
        section: Any = Config.model_fields[sections[0]].annotation if sections else Config
        close = difflib.get_close_matches(str(last), section.model_fields, n=1)
        if not sections:  # the name of an option without its section
            parts = {name: getattr(field.annotation, "model_fields", {}) for name, field in Config.model_fields.items()}
            close += [f"{name}.{last}" for name, options in parts.items() if last in options]
        meant = " or ".join(".".join([*sections, name]) for name in close)
        hint = f"; did you mean {meant}?" if close else ""
        return f"there is no option {'.'.join([*sections, _shortened(str(last))])}{hint}"
    # Besides the names of options, pydantic's location holds indices of tuples and the type of a union that was tried.
    path = ".".join(part for part in item["loc"] if isinstance(part, str) and "[" not in part)
    if item["type"] == "missing":  # an element of a tuple
        return f"{path}: too few values, {_shown(item['input'])}"
    message = item["msg"].removeprefix("Value error, ")
    value = f", not {_shown(item['input'])}" if isinstance(item["input"], str | int | float) else ""
    return f"{path or 'config'}: {message}{value}"


def _shown(value: Any) -> str:
    try:
        return _shortened(repr(value))
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a number of thousands of digits"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-15:]}"


def read_toml(path: str | Path) -> Config:
    """Read a config file; options that it does not state have their defaults.

    Raises:
        UsageError: for a file that cannot be read, has options or values that do not exist, or is of a later version.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"config {path} cannot be read: it is larger than {MAX_BYTES >> 20} MiB")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: text, TOML, an integer of 5,000 digits
        raise UsageError(f"config {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    return validated(content, str(path))


def preset_names() -> list[str]:
    """Return the names that `--preset` takes."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name: str) -> Config:
    """Return a config that comes with diffunet.

    Raises:
        UsageError: for an unknown name.
    """
    if name not in preset_names():
        close = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"there is no preset {name!r}{hint}; there are {', '.join(preset_names())}")
    return read_toml(PRESETS / f"{name}.toml")
