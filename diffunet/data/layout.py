"""How an image is stored for training: from a file to uint8 pixels of nearly the right size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from diffunet.data.folder import ImageFile, native
from diffunet.pictures import images
from diffunet.pictures.images import Pixels

MAX_ASPECT = 4  # a panorama keeps its middle: this many times its short side


@dataclass(frozen=True)
class Layout:
    """How an image is stored: its size, channels and background."""

    image_size: int
    channels: int
    fit: str
    background: tuple[int, int, int]
    margin: float

    @property
    def short(self) -> int:
        """The short side in the store; with fit "pad" an upper bound of it."""
        return max(self.image_size, round(self.image_size * self.margin)) if self.fit == "random" else self.image_size

    def arrange(self, pixels: Pixels) -> Pixels:
        """uint8 [H W C] of a file to what is stored: never stretched, long sides cut for the fits that crop anyway."""
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
    """A file and its stored form. DataError with the reason where it cannot be used."""
    content = images.read_bytes(root / native(path))
    # Twice the size that is wanted, so that most of the shrinking is left to the better filter of `resize`.
    with images.decoding(content, draft=2 * layout.short) as decoded:
        file = ImageFile(
            path, hashlib.sha256(content).hexdigest(), decoded.width, decoded.height, decoded.mode, decoded.format
        )
        return file, layout.arrange(images.to_array(decoded.image, layout.channels, layout.background))
