"""Known data sets, written as folders of images: a subfolder for each class, with numbered PNG files."""

import difflib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffunet import files
from diffunet.data import emoji
from diffunet.data.folder import Progress, printable
from diffunet.errors import DataError, Error, ResourceError, UsageError
from diffunet.pictures import images
from diffunet.pictures.images import Pixels

_NUMBERS = tuple("0123456789")
_FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")


class Known(NamedTuple):
    """A data set. `load(download_root)` returns a sequence of pairs of image and label.

    `names` are those of the classes, unless the sequence has them as its attribute `classes`.
    """

    load: Callable[[Path], Any]
    names: tuple[str, ...] = ()


def _torchvision(name: str, root: Path, **options: Any) -> Any:
    from torchvision import datasets

    return getattr(datasets, name)(root=root, download=True, **options)


def _digits(root: Path) -> list[tuple[Image.Image, int]]:
    return [(images.from_array(image), int(label)) for image, label in zip(*load_digits_arrays(), strict=True)]


DATASETS: dict[str, Known] = {
    "digits": Known(_digits, _NUMBERS),
    "mnist": Known(partial(_torchvision, "MNIST", train=True), _NUMBERS),
    "fashion-mnist": Known(partial(_torchvision, "FashionMNIST", train=True), _FASHION),
    "cifar10": Known(partial(_torchvision, "CIFAR10", train=True)),
    "cifar100": Known(partial(_torchvision, "CIFAR100", train=True)),
    "svhn": Known(partial(_torchvision, "SVHN", split="train"), _NUMBERS),
    "flowers102": Known(partial(_torchvision, "Flowers102", split="test")),  # the largest part, 6,149 images
    "stl10": Known(partial(_torchvision, "STL10", split="train")),
}


def load_digits_arrays() -> tuple[Pixels, NDArray[np.int64]]:
    """Return scikit-learn's handwritten digits, uint8 [1797 16 16 1], white on black, and the labels, int64 [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 8x8, 0..16
    return np.stack([images.resize(x[..., None], 16, 16) for x in small]), digits.target.astype(np.int64)


def prepare(
    name: str, out: Path, *, download_root: Path | None = None, limit: int | None = None, overwrite: bool = False,
    progress: Progress | None = None,
) -> int:  # fmt: skip
    """Write the data set `name` to the folder `out` and return the number of images.

    A download is kept in `download_root`, or else deleted. With `limit` only so many images are written, spread evenly
    over the data set. The folder `out` appears only when all is written; see `files.making` for `overwrite`.

    Raises:
        UsageError: `name` is not in `DATASETS`, or `out` is a file or holds something.
        DataError: The download failed.
        ResourceError: The disk is full or the folder cannot be written.
    """
    refuse(name)
    try:
        with files.making(out, name, overwrite=overwrite) as made:
            data = _load(name, download_root or made.parent / "download")
            classes = DATASETS[name].names or getattr(data, "classes", None)
            if not classes:
                classes = [str(n) for n in range(1 + max(int(label) for _, label in data))]
            count = _write(data, classes, made, limit, progress)
    except OSError as error:
        raise ResourceError(f"{printable(str(out))}: cannot be written: {error.strerror or error}") from error
    return count


def refuse(name: str) -> None:
    """Raise UsageError for a name that is not in `DATASETS`."""
    if name not in DATASETS:
        known = [*DATASETS, emoji.NAME]
        close = difflib.get_close_matches(name, known, cutoff=0.4) or known
        raise UsageError(
            f"no data set {name!r}, and no such file or folder; did you mean {' or '.join(close)}? (all: "
            f"{', '.join(known)}; or a web address, s3://..., or owner/name on the hub)"
        )


def _load(name: str, download_root: Path) -> Any:
    try:
        download_root.mkdir(parents=True, exist_ok=True)
        return DATASETS[name].load(download_root)
    except Error:
        raise
    except Exception as error:  # no network, a moved address, a wrong checksum: torchvision raises any of a dozen types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{name} cannot be downloaded: {reason}") from error


def _write(data: Any, classes: Sequence[str], out: Path, limit: int | None, progress: Progress | None) -> int:
    total = len(data)
    count = min(total, limit or total)
    # A name in a form that is the name of a folder on every system.
    folders = [out / (re.sub(r"[^\w\- ]", "_", name).strip() or "_") for name in classes]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for done in range(count):
        n = done * total // count
        image, label = data[n]
        image.save(folders[int(label)] / f"{n:0{len(str(total - 1))}}.png")
        if progress is not None:
            progress(done + 1, count)
    return count
