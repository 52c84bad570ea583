"""`diffunet prepare` and `diffunet masks` write folders of images."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tyro.conf import Positional, arg

from diffunet.commands import outputs
from diffunet.commands.options import Number, Overwrite, Seed
from diffunet.commands.progress import progress, say, tell
from diffunet.errors import DataError, UsageError
from diffunet.names import MASK_KINDS, MasksName

Side = Annotated[int, Field(ge=1, le=20_000)]


def prepare(
    name: Annotated[Positional[str], arg(metavar="DATASET")], out: Annotated[Positional[Path], arg(metavar="OUT")], /,
    limit: Number | None = None, download_root: Path | None = None,
    sha256: Annotated[str | None, arg(metavar="HASH")] = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Write a data set as a folder of images, a subfolder for each class.

    Example: diffunet prepare digits data/digits

    Example: diffunet prepare https://example.org/photos.zip photos

    Args:
        name: Data set: digits (built in); emoji, mnist, fashion-mnist, cifar10, cifar100, svhn, flowers102 or stl10
            (downloaded); the web address of an archive, of arrays or of an image; s3://... or gs://... (with fsspec's
            driver for it); a data set of images on the hub, owner/name or owner/name:config (with pyarrow); or such a
            file here.
        out: Folder to make.
        limit: Number of images to write, spread evenly over all. If not given, all are written.
        download_root: Folder to keep downloads in, from where the same command goes on with one that broke off. If not
            given, they are deleted once they are used.
        sha256: Checksum (SHA-256) of the file at a web address, to check it by.
    """
    from diffunet.data import folder, labels
    from diffunet.data.download import sha256_of
    from diffunet.data.prepare import prepare as run

    outputs.claim(out, file=False, overwrite=True, option="OUT")  # `prepare` refuses what it has not made
    if download_root is not None:
        outputs.claim(download_root, file=False, overwrite=True, option="--download-root")
    checked = None if sha256 is None else sha256_of(sha256)
    with progress("writing") as show:
        count = run(
            name, out, download_root=download_root, limit=limit, overwrite=overwrite, sha256=checked, progress=show
        )
    classes = ""
    with contextlib.suppress(DataError):
        labels.find(out, folder.list_images(out)[0])
        classes = " --classes"
    tell(f"{count} images in {out}. Try: diffunet train {out} --out runs/{out.name}{classes}")


def masks(
    out: Annotated[Positional[Path], arg(metavar="OUT")], /, kind: MasksName = "mixed", num: Number | None = None,
    width: Side | None = None, height: Side | None = None, like: Path | None = None, seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Write random masks, white = fill, to try a model with or to compare methods on.

    Example: diffunet masks masks --like photos

    Args:
        out: Folder to make.
        kind: Kind of masks. wide and narrow are strokes of a brush, scratches are thin, lines are every second row or
            column, grid is three of four pixels, and mixed is any of these.
        num: Number of masks. If not given, they are 10.
        width: Width of the masks, in pixels. If not given, it is 256.
        height: Height of the masks, in pixels. If not given, it is 256.
        like: Folder of images, each of which gets a mask of its size and name.
        seed: Seed of the masks. The same seed gives the same masks.
    """
    import numpy as np

    from diffunet import draws
    from diffunet.inpainting.masks import random_mask
    from diffunet.pictures import images

    if like is not None and (num or width or height):
        raise UsageError("--like says how many masks and of what size: leave out --num, --width and --height")
    outputs.claim(out, file=False, overwrite=overwrite, option="OUT")
    sources = [None] * (num or 10) if like is None else _like(like, out)
    total, unreadable = len(sources), list[str]()
    with progress("writing") as show:
        for i, source in enumerate(sources):
            generator = draws.generator(seed, 0, i)
            drawn = MASK_KINDS[int(generator.integers(len(MASK_KINDS)))] if kind == "mixed" else kind
            rows, columns, target = height or 256, width or 256, out / f"{i:05d}-{drawn}.png"
            if source is not None:
                path, target = source
                try:
                    with images.decoding(path, draft=1) as decoded:
                        rows, columns = decoded.height, decoded.width
                except DataError as error:
                    say(f"{path}: {error}")
                    unreadable.append(str(path))
                    continue
            hole = random_mask(drawn, rows, columns, generator)
            images.save(images.from_array(np.where(hole, np.uint8(255), np.uint8(0))[..., None]), target)
            show(i + 1, total)
    hint = "" if like is None else f". Try: diffunet inpaint MODEL {like} --mask {out} --out filled"
    written = total - len(unreadable)
    tell(f"{written} {'mask' if written == 1 else 'masks'} in {out}{hint}")
    if unreadable:
        count = f"{len(unreadable)} of {total}"
        raise DataError(f"{count} images have no mask, since they cannot be read: {', '.join(unreadable)}")


def _like(folder: Path, out: Path) -> list[tuple[Path, Path]]:
    """Return each image of a folder, and the mask that is to have its name. Raises UsageError where these clash."""
    from diffunet.inpainting.pairs import pairs

    targets = [(pair.image, out / f"{pair.name}.png") for pair in pairs([folder], None, out)]
    if several := [target for target, times in Counter(target for _, target in targets).items() if times > 1]:
        raise UsageError(f"--like {folder}: several images would have the mask {several[0]}; rename one")
    taken = {path.resolve() for path, _ in targets}
    if over := [target for _, target in targets if target.resolve() in taken]:
        raise UsageError(f"OUT {out}: the mask {over[0]} would replace an image; choose another folder")
    return targets
