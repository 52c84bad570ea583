"""The ablation script: its nets have the sizes and the shape that they are to have, and all train as `train` does."""

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers.small import tiny
from safetensors.torch import load_file
from torch import nn

from diffunet import compute
from diffunet.errors import UsageError
from diffunet.nn.unet import UNet
from diffunet.training.loop import train

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import ablation  # noqa: E402
import ablation_nets  # noqa: E402


def awake(net):
    """Zero-initialised layers hide mistakes: give every parameter a value."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


# Nets


class Spoiled(nn.Module):
    """A level of the encoder that hands over other skips, but for the map that goes on."""

    def __init__(self, down):
        super().__init__()
        self.down = down

    def forward(self, x, e):
        *skips, last = self.down(x, e)
        return [*(torch.randn_like(skip) for skip in skips), last]


@pytest.mark.parametrize("change", [lambda net: net, ablation_nets.without_skips], ids=["unet", "without skips"])
def test_only_a_unet_with_skips_sees_them(change):
    net = awake(change(UNet(1, channels=8, multipliers=(1, 2), num_blocks=2, attention_levels=(1,), dropout=0.1)))
    told = torch.randn(2, 1, 9, 8), torch.tensor([3.0, 900.0])
    before = net(*told)
    assert before.shape == (2, 1, 9, 8)
    net.down = nn.ModuleList([Spoiled(down) for down in net.down])
    assert torch.equal(net(*told), before) == (change is ablation_nets.without_skips)


def test_the_residual_net_has_the_parameters_of_its_closed_form():
    width, blocks, channels, classes = 24, 3, 8, 5
    e = 4 * channels
    block = 2 * (9 * width**2 + width) + 2 * 2 * width + (e + 1) * 2 * width
    embedding = (channels + 1) * e + (e + 1) * e + (classes + 1) * e
    ends = (9 * 3 + 1) * width + 2 * width + (9 * width + 1) * 3
    net = ablation_nets.ResNet(3, 3, width, blocks, channels, num_classes=classes)
    assert ablation_nets.parameters(net, 16) == blocks * block + embedding + ends
    x, t = torch.randn(2, 3, 5, 7), torch.tensor([1.0, 2.0])
    assert awake(net)(x, t, torch.tensor([0, net.null_label])).shape == x.shape


@pytest.mark.parametrize("wanted", [700, 123_456, 10**6])
def test_a_net_made_to_a_size_is_the_nearest_there_is(wanted):
    depths = [5, 4, 6]

    def size(width, depth):
        return depth * width**2 + width

    def make(width, depth):
        return nn.ParameterList([torch.empty(width, width)] * depth + [torch.empty(width)])

    def measure(net):
        return sum(part.numel() for part in net)

    off = {depth: min(abs(math.log(size(width, depth) / wanted)) for width in ablation_nets.WIDTHS) for depth in depths}
    width, depth = ablation_nets.fitted(make, measure, wanted, depths)
    assert depth == next((depth for depth in depths if off[depth] < 0.02), min(depths, key=lambda depth: off[depth]))
    assert abs(math.log(size(width, depth) / wanted)) == pytest.approx(off[depth])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "resnet-macs")) for name in ablation_nets.NETS]
)
def test_every_net_is_near_what_it_is_made_to_and_answers(name):
    config = tiny(model={"attention_levels": (1,), "channels": 16}, data={"class_names": ("a", "b")})
    unet, net = ablation_nets.make("unet", config), ablation_nets.make(name, config)
    if name in ("unet2015", "resnet-parameters"):
        assert ablation_nets.parameters(net, 8) == pytest.approx(ablation_nets.parameters(unet, 8), rel=0.15)
    if name == "resnet-macs":
        assert ablation_nets.macs(net, 8) == pytest.approx(ablation_nets.macs(unet, 8), rel=0.15)
    x = torch.randn(2, 3, 8, 8)
    assert net(x, torch.tensor([0.0, 999.0]), torch.tensor([0, 2])).shape == x.shape


# Runs


@pytest.fixture
def bench(folder, monkeypatch):
    """Of `tiny`, with a clock on which a step takes a second."""
    bench = ablation.Bench(tiny(), folder, seconds=8.0, num=8, how=compute.choose("cpu"))
    seconds = iter(range(10**6))
    monkeypatch.setattr(bench, "now", lambda: next(seconds))
    return bench


@pytest.mark.seconds
def test_it_trains_as_train_does(bench, folder, tmp_path):
    torch.manual_seed(ablation.draws.seed_of("init", 0))
    average, curve = bench.learn(ablation_nets.make("unet", bench.config), bench.config.train.learning_rate, 0)
    assert [point["steps"] for point in curve] == [1, 2, 4, 8]
    model = train(tiny(), folder, tmp_path / "run")  # 8 steps
    for name, tensor in load_file(model / "model.safetensors").items():
        assert torch.allclose(average.net.state_dict()[name], tensor, atol=1e-5), name


class Fake:
    """A bench whose rows are known; the better rate of a net is in its name."""

    def __init__(self, seconds=1.0):
        self.seconds, self.made = seconds, []

    def settings(self):
        return {"seconds": self.seconds, "device": "cpu", "image_size": 8, "batch_size": 4, "precision": "fp32",
                "images": 10}  # fmt: skip

    def row(self, name, rate, seed):
        self.made.append((name, rate, seed))
        best = {"unet": 1e-3, "resnet-macs": 3e-4}[name]
        loss = (1.0 if rate == best else 2.0) * (2 if name == "resnet-macs" else 1) + 0.25 * seed
        curve = [{"seconds": share, "steps": 10 * share, "loss": loss / share} for share in ablation.MARKS]
        return {"net": name, "rate": rate, "seed": seed, "parameters": 5, "macs": 7, "steps": 10, "loss": loss,
                "excess": 0.5, "floor": 0.1, "agreement": 0.5, "curve": curve}  # fmt: skip


def options(**changes):
    return Namespace(**{"nets": ["unet", "resnet-macs"], "seeds": [0, 1], "rates": [1e-3, 3e-4]} | changes)


def test_both_rates_are_tried_once_and_the_better_goes_on(tmp_path):
    bench, kept = Fake(), tmp_path / "found.json"
    ablation.run(bench, options(), kept)
    first = [("unet", 1e-3, 0), ("unet", 3e-4, 0), ("resnet-macs", 1e-3, 0), ("resnet-macs", 3e-4, 0)]
    assert bench.made == [*first, ("unet", 1e-3, 1), ("resnet-macs", 3e-4, 1)]
    rows = ablation.chosen(json.loads(kept.read_text())["rows"])
    assert {name: [row["rate"] for row in ours] for name, ours in rows.items()} == {
        "unet": [1e-3, 1e-3], "resnet-macs": [3e-4, 3e-4],
    }  # fmt: skip


def test_rows_that_are_there_are_not_run_again(tmp_path):
    kept = tmp_path / "found.json"
    ablation.run(Fake(), options(seeds=[0]), kept)
    again = Fake()
    ablation.run(again, options(), kept)
    assert again.made == [("unet", 1e-3, 1), ("resnet-macs", 3e-4, 1)]
    with pytest.raises(UsageError, match="name another --out"):
        ablation.run(Fake(seconds=2.0), options(), kept)


def test_the_table_has_mean_and_deviation_over_seeds(tmp_path):
    kept = tmp_path / "found.json"
    ablation.run(Fake(), options(), kept)
    text = ablation.table(json.loads(kept.read_text()))
    unet, resnet = (line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "±" in line)
    # Losses 1 and 1.25 against 2 and 2.25: ratios 2 and 1.8; two values differ by sqrt(2) deviations.
    assert unet[5] == "1.1250 ± 0.1768"
    assert resnet[5:7] == ["2.1250 ± 0.1768", "1.900 ± 0.141"]
    assert "| resnet-macs | 4.0000 | 2.0000 |" in text


@pytest.mark.slow
def test_the_command_writes_table_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "found.json"
    words = [
        "--nets",
        "unet",
        "resnet-parameters",
        "--seeds",
        "0",
        "--rates",
        "1e-3",
        "--seconds",
        "0.5",
        "--num",
        "40",
    ]
    command = [sys.executable, str(SCRIPTS / "ablation.py"), "--out", str(out), "--channels", "8", *words]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert {row["net"] for row in json.loads(out.read_text())["rows"]} == {"unet", "resnet-parameters"}
    assert "| resnet-parameters |" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").stat().st_size > 10_000
