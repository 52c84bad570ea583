"""Commands about folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from diffunet import outputs
from diffunet.commands.values import Number, Size
from diffunet.progress import progress, tell


def check(data: Annotated[Positional[Path], arg(metavar="DATA")], /, image_size: Size = 64) -> None:
    """Say what is in a folder of images, and what cannot be used, and why.

    Example: diffunet check photos

    Args:
        data: Folder, searched recursively.
        image_size: What you mean to train at.
    """
    from diffunet.data.folder import describe, survey

    with progress("reading") as show:
        found = survey(data, progress=lambda done, total: show(done, total, ""))
    tell(describe(found, image_size))


def prepare(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    /,
    limit: Number | None = None,
    download_root: Path | None = None,
) -> None:
    """Write a known data set as a folder of images, a subfolder for each class.

    Example: diffunet prepare digits data/digits

    Args:
        name: digits (built in), mnist, fashion-mnist, cifar10, cifar100, svhn, flowers102, stl10 (downloaded).
        out: Folder to make.
        limit: Write only so many images.
        download_root: Where downloads are kept.
    """
    from diffunet.data.builtin import prepare as run

    outputs.claim(out, file=False, option="OUT")
    if download_root is not None:
        outputs.claim(download_root, file=False, option="--download-root")
    with progress("writing") as show:
        count = run(
            name, out, download_root=download_root, limit=limit, progress=lambda done, total: show(done, total, "")
        )
    tell(f"{count} images in {out}. Try: diffunet train {out} --out runs/{name} --classes")
