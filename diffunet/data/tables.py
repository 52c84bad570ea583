"""Tables that say something of each image: .tsv, .csv, .jsonl, and the dataset.json of StyleGAN and EDM.

An image's row has its path below the data folder, or its bare name where only one folder has it.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffunet.data.listing import composed, printable
from diffunet.errors import UsageError

KEYS = ("file", "file_name")
"""The names of the column with an image's path; where there is none of them, the first one has it."""

_OF = {"data.group": "groups", "data.labels": "classes"}
"""What the options say of images."""

MAX_BYTES = 2**30


def read(
    file: Path, column: str | None, *, usual: str | None = None, option: str, content: bytes | None = None
) -> dict[str, str]:
    """Return what a table says of each image, by the image's path or name; an empty text where it says nothing.

    Args:
        file: ends in .tsv, .csv, .jsonl or .json.
        column: that is read. By default the column `usual`, if there is one, else the only other one than the paths';
            without `usual` the first other one.
        usual: see `column`.
        option: the option that names the file, for messages.
        content: of the file, where it is in an archive.

    Raises:
        UsageError: the file cannot be read, has no such column, says two things of an image, or a list or an object.
    """
    found: dict[str, str] = {}
    try:
        if content is None and file.stat().st_size > MAX_BYTES:
            raise ValueError("it is larger than 1 GiB")
        text = (file.read_bytes() if content is None else content).decode("utf-8-sig")
        for image, value in _rows(file, text, column, usual, option):
            name, told = plain_name(image), _text(value, file, image, option)
            if found.setdefault(name, told) != told:
                raise UsageError(f"{option}: {file} has {image} in the {_OF[option]} {found[name]} and {told}")
    except OSError as error:
        raise UsageError(f"{option}: {file} cannot be read: {error.strerror or error}") from None
    except (ValueError, csv.Error, RecursionError) as error:  # ValueError: no UTF-8, no JSON
        raise UsageError(f"{option}: {file} cannot be read: {error}") from None
    return found


def plain_name(path: str) -> str:
    """Return a path as tables and folders are compared by: in one form of Unicode, without ./ at its beginning."""
    return composed(path.removeprefix("./"))


def matched(paths: Iterable[str], file: Path, rows: dict[str, str], *, option: str) -> Iterator[str | None]:
    """Yield what the rows of a table say of each path in turn, or None where it has no row.

    Raises:
        UsageError: a row has a bare name that several folders have.
    """
    names = [plain_name(path) for path in paths]
    listed = set(names)
    slashes = {name.replace("\\", "/"): name for name in rows if "\\" in name and name not in listed}  # of Windows
    # A bare name means the image at the top of the folder, if there is one, or else the only one of that name.
    bare = Counter(path.rpartition("/")[2] for path in names if path not in rows)
    for path in names:
        name = path.rpartition("/")[2]
        if path not in rows and path not in slashes and name in rows and name not in listed:
            if bare[name] > 1:
                raise UsageError(
                    f"{option}: {file} names {printable(name)}, which {bare[name]} folders have: name it with its "
                    "folder, such as " + printable(path)
                )
            yield rows[name]
        else:
            yield rows.get(slashes.get(path, path))


def _rows(file: Path, text: str, column: str | None, usual: str | None, option: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each row of the text of a file."""
    suffix = file.suffix.lower()
    if suffix == ".json":
        content = json.loads(text)
        labels = content.get(column or "labels") if isinstance(content, dict) else None
        if not labels:
            raise UsageError(f'{option}: {file} has no {column or "labels"}; they look like "labels": [["a.png", 0]]')
        for pair in labels.items() if isinstance(labels, dict) else labels:
            if not (isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str)):
                raise ValueError(f"{str(pair)[:60]} is no pair of a path and a label")
            yield pair[0], pair[1]
        return
    lines = io.StringIO(text, newline="")
    if suffix == ".jsonl":
        objects = (json.loads(line) for line in lines if line.strip())
        for number, row in enumerate(objects, 1):
            if not isinstance(row, dict):
                raise ValueError(f"its line {number} is no JSON object")
            key, value = _columns(list(row), column, usual, file, option)
            yield str(row[key]), row[value]
        return
    # In text with tabs a quotation mark is a character like others.
    tabs: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
    table = csv.reader(lines, strict=True, **tabs)
    header = next(table, [])
    key, value = _columns(header, column, usual, file, option)
    first, second = header.index(key), _other(header, header.index(key), value)
    for cells in table:
        if cells:
            yield cells[first] if first < len(cells) else "", "".join(cells[second : second + 1])


def _other(header: Sequence[str], key: int, value: str) -> int:
    return next(n for n, name in enumerate(header) if n != key and name == value)


def _columns(header: Sequence[str], column: str | None, usual: str | None, file: Path, option: str) -> tuple[str, str]:
    """Return the names of the column of paths and of that which is read."""
    key = next((n for n, name in enumerate(header) if name in KEYS), 0)
    others = [name for n, name in enumerate(header) if n != key]
    if column is not None:
        chosen = [name for name in others if name == column]
    elif usual is not None:
        chosen = [name for name in others if name == usual] or (others if len(others) == 1 else [])
    else:
        chosen = others
    if not chosen:
        wanted = column if column is not None else usual
        other = f"; another one is named by {file.name}:COLUMN" if others and column is None else ""
        named, columns = "" if wanted is None else f"{wanted!r} ", ", ".join(map(str, header))
        raise UsageError(f"{option}: {file} has no column {named}of {_OF[option]}; its columns are {columns}{other}")
    return header[key], chosen[0]


def _text(value: Any, file: Path, image: str, option: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):  # bool is an int
        raise UsageError(f"{option}: {file} has {str(value)[:60]} for {printable(image)}, and one name is needed")
    return str(value)
