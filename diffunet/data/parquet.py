"""Images in the rows of parquet files, as the data sets on the Hugging Face hub have them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import huggingface_hub

from diffunet.data import splits
from diffunet.errors import DataError, UsageError

ADDRESS = "https://huggingface.co/datasets/"
"""The beginning of the web address of a data set; its name follows."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_CONVERTED = "refs/convert/parquet"  # the hub's own conversion of data sets that are not parquet
_LABELS = ("label", "labels", "class", "fine_label", "target", "category")
TIMEOUT = 10.0
"""Seconds after which a hub that does not answer is taken to be out of reach."""


class Row(NamedTuple):
    """A row: its image as the bytes of a file, its class, if it has any, and the part of the data set that it is in."""

    image: bytes
    label: str | None
    part: str | None


def is_name(text: str) -> bool:
    """Return whether `text` is the name or address of a data set on the hub, perhaps with a config after a colon."""
    name = text.removeprefix(ADDRESS).rstrip("/").partition(":")[0]
    return bool(_NAME.fullmatch(name)) and not Path(text).exists() and not Path(text).parent.exists()


def from_hub(text: str) -> tuple[list[tuple[Path, str | None]], str]:
    """Download the parquet files of a data set on the hub, where huggingface_hub keeps downloads.

    Returns:
        Each file with the part of the data set that it is of, and the commit.

    Raises:
        DataError: the hub cannot be reached, or the data set does not exist, may not be read or has no parquet files.
        UsageError: it has several configs, and none is named.
    """
    from huggingface_hub import errors

    name, _, config = text.removeprefix(ADDRESS).rstrip("/").partition(":")
    try:
        for revision in (None, _CONVERTED):
            info = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT)
            found = sorted(file.rfilename for file in info.siblings or [] if file.rfilename.endswith(".parquet"))
            if found:
                break
        else:
            raise DataError(
                f"{name} on the hub has no parquet files; give the address of an archive in it, if it has one"
            )
        chosen = _of_config(name, config, found)
        options: dict[str, Any] = {"repo_type": "dataset", "revision": info.sha, "etag_timeout": TIMEOUT}
        paths = [(Path(huggingface_hub.hf_hub_download(name, path, **options)), part) for path, part in chosen]
        return paths, str(info.sha)
    except errors.GatedRepoError:
        raise DataError(f"{name} is gated: ask for access on {ADDRESS}{name} and log in: hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"{name} is neither a file or folder here nor a public data set of the hub; if it is private: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{name} on the hub has no parquet files, nor any that the hub made of it") from None
    # The HTTP library of huggingface_hub depends on its version; hf_xet raises RuntimeError.
    except (OSError, RuntimeError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name} cannot be read from the hub ({reason}): check the network") from None


def parts_of(paths: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """Return the path, the config and the part (train, test) of parquet files: data/train-00000-of-00002.parquet."""
    found = []
    for path in paths:
        folders, base = list(PurePosixPath(path).parent.parts), PurePosixPath(path).stem
        first = re.split(r"[-_.]", base)[0]
        part = first if splits.kind_of(first) else None
        if part is None and folders and splits.kind_of(folders[-1]):
            part = folders.pop()
        found.append((path, "/".join(folder for folder in folders if folder != "data") or "default", part))
    return found


def _of_config(name: str, config: str, paths: Sequence[str]) -> list[tuple[str, str | None]]:
    found = parts_of(paths)
    configs = sorted({of for _, of, _ in found})
    if config and config not in configs:
        raise UsageError(f"{name} has no config {config}; it has {', '.join(configs)}")
    if not config and len(configs) > 1:
        raise UsageError(f"{name} has several configs ({', '.join(configs[:8])}): name one, as {name}:{configs[0]}")
    return [(path, part) for path, of, part in found if of == (config or configs[0])]


def count(files: Sequence[tuple[Path, str | None]]) -> int:
    """Return the number of rows of parquet files, or raise as `rows`."""
    return sum(_opened(path).metadata.num_rows for path, _ in files)


def rows(files: Sequence[tuple[Path, str | None]]) -> Iterator[Row | None]:
    """Yield the rows of parquet files, each with its part; None for a row that has no image.

    Raises:
        UsageError: pyarrow, which reads them, is not installed.
        DataError: a file cannot be read, or has no column of images.
    """
    for path, part in files:
        file = _opened(path)
        image, label, names = _columns(file, path)
        try:
            for batch in file.iter_batches(batch_size=64, columns=[image] + ([label] if label else [])):
                labels = batch.column(label).to_pylist() if label else [None] * batch.num_rows
                for value, own in zip(batch.column(image).to_pylist(), labels, strict=True):
                    content = value.get("bytes") if isinstance(value, dict) else value
                    if isinstance(value, dict) and content is None and value.get("path"):
                        raise DataError(f"{path.name}: its images are not in it but beside it ({value['path']})")
                    yield Row(content, _named(own, names, path), part) if content else None
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are of these
            raise DataError(f"{path}: is damaged: {' '.join(str(error).split())[:200]}") from None


def _opened(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UsageError("parquet files are read by pyarrow, which is not installed: pip install pyarrow") from None
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged, or no parquet file: {' '.join(str(error).split())[:200]}") from None


def _columns(file: Any, path: Path) -> tuple[str, str | None, list[str] | None]:
    """Return the column of images, that of labels, if any, and the names of the classes."""
    import pyarrow

    schema, features = file.schema_arrow, dict[str, Any]()
    with contextlib.suppress(KeyError, ValueError, TypeError):
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    kinds = {name: kind.get("_type") for name, kind in features.items() if isinstance(kind, dict)}
    types = {field.name: field.type for field in schema}
    images = [name for name in types if kinds.get(name) == "Image"]
    images = images or [
        name for name, of in types.items() if pyarrow.types.is_struct(of) and of.get_field_index("bytes") >= 0
    ]
    images = images or [
        name for name, of in types.items() if pyarrow.types.is_binary(of) or pyarrow.types.is_large_binary(of)
    ]
    if not images:
        raise DataError(f"{path.name}: has no column of images; its columns are {', '.join(list(types)[:10])}")
    image = next((name for name in ("image", "img", "images") if name in images), images[0])
    labels = [name for name in types if kinds.get(name) == "ClassLabel"] + [name for name in _LABELS if name in types]
    scalars = [name for name in labels if _is_label(types[name])]
    label = next((name for name in _LABELS if name in scalars), scalars[0] if scalars else None)
    return (
        image,
        label,
        features.get(label, {}).get("names") if label and isinstance(features.get(label), dict) else None,
    )


def _is_label(kind: Any) -> bool:
    """Return whether a type of pyarrow is one of whole numbers or names."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind  # as a categorical of pandas
    names = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(types.is_integer(kind) or names)


def _named(label: Any, names: list[str] | None, path: Path) -> str | None:
    if label is None or label == -1:  # the hub's mark for a label that is kept secret
        return None
    if names is not None and isinstance(label, int):
        if not 0 <= label < len(names):
            raise DataError(f"{path.name}: has the label {label}, and there are {len(names)} classes")
        return names[label]
    return str(label)
