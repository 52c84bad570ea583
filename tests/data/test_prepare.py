"""Data sets from elsewhere: a server that breaks off, a bucket, the hub, files here."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import json
import logging
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.fake_hub import Hub
from PIL import Image

from diffunet.data import download, emoji, groups, labels
from diffunet.data.folder import list_images
from diffunet.data.prepare import prepare
from diffunet.errors import DataError, ResourceError, UsageError


def photo(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {f"{('cat', 'dog')[n % 2]}/{n}.png": photo(n) for n in range(12)}


@functools.cache  # it holds the time at which it was made
def a_zip(top: str = "animals/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (FILES | {"metadata.csv": b"file_name,label\n", "notes.txt": b"x"}).items():
            archive.writestr(top + name, content)
    return buffer.getvalue()


class Server:
    """A web server with `files`, which may break off after so many bytes, and notes the ranges that it is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: list[int] = []
        self.ranges: list[str | None] = []
        self.etag = True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        content = self.files.get(request.path.lstrip("/"))
        self.ranges.append(request.headers.get("Range"))
        if content is None:
            request.send_error(404)
            return
        tag, start = f'"{hashlib.sha256(content).hexdigest()[:8]}"', 0
        if (asked := request.headers.get("Range")) and request.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("Content-Type", "text/html" if request.path.endswith("page") else "application/zip")
        if self.etag:
            request.send_header("ETag", tag)
        request.end_headers()
        most = self.break_after.pop(0) if self.break_after else len(content)
        request.wfile.write(content[start : start + most])
        request.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT", 0.0)
    started = Server()
    yield started
    started.server.shutdown()
    started.server.server_close()


def written(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def test_a_zip_from_the_web_becomes_its_folder(server: Server, tmp_path: Path) -> None:
    server.files["animals.zip"] = a_zip()
    seen: list[tuple[int, int]] = []
    digest = hashlib.sha256(a_zip()).hexdigest().upper()
    count = prepare(
        f"{server.address}/animals.zip", tmp_path / "out", sha256=digest,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert count == 12
    assert written(tmp_path / "out") == FILES | {"metadata.csv": b"file_name,label\n"}
    assert (len(a_zip()), len(a_zip())) in seen
    assert seen[-1] == (12, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_download_that_breaks_goes_on(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = a_zip()
    server.break_after = [700, 300]
    assert prepare(f"{server.address}/a.zip", tmp_path / "out") == 12
    assert server.ranges == [None, "bytes=700-", "bytes=1000-"]


def test_a_download_that_cannot_be_finished_is_kept_and_gone_on_with_later(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = a_zip()
    server.break_after = [900] + [0] * 10
    with pytest.raises(DataError, match=r"ends before the file does; 900 bytes are kept"):
        prepare(f"{server.address}/a.zip", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [".out.download"], "nothing that looks like a data set"
    server.break_after = []
    assert prepare(f"{server.address}/a.zip", tmp_path / "out") == 12
    assert server.ranges[-1] == "bytes=900-"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_has_changed_meanwhile_is_begun_anew(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = a_zip("old/")
    server.break_after = [900] + [0] * 10
    with pytest.raises(DataError):
        prepare(f"{server.address}/a.zip", tmp_path / "out")
    server.files["a.zip"], server.break_after = a_zip("newer/"), []
    assert prepare(f"{server.address}/a.zip", tmp_path / "out") == 12
    assert written(tmp_path / "out").keys() == FILES.keys() | {"metadata.csv"}
    server.etag = False
    server.break_after = [500]
    assert prepare(f"{server.address}/a.zip", tmp_path / "two") == 12, "without a version it is read from the start"


def test_downloads_that_are_kept_are_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = a_zip()
    for name in ("one", "two"):
        assert prepare(f"{server.address}/a.zip", tmp_path / name, download_root=tmp_path / "kept") == 12
    assert server.ranges == [None]
    assert [path.name for path in (tmp_path / "kept").rglob("*.zip")] == ["a.zip"]


def test_downloads_of_one_name_from_other_addresses_are_other_files(server: Server, tmp_path: Path) -> None:
    server.files |= {"cats/a.png": photo(1), "dogs/a.png": photo(2)}
    for name, seed in (("cats", 1), ("dogs", 2)):
        assert prepare(f"{server.address}/{name}/a.png", tmp_path / name, download_root=tmp_path / "kept") == 1
        assert written(tmp_path / name) == {"a.png": photo(seed)}


def test_all_parts_are_written_and_what_is_not_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {f"{part}/cat/{n}.png": photo(n) for n, part in enumerate(("train", "val", "test"))}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, one in (content | {"train/cat/x.jxl": b"x", "train/cat/0.nef": b"x"}).items():
            archive.writestr(name, one)
    with caplog.at_level(logging.INFO):
        assert prepare(str(tmp_path / "a.zip"), tmp_path / "out") == 3
    assert written(tmp_path / "out") == content
    assert "1 file is not written: train/cat/x.jxl: " in caplog.text
    assert "1 file beside an image of the same name is passed over (1 .nef)" in caplog.text


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "a.png").write_bytes(photo(1))
    monkeypatch.chdir(tmp_path / "new")
    with pytest.raises(UsageError, match="the current folder"):
        prepare("../a.png", Path())
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "int64"])
def test_labels_of_parquet_files_are_names_of_any_type(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    words = pyarrow.array(["1", "2", "1"])
    cast = words.dictionary_encode() if kind == "dictionary" else words.cast(getattr(pyarrow, kind)())
    images = pyarrow.array([photo(n) for n in range(3)])
    parquet.write_table(pyarrow.table({"image": images, "label": cast}), tmp_path / "a.parquet")
    assert prepare(str(tmp_path / "a.parquet"), tmp_path / "out") == 3
    assert sorted(written(tmp_path / "out")) == ["1/0.png", "1/2.png", "2/1.png"]


def test_what_the_web_may_answer(server: Server, tmp_path: Path) -> None:
    server.files |= {"page": b"<html>", "a.zip": a_zip(), "text.zip": b"not a zip"}
    for name, words in (("gone.zip", "answers 404"), ("page", "is a web page"), ("text.zip", "no zip file")):
        with pytest.raises(DataError, match=words):
            prepare(f"{server.address}/{name}", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="is not the file that was meant: its SHA-256 is"):
        prepare(f"{server.address}/a.zip", tmp_path / "out", sha256="0" * 64)
    assert not (tmp_path / ".out.download" / "a.zip").exists()
    with pytest.raises(DataError, match="cannot be reached"):
        prepare("http://127.0.0.1:9/a.zip", tmp_path / "out")


def test_an_interruption_leaves_nothing_that_looks_whole(server: Server, tmp_path: Path) -> None:
    server.files["a.zip"] = a_zip()

    def interrupt(done: int, total: int) -> None:
        if total == 12 and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(f"{server.address}/a.zip", tmp_path / "out", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [".out.download"]
    assert prepare(f"{server.address}/a.zip", tmp_path / "out") == 12
    assert server.ranges == [None], "what was downloaded is not asked for again"


def test_only_what_was_prepared_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(a_zip())
    out = tmp_path / "out"
    assert prepare(str(tmp_path / "a.zip"), out) == 12
    with pytest.raises(UsageError, match="exists"):
        prepare(str(tmp_path / "a.zip"), out)
    assert prepare(str(tmp_path / "a.zip"), out, limit=4, overwrite=True) == 4
    assert len(list_images(out)[0]) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").write_bytes(photo(1))
    with pytest.raises(UsageError, match="was not made by this command"):
        prepare(str(tmp_path / "a.zip"), tmp_path / "mine", overwrite=True)
    assert written(tmp_path / "mine") == {"holiday.png": photo(1)}


def test_files_here(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name, content in FILES.items():
            info = tarfile.TarInfo(f"animals/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert prepare(str(tmp_path / "a.tar.gz"), tmp_path / "packed") == 12
    assert written(tmp_path / "packed") == FILES
    whole = (tmp_path / "a.tar.gz").read_bytes()
    for name, content in (("cut.tgz", whole[:-40]), ("none.tgz", gzip.compress(b"text"))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"damaged|none of the data"):
            prepare(str(tmp_path / name), tmp_path / "out")
    images = np.random.default_rng(0).integers(0, 256, (12, 9, 8, 3), np.uint8)
    parts = {"train_images": images[:8], "train_labels": np.arange(8) % 2}
    np.savez(tmp_path / "a.npz", **parts, val_images=images[8:], val_labels=np.arange(4) % 2)
    assert prepare(str(tmp_path / "a.npz"), tmp_path / "arrays") == 12
    assert sorted(written(tmp_path / "arrays"))[:3] == ["train/0/0.png", "train/0/2.png", "train/0/4.png"]
    assert labels.find(tmp_path / "arrays", list_images(tmp_path / "arrays")[0]).names == ("0", "1")
    with Image.open(tmp_path / "arrays" / "val" / "1" / "3.png") as image:
        assert np.array_equal(np.asarray(image), images[11])
    (tmp_path / "one").write_bytes(photo(3))
    assert prepare(str(tmp_path / "one"), tmp_path / "single") == 1
    assert written(tmp_path / "single") == {"one.png": photo(3)}


def test_a_bucket(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for name, content in (FILES | {".hidden.png": b"x", "@eaDir/x.png": b"x", "notes.txt": b"x"}).items():
        system.pipe_file(f"/bucket/animals/{name}", content)
    system.pipe_file("/bucket/a.zip", a_zip())
    system.pipe_file("/archives/a.zip", a_zip())
    for n, address in enumerate(("memory://bucket/animals", "memory://bucket/a.zip", "memory://archives")):
        assert prepare(address, tmp_path / f"{n}") == 12
        assert {k: v for k, v in written(tmp_path / f"{n}").items() if k != "metadata.csv"} == FILES
    with pytest.raises(DataError, match="no such file"):
        prepare("memory://bucket/gone.zip", tmp_path / "out")


@pytest.mark.parametrize(("address", "package"), [("s3://b/a", "s3fs"), ("gs://b/a", "gcsfs"), ("az://b/a", "adlfs")])
def test_a_driver_that_is_missing_is_named(tmp_path: Path, address: str, package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(UsageError, match=f"pip install fsspec {package}"):
            prepare(address, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    started = Hub()
    address = started.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", started.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield started
    started.close()


def table(start: int, stop: int, *, features: bool = True) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = pyarrow.table(
        {
            "image": [{"bytes": photo(n), "path": f"{n}.png"} for n in range(start, stop)],
            "label": [n % 2 for n in range(start, stop)],
        }
    )
    if features:
        named = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "big dog"]}}
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": named}})})
    parquet.write_table(content, buffer := io.BytesIO())
    return buffer.getvalue()


def test_a_data_set_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["someone/animals"] = {
        "data/train-00000-of-00002.parquet": table(0, 5), "data/train-00001-of-00002.parquet": table(5, 8),
        "data/test-00000-of-00001.parquet": table(8, 12), "README.md": b"x",
    }  # fmt: skip
    assert prepare("someone/animals", tmp_path / "out") == 12
    files = written(tmp_path / "out")
    assert [files[f"train/{of}/{4 + n:02}.png"] for n, of in enumerate(["cat", "big dog"] * 4)] == list(
        map(photo, range(8))
    )
    assert files["test/big dog/03.png"] == photo(11)
    assert labels.find(tmp_path / "out", list_images(tmp_path / "out")[0]).names == ("big dog", "cat")
    assert sum(name.startswith("test/") for name in files) == 4
    assert prepare("https://huggingface.co/datasets/someone/animals", tmp_path / "few", limit=3) == 3


def test_configs_and_what_is_missing_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["someone/two"] = {"small/train-0.parquet": table(0, 3), "large/train-0.parquet": table(0, 6)}
    hub.repositories["someone/texts"] = {"README.md": b"x"}
    with pytest.raises(UsageError, match=r"several configs \(large, small\): name one, as someone/two:large"):
        prepare("someone/two", tmp_path / "out")
    with pytest.raises(UsageError, match="has no config tiny; it has large, small"):
        prepare("someone/two:tiny", tmp_path / "out")
    assert prepare("someone/two:small", tmp_path / "out") == 3
    assert sorted(written(tmp_path / "out")) == ["big dog/1.png", "cat/0.png", "cat/2.png"]
    for name, words in (("someone/texts", "no parquet files"), ("someone/gone", "neither a file or folder here")):
        with pytest.raises(DataError, match=words):
            prepare(name, tmp_path / "none")


def test_parquet_files_here(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(table(0, 6, features=False))
    assert prepare(str(tmp_path / "a.parquet"), tmp_path / "out") == 6
    assert written(tmp_path / "out")["1/5.png"] == photo(5)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged"):
        prepare(str(tmp_path / "b.parquet"), tmp_path / "two")


def test_a_disk_that_is_full(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["a.zip"] = a_zip()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ResourceError, match="has no room"):
        prepare(f"{server.address}/a.zip", tmp_path / "out")


def release(names: list[str], top: str = "noto-emoji-2.051/") -> bytes:
    """An archive as the hub of Noto Emoji gives: some PNG files in several sizes, sources and licences."""
    buffer, others = io.BytesIO(), {"LICENSE": b"Apache License", "fonts/LICENSE": b"OFL", "README.md": b"x"}
    content = {f"png/{size}/{name}": photo(n) for n, name in enumerate(names) for size in (72, 128, 512)}
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in (content | others | {"svg/emoji_u1f392.svg": b"<svg/>"}).items():
            member = tarfile.TarInfo(top + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_emoji_are_kept_by_group_with_their_table_and_licence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variants = ["emoji_u1f44e.png", "emoji_u1f44e_1f3fb.png"]
    names = [*variants, "emoji_u1f392.png", "emoji_u0030.png"]  # the last, a digit, is in no group
    server.files["v2.051.tar.gz"] = release(names)
    monkeypatch.setattr(emoji, "ADDRESS", f"{server.address}/v2.051.tar.gz")
    caplog.set_level("INFO")
    out = tmp_path / "out"
    assert prepare("emoji", out) == 3
    assert "1 images are left out" in caplog.text
    found = written(out)
    assert found.pop("LICENSE") == b"Apache License"
    table = found.pop("groups.tsv").decode()
    assert found == {
        "Smileys and emotions/emoji_u1f44e.png": photo(0), "Smileys and emotions/emoji_u1f44e_1f3fb.png": photo(1),
        "Objects/emoji_u1f392.png": photo(2),
    }  # fmt: skip
    assert table.splitlines()[0] == "file\tfamily\tgroup"
    families = groups.find(list_paths(out), f"{out / 'groups.tsv'}:family")
    assert len(families.names) == 2
    assert labels.find(out, list_paths(out)).names == ("Objects", "Smileys and emotions")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert prepare("emoji", tmp_path / "few", limit=1) == 1


def list_paths(folder: Path) -> list[str]:
    return [str(path) for path in list_images(folder)[0]]


def test_an_archive_that_has_no_emoji_or_is_damaged(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emoji, "ADDRESS", f"{server.address}/e.tar.gz")
    for content, words in ((release([]), "has no emoji"), (release(["emoji_u1f392.png"])[:-200], "is damaged"),
                           (b"nothing", "is damaged")):  # fmt: skip
        server.files["e.tar.gz"] = content
        with pytest.raises(DataError, match=words):
            prepare("emoji", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / ".out.download")


def test_classes_stay_apart_whatever_their_names_are(tmp_path: Path) -> None:
    names = ["C#", "C+", "C_", "c#", "😀", "😃", "D", "train", "test2"]
    images = np.random.default_rng(0).integers(0, 256, (18, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([*names, *names]))
    assert prepare(str(tmp_path / "x.npz"), tmp_path / "out") == 18
    found = labels.find(tmp_path / "out", list_images(tmp_path / "out")[0])
    assert len(found.names) == len(names)
    assert set(found.counts().values()) == {2}
    assert {"D", "class train", "class test2"} <= set(found.names)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_source_that_may_not_be_read_is_what_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(DataError, match=r"locked.*Permission denied"):
        prepare(str(tmp_path / "locked/d"), tmp_path / "out")


def test_a_source_of_too_long_a_name_is_what_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a{300}: cannot be read: File name too long"):
        prepare(str(tmp_path / ("a" * 300)), tmp_path / "out")
