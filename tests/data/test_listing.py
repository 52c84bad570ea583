"""What is an image and what is passed over: by names, by first bytes, by what lies beside it."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from diffunet.data import folder, listing
from diffunet.data.dataset import open_dataset
from diffunet.data.findings import describe
from diffunet.data.sources import open_source
from diffunet.data.survey import survey
from diffunet.errors import DataError


def encoded(kind: str = "PNG", colour: int = 0) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), (colour, 50, 200)).save(buffer, kind)
    return buffer.getvalue()


def put(root: Path, names: list[str], content: bytes | None = None) -> None:
    """Write files, each of its own colour unless their content is given."""
    for n, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(colour=n) if content is None else content)


def test_other_files_are_counted_by_kind_and_files_without_ending_looked_into(tmp_path: Path) -> None:
    put(tmp_path, [f"{n}.png" for n in range(20)])
    for n in range(100):
        for kind in ("dcm", "npy", "nii.gz"):
            (tmp_path / f"x{n}.{kind}").write_bytes(b"1")
    put(tmp_path, [f"photo{n}" for n in range(30)], encoded("JPEG"))
    text = describe(survey(tmp_path)).splitlines()[0]
    assert "50 images can be used, 0 files cannot" in text
    assert "300 other files are passed over (100 .dcm, 100 .gz, 100 .npy)" in text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize(
    "name", ["photo", "photo.1", "photo.JPG_large", "a.jpg?width=200", "photo.orig_1", "Mr. Smith", "x.JPEG!large"]
)
def test_names_that_say_nothing_are_looked_into(tmp_path: Path, name: str, kind: str) -> None:
    if sys.platform == "win32" and "?" in name:
        pytest.skip("no such names there")
    put(tmp_path, [name], encoded(kind))
    assert folder.list_images(tmp_path) == ([name], [])


def test_what_only_looks_like_a_beginning_is_no_image(tmp_path: Path) -> None:
    put(tmp_path, ["good.png"])
    for name, content in {
        "README": b"BM is how it begins, and it is a text", "LICENSE": b"MIT", "empty": b"", "RIFF": b"RIFF1234WAVE",
        "movie": b"\0\0\0\x18ftypmp42", "photo.png~": encoded(), "photo.bak": encoded(), "photo.crdownload": encoded(),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    found = folder.candidates(tmp_path)
    assert found.paths == ["good.png"]
    assert found.left_out.others == {"": 5, ".png~": 1, ".bak": 1, ".crdownload": 1}
    assert found.rejected == []


@pytest.mark.parametrize(
    "twin",
    ["IMG_0.heic", "img_0.HEIC", "IMG_0.CR2", "IMG_0.dng", "IMG_0.xmp", "IMG_0.jpg.xmp", "IMG_0.MOV", "IMG_0.psd",
     "IMG_0.AAE", "IMG_0.nrw"],
)  # fmt: skip
def test_twins_of_images_are_passed_over(tmp_path: Path, twin: str) -> None:
    put(tmp_path, ["a/IMG_0.JPG", "a/IMG_1.png"], encoded("JPEG"))
    put(tmp_path, [f"a/{twin}"], b"x")
    found = folder.candidates(tmp_path)
    assert found.paths == ["a/IMG_0.JPG", "a/IMG_1.png"]
    assert found.rejected == []
    assert found.left_out.twins == {Path(twin).suffix.lower(): 1}
    (line,) = found.left_out.lines()
    assert line == f"1 file beside an image of the same name is passed over (1 {Path(twin).suffix.lower()})"


def test_only_the_same_folder_and_name_make_a_twin(tmp_path: Path) -> None:
    put(tmp_path, ["a/IMG_0.jpg"], encoded("JPEG"))
    put(tmp_path, ["b/IMG_0.heic", "a/IMG_2.cr2", "IMG_0.nef"], b"x")
    found = folder.candidates(tmp_path)
    assert [file.path for file in found.rejected] == ["IMG_0.nef", "a/IMG_2.cr2", "b/IMG_0.heic"]
    assert not found.left_out.twins


def test_a_jpeg_that_is_called_heic_is_an_image(tmp_path: Path) -> None:
    put(tmp_path, ["IMG_0.heic"], encoded("JPEG"))
    assert folder.list_images(tmp_path) == (["IMG_0.heic"], [])


def test_folders_of_systems_are_left_out_and_counted(tmp_path: Path) -> None:
    put(tmp_path, ["good.png", "a/@eaDir/good.png/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x.jpg", "#recycle/old.jpg"])
    put(tmp_path, ["$RECYCLE.BIN/x.png", "System Volume Information/x.png", "lost+found/x.png", ".Trashes/x.png"])
    put(tmp_path, ["__MACOSX/x.png", ".ipynb_checkpoints/x.png", ".thumbnails/x.png", "._good.png", "@Recycle/x.png"])
    put(tmp_path, ["Thumbs.db", "desktop.ini", "a/.DS_Store"], b"x")
    found = folder.candidates(tmp_path)
    assert found.paths == ["good.png"]
    assert found.left_out.folders == {
        "@eaDir": 2, "#recycle": 1, "$RECYCLE.BIN": 1, "System Volume Information": 1, "lost+found": 1,
        "__MACOSX": 1, "@Recycle": 1,
    }  # fmt: skip
    (line,) = found.left_out.lines()
    assert line.startswith("folders that systems keep are passed over (2 @eaDir, 1 ")


def made_run(root: Path) -> None:
    """A run folder, as training leaves it."""
    put(root, ["samples/step-00000002.png"])
    put(root, ["config.toml", "model/config.json", "model/model.safetensors", "checkpoints/x/state.json"], b"x")


def test_runs_models_and_outputs_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, ["a.png", "b/c.png"])
    made_run(tmp_path / "run")
    made_run(tmp_path / "b" / "older run")
    put(tmp_path, ["model/samples.png", "piped/samples.png"])
    put(tmp_path, ["model/config.json", "model/model.safetensors"], b"x")
    put(tmp_path, ["piped/model_index.json", "piped/unet/config.json"], b"x")
    source, found = open_source(tmp_path)
    assert found.paths == ["a.png", "b/c.png"]
    made = {"run": "a run", "b/older run": "a run", "model": "a model", "piped": "a model"}
    assert found.left_out.made == made
    (line,) = found.left_out.lines()
    assert line.startswith("4 folders of diffunet's own are passed over (")
    assert source.read("b/c.png") == (tmp_path / "b/c.png").read_bytes()
    for part in ("run", "run/samples", "b/older run", "model"):
        with pytest.raises(DataError, match="of diffunet"):
            open_source(tmp_path / part)


def test_pictures_that_are_noted_as_made_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, ["a.png", "mended/a.png", "mended/deep/b.png", "mended/mine.png", "sample-0.png"])
    lines = [{"run": "x", "options": {}}, {"run": "x", "pictures": ["a.png", "deep/b.png"]}]
    record = "\n".join(map(json.dumps, lines)) + '\n{"run": "x", "pict'
    (tmp_path / "mended" / listing.RECORD).write_text(record)
    (tmp_path / listing.RECORD).write_text(json.dumps({"run": "y", "pictures": ["sample-0.png"]}))
    found = folder.candidates(tmp_path)
    assert found.paths == ["a.png", "mended/mine.png"]
    assert list(found.left_out.lines()) == ["3 pictures that diffunet made are passed over"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".zip"):
            archive.write(path, path.relative_to(tmp_path).as_posix())
    archived = open_source(tmp_path / "a.zip")[1]
    assert (archived.paths, archived.left_out.outputs) == (found.paths, 3)
    (tmp_path / "mended" / "mine.png").unlink()
    (tmp_path / "mended" / "deep" / "b.png").rename(tmp_path / "mended" / "b.png")
    (tmp_path / "mended" / "deep").rmdir()
    (tmp_path / "mended" / listing.RECORD).write_text(json.dumps({"pictures": ["a.png", "b.png"]}))
    assert folder.candidates(tmp_path / "mended").paths == ["a.png", "b.png"], "who names nothing else means them"


def test_a_config_alone_makes_no_run(tmp_path: Path) -> None:
    put(tmp_path, ["a/x.png", "a/model/y.png"])
    put(tmp_path, ["a/config.json"], b"{}")
    assert folder.list_images(tmp_path)[0] == ["a/model/y.png", "a/x.png"]


E_ACUTE = "\u00e9"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one form of a name")
def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    names = [f"caf{E_ACUTE}/{n}-{E_ACUTE}.png" for n in range(3)] + ["cafe/f.png"]
    put(tmp_path / "linux", names)
    put(tmp_path / "mac", [unicodedata.normalize("NFD", name) for name in names])
    linux, mac = (
        open_dataset(tmp_path / s, image_size=8, channels=3, fit="crop", cache="off") for s in ("linux", "mac")
    )
    assert list(linux.files.paths) == sorted(names)
    assert list(mac.files) == list(linux.files)
    assert mac.index_hash == linux.index_hash
    assert mac.class_names() == ("cafe", f"caf{E_ACUTE}")
    assert mac.labels((unicodedata.normalize("NFD", f"caf{E_ACUTE}"), "cafe")).tolist() == [1, 0, 0, 0]
    assert all((mac.images[n] == linux.images[n]).all() for n in range(4))
    assert folder.list_images(tmp_path / "mac")[0] == sorted(unicodedata.normalize("NFD", name) for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one form of a name")
def test_two_files_of_one_name_do_not_clash_silently(tmp_path: Path) -> None:
    put(tmp_path, [f"{E_ACUTE}.png", unicodedata.normalize("NFD", f"{E_ACUTE}.png"), "b.png"])
    source, found = open_source(tmp_path)
    assert found.paths == ["b.png", f"{E_ACUTE}.png"]
    assert source.read(f"{E_ACUTE}.png") == encoded(colour=0)
    ((rejected),) = found.rejected
    assert "Unicode form" in rejected.reason
