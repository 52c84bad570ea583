"""Known data sets as image folders: one subfolder for each class, PNG files with zero-padded numbers."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffunet.data.folder import Progress, printable
from diffunet.errors import DataError, Error, ResourceError, UsageError
from diffunet.files import replace
from diffunet.pictures import images
from diffunet.pictures.images import Pixels

DIGITS_SIZE = 16

_FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")


@dataclass(frozen=True)
class Known:
    """A data set: `load(download_root)` gives pairs of image and label by number, and `names` of the classes if it
    has no `classes` of its own."""

    load: Callable[[Path], Any]
    names: tuple[str, ...] = ()


def _torchvision(name: str, **options: Any) -> Callable[[Path], Any]:
    def load(root: Path) -> Any:
        from torchvision import datasets

        return getattr(datasets, name)(root=root, download=True, **options)

    return load


def _digits(root: Path) -> list[tuple[Image.Image, int]]:
    pixels, labels = load_digits_arrays()
    return [(images.from_array(image), int(label)) for image, label in zip(pixels, labels, strict=True)]


_NUMBERS = tuple(str(n) for n in range(10))

DATASETS: dict[str, Known] = {
    "digits": Known(_digits, _NUMBERS),
    "mnist": Known(_torchvision("MNIST", train=True), _NUMBERS),
    "fashion-mnist": Known(_torchvision("FashionMNIST", train=True), _FASHION),
    "cifar10": Known(_torchvision("CIFAR10", train=True)),
    "cifar100": Known(_torchvision("CIFAR100", train=True)),
    "svhn": Known(_torchvision("SVHN", split="train"), _NUMBERS),
    "flowers102": Known(_torchvision("Flowers102", split="test")),  # its "test" is the largest part, 6,149 images
    "stl10": Known(_torchvision("STL10", split="train")),
}


def load_digits_arrays() -> tuple[Pixels, NDArray[np.int64]]:
    """scikit-learn's handwritten digits: uint8 [1797 16 16 1], white on black, and their labels, int64 [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 8x8, 0..16
    large = [images.resize(image[..., None], DIGITS_SIZE, DIGITS_SIZE) for image in small]
    return np.stack(large), digits.target.astype(np.int64)


def prepare(
    name: str,
    out: Path,
    *,
    download_root: Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write the data set `name` to the folder `out` and return the number of images.

    Downloads are kept in `download_root`, or dropped where there is none. `limit` takes so many, spread evenly over the
    data set. `out` is there when all is written, and not before.

    Raises:
        UsageError: a name that is not in `DATASETS`, or an `out` that holds something.
        DataError: a download that failed.
        ResourceError: a disk that is full or a folder that cannot be written.
    """
    known = DATASETS.get(name)
    if known is None:
        close = difflib.get_close_matches(name, DATASETS, cutoff=0.4) or list(DATASETS)
        raise UsageError(f"no data set {name!r}; did you mean {' or '.join(close)}? (all: {', '.join(DATASETS)})")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{printable(str(out))}: exists and is not an empty folder; choose another name or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as parts:
            temporary = Path(parts)
            data = _load(name, known, download_root or temporary / "download")
            count = _write(data, known.names or _names_of(data), temporary / "images", limit, progress)
            if out.exists():
                out.rmdir()  # empty; Windows does not rename over a folder
            replace(temporary / "images", out)
    except OSError as error:
        raise ResourceError(f"{printable(str(out))}: cannot be written: {error.strerror or error}") from error
    return count


def _load(name: str, known: Known, download_root: Path) -> Any:
    try:
        download_root.mkdir(parents=True, exist_ok=True)
        return known.load(download_root)
    except Error:
        raise
    except Exception as error:  # no network, a moved address, a checksum, a disk: torchvision raises any of a dozen
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name} cannot be downloaded: {reason}") from error


def _names_of(data: Any) -> tuple[str, ...]:
    """Its class names; numbers where it has none."""
    names = getattr(data, "classes", None)
    if names:
        return tuple(cast("Sequence[str]", names))
    return tuple(str(n) for n in range(1 + max(int(label) for _, label in data)))


def _write(data: Any, names: Sequence[str], out: Path, limit: int | None, progress: Progress | None) -> int:
    total = len(data)
    count = min(total, limit) if limit else total
    folders = [_folder_name(name) for name in names]
    digits = len(str(total - 1))
    for folder in folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
    for done, n in enumerate(_spread(total, count), 1):
        image, label = data[n]
        image.save(out / folders[int(label)] / f"{n:0{digits}}.png")
        if progress is not None:
            progress(done, count)
    return count


def _spread(total: int, count: int) -> Iterable[int]:
    return (n * total // count for n in range(count))


def _folder_name(name: str) -> str:
    """A class name that is a folder name on every system."""
    return "".join(c if c.isalnum() or c in "-_ " else "_" for c in name).strip() or "_"
