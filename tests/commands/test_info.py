"""`diffunet info`: the machine without a model, and all of it as JSON."""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.commands import diffunet, refused

from diffunet import pretrained, storage
from diffunet.commands import machine
from diffunet.nn.unet import UNet

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def told(capsys, *words):
    capsys.readouterr()
    diffunet("info", *words)
    return capsys.readouterr().out


@pytest.fixture
def no_kernels(monkeypatch):
    """Kernels are not built, which takes seconds."""
    monkeypatch.setattr("diffunet.nn.kernels.ready", lambda device: None)


def test_the_machine_is_described_and_tried(no_kernels, capsys):
    said = told(capsys, "--device", "cpu")
    torchs = f"torch {torch.__version__.partition('+')[0]}"
    for words in (torchs, "device: CPU", "precision: ", "memory: ", "disk, here: ", "extra web: ", "self-test: passed"):
        assert words in said, words
    found = json.loads(told(capsys, "--device", "cpu", "--json"))
    assert found["versions"]["pillow"] == importlib.metadata.version("pillow")
    assert found["free_memory"] <= found["memory"]
    assert found["self_test"]["passed"]
    assert found["self_test"]["losses"][-1] < found["self_test"]["losses"][0]


def test_what_is_not_installed_is_said(no_kernels, monkeypatch):
    monkeypatch.setattr(machine, "EXTRAS", {"web": ("no-such-package",)})
    found = machine.facts("cpu")
    assert found["extras"] == {"web": {"no-such-package": None}}
    assert "extra web: no-such-package is not installed" in [*machine.lines(found)]


def test_the_extras_are_those_of_the_package():
    def names(requirements):
        return tuple(re.match(r"[\w-]+", each)[0] for each in requirements)

    asked = {name: names(needed) for name, needed in PROJECT["optional-dependencies"].items()}
    assert {name: asked[name] for name in machine.EXTRAS} == machine.EXTRAS
    assert {*asked} - {*machine.EXTRAS} == {"bench", "eval", "hub", "test"}, "those are of the project's own, or empty"


def test_a_net_that_is_not_finite_fails_the_self_test(no_kernels, monkeypatch, capsys):
    plain = UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda *args, **named: plain(*args, **named) * float("nan"))
    line = refused(capsys, "info", "--device", "cpu", code=6)
    assert "the self-test failed: a training step is not finite" in line


def test_a_device_that_is_not_there_is_refused(capsys):
    assert "--list shows all" in refused(capsys, "info", "--list", "--device", "cpu")
    assert "MODEL_OR_PRESET is missing" in refused(capsys, "info", "--image-size", 8)
    refused(capsys, "info", "--device", "abacus")


def test_a_model_is_described_to_programs(model, capsys):
    found = json.loads(told(capsys, model, "--device", "cpu", "--json"))
    weights = storage.read_tensors(model / "model" / storage.WEIGHTS)[0]
    assert found["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"])
    assert found["macs"] == sum(part["macs"] for part in found["parts"])
    assert found["parts"][-1]["shape"] == [3, 8, 8]
    assert (found["image_size"], found["classes"]) == (8, ["disc", "square"])
    assert found["time"]["training"] > 0
    assert found["time"]["sampling"] > 0


def test_the_list_is_there_for_programs(capsys):
    [emoji] = json.loads(told(capsys, "--list", "--json"))
    assert (emoji["name"], emoji["image_size"], len(emoji["classes"])) == ("emoji", 64, 9)
    assert emoji["card"] == pretrained.card("emoji")
