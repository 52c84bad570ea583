"""A folder of pictures notes which model and options made which of them, so that the outputs of two runs never mix."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffunet import files
from diffunet.errors import ResourceError, UsageError
from diffunet.version import __version__

if TYPE_CHECKING:
    from diffunet.sampling.pipeline import Pipeline
    from diffunet.storage import Model

NAME = "made.jsonl"
"""The file that notes it: a line for each run with its options, and one for each batch with the names of its files."""


class Record:
    """What is noted in a folder, and what a run notes there before it writes a picture.

    A picture is noted first and written then, whole or not at all: so what is noted and there is finished, however the
    run ended.

    Args:
        folder: it need not exist yet.
        options: all that decides what the pictures of this run look like, as JSON; the version is added.
        extra: what else is worth knowing of it, and may be another when it is resumed.
    """

    def __init__(self, folder: Path, options: dict[str, Any], **extra: Any) -> None:
        self.folder, self.extra = folder, extra
        self.options = {**options, "diffunet": __version__}
        self.run = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()[:16]
        self._runs: dict[str, dict[str, Any]] = {}
        self._made: dict[str, tuple[str, str]] = {}  # the run that made a picture and what of, by the file's name
        self._replaced: dict[str, int | None] = {}  # when the file was written that is there until this picture is
        try:
            text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        for line in text.splitlines():
            self._read(line)
        self._begun, self._torn = self.run in self._runs, text != "" and not text.endswith("\n")

    def _read(self, line: str) -> None:
        """Take in a line, unless a kill has torn it, or somebody else has written it, who may name files elsewhere."""
        try:
            entry = json.loads(line)
            run, options, pictures = entry["run"], entry.get("options"), entry.get("pictures", [])
            if not isinstance(run, str):
                return
            if isinstance(options, dict):
                self._runs[run] = entry
            elif isinstance(pictures, list) and all(map(files.is_within, pictures)):
                self._made |= dict.fromkeys(pictures, (run, entry.get("of", "")))
                self._replaced |= dict.fromkeys(pictures) | dict(entry.get("replaced", {}))
        except (ValueError, TypeError, KeyError, AttributeError):
            pass

    def names(self, paths: Iterable[Path]) -> list[str]:
        """Return the names by which files in the folder are noted."""
        return [path.relative_to(self.folder).as_posix() for path in paths]

    def before(self, name: str) -> Any:
        """Return what `extra` held under a name when this run was begun, None if it was not."""
        return self._runs.get(self.run, {}).get(name)

    def finished(self, names: Sequence[str], *, resume: bool, overwrite: bool, of: str = "") -> set[str]:
        """Return those of a run's files that are there and need not be made.

        Where some are missing and the others are of this very run, it goes on without `resume`, too. `of` is what they
        are made of, beside the options: files of another `of` are another's.

        Raises:
            UsageError: all are there, with neither `resume` nor `overwrite`; or, without `overwrite`, files of another
                model or of other options, or of which nothing is noted.
        """
        times = {name: time for name in names if (time := self._time(name)) is not None}
        there, noted = list(times), (self.run, of)
        ours = {name for name in there if self._made.get(name) == noted and self._replaced.get(name) != times[name]}
        if overwrite:
            return ours if resume else set()
        if others := [name for name in there if name not in ours]:
            raise UsageError(
                f"--out {self.folder / others[0]} exists, {self._difference(others[0])}: choose another folder, or say "
                "--overwrite"
            )
        if there and len(there) == len(names) and not resume:
            raise UsageError(f"--out {self.folder / there[0]} exists; choose another, or say --overwrite")
        return ours

    def _difference(self, name: str) -> str:
        theirs = self._runs.get(self._made.get(name, ("", ""))[0], {}).get("options")
        if theirs is None:
            return f"and {NAME} does not say what made it"
        for option, ours in self.options.items():
            if (its := theirs.get(option)) != ours:
                if option == "model":
                    return "made by another model"
                return f"made with another {option}" + (f", {its}, not {ours}" if len(f"{its}{ours}") <= 60 else "")
        return "made of another image or mask"

    def remove_others(self, options: Sequence[str], names: Iterable[str]) -> int:
        """Delete the pictures of other runs that have these options in common, but for `names`, which are replaced.

        Returns:
            How many were deleted.
        """
        names, deleted = set(names), 0
        for name, (run, _) in list(self._made.items()):
            theirs = self._runs.get(run, {}).get("options", {})
            same = all(theirs.get(each) == self.options[each] for each in ("command", *options))
            # As `sample` names them: no link or folder of somebody else's leads elsewhere.
            is_ours = not {"/", "\\"} & {*name} and name.endswith(".png") and (self.folder / name).is_file()
            if run != self.run and same and name not in names and is_ours:
                (self.folder / name).unlink(missing_ok=True)
                del self._made[name]
                deleted += 1
        return deleted

    def note(self, names: Sequence[str], of: str = "") -> None:
        """Note files that are about to be written, and when those of these names that are there were.

        Raises:
            ResourceError: the folder cannot be written.
        """
        there = {name: time for name in names if (time := self._time(name)) is not None}
        lines: list[dict[str, Any]] = []
        if not self._begun:
            lines.append({"run": self.run, "options": self.options, **self.extra})
        lines.append({"run": self.run, "pictures": [*names], "of": of, "replaced": there})
        text = "\n" * self._torn + "".join(json.dumps({k: v for k, v in line.items() if v}) + "\n" for line in lines)
        path = self.folder / NAME
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(f"{path} cannot be written: {error.strerror}; make room") from None
        self._begun, self._torn = True, False

    def _time(self, name: str) -> int | None:
        """Return when a file was written, in nanoseconds, or None where it is not there."""
        try:
            return (self.folder / name).stat().st_mtime_ns
        except OSError:
            return None


def asked(options: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """Return the options of a command as JSON has them, but those that do not change what its pictures look like."""
    return json.loads(json.dumps({k: v for k, v in options.items() if k not in but}, default=str))


def content(*paths: Path | None) -> str:
    """Return a hash of what files hold, None being no file. Raises UsageError where one cannot be read."""
    try:
        return " ".join("-" if path is None else files.sha256(path)[:16] for path in paths)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from None


def fingerprint(model: Pipeline | Model) -> str:
    """Return what tells a model from others: a hash of config and weights, in a pipeline's case as it computes with."""
    import torch

    found = hashlib.sha256(model.config.hash().encode())
    for name, tensor in model.denoiser.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:32]
