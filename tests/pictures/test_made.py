"""Lists of pictures: what is saved of them, checked by Pillow's own reader and by the bytes of the files."""

import copy
import io
import pickle

import numpy as np
import pytest
from PIL import Image

import diffunet
from diffunet.errors import DataError, UsageError
from diffunet.pictures import deep, given, images
from diffunet.pictures.made import Picture, Pictures, names_file

WIDE = np.random.default_rng(0).integers(0, 2**16, (8, 10, 3)).astype(np.uint16)


def noted():
    """A picture of 16 bits with all notes."""
    image = given.picture(WIDE)
    exif = Image.Exif()
    exif[0x010E] = "my photo"
    image.info |= {"exif": exif.tobytes(), "dpi": (300.0, 300.0)}
    return image


def stored(path):
    """The values of 16 bits that a file holds, by our reader, whose high bytes are Pillow's."""
    image = images.open_image(path)
    return np.asarray(image).astype(np.uint16) * 256 + np.asarray(deep.low_of(image))


def check(path):
    assert path.read_bytes()[24] == 16  # bits a channel, in a PNG's header
    assert np.array_equal(stored(path), WIDE)
    with Image.open(path) as image:
        assert image.getexif()[0x010E] == "my photo"
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_every_way_to_save_keeps_16_bits_exif_and_resolution(tmp_path):
    picture = Picture.of(noted(), "holiday")
    assert diffunet.save(noted(), tmp_path / "function.png") == tmp_path / "function.png"
    picture.save(tmp_path / "method.png")
    assert Pictures([picture]).save(tmp_path / "list.png") == [tmp_path / "list.png"]
    assert Pictures([picture]).save(tmp_path / "folder") == [tmp_path / "folder/holiday.png"]
    for name in ("function.png", "method.png", "list.png", "folder/holiday.png"):
        check(tmp_path / name)


def test_pillows_own_writer_stays_within_reach(tmp_path):
    picture = Picture.of(Image.new("RGB", (4, 4), "red"))
    content = io.BytesIO()
    picture.save(content, "PNG")
    picture.save(tmp_path / "a.jpg", quality=20)
    assert np.array_equal(np.asarray(Image.open(content)), np.asarray(picture))
    assert Image.open(tmp_path / "a.jpg").size == (4, 4)


def test_a_picture_is_an_image():
    image = Image.fromarray((WIDE >> 8).astype(np.uint8))
    picture = Picture.of(image)
    assert picture == image
    assert picture == Picture.of(image.copy())
    assert picture != Picture.of(Image.new("RGB", image.size))
    assert type(picture.resize((3, 3))) is Image.Image
    for again in (copy.copy(picture), copy.deepcopy(picture), pickle.loads(pickle.dumps(picture)), picture.copy()):
        assert np.array_equal(np.asarray(again), np.asarray(image))


def three(mode="RGB", names=("a", "b", "c")):
    return Pictures(Picture.of(Image.new(mode, (6, 4), i), name) for i, name in enumerate(names))


def test_slices_and_sums_are_lists_of_pictures():
    pictures = three()
    assert isinstance(pictures, list)
    assert type(pictures[:2]) is type(pictures + pictures[:1]) is Pictures
    assert [picture.name for picture in pictures[1:] + pictures[:1]] == ["b", "c", "a"]
    assert pictures[-1].name == "c"


def test_saving_to_a_folder(tmp_path):
    assert [path.name for path in three().save(tmp_path / "w1.5")] == ["a.png", "b.png", "c.png"]
    plain = Pictures([Image.new("L", (2, 2)), Image.new("CMYK", (2, 2))])
    assert [path.name for path in plain.save(f"{tmp_path}/x.png/")] == ["00000.png", "00001.tif"]
    with pytest.raises(UsageError, match="one file for 3 pictures"):
        three().save(tmp_path / "x.jpg")
    with pytest.raises(UsageError, match="would be named a"):
        three(names=("a", "b", "a")).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="holds no transparency"):
        three("RGBA")[:1].save(tmp_path / "x.jpg")
    with pytest.raises(DataError, match="no such file"):
        diffunet.save(tmp_path / "none.png", tmp_path / "x.png")


def test_a_grid_and_what_a_notebook_shows():
    pictures = three()
    tiles = [np.asarray(picture) for picture in pictures]
    assert np.array_equal(np.asarray(pictures.grid(columns=3)), np.asarray(images.grid(tiles, 3)))
    assert Image.open(io.BytesIO(pictures._repr_png_())).size == pictures.grid().size
    assert three("I;16").grid().mode == "L"
    assert three("RGBA").grid().mode == "RGBA"
    large = Pictures([Image.new("RGB", (3000, 30))])
    assert Image.open(io.BytesIO(large._repr_png_())).width == 1600
    assert Pictures()._repr_png_() is None
    with pytest.raises(UsageError, match="no images"):
        Pictures().grid()
    with pytest.raises(UsageError, match="of one size"):
        (pictures + large).grid()


@pytest.mark.parametrize("name", ["new", "new.v2", "w1.5", "2026.11.26", "x.png/", "there.png", "run.tmp", "a.b/c"])
def test_folders(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").mkdir()
    assert not names_file(name)


@pytest.mark.parametrize("name", ["x.png", "x.JPG", "v1.5/x.tif", "a.b.webp"])
def test_files(name):
    assert names_file(name)


@pytest.mark.parametrize("name", ["x.pgn", "x.jpgg", "x.heic", "x.pdf", "x.svg"])
def test_what_was_meant_to_be_a_picture_becomes_no_folder(name):
    with pytest.raises(UsageError, match="must end in one of"):
        names_file(name)
