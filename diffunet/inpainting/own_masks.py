"""Masks of one's own, from which a run that learns to inpaint draws its holes."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np

from diffunet.data import folder
from diffunet.errors import DataError, UsageError
from diffunet.inpainting import masks
from diffunet.inpainting.masks import Hole
from diffunet.inpainting.reading import read_mask

log = logging.getLogger(__name__)


class OwnMasks:
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
        self._size, holes, lines, empty = size, list[bytes](), list[str](), 0
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
            holes.append(np.packbits(masks.shrink(hole, size, size)).tobytes())
            lines.append(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {folder.printable(path)}\n")
        for mask in rejected[:20]:
            log.warning("left out of the masks: %s: %s", mask.path, mask.reason)
        if empty:
            log.warning("left out of the masks: %d with nothing to fill, which have no white", empty)
        if not holes:
            raise DataError(f"data.mask_folder: no mask in {root} has anything to fill (white = fill)")
        self.index, self._holes = "".join(lines), holes

    def __len__(self) -> int:
        return len(self._holes)

    def draw(self, generator: np.random.Generator) -> Hole:
        """Draw a hole [size size]: one of the masks, turned by a multiple of 90 degrees, and mirrored or not."""
        number, turns, mirrored = (int(generator.integers(n)) for n in (len(self._holes), 4, 2))
        bits = np.unpackbits(np.frombuffer(self._holes[number], np.uint8), count=self._size**2)
        hole = np.rot90(bits.reshape(self._size, self._size).astype(bool), turns)
        return hole[:, ::-1] if mirrored else hole
