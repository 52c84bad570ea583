"""Folders as people have them: odd names, links in circles, files that are no images."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from diffunet.data import folder
from diffunet.data.dataset import open_dataset
from diffunet.data.findings import describe
from diffunet.data.survey import survey
from diffunet.errors import DataError
from diffunet.pictures.formats import unsupported


def picture(
    path: Path, size: tuple[int, int] = (8, 6), colour: int | tuple[int, ...] = (1, 2, 3), mode: str = "RGB"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, "PNG" if path.suffix.lower() not in (".jpg", ".gif") else None)
    return path


def test_candidates_are_recursive_sorted_and_of_any_case(tmp_path: Path) -> None:
    names = [
        "b/z.PNG",
        "b/a.jpg",
        "B.png",
        "a/deep/er/x.Jpeg",
        "a-b.webp",
        "ä.tif",
        "b.jfif",
        "c.GIF",
        "d.bmp",
        "e.tiff",
        "f.jpe",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    paths, rejected = folder.list_images(tmp_path)
    assert paths == sorted(names)
    assert rejected == []


def test_other_files_are_passed_over_and_unsupported_images_named(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    for name in [
        "notes.txt",
        "meta.json",
        ".DS_Store",
        ".hidden.png",
        ".git/x.png",
        "__MACOSX/._good.png",
        "noextension",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ["phone.HEIC", "a/vector.svg", "b.exr", "c.psd", "d.jxl"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    paths, rejected = folder.list_images(tmp_path)
    assert paths == ["good.png"]
    assert [r.path for r in rejected] == ["a/vector.svg", "b.exr", "c.psd", "d.jxl", "phone.HEIC"]
    assert all("convert" in r.reason for r in rejected)


@pytest.mark.skipif(sys.platform == "win32", reason="such names do not exist there")
def test_odd_names(tmp_path: Path) -> None:
    names = ["with space.png", "quo\"te'.png", "new\nline.png", "日本語.png", "back\\slash.png", "-rf.png", "%s{0}.png"]
    for name in names:
        picture(tmp_path / "odd folder" / name)
    raw = os.fsencode(tmp_path) + b"/bad-\xff.png"
    Path(os.fsdecode(raw)).write_bytes((tmp_path / "odd folder" / "-rf.png").read_bytes())
    paths, rejected = folder.list_images(tmp_path)
    assert paths == sorted(f"odd folder/{name}" for name in names)
    assert [r.path for r in rejected] == ["bad-\\xff.png"]
    assert "rename" in rejected[0].reason
    text = describe(survey(tmp_path))
    text.encode("utf-8")
    assert "bad-\\xff.png" in text


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    picture(root / "real" / "a.png")
    picture(tmp_path / "elsewhere" / "b.png")
    (root / "real" / "circle").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "again").symlink_to(root / "real")  # sorts before it, but the real name wins
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (root / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (root / "broken.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(root / "pipe.png")
    paths, rejected = folder.list_images(root)
    assert paths == ["link.png", "more/b.png", "real/a.png"]
    assert [(r.path, r.reason) for r in rejected][:2] == [
        ("broken.png", "a broken link"),
        ("pipe.png", "not an ordinary file"),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("backwards", [False, True])
def test_which_link_counts_does_not_depend_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    picture(tmp_path / "elsewhere" / "a.png")
    for name in "abc":
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "link 1").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "root" / name / "link 2").symlink_to(tmp_path / "elsewhere")
    scandir = os.scandir

    @contextlib.contextmanager
    def in_some_order(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=backwards)

    monkeypatch.setattr("os.scandir", in_some_order)
    assert folder.list_images(tmp_path / "root")[0] == ["c/link 1/a.png"]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A piece of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size: tuple[int, int] = (8, 6), extra: bytes = b"") -> bytes:
    """A whole PNG of 8 x 6 pixels, whose header may say something else, and with `extra` chunks."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (1, 2, 3)).save(buffer, "PNG")
    whole = buffer.getvalue()
    return whole[:8] + chunk(b"IHDR", struct.pack(">II", *size) + whole[24:29]) + extra + whole[33:]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


BROKEN = {
    "empty.png": (b"", "empty file"),
    "half.png": (png()[:-30], "damaged"),
    "half.jpg": (jpeg()[:700], "damaged"),
    "head only.png": (png()[:8], "damaged"),
    "text.png": (b"This is a letter, not a picture.\n" * 9, "not an image"),
    "page.jpg": (b"<html><body>404 not found</body></html>", "web page"),
    "zeros.webp": (bytes(1000), "nothing but zeros"),
    "flipped.png": (png()[:-25] + b"\xff" + png()[-24:], "damaged"),
    "huge.png": (png((30_000, 30_000)), "too large: 30000 x 30000 pixels"),
    "absurd.png": (png((2**31 - 1, 2**31 - 1)), "too large"),
    "no size.png": (png((0, 0)), "damaged"),
}
FINE = {
    "plain.png": png(),
    "many notes.png": png(extra=b"".join(chunk(b"tEXt", b"note %d\0x" % n) for n in range(10_000))),
    "long note.png": png(extra=chunk(b"tEXt", b"k\0" + b"a" * 5_000_000)),
    "bad exif.png": png(extra=chunk(b"eXIf", b"MM" + b"a" * 5_000_000)),
    "odd chunk.png": png(extra=chunk(b"raNd", bytes(5_000_000))),
    "bomb.png": png(extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000)))),
    "profile.png": png(extra=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000)))),
    "letters.png": png(extra=chunk(b"tEXt", b"k\0" + b"a" * 70_000_000)),
}


@pytest.mark.seconds
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.long
def test_each_broken_file_has_its_reason_and_the_rest_is_used(tmp_path: Path, cache: bool) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name, content in {**FINE, **{name: content for name, (content, _) in BROKEN.items()}}.items():
        (root / name).write_bytes(content)
    (root / "folder.png").mkdir()
    if sys.platform != "win32":
        os.mkfifo(root / "pipe.png")
        (root / "loop.png").symlink_to(root / "loop.png")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.relpath(root / "socket.png"))  # such a path must be short
    reasons = {name: reason for name, (_, reason) in BROKEN.items()}
    if sys.platform != "win32":
        reasons |= dict.fromkeys(("pipe.png", "socket.png"), "not an ordinary file") | {"loop.png": "symbolic link"}
    where: Path | Literal["off"] = tmp_path / "cache" if cache else "off"
    for _ in range(2):
        data = open_dataset(root, image_size=6, channels=3, fit="crop", cache=where)
        assert [file.path for file in data.files] == sorted(FINE)
        assert all(data.images[n].shape == (6, 8, 3) for n in range(len(FINE)))
        assert [r.path for r in data.rejected] == sorted(reasons)
        for rejected in data.rejected:
            assert reasons[rejected.path] in rejected.reason, rejected
            assert "\n" not in rejected.reason
    surveyed = survey(root)
    assert surveyed.rejected == data.rejected
    assert f"8 images can be used, {len(reasons)} files cannot" in describe(surveyed)


UNREADABLE = """
import os, sys
from pathlib import Path
from PIL import Image
from diffunet.data.dataset import open_dataset
from diffunet.data.folder import list_images
from diffunet.errors import DataError
Image.init()  # loads its parts, which a stranger may not be allowed to read
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
root = Path(sys.argv[1])
data = open_dataset(root, image_size=6, channels=3, fit="crop", cache="off")
print([file.path for file in data.files])
for rejected in data.rejected:
    print(rejected.path, rejected.reason)
for name in ("locked", "locked/deeper"):
    try:
        list_images(root / name)
    except DataError as error:
        print(str(error).replace(str(root), ""))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="rights are other things there")
@pytest.mark.seconds
def test_what_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory() as temporary:  # not pytest's folder, which a stranger may not enter
        root = Path(temporary)
        picture(root / "good.png")
        picture(root / "secret.png").chmod(0)
        picture(root / "locked" / "deeper" / "a.png")
        picture(root / "dim" / "b.png")
        root.chmod(0o755)
        (root / "locked").chmod(0)
        (root / "dim").chmod(0o444)  # it can be listed, but nothing in it can be looked at
        ended = subprocess.run(
            [sys.executable, "-c", UNREADABLE, temporary], capture_output=True, text=True, timeout=120
        )
        for name in ("locked", "dim"):
            (root / name).chmod(0o755)
    assert ended.stdout.splitlines() == [
        "['good.png']",
        "dim/b.png cannot be read: Permission denied",
        "locked folder cannot be read: Permission denied",
        "secret.png cannot be read: Permission denied",
        "/locked: folder cannot be read: Permission denied",
        "/locked/deeper: cannot be looked at: Permission denied",
    ], ended.stderr


def test_roots_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        folder.list_images(tmp_path / "nu\0ll")
    with pytest.raises(DataError, match="cannot be looked at: File name too long"):
        folder.list_images(tmp_path / ("long" * 100))
    if sys.platform != "win32":
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        for root in (tmp_path / "loop", tmp_path / "loop" / "deeper"):
            with pytest.raises(DataError, match="cannot be looked at: Too many levels"):
                open_dataset(root, image_size=8, channels=3, fit="crop", cache="off")
        (tmp_path / "loop").unlink()
    with pytest.raises(DataError, match="no such folder"):
        folder.list_images(tmp_path / "gone")
    (tmp_path / "a.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="is a file"):
        folder.list_images(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"1 \.zip.*supported.*\.png"):
        folder.list_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing"):
        folder.list_images(tmp_path / "empty")


IN_ANY_LOCALE = """
import json, sys
from pathlib import Path
from diffunet.data import dataset, folder, index, labels
from diffunet.data.findings import describe
from diffunet.data.survey import survey
root, work = Path(sys.argv[1]), Path(sys.argv[2])
read = []
how = {"image_size": 8, "channels": 3, "fit": "crop"}
data = dataset.open_dataset(root, **how, cache=work, progress=lambda done, total: read.append(done))
plain = dataset.open_dataset(root, **how, cache="off")
names = labels.find(root, data.files.paths).names
index.write_index(work / sys.argv[3], data.files)
print(json.dumps({
    "encoding": sys.getfilesystemencoding(),
    "read": len(read),
    "paths": folder.list_images(root)[0],
    "files": [file.path for file in data.files],
    "index": list(index.read_index(work / sys.argv[3]).paths),
    "hashes": [data.index_hash, plain.index_hash],
    "names": names,
    "labels": data.labels(names).tolist(),
    "same": all((data.images[n] == plain.images[n]).all() for n in range(len(data.files))),
    "rejected": [(r.path, r.reason) for r in data.rejected],
    "survey": describe(survey(root)),
}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
@pytest.mark.seconds
def test_names_are_the_same_in_every_locale(tmp_path: Path) -> None:
    root = tmp_path / "Ordner mit ümlaut"
    names = ["grün/日本語.png", "grün/a.png", "blå/🎈 two\nlines.png", "blå/ü.png", "plain/z.png"]
    for n, name in enumerate(names):
        picture(root / name, (8, 8), (n, 0, 0))
    (root / "blå" / "kaputt ü.png").write_bytes(b"")
    (root / "blå" / "handy ü.heic").write_bytes(b"x")
    bad = os.fsencode(root) + b"/plain/latin-\xfc.png"
    Path(os.fsdecode(bad)).write_bytes(png())
    results = []
    for n, encoding in enumerate(("ascii", "utf-8")):
        plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
        more = plain if encoding == "ascii" else {"PYTHONUTF8": "1"}
        command = [sys.executable, "-c", IN_ANY_LOCALE, str(root), str(tmp_path / "cache"), f"{n}.txt"]
        ended = subprocess.run(command, env=os.environ | more, capture_output=True, timeout=120)
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")
        results.append(json.loads(ended.stdout))
        assert results[n].pop("encoding") == encoding
        assert results[n].pop("read") == (6 if n == 0 else 0), "one cache for all"
    assert results[0] == results[1]
    assert results[0]["files"] == results[0]["index"] == sorted(names)
    assert results[0]["paths"] == sorted([*names, "blå/kaputt ü.png"])
    assert results[0]["hashes"][0] == results[0]["hashes"][1]
    assert results[0]["names"] == ["blå", "grün", "plain"]
    assert results[0]["labels"] == [0, 0, 1, 1, 2]
    assert results[0]["same"]
    assert dict(results[0]["rejected"]) == {
        "blå/kaputt ü.png": "empty file",
        "blå/handy ü.heic": unsupported(".heic"),
        "plain/latin-\\xfc.png": "its name is not valid text (UTF-8); rename it",
    }
    for part in ("Ordner mit ümlaut: 5 images can be used, 3", "blå 2, grün 2, plain 1", "blå/kaputt ü.png: empty"):
        assert part in results[0]["survey"]
    assert (tmp_path / "cache" / "0.txt").read_bytes() == (tmp_path / "cache" / "1.txt").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="such names do not exist there")
def test_odd_names_are_results_on_one_line(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    for name in ("two\nlines.png", "\x1b[31mred.png", "tab\t.heic", "\u202egnp.exe.png"):
        (tmp_path / name).write_bytes(b"x")
    data = open_dataset(tmp_path, image_size=8, channels=3, fit="crop", cache="off")
    assert [r.path for r in data.rejected] == [
        "\\u202egnp.exe.png",
        "\\x1b[31mred.png",
        "tab\\t.heic",
        "two\\nlines.png",
    ]
    assert data.rejected == survey(tmp_path).rejected


def test_classes() -> None:
    assert folder.class_of("cat/x/1.png") == "cat"
    assert folder.class_of("1.png") is None


def test_in_order_is_map_and_reads_few_ahead() -> None:
    taken: list[int] = []

    def double(n: int) -> int:
        taken.append(n)
        return 2 * n

    results = folder.in_order(double, range(100), workers=2)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert max(taken) < 10
    assert list(results) == [2 * n for n in range(3, 100)]
