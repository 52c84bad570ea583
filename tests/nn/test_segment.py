"""scripts/segment.py: its weights, scores and thresholds by other ways to compute them, and a run on a folder."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from diffunet.errors import DataError, UsageError
from diffunet.nn.overlap_tile import mirrored

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import segment


def cells(size=80, seed=0):
    return segment.draw_cells(np.random.default_rng(seed), size)


def test_border_weights_are_equation_2():
    mask = cells().mask
    labels, num = ndimage.label(mask, np.ones((3, 3)))
    assert num > 3
    y, x = np.mgrid[:80, :80]
    distances = []
    for n in range(1, num + 1):
        at = np.argwhere(labels == n)
        distances.append(np.sqrt(((y[..., None] - at[:, 0]) ** 2 + (x[..., None] - at[:, 1]) ** 2).min(-1)))
    first, second = np.sort(distances, axis=0)[:2]
    expected = np.where(mask, 0, 10 * np.exp(-((first + second) ** 2) / (2 * 5**2)))
    assert np.abs(segment.border_weights(mask, 10) - expected).max() < 0.01  # of 10; beyond 4 sigma it does not look
    assert not segment.border_weights(np.zeros((5, 5), bool), 10).any()


def test_cells_that_are_drawn_touch_and_are_kept_apart_in_the_mask():
    x = cells(192)
    labels, num = ndimage.label(x.mask, np.ones((3, 3)))
    nearest = [
        ndimage.distance_transform_edt(labels != n)[(labels != n) & (labels > 0)].min() for n in range(1, num + 1)
    ]
    assert num > 10
    assert np.mean(np.array(nearest) <= 2) > 0.5  # one pixel between
    assert x.pixels[x.mask].mean() > x.pixels[~x.mask].mean()
    assert all(np.array_equal(*pair) for pair in zip(x, cells(192), strict=True))


def test_scores():
    truth = np.zeros((20, 20), bool)
    truth[2:8, 2:8] = truth[2:8, 9:15] = True
    joined = truth.copy()
    joined[4, 8] = True
    assert segment.iou(truth, truth) == segment.found(truth, truth) == 1
    assert segment.iou(joined, truth) == 72 / 73
    assert segment.found(joined, truth) == 0  # one part, half of which is each cell
    assert segment.found(np.zeros_like(truth), truth) == segment.iou(np.zeros_like(truth), truth) == 0
    half = truth.copy()
    half[:, 9:] = False
    assert (segment.iou(half, truth), segment.found(half, truth)) == (0.5, 0.5)


def test_otsu_has_the_largest_variance_between_classes():
    pixels = cells().pixels

    def between(t):
        low, high = pixels[pixels <= t].astype(float), pixels[pixels > t].astype(float)
        return low.size * high.size * (low.mean() - high.mean()) ** 2 if low.size and high.size else 0

    assert between(segment.otsu(pixels)) == pytest.approx(max(between(t) for t in range(256)))


def test_image_and_truth_are_bent_alike():
    stack = mirrored(torch.from_numpy(cells().mask).float()[None, None].expand(1, 2, -1, -1), 1)
    generator = np.random.default_rng(0)
    pieces = [segment.deformed(stack, 40, generator) for _ in range(4)]
    for piece in pieces:
        assert piece.shape == (1, 2, 40, 40)
        assert torch.equal(piece[:, 0], piece[:, 1])
    assert not torch.equal(pieces[0], pieces[1])
    at = np.mgrid[:96, :96].astype(np.float32)  # not bent, it is a piece, flipped and turned
    piece = segment.deformed(torch.from_numpy(at)[None], 40, generator, sigma=0.0)
    steps = {round(float(piece.diff(dim=dim).abs().amax((2, 3))[0, c]), 3) for dim in (2, 3) for c in (0, 1)}
    assert steps == {0.0, 1.0}


def test_a_folder_of_pairs(tmp_path, monkeypatch, capsys):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(5):
        x = cells(60 + i, seed=i)
        Image.fromarray(x.pixels).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(x.mask).save(tmp_path / "masks" / f"{i}.bmp")
    folders = [f"--{name}={tmp_path / name}" for name in ("images", "masks")]
    small = ["--layers=1", "--base-channels=2", "--tile=30", "--steps=2", "--held-out=0.4", "--rows=2"]
    monkeypatch.setattr(sys, "argv", ["segment.py", *folders, *small, "--out", str(tmp_path / "out.png")])
    segment.main()
    printed = capsys.readouterr().out
    assert "3 images to learn from, 2 held out" in printed
    assert "| UNet2015, 2 steps |" in printed
    width, height = Image.open(tmp_path / "out.png").size
    assert width > 4 * 60
    assert height > 2 * 60
    read = segment.read(tmp_path / "images", tmp_path / "masks")
    assert all(np.array_equal(read[i].mask, cells(60 + i, seed=i).mask) for i in range(5))
    Image.new("1", (9, 9)).save(tmp_path / "masks" / "3.bmp")
    damaged = tmp_path / "images" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert len(segment.read(tmp_path / "images", tmp_path / "masks")) == 3
    printed = capsys.readouterr().out
    assert "left out: 3: the image is" in printed
    assert "left out: 1: damaged" in printed
    (tmp_path / "masks" / "2.bmp").unlink()
    with pytest.raises(DataError, match="no mask for"):
        segment.read(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(UsageError, match="--masks"):
        segment.read(tmp_path / "images", None)


def of_labels(folder, labels):
    """Six images of a bright box on dark, and masks of it by these two values."""
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(6):
        mask = np.zeros((60, 60), bool)
        mask[10 + i : 30 + i, 15:40] = True
        Image.fromarray((random.integers(0, 60, (60, 60)) + 120 * mask).astype(np.uint8)).save(
            folder / f"images/{i}.png"
        )
        Image.fromarray(np.where(mask, labels[1], labels[0]).astype(np.uint8)).save(folder / f"masks/{i}.png")
    small = ["--layers=1", "--base-channels=2", "--tile=30", "--steps=2", "--held-out=0.4", "--rows=2"]
    return [
        "segment.py",
        f"--images={folder / 'images'}",
        f"--masks={folder / 'masks'}",
        *small,
        f"--out={folder / 'o.png'}",
    ]


@pytest.mark.filterwarnings("error")
def test_masks_of_0_and_1_are_read_as_those_of_inpainting_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", of_labels(tmp_path, (0, 1)))
    segment.main()
    printed = capsys.readouterr().out
    assert "6 of the masks: its values are 0 and 1, and 1 is filled" in printed
    assert "| one threshold for all | 1.000 | 1.000 |" in printed


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0, 255])
def test_a_class_of_nothing_is_refused(value, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", of_labels(tmp_path, (value, value)))
    with pytest.raises(DataError, match="there are not two classes"):
        segment.main()
    assert not (tmp_path / "o.png").exists()
