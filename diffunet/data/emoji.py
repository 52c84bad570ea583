"""Noto Emoji, the images that the model `emoji` learned from, out of the archive of a release."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import lzma
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from diffunet import pretrained
from diffunet.errors import DataError

log = logging.getLogger(__name__)

NAME = "emoji"
"""What `diffunet prepare` takes."""

ADDRESS = "https://github.com/googlefonts/noto-emoji/archive/refs/tags/v2.051.tar.gz"
"""The archive of a release of Noto Emoji."""

FOLDER = "png/128"
"""The folder in it that is kept: PNG files of 128x128 pixels with transparency."""

TABLE, LICENCE = "groups.tsv", "LICENSE"
"""What is written beside the images: a row for each, with its path, family and group; and the licence."""


def rows() -> dict[str, tuple[str, str]]:
    """Return the family and the group of each emoji, by the name of its file.

    A family is an emoji with its variants in skin tone and sex. Both are from googlefonts/emoji-metadata.
    """
    packed = (pretrained.HERE / NAME / f"{TABLE}.gz").read_bytes()
    lines = io.StringIO(gzip.decompress(packed).decode())
    table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return {row["file"]: (row["family"], row["group"]) for row in table}


def read(archive: Path) -> tuple[int, list[tuple[str, bytes]]]:
    """Return the number of emoji in the archive of a release, and the path and content of each file to write.

    An emoji is in the folder of its group; those that have none, as digits and letters of flags, are left out, which is
    said. Behind the emoji come the table and the licence.

    Raises:
        DataError: the file is damaged, or it is no such archive.
    """
    known, written, others = rows(), list[tuple[str, bytes]](), dict[str, bytes]()
    left_out = 0
    try:
        with tarfile.open(archive) as content:
            for member in content:
                path = PurePosixPath(member.name)
                image = path.parts[1:-1] == PurePosixPath(FOLDER).parts and path.suffix == ".png"
                licence = path.parts[1:] == (LICENCE,)
                if not member.isfile() or not (image or licence):
                    continue
                if image and path.name not in known:
                    left_out += 1
                    continue
                file = content.extractfile(member)
                assert file is not None
                if licence:
                    others[LICENCE] = file.read()
                else:
                    written.append((f"{known[path.name][1]}/{path.name}", file.read()))
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise DataError(f"{archive}: is damaged or not whole ({error}): download it again") from None
    if not written:
        raise DataError(f"{archive}: has no emoji in a folder {FOLDER}")
    if left_out:
        log.info("%d images are left out, which are in no group of emoji", left_out)
    written.sort()
    table = ["file\tfamily\tgroup"]
    table += ["\t".join((path, *known[path.rpartition("/")[2]])) for path, _ in written]
    others[TABLE] = ("\n".join(table) + "\n").encode()
    return len(written), [*written, *others.items()]
