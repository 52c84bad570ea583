"""The list of caches, and clearing them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from diffunet import files
from diffunet.data import kept
from diffunet.data.dataset import Dataset, open_dataset


def opened(root: Path, cache: Path, size: int = 8) -> Dataset:
    return open_dataset(root, image_size=size, channels=3, fit="crop", cache=cache)


def test_caches_are_listed_and_cleared_but_for_a_lock_that_is_held(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), (5, 6, 7)).save(tmp_path / name / "x.png")
    place = tmp_path / "caches"
    data = opened(tmp_path / "a", place)
    opened(tmp_path / "a", place, 4)
    opened(tmp_path / "b", place)
    (place / "other").mkdir()
    (place / "other" / "lock").write_text("mine")
    (place / ("0" * 24)).mkdir()  # of that name, and no cache
    found = kept.caches(place)
    assert len(found) == 3
    assert [each.is_of(tmp_path / "a") for each in found].count(True) == 2
    for each in found:
        on_disk = sum(path.stat().st_size for path in each.folder.iterdir())
        assert each.size == on_disk >= 3 * 16
        assert json.loads((each.folder / "manifest.json").read_text())["source"] == each.source
    with files.lock(found[0].folder / "lock", wait=False):
        assert not kept.clear(found[0])
    assert len(kept.caches(place)) == 3
    assert all(map(kept.clear, found))
    assert kept.caches(place) == []
    assert (place / "other" / "lock").exists()
    assert np.array_equal(data.images[0], np.full((8, 8, 3), (5, 6, 7)))  # who has them mapped goes on
    assert np.array_equal(opened(tmp_path / "a", place).images[0], data.images[0])  # and they are made again


def test_what_was_used_last_is_first(tmp_path: Path) -> None:
    import os
    import time

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "x.png")
        opened(tmp_path / name, tmp_path / "c")
    for each in kept.caches(tmp_path / "c"):
        for path in each.folder.iterdir():
            os.utime(path, (time.time() - 86_400,) * 2)
    opened(tmp_path / "a", tmp_path / "c")
    first, second = kept.caches(tmp_path / "c")
    assert first.is_of(tmp_path / "a")
    assert time.time() - second.used > 86_000 > 1000 > time.time() - first.used
