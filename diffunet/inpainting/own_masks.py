"""Stores of masks, from which a run that learns to inpaint draws its holes: drawn beforehand, or of one's own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffunet import draws
from diffunet.data import folder
from diffunet.errors import DataError, UsageError
from diffunet.inpainting import masks
from diffunet.inpainting.masks import Hole
from diffunet.inpainting.reading import read_mask

log = logging.getLogger(__name__)


STOCK = 4096
"""The masks that are drawn beforehand for a run on a GPU; turned and mirrored they are eight times as many holes."""


class MaskStore:
    """Holes of a square of `size` pixels, which are drawn out of it in all eight positions.

    Args:
        holes: bool [size size] each; kept as bits.
        size: of the holes.
    """

    def __init__(self, holes: Sequence[Hole], size: int) -> None:
        self._size, self._holes = size, np.stack([np.packbits(hole) for hole in holes])

    @classmethod
    def drawn(cls, kind: str, size: int, seed: int) -> MaskStore:
        """Return `STOCK` random masks, see `masks.random_mask`.

        Drawing one takes some 200 microseconds of one core at 64 pixels, ten times as long as taking one out of a
        store: a GPU that learns from thousands of images a second would wait for them.
        """
        key = draws.seed_of("masks", seed)
        return cls([masks.random_mask(kind, size, size, draws.generator(key, 0, n)) for n in range(STOCK)], size)

    def __len__(self) -> int:
        return len(self._holes)

    def draw(self, uniform: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return the holes [n size size] that belong to n numbers in [0, 1), of each mask and position equally many.

        A position is a turn by a multiple of 90 degrees, mirrored or not.
        """
        numbers, positions = np.divmod((uniform * (8 * len(self))).astype(np.int64), 8)
        bits = np.unpackbits(self._holes[numbers], axis=1, count=self._size**2)
        holes = bits.view(bool).reshape(-1, self._size, self._size)
        for position in range(1, 8):
            these = positions == position
            turned = np.rot90(holes[these], position % 4, (1, 2))
            holes[these] = turned[:, :, ::-1] if position >= 4 else turned
        return holes


class OwnMasks(MaskStore):
    """The holes of the masks in a folder, taken to a square of `size` pixels; what is thin survives.

    `index` lists them, as `sha256sum` does.

    Args:
        root: a folder of masks, white = fill, as of images; masks without a hole and unreadable ones are left out.
        size: of the holes.

    Raises:
        UsageError: there is no such folder.
        DataError: it holds no mask that has a hole.
    """

    def __init__(self, root: Path, size: int) -> None:
        if not root.is_dir():
            raise UsageError(f"data.mask_folder: {root} is no folder")
        holes, lines, empty = list[Hole](), list[str](), 0
        paths, rejected = folder.list_images(root)
        for path in paths:
            file = root / folder.native(path)
            try:
                hole = masks.hole_of(read_mask(file).mask)
            except DataError as error:
                rejected.append(folder.Rejected(folder.printable(path), str(error)))
                continue
            if not hole.any():
                empty += 1
                continue
            holes.append(masks.shrink(hole, size, size))
            lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {folder.printable(path)}\n")
        for mask in rejected[:20]:
            log.warning("left out of the masks: %s: %s", mask.path, mask.reason)
        if empty:
            log.warning("left out of the masks: %d with nothing to fill, which have no white", empty)
        if not holes:
            raise DataError(f"data.mask_folder: no mask in {root} has anything to fill (white = fill)")
        super().__init__(holes, size)
        self.index = "".join(lines)
