"""Archives and arrays with bytes changed, lost and added: they are read or refused in words."""

import io
import random
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffunet.data.index import Paths
from diffunet.data.sources import open_source
from diffunet.errors import Error


def photo(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {f"x/{folder}/{n}.png": photo(n) for folder in "ab" for n in range(3)} | {
    "x/a/0.cls": b"1", "x/a/1.json": b'{"label": 3}', "x/run/config.toml": b"", "x/run/model/x": b"",
    "x/made.jsonl": b'{"pictures": ["a/0.png"]}\n',
}  # fmt: skip


def whole(kind):
    """A file of this kind, as bytes."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
    elif kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in FILES.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("x/link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "a/1.png"
            archive.addfile(link)
    elif kind == "npz":
        np.savez(buffer, images=np.arange(6 * 5 * 5 * 3).reshape(6, 5, 5, 3), labels=np.arange(6))
    else:
        np.save(buffer, np.arange(6 * 5 * 5 * 3, dtype=np.uint16).reshape(6, 5, 5, 3))
    return buffer.getvalue()


def changed(content, draw):
    """The bytes with a few of them other ones, fewer, more, or moved."""
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 30))):
        way, place = draw.randrange(5), draw.randrange(len(content))
        if way == 0:
            content[place] ^= 1 << draw.randrange(8)
        elif way == 1:
            content[place] = draw.choice((0, 255, 47, 46, 80))
        elif way == 2:
            content[place : place + draw.randrange(1, 40)] = b"-"
        elif way == 3:
            content[place:place] = draw.randbytes(draw.randrange(1, 20))
        else:
            other = draw.randrange(len(content))
            content[place : place + 8] = content[other : other + 8] or b"-"
    return bytes(content[: draw.randrange(len(content))] if draw.random() < 0.1 else content)


@pytest.mark.seconds
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "tar", "npz", "npy"])
def test_what_is_damaged_is_read_or_refused(tmp_path, kind):
    sound, path, draw, outcomes = whole(kind), tmp_path / f"data.{kind}", random.Random(kind), []
    path.write_bytes(sound)
    assert len(open_source(path)[1].paths) == {"zip": 5, "tar": 6}.get(kind, 6)
    for _ in range(150):
        path.write_bytes(changed(sound, draw))
        try:
            source, found = open_source(path)
            list(found.left_out.lines())
            assert source.stamps(Paths.of(found.paths)).shape == (len(found.paths), 2)
            for name in found.paths:
                source.read(name)
            outcomes.append("read")
        except Error as error:
            outcomes.append("refused" if str(error).isprintable() else str(error))
    assert {"read", "refused"} == set(outcomes)
