"""Data sets of deep images, stacks and colour profiles: what is found, kept, frozen and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from diffunet.data import cache, dataset, findings, folder, survey
from diffunet.data.dataset import Dataset, open_dataset
from diffunet.data.sources import open_source
from diffunet.pictures.ranges import UNKNOWN, Range, Ranges

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUNET_CACHE", str(tmp_path / "cache"))


def opened(root: Path, **options: Any) -> Dataset:
    return open_dataset(root, **({"image_size": 16, "channels": 1, "fit": "crop"} | options))


def deep(root: Path, scale: int = 16, kind: Any = np.uint16, count: int = 6, suffix: str = "png") -> list[np.ndarray]:
    root.mkdir(exist_ok=True)
    eight = [RNG.integers(0, 256, (16, 16)) for _ in range(count)]
    for n, values in enumerate(eight):
        Image.fromarray((values * scale).astype(kind)).save(root / f"{n}.{suffix}")
    return eight


@pytest.mark.parametrize("cached", [None, "off"])
def test_twelve_bits_are_those_of_the_folder(cached: Any, tmp_path: Path) -> None:
    eight = deep(tmp_path / "data")
    Image.fromarray(np.full((16, 16), 100, np.uint16)).save(tmp_path / "data/dark.png")
    data = opened(tmp_path / "data", cache=cached)
    assert data.ranges == Ranges(Range(0, 4095))
    for n, values in enumerate(eight):
        assert np.abs(data.images[n][..., 0].astype(int) - values).max() <= 1
    assert (data.images[6] == round(100 / 4095 * 255)).all(), "it has the range of the others"
    assert data.said[0].startswith("7 images have integers of more than 8 bits, nothing above 4,095: taken as 12 bits")


def test_the_range_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep(tmp_path / "data")
    first = opened(tmp_path / "data")
    reads: list[str] = []
    monkeypatch.setattr(dataset, "histogram", lambda *arguments: reads.append(arguments[1]))
    again = opened(tmp_path / "data")
    assert again.ranges == first.ranges
    frozen = opened(tmp_path / "data", ranges=first.ranges)
    assert np.array_equal(frozen.images[0], first.images[0])
    assert reads == []
    Image.fromarray(np.full((16, 16), 9, np.uint16)).save(tmp_path / "data/new.png")
    with pytest.raises(Exception, match="changes while it is read"):  # the stand-in finds nothing
        opened(tmp_path / "data")
    assert len(reads) == 7


def test_eight_bits_pay_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for n in range(3):
        Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / f"{n}.png")
    monkeypatch.setattr(dataset, "histogram", lambda *arguments: pytest.fail("not asked for"))
    data = opened(root)
    assert data.ranges == UNKNOWN
    assert data.said == ()


def test_a_stated_range_clips_and_counts(tmp_path: Path) -> None:
    eight = deep(tmp_path / "data", count=2)
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "data/black.png")
    data = opened(tmp_path / "data", ranges=Ranges.stated(0, 2047))
    assert np.abs(data.images[0][..., 0].astype(int) - (eight[0] * 2).clip(0, 255)).max() <= 1
    assert "2 images have values beyond that range, which are clipped" in data.said


def test_a_stated_range_of_which_no_image_is_in_need_is_said(tmp_path: Path) -> None:
    deep(tmp_path / "data")
    assert not any("no effect" in line for line in opened(tmp_path / "data", ranges=Ranges.stated(0, 9)).said)
    assert any("no effect" in line for line in opened(tmp_path / "data", ranges=Ranges(floats=Range(0, 9))).said)
    assert not any("no effect" in line for line in opened(tmp_path / "data").said)


def test_integers_and_floats_apart(tmp_path: Path) -> None:
    deep(tmp_path / "data")
    Image.fromarray((RNG.random((16, 16)) * 2 - 1).astype(np.float32)).save(tmp_path / "data/f.tif")
    Image.new("L", (16, 16), 77).save(tmp_path / "data/l.png")
    data = opened(tmp_path / "data", ranges=Ranges(integers=Range(0, 8191)))
    assert data.ranges == Ranges(Range(0, 8191), Range(-1, 1))
    assert (data.images[7] == 77).all()


def test_many_small_files_are_read_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eight = deep(tmp_path / "data", count=100)
    monkeypatch.setattr(dataset, "MANY", 100)
    data = opened(tmp_path / "data", workers=2)
    order = [int(path.removesuffix(".png")) for path in data.files.paths]
    for n, one in zip(order, data.images, strict=True):
        assert np.abs(one[..., 0].astype(int) - eight[n]).max() <= 1


def test_reading_one_is_that_of_before(tmp_path: Path) -> None:
    eight = deep(tmp_path / "data", kind=np.int32, suffix="tif")
    data = opened(tmp_path / "data", reading=1)
    assert data.ranges == UNKNOWN
    assert data.said == ()
    assert np.array_equal(data.images[0][..., 0], np.rint(eight[0] * 16 * (255 / 65535)))


def stacked(root: Path) -> list[np.ndarray]:
    root.mkdir()
    pages = [RNG.integers(0, 256, (16, 16), dtype=np.uint8) for _ in range(10)]
    images = [Image.fromarray(page) for page in pages]
    images[0].save(root / "b.tif", save_all=True, append_images=images[1:])
    images[0].save(root / "c.png")
    (root / "a").mkdir()
    images[5].save(root / "a/d.tif", save_all=True, append_images=images[6:8])
    return pages


@pytest.mark.parametrize("cached", [None, "off"])
def test_pages_of_stacks(cached: Any, tmp_path: Path) -> None:
    pages = stacked(tmp_path / "data")
    first = opened(tmp_path / "data", cache=cached)
    assert list(first.files.paths) == ["a/d.tif", "b.tif", "c.png"]
    assert "2 files have 11 more pages that are not used: --data.pages all" in first.said
    data = opened(tmp_path / "data", pages="all", cache=cached)
    inside = [f"a/d.tif#{n:04}" for n in (1, 2, 3)]
    assert list(data.files.paths) == [*inside, *(f"b.tif#{n:04}" for n in range(1, 11)), "c.png"]
    for one, page in zip(data.images, [*pages[5:8], *pages, pages[0]], strict=True):
        assert np.array_equal(one[..., 0], page)
    assert data.said == ()
    assert len({file.sha256 for file in data.files}) == 14
    assert folder.class_of(data.files.paths[0]) == "a"
    again = opened(tmp_path / "data", pages="all", cache=cached)
    assert again.index_hash == data.index_hash != first.index_hash


def test_pages_of_one_file_stay_together(tmp_path: Path) -> None:
    from diffunet import build
    from diffunet.config import DataConfig

    root = tmp_path / "data"
    root.mkdir()
    for n in range(12):
        pages = [Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(3)]
        pages[0].save(root / f"{n}.gif", save_all=True, append_images=pages[1:])
    config = DataConfig(image_size=16, channels=1, pages="all", held_out=0.3)
    data = build.dataset(config, root)
    split = build.split(config, data.files)
    sides = [{data.files.paths[n].partition("#")[0] for n in side} for side in (split.training, split.held_out)]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_colour_profiles_are_minded(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = profile.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")
    (tmp_path / "data").mkdir()
    for name, said in {"a.png": exchanged, "b.png": profile, "c.png": b"damaged"}.items():
        Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "data" / name, icc_profile=said)
    for cached in (None, "off"):
        data = opened(tmp_path / "data", channels=3, cache=cached)
        assert [data.images[n][8, 8].tolist() for n in range(3)] == [[0, 0, 255], [255, 0, 0], [255, 0, 0]]
        assert data.said == (
            "1 image has a colour profile, from which colours are converted to sRGB",
            "1 image has a colour profile that is damaged or of other colours, and is ignored",
        )
    old = opened(tmp_path / "data", channels=3, reading=1)
    assert old.images[0][8, 8].tolist() == [255, 0, 0]


def test_check_says_the_same(tmp_path: Path) -> None:
    deep(tmp_path / "data", count=3)
    pages = [Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "data/x.gif", save_all=True, append_images=pages[1:])
    text = findings.describe(survey.survey(tmp_path / "data"))
    for line in opened(tmp_path / "data").said:
        assert line in text


def test_check_counts_every_page_and_takes_the_range_that_is_given(tmp_path: Path) -> None:
    deep(tmp_path / "data", count=3)
    pages = [Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8)) for _ in range(3)]
    pages[0].save(tmp_path / "data/x.gif", save_all=True, append_images=pages[1:])
    stated = Ranges.stated(0, 1000)
    content = survey.survey(tmp_path / "data", ranges=stated, pages="all")
    data = opened(tmp_path / "data", ranges=stated, pages="all")
    assert [(image.path, image.sha256) for image in content.images] == [(one.path, one.sha256) for one in data.files]
    assert len(content.images) == 6
    assert "0 is taken as black and 1,000 as white" in " ".join(content.said)
    assert not any("pages" in line for line in content.said)


def test_a_range_that_is_known_lets_nothing_be_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep(tmp_path / "data", count=3)
    first = opened(tmp_path / "data", cache=tmp_path / "cache")
    monkeypatch.setattr(cache, "decode", None)  # nothing is decoded again
    again = opened(tmp_path / "data", cache=tmp_path / "cache")
    assert again.ranges == first.ranges
    assert np.array_equal(again.images[0], first.images[0])


def test_a_deep_image_whose_texts_are_too_long_to_read_has_a_range(tmp_path: Path) -> None:
    said = PngImagePlugin.PngInfo()
    said.add_text("a", "x" * 3_000_000, zip=True)
    (tmp_path / "data").mkdir()
    pixels = RNG.integers(0, 4096, (16, 16)).astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "data/a.png", pnginfo=said)
    assert opened(tmp_path / "data").ranges.integers == Range(0, 4095)


def test_a_layout_without_ranges_reads_each_file_by_itself(tmp_path: Path) -> None:
    eight = deep(tmp_path / "data", count=1)
    _, pixels = cache.decode_file(
        open_source(tmp_path / "data")[0], "0.png", cache.Layout(16, 1, "crop", (255, 255, 255), 1.0)
    )
    assert np.abs(pixels[..., 0].astype(int) - eight[0]).max() <= 1
