"""What a model that has learned to inpaint makes of held-out images, one for each kind of mask."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from diffunet import draws
from diffunet.errors import DataError
from diffunet.evaluation import run_reading
from diffunet.evaluation.reals import RealImages
from diffunet.inpainting import masks
from diffunet.names import MASK_KINDS
from diffunet.pictures import images
from diffunet.sampling.pipeline import Pipeline


def fillings(
    pipeline: Pipeline, data: Path, *, seed: int = 0, on_step: Callable[[int, int], None] | None = None
) -> dict[str, Image.Image]:  # fmt: skip
    """Return for each kind of mask a row of three: an image, what is left of it, and how the model fills it in.

    Args:
        pipeline, data: the model, and the folder of images.
        seed: decides which of the held-out images are taken, and the holes.
        on_step: is called with (fillings made, of how many).

    Returns:
        The rows by the kind of mask.

    Raises:
        DataError: training on this folder holds out no images; and as `build.dataset`.
    """
    real, size = RealImages(pipeline.config, data), pipeline.config.data.image_size
    some, unseen = real.unseen(len(MASK_KINDS), seed)
    if not unseen:
        raise DataError(f"of the images in {data} training holds out none")
    pixels, rows = real.gather(some), dict[str, Image.Image]()
    for n, kind in enumerate(MASK_KINDS):
        picture = pixels[n % len(pixels)]
        hole = masks.random_mask(kind, size, size, draws.generator(draws.seed_of("fillings", seed), 0, n))
        filled = pipeline.inpaint(images.from_array(picture), hole, seed=seed, fit="native")[0]
        left = np.where(hole[..., None], np.uint8(128), picture)
        rows[kind] = images.grid([picture, left, images.to_array(filled, picture.shape[2])], 3)
        if on_step is not None:
            on_step(n + 1, len(MASK_KINDS))
    return rows


def make_room(run: Path) -> None:
    """Make the folder of a run's fillings; raise OSError where it cannot be written, before any is computed."""
    folder = run / run_reading.FILLINGS
    folder.mkdir(exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def keep(run: Path, rows: Mapping[str, Image.Image], step: int) -> None:
    """Write the rows of a model after a step where `make_room` made room, in place of those that are there.

    Raises:
        OSError, ResourceError: they cannot be written.
    """
    folder = run / run_reading.FILLINGS
    written = {folder / f"step-{step:08d}-{kind}.png": row for kind, row in rows.items()}
    for path, row in written.items():
        images.save(row, path)
    for path in folder.iterdir():
        if run_reading.FILLING.fullmatch(path.name) and path not in written:
            path.unlink()
