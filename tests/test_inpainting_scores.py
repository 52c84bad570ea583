"""Scores of fillings against closed forms; the benchmark script: what it counts, keeps and hands to diffusers."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small import tiny
from torch import nn

import diffunet
from diffunet import build, draws
from diffunet.data.index import HELD_OUT_MAX, split
from diffunet.diffusion.denoiser import Denoised
from diffunet.diffusion.known_pixels import ITERATIONS
from diffunet.errors import DataError, UsageError
from diffunet.evaluation.features import train_classifier
from diffunet.inpainting import methods
from diffunet.pictures import images
from diffunet.training.loop import train

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import benchmark_inpainting  # noqa: E402
import inpainting_scores  # noqa: E402
from benchmark_inpainting import AsUnet, counted, method  # noqa: E402
from inpainting_scores import HeldOut, diversity, fill, hole_psnr, hole_ssim  # noqa: E402

pytestmark = pytest.mark.seconds  # it trains nets, and nets that judge


@pytest.fixture(scope="module")
def holding_out(folder, tmp_path_factory):
    """A run on `folder` that holds out a good part of it."""
    out = tmp_path_factory.mktemp("runs") / "holding_out"
    train(tiny(data={"held_out": 0.4}), folder, out)
    return out


@pytest.fixture
def pipe(holding_out):
    return diffunet.load(holding_out)


@pytest.fixture(autouse=True)
def _quick_features(monkeypatch):
    monkeypatch.setattr(inpainting_scores, "train_classifier", partial(train_classifier, steps=30))


def pictures(n, size=16, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def boxes(n, size=16):
    holes = np.zeros((n, size, size), bool)
    for i in range(n):
        holes[i, 2 + i : size // 2 + i, 3 : size // 2] = True
    return holes


# Likeness


def test_psnr_of_an_offset_is_the_closed_form():
    originals = pictures(3) // 2
    filled = originals + np.array([0, 16, 5], np.uint8)[:, None, None, None]
    found = hole_psnr(filled, originals, boxes(3))
    assert found[0] == math.inf
    assert found[1:] == pytest.approx([20 * math.log10(255 / 16), 20 * math.log10(255 / 5)])
    filled = originals.copy()
    filled[..., 0] += 16  # one channel of three
    assert hole_psnr(filled, originals, boxes(3)) == pytest.approx(20 * math.log10(255 / 16) + 10 * math.log10(3))


def test_psnr_is_of_the_hole_alone():
    originals, holes = pictures(2), boxes(2)
    filled = np.where(holes[..., None], 255 - originals, originals)
    error = np.array([((255 - 2.0 * originals[i][holes[i]]) ** 2).mean() for i in range(2)])
    other = np.where(holes[..., None], filled, pictures(2, seed=1))
    for each in (filled, other):
        assert hole_psnr(each, originals, holes) == pytest.approx(10 * np.log10(255**2 / error))


def test_ssim_of_the_same_is_one_and_of_constants_the_closed_form():
    originals, holes = pictures(2), boxes(2)
    assert hole_ssim(originals, originals, holes) == pytest.approx(1)
    a, b, c1 = 90.0, 120.0, (0.01 * 255) ** 2
    flat = [np.full_like(originals, value) for value in (a, b)]
    assert hole_ssim(*flat, holes) == pytest.approx((2 * a * b + c1) / (a**2 + b**2 + c1), abs=5e-4)


def test_ssim_by_its_definition():
    """Wang et al. 2004, eq. 13, window by window in float64, with the edges mirrored."""
    a, b = pictures(2, channels=1, seed=3), pictures(2, channels=1, seed=4) // 2 + pictures(2, channels=1, seed=3) // 2
    holes = boxes(2)
    distance = np.arange(-5, 6)
    window = np.exp(-(distance**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = []
    for x, y, hole in zip(a, b, holes, strict=True):
        x, y = (np.pad(image[..., 0].astype(float), 5, mode="reflect") for image in (x, y))
        values = []
        for row, column in np.argwhere(hole):
            u, v = (image[row : row + 11, column : column + 11] for image in (x, y))
            mu, mv = (window * u).sum(), (window * v).sum()
            su, sv = (window * (u - mu) ** 2).sum(), (window * (v - mv) ** 2).sum()
            cross = (window * (u - mu) * (v - mv)).sum()
            values.append((2 * mu * mv + c1) * (2 * cross + c2) / ((mu**2 + mv**2 + c1) * (su + sv + c2)))
        expected.append(np.mean(values))
    assert hole_ssim(a, b, holes) == pytest.approx(np.array(expected), abs=5e-4)


def test_diversity_of_constants_is_their_distance():
    holes = boxes(2)
    three = [np.full((2, 16, 16, 3), value, np.uint8) for value in (0, 10, 30)]
    assert diversity(np.stack(three[:1] * 2), holes).tolist() == [0, 0]
    assert diversity(np.stack(three[:2]), holes) == pytest.approx(10)
    assert diversity(np.stack(three), holes) == pytest.approx((10 + 30 + 20) / 3)
    outside = [np.where(holes[..., None], each, pictures(2, seed=i)) for i, each in enumerate(three)]
    assert diversity(np.stack(outside), holes) == pytest.approx(20)
    blue = three[0].copy()
    blue[..., 2] = 30
    assert diversity(np.stack([three[0], blue]), holes) == pytest.approx(30 / 3**0.5)


# Distance


def test_originals_have_no_excess_and_grey_has(pipe, folder):
    held_out = HeldOut(pipe.config, folder, 1000)
    unseen = split(held_out.dataset.files, 0.4, HELD_OUT_MAX)[1]
    assert sorted(map(bytes, held_out.pictures)) == sorted(bytes(held_out.dataset.images[i]) for i in unseen)
    holes = np.zeros(held_out.pictures.shape[:3], bool)
    holes[:, 2:6, 2:6] = True
    originals = held_out.score(held_out.pictures[None], holes)
    assert (originals.excess, originals.error, originals.psnr) == (0, 0, math.inf)
    assert originals.ssim == pytest.approx(1)
    assert originals.diversity is originals.paired is None
    assert originals.floor > 0
    assert (originals.num, originals.fillings) == (len(unseen), 1)
    grey = np.where(holes[..., None], np.uint8(128), held_out.pictures)
    flat = held_out.score(np.stack([grey, grey]), holes)
    assert flat.diversity == flat.feature_diversity == 0
    assert flat.distance > flat.floor == originals.floor
    assert flat.paired > 0


def test_the_classifier_and_the_reference_have_not_seen_the_held_out(pipe, folder):
    held_out = HeldOut(pipe.config, folder, 5)
    trained_on, unseen = split(held_out.dataset.files, 0.4, HELD_OUT_MAX)
    learned, compared = set(held_out._learned_from), set(held_out._compared_with)
    assert len(held_out.pictures) == 5
    assert learned | compared == set(trained_on)
    assert not learned & compared
    assert not (learned | compared) & set(unseen)


def test_paired_distance_of_a_perfect_filling_is_zero_on_average():
    """Where the original and the fillings are drawn alike; shifted fillings are off by the shift squared."""
    generator, shift = np.random.default_rng(0), np.array([1.0, 0, 0, -1])
    found = []
    for _ in range(200):
        known = generator.normal(size=(50, 4)) * 3
        original, *fillings = known + generator.normal(size=(3, 50, 4))
        right = inpainting_scores._paired(np.stack(fillings), original)
        found.append((right, inpainting_scores._paired(np.stack(fillings) + shift, original)))
    right, wrong = np.mean(found, axis=0)
    error = np.std([each for each, _ in found]) / 200**0.5
    assert abs(right) < 4 * error < 0.1
    assert wrong == pytest.approx(2, abs=0.1)


def test_a_folder_that_holds_out_nothing_is_refused(pipe, folder):
    with pytest.raises(DataError, match="holds out 0"):
        HeldOut(pipe.config.changed("data", held_out=0.0), folder, 10)


# Filling many at a time


def test_filling_in_batches(pipe):
    """At any batch size the same; known pixels as they were; what the hole covers is not looked at."""
    originals, holes = pictures(5, 8), boxes(5, 8)
    way = methods.choose(pipe.config.diffusion, pipe.denoiser.schedule, methods.Choice("repaint", 4, 2, 2))
    whole = fill(pipe, originals, holes, way, seed=3)
    parts = fill(pipe, np.where(holes[..., None], np.uint8(9), originals), holes, way, seed=3, batch_size=2)
    assert np.array_equal(parts[holes == 0], originals[holes == 0])
    assert np.array_equal(whole[holes == 0], originals[holes == 0])
    assert np.abs(whole.astype(int) - parts).max() <= 1
    other = fill(pipe, originals, holes, way, seed=3, filling=1)
    assert (diversity(np.stack([whole, other]), holes) > 1).all()


@pytest.mark.parametrize("name", ["replace", "repaint", "ddnm", "mmps"])
def test_filling_many_is_inpainting_one(pipe, name, monkeypatch):
    streams = draws.streams
    monkeypatch.setattr(draws, "streams", lambda seed, batch, *rest: streams(7, range(len(batch)), *rest))
    monkeypatch.setattr(build, "prior_mean", lambda config: torch.tensor([900.0, 0.0, -900.0])[:, None, None])
    [original], [hole] = pictures(1, 8), boxes(1, 8)
    [expected] = pipe.inpaint(images.from_array(original), hole, method=name, steps=4, fit="native")
    way = methods.choose(pipe.config.diffusion, pipe.denoiser.schedule, methods.Choice(name, 4))
    [found] = fill(pipe, original[None], hole[None], way)
    assert np.array_equal(found, images.to_array(expected, 3))


# The script


def test_a_method_is_charged_for_every_pass(pipe):
    calls = {}
    for text in ("mean", "replace:steps=3", "mmps:steps=2", "mmps:steps=2,iterations=3",
                 "ddnm:steps=4", "repaint:steps=4,jump_length=2,jump_n_sample=3"):  # fmt: skip
        source, filler = method(text, pipe, pipe, 0, 2)
        with counted(source.denoiser.net) as count:
            filled = filler(pictures(3, 8), boxes(3, 8), 0)
        assert filled.shape == (3, 8, 8, 3)
        calls[text] = (count.forward / 3, count.backward / 3)
    assert list(calls.values()) == [(0, 0), (3, 0), (2, 2 * ITERATIONS), (2, 6), (4, 0), (4 + 2 * 2, 0)]


class Nothing(nn.Module):
    """A net that costs nothing."""

    def forward(self, x, c_noise, label=None, augment=None):
        return torch.zeros_like(x)


@pytest.mark.parametrize("name", ["repaint", pytest.param("diffusers-repaint", marks=pytest.mark.slow)])
def test_published_repaint_is_2410_calls(pipe, name):
    """t_T = 250, jump_length 10, jump_n_sample 10, as the authors' schedule counts."""
    if name == "diffusers-repaint":
        pytest.importorskip("diffusers")
    pipe.denoiser.net = Nothing()
    pipe.denoiser.register_parameter("somewhere", nn.Parameter(torch.zeros(1)))  # a pipeline asks it for the device
    source, filler = method(f"{name}:steps=250,jump_length=10,jump_n_sample=10", pipe, pipe, 0, 100)
    with counted(source.denoiser.net) as count:
        filler(pictures(1, 8), boxes(1, 8), 0)
    assert (count.forward, count.backward) == (2410, 0)


def test_diffusers_repaint_with_our_net(pipe):
    pytest.importorskip("diffusers")
    source, filler = method("diffusers-repaint:steps=4,jump_length=2,jump_n_sample=2,eta=1", pipe, pipe, 0, 2)
    originals, holes = pictures(3, 8), boxes(3, 8)
    with counted(source.denoiser.net) as count:
        filled = filler(originals, holes, 0)
    assert count.forward == 3 * 6
    assert np.array_equal(filled[holes == 0], originals[holes == 0])
    assert not np.array_equal(filled, originals)


def test_what_diffusers_is_told_is_the_noise():
    """For x0 normal of mean m and deviation s, E[epsilon | x_t] = sqrt(1 - a) (x_t - sqrt(a) m) / (a s^2 + 1 - a)."""
    m, s = 0.3, 0.5
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def denoise(x, sigma):
        return Denoised((s**2 * x + sigma**2 * m) / (s**2 + sigma**2))

    unet = AsUnet(denoise, alpha_bar, torch.device("cpu"))
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (0, 10, 500, 996):
        a = alpha_bar[t]
        expected = (1 - a).sqrt() * (x_t - a.sqrt() * m) / (a * s**2 + 1 - a)
        assert torch.allclose(unet(x_t, torch.tensor(t)).sample, expected, atol=1e-4)


def test_unknown_methods_and_options_are_named(pipe):
    for text, message in {
        "dpm": "unknown method",
        "repaint:steps=x": "steps is a number",
        "repaint:iterations=2": "no option 'iterations'",
        "mean:steps=2": "no option 'steps'",
        "trained": "task inpaint",
    }.items():
        with pytest.raises(UsageError, match=message):
            method(text, pipe, pipe, 0, 2)


def test_rows_are_kept_and_not_measured_again(holding_out, folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures.json"

    def main(*options):
        words = ["benchmark", *map(str, options), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", words)
        benchmark_inpainting.main()

    few = (holding_out, folder, "--num", 6, "--precision", "fp32", "--masks", "box", "mixed", "--methods", "mean")
    main(*few)
    measure, measured = benchmark_inpainting.measure, []
    monkeypatch.setattr(benchmark_inpainting, "measure", lambda *rest: measured.append(rest[0]) or measure(*rest))
    main(*few, "replace:steps=2")
    assert len(measured) == 2
    found = json.loads(out.read_text())
    assert [(row["method"], row["masks"], row["calls"]) for row in found["rows"]] == [
        ("mean", "box", 0), ("mean", "mixed", 0), ("replace:steps=2", "box", 2), ("replace:steps=2", "mixed", 2),
    ]  # fmt: skip
    assert str(tmp_path.parent) not in out.read_text()
    capsys.readouterr()
    main("--table")
    printed = capsys.readouterr().out
    assert printed.strip() == out.with_suffix(".md").read_text().strip()
    assert "### box" in printed
    assert printed.count("| replace:steps=2 | ") == 4
    with pytest.raises(SystemExit, match="2"):
        main(*few, "--seed", 1)
    assert "name another --out" in capsys.readouterr().err
    assert json.loads(out.read_text()) == found
