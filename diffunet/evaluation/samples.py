"""Samples that anybody has made, in a folder of pictures, and how real images are read to be compared with them."""

import logging
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffunet import build
from diffunet.config import Config, DataConfig
from diffunet.data import labels
from diffunet.data.folder import class_of, printable
from diffunet.data.index import Index
from diffunet.errors import DataError, Error
from diffunet.pictures.images import Pixels
from diffunet.pictures.made import distinct_name, file_name, file_names

log = logging.getLogger(__name__)

_OURS = re.compile(r"\d+-\d{5,}-(.+)\.\w+")
"""The name of a picture as `diffunet sample` makes it: 0-00012-cat.png."""


class Samples:
    """All pictures of a folder, and the config of a model that would make such: of their size and their classes.

    Grey pictures make a model of one channel, all others one of three; what is transparent is laid over white.

    Args:
        folder: the samples, all square and of one size.
        data: the real images, whose classes, if they have any, are looked for in the samples.

    Raises:
        DataError: fewer than 2 pictures, one that cannot be read, that is not square or is of another size than the
            first, or pictures of diffunet among others.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        loose = build.dataset(DataConfig(cache="off", image_size=4, reading=2), folder)
        if loose.rejected:
            first = loose.rejected[0]
            raise DataError(f"{printable(str(folder))}: the sample {first.path} cannot be used: {first.reason}")
        if loose.left_out.outputs:
            raise DataError(
                f"{printable(str(folder))}: holds {loose.left_out.outputs:,} pictures that diffunet made beside "
                "others, and they would be passed over: give a folder of samples alone"
            )
        size = _side(loose.files, folder)
        channels = 1 if set(loose.files.table["mode"].tolist()) <= {b"1", b"L"} else 3
        self.config = Config.model_validate({"data": {"image_size": size, "channels": channels, "reading": 2}})
        self._data = build.dataset(self.config.data.model_copy(update={"cache": "off"}), folder)
        self.labels, names = self._labels(data)
        self.config = self.config.changed("data", class_names=names, held_out=0.0)

    def __len__(self) -> int:
        return len(self._data.files)

    def pictures(self) -> Pixels:
        """Return the samples, in the order of their paths, uint8 [N H W C]."""
        return np.stack([self._data.images[i] for i in range(len(self))])

    def some(self, num: int, seed: int) -> NDArray[np.int64]:
        """Return the ascending numbers of `num` of them, or of all, drawn from the seed."""
        return np.sort(np.random.Generator(np.random.Philox(key=[seed, 6])).permutation(len(self))[:num])

    def _labels(self, data: Path) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        real = build.dataset(self.config.data, data)
        try:
            names = labels.find(data, real.files.paths, None, given=real.classes).names
        except Error:
            return None, ()
        forms = (map(distinct_name, names), file_names(tuple(names)), names)
        number = {name: n for known in forms for n, name in enumerate(known)}
        told = map(_class_of, self._data.files.paths)
        found = [number.get(name, number.get(file_name(name), -1)) for name in told]
        if min(found) < 0:
            log.info("measured without labels: %d of %d samples name no class of DATA", found.count(-1), len(found))
            return None, ()
        return np.array(found), names


def _class_of(path: str) -> str:
    """Return the class that the path of a sample names, by its folder or as `diffunet sample` does; "" for none."""
    match = _OURS.fullmatch(path.rpartition("/")[2])
    return class_of(path) or (match[1] if match else "")


def _side(files: Index, folder: Path) -> int:
    """Return the side of all pictures in pixels, or raise DataError."""
    shown, first = printable(str(folder)), files[0]
    if len(files) < 2:
        raise DataError(f"{shown}: has one sample, and a comparison needs 2 at least")
    for file in files:
        if file.width != file.height:
            size = f"{file.width}x{file.height}"
            raise DataError(f"{shown}: the sample {printable(file.path)} is {size}, and samples are square")
        if file.width != first.width:
            raise DataError(
                f"{shown}: samples are of one size, and {printable(first.path)} has {first.width} pixels a side, "
                f"{printable(file.path)} {file.width}"
            )
    return first.width
