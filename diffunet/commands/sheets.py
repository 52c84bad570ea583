"""Several pictures laid out in one: a grid of samples, and a sheet of fillings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from diffunet.inpainting.part import Masked

SHEET_WIDTH = 2000
"""Pixels; the pictures on a sheet are made smaller where it would be wider."""
HOLE = (255, 0, 255)
"""Colour of a hole on a sheet, which few images have."""


def grid(pictures: list[Image]) -> Image:
    """Return one picture of equally large pictures, about square."""
    import numpy as np

    from diffunet.pictures import images

    return images.grid([np.atleast_3d(np.asarray(picture)) for picture in pictures])


def sheet(masked: Masked, fillings: list[Image]) -> Image:
    """Return an RGB picture of the image with its hole in magenta, and then its fillings: in one row up to five in
    all, else about square. Transparency is laid over white; a colour profile of RGB is kept.
    """
    from PIL import Image as pillow

    from diffunet.pictures import images

    picture, count = masked.picture, 1 + len(fillings)
    columns = count if count <= 5 else math.ceil(math.sqrt(count))
    scale = min(1.0, SHEET_WIDTH / (columns * picture.width))
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))

    def tile(image: Image) -> NDArray[np.uint8]:
        return images.to_array(image.resize(size, pillow.Resampling.BILINEAR), 3, white=masked.white)

    shown = images.to_array(picture, 3, white=masked.white)
    shown[masked.hole] = HOLE  # before it is made smaller, which would mix erased pixels in beside the hole
    laid = images.grid([tile(images.from_array(shown)), *map(tile, fillings)], columns)
    if picture.mode in ("RGB", "RGBA") and "icc_profile" in picture.info:
        laid.info["icc_profile"] = picture.info["icc_profile"]
    return laid
