"""The benchmark of quality: its judge against sums by hand, what it is asked for, and a tiny contest on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import benchmark  # noqa: E402
import quality_curves  # noqa: E402
from benchmarks import quality, quality_judge, quality_peers, report  # noqa: E402

from diffunet.data import builtin  # noqa: E402
from diffunet.errors import DataError  # noqa: E402


def features(seed, count, centre=0.0, width=1.0):
    """Features [count 4]."""
    return centre + width * np.random.default_rng(seed).normal(size=(count, 4))


# The judge


def test_real_images_have_no_excess_and_others_have():
    same, floor = quality_judge.distances(features(0, 600), features(1, 600))
    assert abs(same - floor) < 0.05
    few, floor = quality_judge.distances(features(0, 40), features(1, 600))
    assert abs(few - floor) < 0.2  # few images add to both
    assert floor > 0.2
    off, floor = quality_judge.distances(features(0, 600, centre=1.0), features(1, 600))
    assert off - floor == pytest.approx(4.0, rel=0.15)  # |difference of the means|^2


def test_the_deal_is_the_same_every_time_and_keeps_all_images(tmp_path):
    generator = np.random.default_rng(0)
    for n in range(90):
        path = tmp_path / "data" / f"class {n % 2}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    contents = []
    for name in ("one", "two"):
        parts = quality_judge.split(tmp_path / "data", tmp_path / name)
        contents.append([sorted(path.read_bytes() for path in part.iterdir()) for part in parts])
    training, held_out = contents[0]
    assert contents[0] == contents[1]
    assert (len(training), len(held_out)) == (60, 30)
    originals = {path.read_bytes(): path.parent.name for path in (tmp_path / "data").rglob("*.png")}
    assert sorted(training + held_out) == sorted(originals)
    classes = json.loads((tmp_path / "one/classes.json").read_text())
    pictures, labels = quality_judge.read(tmp_path / "one/training", 8, classes)
    paths = sorted((tmp_path / "one/training").iterdir())
    assert [f"class {label}" for label in labels] == [originals[path.read_bytes()] for path in paths]
    assert all((np.asarray(Image.open(path)) == picture).all() for path, picture in zip(paths, pictures, strict=True))
    assert quality_judge.read(tmp_path / "one/training", 8, dict.fromkeys(classes))[1] is None
    with pytest.raises(DataError, match="needs at least"):
        quality_judge.split(tmp_path / "data/class 0", tmp_path / "three")


@pytest.mark.seconds
def test_the_judge_tells_real_images_from_noise_and_from_copies(tmp_path):
    builtin.prepare("digits", tmp_path / "digits", limit=600)
    quality_judge.split(tmp_path / "digits", tmp_path)
    judge = quality_judge.make(tmp_path, 16, steps=60)
    assert judge.trained.learned == "classes"
    assert (tmp_path / "judge.pt").exists()
    copies, reals = judge.of(judge.training[:150]), judge.of(judge.held_out[:150])
    noise = judge.of(np.random.default_rng(0).integers(0, 256, (150, 16, 16, 3), dtype=np.uint8))
    mirrored = judge.of(judge.training[:50, :, ::-1].copy())
    assert copies["copies 1%"] == mirrored["copies 1%"] == 1.0
    assert reals["copies 1%"] <= 0.05
    assert noise["copies 5%"] == 0.0
    assert abs(copies["excess"]) < 0.1 * noise["excess"]
    assert copies["precision"] > 0.8 > noise["precision"]


# The peers


def task(tmp_path, **told):
    """A task, begun by this process."""
    usual = {"training": "", "held_out": "", "work": str(tmp_path), "size": 16, "parameters": 300_000}
    usual |= {"seed": 0, "samples": 50}
    usual |= {"patience": 0.0, "tiny": True, "run": "", "device": "cpu", "minutes": 1.0}
    (tmp_path / "task.json").write_text(json.dumps(usual | told))
    return quality_peers.Task(str(tmp_path / "task.json"))


def test_the_width_is_that_of_the_nearest_number_of_parameters(tmp_path):
    made = task(tmp_path, parameters=1000)
    assert made.width(lambda width: nn.Linear(width, 1, bias=False)) == 1000
    assert made.width(lambda width: nn.Linear(width, width, bias=False)) == 32  # 1,024, where 28 has 784


def test_a_slow_way_makes_fewer_samples(tmp_path):
    def draw(num):
        return np.zeros((num, 4, 4, 3), np.uint8)

    slow = task(tmp_path).sampled({"long": (draw, 1000), "short": (draw, 10)})
    assert [way["samples"] for way in slow.values()] == [20, 50]
    patient = task(tmp_path, patience=60.0).sampled({"long": (draw, 1000)})["long"]
    assert patient["samples"] == len(np.load(patient["file"])["samples"]) == 50


def test_the_loss_of_half_the_best_denoiser_of_black_and_white_pixels(tmp_path):
    """For independent pixels of -1 and 1 the best is tanh(x / sigma^2); with m = E[tanh(1 / sigma^2 + z / sigma)], the
    error of its half is 1 - 3/4 m."""
    (tmp_path / "held-out").mkdir()
    for n, bits in enumerate(np.random.default_rng(0).integers(0, 2, (20, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(bits * 255).save(tmp_path / f"held-out/{n}.png")
    judged = task(tmp_path, held_out=str(tmp_path / "held-out"))
    found = judged.loss(lambda x, sigma: torch.tanh(x / sigma[:, None, None, None] ** 2) / 2)
    z, weights = np.polynomial.hermite_e.hermegauss(200)
    sigmas = np.geomspace(0.02, 20, 16)
    m = np.tanh(1 / sigmas[:, None] ** 2 + z / sigmas[:, None]) @ weights / weights.sum()
    linear = sigmas**2 / (1 + sigmas**2)
    assert found == pytest.approx(np.log((1 - 0.75 * m) / linear).mean(), abs=0.01)


def test_the_nearest_timestep_of_a_noise_level():
    levels = quality_peers.level(torch.tensor([0.99, 0.5, 0.01]))
    assert levels.tolist() == pytest.approx([0.1005, 1.0, 9.95], rel=1e-3)
    assert quality_peers.nearest(levels, torch.tensor([0.02, 0.3, 0.4, 3.0, 4.0])).tolist() == [0, 0, 1, 1, 2]


def test_pixels_are_scaled_to_bytes():
    x = torch.tensor([-0.5, 0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert quality_peers.pixels(x)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.seconds
@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_the_nets_of_diffusers_take_images_of_every_size(size):
    pytest.importorskip("diffusers")
    x, t = torch.randn(1, 3, size, size), torch.tensor([5.0])
    for net in (quality_peers.readme_net(size, 12), quality_peers.edm_net(size, 12, 0.0)):
        assert net(x, t).sample.shape == x.shape
    whole = quality_peers.readme_net(size, 32).config
    assert whole.block_out_channels[-3:] == (64, 128, 128)
    assert whole.down_block_types[-2:] == ("AttnDownBlock2D", "DownBlock2D")


# The command


def test_what_quality_is_asked_for(capsys):
    options = benchmark.arguments(["quality"])
    assert (options.names, options.stem, options.minutes, options.samples) == (["quality"], "quality", 10.0, 500)
    assert options.limit == "--minutes {minutes}"
    assert benchmark.arguments(["quality", "--tiny"]).minutes == 0.1
    assert "quality" not in benchmark.arguments([]).names
    for words, said in (
        (["step", "--minutes", "1"], "--minutes: only for quality"),
        (["quality", "step"], "run by itself"),
        (["quality", "--samples", "3"], "at least 20"),
        (["quality", "--image-size", "30"], "multiple of 8"),
        (["quality", "--minutes", "0"], "--minutes"),
    ):
        with pytest.raises(SystemExit) as stop:
            benchmark.arguments(words)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_facts_under_columns_have_a_table_of_their_own():
    row = {"measure": "after", "way": "diffunet", "unit": "excess", "reference": "diffunet", "recall": 0.5, "more": 2}
    assert report.cells(row, ["precision", "recall"]) == ["", "0.5"]
    assert report.rest(row, ["precision", "recall"]) == "more 2"


def test_a_way_that_there_is_not_is_an_error_before_anything_is_trained():
    assert quality.chosen(None) == list(quality.WAYS)
    assert quality.chosen(["EDM", "diffunet"]) == ["diffunet", "EDM, bare"]
    with pytest.raises(ValueError, match="no way begins with 'EDM training'; there are: diffunet; lucidrains"):
        quality.chosen(["diffunet", "EDM training"])


@pytest.mark.slow
def test_a_tiny_contest(tmp_path):
    """All ways, trained for some seconds; those whose package is missing say so."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])}
    words = [SCRIPTS / "benchmark.py", "quality", "--tiny", "--device", "cpu", "--out", tmp_path / "out"]
    ended = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    part = json.loads((tmp_path / "out/quality.json").read_text())["parts"]["quality"]
    rows = {row["way"]: row for row in part["rows"]}
    assert [[row["measure"], row["way"]] for row in part["rows"]] == part["planned"]
    assert abs(rows["training images"]["median"]) < rows["diffunet"]["median"]
    for way, row in rows.items():
        if "missing" not in row and way != "training images":
            assert row["steps"] >= 1, way
            assert row["samples"] == 40, way
            assert abs(np.log(row["parameters"] / rows["diffunet"]["parameters"])) < 0.35, way
    assert (tmp_path / "out/diffunet.png").exists()
    assert "| way | loss | distance |" in (tmp_path / "out/quality.md").read_text()


def test_the_curves_have_a_point_for_each_way_and_number_of_minutes(tmp_path):
    def result(minutes, excess):
        rows = [
            {"measure": f"after {minutes} minutes at 16 pixels", "way": way, "median": value, "loss": -value, **steps}
            for way, value, steps in (("diffunet", excess, {"steps": 9}), ("training images", 0.1, {}))
        ]
        path = tmp_path / f"{minutes}.json"
        path.write_text(json.dumps({"parts": {"quality": {"rows": rows}}}))
        return path

    paths = [result(minutes, excess) for minutes, excess in ((3, 2.0), (0.5, 7.0))]
    found = quality_curves.points(paths)
    assert {minutes: row["median"] for minutes, row in found[16]["diffunet"].items()} == {3.0: 2.0, 0.5: 7.0}
    assert list(found[16]) == ["diffunet"]
    pytest.importorskip("matplotlib")
    quality_curves.main([*map(str, paths), "--out", str(tmp_path / "curves.png")])
    assert Image.open(tmp_path / "curves.png").width > 400
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(SystemExit, match="no result of benchmark"):
        quality_curves.points([tmp_path / "other.json"])
