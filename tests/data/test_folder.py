"""Folders as people have them: odd names, links in circles, files that are no images."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet.data import folder
from diffunet.errors import DataError


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
    for name in ["phone.HEIC", "a/vector.svg", "b.avif", "c.psd", "d.jxl"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    paths, rejected = folder.list_images(tmp_path)
    assert paths == ["good.png"]
    assert [r.path for r in rejected] == ["a/vector.svg", "b.avif", "c.psd", "d.jxl", "phone.HEIC"]
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
    assert [r.path for r in rejected] == ["bad-\\udcff.png"]
    assert "rename" in rejected[0].reason
    text = folder.describe(folder.survey(tmp_path))
    text.encode("utf-8")
    assert "bad-\\udcff.png" in text


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


def test_roots_that_cannot_be(tmp_path: Path) -> None:
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


def test_classes() -> None:
    assert folder.class_of("cat/x/1.png") == "cat"
    assert folder.class_of("1.png") is None
    assert folder.class_names(["dog/1.png", "cat/2.png", "dog/3.png"]) == ("cat", "dog")
    with pytest.raises(DataError, match=r"loose\.png"):
        folder.class_names(["dog/1.png", "loose.png", "cat/2.png"])
    with pytest.raises(DataError, match="at least two"):
        folder.class_names(["dog/1.png"])
    with pytest.raises(DataError, match="at least two"):
        folder.class_names([])


def test_in_order_is_map_and_reads_few_ahead() -> None:
    taken: list[int] = []

    def double(n: int) -> int:
        taken.append(n)
        return 2 * n

    results = folder.in_order(double, range(100), workers=2)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    assert max(taken) < 10
    assert list(results) == [2 * n for n in range(3, 100)]


def test_survey_counts(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "wide.png", (100, 20), (255, 0, 0))
    picture(tmp_path / "x" / "copy.png", (100, 20), (255, 0, 0))
    picture(tmp_path / "y" / "alpha.png", (30, 30), (9, 9, 9, 100), "RGBA")
    picture(tmp_path / "y" / "opaque.png", (30, 40), (9, 9, 9, 255), "RGBA")
    picture(tmp_path / "y" / "grey.jpg", (200, 100), 7, "L")
    (tmp_path / "y" / "broken.png").write_bytes(b"")
    (tmp_path / "z.heic").write_bytes(b"x")
    seen: list[tuple[int, int]] = []
    survey = folder.survey(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]
    assert survey.formats == {"PNG": 4, "JPEG": 1}
    assert survey.modes == {"RGB": 2, "RGBA": 2, "L": 1}
    assert survey.classes == {"x": 2, "y": 3}
    assert survey.size_range() == ((30, 30), (100, 30), (200, 100))
    assert survey.elongated == 2
    assert survey.smaller_than(31) == 4
    assert survey.duplicates == (("x/copy.png", "x/wide.png"),)
    assert survey.has_alpha == 1
    assert not survey.all_grey
    assert [r.path for r in survey.rejected] == ["y/broken.png", "z.heic"]
    text = folder.describe(survey, image_size=64)
    for part in (
        "5 images",
        "PNG 4",
        "x 2",
        "--data.channels 4",
        "--classes",
        "y/broken.png: empty file",
        "smallest 30 x 30",
    ):
        assert part in text, text


def test_grey_pictures_are_seen_whatever_their_mode(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 1), dtype=np.uint8)
    Image.fromarray(noise.repeat(3, 2)).save(tmp_path / "rgb.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "l.png")
    survey = folder.survey(tmp_path)
    assert survey.all_grey
    assert "--data.channels 1" in folder.describe(survey)
    assert "--classes" not in folder.describe(survey)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    for n in range(25):
        (tmp_path / f"bad{n:02}.png").write_bytes(b"no")
    text = folder.describe(folder.survey(tmp_path))
    assert "bad19.png" in text
    assert "bad20.png" not in text
    assert text.endswith("... and 5 more")


def test_nothing_usable_is_still_described(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    assert "0 images can be used, 1 files cannot" in folder.describe(folder.survey(tmp_path))
