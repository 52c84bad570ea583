"""Resizing, grids and saving, against torchvision, by hand, and by reading back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffunet.errors import UsageError
from diffunet.pictures import images

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_resize_leaves_the_right_size_alone_and_antialiases() -> None:
    assert images.resize(NOISE, 6, 9) is NOISE
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(images.resize(checks, 8, 8).astype(int) - 127.5).max() < 8, "nearest or plain bicubic would alias"
    flat = np.full((7, 5, 3), 77, np.uint8)
    assert (images.resize(flat, 20, 30) == 77).all()
    assert images.resize(flat, 20, 30).shape == (20, 30, 3)


def test_resize_has_no_coloured_fringes() -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 0] = 255  # transparent red around
    rgba[8:24, 8:24] = (0, 255, 0, 255)  # opaque green
    for size in (16, 11, 48):
        small = images.resize(rgba, size, size)
        visible = small[small[..., 3] > 8]
        assert len(visible)
        assert (visible[:, 0] == 0).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("columns", [None, 2, 9])
@pytest.mark.seconds
def test_grid(channels: int, columns: int | None) -> None:
    from torchvision.utils import make_grid  # which takes seconds

    batch = RNG.integers(0, 256, (7, 4, 5, channels), dtype=np.uint8)
    picture = images.to_array(images.grid(list(batch), columns), channels)
    tensor = torch.from_numpy(batch).permute(0, 3, 1, 2)
    expected = make_grid(tensor, nrow=columns or 3, padding=2, pad_value=255).permute(1, 2, 0).numpy()[..., :channels]
    assert np.array_equal(picture, expected)


def test_grid_of_nothing() -> None:
    with pytest.raises(UsageError):
        images.grid([])


@pytest.mark.parametrize("extension", [".png", ".PNG", ".webp", ".bmp", ".tif", ".tiff"])
def test_save_is_lossless_where_it_says_so(extension: str, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / f"a b{extension}"
    assert images.is_lossless(path)
    images.save(Image.fromarray(NOISE), path)
    assert np.array_equal(images.to_array(images.open_image(path), 3), NOISE)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_save_keeps_colours_under_transparency(tmp_path: Path) -> None:
    rgba = np.dstack([NOISE, np.zeros((6, 9), np.uint8)])
    for extension in (".png", ".webp", ".tif"):
        images.save(images.from_array(rgba), tmp_path / f"x{extension}")
        assert np.array_equal(images.to_array(images.open_image(tmp_path / f"x{extension}"), 4), rgba)


def test_save_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    assert not images.is_lossless(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes(b"old")
    for name in ("x", "x.heic", "x.jpg"):
        with pytest.raises(UsageError):
            images.save(Image.new("RGBA", (2, 2)), tmp_path / name)
    assert (tmp_path / "x.jpg").read_bytes() == b"old"
    (tmp_path / "x.jpg").unlink()
    for mode, suffix, hint in (
        ("F", ".png", "use .tif"), ("F", ".jpg", "use .tif"), ("I", ".png", "use .tif"), ("CMYK", ".webp", "use .tif"),
        ("CMYK", ".png", "use .tif"), ("I;16", ".webp", "use .png or .tif"), ("I;16", ".jpg", "use .png or .tif"),
        ("I;16", ".bmp", "use .png or .tif"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"holds no image of mode {mode}; {hint}"):
            images.save(Image.new(mode, (2, 2)), tmp_path / f"x{suffix}")
    grey = Image.new("I;16", (2, 2))
    grey.info["transparency"] = 0
    images.save(grey, tmp_path / "x.png")
    with pytest.raises(UsageError, match=r"holds no transparent colour; use \.png"):
        images.save(grey, tmp_path / "x.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("mode", ["I", "F", "CMYK"])
def test_a_tiff_holds_every_mode(mode: str, tmp_path: Path) -> None:
    image = Image.frombytes(mode, (9, 6), RNG.random(54).astype(np.float32).tobytes())
    images.save(image, tmp_path / "x.tif")
    again = images.open_image(tmp_path / "x.tif")
    assert again.mode == mode
    assert again.tobytes() == image.tobytes()
