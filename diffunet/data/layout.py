"""The form in which an image is stored for training: uint8 pixels of nearly the right size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from diffunet.data.folder import ImageFile, native
from diffunet.pictures import images
from diffunet.pictures.images import Pixels

MAX_ASPECT = 4
"""The largest ratio of the sides: of a longer image the middle is kept, for the fits that crop anyway."""


@dataclass(frozen=True)
class Layout:
    """The form in which the images of a data set are stored; see `open_dataset` for the fields."""

    image_size: int
    channels: int
    fit: str
    background: tuple[int, int, int]
    margin: float

    @property
    def short(self) -> int:
        """The length in pixels of a stored image's short side, or with fit "pad" the most that it can be."""
        return max(self.image_size, round(self.image_size * self.margin)) if self.fit == "random" else self.image_size

    def arrange(self, pixels: Pixels) -> Pixels:
        """Return the pixels of a file, uint8 [H W C], resized to the size that is stored; they are never stretched."""
        h, w, _ = pixels.shape
        if self.fit == "pad":
            scale = self.image_size / max(h, w)
            return images.resize(pixels, max(1, round(h * scale)), max(1, round(w * scale)))
        cap = MAX_ASPECT * min(h, w)
        top, left = max(0, h - cap) // 2, max(0, w - cap) // 2
        pixels = pixels[top : top + cap, left : left + cap]
        h, w, _ = pixels.shape
        scale = self.short / min(h, w)
        return images.resize(pixels, max(self.short, round(h * scale)), max(self.short, round(w * scale)))


def read(root: Path, path: str, layout: Layout) -> tuple[ImageFile, Pixels]:
    """Read a file and return the facts about it and its pixels as stored, or raise DataError with the reason."""
    content = images.read_bytes(root / native(path))
    # Decoded at twice the size that is wanted at least, so that the better filter of `resize` does the last halving.
    with images.decoding(content, draft=2 * layout.short) as decoded:
        file = ImageFile(path, hashlib.sha256(content).hexdigest(), *decoded[1:])
        return file, layout.arrange(images.to_array(decoded.image, layout.channels, layout.background))
