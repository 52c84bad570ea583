"""Holes that are drawn from masks of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffunet import draws
from diffunet.errors import DataError, UsageError
from diffunet.inpainting.own_masks import STOCK, MaskStore, OwnMasks


def mask(path: Path, hole: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(hole, np.uint8(255), np.uint8(0))).save(path)


def test_draws_are_the_masks_in_all_eight_positions(tmp_path: Path) -> None:
    corner = np.zeros((16, 16), bool)
    corner[1:3, 0:5] = True
    mask(tmp_path / "corner.png", corner)
    mask(tmp_path / "deeper" / "all.png", np.ones((16, 16), bool))
    own = OwnMasks(tmp_path, 16)
    assert len(own) == 2
    uniform = draws.of_step(0, 0).random(1600)
    drawn = own.draw(uniform)
    assert drawn.dtype == bool
    assert drawn.shape == (1600, 16, 16)
    assert np.array_equal(drawn[7:9], own.draw(uniform[7:9])), "a draw is a function of its number"
    turned = [np.rot90(variant, k) for variant in (corner, corner[:, ::-1]) for k in range(4)]
    seen = {hole.tobytes() for hole in drawn}
    assert seen == {np.ascontiguousarray(hole).tobytes() for hole in (*turned, np.ones((16, 16), bool))}
    assert 680 < sum(hole.all() for hole in drawn) < 920
    assert all(50 < (drawn == hole).all((1, 2)).sum() < 150 for hole in turned)
    assert own.draw(np.array([0, 1 - 2**-53])).shape == (2, 16, 16)
    assert np.array_equal(own.draw(np.arange(16) / 16).any((1, 2)), np.full(16, True))


def test_thin_strokes_survive_being_made_smaller(tmp_path: Path) -> None:
    stroke = np.zeros((400, 300), bool)
    stroke[200, 20:280] = True
    mask(tmp_path / "a.png", stroke)
    [hole] = OwnMasks(tmp_path, 16).draw(np.zeros(1))
    assert hole.shape == (16, 16)
    assert 14 <= hole.sum() <= 48


def test_masks_without_a_hole_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask(tmp_path / "good.png", np.eye(9, dtype=bool))
    mask(tmp_path / "black.png", np.zeros((9, 9), bool))
    (tmp_path / "broken.png").write_bytes(b"x")
    own = OwnMasks(tmp_path, 9)
    assert len(own) == 1
    assert own.index.endswith("  good.png\n")
    assert "1 with nothing to fill" in caplog.text
    assert "broken.png" in caplog.text


def test_folders_without_masks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        OwnMasks(tmp_path / "gone", 8)
    mask(tmp_path / "a" / "black.png", np.zeros((9, 9), bool))
    with pytest.raises(DataError, match="has anything to fill"):
        OwnMasks(tmp_path / "a", 8)


def test_a_store_holds_random_masks_of_the_kind():
    store, again = MaskStore.drawn("box", 12, seed=3), MaskStore.drawn("box", 12, seed=3)
    assert len(store) == STOCK
    uniform = np.random.default_rng(0).random(500)
    holes = store.draw(uniform)
    assert np.array_equal(holes, again.draw(uniform))
    assert len({hole.tobytes() for hole in holes}) > 200
    for hole in holes[:50]:  # a box, whatever its turn
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
