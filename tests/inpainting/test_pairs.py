"""Which mask goes with which image: folders laid out by hand."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from diffunet.errors import DataError
from diffunet.inpainting.pairs import Pair, pairs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in (
        "photos/b.jpg", "photos/a.PNG", "photos/deep/a.webp", "photos/.hidden.png", "photos/notes.txt",
        "masks/a.png", "masks/b.tif", "masks/deep/a.gif", "one.jpg",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folders_pair_by_name(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = [("a", "a.PNG", "a.png"), ("b", "b.jpg", "b.tif"), ("deep/a", "deep/a.webp", "deep/a.gif")]
    found = pairs([root / "photos"], root / "masks")
    assert found == [Pair(root / "photos" / image, root / "masks" / mask, name) for name, image, mask in expected]
    assert caplog.text == ""
    (root / "masks/c.png").touch()
    (root / "masks/d.png").touch()
    with caplog.at_level(logging.WARNING):
        assert pairs([root / "photos"], root / "masks") == found
    assert f"no image for {root / 'masks/c.png'}, {root / 'masks/d.png'}" in caplog.text


def test_one_mask_or_none_goes_with_all(root: Path) -> None:
    for mask in (None, root / "one.jpg"):
        found = pairs([root / "one.jpg", root / "photos"], mask)
        assert [pair.name for pair in found] == ["one", "a", "b", "deep/a"]
        assert {pair.mask for pair in found} == {mask}
    (root / "masks/one.webp").touch()
    assert pairs([root / "one.jpg"], root / "masks") == [Pair(root / "one.jpg", root / "masks/one.webp", "one")]


def test_what_has_no_mask_or_two_is_named(root: Path) -> None:
    for name in "cdefg":
        (root / "photos" / f"{name}.png").touch()
    with pytest.raises(DataError, match=r"no mask for \S+c.png, \S+d.png, \S+e.png and 2 more in \S+masks.*c\.png$"):
        pairs([root / "photos"], root / "masks")
    for name in "cdefg":
        (root / "masks" / f"{name}.png").touch()
    (root / "masks/c.bmp").touch()
    with pytest.raises(DataError, match=r"more than one mask for the same image: \S+c.bmp, \S+c.png; leave one"):
        pairs([root / "photos"], root / "masks")


def test_what_is_not_there(root: Path) -> None:
    (root / "empty").mkdir()
    for images, mask in (([root / "gone.png"], None), ([root / "one.jpg"], root / "gone.png")):
        with pytest.raises(DataError, match=r"gone\.png: no such file"):
            pairs(images, mask)
    for images, mask in (([root / "empty"], None), ([root / "one.jpg"], root / "empty")):
        with pytest.raises(DataError, match=r"empty: holds no images"):
            pairs(images, mask)


def test_files_that_are_no_images_for_us_are_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "photos/x.heic").touch()
    assert len(pairs([root / "photos"], None)) == 3
    assert "x.heic" in caplog.text


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


FORMS = ["{}_mask.png", "{}-mask.tif", "{}.mask.webp", "mask_{}.png", "mask-{}.PNG", "{}_MASK.png", "Mask_{}.bmp"]


@pytest.mark.parametrize("form", [*FORMS, "{}.jpg.png", "{}.jpg_mask.png"])
def test_masks_are_known_by_their_names(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a folder of their own and among the images, in subfolders too."""
    touch(tmp_path, "im/a.jpg", "im/deep/b.jpg")
    for name, folder in (("a", ""), ("b", "deep/")):
        touch(tmp_path, f"mk/{folder}{form.format(name)}")
    expected = [
        Pair(tmp_path / "im/a.jpg", tmp_path / "mk" / form.format("a"), "a"),
        Pair(tmp_path / "im/deep/b.jpg", tmp_path / "mk/deep" / form.format("b"), "deep/b"),
    ]
    assert pairs([tmp_path / "im"], tmp_path / "mk") == expected
    if form in FORMS:
        (tmp_path / "mk/deep" / form.format("b")).rename(tmp_path / "im/deep" / form.format("b"))
        (tmp_path / "mk" / form.format("a")).rename(tmp_path / "im" / form.format("a"))
        among = [pair._replace(mask=pair.image.parent / pair.mask.name) for pair in expected if pair.mask]
        assert pairs([tmp_path / "im"], tmp_path / "im") == among
        assert pairs([tmp_path / "im/a.jpg"], tmp_path / "im") == among[:1]
    assert caplog.text == ""


def test_a_mask_of_the_very_name_wins(tmp_path: Path) -> None:
    touch(tmp_path, "im/a.jpg", "im/a_mask.jpg", "mk/a.png", "mk/a_mask.png")
    found = pairs([tmp_path / "im"], tmp_path / "mk")
    assert [(pair.name, pair.mask and pair.mask.name) for pair in found] == [("a", "a.png"), ("a_mask", "a_mask.png")]


def test_among_images_it_must_be_clear_what_is_a_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "a_mask.png", "lost_mask.png")
    assert pairs([tmp_path], tmp_path) == [Pair(tmp_path / "a.jpg", tmp_path / "a_mask.png", "a")]
    assert f"no image for {tmp_path / 'lost_mask.png'}" in caplog.text
    touch(tmp_path, "b.jpg")
    with pytest.raises(DataError, match=r"no mask for \S+b\.jpg in .* as \S+b_mask\.png$"):
        pairs([tmp_path], tmp_path)
    touch(tmp_path, "b.png")
    with pytest.raises(DataError, match=r"b\.\w+: an image or the mask of one\? .*b_mask\.png$"):
        pairs([tmp_path], tmp_path)
    touch(tmp_path, "b_mask.png", "a-mask.png")
    with pytest.raises(DataError, match=r"more than one mask for the same image"):
        pairs([tmp_path], tmp_path)


def test_names_are_compared_in_one_form_of_unicode(tmp_path: Path) -> None:
    one, other = "caf\u00e9", "cafe\u0301"
    touch(tmp_path, f"im/{one}.jpg", f"mk/{other}.png", f"im/{other} 2.jpg", f"mk/{one} 2_mask.png")
    found = pairs([tmp_path / "im"], tmp_path / "mk")
    assert {(pair.name, pair.mask and pair.mask.name) for pair in found} == {
        (one, f"{other}.png"), (f"{other} 2", f"{one} 2_mask.png"),
    }  # fmt: skip
    touch(tmp_path, f"mk/{one}.png")
    assert [pair.mask and pair.mask.name for pair in pairs([tmp_path / f"im/{one}.jpg"], tmp_path / "mk")] == [
        f"{one}.png"
    ]


def test_masks_and_results_within_the_album_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "album/a.png", "album/masks/a.png", "album/mended/a.png", "album/one.png", "album/mended2/x.png")
    names = [pair.name for pair in pairs([tmp_path / "album"], None, tmp_path / "album/mended")]
    assert names == ["a", "masks/a", "mended2/x", "one"]
    (tmp_path / "album/mended2/x.png").unlink()
    touch(tmp_path, "album/masks/one.png")
    expected = [("a", tmp_path / "album/masks/a.png"), ("one", tmp_path / "album/masks/one.png")]
    found = pairs([tmp_path / "album"], tmp_path / "album/masks", tmp_path / "album/mended")
    assert [(pair.name, pair.mask) for pair in found] == expected
    monkeypatch.chdir(tmp_path / "album")
    assert [pair.name for pair in pairs([Path(".")], Path("masks"), Path("../album/mended"))] == ["a", "one"]
    assert [pair.name for pair in pairs([Path(".")], Path("one.png"), Path("mended"))] == ["a", "masks/a", "masks/one"]
    assert len(pairs([Path("mended")], None, Path("mended"))) == 1, "the folder itself is not within itself"
    (tmp_path / "all/mended").mkdir(parents=True)
    touch(tmp_path, "all/mended/a.png")
    with pytest.raises(DataError, match="all: all of its images are masks or results"):
        pairs([tmp_path / "all"], None, tmp_path / "all/mended")
