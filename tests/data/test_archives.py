"""Archives equal the folder that they are of, bit for bit; what is broken or meant badly is refused in words."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffunet import build
from diffunet.config import Config
from diffunet.data import archives, dataset, labels
from diffunet.data.dataset import Dataset, open_dataset
from diffunet.data.findings import describe
from diffunet.data.survey import survey
from diffunet.errors import DataError


def photo(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (11 + seed % 3, 12, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """24 pictures in two classes, one broken, and what lies beside pictures."""
    for n in range(24):
        path = tmp_path / "photos" / ("cat", "dög")[n % 2] / f"{n:02}.{('png', 'jpg')[n % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(n, "JPEG" if n % 3 == 0 else "PNG"))
    others = {"cat/broken.png": b"broken", "cat/00.heic": b"x", "notes.txt": b"x", "@eaDir/t.png": photo(1)}
    others |= {"cat/.hidden.png": photo(2), "cat/bare": photo(99), "run/config.toml": b"", "run/model/x": b""}
    for name, content in (others | {"run/samples/1.png": photo(3)}).items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(content)
    return tmp_path / "photos"


def files(root: Path) -> list[Path]:
    return sorted((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.name[::-1])


def as_zip(root: Path, method: int = zipfile.ZIP_DEFLATED, top: str = "", junk: bool = False) -> Path:
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in files(root):
            archive.write(file, top + file.relative_to(root).as_posix())
        if junk:
            archive.writestr(f"__MACOSX/{top}cat/._00.png", b"x")
    return path


def as_tar(root: Path, top: str = "", kind: int = tarfile.PAX_FORMAT) -> Path:
    path = root.with_suffix(".tar")
    with tarfile.open(path, "w", format=kind) as archive:
        archive.add(root, top or ".")
    return path


FORMS: dict[str, Callable[[Path], Path]] = {
    "zip": as_zip,
    "stored zip": lambda root: as_zip(root, zipfile.ZIP_STORED),
    "zip of the folder": lambda root: as_zip(root, top="photos/", junk=True),
    "tar": as_tar,
    "tar of the folder": lambda root: as_tar(root, top="photos"),
    "GNU tar": lambda root: as_tar(root, kind=tarfile.GNU_FORMAT),
    "old tar": lambda root: as_tar(root, top="photos", kind=tarfile.USTAR_FORMAT),
}


def opened(root: Path, **options: Any) -> Dataset:
    return open_dataset(root, **{"image_size": 8, "channels": 3, "fit": "random", "cache": "off"} | options)


def same(one: Dataset, two: Dataset) -> bool:
    assert list(one.files) == list(two.files)
    assert (one.rejected, one.index_hash, one.mean, one.sigma_data) == (
        two.rejected,
        two.index_hash,
        two.mean,
        two.sigma_data,
    )
    assert (one.left_out.others, one.left_out.twins, one.left_out.folders, one.left_out.made) == (
        two.left_out.others, two.left_out.twins, two.left_out.folders, two.left_out.made
    )  # fmt: skip
    assert one.labels(one.class_names()).tolist() == two.labels(two.class_names()).tolist()
    splits = [build.split(Config().data, data.files) for data in (one, two)]
    assert splits[0].hash() == splits[1].hash()
    assert len(splits[0].held_out) > 0
    return all(np.array_equal(one.images[n], two.images[n]) for n in range(len(one.images)))


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_equals_its_folder(root: Path, form: str) -> None:
    folder = opened(root)
    assert len(folder.files) == 25
    path = FORMS[form](root)
    assert same(opened(path), folder)
    if form in ("zip", "tar"):
        cached = opened(path, cache=root.parent / "cache")
        assert same(cached, folder)
        assert same(opened(path, cache=root.parent / "cache"), folder)


def test_check_says_the_same_of_an_archive(root: Path) -> None:
    texts = [describe(survey(path)).partition(":")[2] for path in (root, as_zip(root), as_tar(root))]
    assert texts[0] == texts[1] == texts[2]


def test_an_archive_is_read_again_only_where_it_has_changed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = as_zip(root), list[str]()
    decode = dataset.decode_file
    monkeypatch.setattr(
        dataset, "decode_file", lambda source, name, *rest: (read.append(name), decode(source, name, *rest))[1]
    )
    first = opened(path, cache=root.parent / "cache")
    assert len(read) == 26
    opened(path, cache=root.parent / "cache")
    assert len(read) == 27, "the broken one is tried again"
    (root / "cat" / "bare").write_bytes(photo(77))
    os.utime(as_zip(root), ns=(0, 10**18))
    second = opened(path, cache=root.parent / "cache")
    assert second.index_hash != first.index_hash
    assert same(second, opened(root))


def test_many_small_members_are_read_by_processes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "MANY", 20)
    monkeypatch.setattr(dataset, "CHUNK", 8)
    assert same(opened(as_tar(root), workers=2), opened(root, workers=1))


def shards(root: Path, label: str = ".cls", keys: str = "{:06}") -> list[Path]:
    """Three shards of eight images each, as webdataset writes them."""
    made = []
    for shard in range(3):
        made.append(root / f"shard-{shard:04}.tar")
        with tarfile.open(made[-1], "w") as archive:
            for n in range(8 * shard, 8 * shard + 8):
                key = keys.format(n) if "{" in keys else f"{n % 8}"
                text = json.dumps({"label": n % 3, "caption": "x"}) if label == ".json" else f"{n % 3}\n"
                for name, content in ((f"{key}.png", photo(n)), (f"{key}{label}", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return made


@pytest.mark.parametrize("label", [".cls", ".json"])
def test_shards_are_one_data_set_with_labels(tmp_path: Path, label: str) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "shards").mkdir()
    for n in range(24):
        (tmp_path / "plain" / f"{n:06}.png").write_bytes(photo(n))
    shards(tmp_path / "shards", label)
    plain = opened(tmp_path / "plain")
    for address in ("shards", "shards/shard-{0000..0002}.tar", "shards/shard-*.tar"):
        data = opened(tmp_path / address)
        assert list(data.files) == list(plain.files)
        assert all(np.array_equal(data.images[n], plain.images[n]) for n in range(24))
        assert data.class_names() == ("0", "1", "2")
        assert data.labels(("0", "1", "2")).tolist() == [n % 3 for n in range(24)]
        assert data.index_hash != plain.index_hash, "labels are part of what a run goes on with"
    with pytest.raises(DataError, match=r"1 of 4 files are missing, such as .*shard-0003"):
        opened(tmp_path / "shards" / "shard-{0000..0003}.tar")


def test_shards_that_number_from_zero_each_are_told_apart(tmp_path: Path) -> None:
    shards(tmp_path, keys="zero")
    data = opened(tmp_path)
    assert [file.path for file in data.files] == [f"shard-{s:04}/{n}.png" for s in range(3) for n in range(8)]
    assert data.labels(("0", "1", "2")).tolist() == [n % 3 for n in range(24)]


def test_links_within_a_tar_mean_what_they_mean_in_a_folder(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("links need rights there")
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "0.png").write_bytes(photo(0))
    os.link(tmp_path / "data" / "a" / "0.png", tmp_path / "data" / "hard.png")
    (tmp_path / "data" / "soft.png").symlink_to("a/0.png")
    (tmp_path / "data" / "gone.png").symlink_to("a/1.png")
    folder = opened(tmp_path / "data")
    for form in ("tar", "tar of the folder"):
        data = opened(FORMS[form](tmp_path / "data"))
        assert list(data.files) == list(folder.files)
        assert data.rejected == folder.rejected
    assert [r.reason for r in folder.rejected] == ["a broken link"]


def test_members_that_are_meant_badly(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", photo(0))
        archive.writestr("../out.png", photo(1))
        archive.writestr("/root.png", photo(2))
        archive.writestr("bomb.png", bytes(80_000_000))
        archive.writestr(zipfile.ZipInfo("lzma.png"), photo(3), zipfile.ZIP_LZMA)
        archive.writestr("a\\windows.png", photo(4))
    content = path.read_bytes().replace(b"\x14\x03", b"\x14\0")  # made on Windows, where \ stands between folders
    path.write_bytes(content)
    data = opened(path)
    assert [file.path for file in data.files] == ["a/windows.png", "good.png"]
    reasons = {r.path: r.reason for r in data.rejected}
    assert reasons.pop("lzma.png").startswith("is packed by a method")
    assert reasons == {
        "../out.png": "its name leads out of the archive", "/root.png": "its name leads out of the archive",
        "bomb.png": "unpacks to more than 200 times its size, as no image does",
    }  # fmt: skip


def test_an_encrypted_archive_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "secret.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", photo(0))
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"1 that cannot \(a\.png: is encrypted: unpack the archive with its password"):
        opened(path)


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_archives_that_are_cut_off(root: Path, form: str) -> None:
    path = FORMS[form](root)
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.8):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match="damaged"):
            opened(path)


def test_a_bit_that_is_flipped_in_a_zip_is_found(root: Path) -> None:
    path = as_zip(root, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    place = content.index((root / "cat" / "02.png").read_bytes()) + 60
    content[place] ^= 1
    path.write_bytes(content)
    assert {r.path: r.reason for r in opened(path).rejected}["cat/02.png"] == "damaged: its checksum is wrong"


def test_tars_that_were_joined_or_have_no_end(root: Path) -> None:
    path = as_tar(root)
    content = path.read_bytes()
    path.write_bytes(content + content)
    with pytest.raises(DataError, match="joined by cat"):
        opened(path)
    with tarfile.open(path, "w") as archive:
        archive.add(root, ".")
        end = archive.offset
    path.write_bytes(path.read_bytes()[:end])
    data = opened(path)
    assert same(data, opened(root))
    assert data.left_out.notes == ["photos.tar has no end mark: a part of it may be missing"]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_what_is_compressed_as_a_whole_is_refused_and_the_way_round_named(root: Path, kind: str) -> None:
    path = root.parent / f"photos.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as archive:
        archive.add(root, "photos")
    with pytest.raises(DataError, match=r"compressed as a whole.*diffunet prepare"):
        opened(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.zip", b"x", "damaged, or no zip"), ("a.tar", bytes(10240), "damaged, or no tar"),
        ("a.png", photo(0), "is one image"),
        ("a.txt", b"x", "none of the data"), ("a.7z", b"7z", "unpack it"), ("a.parquet", b"PAR1", "diffunet prepare"),
        ("a.zip", b"PK\x05\x06" + bytes(18), "holds no images"), ("a.zip", b"PK\x03\x04" + bytes(500), "damaged"),
    ],
)  # fmt: skip
def test_files_that_are_no_data(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        opened(tmp_path / name)


def test_names_of_old_zips(tmp_path: Path) -> None:
    """Names in UTF-8 without the mark that says so, as the zip of a Mac writes them."""
    path = tmp_path / "mac.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xx/a.png", photo(0))
        archive.writestr("b.png", photo(1))
    path.write_bytes(path.read_bytes().replace(b"xx/a.png", "\u00e9/a.png".encode()))
    assert [file.path for file in opened(path).files] == ["b.png", "\u00e9/a.png"]


def test_a_zip_of_a_run_is_no_data_set(tmp_path: Path) -> None:
    path = tmp_path / "run.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("run/config.toml", "run/checkpoints/x", "run/samples/0.png"):
            archive.writestr(name, photo(0))
    with pytest.raises(DataError, match="previews are not trained on"):
        opened(path)


def test_no_member_is_read_beyond_its_size() -> None:
    """A header that lies about the size does not fill the memory."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10_000_000))
    path = Path(os.devnull)
    raw = content.getvalue()
    packed = struct.unpack("<I", raw[18:22])[0]

    class InMemory(type(path)):  # type: ignore[misc]
        def open(self, *_: Any, **__: Any) -> Any:
            return io.BytesIO(raw)

    place = (0, 0, packed, 1000, zipfile.ZIP_DEFLATED, 0)
    with pytest.raises(DataError, match="checksum"):
        archives.read_member([InMemory(os.devnull)], place)


def zipped(path: Path, content: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, one in content.items():
            archive.writestr(zipfile.ZipInfo(name), one)  # of one date


@pytest.mark.parametrize("names", [("2023/photos.zip", "2024/photos.zip"), ("a.zip", "b.zip")])
def test_archives_with_equal_names_inside_keep_all_images_and_their_classes(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for number, name in enumerate(names):
        content = {f"{of}/{n}.png": photo(10 * number + n) for n, of in enumerate(("cat", "dog"))}
        zipped(tmp_path / name, content | {"README.txt": b"x"})
    data = opened(tmp_path)
    assert len(data.files) == len({file.sha256 for file in data.files}) == 4
    assert data.class_names() == ("cat", "dog")


def test_a_zip_beside_a_tar_of_its_name(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"0.png": photo(0)})
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        (tmp_path / "0").write_bytes(photo(1))
        archive.add(tmp_path / "0", "0.png")
    assert open_archives(tmp_path / "a.*", ["a.tar", "a.zip"]) == ["a.tar/0.png", "a.zip/0.png"]


def open_archives(root: Path, names: list[str]) -> list[str]:
    return archives.open_archives(root, [root.parent / name for name in names])[1].paths


def test_names_that_are_no_images_may_be_equal(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        zipped(tmp_path / f"{name}.zip", {f"cat/{name}.png": photo(number), "README.txt": b"x", ".DS_Store": b"x"})
    assert list(opened(tmp_path).files.paths) == ["cat/a.png", "cat/b.png"]


def test_a_pattern_means_the_folder_that_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders whose archives have equal names, sizes and dates are two data sets, with a cache each."""
    for number, name in enumerate(("A", "B")):
        image = io.BytesIO()
        Image.new("RGB", (9, 9), (250 * number, 0, 0)).save(image, "BMP")
        zipped(tmp_path / name / "s-0.zip", {"0.bmp": image.getvalue()})
        os.utime(tmp_path / name / "s-0.zip", (1, 1))
        monkeypatch.chdir(tmp_path / name)
        data = open_dataset(Path("s-*.zip"), image_size=8, channels=3, fit="crop", cache=tmp_path / "cache")
        assert data.images[0].max() == 250 * number


def test_archives_are_looked_for_only_where_there_are_no_images_at_all(tmp_path: Path) -> None:
    zipped(tmp_path / "#recycle/old.zip", {"0.png": photo(0)})
    with pytest.raises(DataError, match="holds no images"):
        opened(tmp_path)
    zipped(tmp_path / "new.zip", {"0.png": photo(0)})
    assert len(opened(tmp_path).files) == 1
    (tmp_path / "photo.jxl").write_bytes(b"x")
    data = opened(tmp_path)
    assert (len(data.files), [file.path for file in data.rejected]) == (1, ["photo.jxl"])


def test_a_pattern_of_images_is_told_to_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(0))
    with pytest.raises(DataError, match="give their folder"):
        opened(tmp_path / "*.png")


@pytest.mark.parametrize("rule", [None, "metadata.csv"])
def test_a_table_in_an_archive_says_the_classes(tmp_path: Path, rule: str | None) -> None:
    table = b"file_name,label\na.png,cat\nb.png,dog\n"
    zipped(tmp_path / "a.zip", {"top/a.png": photo(0), "top/b.png": photo(1), "top/metadata.csv": table})
    data = opened(tmp_path / "a.zip")
    found = labels.find(tmp_path / "a.zip", data.files.paths, rule, given=data.classes, beside=data.beside)
    assert [found.names[place] for place in found.places] == ["cat", "dog"]


def test_labels_of_shards_are_those_of_their_own_shard(tmp_path: Path) -> None:
    zipped(tmp_path / "s-0.zip", {"0.png": photo(0), "0.cls": b"cat"})
    zipped(tmp_path / "s-1.zip", {"0.jpg": photo(1, "JPEG"), "0.cls": b"dog"})
    assert opened(tmp_path).classes == {"s-0/0.png": "cat", "s-1/0.jpg": "dog"}


def test_a_folder_that_has_the_name_of_an_archive_hides_no_image(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"b/0.png": photo(0), "1.png": photo(1)})
    zipped(tmp_path / "b/a.zip", {"0.png": photo(2), "1.png": photo(3)})
    assert len(opened(tmp_path).files) == 4


def test_what_diffunet_made_is_passed_over_in_each_archive(tmp_path: Path) -> None:
    record = b'{"pictures": ["0.png"]}\n'
    run = {"run/config.toml": b"x", "run/model/x": b"x", "run/samples/step-1.png": photo(7)}
    zipped(tmp_path / "a.zip", {"cat/0.png": photo(0), "cat/1.png": photo(1), "cat/made.jsonl": record, **run})
    zipped(tmp_path / "b.zip", {"cat/0.png": photo(2), "cat/1.png": photo(3)})
    assert list(opened(tmp_path).files.paths) == ["cat/a/1.png", "cat/b/0.png", "cat/b/1.png"]


def test_the_folder_in_which_all_archives_have_all_is_none_of_the_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        content = {f"photos/{of}/0.png": photo(2 * number + n) for n, of in enumerate(("cat", "dog"))}
        zipped(tmp_path / f"{name}.zip", content)
    assert list(opened(tmp_path).files.paths) == ["cat/a/0.png", "cat/b/0.png", "dog/a/0.png", "dog/b/0.png"]
