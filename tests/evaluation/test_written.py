"""What `diffunet evaluate` writes into a run, what it prints where that fails, and how it knows the model again."""

import json
import math
import shutil

import pytest
import torch
from helpers.commands import diffunet, refused
from helpers.small import tiny

import diffunet as package
from diffunet import build, files, storage
from diffunet.commands.records import fingerprint
from diffunet.evaluation import figures, report
from diffunet.evaluation.bits_per_dimension import Likelihood
from diffunet.evaluation.denoising import DenoisingError
from diffunet.evaluation.told import Loss, Report
from diffunet.training.defaults import resolve


@pytest.fixture
def own(model, tmp_path):
    """A copy of a run that a test may write into."""
    return shutil.copytree(model, tmp_path / "run")


def test_results_are_printed_where_the_run_cannot_be_written(own, folder, capsys, monkeypatch):
    write = files.write_atomic

    def full(path, text):
        if path.name == figures.NAME:
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(files, "write_atomic", full)
    line = refused(capsys, "evaluate", own, folder, "--loss", "--num", 2, code=6)
    assert line == f"diffunet: {own / figures.NAME} cannot be written: No space left on device"
    diffunet("evaluate", own, folder, "--loss", "--num", 2, "--json", code=6)
    assert json.loads(capsys.readouterr().out)["loss_images"] == 2


def test_a_run_that_cannot_be_written_is_refused_before_it_is_measured(own, folder, capsys, monkeypatch):
    monkeypatch.setattr(report, "denoising", None)
    (own / figures.NAME).mkdir()
    line = refused(capsys, "evaluate", own, folder, "--loss")
    assert line.startswith(f"diffunet: MODEL {own / figures.NAME} is a folder")


def test_pairs_with_transparency_are_refused_beforehand_for_a_file_that_holds_none(folder, tmp_path, capsys):
    config = resolve(
        tiny(data={"channels": 4, "classes": False}), images=40, class_names=(), mean=(0.0,) * 4, sigma_data=0.5,
        how=package.load("emoji", "cpu").how,
    )  # fmt: skip
    storage.export_model(tmp_path / "m", config, build.net(config).state_dict(), 1)
    words = ["evaluate", tmp_path / "m", folder, "--pairs", tmp_path / "x.jpg"]
    assert "--pairs" in (line := refused(capsys, *words))
    assert "holds no transparency" in line


def test_the_model_of_figures_is_the_same_in_every_precision(own, folder, capsys):
    found = set()
    for precision in ("fp32", "bf16"):
        capsys.readouterr()
        diffunet("evaluate", own, folder, "--loss", "--num", 2, "--precision", precision, "--device", "cpu", "--json")
        found.add(json.loads(capsys.readouterr().out)["model"])
    assert found == {fingerprint(package.load(own, "cpu", torch.float32))}
    assert fingerprint(package.load(own, "cpu", torch.bfloat16)) not in found, "pictures do depend on it"


@pytest.mark.parametrize("option", [["--precision", "fp32"], ["--compile"], ["--kernels"]])
def test_options_of_a_net_are_refused_where_there_is_none(option, folder, capsys):
    assert option[0] in refused(capsys, "evaluate", "--samples", folder, folder, *option)


def test_what_is_not_finite_is_null_in_json_and_told_in_words():
    loss = Loss(DenoisingError((0.5, 1.0), (math.nan, 1.0), 3), held_out=True, data="x")
    found = json.loads(figures.text(loss.figures()))
    assert (found["loss"], found["loss_by_noise"], found["loss_images"]) == (None, [[0.5, None], [1.0, 1.0]], 3)
    assert loss.lines()[0].startswith("loss: nan")
    bits = Likelihood("ode", math.inf, math.nan, 3, 52, "ODE")
    likely = Report(1.0, 0.5, 10, "turns", 0.9, None, likelihood=bits)
    found = json.loads(figures.text(likely.figures()))
    assert (found["likelihood"], found["likelihood_error"], found["distance"]) == (None, None, 1.0)
    assert "inf +- nan bits" in "\n".join(likely.lines())
