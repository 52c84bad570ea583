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
