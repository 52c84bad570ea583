"""Arrays equal the same images in a folder, whatever their layout and type."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffunet import build
from diffunet.config import Config
from diffunet.data import arrays
from diffunet.data.dataset import Dataset, open_dataset
from diffunet.errors import DataError
from diffunet.pictures.ranges import Range, Ranges

COLOURS = np.random.default_rng(0).integers(0, 256, (24, 10, 9, 3), np.uint8)


def opened(root: Path, **options: Any) -> Dataset:
    return open_dataset(root, **{"image_size": 8, "channels": 3, "fit": "crop", "cache": "off"} | options)


def saved(path: Path, *positional: Any, **named: Any) -> Path:
    np.savez_compressed(path, *positional, **named)
    return path


def folder(root: Path, images: np.ndarray[Any, Any] = COLOURS) -> Dataset:
    root.mkdir()
    for n, image in enumerate(images):
        Image.fromarray(image).save(root / f"{n:02}.png")
    return opened(root)


def same(one: Dataset, two: Dataset) -> bool:
    assert (one.mean, one.sigma_data, len(one.images)) == (two.mean, two.sigma_data, len(two.images))
    assert list(one.files.paths) == list(two.files.paths)
    return all(np.array_equal(one.images[n], two.images[n]) for n in range(len(one.images)))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (300, 299)])
def test_the_png_is_one(channels: int, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, channels), np.uint8)
    with Image.open(io.BytesIO(content := arrays.png(image))) as read:
        assert np.array_equal(np.asarray(read).reshape(image.shape), image)
    assert content == arrays.png(image)


def test_forms_of_arrays(tmp_path: Path) -> None:
    plain = folder(tmp_path / "plain")
    np.save(tmp_path / "a.npy", COLOURS)
    np.save(tmp_path / "turned.npy", COLOURS.transpose(0, 3, 1, 2))
    forms = [
        tmp_path / "a.npy", tmp_path / "turned.npy", saved(tmp_path / "b.npz", images=COLOURS),
        saved(tmp_path / "c.npz", COLOURS), saved(tmp_path / "d.npz", odd_name=COLOURS, other=np.arange(4)),
        saved(tmp_path / "e.npz", x=COLOURS.astype(np.int64)), saved(tmp_path / "f.npz", x=COLOURS / 255),
        saved(tmp_path / "g.npz", x=(COLOURS / 127.5 - 1).astype(np.float32)),
    ]  # fmt: skip
    for path in forms:
        assert same(opened(path), plain), path
    assert same(opened(forms[0], cache=tmp_path / "cache"), plain)
    assert len(build.split(Config().changed("data", held_out=0.0).data, opened(forms[0]).files).training) == 24
    square = COLOURS[:, :9]
    rows = saved(tmp_path / "cifar.npz", data=square.transpose(0, 3, 1, 2).reshape(24, -1), labels=np.arange(24) % 10)
    assert same(opened(rows), folder(tmp_path / "square", square))
    assert opened(rows).class_names() == tuple("0123456789")


def test_grey_and_alpha(tmp_path: Path) -> None:
    grey = COLOURS[..., 0]
    plain = folder(tmp_path / "grey", grey)
    assert same(opened(saved(tmp_path / "a.npz", images=grey)), plain)
    assert same(
        opened(saved(tmp_path / "b.npz", images=grey > 127)), folder(tmp_path / "bits", grey.repeat(1, 0) // 128 * 255)
    )
    clear = np.concatenate([COLOURS, COLOURS[..., :1]], axis=3)
    data = opened(saved(tmp_path / "c.npz", images=clear), channels=4, image_size=9)
    assert data.images[3].shape[2] == 4
    assert same(opened(saved(tmp_path / "d.npz", images=clear)), folder(tmp_path / "clear", clear))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_the_range_of_deep_arrays_is_found_over_all_of_them(tmp_path: Path, bits: int) -> None:
    white = 2**bits - 1
    deep = np.random.default_rng(2).integers(0, white + 1, (24, 10, 9)).astype(np.uint16)
    deep[3] //= 50  # a dark one is not made brighter
    data = opened(saved(tmp_path / "a.npz", images=deep), image_size=9)
    expected = np.rint(deep * (255 / white)).astype(np.uint8)
    for n in (0, 3):
        assert np.array_equal(data.images[n][..., 0], expected[n, :, :][: data.images[n].shape[0]])
    (line,) = data.left_out.lines()
    assert f"almost nothing above {white:,}: taken as {bits} bits" in line


def test_ranges_that_are_none_of_the_usual(tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(0, 300, (24, 10, 9)).astype(np.int16)
    data = opened(saved(tmp_path / "a.npz", images=values), image_size=9)
    low, high = np.quantile(values, [1e-4, 1 - 1e-4])
    assert np.array_equal(data.images[0][..., 0], np.rint((values[0] - low) * (255 / (high - low))).clip(0, 255))
    overshoot = np.random.default_rng(4).random((24, 10, 9)) * 1.04 - 0.02
    overshoot[0, 0, 0] = np.nan
    data = opened(saved(tmp_path / "b.npz", images=overshoot), image_size=9)
    assert data.images[0][0, 0, 0] == 0
    assert np.array_equal(data.images[1][..., 0], np.rint(overshoot[1] * 255).clip(0, 255))
    dark = opened(saved(tmp_path / "c.npz", images=(COLOURS > 127).astype(np.uint8)))
    assert "almost black" in next(dark.left_out.lines())


def test_a_range_that_is_given_counts(tmp_path: Path) -> None:
    values = np.random.default_rng(5).uniform(0, 100, (24, 9, 9)).astype(np.float32)
    path = saved(tmp_path / "a.npz", images=values)
    for ranges, low, high in ((Ranges.stated(-100, 300), -100, 300), (Ranges(floats=Range(10, 60)), 10, 60)):
        data = opened(path, image_size=9, ranges=ranges)
        expected = np.rint((values[5] - float(low)) * (255 / (high - low))).clip(0, 255)
        assert np.array_equal(data.images[5][..., 0], expected)
        (line,) = data.left_out.lines()
        assert f"{low} is black and {high} white" in line
        assert ("clipped" in line) == (high == 60)
        assert data.said == ()
    # A range of whole numbers says nothing of floats; and none says anything of 8 bits.
    assert "is taken for black" in next(opened(path, ranges=Ranges(integers=Range(0, 9))).left_out.lines())
    eight = opened(saved(tmp_path / "b.npz", images=COLOURS), ranges=Ranges.stated(0, 9))
    assert "no effect" in next(eight.left_out.lines())
    assert same(eight, opened(tmp_path / "b.npz"))


def test_labels(tmp_path: Path) -> None:
    labels = np.arange(24) % 3
    names = np.array(["cat", "dog", "emu"])
    for n, forms in enumerate(
        (
            {"labels": labels}, {"y": labels[:, None].astype(np.uint8)}, {"labels": np.eye(3)[labels]},
            {"label": names[labels]}, {"labels": labels, "class_names": names}, {"labels": labels.astype(float)},
        )
    ):  # fmt: skip
        data = opened(saved(tmp_path / f"{n}.npz", images=COLOURS, **forms))
        known = tuple("012") if n in (0, 1, 2, 5) else tuple(names)
        assert data.class_names() == known
        assert data.labels(known).tolist() == labels.tolist()
    hashes = {opened(tmp_path / f"{n}.npz").index_hash for n in (0, 3)}
    assert len(hashes) == 2, "a run notices other labels"


@pytest.mark.parametrize("form", ["{}_images {}_labels", "x_{} y_{}"])
def test_arrays_that_come_divided(tmp_path: Path, form: str) -> None:
    images, labels = form.split()
    content: dict[str, Any] = {}
    for part, slot in (("train", slice(0, 18)), ("test", slice(18, 24))):
        content |= {images.format(part): COLOURS[slot], labels.format(part): np.arange(24)[slot] % 3}
    data = opened(saved(tmp_path / "a.npz", **content))
    split = build.split(Config().data, data.files)
    assert [data.files.paths[n] for n in split.held_out] == [f"test/{n}.png" for n in range(6)]
    assert len(split.training) == 18
    assert data.class_names() == ("0", "1", "2")
    assert np.array_equal(opened(tmp_path / "a.npz", image_size=9).images[0][..., 0], COLOURS[18][..., 0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": COLOURS[..., :2]}, "1, 3 or 4 channels"), ({"images": COLOURS[0]}, "is one image"),
        ({"images": COLOURS[:0]}, "is empty"), ({"a": COLOURS, "b": COLOURS}, r"a \[24, 10, 9, 3\], b \[24"),
        ({"images": COLOURS.astype(complex)}, "complex128"),
        ({"images": np.array([{}, {}])}, "images has objects of Python.*astype"),
        ({"images": COLOURS, "labels": np.arange(23)}, "has 23 labels for 24 images"),
        ({"images": COLOURS, "labels": np.ones((24, 5))}, "several labels for an image"),
        ({"images": COLOURS, "labels": np.linspace(0, 1, 24)}, "whole numbers or names"),
        ({"data": np.zeros((5, 50), np.uint8)}, "no square images"), ({"images": np.full((5, 9, 9), np.nan)}, "finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_images(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=words):
        opened(tmp_path / "a.npz")


def test_damaged_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", COLOURS)
    whole = (tmp_path / "a.npy").read_bytes()
    for name, content in (
        ("cut.npy", whole[:-500]),
        ("head.npy", whole[:20]),
        ("cut.npz", saved(tmp_path / "b.npz", COLOURS).read_bytes()[:-90]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            opened(tmp_path / name)


def test_the_range_of_arrays_is_that_of_the_data_set(tmp_path: Path) -> None:
    deep, floats = COLOURS.astype(np.uint16) * 11, COLOURS / np.float32(255)  # up to 2,805: 12 bits
    for array, wanted in ((deep, Ranges(Range(0, 4095))), (floats, Ranges(None, Range(0, 1))), (COLOURS, Ranges())):
        data = opened(saved(tmp_path / "a.npz", images=array))
        assert data.ranges == wanted
        again = opened(tmp_path / "a.npz", ranges=data.ranges)
        assert again.index_hash == data.index_hash


def test_objects_that_nobody_needs_are_passed_over(tmp_path: Path) -> None:
    data = opened(saved(tmp_path / "a.npz", images=COLOURS, files=np.array(["a", None], dtype=object)))
    assert len(data.files) == len(COLOURS)
    with pytest.raises(DataError, match="labels has objects of Python"):
        opened(saved(tmp_path / "a.npz", images=COLOURS, labels=np.array(["a"] * 24, dtype=object)))
